"""Planning: parameters and activations as transformers and autograd count them; advice."""

from dataclasses import replace

import pytest
import torch
from conftest import ROOT, Config
from transformers import Qwen3Config, Qwen3ForCausalLM

from config import PRESETS
from lib import memory
from lib.errors import UserError
from lib.memory import GB, KNOWN, Plan, Shape


def model_of(shape: Shape):
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
    )
    return Qwen3ForCausalLM(config)


@pytest.mark.parametrize(
    "name, billions", [("0.6B", 0.596), ("1.7B", 1.72), ("4B", 4.02), ("8B", 8.19)]
)
def test_known_models_have_the_size_of_their_name(name, billions):
    shape = KNOWN[f"Qwen/Qwen3-{name}"]
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.005)
    with torch.device("meta"):
        model = model_of(shape)
    counted = sum(p.numel() for p in model.parameters())
    assert counted == pytest.approx(shape.parameters, rel=1e-4)


def kept_bytes(shape: Shape, tokens: int, bf16: bool) -> int:
    """What autograd keeps for the backward pass of the layers, but for weights and their copies."""
    model, sizes, alive = model_of(shape), {}, []
    weight_sizes = {p.numel() for p in model.parameters() if p.dim() == 2}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.nbytes() // tensor.element_size() not in weight_sizes:
            sizes[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        model.model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
    return sum(sizes.values())


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        Shape(3, 256, 512, 4, 2, 64, 61, True),
        Shape(3, 128, 768, 8, 8, 32, 61, True),
        Shape(3, 320, 640, 2, 1, 64, 61, True),
    ],
)
def test_activations_are_what_autograd_keeps(shape, bf16):
    """One layer more, at 331 tokens: within 15 % of the formula."""
    two_layers = replace(shape, layers=2)
    per_token = (kept_bytes(shape, 331, bf16) - kept_bytes(two_layers, 331, bf16)) / 331
    assert memory.activation_bytes(shape, bf16) == pytest.approx(per_token, rel=0.15)


def plan(config, gpus="8x80"):
    ranks, gb = memory.parse_gpus(gpus)
    return Plan(config, memory.shape_of(config.model), ranks, gb * GB)


def test_presets_fit_what_they_are_for():
    assert not memory.advice(plan(PRESETS["small"], "1x24"))
    assert not memory.advice(plan(PRESETS["paper"], "8x80"))
    assert "it fits" in memory.report(replace(PRESETS["paper"], dry_run="8x80"))


@pytest.mark.parametrize(
    "gpus, changes, advice",
    [
        ("8x80", {"shard": False}, "--shard"),
        ("8x80", {"shard": False}, "does not fit"),
        ("8x40", {"checkpointing": False}, "--checkpointing"),
        ("8x80", {"gpu_memory": 0.95}, "--gpu-memory"),
        ("1x24", {"max_length": 2048}, "more GPUs"),
        ("8x80", {"questions": 12}, "--questions 16"),
    ],
)
def test_what_does_not_fit_is_told_what_to_change(gpus, changes, advice):
    config = replace(PRESETS["paper"], dry_run=gpus, **changes)
    assert advice in memory.report(config)


def test_shapes_of_folders():
    assert memory.shape_of("tiny").parameters == pytest.approx(860_000, rel=0.05)
    with pytest.raises(UserError, match="nowhere"):
        memory.shape_of(str(ROOT / "nowhere"))


@pytest.mark.parametrize("text", ["8", "0x80", "8x", "x80", "8x-80", "eight"])
def test_a_wrong_number_of_gpus_is_an_error(text):
    with pytest.raises(UserError, match="--dry-run"):
        memory.parse_gpus(text)


def test_a_second_policy_costs_its_weights_and_moments():
    """And while sampling, the engine's copy in bf16."""
    shared = plan(Config(model="Qwen/Qwen3-0.6B"), "1x80")
    two = replace(shared, config=replace(shared.config, policies="two"))
    for parts, extra in ((memory.update_bytes, 12), (memory.sampling_bytes, 14)):
        difference = sum(parts(two).values()) - sum(parts(shared).values())
        assert difference == extra * shared.shape.parameters
