"""The update: one weight a token, whatever the micro-batches; faults; importance weights."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, learner

import train
from config import Config
from data_types import Sample
from lib.distributed import full_tensor
from lib.ways import Way
from policy import Policy, collate


def batch(advantages, varied=True):
    """Samples of 4, 5, 6 ... random tokens, or of 12 each."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for i, advantage in enumerate(advantages):
        length = 4 + i if varied else 12
        ids = torch.randint(5, 300, (length,), generator=generator).tolist()
        samples.append(Sample((5, 6, 7), tuple(ids), (-2.0,) * length, advantage, "executor"))
    return samples


def weights(subject):
    return {name: p.detach().clone() for name, p in subject.policy.model.named_parameters()}


def moved(subject, before):
    now = subject.policy.model.named_parameters()
    return any(not torch.equal(before[name], p) for name, p in now)


def test_equal_rewards_change_nothing():
    """A step whose groups are all equal has an exactly zero gradient: the weights stay."""
    subject = learner()
    before = weights(subject)
    update = subject.update(batch([0.0] * 4))
    assert update["grad_norm"] == 0.0 and not moved(subject, before)
    assert subject.update([])["trained_tokens"] == 0


def test_zero_advantages_count_as_tokens():
    """Samples that teach nothing are not computed, but the mean is over them too."""
    with_zeros = learner().update(batch([1.0, -1.0, 0.0, 0.0]))
    without = learner().update(batch([1.0, -1.0]))
    assert with_zeros["loss"] == pytest.approx(without["loss"] * 9 / 22, rel=1e-5)
    assert with_zeros["grad_norm"] == pytest.approx(without["grad_norm"] * 9 / 22, rel=1e-4)


ADVANTAGES = [1.0, -1.0, 0.5, 0.25, -0.5, 2.0, -2.0, 0.1]


def test_micro_batches_do_not_change_the_update():
    one = learner(batch_tokens=100_000).update(batch(ADVANTAGES))
    eight = learner(batch_tokens=1).update(batch(ADVANTAGES))
    assert one["loss"] == pytest.approx(eight["loss"], rel=1e-5)
    assert one["grad_norm"] == pytest.approx(eight["grad_norm"], rel=1e-4)


def test_shared_prefixes_do_not_change_the_update():
    """Rows that share prefixes, and a row for each sample."""
    shared = learner().update(batch(ADVANTAGES))
    subject = learner()
    subject.policy.way = Way("plain", share_prefixes=False)
    plain = subject.update(batch(ADVANTAGES))
    for name in ("loss", "grad_norm", "entropy", "mismatch_mean"):
        assert plain[name] == pytest.approx(shared[name], rel=1e-4), name
    assert plain["trained_tokens"] == shared["trained_tokens"]


def test_a_gradient_that_is_not_finite_is_skipped_and_counted():
    subject = learner()
    before = weights(subject)
    for _ in range(2):
        assert subject.update(batch([float("nan"), 1.0]))["skipped"] == 1
    assert not moved(subject, before)
    with pytest.raises(FloatingPointError, match="three steps"):
        subject.update(batch([float("nan"), 1.0]))
    recovered = learner()
    recovered.update(batch([float("nan")]))
    assert recovered.update(batch([1.0, -1.0]))["skipped"] == 0
    assert recovered.num_bad_steps == 0


def test_the_kl_term_pulls_back():
    """At the start the policy is its reference: no KL. After an update away from it, it pulls."""
    subject = learner(kl=1.0)
    assert subject.update(batch([0.0, 0.0]))["grad_norm"] < 1e-6
    for _ in range(3):
        subject.update(batch([1.0, -1.0]))
    assert subject.update(batch([0.0, 0.0]))["grad_norm"] > 1e-4


def test_a_wrong_sampler_shows_and_is_weighed():
    """Log-probabilities that are 0.5 too low: the gap is measured, and --tis weighs every token by
    exp(0.5), or by its cap."""
    exact = learner()
    shifted = []
    for sample in batch([1.0, -1.0, 0.5, 0.25]):
        logprobs_K, _ = exact.model(collate([sample], exact.policy.pad_id))
        too_low = tuple(logprob - 0.5 for logprob in logprobs_K.tolist())
        shifted.append(replace(sample, sampler_logprobs=too_low))
    plain, weighed, capped = (learner(tis=tis).update(shifted) for tis in (0.0, 2.0, 1.2))
    assert plain["mismatch_mean"] == pytest.approx(0.5, abs=1e-4)
    assert weighed["mismatch_max"] == pytest.approx(0.5, abs=1e-4)
    assert plain["mismatch_kl"] == pytest.approx(2.718281828**0.5 - 1.5, abs=1e-3)
    assert plain["clip_frac"] > 0 == weighed["clip_frac"] and weighed["ratio"] == 1.0
    expected = capped["grad_norm"] * 2.718281828**0.5 / 1.2
    assert weighed["grad_norm"] == pytest.approx(expected, rel=1e-3)


def test_memory_of_an_update_does_not_grow_with_the_number_of_samples():
    """Bytes that autograd keeps at any one time: 48 samples of one question, and of six."""
    peaks = []
    for num_questions in (1, 6):
        subject = learner(batch_tokens=256)
        live, peak = [0], [0]

        class Kept:
            def __init__(self, tensor):
                self.tensor = tensor
                self.size = tensor.numel() * tensor.element_size()
                live[0] += self.size
                peak[0] = max(peak[0], live[0])

            def __del__(self):
                live[0] -= self.size

        samples = []
        for q in range(num_questions):
            for sample in batch([1.0, -1.0] * 24, varied=False):
                samples.append(replace(sample, prompt_ids=(5 + q, 6, 7)))
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            subject.update(samples)
        peaks.append(peak[0])
    assert peaks[1] < peaks[0] * 1.05


UNEVEN = """
import os, sys
sys.path[:0] = sys.argv[1:3]
import torch, torch.distributed as dist
import train
from config import Config
from engines.hf import HFEngine
from lib.distributed import iterate_weights, join
from policy import Policy
from test_update import batch, keep_gradients

rank = int(os.environ["RANK"])
torch.set_num_threads(1)
join(2, 60)
for how in ("ddp", "shard"):
    policy = Policy(sys.argv[1] + "/tiny", dtype=torch.float64)
    config = Config(shard=how == "shard", batch_tokens=16)
    subject = train.Learner(config, policy, None, {"executor"})
    first = keep_gradients(subject)
    for _ in range(2):
        subject.update(batch([1.0, -1.0] * 3 if rank == 0 else [1.0]))
    assert subject.uses_ddp == (how == "ddp")
    if subject.uses_ddp:  # gradients are there once: as parts of DDP's buckets
        parameters = list(policy.model.parameters())
        sizes = {p.grad.untyped_storage().data_ptr(): p.grad.untyped_storage().nbytes()
                 for p in parameters}
        assert sum(sizes.values()) == sum(8 * p.numel() for p in parameters)
        assert len(sizes) < len(parameters) / 2
    weights = dict(iterate_weights(policy.model))
    if rank == 0:
        torch.save((weights, first), sys.argv[3] + "/" + how)
dist.destroy_process_group()
"""


def keep_gradients(subject):
    """The gradients of the first update that is still to come."""
    first = {}
    step_optimizer = subject.step_optimizer

    def keep(grad_norm):
        if not first:
            for name, p in subject.policy.model.named_parameters():
                first[name] = full_tensor(p.grad).clone()
        step_optimizer(grad_norm)

    subject.step_optimizer = keep
    return first


def test_ranks_with_other_numbers_of_micro_batches(tmp_path):
    """Six samples on one rank, one on the other: they are dealt out by tokens, and DDP and --shard,
    where each pass is collective, come to the gradient of one rank that has them all."""
    script = tmp_path / "uneven.py"
    script.write_text(UNEVEN)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = [script, ROOT, ROOT / "tests", tmp_path]
    command = [sys.executable, *torchrun, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-2000:]
    (ddp, on_ddp), (sharded, on_sharded) = (torch.load(tmp_path / how) for how in ("ddp", "shard"))
    assert max((ddp[name] - sharded[name]).abs().max().item() for name in ddp) < 1e-12
    policy = Policy(str(ROOT / "tiny"), dtype=torch.float64)
    subject = train.Learner(Config(batch_tokens=16), policy, None, {"executor"})
    alone = keep_gradients(subject)
    subject.update(batch([1.0, -1.0] * 3) + batch([1.0]))
    for name, gradient in alone.items():
        assert (gradient - on_ddp[name]).abs().max() < 1e-10
        assert (gradient - on_sharded[name]).abs().max() < 1e-10


FAKE = """
import sys
sys.path[:0] = sys.argv[1:3]
import torch, torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
import train
from config import Config
from lib.distributed import gather_optimizer, gather_weights, iterate_weights
from policy import Policy
from test_update import batch

dist.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
folder = sys.argv[1] + "/tiny"
options = {"shard": True, "checkpointing": True, "kl": 0.1, "minibatches": 2, "tis": 2.0}
policy = Policy(folder, dtype=torch.bfloat16)
config = Config(model=folder, batch_tokens=64, **options)
subject = train.Learner(config, policy, None, {"executor"})
parts = sum(p.to_local().numel() for p in policy.model.parameters())
assert parts < 1.1 * sum(p.numel() for p in policy.model.parameters()) / 8
update = subject.update(batch([1.0, -1.0, 0.5, -0.5] * 5))
assert update["grad_norm"] > 0 and update["skipped"] == 0, update
shapes = {name: tensor.shape for name, tensor in iterate_weights(policy.model)}
plain = Policy(folder).model
assert shapes == {name: tensor.shape for name, tensor in plain.state_dict().items()}
optimizer, weights = (
    gather_optimizer(policy.model, subject.optimizer, True),
    gather_weights(policy.model, True),
)
assert len(optimizer["state"]) == len(weights) == len(list(plain.parameters()))
"""


def test_rank_0_of_eight_as_the_paper_preset_has_it(tmp_path):
    """bf16, --shard, --checkpointing, --kl, mini-batches and importance weights together. The
    other seven are made up, so the numbers mean nothing: it runs, and everything has its shape."""
    command = [sys.executable, "-c", FAKE, str(ROOT), str(ROOT / "tests")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-2000:]


FAKE_ALONE = """
import sys
sys.path[:0] = sys.argv[1:3]
import torch, torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
import train
from config import Config
from lib import distributed
from policy import Policy
from test_update import batch

dist.init_process_group("fake", rank=0, world_size=1, store=FakeStore())
folder = sys.argv[1] + "/tiny"
wrap, frozen = distributed.wrap, distributed.frozen
exact = ("loss", "grad_norm", "entropy", "mismatch_mean", "ratio", "clip_frac")
for dtype, names, tolerance in (
    (torch.float64, exact, 1e-10),
    (torch.bfloat16, ("mismatch_mean", "mismatch_kl"), 0.01),
):
    found = []
    for is_sharded in (False, True):
        if is_sharded:
            distributed.wrap = lambda model, policy, _: distributed.shard(model, policy)
            distributed.frozen = lambda model, policy, _: frozen(model, policy, True)
        else:
            distributed.wrap, distributed.frozen = wrap, frozen
        policy = Policy(folder, dtype=dtype)
        config = Config(model=folder, batch_tokens=64, checkpointing=is_sharded, kl=0.1,
                        minibatches=2, tis=2.0)
        subject = train.Learner(config, policy, None, {"executor"})
        update = subject.update(batch([1.0, -1.0, 0.5, -0.5] * 10))
        found.append(update)
    plain, sharded = found
    for name in names:
        gap = abs(plain[name] - sharded[name])
        assert gap <= tolerance * max(1.0, abs(plain[name])), (dtype, name, plain, sharded)
"""


def test_one_rank_with_shard_and_checkpointing_equals_the_plain_update():
    """All of the paper preset's path, with the `fake` backend: in fp64 to rounding. In bf16 the
    log-probabilities nearly: the plain update's residual stream is fp32."""
    command = [sys.executable, "-c", FAKE_ALONE, str(ROOT), str(ROOT / "tests")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-2000:]


SINGLE_RANK = """
import sys
sys.path[:0] = sys.argv[1:3]
import torch.distributed as dist
from conftest import learner
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo", init_method="file://" + sys.argv[3], rank=0, world_size=1)
assert not isinstance(learner().model, DistributedDataParallel)
"""


def test_one_rank_is_not_wrapped_in_ddp(tmp_path):
    """vLLM initialises torch.distributed on a single GPU: DDP would only cost memory there."""
    arguments = map(str, (ROOT, ROOT / "tests", tmp_path / "store"))
    command = [sys.executable, "-c", SINGLE_RANK, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
