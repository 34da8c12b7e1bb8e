"""Start and end of a training run: flags, ranks, the run's folder, signals, exit codes.

Test: `pytest tests/test_train.py tests/test_cli.py`. Read next: cli.py.
"""

import asyncio
import hashlib
import json
import math
import os
import pathlib
import signal
import tempfile
import time
from dataclasses import asdict, fields, replace

import torch
import torch.distributed as dist

import tasks
from config import MAX_BATCH_TOKENS, is_server
from data_types import Budget, Question, Tree
from designer import FIXED_DESIGNS
from engines import open_engine
from engines.openai_api import open_server
from lib import checkpoint, cli, distributed, lora, plugins, replay, trained_on
from lib.cli import flag_name, log
from lib.errors import AllRanksStop, InfrastructureError, RankError, UserError
from lib.files import atomic_write, complete_lines
from lib.metrics import net_accuracy, start_of
from lib.model_check import check_designer_prompt, check_model
from lib.prices import draw_prices
from lib.ways import set_attention, set_way
from policy import CompletionLogprobs, Policy
from sandbox import Sandbox

LARGE_LR = 1e-4  # the default is the tiny model's; above this, a real model is destroyed
LARGE_MODEL = 50_000_000  # parameters

# What may change when a run is resumed: nothing that changes what it learns.
FREE_FLAGS = {
    "steps",
    "eval_every",
    "save_every",
    "tracker",
    "out",
    "resume",
    "data_dir",
    "batch_tokens",
    "checkpointing",
    "gpu_memory",
    "dry_run",
    "skip_check",
}


def launch(trainer_class, config_class, presets: dict, argv: list[str]) -> None:
    """Train with the flags in argv. Raises UserError."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    description = "Train one model as designer and executor of multi-agent systems."
    config = resolve(config_class, argv, description, presets)
    if config.dry_run:
        from lib import memory

        log.info(memory.report(config))
        return
    check(config, world)
    cli.share_cores()
    device = cli.load_device()
    if device != "cpu":
        torch.cuda.set_device(device)
    distributed.join(world, timeout_seconds=longest_wait(config))
    out = open_folder(config, rank)
    names = plugins.load(config.plugin, out if rank == 0 else None)
    if "executor_advantages" in names and config.executor_credit == "replay":
        raise UserError(
            "--executor-credit replay: replayed calls would not have the advantages of --plugin"
        )
    if rank == 0:
        cli.log_to(out / "log.txt")
        log.info(f"flags: {flags_text(config, presets[config.preset])}")
    trainer = trainer_class(config, out, rank, device)
    try:
        if rank == 0:
            check_questions(out, trainer.questions + trainer.heldout_questions)
            models = config.model, config.designer, config.executor
            trained_on.write(out, models, [question.prompt for question in trainer.questions])
        asyncio.run(run(trainer))
    except AllRanksStop as error:
        raise UserError(str(error)) from None
    except InfrastructureError as error:
        raise RankError(str(error)) from None
    except torch.OutOfMemoryError as error:
        # With one optimizer step of one model, no weight has moved yet in this step of the run.
        is_whole = config.minibatches == 1 and len(trainer.learners) == 1
        if is_whole and not distributed.is_sharded(config):
            trainer.save_checkpoint()
        raise RankError(
            f"out of memory in step {trainer.step} ({str(error)[:80]}): try --checkpointing, or a "
            f"lower --batch-tokens; {go_on(out)}"
        ) from None
    except FloatingPointError as error:
        left = "has the last good weights" if checkpoint.find(out) else "has none yet"
        raise RankError(f"{error}; try a lower --lr. {out}/checkpoint {left}") from None
    except dist.DistBackendError as error:
        raise RankError(
            f"lost another rank ({str(error)[:100]}); when all are up again: "
            f"torchrun ... train.py --out {out} --resume"
        ) from None
    except asyncio.CancelledError:  # SIGTERM
        raise SystemExit(143) from None
    finally:
        trainer.records.close()
    close(trainer)
    if rank == 0:
        trainer.records.draw()
        summarise(out)


async def run(trainer) -> None:
    """Train; on Ctrl-C or SIGTERM save what is done and say how to go on."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    try:
        async with Sandbox(trainer.config.sandbox) as sandbox:
            if trainer.rank == 0:
                log.info(f"{trainer.out}: {describe(trainer, sandbox)}")
            await trainer.train(sandbox)
    except asyncio.CancelledError:
        is_sharded = distributed.is_sharded(trainer.config)
        if not is_sharded:  # gathering the parts needs the other ranks, which are stopped, too
            trainer.save_checkpoint()
        if trainer.rank == 0:
            note = ", the last checkpoint may be of an earlier one" if is_sharded else ""
            log.info(f"stopped after {trainer.step} steps{note}; {go_on(trainer.out)}")
        raise


def close(trainer) -> None:
    """The last collective, then the engines (vLLM's takes the group along), then the group."""
    if dist.is_initialized():
        dist.barrier()
    for engine in trainer.engines:
        engine.close()
    if dist.is_initialized():
        dist.destroy_process_group()


def load_questions(config, num_questions: int) -> tuple[list[Question], list[Question]]:
    """At most so many training questions, and --eval-size held-out ones. Raises UserError."""
    questions, heldout_questions = (
        tasks.load(config.tasks, split, config.seed, size, config.data_dir)
        for split, size in (("train", num_questions), ("heldout", config.eval_size))
    )
    if len(questions) < config.questions:
        raise UserError(
            f"--tasks {config.tasks}: {len(questions)} training questions, "
            f"fewer than --questions {config.questions}"
        )
    if config.price == (0.0,):  # a plug-in's questions may have prices of their own
        return questions, heldout_questions
    prices, seed = config.price, config.seed
    return draw_prices(questions, prices, seed), draw_prices(heldout_questions, prices, seed)


def check_questions(out: pathlib.Path, questions: list[Question]) -> None:
    """Keep a hash of the questions with the run's flags; a resumed run must have the same.

    Raises UserError.
    """
    total = hashlib.sha256()
    for question in questions:
        parts = question.prompt, question.answer, question.entry, question.tests
        total.update(repr(parts).encode("utf-8", "replace"))
    digest = total.hexdigest()
    saved = json.loads((out / "config.json").read_text())
    if saved.get("questions_hash", digest) != digest:
        raise UserError(
            f"--resume: the questions of --tasks {saved['tasks']} are others than at the start of "
            "the run: a file has changed"
        )
    text = json.dumps(saved | {"questions_hash": digest}, indent=1)
    atomic_write(out / "config.json", text + "\n")


def load(
    config, roles: tuple, folder: pathlib.Path | None, device: str, questions: list[Question]
) -> tuple:
    """(engine, policy) of some roles: of a checkpoint's folder, or as a run begins.

    A server is both. Raises UserError.
    """
    model = config.model_of(roles)
    if is_server(model):
        server = open_server(model)
        return server, server
    if folder:
        checkpoint.read(folder)  # a corrupt one is said before a model is loaded
    learns = config.learns(roles)
    is_sharded = distributed.is_sharded(config)
    dtype = cli.load_dtype(config.dtype)
    policy = Policy(
        str(folder) if folder and not config.lora else cli.model_path(model),
        device=device,
        max_length=config.max_length,
        dtype=dtype,
        load_device="cpu" if is_sharded else None,
        weights_dtype=None if learns and not config.lora else dtype,
    )
    if "designer" in roles:
        check_designer_prompt(policy, questions)
    # The engine comes first: the learner divides the weights.
    merges = learns and config.lora > 0 and dtype == torch.bfloat16
    engine = open_engine(config.engine, policy, is_sharded or merges, config.gpu_memory)
    is_first_rank = int(os.environ.get("RANK", 0)) == 0
    if learns and is_first_rank:
        warn_of_large_lr(config, policy)
    if not config.skip_check:
        check = check_model(policy, engine, config.checkpointing, learns)
        note = asyncio.run(check) if is_first_rank else ""
        # All ranks compute the model as the first one found it right.
        policy.note, way = distributed.all_gather([(note, policy.way)])[0]
        set_way(policy, engine, way)
    torch.manual_seed(config.seed)
    if not learns:
        return engine, policy
    if config.lora:
        lora.add_adapter(policy, config.lora)
        if folder:
            lora.load_adapter(policy.model, folder)
            engine.update_weights(distributed.iterate_weights(policy.model, policy.dtype))
    if is_first_rank:
        check_saving(policy, pathlib.Path(config.out))
    return engine, policy


def warn_of_large_lr(config, policy: Policy) -> None:
    size = sum(parameter.numel() for parameter in policy.model.parameters())
    if config.lr > LARGE_LR and size > LARGE_MODEL and not config.lora:
        log.info(
            f"--lr {config.lr:g} is the tiny model's: all weights of {policy.path} need 1e-6 to "
            "3e-5 or so; see --preset"
        )


def check_saving(policy: Policy, out: pathlib.Path) -> None:
    """Save the model once before the first step, not after a night. Raises UserError."""
    try:
        with tempfile.TemporaryDirectory(dir=out) as folder:
            policy.save(pathlib.Path(folder))
    except Exception as error:  # boundary: a config that is refused, a full disk, ...
        problem = " ".join(str(error).split())[:200]
        raise UserError(f"--model {policy.path}: cannot be saved in {out} ({problem})") from None


def load_reference(config, roles, policy: Policy) -> torch.nn.Module:
    """The starting model of these roles, frozen: what --kl holds the policy to."""
    is_sharded = distributed.is_sharded(config)
    start = Policy(
        cli.model_path(config.model_of(roles)),
        policy.device,
        dtype=policy.dtype,
        load_device="cpu" if is_sharded else None,  # whole, it may not fit beside the engine
        weights_dtype=policy.dtype,
    )
    set_attention(start.model, policy.way.attention)
    reference = CompletionLogprobs(policy, start.model)
    return distributed.frozen(reference, policy, is_sharded)


def batch_tokens(config, policy: Policy) -> int:
    """Max tokens of a micro-batch; a context may be far longer than what fits a GPU."""
    longest = config.max_length or MAX_BATCH_TOKENS
    return config.batch_tokens or min(policy.max_length, longest)


def longest_wait(config) -> float:
    """Seconds that a rank may wait for the others: each rollout may take a whole Budget.seconds.

    Three more than there are, for what has no limit: designs, replies drawn again, the update.
    """
    num_rollouts = 1 + 3 + config.resample
    if config.executor_credit == "replay":
        num_rollouts += replay.MAX_REPLAYS
    return 600 + num_rollouts * Budget.seconds


def execution_budget(config) -> Budget:
    return Budget(calls=config.max_calls, reply_tokens=config.reply_tokens)


async def check_infrastructure(trees: list[Tree], trainer) -> None:
    """If an engine is out of order, or no execution valid, save what is done and stop. Collective.

    All ranks stop together: one that left alone would keep the others waiting for hours. Raises
    AllRanksStop.
    """
    failures = [engine.broken for engine in trainer.engines if getattr(engine, "broken", "")]
    executions = [execution for tree in trees for _, execution in tree.pairs()]
    if not distributed.all_reduce_max(float(any(e.valid for e in executions))):
        failures += [
            f"every execution of step {trainer.step} failed ({execution.detail})"
            for execution in executions[:1]
        ]
    failures = distributed.all_gather(failures)
    if failures:
        await sleep(trainer)
        trainer.save_checkpoint()
        # Wait for rank 0, which writes: torchrun ends all ranks as soon as one of them ends.
        distributed.all_reduce_max(0.0)
        saved = f"{trainer.step} steps are saved"
        raise AllRanksStop(f"{failures[0]}; {saved}; {go_on(trainer.out)}")


async def keep_best(trainer, evaluation: dict) -> None:
    """Save the models if no earlier evaluation was as good, that of the start included. Collective.

    Good is accuracy at temperature 0, less what tokens cost. A resumed run knows the earlier ones
    by its metrics.
    """
    earlier = [trainer.best_accuracy]
    if trainer.config.resume and trainer.rank == 0:
        rows = read_rows(trainer.out)
        earlier += [net_accuracy(start_of(row)) for row in rows[:1]]
        earlier += [
            net_accuracy(row)
            for row in rows
            if row["step"] + 1 < trainer.step and "eval_greedy" in row
        ]
    accuracy = net_accuracy(evaluation)
    best = max(distributed.all_gather(earlier))
    trainer.best_accuracy = max(best, accuracy)
    if trainer.step and accuracy > best:
        await sleep(trainer)
        checkpoint.save_best(trainer.out, trainer.learners, trainer.step, trainer.rank == 0)
        trainer.publish()


async def sleep(trainer) -> None:
    """Parts are gathered while the engines sleep: a GPU may not have room for both."""
    for learner in trainer.learners:
        await learner.engine.sleep()


def read_rows(out: pathlib.Path) -> list[dict]:
    """The metrics of a run, a row a step."""
    return [json.loads(line) for line in complete_lines(out / "metrics.jsonl")]


def go_on(out: pathlib.Path) -> str:
    command = "python" if distributed.world_size() == 1 else "torchrun ..."
    return f"go on with: {command} train.py --out {out} --resume"


def describe(trainer, sandbox) -> str:
    """The run's first line."""
    why_not = "".join(f" (not {level}: {why})" for level, why in sandbox.why_not.items())
    policy = trainer.learners[0].policy
    parameters = list(policy.model.parameters())
    num_parameters = sum(p.numel() for p in parameters)
    num_trained = sum(p.numel() for p in parameters if p.requires_grad)
    size = f"{num_parameters / 1e6:.2f}M parameters"
    players = ""
    if len(trainer.config.models) > 1:
        for roles, model in trainer.config.models.items():
            frozen = "" if trainer.config.learns(roles) else " (frozen)"
            players += f"{roles[0]} {model}{frozen}, "
    if trainer.config.lora:
        size += f", {num_trained / 1e6:.2f}M of them an adapter's"
    return (
        f"{players}sandbox {sandbox.level}{why_not}, "
        f"{distributed.world_size()} rank(s) on {policy.device}, "
        f"{size}, {len(trainer.questions)} training and "
        f"{len(trainer.heldout_questions)} held-out questions; {policy.note}"
    )


def summarise(out: pathlib.Path) -> None:
    """The run's last lines: held-out accuracy before and after, and what each role became."""
    rows = read_rows(out)
    first, last = rows[0], rows[-1]
    if "eval_accuracy" not in last:
        return
    if "eval_fixed" in last:
        scores = ", ".join(f"{name} {score:.2f}" for name, score in last["eval_fixed"].items())
        log.info(f"held-out accuracy by fixed design: {scores}")
    if last.get("eval_new_examples"):
        example = last["eval_new_examples"][0]
        share = f"{last['eval_new_among_right']:.0%} of the right answers"
        log.info(f"{share} come from designs of a shape that the cold start did not show, such as")
        log.info(f"{example['question']}\n{example['design']}")
    for family, evaluation in last["eval_families"].items():
        designs = ", ".join(f"{kind} {count}" for kind, count in evaluation["designs"].items())
        log.info(f"designs for {family}: {designs}; accuracy {evaluation['accuracy']:.2f}")
    start = start_of(first)
    before, after = start["eval_accuracy"], last["eval_accuracy"]
    greedy = f"at temperature 0 {start['eval_greedy']:.3f} and {last['eval_greedy']:.3f}"
    log.info(f"held-out accuracy before {before:.3f}, after {after:.3f}; {greedy}   ({out})")


# --------------------------------------------------------------------------------------- the flags


def resolve(config_class, argv: list[str], description: str, presets: dict):
    """The flags: those that are given, else the preset's; on --resume, else those of its start.

    Raises UserError.
    """
    config = cli.flags(config_class, argv, description)
    if not config.resume:
        config = cli.flags(config_class, argv, description, default=presets[config.preset])
        if config.out is None:
            config = replace(config, out=f"runs/{time.strftime('%Y%m%d-%H%M%S')}")
        return config
    if config.out is None:
        raise UserError("--resume needs --out, the folder of the run to go on with")
    saved = read_config(pathlib.Path(config.out), config_class)
    config = cli.flags(config_class, argv, description, default=saved)
    changed = []
    free = FREE_FLAGS - ({"steps"} if saved.lr_schedule == "cosine" else set())
    for field in fields(config_class):
        is_same = getattr(config, field.name) == getattr(saved, field.name)
        if field.name not in free and not is_same:
            changed.append(flag_name(field.name))
    if changed:
        raise UserError(f"--resume: {', '.join(changed)} can't change within a run")
    return config


def flags_text(config, preset) -> str:
    """The preset, and the flags that differ from it."""
    given = [f"--preset {config.preset}"]
    for field in fields(config):
        value = getattr(config, field.name)
        if value != getattr(preset, field.name):
            given.append(f"{flag_name(field.name)} {value}")
    return " ".join(given)


def read_config(out: pathlib.Path, config_class):
    """The flags that a run was started with. Raises UserError."""
    try:
        saved = json.loads((out / "config.json").read_text())
        saved.pop("questions_hash", None)
        for name in ("clip", "price"):
            saved[name] = tuple(saved[name])  # JSON has no tuples
        return config_class(**saved)
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"--resume: no run in {out} (no config.json of this version)") from None


def check(config, world: int) -> None:
    """Refuse what can't work, before anything is loaded. Raises UserError."""
    at_least_1 = "steps questions designs executions phase_steps design_tokens reply_tokens"
    cli.check_at_least(config, 1, f"{at_least_1} max_calls eval_size minibatches")
    at_least_0 = "eval_every save_every kl max_length batch_tokens warmup resample lora"
    cli.check_at_least(config, 0, at_least_0)
    if not config.importance_cap >= 0:
        raise UserError(f"--tis {config.tis}: the cap has to be 0 (off) or more")
    if not 0 < config.lr < math.inf:
        raise UserError(f"--lr {config.lr}: must be a positive number")
    clip = " ".join(map(str, config.clip))
    if len(config.clip) not in (2, 3) or not all(0 < bound < math.inf for bound in config.clip):
        raise UserError(f"--clip {clip}: must be two positive numbers, or three with a dual clip")
    if config.clip[2:] and config.clip[2] <= 1:
        raise UserError(f"--clip {clip}: the dual clip has to be above 1")
    if not config.price or not all(0 <= price < math.inf for price in config.price):
        raise UserError(f"--price {' '.join(map(str, config.price))}: must be numbers, 0 or more")
    if not 0 < config.gpu_memory < 1:
        raise UserError(f"--gpu-memory {config.gpu_memory}: a share, between 0 and 1")
    by_hand, names = config.design_by_hand, hand_designs(config)
    if by_hand is not None and (by_hand not in names or config.stage != "executor"):
        raise UserError(
            f"--designer {config.designer}: has to be one of {', '.join(names)}, and needs "
            "--stage executor, as nobody designs"
        )
    if config.designs * config.executions == 1:
        raise UserError("--designs 1 --executions 1: a group of one teaches nothing")
    if config.stage != "executor" and config.designs == 1:
        raise UserError(
            f"--designs 1 --stage {config.stage}: a group of one design teaches the designer "
            "nothing; --stage executor needs no more"
        )
    if config.stage != "designer" and config.executor_group == "design" and config.executions == 1:
        raise UserError("--executor-credit design --executions 1: a group of one teaches nothing")
    check_players(config)
    if not config.model and len(config.models) == 1:
        raise UserError(
            "--model is missing: the folder of a cold-started Qwen3-8B. To make one: python sft.py "
            "--collect --teacher MODEL --tasks paper --out F, then python sft.py --model "
            "Qwen/Qwen3-8B --data F --lora 32 --checkpointing --lr 1e-4 --batch 32 --steps 500 "
            "--out DIR"
        )
    if config.lora and config.shard:
        raise UserError("--lora --shard: an adapter is small; without --shard, each GPU has it all")
    for roles, model in config.models.items():
        path = cli.model_path(model)
        if config.lora and config.learns(roles) and lora.base_of(path) != path:
            raise UserError(lora.refusal(model))
    if config.questions % world:
        next_multiple = -(-config.questions // world) * world
        raise UserError(
            f"--questions {config.questions} does not divide by the {world} ranks; "
            f"try {next_multiple}"
        )


def hand_designs(config) -> dict:
    """The designs by hand that --designer hand:NAME may name: those of the set, too."""
    return FIXED_DESIGNS | tasks.designs_by_hand(config.tasks)


def check_players(config) -> None:
    """Raises UserError."""
    local = [model for model in config.models.values() if not is_server(model)]
    if len(local) == 2 and (config.engine != "hf" or config.shard):
        raise UserError(
            "--designer, --executor: two models in one process work with --engine hf and without "
            "--shard"
        )
    if is_server(config.model):
        raise UserError("--model: a server learns nothing; name it as --designer or --executor")
    for roles, model in config.models.items():
        if is_server(model) and config.learns(roles):
            other = "designer" if roles[0] == "executor" else "executor"
            raise UserError(f"--{roles[0]} {model}: a server learns nothing; add --stage {other}")


def open_folder(config, rank: int) -> pathlib.Path:
    """The run's folder. A new run never writes over an old one. Raises UserError."""
    out = pathlib.Path(config.out)
    if rank != 0:
        return out
    if not config.resume and (out / "metrics.jsonl").exists():
        raise UserError(
            f"--out {out}: holds a run already; add --resume to go on with it, "
            "or name another folder"
        )
    config_file = out / "config.json"
    if config_file.exists() and "phase_steps" not in config_file.read_text():
        raise UserError(f"--out {out}: its config.json is not a run's; name another folder")
    out.mkdir(parents=True, exist_ok=True)
    saved = json.loads(config_file.read_text()) if config.resume else {}  # questions_hash, too
    atomic_write(config_file, json.dumps(saved | asdict(config), indent=1) + "\n")
    return out
