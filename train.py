"""MetaAgent-X: train one model as the designer and the executor of multi-agent systems, from the outcome alone.

    python train.py                                   the tiny model, minutes on two CPU cores
    torchrun --nproc_per_node 8 train.py ...          the same on every GPU of a machine

One step, in `train`:
    roles   = trained_roles(step)                     whose stage it is                                     credit.py
    trees   = await grow(questions, M, N)             Q x M designs x N executions, all concurrent          rollout.py
    A_D, A_E = designer_advantages(R), executor_advantages(R)                                               credit.py
    batch   = samples(trees, A_D, A_E, roles)         token ids, log-probabilities, advantages              rollout.py
    update(batch)                                     one clipped policy-gradient step of the shared model  credit.py
    engine.sync()                                     the new weights sample the next step                  policy.py

Deviations from the paper, each with its flag: (1) --anchor holds the idle role where it was when the phase began; without it the
shared weights of a small model forget the role that is not trained; (2) --phase-steps 10 (the paper: 30), --designs 8 and
--executions 2 (4 and 4), --lr 3e-4 (5e-6): this model is small and its runs are short; (3) --clip-high may differ from
--clip-low; (4) --kl and --dual-clip exist and are off, as in the paper.
Traps avoided: everything is seeded, and the held-out questions are the same at every evaluation; a step with nothing to
learn from, or a rank without samples, takes part in the collectives and can't hang the others.
Test: `pytest tests/test_train.py`. Read next: eval.py.
"""
import asyncio
import contextlib
import copy
import math
import os
import pathlib
import signal
import time
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import cli
import credit
import runs
import tasks
from cli import log
from designer import FIXED
from executor import Budget
from policy import HFEngine, Policy, Row, Sample, Scorer, collate, micro_batches, share_prompts
from rollout import Rollout, idle_samples, samples, stack
from sandbox import Sandbox, SandboxError


@dataclass(frozen=True)
class Config:
    model: str = "tiny"
    """A folder in Hugging Face format, or a Hub id; tiny comes with this repository."""
    tasks: str = "arithmetic"
    """Sets to train on: names, rg:GENERATOR or paths, with optional weights (polaris:0.5,apps:0.5)."""
    preset: Literal["tiny"] = "tiny"
    """Defaults for all that follows."""
    steps: int = 100
    """Updates, all in all."""
    questions: int = 12
    """Q: questions of a step, over all ranks."""
    designs: int = 8
    """M: designs of a question."""
    executions: int = 2
    """N: executions of a design."""
    stage: Literal["stagewise", "both", "designer", "executor"] = "stagewise"
    """Which roles learn: in turn, both at once, or one alone."""
    phase_steps: int = 10
    """K: steps of a stagewise phase."""
    first: Literal["executor", "designer"] = "executor"
    """The role of the first phase."""
    executor_group: Literal["question", "design"] = "question"
    """The group within which executions are compared."""
    norm: Literal["std", "none"] = "std"
    """Divide advantages by the group's standard deviation, or not."""
    lr: float = 3e-4
    """Learning rate of AdamW, constant."""
    weight_decay: float = 0.01
    """Of AdamW."""
    clip_low: float = 0.2
    """The ratio is clipped at 1 - clip_low."""
    clip_high: float = 0.2
    """The ratio is clipped at 1 + clip_high."""
    dual_clip: float | None = None
    """Bound the loss of negative advantages at so many times the advantage."""
    kl: float = 0.0
    """Weight of the KL term to the starting model."""
    anchor: float = 1.0
    """Weight of the KL term that holds the idle role where it was at the start of the phase; stagewise only."""
    grad_clip: float = 1.0
    """Largest norm of the gradient."""
    design_tokens: int = 96
    """At most so many tokens of a design."""
    reply_tokens: int = 48
    """At most so many tokens of a reply."""
    max_calls: int = 8
    """At most so many model calls of one execution."""
    batch_tokens: int = 2048
    """Padded tokens of a micro-batch."""
    engine: Literal["hf"] = "hf"
    """What samples."""
    sandbox: Literal["auto", "namespaces", "landlock", "seccomp", "none"] = "auto"
    """Isolation of scripts and tools; auto takes the best that works and refuses to start without one."""
    exclude: str = ""
    """Sets whose questions, also a little changed, are dropped from the training questions."""
    data_dir: str | None = None
    """Folder with local files of the benchmarks."""
    train_size: int = 3000
    """At most so many training questions."""
    eval_size: int = 100
    """Held-out questions of an evaluation."""
    eval_every: int = 50
    """Also evaluate every so many steps (0: before the first and after the last only)."""
    save_every: int = 30
    """Save a checkpoint every so many steps, and at the end."""
    seed: int = 0
    """Of everything that is drawn."""
    threads: int = 0
    """CPU threads of torch per rank; 0 divides the cores among the ranks."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Also send the metrics there, if it is installed."""
    out: str | None = None
    """Folder of the run; default runs/DATE-TIME."""
    resume: bool = False
    """Go on from the checkpoint in --out, with the flags that it was started with."""


def check(config: Config, world: int) -> None:
    """Refuse what can't work, before anything is loaded. Raises BadInput."""
    for name in "steps questions designs executions phase_steps design_tokens reply_tokens max_calls batch_tokens train_size eval_size".split():
        if getattr(config, name) < 1:
            raise tasks.BadInput(f"--{name.replace('_', '-')} {getattr(config, name)}: must be at least 1")
    for name in ("eval_every", "save_every", "threads", "kl", "anchor", "weight_decay"):
        if not getattr(config, name) >= 0:
            raise tasks.BadInput(f"--{name.replace('_', '-')} {getattr(config, name)}: must be 0 or more")
    for name in ("lr", "grad_clip", "clip_low", "clip_high"):
        if not 0 < getattr(config, name) < math.inf:
            raise tasks.BadInput(f"--{name.replace('_', '-')} {getattr(config, name)}: must be a positive number")
    if config.questions % world:
        raise tasks.BadInput(f"--questions {config.questions} does not divide by the {world} ranks; try {-(-config.questions // world) * world}")


# ------------------------------------------------------------------------------------------------------------ the update

def all_reduce(value: float, op=dist.ReduceOp.SUM if dist.is_available() else None) -> float:
    """A number summed (or maxed) over the ranks; itself where there is one."""
    if not dist.is_initialized():
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(tensor, op)
    return tensor.item()


class Learner:
    """The shared model, its optimiser, and one clipped policy-gradient update of it."""

    def __init__(self, policy: Policy, config: Config):
        self.policy, self.config = policy, config
        self.scorer = Scorer(policy.model)
        self.module = DistributedDataParallel(self.scorer) if dist.is_initialized() else self.scorer
        self.optimizer = torch.optim.AdamW(policy.model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.start = Scorer(Policy(cli.model_path(config.model), str(policy.device)).model) if config.kl else None  # the reference of --kl
        self.phase = copy.deepcopy(self.scorer) if config.anchor and config.stage == "stagewise" else None  # the reference of --anchor
        self.bad_steps = 0

    def new_phase(self) -> None:
        """A stage begins: what the idle role can do now is what the anchor holds it to."""
        if self.phase is not None:
            self.phase.load_state_dict(self.scorer.state_dict())

    def update(self, batch: list[Sample], idle: list[Sample] = ()) -> dict:
        """Token mean over the global batch: the count is summed over ranks, and every micro-batch is weighed by it.

        Samples with an advantage of exactly 0 count as tokens but need no forward pass (unless there is a KL term).
        `idle` are samples of the role that is not in its stage: --anchor holds them where they were when the phase began.
        Every rank runs the same number of micro-batches, empty ones if need be: DDP waits for all.
        """
        tokens, idle_tokens = (all_reduce(sum(len(sample.completion_ids) for sample in part)) for part in (batch, idle))
        totals, held = (Counter(loss=0.0, ratio=0.0, clip_frac=0.0, approx_kl=0.0, entropy=0.0) for _ in range(2))
        useful = [sample for sample in batch if sample.advantage != 0 or self.config.kl]
        work = [(part, tokens, self.config.kl, self.start, totals) for part in micro_batches(share_prompts(useful), self.config.batch_tokens)]
        trained = all_reduce(sum(len(sample.completion_ids) for sample in useful))
        if trained == 0:  # nothing to learn from, on any rank
            return {name: 0.0 for name in totals} | {"anchor_kl": 0.0, "grad_norm": 0.0, "trained_tokens": 0, "skipped": 0}
        work += [(part, idle_tokens, self.config.anchor, self.phase, held) for part in micro_batches(share_prompts(idle), self.config.batch_tokens)]
        count = int(all_reduce(len(work), dist.ReduceOp.MAX))
        empty = [Row((Sample((self.policy.pad_id,), (self.policy.pad_id,), (0.0,), 0.0, "executor"),))], math.inf, 0.0, None, held
        for number in range(count):
            waits = dist.is_initialized() and number < count - 1  # the gradients are summed over ranks at the last one
            with self.module.no_sync() if waits else contextlib.nullcontext():
                self.backward(*(work[number] if number < len(work) else empty))
        norm = torch.nn.utils.clip_grad_norm_(self.policy.model.parameters(), self.config.grad_clip).item()
        self.bad_steps = 0 if math.isfinite(norm) else self.bad_steps + 1
        if math.isfinite(norm):
            self.optimizer.step()
        elif self.bad_steps == 3:
            raise FloatingPointError("the gradient was not finite in three steps in a row")
        self.optimizer.zero_grad(set_to_none=True)
        means = {name: all_reduce(value) / max(trained, 1) for name, value in totals.items() if name != "loss"}
        means["anchor_kl"] = all_reduce(held["loss"]) / max(idle_tokens, 1)
        return means | {"loss": all_reduce(totals["loss"]) / tokens, "grad_norm": norm, "trained_tokens": int(trained),
                        "skipped": int(not math.isfinite(norm))}

    def backward(self, rows, tokens, kl, reference, totals) -> None:
        """Forward and backward of one micro-batch, a part of a mean over `tokens`; statistics are added to `totals`."""
        batch, inputs = [sample for row in rows for sample in row.samples], collate(rows, self.policy.pad_id, self.policy.device)
        old_K = torch.tensor([p for sample in batch for p in sample.old_logprobs], device=self.policy.device)
        advantages_K = torch.tensor([sample.advantage for sample in batch for _ in sample.completion_ids], device=self.policy.device)
        logprobs_K, entropy_K = self.module(inputs)
        reference_K = None
        if kl:
            with torch.no_grad():
                reference_K, _ = reference(inputs)
        loss_K, statistics = credit.policy_loss(logprobs_K, old_K, advantages_K, self.config.clip_low, self.config.clip_high,
                                                self.config.dual_clip, reference_K, kl)
        (loss_K.sum() * (world_size() / tokens)).backward()  # DDP averages over ranks: times their number, it sums
        totals.update({"loss": loss_K.sum().item(), "entropy": entropy_K.sum().item(), **{k: v.item() for k, v in statistics.items()}})


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


# -------------------------------------------------------------------------------------------------------------- the loop

class Trainer:
    """Everything that a run holds, and its loop."""

    def __init__(self, config: Config, out: pathlib.Path, rank: int, device: str):
        self.config, self.out, self.rank = config, out, rank
        pool = tasks.load(config.tasks, "train", config.seed, config.train_size, config.data_dir)
        self.pool = tasks.without(pool, config.exclude, config.seed, config.data_dir)
        self.held_out = tasks.load(config.tasks, "heldout", config.seed, config.eval_size, config.data_dir)
        if len(self.pool) < config.questions:
            raise tasks.BadInput(f"--tasks {config.tasks}: {len(self.pool)} training questions, fewer than --questions {config.questions}")
        folder = runs.find(out) if config.resume else None
        state = runs.read(folder) if folder else None
        self.policy = Policy(str(folder) if folder else cli.model_path(config.model), device)
        self.learner = Learner(self.policy, config)
        self.engine = HFEngine(self.policy)
        self.step = runs.restore(state, self.learner) if state else 0
        self.records = runs.Records(out, self.step, config.tracker) if rank == 0 else None

    def batch_of(self, step: int) -> list[tasks.Question]:
        """This rank's questions of a step. The order of every pass through the pool is drawn from the seed alone."""
        Q, picked = self.config.questions, []
        for index in range(step * Q, (step + 1) * Q):
            epoch, place = divmod(index, len(self.pool))
            if not picked or place == 0:
                order = tasks.shuffled(self.pool, f"epoch {self.config.seed} {epoch}")
            picked.append(order[place])
        return picked[self.rank::world_size()]

    def roles_of(self, step: int) -> frozenset:
        return credit.trained_roles(step, self.config.stage, self.config.phase_steps, self.config.first)

    async def train(self, sandbox) -> None:
        """The loop: from the checkpoint's step, or 0, to config.steps."""
        config = self.config
        grow = Rollout(self.engine, self.policy, sandbox, Budget(calls=config.max_calls, reply_tokens=config.reply_tokens), config.design_tokens)
        before = await self.evaluate(grow, fixed=True) if self.step == 0 else {}
        bar = tqdm(range(self.step, config.steps), desc="train", disable=True if self.rank else None, mininterval=1)
        for step in bar:
            clock = Clock(self.engine)
            roles = self.roles_of(step)
            trees = await grow(self.batch_of(step), config.designs, config.executions, (config.seed, step))
            clock.lap("rollout")
            rewards, valid = stack(trees)
            designer_Q_M = credit.designer_advantages(rewards, valid, config.norm)
            executor_Q_M_N = credit.executor_advantages(rewards, valid, config.executor_group, config.norm)
            if step == 0 or roles != self.roles_of(step - 1):
                self.learner.new_phase()
            idle = idle_samples(trees, {"designer", "executor"} - roles, (config.seed, step)) if self.learner.phase else []
            update = self.learner.update(samples(trees, designer_Q_M, executor_Q_M_N, roles), idle)
            self.engine.sync()
            clock.lap("update")
            self.step = step + 1
            row = {"step": step, "trained_roles": sorted(roles), **runs.measure(gather(runs.facts(trees))), **update, **clock.row()}
            row |= before if step == 0 else {}
            if self.rank == 0:
                self.records.write("metrics", row)
                self.records.write("episodes", runs.episode(step, trees[0], designer_Q_M[0], executor_Q_M_N[0], self.policy.text))
            if self.step < config.steps and config.eval_every and self.step % config.eval_every == 0:
                await self.evaluate(grow, amend=True)
            if bar.disable and self.rank == 0 and self.step % config.phase_steps == 0:
                log.info(f"step {self.step}/{config.steps}: {'+'.join(sorted(roles))} learned, reward {row['reward']:.2f}")
            bar.set_postfix(designer=f"{row['designer_reward']:.2f}", executor=f"{row['executor_reward']:.2f}", learns=row["trained_roles"])
            if self.step == config.steps or config.save_every and self.step % config.save_every == 0:
                self.save()
        await self.evaluate(grow, fixed=True, amend=True)  # also when a run is resumed that was stopped just here

    async def evaluate(self, grow, fixed: bool = False, amend: bool = False) -> dict:
        """The held-out questions, the same every time, each answered once; with `fixed`, by every hand-written design too.
        What the infrastructure spoiled is left out. `amend`: add the result to the last line of the metrics."""
        mine, seed = self.held_out[self.rank::world_size()], (self.config.seed, "held-out")
        rows, families = await self.valid(grow, mine, seed), {}
        for family in sorted({row["family"] for row in rows}):
            part = [row for row in rows if row["family"] == family]
            families[family] = {"accuracy": runs.mean(row["reward"] for row in part),
                                "designs": dict(Counter(row["structure"] for row in part).most_common())}
        found = {"eval_accuracy": runs.mean(row["reward"] for row in rows), "eval_valid_designs": runs.mean(row["runs"] for row in rows),
                 "eval_families": families}
        if fixed:
            found["eval_fixed"] = {name: runs.mean(row["reward"] for row in await self.valid(grow, mine, seed, script))
                                   for name, script in FIXED.items()}
        if amend and self.rank == 0:
            self.records.amend(found)
        return found

    async def valid(self, grow, questions, seed, script=None) -> list[dict]:
        rows = gather(runs.facts(await grow(questions, 1, 1, seed, script)))
        return [row for row in rows if row["status"] != "infrastructure"]

    def save(self) -> None:
        if self.rank == 0:
            runs.save(self.out, self.learner, self.step)
            runs.draw(self.out)


class Clock:
    """Where a step's time goes: seconds of the rollout and of the update; of the rollout's, those in the engine and those in which
    this process had nothing to do but wait for scripts, tools and graders; and the tokens sampled."""

    def __init__(self, engine):
        self.engine, self.started, self.cpu, self.laps = engine, time.monotonic(), time.thread_time(), {}
        self.tokens, self.sampling, self.sampling_cpu = engine.tokens, engine.seconds, engine.cpu_seconds

    def lap(self, name):
        self.laps[f"seconds_{name}"] = time.monotonic() - self.started - sum(self.laps.values())
        if name == "rollout":
            self.sampling = self.engine.seconds - self.sampling
            busy = time.thread_time() - self.cpu - (self.engine.cpu_seconds - self.sampling_cpu)
            self.waiting = self.laps["seconds_rollout"] - self.sampling - busy

    def row(self) -> dict:
        return {"seconds": time.monotonic() - self.started, **self.laps, "seconds_sampling": self.sampling, "seconds_waiting": self.waiting,
                "tokens": int(all_reduce(self.engine.tokens - self.tokens))}


def gather(rows: list[dict]) -> list[dict]:
    """The rows of all ranks."""
    if not dist.is_initialized():
        return rows
    parts = [None] * world_size()
    dist.all_gather_object(parts, rows)
    return [row for part in parts for row in part]


# ----------------------------------------------------------------------------------------------------------------- start

async def run(trainer: Trainer) -> None:
    """Train; on Ctrl-C or SIGTERM save what is done and say how to go on."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    try:
        async with Sandbox(trainer.config.sandbox) as sandbox:
            if trainer.rank == 0:
                why_not = "".join(f" (not {level}: {why})" for level, why in sandbox.why_not.items())
                log.info(f"{trainer.out}: sandbox {sandbox.level}{why_not}, {world_size()} rank(s) on {trainer.policy.device}, "
                         f"{sum(p.numel() for p in trainer.policy.model.parameters()) / 1e6:.2f}M parameters, "
                         f"{len(trainer.pool)} training and {len(trainer.held_out)} held-out questions")
            await trainer.train(sandbox)
    except asyncio.CancelledError:
        trainer.save()
        if trainer.rank == 0:
            log.info(f"stopped after {trainer.step} steps; go on with: python train.py --out {trainer.out} --resume")
        raise


def main(argv) -> None:
    rank, world, local = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    config = runs.resolve(Config, argv, "Train one model as the designer and the executor of multi-agent systems.")
    check(config, world)
    torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local)
    if world > 1:
        dist.init_process_group("nccl" if cuda else "gloo")
    out = runs.open_folder(config, rank)
    torch.manual_seed(config.seed)
    trainer = Trainer(config, out, rank, f"cuda:{local}" if cuda else "cpu")
    try:
        asyncio.run(run(trainer))
    except SandboxError as error:
        raise tasks.BadInput(str(error)) from None
    except asyncio.CancelledError:  # SIGTERM
        raise SystemExit(143) from None
    finally:
        if rank == 0:
            trainer.records.close()
        if world > 1:
            dist.destroy_process_group()
    if rank == 0:
        runs.draw(out)
        runs.report(out)


if __name__ == "__main__":
    cli.command(main)
