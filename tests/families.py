"""Random models of many families, as folders: small, with the tiny model's tokenizer.

The weights are large enough that what a family does in its own way (a window, a cap, a sink, a
scale) changes the numbers. `python tests/families.py FOLDER` writes them all.
"""

import pathlib
import sys

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent
STD = 0.3  # of the weights
WINDOW = 48  # of sliding attention
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 1024,
}
STATES = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 16}

# Family -> (model_type, what its config adds to SHAPE).
FAMILIES = {
    "Llama": ("llama", {}),
    "Qwen2": ("qwen2", {}),
    "Qwen3": ("qwen3", {"head_dim": 16}),
    "Qwen3-MoE": ("qwen3_moe", {"head_dim": 16, **MOE}),
    "Mistral": ("mistral", {"sliding_window": WINDOW, "head_dim": 16}),
    "Gemma 2": (
        "gemma2",
        {"head_dim": 16, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 2.0, **SLIDING},
    ),
    "Gemma 3": ("gemma3", {"text_config": {**SHAPE, "head_dim": 16, **SLIDING}}),
    "Phi-3": ("phi3", {"rope_parameters": LONGROPE}),
    "Granite": ("granite", {"logits_scaling": 4.0, "attention_multiplier": 0.5}),
    "Cohere": ("cohere", {"logit_scale": 0.25}),
    "OLMo 2": ("olmo2", {}),
    "GPT-2": ("gpt2", {}),
    "GPT-NeoX": ("gpt_neox", {}),
    "gpt-oss": (
        "gpt_oss",
        {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, **SLIDING},
    ),
    "LFM2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "Qwen3.5": ("qwen3_5_text", STATES),
    "BLOOM": ("bloom", {}),
    "Mamba": ("mamba", {}),
}

FAST, NO_SHARING = "", "no prefix sharing"
EAGER, OWN_CACHE = "no prefix sharing, eager attention", "no prefix sharing, its own cache"
# Family -> (the way in which sampler, trainer and the model itself agree; None: refused, why).
OUTCOMES = {
    "Llama": (FAST, ""),
    "Qwen2": (FAST, ""),
    "Qwen3": (FAST, ""),
    "Qwen3-MoE": (FAST, ""),
    "Mistral": (NO_SHARING, "a sliding window"),
    "Gemma 2": (EAGER, "a sliding window; caps of attention scores, which faster kernels ignore"),
    "Gemma 3": (NO_SHARING, "a sliding window; the vision tower is frozen"),
    "Phi-3": (FAST, "up to the length at which longrope changes its frequencies"),
    "Granite": (FAST, ""),
    "Cohere": (FAST, ""),
    "OLMo 2": (FAST, ""),
    "GPT-2": (FAST, "dropout is off; most are too short for the designer's prompt"),
    "GPT-NeoX": (FAST, ""),
    "gpt-oss": (EAGER, "a sliding window; attention sinks, which faster kernels ignore"),
    "LFM2": (OWN_CACHE, "convolutions that carry a state"),
    "Qwen3.5": (OWN_CACHE, "linear attention, which carries a state"),
    "BLOOM": (NO_SHARING, "ALiBi counts positions from the mask"),
    "Mamba": (None, "no keys and values: its cache has another interface"),
}


def folder_name(family: str) -> str:
    return family.replace(" ", "-")


def table() -> str:
    """The table of docs/models.md."""
    lines = ["| family | works | why |", "|---|---|---|"]
    for family, (way, why) in OUTCOMES.items():
        works = "refused" if way is None else way or "the fast way"
        lines.append(f"| {family} | {works} | {why} |")
    return "\n".join(lines)


def make(family: str, folder: pathlib.Path, **changes) -> None:
    """Write a random model of `family`. changes: of its config."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny")
    model_type, extra = FAMILIES[family]
    tokens = {
        "vocab_size": 1024,  # more than the tokenizer has, as often
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.eos_token_id,
    }
    shape = SHAPE
    if "text_config" in extra:
        extra = {**extra, "text_config": {**extra["text_config"], **tokens}}
        small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1}
        extra["vision_config"] = {**small, "num_hidden_layers": 1, "image_size": 28}
        shape = {}
    config = AutoConfig.for_model(model_type, **{**shape, **tokens, **extra, **changes})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=STD)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    for family in FAMILIES:
        make(family, pathlib.Path(sys.argv[1]) / folder_name(family))
