"""The cold start: supervised fine-tuning, so that a model can write designs and play agents.

    python sft.py --collect --tasks T --teacher M --out F      collect samples of right runs
    python sft.py --select F --out FILE.jsonl                  filter and balance them
    python sft.py --model M --data FILE.jsonl --out DIR        fine-tune M on collected samples
    python sft.py --model M --scripted --tasks T --out DIR     fine-tune M on the scripted teacher
    python sft.py --model M --out DIR    write M, a .gguf file or an adapter, as a model folder
    python -m tiny.build                                       build the tiny model from nothing

The paper's cold start keeps what a strong teacher did if its run ended in the right answer:
--collect; docs/cold_start.md goes from there to training. The tiny model sees samples of
deliberately mixed quality, of a scripted teacher that errs (tiny/teacher.py): it can write every
kind of design and play every agent, but badly.

Equation: minimise -mean log p(completion token | prompt, earlier tokens).

Test: `pytest tests/test_sft.py`. Read next: README.md.
"""

import asyncio
import contextlib
import json
import math
import os
import pathlib
import random
import shutil
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

import designer
import tasks
from data_types import Budget, Sample, Tree
from engines.hf import HFEngine
from executor import Runtime
from lib import cli, distributed, lora, plugins, selection, trained_on
from lib.cli import log
from lib.errors import InfrastructureError, PromptTooLong, UserError
from lib.files import atomic_write, complete_lines, read_jsonl
from lib.metrics import unique_name
from lib.model_check import check_model, open_to_sample
from lib.prefix_sharing import collate_rows, make_row, make_rows, micro_batches
from lib.shapes import read_shapes, write_shapes
from lib.ways import set_training
from policy import CompletionLogprobs, Policy
from rollout import Rollout
from sandbox import Sandbox

WARMUP_STEPS = 50
FINAL_LR = 0.1  # of the learning rate, at the end of the linear decay
BUCKET = 8  # batches that are drawn together and sorted by length: half of the padding goes
PORTION = 16  # questions that are collected at the same time


@dataclass(frozen=True)
class Config:
    # What to do
    model: str | None = None  # model to fine-tune
    data: str | None = None  # JSONL file of samples, as --collect writes it
    scripted: bool = False  # fine-tune --model on samples of the scripted teacher, on --tasks
    collect: bool = False  # collect samples from --teacher instead of training
    select: str | None = None  # file of collected samples to filter and balance instead
    out: str | None = None  # folder of the model, or file of the collected samples

    # Collecting
    teacher: str = "tiny"
    """Folder, Hub id, or URL of an OpenAI chat API, up to and with /v1, and #MODEL if it has more
    than one."""
    tasks: str = "registry"  # sets whose training questions are asked
    questions: int = 100  # number of questions
    designs: int = 4  # designs per question
    executions: int = 2  # executions per design
    design_tokens: int = 1024  # max new tokens per design
    reply_tokens: int = 1024  # max new tokens per reply
    data_dir: str | None = None  # folder with local files of the published sets
    plugin: str | None = None  # Python file of your own: questions, tools, blocks, prompt, reward
    engine: Literal["hf", "vllm"] = "hf"  # what samples from a model in this process

    # Selecting
    designer_samples: int = 3000  # designs to keep
    executor_samples: int = 8000  # replies of agents to keep
    per_question: int = 2  # max designs of a question, with 4 replies for each

    # Fine-tuning
    lora: int = 0  # rank of a LoRA adapter, which is trained instead of the weights; 0: none
    checkpointing: bool = False  # recomputation of activations in the backward pass
    samples: int = 80_000  # samples of the scripted teacher
    steps: int = 2200  # number of updates
    batch: int = 64  # samples per update
    lr: float = 2e-3  # learning rate, decaying linearly to a tenth
    batch_tokens: int = 8192  # max tokens of a forward pass; a larger update is split
    max_length: int = 8192  # max tokens per sample; longer ones are left out, and counted
    dtype: Literal["auto", "bfloat16", "float32", "float64"] = "auto"
    """Precision of the forward pass. auto: bfloat16 on a GPU, else float32."""
    skip_check: bool = False  # no check that sampler, trainer and the model itself agree
    seed: int = 0  # random seed


# -------------------------------------------------------------------------------------- fine-tuning


def fine_tune(policy: Policy, samples: list[Sample], config) -> list[float]:
    """AdamW with warm-up and linear decay on the completion tokens. Returns the losses.

    config: steps, batch, lr, batch_tokens and seed of a Config. Raises UserError.
    """
    rng = random.Random(f"fine-tune {config.seed}")
    model = distributed.wrap(CompletionLogprobs(policy), policy, is_sharded=False)
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.lr, weight_decay=0.01)
    set_training(policy.model, policy.model.is_gradient_checkpointing)  # no dropout
    losses = []
    batches = []
    is_first = distributed.rank() == 0
    bar = tqdm(range(config.steps), desc="fine-tune", mininterval=2, disable=not is_first)
    for step in bar:
        warmup = min(1.0, (step + 1) / WARMUP_STEPS)
        decay = 1 - (1 - FINAL_LR) * step / config.steps
        for group in optimizer.param_groups:
            group["lr"] = config.lr * warmup * decay
        if not batches:
            batches = draw_batches(rng, samples, config.batch)
        losses.append(accumulate_gradient(policy, model, batches.pop(0), config.batch_tokens))
        if not math.isfinite(losses[-1]):
            raise UserError(f"--lr {config.lr}: the loss is not finite; nothing was written")
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        bar.set_postfix(loss=f"{losses[-1]:.3f}")
    return losses


def draw_batches(rng: random.Random, samples: list[Sample], size: int) -> list[list[Sample]]:
    """Some batches at once, each of similar lengths."""
    drawn = [samples[rng.randrange(len(samples))] for _ in range(BUCKET * size)]
    drawn.sort(key=len)
    batches = [drawn[i * size : (i + 1) * size] for i in range(BUCKET)]
    rng.shuffle(batches)
    return batches


def accumulate_gradient(policy: Policy, model, batch: list[Sample], max_tokens: int) -> float:
    """Forward and backward of this rank's part of an update, split if it has too many tokens.

    Returns the loss, over all ranks.
    """
    samples = batch[distributed.rank() :: distributed.world_size()]
    if len(samples) * max(len(sample) for sample in samples) <= max_tokens:
        parts = [[make_row([sample]) for sample in samples]]
    else:
        parts = micro_batches(make_rows(samples, max_tokens, policy), max_tokens)
    num_tokens = sum(len(sample.completion_ids) for sample in batch)
    total = 0.0
    for rows in parts:
        # DDP exchanges gradients once, in the last backward pass, and averages them.
        waits = distributed.world_size() > 1 and rows is not parts[-1]
        with model.no_sync() if waits else contextlib.nullcontext():
            logprobs_K, _ = model(collate_rows(rows, policy.pad_id, policy.device))
            loss = -logprobs_K.sum() / num_tokens
            (loss * distributed.world_size()).backward()
        total += loss.item()
    return distributed.all_reduce_sum(total)


def encode(policy: Policy, rows: list[tuple], max_length: int) -> list[Sample]:
    """(role, messages, completion) -> Sample. The token that ends a turn ends the completion."""
    samples = []
    end_id = policy.chat.turn_end(frozenset())
    if end_id is None:  # the template's turns end in no special token
        end_id = policy.tokenizer.eos_token_id
    for role, messages, completion in rows:
        ids = policy.tokenizer.encode(completion, add_special_tokens=False)
        ids.append(end_id)
        with contextlib.suppress(PromptTooLong):
            samples.append(Sample(policy.render(messages), tuple(ids), (), 1.0, role))
    short = [sample for sample in samples if len(sample) <= max_length]
    if len(short) < len(rows):
        num_long = len(rows) - len(short)
        log.info(f"{num_long} of {len(rows)} samples are longer than {max_length} tokens: left out")
    return short


def read_samples(path: pathlib.Path) -> list[tuple[str, list[dict], str]]:
    """The rows of a collected file. Raises UserError that names the row that is wrong."""
    rows = []
    for number, row in enumerate(read_jsonl(path), 1):
        role, messages = row.get("role"), row.get("messages")
        completion = row.get("completion")
        is_text = isinstance(completion, str)
        if role not in ("designer", "executor") or not is_text or not is_conversation(messages):
            raise UserError(
                f"{path}, row {number}: needs role (designer or executor), messages (with role and "
                "content) and completion (a text)"
            )
        rows.append((role, messages, completion))
    return rows


def is_conversation(messages) -> bool:
    if not isinstance(messages, list):
        return False
    for message in messages:
        if not isinstance(message, dict):
            return False
        if not (isinstance(message.get("role"), str) and isinstance(message.get("content"), str)):
            return False
    return True


def scripted_samples(config: Config) -> list[tuple]:
    """(role, messages, completion) of the scripted teacher that knows --tasks. Raises UserError."""
    from tiny import teacher
    from tiny.arithmetic import teacher as arithmetic

    if config.tasks in teacher.WORLDS:
        return teacher.cold_start(config.samples, config.seed, config.tasks)
    return arithmetic.cold_start(config.samples, config.seed, config.tasks, config.data_dir)


def train(config: Config) -> None:
    """Fine-tune, and write the model's folder whole or not at all. Raises UserError."""
    out = pathlib.Path(config.out)
    check_free(out)
    torch.manual_seed(config.seed)
    if config.scripted:
        rows = scripted_samples(config)
    else:
        rows = read_samples(pathlib.Path(config.data))
    model = cli.model_path(config.model or "tiny")
    dtype = cli.load_dtype(config.dtype)
    weights_dtype = dtype if config.lora else None
    policy = Policy(model, cli.load_device(), dtype=dtype, weights_dtype=weights_dtype)
    if not config.skip_check:
        asyncio.run(check_model(policy, HFEngine(policy)))
    if config.lora:
        lora.add_adapter(policy, config.lora)
    if config.checkpointing:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    samples = encode(policy, rows, config.max_length)
    if not samples:
        raise UserError(f"--data {config.data}: no sample is left")
    losses = fine_tune(policy, samples, config)
    losses_text = f"loss {losses[0]:.3f} -> {losses[-1]:.3f}"
    write(policy, out, f"{losses_text} in {config.steps} steps on {len(samples)} samples", rows)


def write(policy: Policy, out: pathlib.Path, what: str, rows=()) -> None:
    """Write a model's folder, whole or not at all, over an older one.

    rows: the samples that it was fine-tuned on.
    """
    if distributed.rank():
        return
    check_free(out)
    new, old = out.with_name(out.name + ".new"), out.with_name(out.name + ".old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    policy.save(new)
    if rows:
        write_shapes(new, rows, read_shapes(policy.path))
        asked = [messages[-1]["content"] for role, messages, _ in rows if role == "designer"]
        trained_on.write(new, [policy.path], asked)
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    log.info(f"{out}: {what}")


def check_free(out: pathlib.Path) -> None:
    """Raises UserError if `out` is something else than a model's folder."""
    if not out.exists():
        return
    config, adapter = out / "config.json", out / lora.CONFIG_FILE
    is_model = adapter.is_file() or config.is_file() and "model_type" in config.read_text()
    if not is_model or list(out.glob("*.py")):
        raise UserError(f"--out {out}: exists and is not a model's folder; nothing was touched")


# --------------------------------------------------------------------------------------- collecting


def samples_to_keep(config: Config, tree: Tree) -> list[dict]:
    """Executions that ended right, and the designs that led there; each text once."""
    source = {
        "question": unique_name(tree.question),
        "family": tree.question.family,
        "tasks": config.tasks,
        "teacher": config.teacher,
        "seed": config.seed,
    }
    rows = {}
    for design, execution in tree.pairs():
        if execution.reward != 1.0:
            continue
        samples = [("designer", designer.designer_messages(tree.question), design.text)]
        for call in execution.calls:
            if not call.truncated:
                samples.append(("executor", list(call.messages), call.text))
        for role, messages, completion in samples:
            row = {"role": role, "messages": messages, "completion": completion, **source}
            rows[json.dumps(row)] = row
    return list(rows.values())


async def collect(config: Config, out: pathlib.Path) -> int:
    """Sample from the teacher, and append what ended right to `out`, question by question.

    A stopped collection goes on where it was: `out`.progress names the questions that are done.
    Returns the number of samples. Raises UserError.
    """
    questions = tasks.load(config.tasks, "train", config.seed, config.questions, config.data_dir)
    progress = out.with_name(out.name + ".progress")
    done, count = resume_collection(config, out, progress)
    engine, policy = await open_to_sample(
        config.teacher, config.engine, config.dtype, skip_check=config.skip_check
    )
    todo = [question for question in questions if unique_name(question) not in done]
    failure = ""
    async with Sandbox() as sandbox:
        budget = Budget(reply_tokens=config.reply_tokens)
        runtime = Runtime(engine, policy, sandbox, budget)
        rollout = Rollout(runtime, design_tokens=config.design_tokens)
        num_done = len(questions) - len(todo)
        bar = tqdm(total=len(questions), initial=num_done, desc="collect", disable=None)
        for start in range(0, len(todo), PORTION):
            trees = await rollout.rollout(
                todo[start : start + PORTION],
                num_designs=config.designs,
                num_executions=config.executions,
                seed=(config.seed, "collect"),
                on_tree=lambda tree: bar.update(),
            )
            for tree in trees:
                rows = samples_to_keep(config, tree)
                count += len(rows)
                executions = [execution for _, execution in tree.pairs()]
                with open(out, "a", encoding="utf-8") as file:
                    file.write("".join(json.dumps(row) + "\n" for row in rows))
                if any(execution.valid for execution in executions):
                    name = unique_name(tree.question)
                    done.add(name)
                    with open(progress, "a", encoding="utf-8") as file:
                        file.write(json.dumps(name) + "\n")
                else:
                    failure = executions[0].detail
        bar.close()
    missing = [question for question in todo if unique_name(question) not in done]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(questions)} questions failed ({failure}); {out} has what the "
            "others gave, the same command goes on"
        )
    progress.unlink()
    return count


def select_samples(config: Config, out: pathlib.Path) -> None:
    """Filter and balance a collected file (lib/selection.py). Raises UserError."""
    if out.exists():
        raise UserError(f"--out {out}: exists; nothing was touched")
    path = pathlib.Path(config.select)
    read_samples(path)  # a row that is wrong is said
    rows = read_jsonl(path)
    tokenizer = AutoTokenizer.from_pretrained(cli.model_path(config.model or "tiny"))

    def length(row: dict) -> int:
        texts = [message["content"] for message in row["messages"]] + [row["completion"]]
        return sum(len(tokenizer.encode(text)) for text in texts)

    counts = {"designer": config.designer_samples, "executor": config.executor_samples}
    limits = config.max_length, config.per_question, counts, config.seed
    kept, dropped = selection.select(rows, length, *limits)
    atomic_write(out, "".join(json.dumps(row) + "\n" for row in kept))
    roles = Counter(row["role"] for row in kept)
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    log.info(
        f"{out}: {roles['designer']} designs and {roles['executor']} replies of {len(rows)} "
        f"samples; dropped: {reasons}"
    )


def resume_collection(config: Config, out: pathlib.Path, progress: pathlib.Path) -> tuple[set, int]:
    """(questions that are done, samples that are there). Raises UserError."""
    settings = json.dumps([config.tasks, config.teacher, config.seed])
    lines = list(complete_lines(progress)) if progress.exists() else []
    is_other = lines and lines[0] != settings
    if is_other or (out.exists() and not lines):
        raise UserError(
            f"--out {out}: exists and is not this collection, half done; nothing was touched"
        )
    done = {json.loads(line) for line in lines[1:]}
    rows = []
    if done and out.stat().st_size:
        rows = read_jsonl(out, only_complete_lines=True)
        rows = [row for row in rows if row["question"] in done]  # a kill may have cut others off
    atomic_write(out, "".join(json.dumps(row) + "\n" for row in rows))
    names = [json.dumps(name) for name in sorted(done)]
    atomic_write(progress, "\n".join([settings, *names]) + "\n")
    return done, len(rows)


def check(config: Config) -> None:
    """Raises UserError."""
    cli.check_at_least(config, 0, "lora")
    cli.check_at_least(
        config,
        1,
        "questions designs executions samples steps batch max_length design_tokens reply_tokens "
        "designer_samples executor_samples per_question",
    )
    if not 0 < config.lr < math.inf:
        raise UserError(f"--lr {config.lr}: must be a positive number")
    model = cli.model_path(config.model or "")
    if config.lora and lora.base_of(model) != model:
        raise UserError(lora.refusal(config.model))
    if config.scripted and not config.model:
        raise UserError("--scripted needs --model, which it fine-tunes")
    if not (config.collect or config.select or config.data or config.model):
        raise UserError("name --model, --data or --collect; python -m tiny.build builds tiny/")
    if config.out is None:
        is_file = config.collect or config.select
        what = "FILE.jsonl" if is_file else "DIR, a folder of its own"
        raise UserError(f"--out is missing: --out {what}")


def main(argv: list[str]) -> None:
    config = cli.flags(Config, argv, "Cold start: fine-tune on samples, or collect them.")
    check(config)
    cli.share_cores()
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and not (config.data or config.scripted) or config.batch < world:
        raise UserError(f"{world} ranks: for fine-tuning only, and --batch {world} or more")
    if torch.cuda.is_available():
        torch.cuda.set_device(cli.load_device())
    distributed.join(world, timeout_seconds=600)
    plugins.load(config.plugin)
    out = pathlib.Path(config.out)
    if config.collect:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            count = asyncio.run(collect(config, out))
        except InfrastructureError as error:
            raise UserError(str(error)) from None
        log.info(f"{out}: {count} samples of {config.questions} questions")
    elif config.select:
        select_samples(config, out)
    elif config.data or config.scripted:
        train(config)
    else:
        write(Policy(cli.model_path(config.model)), out, "written as it is")
    distributed.leave()


if __name__ == "__main__":
    cli.command(main)
