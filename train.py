"""MetaAgent-X: train one model as the designer and the executor of multi-agent systems, from the outcome alone.

    python train.py                                           the tiny model, minutes on two CPU cores
    torchrun --nproc_per_node 8 train.py --preset paper       Qwen3-8B as in the paper, on every GPU of a machine
    python train.py --preset paper --dry-run                  what that needs, without starting

One step, in `train`:
    roles   = trained_roles(step)                     whose stage it is                                     credit.py
    trees   = await grow(questions, M, N)             Q x M designs x N executions, all concurrent          rollout.py
    A_D, A_E = designer_advantages(R), executor_advantages(R)                                               credit.py
    batch   = samples(trees, A_D, A_E, roles)         token ids, log-probabilities, advantages              rollout.py
    update(batch)                                     one clipped policy-gradient step of the shared model  learner.py
    engine.sync(weights)                              the new weights sample the next step                  policy.py, engines.py

Deviations from the paper, each with its flag: (1) --anchor: the idle role's KL to its start-of-phase policy; without it the
shared weights of a small model lose some of what that role had learned; (2) --phase-steps 10 (the paper: 30), --designs 8 and
--executions 2 (4 and 4), --lr 3e-4 (5e-6): this model is small and its runs are short; (3) --clip-high may differ from
--clip-low; (4) --kl and --dual-clip exist and are off, as in the paper; (5) --tis corrects for the difference between vLLM and the trainer.
--preset paper has the paper's numbers, and --anchor 0.
Traps avoided: everything is seeded, and the held-out questions are the same at every evaluation; a step with nothing to
learn from, or a rank without samples, takes part in the collectives and can't hang the others.
Test: `pytest tests/test_train.py`. Read next: eval.py.
"""
import asyncio
import os
import pathlib
import signal
import time
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from tqdm import tqdm

import cli
import credit
import pages
import runs
import tasks
from cli import log
from designer import FIXED
from engines import open_engine
from executor import Budget
from learner import Learner, all_reduce, gather, join, sharded, world_size
from policy import EngineError, Policy
from rollout import Rollout, idle_samples, samples, stack
from sandbox import Sandbox, SandboxError


@dataclass(frozen=True)
class Config:
    model: str = "tiny"
    """A folder in Hugging Face format, or a Hub id; tiny comes with this repository."""
    tasks: str = "arithmetic"
    """Sets to train on: names, rg:GENERATOR or paths, with optional weights (polaris:0.5,apps:0.5)."""
    preset: Literal["tiny", "small", "paper"] = "tiny"
    """Defaults of all flags: tiny, for two CPU cores; small, Qwen3-0.6B on a GPU of 24 GB; paper, Qwen3-8B on eight of 80 GB."""
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
    designer_credit: Literal["mean", "single", "shared"] = "mean"
    """A design's credit: mean, from its executions' mean reward; single, from its first one's; shared, their mean advantage: as mean, but divided by their std, not the designs'."""
    policies: Literal["shared", "two"] = "shared"
    """One set of weights for both roles, or one each, which then needs no anchor."""
    fixed_design: str | None = None
    """Train the executor alone (--stage executor) under this hand-written design: single, coder, ... What the budget could have bought without a designer."""
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
    execution_tokens: int = 16384
    """At most so many sampled tokens of one execution, over all its agents."""
    execution_seconds: float = 600.0
    """At most so many seconds of one execution, waiting for the engine included."""
    max_length: int = 0
    """At most so many tokens of a prompt and its completion together; 0 is the model's own limit."""
    batch_tokens: int = 2048
    """Padded tokens of a micro-batch: what the memory of an update depends on."""
    dtype: Literal["auto", "bfloat16", "float32", "float64"] = "auto"
    """What the forward pass computes in; weights and moments are float32 (float64 with float64, to compare runs). auto: bfloat16 on a GPU, else float32."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    shard: bool = False
    """Divide weights, gradients and moments among the ranks (torch's fully_shard), for models that one GPU can't hold."""
    engine: Literal["hf", "vllm"] = "hf"
    """What samples: hf, transformers on what waits; vllm, in every rank."""
    gpu_memory: float = 0.5
    """Share of the GPU's memory that vllm takes while it samples."""
    tis: float | None = None
    """Cap of the truncated importance weights that correct for the sampler's log-probabilities; 0 is off; the default is 2 with vllm, off with hf."""
    dry_run: bool = False
    """Print what this configuration needs, and stop."""
    gpus: int = 0
    """For --dry-run: how many GPUs; 0 takes the ranks that it is started with."""
    gpu_gb: float = 80.0
    """For --dry-run: memory of a GPU, in GB."""
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
    eval_fixed: bool = True
    """In the first and the last evaluation, answer by every hand-written design too."""
    save_every: int = 30
    """Save a checkpoint every so many steps, and at the end."""
    keep_every: int = 0
    """Also keep the model of every so many steps, in steps/ (0: none)."""
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

    @property
    def importance_cap(self) -> float:
        return (2.0 if self.engine == "vllm" else 0.0) if self.tis is None else self.tis


SMALL = Config(preset="small", model="Qwen/Qwen3-0.6B", tasks="gsm8k", steps=200, questions=16, designs=4, executions=4, lr=2e-6, anchor=0.0,
               design_tokens=1024, reply_tokens=1024, max_calls=12, max_length=8192, batch_tokens=8192, checkpointing=True, engine="vllm", eval_every=20)
PAPER = replace(SMALL, preset="paper", model="Qwen/Qwen3-8B", tasks="paper", steps=400, questions=8, phase_steps=30, lr=5e-6, design_tokens=8192,
                reply_tokens=8192, max_calls=16, execution_tokens=65536, execution_seconds=3600.0, max_length=16384, batch_tokens=16384, shard=True,
                train_size=50_000)
REPORT_SECONDS = 20.0  # report.html is written anew that often
PRESETS = {"tiny": Config(), "small": SMALL, "paper": PAPER}


# -------------------------------------------------------------------------------------------------------------- the loop

class Model(NamedTuple):
    """One set of weights: the policy, what samples from it, what trains it, and the roles that it plays."""
    policy: Policy
    engine: object
    learner: Learner
    roles: set


class Trainer:
    """Everything that a run holds, and its loop."""

    def __init__(self, config: Config, out: pathlib.Path, rank: int, device: str):
        self.config, self.out, self.rank = config, out, rank
        pool = tasks.load(config.tasks, "train", config.seed, config.train_size, config.data_dir)
        self.pool = tasks.without(pool, config.exclude, config.seed, config.data_dir)
        self.held_out = tasks.load(config.tasks, "heldout", config.seed, config.eval_size, config.data_dir)
        if len(self.pool) < config.questions:
            raise tasks.BadInput(f"--tasks {config.tasks}: {len(self.pool)} training questions, fewer than --questions {config.questions}")
        self.step, self.reported, folder = 0, 0.0, runs.find(out) if config.resume else None
        self.models = [self.load(folder, {"designer", "executor"} if config.policies == "shared" else {"executor"}, device)]
        if config.policies == "two":
            self.models.append(self.load(folder and folder / "designer", {"designer"}, device))
        self.policy, self.learner = self.models[0].policy, self.models[0].learner
        self.script = FIXED.get(config.fixed_design)
        self.records = runs.Records(out, self.step, config.tracker) if rank == 0 else None

    def load(self, folder, roles, device) -> "Model":
        """The weights of `roles`, from a checkpoint's folder or from the start, with what samples from them and what trains them."""
        config, state = self.config, runs.read(folder) if folder else None
        policy = Policy(str(folder) if folder else cli.model_path(config.model), device, config.max_length, cli.dtype(config.dtype),
                        place="cpu" if sharded(config) else None)
        engine = open_engine(config.engine, policy, sharded(config), config.gpu_memory)  # before the learner divides the weights
        torch.manual_seed(config.seed)
        learner = Learner(policy, config)
        if state:
            self.step = runs.restore(state, learner)
        return Model(policy, engine, learner, roles)

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
        budget = Budget(config.max_calls, config.execution_tokens, config.reply_tokens, config.execution_seconds)
        executor, designer = self.models[0], self.models[-1]
        grow = Rollout(executor.engine, executor.policy, sandbox, budget, config.design_tokens, designer=(designer.engine, designer.policy))
        before = await self.evaluate(grow, fixed=config.eval_fixed) if self.step == 0 else {}
        await self.catch_up(grow)
        bar = tqdm(range(self.step, config.steps), desc="train", disable=True if self.rank else None, mininterval=1)
        for step in bar:
            clock = runs.Clock([model.engine for model in self.models])
            roles = self.roles_of(step)
            trees = await grow(self.batch_of(step), config.designs, config.executions, (config.seed, step), self.script)
            clock.lap("rollout")
            rewards, valid = stack(trees)
            self.check_infrastructure(step, trees, valid)
            designer_Q_M = credit.designer_advantages(rewards, valid, config.norm, config.designer_credit)
            executor_Q_M_N = credit.executor_advantages(rewards, valid, config.executor_group, config.norm)
            if step == 0 or roles != self.roles_of(step - 1):
                self.learner.new_phase()
            idle = idle_samples(trees, {"designer", "executor"} - roles, (config.seed, step)) if self.learner.phase else []
            update = await self.update(samples(trees, designer_Q_M, executor_Q_M_N, roles), idle)
            clock.lap("update")
            self.step = step + 1
            row = {"step": step, "trained_roles": sorted(roles), **runs.measure(gather(runs.facts(trees))), **update, **clock.row()}
            between, within = (all_reduce(part) / world_size() for part in credit.variance_split(rewards, valid))
            row |= {"variance_between_designs": between, "variance_within_designs": within, "episode_reward": runs.mean(rewards[0][valid[0]].tolist())}
            row |= before if step == 0 else {}
            if self.rank == 0:
                self.records.write("metrics", row)
                self.records.write("episodes", pages.episode(step, trees[0], designer_Q_M[0], executor_Q_M_N[0], self.policy, designer.policy))
                self.report(every=REPORT_SECONDS)
            if self.step < config.steps and config.eval_every and self.step % config.eval_every == 0:
                await self.evaluate(grow, amend=True)
            if bar.disable and self.rank == 0 and self.step % config.phase_steps == 0:
                log.info(f"step {self.step}/{config.steps}: {'+'.join(sorted(roles))} learned, reward {row['reward']:.2f}")
            bar.set_postfix(designer=f"{row['designer_reward']:.2f}", executor=f"{row['executor_reward']:.2f}", learns=row["trained_roles"])
            if self.step == config.steps or any(every and self.step % every == 0 for every in (config.save_every, config.keep_every)):
                self.save()
        await self.evaluate(grow, fixed=config.eval_fixed, amend=True)  # also when a run is resumed that was stopped just here

    async def catch_up(self, grow) -> None:
        """A run that goes on does what comes after its checkpoint and may not have been done when it was stopped: the model kept, the evaluation."""
        config = self.config
        if self.step and config.keep_every and self.step % config.keep_every == 0 and self.rank == 0:
            runs.keep(self.out, self.step)
        if 0 < self.step < config.steps and config.eval_every and self.step % config.eval_every == 0:
            await self.evaluate(grow, amend=True)

    async def update(self, batch, idle) -> dict:
        """Every model learns from the samples of its roles, and its engine samples from the new weights."""
        parts = []
        for model in self.models:
            await model.engine.pause()
            parts.append(model.learner.update(*([sample for sample in part if sample.role in model.roles] for part in (batch, idle))))
            model.engine.sync(model.learner.weights())
        return runs.joined(parts)

    async def evaluate(self, grow, fixed: bool = False, amend: bool = False) -> dict:
        """The held-out questions, the same every time, each answered once; with `fixed`, by every hand-written design too.
        What the infrastructure spoiled is left out. `amend`: add the result to the last line of the metrics."""
        mine, seed = self.held_out[self.rank::world_size()], (self.config.seed, "held-out")
        rows = await self.valid(grow, mine, seed, self.script)
        found = {"eval_accuracy": runs.mean(row["reward"] for row in rows), "eval_valid_designs": runs.mean(row["runs"] for row in rows),
                 "eval_families": runs.by_family(rows)}
        if fixed:
            answers = {name: await self.valid(grow, mine, seed, script) for name, script in FIXED.items()}
            found["eval_fixed"] = {name: runs.mean(row["reward"] for row in rows) for name, rows in answers.items()}
            found["eval_fixed_families"] = {name: {family: part["accuracy"] for family, part in runs.by_family(rows).items()} for name, rows in answers.items()}
        if amend and self.rank == 0:
            self.records.amend(found)
        return found

    async def valid(self, grow, questions, seed, script=None) -> list[dict]:
        rows = gather(runs.facts(await grow(questions, 1, 1, seed, script)))
        return [row | {"reward": row["score"]} for row in rows if row["status"] != "infrastructure"]

    def check_infrastructure(self, step, trees, valid) -> None:
        """If no execution of a step is valid on any rank, the engine or the sandbox is gone: save what is done and raise EngineError."""
        if not all_reduce(float(valid.any()), dist.ReduceOp.MAX):
            self.save()
            why = next(execution.detail for _, execution, _ in trees[0].flat())
            raise EngineError(f"every execution of step {step} failed in the infrastructure ({why}); {self.steps_done()}")

    def steps_done(self) -> str:
        return f"{self.step} steps are saved; go on with: python train.py --out {self.out} --resume"

    def close(self) -> None:
        """The last collective, then the engine (vLLM's takes the group with it), then the group."""
        if dist.is_initialized():
            dist.barrier()
        for model in self.models:
            model.engine.close()
        if dist.is_initialized():
            dist.destroy_process_group()

    def report(self, every: float = 0.0) -> None:
        """Write report.html, unless it is younger than `every` seconds."""
        if time.monotonic() - self.reported >= every:
            pages.write_report(self.out)
            self.reported = time.monotonic()

    def save(self) -> None:
        parts = [(model.learner, model.learner.state()) for model in self.models]
        if self.rank == 0:
            runs.save(self.out, parts, self.step)
            if self.config.keep_every and self.step % self.config.keep_every == 0:
                runs.keep(self.out, self.step)
            runs.draw(self.out)
            self.report()


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
        if not trainer.learner.shard:  # gathering the parts would need the other ranks, and they are being stopped too
            trainer.save()
        if trainer.rank == 0:
            saved = "" if not trainer.learner.shard else ", the last checkpoint may be of an earlier one"
            log.info(f"stopped after {trainer.step} steps{saved}; go on with: python train.py --out {trainer.out} --resume")
        raise


def work(config: Config, rank: int) -> None:
    """One rank's run, from its folder to its last checkpoint. Raises BadInput."""
    out = runs.open_folder(config, rank)
    trainer = Trainer(config, out, rank, cli.device())
    try:
        asyncio.run(run(trainer))
    except (SandboxError, EngineError) as error:
        raise tasks.BadInput(str(error)) from None
    except FloatingPointError as error:
        raise tasks.BadInput(f"{error}: nothing was learned from them; try a lower --lr. The checkpoint in {out} is from before") from None
    except dist.DistBackendError as error:
        raise tasks.BadInput(f"rank {rank} lost another rank ({str(error)[:100]}); when all are up again: torchrun ... train.py --out {out} --resume") from None
    except asyncio.CancelledError:  # SIGTERM
        raise SystemExit(143) from None
    finally:
        if rank == 0:
            trainer.records.close()
    trainer.close()


def main(argv) -> None:
    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    config = runs.resolve(Config, argv, "Train one model as the designer and the executor of multi-agent systems.", PRESETS)
    runs.check(config, config.dry_run and config.gpus or world)
    if config.dry_run:
        import memory
        return log.info(memory.report(config, config.gpus or world))
    torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    if torch.cuda.is_available():
        torch.cuda.set_device(cli.device())
    join(world, 600 + 4 * config.execution_seconds)
    work(config, rank)
    if rank == 0:
        runs.draw(pathlib.Path(config.out))
        pages.write_report(pathlib.Path(config.out))
        runs.report(pathlib.Path(config.out))


if __name__ == "__main__":
    cli.command(main)
