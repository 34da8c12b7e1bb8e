"""Evaluation: benchmarks, baselines at the same budget, one question asked and shown.

    python eval.py --model DIR --tasks gsm8k,aime24 --modes single,self-consistency,fixed,metaagent --out DIR
    python eval.py --model DIR --ask "What is 37 * 52 + 418?"

| mode | what answers | model calls |
|---|---|---|
| single | one agent, without tools | 1 |
| self-consistency | k samples of the single agent, majority vote; k uses up the tokens that metaagent used | k |
| fixed | each hand-written design of designer.FIXED | as written |
| metaagent | the model's own design for each question, run by the same model | as designed |

Intervals are 95 % bootstrap intervals over questions. Tokens are sampled tokens, of the design and of all calls.
Test: `pytest tests/test_eval.py`. Read next: the tests.
"""
import asyncio
import json
import pathlib
import random
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from tqdm import tqdm

import cli
import tasks
from cli import log
from designer import FIXED, structure
from executor import Budget
from policy import HFEngine, Policy
from rollout import Rollout, Tree
from sandbox import Sandbox, SandboxError

MODES = ("single", "self-consistency", "fixed", "metaagent")


@dataclass(frozen=True)
class Config:
    model: str = "tiny"
    """A folder in Hugging Face format, or a Hub id."""
    tasks: str = "arithmetic"
    """Sets to evaluate on: names, rg:GENERATOR or paths to .jsonl files, comma-separated."""
    modes: str = "single,self-consistency,fixed,metaagent"
    """Who answers: any of single, self-consistency, fixed, metaagent."""
    samples: int = 1
    """Answers per question; accuracy is their mean."""
    limit: int = 100
    """At most so many questions of each set."""
    data_dir: str | None = None
    """Folder with local files of the benchmarks; without it they come from the Hub."""
    out: str | None = None
    """Folder for results.json and results.md."""
    ask: str | None = None
    """Ask this one question and show the run."""
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
    engine: Literal["hf"] = "hf"
    """What samples."""
    seed: int = 0
    """Of questions and samples."""
    threads: int = 0
    """CPU threads of torch; 0 leaves its default."""


@dataclass(frozen=True)
class Result:
    """One row of the table. Means are per question; `correct` holds the mean score of each question, in order."""
    tasks: str
    mode: str
    accuracy: float
    interval: tuple[float, float]
    calls: float
    tokens: float
    valid_designs: float
    structures: dict
    correct: tuple[float, ...]


def interval95(values, seed: int = 0, draws: int = 1000) -> tuple[float, float]:
    """The bootstrap interval of the mean of `values`, one per question.

    >>> interval95([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    rng, values = random.Random(seed), list(values)
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(draws))
    return means[int(0.025 * draws)], means[int(0.975 * draws) - 1]


def tokens_of(design, execution) -> int:
    return len(design.completion_ids) + sum(len(call.completion_ids) for call in execution.calls)


def summarise(name: str, mode: str, trees: list[Tree]) -> Result:
    """Accuracy and cost of a list of trees. Executions that the infrastructure spoiled are left out, never scored 0."""
    flat = [(design, execution) for tree in trees for design, execution, _ in tree.flat()]
    kept = [tree for tree in trees if tree.valid_M_N.any()]
    if not kept:
        raise SandboxError(f"every execution of {name} failed in the infrastructure: {flat[0][1].detail}")
    flat = [(design, execution) for design, execution in flat if execution.status != "infrastructure"]
    correct = tuple(tree.rewards_M_N[tree.valid_M_N].mean().item() for tree in kept)
    valid = [execution.status not in ("invalid_script", "crashed") for _, execution in flat]
    return Result(name, mode, sum(correct) / len(correct), interval95(correct), sum(len(e.calls) for _, e in flat) / len(flat),
                  sum(tokens_of(d, e) for d, e in flat) / len(flat), sum(valid) / len(valid),
                  dict(Counter(structure(design.script) for design, _ in flat).most_common()), correct)


def majority(executions) -> str | None:
    """The most common final answer, first come on a tie, as a text that is graded like any other."""
    answers = Counter(tasks.final_answer(e.answer) for e in executions if e.answer and tasks.final_answer(e.answer))
    return f"\\boxed{{{answers.most_common(1)[0][0]}}}" if answers else None


async def self_consistency(grow, name, questions, samples, budget: float, seed) -> Result:
    """Majority vote over k single-agent samples; k is what `budget` tokens per question pay for (at least 1)."""
    probe = await grow(questions, 1, 1, (*seed, "probe"), FIXED["single"])
    each = max(1.0, summarise(name, "probe", probe).tokens)
    k = max(1, round(budget / each))
    trees = await grow(questions, samples, k, (*seed, "vote"), FIXED["single"])
    correct = []
    for tree in trees:
        answers = [majority(executions) for m, executions in enumerate(tree.executions) if tree.valid_M_N[m].any()]
        if answers:
            correct.append(sum(tasks.grade(tree.question, answer) if answer else 0.0 for answer in answers) / len(answers))
    row = summarise(name, "self-consistency", trees)
    return Result(name, f"self-consistency (k={k})", sum(correct) / len(correct), interval95(correct), row.calls * k, row.tokens * k,
                  row.valid_designs, row.structures, tuple(correct))


async def evaluate(grow, name: str, questions, modes, samples: int = 1, seed: tuple = (0,)) -> list[Result]:
    """Every mode on the same questions. `grow` is a Rollout."""
    with tqdm(total=len(questions) * sum(len(FIXED) if mode == "fixed" else 1 for mode in modes), desc=name, mininterval=1,
              leave=False, disable=None) as bar:

        async def run(mode, fixed):
            return summarise(name, mode, await grow(questions, samples, 1, (*seed, mode), fixed, bar.update))

        rows = {mode: [] for mode in modes}
        if "metaagent" in modes or "self-consistency" in modes:  # the budget of self-consistency is what metaagent uses
            rows["metaagent"] = [await run("metaagent", None)]
        for mode in modes:
            if mode == "single":
                rows[mode] = [await run(mode, FIXED["single"])]
            elif mode == "fixed":
                rows[mode] = [await run(f"fixed: {key}", script) for key, script in FIXED.items()]
            elif mode == "self-consistency":
                rows[mode] = [await self_consistency(grow, name, questions, samples, rows["metaagent"][0].tokens, seed)]
    return [row for mode in modes for row in rows[mode]]


def table(rows: list[Result]) -> str:
    """The results as a Markdown table."""
    lines = ["| tasks | mode | accuracy | 95 % interval | questions | calls | tokens | valid designs | structures |",
             "|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        shares = ", ".join(f"{kind} {count / sum(row.structures.values()):.0%}" for kind, count in row.structures.items())
        lines.append(f"| {row.tasks} | {row.mode} | {row.accuracy:.3f} | {row.interval[0]:.3f} - {row.interval[1]:.3f} | "
                     f"{len(row.correct)} | {row.calls:.2f} | {row.tokens:.1f} | {row.valid_designs:.1%} | {shares} |")
    return "\n".join(lines)


def show(tree: Tree) -> str:
    """One run as text: the design, every call with its tool output, and how it ended."""
    design, execution, _ = tree.flat()[0]
    lines = [f"question  {tree.question.prompt}", "", "design", *("  " + line for line in design.script.splitlines()), ""]
    for number, call in enumerate(execution.calls, 1):
        lines.append(f"call {number}  {call.agent}  ({len(call.prompt_ids)} tokens in, {len(call.completion_ids)} out)")
        lines += ["  asked: " + call.prompt.replace("\n", "\n         "), "  said:  " + call.text.replace("\n", "\n         ")]
        if call.tool_output is not None:
            lines.append("  python printed: " + call.tool_output.replace("\n", "\n         "))
    answer = tasks.final_answer(execution.answer) if execution.answer else None
    lines += ["", f"outcome   {execution.status}" + (f" ({execution.detail})" if execution.detail else ""),
              f"answer    {answer if answer is not None else execution.answer}",
              f"cost      {len(execution.calls)} calls, {tokens_of(design, execution)} tokens"]
    return "\n".join(lines)


async def run(config: Config, policy: Policy) -> list[Result]:
    budget = Budget(calls=config.max_calls, reply_tokens=config.reply_tokens)
    async with Sandbox(config.sandbox) as sandbox:
        grow = Rollout(HFEngine(policy), policy, sandbox, budget, config.design_tokens, config.temperature)
        if config.ask is not None:
            question = tasks.Question("asked", config.ask, "")
            log.info(show((await grow([question], 1, 1, (config.seed, "ask")))[0]))
            return []
        rows = []
        for name, questions in sets(config):
            rows += await evaluate(grow, name, questions, config.modes.split(","), config.samples, (config.seed, name))
    return rows


def sets(config: Config):
    """(name, questions) of each set; generated ones show their held-out side. Raises BadInput before anything runs."""
    return [(name, tasks.load(name, "heldout" if name == "arithmetic" or name.startswith("rg:") else "all", config.seed, config.limit,
                              config.data_dir)) for name, _ in tasks.parse_spec(config.tasks)]


def check(config: Config) -> None:
    unknown = set(config.modes.split(",")) - set(MODES)
    if unknown:
        raise tasks.BadInput(f"--modes {','.join(sorted(unknown))}: unknown; any of {', '.join(MODES)}")
    for flag in ("samples", "limit", "max_calls", "design_tokens", "reply_tokens"):
        if getattr(config, flag) < 1:
            raise tasks.BadInput(f"--{flag.replace('_', '-')} {getattr(config, flag)}: must be at least 1")
    if config.threads < 0:
        raise tasks.BadInput(f"--threads {config.threads}: must be 0 or more")
    if not config.temperature >= 0:
        raise tasks.BadInput(f"--temperature {config.temperature}: must be 0 or more")
    if config.ask is not None and not config.ask.strip():
        raise tasks.BadInput("--ask: the question is empty")
    if config.ask is None:
        sets(config)


def main(argv) -> None:
    config = cli.flags(Config, argv, "Evaluate a model as a designer and executor of multi-agent systems.")
    check(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    out = pathlib.Path(config.out) if config.out else None
    if out:
        out.mkdir(parents=True, exist_ok=True)
    policy = Policy(cli.model_path(config.model), "cuda" if torch.cuda.is_available() else "cpu")
    try:
        rows = asyncio.run(run(config, policy))
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
