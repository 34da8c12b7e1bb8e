"""Loading: a tokenizer and a model from a folder, the Hub, or a GGUF file.

Test: `pytest tests/test_policy.py`. Read next: attention.py.
"""

import pathlib

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import lib.attention  # noqa: F401 - registers the attention that the models are loaded with
from lib.errors import UserError


def load_model(path: str, dtype: torch.dtype):
    """(tokenizer, model). Raises UserError."""
    logging.disable_progress_bar()
    file = pathlib.Path(path)
    is_gguf = file.suffix == ".gguf" and file.is_file()
    may_be_hub_id = path.count("/") == 1 and not path.startswith((".", "/"))
    if not (file.is_dir() or is_gguf or may_be_hub_id):
        raise UserError(f"--model {path}: no such folder or .gguf file, no Hub id (OWNER/NAME)")
    source = {"pretrained_model_name_or_path": path}
    if is_gguf:
        source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model = AutoModelForCausalLM.from_pretrained(
            **source, dtype=dtype, attn_implementation="grouped"
        )
    except Exception as error:  # boundary: the loaders raise what they like on a bad folder
        problem = " ".join(str(error).split())[:160]
        raise UserError(f"--model {path}: cannot be loaded ({problem})") from error
    if is_gguf:
        # It was read as plain numbers: what it was quantised with does not belong to it any more.
        del model.config.quantization_config
        weights, model = model.state_dict(), type(model)(model.config)
        model.load_state_dict(weights)
    if not tokenizer.chat_template:
        raise UserError(
            f"--model {path}: its tokenizer has no chat template; use an instruct model"
        )
    return tokenizer, model


def special_ids(tokenizer, model) -> tuple[frozenset[int], int]:
    """(the tokens that end a completion, the token that fills up rows)."""
    eos_id = tokenizer.eos_token_id
    end_ids = model.generation_config.eos_token_id or eos_id
    if not isinstance(end_ids, list):
        end_ids = [end_ids]
    pad_id = eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return frozenset(end_ids) | {eos_id}, pad_id
