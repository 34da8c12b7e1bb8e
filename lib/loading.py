"""Loading: a tokenizer and a model from a folder, the Hub, or a GGUF file.

Test: `pytest tests/test_policy.py`. Read next: attention.py.
"""

import pathlib

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import lib.attention  # noqa: F401 - registers the attention that the models are loaded with
from lib import lora
from lib.cli import log
from lib.errors import UserError


def load_model(path: str, dtype: torch.dtype):
    """(tokenizer, model), an adapter's folder (lora.py) merged. Raises UserError."""
    logging.disable_progress_bar()
    base = lora.base_of(path)
    file = pathlib.Path(base)
    is_gguf = file.suffix == ".gguf" and file.is_file()
    may_be_hub_id = base.count("/") == 1 and not base.startswith((".", "/"))
    if not (file.is_dir() or is_gguf or may_be_hub_id):
        raise UserError(f"--model {base}: no such folder or .gguf file, no Hub id (OWNER/NAME)")
    source = {"pretrained_model_name_or_path": base}
    if is_gguf:
        source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
        model, info = AutoModelForCausalLM.from_pretrained(
            **source,
            dtype=dtype,
            attn_implementation="grouped",
            trust_remote_code=False,  # nothing prompts, and no code comes with a model
            output_loading_info=True,
        )
        if base != path:
            model = lora.merge(model, path)
    except Exception as error:  # boundary: the loaders raise what they like on a bad folder
        problem = " ".join(str(error).split())[:160]
        raise UserError(f"--model {path}: cannot be loaded ({problem})") from error
    check_complete(path, info)
    if is_gguf:
        # It was read as plain numbers: what it was quantised with does not belong to it any more.
        del model.config.quantization_config
        weights, model = model.state_dict(), type(model)(model.config)
        model.load_state_dict(weights)
    if not tokenizer.chat_template:
        raise UserError(
            f"--model {path}: its tokenizer has no chat template; use an instruct model"
        )
    freeze_other_modalities(model)
    return tokenizer, model


def check_complete(path: str, info: dict) -> None:
    """Refuse a checkpoint that leaves weights to chance. info: transformers' loading info."""
    missing, unexpected = (sorted(info[f"{kind}_keys"])[:3] for kind in ("missing", "unexpected"))
    if missing:
        instead = f", but has {', '.join(unexpected)}" if unexpected else ""
        raise UserError(
            f"--model {path}: has no weights for {', '.join(missing)}{instead}: random ones"
        )


def freeze_other_modalities(model) -> None:
    """A vision or audio tower gets no gradient from text: AdamW would only let it decay."""
    parts = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    of_text = {id(p) for part in parts if part is not None for p in part.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in of_text)


def special_ids(path: str, tokenizer, model, chat) -> tuple[frozenset[int], int]:
    """(the tokens that end a completion, the token that fills up rows). Raises UserError.

    A chat tune of a base model may end its turns with a token that its config does not name: it
    ends a completion, too.
    """
    named = model.generation_config.eos_token_id
    named = named if isinstance(named, list) else [named]
    eos_id, pad_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    end_ids = frozenset({*named, eos_id} - {None})
    turn_end = chat.turn_end(end_ids)
    if turn_end is not None:
        names = " ".join(tokenizer.convert_ids_to_tokens(sorted(end_ids)))
        new_name = tokenizer.convert_ids_to_tokens(turn_end)
        log.info(f"--model {path}: its turns end in {new_name}, not in {names or 'none'}: both end")
        end_ids |= {turn_end}
    if not end_ids:
        raise UserError(f"--model {path}: no end token, neither in its config nor in its template")
    if pad_id is None:
        pad_id = min(end_ids) if eos_id is None else eos_id
    return end_ids, pad_id
