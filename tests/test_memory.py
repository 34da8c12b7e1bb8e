"""Planning: parameters and activations as transformers and autograd count them; advice."""

import ast
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, Config
from transformers import Qwen3ForCausalLM

from config import PRESETS
from experiments.gpu_check import qwen3_config
from lib import memory
from lib.errors import UserError
from lib.memory import GB, KNOWN, Plan, Shape

SCALE = (ROOT / "docs" / "scale.md").read_text()


def model_of(shape: Shape):
    return Qwen3ForCausalLM(qwen3_config(shape))


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
    model = config.model or "Qwen/Qwen3-8B"
    return Plan(config, memory.shape_of(model), ranks, gb * memory.VISIBLE * GB)


def test_presets_fit_what_they_are_for():
    assert not memory.advice(plan(PRESETS["one-gpu"], "1x24"))
    assert not memory.advice(plan(PRESETS["paper"], "8x80"))
    assert "it fits" in memory.report(replace(PRESETS["paper"], dry_run="8x80"))


@pytest.mark.parametrize(
    "gpus, changes, advice",
    [
        ("8x80", {"shard": False}, "--shard"),
        ("8x80", {"shard": False}, "does not fit"),
        ("8x40", {"checkpointing": False}, "--checkpointing"),
        ("8x80", {"gpu_memory": 0.95}, "--gpu-memory"),
        ("1x24", {"max_length": 2048}, "--lora 32 --no-shard"),
        ("1x24", {"max_length": 2048, "lora": 32, "shard": False}, "more GPUs"),
        ("8x80", {"questions": 12}, "--questions 16"),
    ],
)
def test_what_does_not_fit_is_told_what_to_change(gpus, changes, advice):
    config = replace(PRESETS["paper"], dry_run=gpus, **changes)
    assert advice in memory.report(config)


def test_the_table_of_what_fits_is_what_is_computed():
    """docs/scale.md: each cell is the largest share that fits, in steps of 0.05; empty: none."""
    ways = {"all weights": {"lora": 0}, "`--lora 32`": {}, "`--shard`": {"lora": 0, "shard": True}}
    rows = re.findall(r"^\| (\d+x\d+) \| ([^|]+) \|(.+)\|$", SCALE, re.MULTILINE)
    assert len(rows) == 6
    for gpus, way, cells in rows:
        for size, cell in zip(("0.6B", "1.7B", "4B", "8B"), cells.split("|")):
            fits = []
            for percent in range(5, 100, 5):
                config = replace(
                    PRESETS["one-gpu"],
                    model=f"Qwen/Qwen3-{size}",
                    gpu_memory=percent / 100,
                    **ways[way.strip()],
                )
                if not memory.advice(plan(config, gpus)):
                    fits.append(f"{percent / 100:.2f}")
            assert (fits or [""])[-1] == cell.strip(), (gpus, way, size)


COUNT = """
import gc, os, sys
sys.path[:0] = sys.argv[1:3]
import torch, torch.distributed as dist
import train
from config import Config
from lib import lora, memory
from lib.distributed import join
from policy import Policy
from test_update import batch


def live_bytes():
    gc.collect()
    storages = {}
    for item in gc.get_objects():
        if isinstance(item, torch.Tensor) and not hasattr(item, "to_local"):
            storages[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
    return sum(storages.values())


def count(ranks, **flags):
    before = live_bytes()
    config = Config(**flags)
    policy = Policy(sys.argv[1] + "/tiny", dtype=torch.float32)
    if config.lora:
        lora.add_adapter(policy, config.lora)
    subject = train.Learner(config, policy, None, {"executor"})
    subject.update(batch([1.0, -1.0]))  # makes the moments
    measured = {}
    step_optimizer = subject.step_optimizer

    def step(grad_norm):
        measured["update"] = live_bytes() - before
        step_optimizer(grad_norm)

    subject.step_optimizer = step
    subject.update(batch([1.0, -1.0]))
    measured["sampling"] = live_bytes() - before
    config = Config(dtype="float32", engine="vllm", **flags)
    plan = memory.Plan(config, memory.shape_of("tiny"), ranks, 0.0)
    names = ("weights", "moments", "gradients")
    for phase, sizes in (("update", memory.update_bytes(plan)),
                         ("sampling", memory.sampling_bytes(plan))):
        expected = sum(sizes.get(name, 0) for name in names)
        assert abs(measured[phase] / expected - 1) < 0.05, (flags, ranks, phase, measured, expected)
    P = plan.shape.parameters
    return {phase: round(size / P) for phase, size in measured.items()}


torch.set_num_threads(1)
found = [count(1), count(1, lora=4)]
join(2, 60)
found += [count(2), count(2, shard=True)]
if dist.get_rank() == 0:
    print(found)
dist.destroy_process_group()
"""


def test_bytes_per_parameter_are_what_is_there(tmp_path):
    """All tensors that are alive when the optimizer steps, and while the engine samples: one rank,
    LoRA (of a tiny model), two ranks with DDP and with --shard. Within 5 % of --dry-run."""
    script = tmp_path / "count.py"
    script.write_text(COUNT)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *torchrun, script, ROOT, ROOT / "tests"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-2000:]
    one, _, ddp, sharded = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    assert one == {"update": 16, "sampling": 12}
    assert ddp == {"update": 16, "sampling": 16}
    assert sharded == {"update": 8, "sampling": 6}


def test_shapes_of_folders():
    assert memory.shape_of("tiny").parameters == pytest.approx(860_000, rel=0.05)
    with pytest.raises(UserError, match="nowhere"):
        memory.shape_of(str(ROOT / "nowhere"))


@pytest.mark.parametrize("text", ["8", "0x80", "8x", "x80", "8x-80", "eight"])
def test_a_wrong_number_of_gpus_is_an_error(text):
    with pytest.raises(UserError, match="--dry-run"):
        memory.parse_gpus(text)


def test_a_second_model_costs_its_weights_and_if_it_learns_its_moments():
    """And while sampling, the engine's copy in bf16."""
    shared = plan(Config(model="Qwen/Qwen3-0.6B"), "1x80")
    learning = replace(shared, other=shared.shape, other_learns=True)
    frozen = replace(shared, other=shared.shape)
    for other, parts, extra in (
        (learning, memory.update_bytes, 12),
        (learning, memory.sampling_bytes, 14),
        (frozen, memory.update_bytes, 2),
        (frozen, memory.sampling_bytes, 2),
    ):
        difference = sum(parts(other).values()) - sum(parts(shared).values())
        assert difference == extra * shared.shape.parameters


def test_a_server_costs_nothing_here():
    alone = memory.report(Config(dry_run="1x80"))
    flags = {"executor": "http://127.0.0.1:1/v1", "stage": "designer"}
    assert memory.report(Config(dry_run="1x80", **flags)) == alone
    assert memory.report(Config(dry_run="1x80", designer="Qwen/Qwen3-0.6B")) != alone
