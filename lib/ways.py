"""Ways: how a model is computed, from the fastest to the safest, and what its family needs.

Families differ in what the fast way leaves out: windows of attention that are counted over padding,
caps and sinks that an attention kernel does not know, layers with a state instead of keys and
values. model_check.py finds the first way in which all agree.

Test: `pytest tests/test_models.py`. Read next: model_check.py.
"""

import copy
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Way:
    """How sampling with `hf` and training compute the model."""

    name: str
    attention: str = "grouped"  # transformers' attn_implementation; grouped: lib/attention.py
    share_prefixes: bool = True  # a common beginning is computed once
    own_cache: bool = False  # the model's own cache, whose rows stay together to the end


FAST = Way("the fast way")
WAYS = (
    FAST,
    Way("no prefix sharing", "grouped", share_prefixes=False),
    Way("no prefix sharing, eager attention", "eager", share_prefixes=False),
    Way("no prefix sharing, its own cache", "grouped", share_prefixes=False, own_cache=True),
    Way("no prefix sharing, its own cache, eager attention", "eager", False, own_cache=True),
)


def text_config(model):
    """The part of a model's config that describes its language model."""
    return model.config.get_text_config()


def attention_window(model) -> int:
    """Tokens that a layer of sliding or chunked attention sees; 0 if every layer sees all."""
    config = text_config(model)
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return min((window for window in windows if window), default=0)


def set_way(policy, engine, way: Way) -> None:
    """Compute the model this way from now on, in the engine too."""
    policy.way = way
    for model in {policy.model, getattr(engine, "model", policy.model)}:
        set_attention(model, way.attention)


def set_attention(model, attention: str) -> None:
    model.set_attn_implementation(attention)
    # Families with attention of their own (BLOOM) can't change it, but the mask follows the name.
    if model.config._attn_implementation != attention:
        model.config._attn_implementation = "eager"


def context_length(model) -> int:
    """Max tokens of a sequence. Where rope changes its frequencies beyond some length, that one.

    A key that was computed before the change would keep the old frequencies (longrope, dynamic).
    """
    config = text_config(model)
    length = getattr(config, "max_position_embeddings", None) or 1 << 30
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("longrope", "dynamic"):
        switch = rope.get("original_max_position_embeddings")
        length = min(length, switch or getattr(config, "original_max_position_embeddings", length))
    return length


def set_training(model, is_on: bool) -> None:
    """Training mode for what recomputes activations, and for nothing in it: no dropout anywhere."""
    model.eval()
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.training = is_on


class Head:
    """Logits from hidden states, as the model's own forward makes them: its caps and scales too.

    It runs that forward with a body that hands back what it is given.
    """

    def __init__(self, model):
        self.model = copy.copy(model)
        self.model._modules = dict(model._modules)
        self.model._modules[model.base_model_prefix] = HandBack()

    def __call__(self, hidden_K_H: torch.Tensor) -> torch.Tensor:
        """logits_K_V."""
        # Not a call of the module, which would gather the weights of --shard a second time.
        out = self.model.forward(inputs_embeds=hidden_K_H[None], use_cache=False)
        return out.logits[0]


class HandBack(torch.nn.Module):
    def forward(self, *_, inputs_embeds, **__):
        return Hidden(inputs_embeds)


class Hidden:
    """A body's output that has nothing but hidden states."""

    def __init__(self, last_hidden_state):
        self.last_hidden_state = last_hidden_state

    def __getitem__(self, index):
        return self.last_hidden_state if index == 0 else ()

    def __getattr__(self, name):
        return None
