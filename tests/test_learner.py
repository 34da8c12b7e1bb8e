"""The update: one weight for every token, whatever the micro-batches; faults; the correction for the sampler."""
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, learner

import runs
import train
from scorer import Sample, collate


def batch(advantages, varied=True):
    """Samples of 4, 5, 6 ... random tokens, or of 12 each."""
    generator = torch.Generator().manual_seed(0)
    lengths = [4 + i if varied else 12 for i in range(len(advantages))]
    return [Sample((5, 6, 7), tuple(torch.randint(5, 300, (length,), generator=generator).tolist()), (-2.0,) * length, advantage, "executor")
            for length, advantage in zip(lengths, advantages)]


def state(subject):
    return {name: p.detach().clone() for name, p in subject.policy.model.named_parameters()}


def test_equal_rewards_change_nothing():
    """A step whose groups are all equal has an exactly zero gradient: the weights stay, bit for bit."""
    subject = learner()
    before = state(subject)
    found = subject.update(batch([0.0] * 4))
    assert found["grad_norm"] == 0.0 and all(torch.equal(before[name], p) for name, p in subject.policy.model.named_parameters())
    assert subject.update([])["trained_tokens"] == 0


def test_zero_advantages_count_as_tokens():
    """Samples that teach nothing are not computed, but the mean is over them too."""
    with_zeros, without = learner(), learner()
    a = with_zeros.update(batch([1.0, -1.0, 0.0, 0.0]))
    b = without.update(batch([1.0, -1.0]))
    assert a["loss"] == pytest.approx(b["loss"] * 9 / 22, rel=1e-5)
    assert a["grad_norm"] == pytest.approx(b["grad_norm"] * 9 / 22, rel=1e-4)


def test_micro_batches_do_not_change_the_update():
    one, eight = learner(batch_tokens=100_000), learner(batch_tokens=1)
    advantages = [1.0, -1.0, 0.5, 0.25, -0.5, 2.0, -2.0, 0.1]
    a, b = one.update(batch(advantages)), eight.update(batch(advantages))
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-5) and a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_a_gradient_that_is_not_finite_is_skipped_and_counted():
    subject = learner()
    before = state(subject)
    for _ in range(2):
        assert subject.update(batch([float("nan"), 1.0]))["skipped"] == 1
    assert all(torch.equal(before[name], p) for name, p in subject.policy.model.named_parameters())
    with pytest.raises(FloatingPointError, match="three steps"):
        subject.update(batch([float("nan"), 1.0]))
    recovered = learner()
    recovered.update(batch([float("nan")]))
    assert recovered.update(batch([1.0, -1.0]))["skipped"] == 0 and recovered.bad_steps == 0


def test_the_kl_term_pulls_back():
    """At the start the policy is its reference: no KL. After an update away from it, the KL gradient is there."""
    subject = learner(kl=1.0)
    assert subject.update(batch([0.0, 0.0]))["grad_norm"] < 1e-6
    for _ in range(3):
        subject.update(batch([1.0, -1.0]))
    assert subject.update(batch([0.0, 0.0]))["grad_norm"] > 1e-4




def test_a_wrong_sampler_shows_and_is_weighed():
    """Log-probabilities that are 0.5 too low: the gap is measured, and --tis weighs every token by exp(0.5), or by its cap."""
    exact = learner(anchor=0.0)
    samples = batch([1.0, -1.0, 0.5, 0.25])
    rows = exact.split(samples)
    logprobs = torch.cat([exact.scorer(collate(part, exact.policy.pad_id))[0] for part in rows]).tolist()
    ordered = [sample for part in rows for row in part for sample in row.samples]
    shifted = []
    for sample in ordered:
        own, logprobs = logprobs[:len(sample)  - len(sample.prompt_ids)], logprobs[len(sample) - len(sample.prompt_ids):]
        shifted.append(Sample(sample.prompt_ids, sample.completion_ids, tuple(p - 0.5 for p in own), sample.advantage, sample.role))
    plain, weighed, capped = (learner(anchor=0.0, tis=tis).update(shifted) for tis in (0.0, 2.0, 1.2))
    assert plain["mismatch_mean"] == pytest.approx(0.5, abs=1e-4) == weighed["mismatch_max"]
    assert plain["mismatch_kl"] == pytest.approx(2.718281828 ** 0.5 - 1.5, abs=1e-3)
    assert plain["clip_frac"] > 0 == weighed["clip_frac"] and weighed["ratio"] == 1.0
    assert weighed["grad_norm"] == pytest.approx(capped["grad_norm"] * 2.718281828 ** 0.5 / 1.2, rel=1e-3)


def test_memory_of_an_update_does_not_grow_with_the_number_of_samples():
    """Bytes that autograd keeps at any one time: one question's 48 samples, and those of six questions: the same peak."""
    peaks = []
    for questions in (1, 6):
        subject, live, peak = learner(anchor=0.0, batch_tokens=256), [0], [0]

        class Kept:
            def __init__(self, tensor):
                self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
                live[0] += self.size
                peak[0] = max(peak[0], live[0])

            def __del__(self):
                live[0] -= self.size

        samples = [replace(sample, prompt_ids=(5 + q, 6, 7)) for q in range(questions) for sample in batch([1.0, -1.0] * 24, varied=False)]
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            subject.update(samples)
        peaks.append(peak[0])
    assert peaks[1] < peaks[0] * 1.05


def test_presets_and_flags():
    """A preset gives defaults, a flag wins over it; the cap of the importance weights goes with the engine."""
    paper = runs.resolve(train.Config, ["--preset", "paper", "--lr", "1e-6"], "", train.PRESETS)
    assert (paper.model, paper.designs, paper.executions, paper.phase_steps, paper.lr, paper.shard) == ("Qwen/Qwen3-8B", 4, 4, 30, 1e-6, True)
    assert paper.importance_cap == 2.0 and train.Config().importance_cap == 0.0 and train.Config(engine="vllm", tis=0.0).importance_cap == 0.0
    assert runs.resolve(train.Config, [], "", train.PRESETS).model == "tiny"
    for name, preset in train.PRESETS.items():
        assert preset.preset == name
        runs.check(preset, 8 if name != "tiny" else 1)


UNEVEN = """
import os, sys
sys.path[:0] = sys.argv[1:3]
import torch, torch.distributed as dist
import train
from learner import Learner, join
from policy import Policy
from test_learner import batch

rank = int(os.environ["RANK"])
torch.set_num_threads(1)
join(2, 60)
subject = Learner(Policy(sys.argv[1] + "/tiny", dtype=torch.float64), train.Config(shard=sys.argv[3] == "shard", batch_tokens=16, anchor=1.0))
for _ in range(2):  # after the first the anchor pulls
    found = subject.update(batch([1.0, -1.0] * 3 if rank == 0 else [1.0]), batch([0.0] * (1 if rank == 0 else 5)))
weights = dict(subject.weights())
if rank == 0:
    assert found["anchor_kl"] > 0
    torch.save(weights, sys.argv[4])
dist.destroy_process_group()
"""


def test_ranks_with_other_numbers_of_micro_batches(tmp_path):
    """Six that learn and one idle on one rank, one and five on the other: --shard, where each pass is one of all ranks through the same model, equals DDP."""
    (tmp_path / "uneven.py").write_text(UNEVEN)
    for how in ("ddp", "shard"):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "uneven.py"), str(ROOT), str(ROOT / "tests"), how, str(tmp_path / how)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=150)
        assert done.returncode == 0, done.stderr[-2000:]
    one, other = torch.load(tmp_path / "ddp"), torch.load(tmp_path / "shard")
    assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-12
