"""Planning: parameters and activations as transformers and autograd count them; what does not fit is said."""
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from transformers import Qwen3Config, Qwen3ForCausalLM

import memory
import train
from memory import GB, KNOWN, Shape
from tasks import BadInput


def model_of(shape: Shape):
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_hidden_layers=shape.layers,
                                        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim, tie_word_embeddings=shape.tied))


def test_known_models_have_the_size_of_their_name():
    for name, billions in (("0.6B", 0.596), ("1.7B", 1.72), ("4B", 4.02), ("8B", 8.19)):
        assert KNOWN[f"Qwen/Qwen3-{name}"].parameters / 1e9 == pytest.approx(billions, rel=0.005)
        with torch.device("meta"):
            model = model_of(KNOWN[f"Qwen/Qwen3-{name}"])
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(KNOWN[f"Qwen/Qwen3-{name}"].parameters, rel=1e-4)


def kept(shape: Shape, tokens: int, bf16: bool) -> int:
    """Bytes that autograd keeps for the backward pass of a model's layers, but for the weights and their bf16 copies."""
    model, sizes, alive = model_of(shape), {}, []
    weights = {p.numel() for p in model.parameters() if p.dim() == 2}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.nbytes() // tensor.element_size() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        model.model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
    return sum(sizes.values())


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("shape", [Shape(3, 256, 512, 4, 2, 64, 61, True), Shape(3, 128, 768, 8, 8, 32, 61, True), Shape(3, 320, 640, 2, 1, 64, 61, True)])
def test_activations_are_what_autograd_keeps(shape, bf16):
    """One layer more, at 331 tokens: within 15 % of the formula."""
    found = (kept(shape, 331, bf16) - kept(replace(shape, layers=2), 331, bf16)) / 331
    assert memory.activations(shape, bf16) == pytest.approx(found, rel=0.15)


def test_presets_fit_what_they_are_for():
    assert not memory.advice(KNOWN["Qwen/Qwen3-0.6B"], train.PRESETS["small"], 1, True, 24 * GB)
    assert not memory.advice(KNOWN["Qwen/Qwen3-8B"], train.PRESETS["paper"], 8, True, 80 * GB)
    assert "it fits" in memory.report(train.PRESETS["paper"], 8)


def test_what_does_not_fit_is_told_what_to_change():
    paper = train.PRESETS["paper"]
    alone = memory.report(replace(paper, shard=False), 8)
    assert "--shard" in alone and "does not fit" in alone
    assert "--checkpointing" in memory.report(replace(paper, checkpointing=False, gpu_gb=40), 8)
    assert "--gpu-memory" in memory.report(replace(paper, gpu_memory=0.95), 8)
    assert "more GPUs" in memory.report(replace(paper, batch_tokens=2048, gpu_gb=24), 1)
    assert "--questions 16" in memory.report(replace(paper, questions=12), 8)


def test_shapes_of_folders():
    assert memory.shape_of("tiny").parameters == pytest.approx(860_000, rel=0.05)
    with pytest.raises(BadInput, match="nowhere"):
        memory.shape_of(str(ROOT / "nowhere"))


def test_the_readme_has_the_table():
    assert memory.table() in (ROOT / "README.md").read_text()


def test_a_second_policy_costs_its_weights_and_moments():
    config = train.Config(model="Qwen/Qwen3-0.6B", anchor=0.0)
    shape = memory.shape_of(config.model)
    for parts, more in ((memory.update_parts, 12), (lambda *arguments: memory.sampling_parts(*arguments, 80 * GB), 14)):  # and the engine's copy in bf16
        one, two = (sum(parts(shape, replace(config, policies=policies), 1, True).values()) for policies in ("shared", "two"))
        assert two - one == more * shape.parameters
