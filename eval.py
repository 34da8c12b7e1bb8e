"""Evaluation: benchmarks, baselines at the same budget, one question asked and shown.

    python eval.py --model DIR --tasks gsm8k,aime24 --modes single,self-consistency,fixed,metaagent --out DIR
    python eval.py --engine openai --url http://HOST:8000/v1 --model NAME --tasks livecodebench
    python eval.py --model DIR --ask "What is 37 * 52 + 418?" --html run.html
    python eval.py --model DIR --serve

| mode | what answers | model calls |
|---|---|---|
| single | one agent, without tools | 1 |
| self-consistency | k samples of the single agent, majority vote; k uses up the tokens that metaagent used | k |
| fixed | each hand-written design of designer.FIXED | as written |
| metaagent | the model's own design for each question, run by the same model | as designed |

A code question is solved when its program passes all tests. Accuracy is the mean over --samples answers. Tokens are sampled tokens, of the design and
of all calls. Every answer has a seed of its own, from the question's id: the numbers do not depend on the batch or on the
order of the questions, but for rounding. With --out, every answered question is written at once (of self-consistency, 64 at a time), and the same command goes on where it was stopped.
Test: `pytest tests/test_eval.py`. Read next: scores.py.
"""
import asyncio
import hashlib
import json
import math
import pathlib
import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from tqdm import tqdm

import cli
import credit
import pages
import serve
import tasks
from cli import log
from designer import FIXED
from engines import ChatEngine, open_engine
from executor import Budget
from policy import Policy
from rollout import Rollout, Tree, stack
from sandbox import Sandbox, SandboxError
from scores import Result, name_of, record, score, summarise, table

MODES = ("single", "self-consistency", "fixed", "metaagent")
PORTION = 64  # questions that are answered at once


@dataclass(frozen=True)
class Config:
    model: str = "tiny"
    """A folder in Hugging Face format, or a Hub id."""
    designer: str | None = None
    """A model of its own for the designer role, where --model is the executor only."""
    tasks: str = "arithmetic"
    """Sets to evaluate on: names, rg:GENERATOR or paths to .jsonl files, comma-separated."""
    modes: str = "single,self-consistency,fixed,metaagent"
    """Who answers: any of single, self-consistency, fixed, metaagent."""
    samples: int = 1
    """Answers per question; accuracy is their mean."""
    vote_tokens: float = 0.0
    """Sampled tokens a question that self-consistency uses up; 0 is as many as metaagent used."""
    limit: int = 100
    """At most so many questions of each set."""
    data_dir: str | None = None
    """Folder with local files of the benchmarks; without it they come from the Hub."""
    out: str | None = None
    """Folder for results.json and results.md."""
    ask: str | None = None
    """Ask this one question and show the run."""
    gold: str = ""
    """The right answer of --ask, if you know it: then rewards and advantages are shown too."""
    designs: int = 1
    """M, for --ask: designs of the question."""
    executions: int = 1
    """N, for --ask: executions of each design."""
    html: str | None = None
    """For --ask: also write the run as a page, one file that opens anywhere."""
    serve: bool = False
    """Answer questions in a browser, on this machine only."""
    port: int = 8642
    """Of --serve."""
    temperature: float = 1.0
    """Of sampling; 1 is what was trained, 0 is greedy."""
    design_tokens: int = 1024
    """At most so many tokens of a design."""
    reply_tokens: int = 1024
    """At most so many tokens of a reply."""
    max_calls: int = 16
    """At most so many model calls of one execution."""
    sandbox: Literal["auto", "namespaces", "landlock", "seccomp", "none"] = "auto"
    """Isolation of scripts and tools; auto takes the best that works and refuses to start without one."""
    engine: Literal["hf", "vllm", "openai"] = "hf"
    """What samples: hf, transformers in this process; vllm, vLLM in this process; openai, a server with the OpenAI chat API (vLLM's, llama.cpp's ...) at --url, --model its name there."""
    url: str = "http://127.0.0.1:8000/v1"
    """Of the server, for --engine openai. The key is OPENAI_API_KEY."""
    dtype: Literal["auto", "bfloat16", "float32", "float64"] = "auto"
    """What the model computes in; auto is bfloat16 on a GPU, else float32."""
    max_length: int = 0
    """At most so many tokens of a prompt and its reply together; 0 is the model's own limit."""
    gpu_memory: float = 0.8
    """Share of the GPU's memory that vllm takes."""
    seed: int = 0
    """Of questions and samples."""
    threads: int = 0
    """CPU threads of torch; 0 leaves its default."""


async def vote(executor, question, executions) -> str | None:
    """The most common final answer, first come on a tie, as a text that is graded like any other. Programs are one answer if they do the
    same on the public tests."""
    texts = [execution.answer for execution in executions if execution.answer]
    if question.kind == "code":
        keys = [await executor.same_group(question, text) for text in texts]
    else:
        keys = [tasks.final_answer(text) for text in texts]
    counts = Counter(key for key in keys if key)
    return texts[keys.index(counts.most_common(1)[0][0])] if counts else None


async def voted(grow, tree: Tree) -> dict:
    """The record of self-consistency: a question's M x k single-agent samples give M votes, each over k."""
    scores, row = [], record(tree)
    for m, executions in enumerate(tree.executions):
        if tree.valid_M_N[m].any():
            answer = await vote(grow.executor, tree.question, executions)
            scores.append(score(tree.question, await grow.reward(tree.question, answer)) if answer else 0.0)
    k = len(tree.executions[0])
    sums = {key: [sum(row[key]) / len(row[key]) * k] * len(scores) if row[key] else [] for key in ("calls", "tokens")}
    return row | sums | {"scores": scores, "valid": [True] * len(scores), "structures": ["vote"] * len(scores)}


class Answers:
    """The records of answered questions, in a file that a stopped run goes on from."""

    def __init__(self, path: pathlib.Path | None):
        self.path, self.rows = path, {}
        if path and path.exists():
            lines = path.read_text().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]  # the last one may have been cut off
            for row in map(json.loads, whole):
                self.rows[row["tasks"], row["mode"], row["question"]] = row
            if whole != lines:
                cli.atomic_write(path, "".join(whole))

    def add(self, name, mode, row):
        row = {"tasks": name, "mode": mode, **row}
        self.rows[name, mode, row["question"]] = row
        if self.path:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def done(self, name, mode, question) -> bool:
        return not self.rows.get((name, mode, name_of(question)), {"infrastructure": 1})["infrastructure"]


async def answer(grow, name, mode, questions, samples, seed, answers: Answers, bar=lambda count: None, script=None, k: int = 1) -> Result:
    """All questions in one mode, in portions, so that little is lost when the run is stopped."""
    todo = [question for question in questions if not answers.done(name, mode, question)]
    bar(len(questions) - len(todo))

    def on_done(tree):
        bar(1)
        if k == 1:
            answers.add(name, mode, record(tree))

    for start in range(0, len(todo), PORTION):
        trees = await grow(todo[start:start + PORTION], samples, k, (*seed, mode), script, on_done)
        for tree in trees if k > 1 else ():
            answers.add(name, mode, await voted(grow, tree))
    return summarise(name, mode, [answers.rows[name, mode, name_of(question)] for question in questions])


async def evaluate(grow, name: str, questions, modes, samples: int = 1, seed: tuple = (0,), answers: Answers | None = None,
                   vote_tokens: float = 0.0) -> list[Result]:
    """Every mode on the same questions. `grow` is a Rollout. Self-consistency uses up `vote_tokens` a question, or (0) what metaagent used."""
    answers = answers or Answers(None)
    wanted = [mode for mode in modes if mode not in ("fixed", "self-consistency")] + [f"fixed: {key}" for key in FIXED if "fixed" in modes]
    needed = [mode for mode in ("metaagent", "single")[bool(vote_tokens):] if "self-consistency" in modes and mode not in wanted]
    rows = {}
    with tqdm(total=len(questions) * (len(wanted + needed) + ("self-consistency" in modes)), desc=name, mininterval=1, leave=False, disable=None) as bar:
        for mode in needed + wanted:
            script = None if mode == "metaagent" else FIXED[mode.removeprefix("fixed: ")]
            rows[mode] = await answer(grow, name, mode, questions, samples, seed, answers, bar.update, script)
        if "self-consistency" in modes:
            k = max(1, round((vote_tokens or rows["metaagent"].tokens) / max(1.0, rows["single"].tokens)))
            mode = f"self-consistency (k={k})"
            rows[mode] = await answer(grow, name, mode, questions, samples, seed, answers, bar.update, FIXED["single"], k)
    order = {mode: place for place, mode in enumerate(modes)}
    return sorted((row for mode, row in rows.items() if mode not in needed), key=lambda row: order[re.split(r":| \(", row.mode)[0]])


async def run(config: Config) -> list[Result]:
    budget, rows = Budget(calls=config.max_calls, reply_tokens=config.reply_tokens), []
    if config.engine == "openai":
        engine = policy = ChatEngine(config.url, config.model)
    else:
        policy = Policy(cli.model_path(config.model), cli.device(), config.max_length, cli.dtype(config.dtype))
        engine = open_engine(config.engine, policy, memory=config.gpu_memory)
    designer = None
    if config.designer:
        other = Policy(cli.model_path(config.designer), cli.device(), config.max_length, cli.dtype(config.dtype))
        designer = open_engine("hf", other), other
    async with Sandbox(config.sandbox) as sandbox:
        grow = Rollout(engine, policy, sandbox, budget, config.design_tokens, config.temperature, designer, all_tests=config.ask is not None)
        if config.serve:
            await serve.Server(grow, config).run()
        if config.ask is not None:
            await ask(config, grow, policy)
            return []
        answers = Answers(pathlib.Path(config.out) / "answers.jsonl" if config.out else None)
        for name, questions in sets(config):
            rows += await evaluate(grow, name, questions, config.modes.split(","), config.samples, (config.seed, name), answers, config.vote_tokens)
    return rows


async def ask(config: Config, grow, policy) -> None:
    """Ask one question and show its tree: in the terminal, and as a page with --html."""
    tree, = await grow([tasks.Question("asked", config.ask, config.gold)], config.designs, config.executions, (config.seed, "ask"))
    rewards, valid = stack([tree])
    advantages = (credit.designer_advantages(rewards, valid)[0], credit.executor_advantages(rewards, valid)[0]) if config.gold else (None, None)
    shown = pages.episode(None, tree, *advantages, policy, grow.designer[1])
    log.info(pages.as_text(shown, lines=sys.stdout.isatty()))
    if config.html:
        cli.atomic_write(pathlib.Path(config.html), pages.run_page(shown))


def sets(config: Config):
    """(name, questions) of each set; generated ones show their held-out side. Raises BadInput before anything runs."""
    return [(name, tasks.load(name, "heldout" if name == "arithmetic" or name.startswith("rg:") else "all", config.seed, config.limit,
                              config.data_dir)) for name, _ in tasks.parse_spec(config.tasks)]


def check(config: Config) -> None:
    unknown = set(config.modes.split(",")) - set(MODES)
    if unknown:
        raise tasks.BadInput(f"--modes {','.join(sorted(unknown))}: unknown; any of {', '.join(MODES)}")
    for flag in ("samples", "limit", "max_calls", "design_tokens", "reply_tokens", "designs", "executions"):
        if getattr(config, flag) < 1:
            raise tasks.BadInput(f"--{flag.replace('_', '-')} {getattr(config, flag)}: must be at least 1")
    if config.threads < 0:
        raise tasks.BadInput(f"--threads {config.threads}: must be 0 or more")
    if not 0 <= config.vote_tokens < math.inf:
        raise tasks.BadInput(f"--vote-tokens {config.vote_tokens}: must be 0 or more")
    if not config.temperature >= 0:
        raise tasks.BadInput(f"--temperature {config.temperature}: must be 0 or more")
    if config.ask is not None and not config.ask.strip():
        raise tasks.BadInput("--ask: the question is empty")
    if any("\ud800" <= character <= "\udfff" for character in (config.ask or "") + config.gold):
        raise tasks.BadInput("--ask, --gold: not a text in UTF-8")
    if config.html is not None and config.ask is None:
        raise tasks.BadInput("--html: a page of what? It goes with --ask")
    if config.html is not None and (not pathlib.Path(config.html).name or pathlib.Path(config.html).is_dir() or not pathlib.Path(config.html).parent.is_dir()):
        raise tasks.BadInput(f"--html {config.html!r}: has to be a file in a folder that exists")
    if config.serve and config.ask is not None:
        raise tasks.BadInput("--serve, --ask: one or the other")
    if not 0 <= config.port < 1 << 16:
        raise tasks.BadInput(f"--port {config.port}: a number from 0 (any free one) to 65535")
    if config.ask is None and not config.serve:
        sets(config)


def weights_of(model: str) -> str:
    """A hash of the weights in a local folder or file: a run's checkpoint keeps its name while it learns. A model that is elsewhere has only its name."""
    place, found = pathlib.Path(cli.model_path(model)), hashlib.sha256()
    for path in sorted([*place.glob("*.safetensors"), *place.glob("*.bin")]) if place.is_dir() else [place] * place.is_file():
        with open(path, "rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:16]


def open_folder(config: Config, out: pathlib.Path) -> None:
    """The folder of results; what is there has to be of the same evaluation, to be gone on with. Raises BadInput."""
    free = ("out", "threads", "url", "sandbox", "limit", "modes", "tasks", "data_dir", "ask", "gold", "designs", "executions", "html", "serve", "port")
    weights = {"weights": [weights_of(model) for model in (config.model, config.designer) if model]}
    same, default = ({key: value for key, value in asdict(flags).items() if key not in free} | weights for flags in (config, Config()))
    if (out / "config.json").exists() and default | json.loads((out / "config.json").read_text()) != same:  # a flag that is new since then had its default
        raise tasks.BadInput(f"--out {out}: holds an evaluation with other settings or weights ({out / 'config.json'}); name another folder")
    out.mkdir(parents=True, exist_ok=True)
    cli.atomic_write(out / "config.json", json.dumps(same, indent=1) + "\n")


def main(argv) -> None:
    config = cli.flags(Config, argv, "Evaluate a model as a designer and executor of multi-agent systems.")
    check(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    out = pathlib.Path(config.out) if config.out else None
    if out:
        open_folder(config, out)
    try:
        rows = asyncio.run(run(config))
    except SandboxError as error:
        raise tasks.BadInput(str(error)) from None
    if not rows:
        return
    text = table(rows)
    if out:
        cli.atomic_write(out / "results.md", text + "\n")
        cli.atomic_write(out / "results.json", json.dumps({"config": asdict(config), "results": [asdict(r) for r in rows]}, indent=1))
    log.info(text)


if __name__ == "__main__":
    cli.command(main)
