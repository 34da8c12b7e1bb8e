"""LoRA: only the adapter moves, samplers have its weights, and what is stored is the adapter."""

import asyncio

import pytest
import torch
from conftest import ROOT, SMALL_RUN, learner, lines
from peft import LoraConfig, PeftModel, get_peft_model
from runs import same, timeless
from safetensors.torch import load_file
from test_update import batch
from transformers import AutoModelForCausalLM

import train
from config import Config
from engines.hf import HFEngine
from lib import lora
from lib.distributed import iterate_weights
from lib.errors import UserError
from policy import CompletionLogprobs, Policy, collate

TINY = str(ROOT / "tiny")
FLAGS = (*SMALL_RUN, "--lora", "4", "--lr", "3e-3")


def lora_learner(engine=None, dtype=torch.float32, **changes):
    policy = Policy(TINY, dtype=dtype, weights_dtype=dtype)
    engine = engine and engine(policy)  # before the adapter, as in a run
    lora.add_adapter(policy, 4)
    return train.Learner(Config(lora=4, **changes), policy, engine, {"executor"})


def moved(subject, before):
    return {
        name for name, p in subject.policy.model.state_dict().items() if (p != before[name]).any()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_adapter_moves(dtype):
    """It begins as the plain model, and leaves its weights as they are."""
    subject, plain = lora_learner(dtype=dtype), learner()
    sample_batch = collate(batch([1.0, -1.0, 0.5]), plain.policy.pad_id)
    if dtype == torch.float32:
        assert torch.equal(subject.model(sample_batch)[0], plain.model(sample_batch)[0])
    before = {name: p.clone() for name, p in subject.policy.model.state_dict().items()}
    for _ in range(2):
        assert subject.update(batch([1.0, -1.0, 0.5, 2.0]))["grad_norm"] > 0
    names = moved(subject, before)
    assert names == {name for name in before if ".lora_" in name} and len(names) > 10
    trained = [p for p in subject.policy.model.parameters() if p.requires_grad]
    assert len(trained) == len(names) and all(p.dtype == torch.float32 for p in trained)
    assert all(p.grad is None for p in subject.policy.model.parameters() if not p.requires_grad)


def test_samplers_have_the_trainers_weights():
    """An engine that computes with the trainer's own model, and one with plain weights."""

    async def sample(engine):
        return await engine.sample((5, 6, 7), 12, seed=3)

    own = lambda policy: HFEngine(policy, own_weights=True)  # noqa: E731
    for engine in (HFEngine, own):
        subject = lora_learner(engine, torch.float64, lr=1e-2)
        for _ in range(3):
            subject.update(batch([1.0, -1.0, 0.5, 2.0]))
        subject.engine.update_weights(iterate_weights(subject.policy.model, torch.float64))
        completion = asyncio.run(sample(subject.engine))
        (sample_of_it,) = batch([1.0])
        sample_of_it = type(sample_of_it)(
            (5, 6, 7), completion.ids, completion.logprobs, 1.0, "executor"
        )
        logprobs_K, _ = subject.model(collate([sample_of_it], subject.policy.pad_id))
        gap = (logprobs_K - torch.tensor(completion.logprobs, dtype=torch.float64)).abs().max()
        assert gap < 1e-9
        plain = CompletionLogprobs(Policy(TINY, dtype=torch.float64))
        old_K, _ = plain(collate([sample_of_it], subject.policy.pad_id))
        assert (old_K - logprobs_K).abs().max() > 1e-3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four steps at one go."""
    out = tmp_path_factory.mktemp("lora") / "run"
    train.main([*FLAGS, "--steps", "4", "--out", str(out)])
    return out


def test_resumed_equals_straight(run, tmp_path):
    out = tmp_path / "resumed"
    train.main([*FLAGS, "--steps", "2", "--out", str(out)])
    train.main(["--out", str(out), "--steps", "4", "--resume"])
    name = "checkpoint/adapter_model.safetensors"
    assert same(load_file(run / name), load_file(out / name))
    a, b = (
        [row for row in timeless(lines(folder)) if row["step"] != 2] for folder in (run, out)
    )  # the first run ends with an evaluation after two steps
    assert [row["loss"] for row in a] == [row["loss"] for row in b]


def test_the_checkpoint_is_an_adapter_that_others_can_read(run, tmp_path):
    """peft, transformers, and every command of ours, which merge it."""
    folder = run / "checkpoint"
    assert not (folder / "model.safetensors").exists()
    assert (folder / "adapter_model.safetensors").stat().st_size < 200_000
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    ours = Policy(str(folder)).model
    base = AutoModelForCausalLM.from_pretrained(TINY)
    plain = base(ids).logits
    with_peft = PeftModel.from_pretrained(base, folder).eval()
    with_transformers = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert (plain - ours(ids).logits).abs().max() > 1e-3
    for model in (with_peft, with_transformers):
        assert torch.allclose(model(ids).logits, ours(ids).logits, atol=1e-4)
    Policy(str(folder)).save(tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.allclose(merged(ids).logits, ours(ids).logits, atol=1e-4)


def test_what_can_not_work_is_refused(run, tmp_path):
    folder = str(run / "checkpoint")
    with pytest.raises(UserError, match="is an adapter itself; merge it"):
        train.main([*FLAGS, "--model", folder, "--out", str(tmp_path / "a")])
    with pytest.raises(UserError, match="--lora --shard"):
        train.main([*FLAGS, "--shard", "--out", str(tmp_path / "b")])
    with pytest.raises(UserError, match="--lora -1"):
        train.main(["--lora", "-1", "--out", str(tmp_path / "c")])
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / lora.CONFIG_FILE).write_text("{}")
    with pytest.raises(UserError, match="does not say which model"):
        Policy(str(broken))
    with pytest.raises(UserError, match="adapter can't be loaded"):
        policy = Policy(TINY)
        lora.add_adapter(policy, 8)
        lora.load_adapter(policy.model, run / "checkpoint")


def test_a_small_delta_is_not_lost_in_bf16():
    """Rounded to the nearest, deltas below half of the last place vanish; here their sum stays."""
    torch.manual_seed(0)
    weight = torch.randn(256, 256).bfloat16().float()
    delta = 1e-3 * torch.randn(256, 256)

    def kept(sampled):
        return (((sampled.float() - weight) * delta).sum() / (delta**2).sum()).item()

    assert kept((weight + delta).bfloat16()) < 0.8
    rounded = lora.rounded(weight + delta, torch.bfloat16, "name")
    assert kept(rounded) == pytest.approx(1, abs=0.03)
    assert torch.equal(rounded, lora.rounded(weight + delta, torch.bfloat16, "name"))
    assert torch.equal(lora.rounded(weight, torch.bfloat16, "name").float(), weight)
    total = weight + delta
    last_place = torch.finfo(torch.bfloat16).eps * total.abs()  # or less
    assert ((rounded.float() - total).abs() <= last_place).all()


def test_an_adapter_is_merged_as_samplers_saw_it_in_training(tmp_path):
    subject = lora_learner(dtype=torch.bfloat16)
    subject.update(batch([1.0, -1.0, 0.5, 2.0]))
    subject.policy.save(tmp_path)
    merged = Policy(str(tmp_path), dtype=torch.bfloat16, weights_dtype=torch.bfloat16)
    sampled = dict(iterate_weights(subject.policy.model, torch.bfloat16))
    plain = Policy(TINY).model.state_dict()
    assert {*sampled} == {*plain}
    for name, weight in merged.model.state_dict().items():
        assert torch.equal(weight, sampled[name]) and weight.dtype == torch.bfloat16, name
    assert any((sampled[name].float() != weight).any() for name, weight in plain.items())


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"modules_to_save": ["norm"]},
    ],
    ids=str,
)
def test_adapters_of_every_kind_are_merged(kind, tmp_path):
    """In bf16 the merged model says what peft's own says with the adapter beside the weights."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(TINY)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", **kind))
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = adapted(ids).logits
        plain = AutoModelForCausalLM.from_pretrained(TINY)(ids).logits
        policy = Policy(TINY, weights_dtype=torch.bfloat16)
        merged = lora.merge(policy.model, str(tmp_path)).float()(ids).logits
    assert (plain - expected).abs().mean() > 1
    assert (merged - expected).abs().mean() < 0.1
