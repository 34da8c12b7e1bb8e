"""Evaluation: sets of questions, baselines at the same budget, one question asked and shown.

    python eval.py --model DIR --tasks gsm8k,aime24 --modes single,self-consistency,fixed,metaagent
    python eval.py --model http://HOST:8000/v1#NAME --tasks livecodebench    a server's model
    python eval.py --model DIR --ask "What is Feki's boss's code?" --html run.html
    python eval.py --model DIR --serve

| mode | what answers | model calls |
|---|---|---|
| single | one agent, without tools | 1 |
| self-consistency | majority of k single agents; k uses up metaagent's tokens | k |
| self-consistency+python | the same, of k agents with the tool | k, and after each tool call |
| fixed | the set's hand-written designs: tasks.designs_by_hand | as written |
| metaagent | the model's own design for each question, executed by the same model | as designed |
| metaagent: price P | the same, where the designer is told a price: --prices 0,2,5 | as designed |

A code question is solved when its program passes all tests. Accuracy is the mean over --samples
answers. Tokens are sampled tokens, of the design and of all calls; what the model reads, every call
from its beginning, is counted as prompt tokens. A design is new if the model's cold start did not
show its shape (lib/shapes.py).
Every answer has a seed of its own, from the question's id: the numbers do not depend on the batch
or on the order of the questions, but for rounding. With --out, answers are written as they come,
and the same command goes on where it was stopped.

Test: `pytest tests/test_eval.py`. Read next: sft.py.
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
from typing import Callable, Literal

from tqdm import tqdm

import credit
import tasks
from config import is_server
from data_types import Budget, Question, Tree
from designer import FIXED_DESIGNS
from executor import Runtime
from lib import cli, plugins, trained_on
from lib.cli import log
from lib.errors import InfrastructureError, UserError
from lib.files import atomic_write
from lib.metrics import eval_score, unique_name
from lib.model_check import open_to_sample
from lib.plots import draw_front
from lib.prices import at_price, front, name_at
from lib.replay import replay_calls, without_agents
from lib.shapes import read_shapes
from lib.statistics import Result, record, summarise, table
from lib.votes import read_answers
from rollout import Rollout, stack_rewards
from sandbox import Sandbox

VOTERS = {"self-consistency": "single", "self-consistency+python": "coder"}  # mode -> its voters
MODES = ("single", *VOTERS, "fixed", "metaagent")
PORTION = 64  # questions that are answered at the same time


@dataclass(frozen=True)
class Config:
    # The model
    model: str = "tiny"
    """Folder in Hugging Face format, Hub id, or URL of a server with the OpenAI chat API, with
    #NAME if it has several models; its key: OPENAI_API_KEY."""
    designer: str | None = None  # another model for the designer role, or a URL
    executor: str | None = None  # the same for the executor role
    engine: Literal["hf", "vllm"] = "hf"  # what samples from --model, if it is no server
    dtype: Literal["auto", "bfloat16", "float32", "float64"] = "auto"
    """Precision of the model. auto: bfloat16 on a GPU, else float32."""
    gpu_memory: float = 0.8  # share of the GPU's memory that vllm takes

    # Sets of questions
    tasks: str = "registry"  # sets: names, rg:GENERATOR or paths to .jsonl files
    modes: str = "single,self-consistency,fixed,metaagent"  # who answers
    samples: int = 1  # answers per question
    prices: str = "0"
    """Prices of a thousand tokens, in rewards, that metaagent's designer is told, one after the
    other: 0,2,5. More than one gives the front of accuracy against tokens."""
    vote_tokens: float = 0.0
    """Sampled tokens per question for self-consistency; 0: as many as metaagent used."""
    limit: int = 100  # max questions per set
    heldout: bool = False  # ask only the side of each set that training leaves out
    data_dir: str | None = None  # folder with local files of the published sets
    plugin: str | None = None  # Python file of your own: questions, tools, blocks, prompt, reward
    out: str | None = None  # folder for results.json and results.md

    # One question
    ask: str | None = None  # question to ask and show
    gold: str = ""  # right answer of --ask, if known: then rewards and advantages are shown
    designs: int = 1  # M, designs for --ask
    executions: int = 1  # N, executions per design for --ask
    replays: int = 0
    """Replays of each execution for --ask with --gold: in each, one call is drawn again, which
    shows what it is worth. The page also shows each design without each of its agents."""
    html: str | None = None  # file for the run of --ask as a page
    serve: bool = False  # answer questions in a browser, on this machine only
    port: int = 8642  # port for --serve

    # Budget
    temperature: float = 1.0  # sampling temperature; 1 is what was trained, 0 is greedy
    design_tokens: int = 1024  # max new tokens per design
    reply_tokens: int = 1024  # max new tokens per agent reply
    max_calls: int = 16  # max completions per execution
    max_length: int = 0  # max tokens of a prompt and its completion; 0: the model's own limit
    sandbox: Literal["auto", "namespaces", "landlock", "none"] = "auto"
    """Isolation of scripts and tools. auto: the best that works here, but never none."""
    seed: int = 0  # random seed for questions and sampling
    skip_check: bool = False  # no check that sampler and model agree


async def majority(rollout: Rollout, question: Question, executions) -> str | None:
    """The reply with the most common answer, the first of them on a tie; None without any answer.

    Which answers count as one: lib/votes.py.
    """
    replies = [execution.answer for execution in executions if execution.answer]
    _, groups = await read_answers(rollout.runtime.sandbox, question, replies)
    counts = Counter(group for group in groups if group)
    if not counts:
        return None
    return replies[groups.index(counts.most_common(1)[0][0])]


async def record_votes(rollout: Rollout, tree: Tree) -> dict:
    """The record of self-consistency: M votes, each over k samples of one agent."""
    scores = []
    votes = record(tree)
    for executions in tree.executions:
        if not any(execution.valid for execution in executions):
            continue
        try:
            reply = await majority(rollout, tree.question, executions)
            reward = await rollout.reward_of(tree.question, reply) if reply else 0.0
        except InfrastructureError as error:
            votes["infra_errors"] += 1
            votes["detail"] = str(error)
        else:
            scores.append(eval_score(tree.question, reward))
    k = len(tree.executions[0])
    for cost in ("calls", "tokens", "prompt_tokens"):  # a vote costs k samples
        known = [value for value in votes[cost] if value is not None]
        votes[cost] = [k * sum(known) / len(known) if known else None] * len(scores)
    votes["scores"] = scores
    votes["valid"] = [True] * len(scores)
    votes["structures"] = ["vote"] * len(scores)
    votes["shapes"] = votes["shapes"][:1] * len(scores)
    return votes


class Answers:
    """The records of answered questions, in a file from which a stopped evaluation goes on."""

    def __init__(self, path: pathlib.Path | None = None, shown: frozenset | None = None):
        self.path = path
        self.shown = shown  # shapes of designs in the model's cold start
        self.records = {}
        if path is None or not path.exists():
            return
        lines = path.read_text().splitlines(keepends=True)
        complete = [line for line in lines if line.endswith("\n")]  # the last may be cut off
        for line in complete:
            row = json.loads(line)
            self.records[row["tasks"], row["mode"], row["question"]] = row
        if complete != lines:
            atomic_write(path, "".join(complete))

    def add(self, name: str, mode: str, row: dict) -> None:
        row = {"tasks": name, "mode": mode, **row}
        self.records[name, mode, row["question"]] = row
        if self.path:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def get(self, name: str, mode: str, question: Question) -> dict | None:
        """The record of a question, if all its answers are there."""
        row = self.records.get((name, mode, unique_name(question)))
        if row is None or row["infra_errors"]:
            return None
        return row if "shapes" in row else None  # an older version kept less of an answer

    def summary(self, name: str, mode: str, questions: list[Question]) -> Result:
        rows = [self.records[name, mode, unique_name(question)] for question in questions]
        return summarise(name, mode, rows, self.shown)


class Evaluation:
    """Every mode on the same questions of one set."""

    def __init__(self, rollout: Rollout, name: str, questions, samples, seed, answers: Answers):
        self.rollout = rollout
        self.name = name
        self.questions = questions
        self.samples = samples
        self.seed = seed
        self.answers = answers
        self.results: dict[str, Result] = {}

    async def run(
        self, modes: list[str], vote_tokens: float, progress: Callable, prices=(0.0,)
    ) -> list[Result]:
        """The results in the order of `modes`."""
        votes = [mode for mode in modes if mode in VOTERS]
        prices = prices if "metaagent" in modes else (0.0,)
        # Self-consistency's k is counted by metaagent's tokens, even if nobody asked to see that.
        if "metaagent" in modes or (votes and not vote_tokens):
            for price in prices:
                await self.answer(name_at(price), None, progress, price=price)
        alone = ["single"] if "single" in modes else []
        for name in dict.fromkeys([*alone, *(VOTERS[mode] for mode in votes)]):
            await self.answer(name, FIXED_DESIGNS[name], progress)
        if "fixed" in modes:
            for name, script in tasks.designs_by_hand(self.name).items():
                await self.answer(f"fixed: {name}", script, progress)
        for mode in votes:
            voter = VOTERS[mode]
            budget = vote_tokens or self.results[name_at(prices[0])].tokens
            k = max(1, round(budget / max(1.0, self.results[voter].tokens)))
            await self.answer(f"{mode} (k={k})", FIXED_DESIGNS[voter], progress, num_votes=k)

        ordered = []
        for mode in modes:
            for name, result in self.results.items():
                if re.split(r":| \(", name)[0] == mode:
                    ordered.append(result)
        return ordered

    async def answer(
        self, mode: str, script, progress: Callable, num_votes: int = 1, price: float = 0.0
    ) -> None:
        """Answer in portions, so that little is lost when the evaluation is stopped."""
        todo = [q for q in self.questions if self.answers.get(self.name, mode, q) is None]
        progress(len(self.questions) - len(todo))

        def on_tree(tree: Tree) -> None:
            progress(1)
            if num_votes == 1:
                self.answers.add(self.name, mode, record(tree))

        for start in range(0, len(todo), PORTION):
            trees = await self.rollout.rollout(
                at_price(todo[start : start + PORTION], price),
                num_designs=self.samples,
                num_executions=num_votes,
                seed=(*self.seed, mode),
                fixed_design=script,
                on_tree=on_tree,
            )
            if num_votes > 1:
                for tree in trees:
                    self.answers.add(self.name, mode, await record_votes(self.rollout, tree))
        self.results[mode] = self.answers.summary(self.name, mode, self.questions)


async def evaluate(
    rollout: Rollout,
    name: str,
    questions: list[Question],
    modes,
    samples: int = 1,
    seed: tuple = (0,),
    answers: Answers | None = None,
    vote_tokens: float = 0.0,
    prices: tuple[float, ...] = (0.0,),
) -> list[Result]:
    """Every mode on the same questions.

    Args:
        samples: answers per question and mode.
        vote_tokens: tokens per question for self-consistency; 0: as many as metaagent used.
        prices: of a thousand tokens, for metaagent, which answers at each.
    """
    evaluation = Evaluation(rollout, name, questions, samples, seed, answers or Answers())
    with tqdm(desc=name, unit=" answers", mininterval=1, leave=False, disable=None) as bar:
        return await evaluation.run(list(modes), vote_tokens, bar.update, prices)


async def run(config: Config, sets: list[tuple[str, list[Question]]]) -> list[Result]:
    """Evaluate, ask or serve. Returns the results of an evaluation. sets: name, questions."""
    shared = None  # what plays the roles that have no model of their own
    if config.designer is None or config.executor is None:
        shared = await load(config, config.model, config.engine)
    executor = await load(config, config.executor) if config.executor else shared
    designer = await load(config, config.designer) if config.designer else shared

    budget = Budget(calls=config.max_calls, reply_tokens=config.reply_tokens)
    results = []
    async with Sandbox(config.sandbox) as sandbox:
        rollout = Rollout(
            Runtime(*executor, sandbox, budget, config.temperature),
            designer=designer,
            design_tokens=config.design_tokens,
            stop_at_failure=config.ask is None,
        )
        if config.serve:
            from viewer.serve import Server

            await Server(rollout, config).run()
        if config.ask is not None:
            await ask(config, rollout)
            return []
        path = pathlib.Path(config.out) / "answers.jsonl" if config.out else None
        answers = Answers(path, shown=read_shapes(config.designer or config.model))
        for name, questions in sets:
            results += await evaluate(
                rollout,
                name,
                questions,
                config.modes.split(","),
                config.samples,
                seed=(config.seed, name),
                answers=answers,
                vote_tokens=config.vote_tokens,
                prices=parse_prices(config.prices),
            )
    return results


async def load(config: Config, model: str, kind: str = "hf") -> tuple:
    """(engine, policy) of a model. A server is both. Raises UserError."""
    return await open_to_sample(
        model, kind, config.dtype, config.max_length, config.gpu_memory, config.skip_check
    )


async def ask(config: Config, rollout: Rollout) -> None:
    """Ask one question and show its tree: in the terminal, and as a page with --html."""
    from viewer import pages

    question = tasks.with_tools(Question("asked", config.ask, config.gold))
    seed = (config.seed, "ask")
    (tree,) = await rollout.rollout([question], config.designs, config.executions, seed)
    advantages, replays_M_N, without_M = (None, None), {}, []
    if config.gold:
        rewards, valid = stack_rewards([tree])
        advantages = (
            credit.designer_advantages(rewards, valid)[0],
            credit.executor_advantages(rewards, valid, group="question")[0],
        )
    if config.replays:
        replays = await replay_calls([tree], rollout, seed, config.replays)
        replays_M_N = {place[1:]: others for place, others in replays.items()}
        without_M = await without_agents(tree, rollout, seed)
    policies = rollout.runtime.policy, rollout.designer[1]
    episode = pages.episode(None, tree, *advantages, *policies, replays_M_N, without_M)
    log.info(pages.as_text(episode, lines=sys.stdout.isatty()))
    if config.html:
        atomic_write(pathlib.Path(config.html), pages.run_page(episode))


def load_sets(config: Config) -> list[tuple[str, list[Question]]]:
    """(name, questions) of each set; generated ones show their held-out side. Raises UserError.

    Refuses a set with questions that one of the models was trained on.
    """
    known = trained_on.read([config.model, config.designer, config.executor])
    sets = []
    included, excluded = tasks.parse_spec(config.tasks)
    if excluded:
        raise UserError(f"--tasks -{excluded[0]}: an evaluation drops no questions")
    for name, _ in included:
        is_generated = name in tasks.WORLDS or name.startswith("rg:")
        split = "heldout" if is_generated or config.heldout else "all"
        questions = tasks.load(name, split, config.seed, config.limit, config.data_dir)
        num_known = sum(trained_on.hash_of(question.prompt) in known for question in questions)
        if num_known:
            raise UserError(
                f"--tasks {name}: the model was trained on {num_known} of these {len(questions)} "
                "questions; --heldout asks the side that training leaves out"
            )
        sets.append((name, questions))
    return sets


def parse_prices(text: str) -> tuple[float, ...]:
    """Raises UserError.

    >>> parse_prices("0,2.5")
    (0.0, 2.5)
    """
    try:
        prices = tuple(float(price) for price in text.split(","))
    except ValueError:
        prices = (math.nan,)
    if not all(0 <= price < math.inf for price in prices):
        raise UserError(f"--prices {text}: has to be numbers, 0 or more, such as 0,2,5")
    return tuple(dict.fromkeys(prices))


def check(config: Config) -> None:
    """Refuse what can't work, before anything is loaded. Raises UserError."""
    unknown = sorted(set(config.modes.split(",")) - set(MODES))
    if unknown:
        raise UserError(f"--modes {','.join(unknown)}: unknown; any of {', '.join(MODES)}")
    cli.check_at_least(
        config, 1, "samples limit max_calls design_tokens reply_tokens designs executions"
    )
    cli.check_at_least(config, 0, "vote_tokens temperature replays")
    if config.replays and not (config.ask and config.gold):
        raise UserError("--replays needs --ask and --gold: credit is a difference in reward")
    for model in (config.designer, config.executor):
        if config.engine == "vllm" and model is not None and not is_server(model):
            raise UserError("--engine vllm samples --model alone: leave out --designer, --executor")
    if config.vote_tokens == math.inf:
        raise UserError("--vote-tokens inf: must be a finite number")
    if config.ask is not None and not config.ask.strip():
        raise UserError("--ask: the question is empty")
    if re.search("[\ud800-\udfff]", (config.ask or "") + config.gold):
        raise UserError("--ask, --gold: not a text in UTF-8")
    if config.html is not None:
        if config.ask is None:
            raise UserError("--html needs --ask")
        path = pathlib.Path(config.html)
        if not path.name or path.is_dir() or not path.parent.is_dir():
            raise UserError(f"--html {config.html!r}: has to be a file in a folder that exists")
    if config.serve and config.ask is not None:
        raise UserError("--serve, --ask: one or the other")
    if not 0 <= config.port < 1 << 16:
        raise UserError(f"--port {config.port}: a number from 0 (any free one) to 65535")
    if parse_prices(config.prices) != (0.0,) and "metaagent" not in config.modes.split(","):
        raise UserError(
            f"--prices {config.prices}: only metaagent is told a price; add it to --modes"
        )


def weights_hash(model: str) -> str:
    """A hash of a local file, or of a folder's weights: a checkpoint keeps its name as it learns.

    A model that is elsewhere has only its name.
    """
    place = pathlib.Path(cli.model_path(model))
    files = [place] if place.is_file() else []
    if place.is_dir():
        files = sorted([*place.glob("*.safetensors"), *place.glob("*.bin")])
    total = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


# Flags that do not change the answers to a question.
FREE_FLAGS = (
    "out sandbox gpu_memory limit heldout modes tasks data_dir prices "
    "ask gold designs executions replays html serve port"
).split()


def open_folder(config: Config, out: pathlib.Path) -> None:
    """The folder of results. What is there has to be of the same evaluation. Raises UserError."""

    def settings(flags: Config) -> dict:
        return {name: value for name, value in asdict(flags).items() if name not in FREE_FLAGS}

    files = config.model, config.designer, config.executor, config.plugin
    weights = {"weights": [weights_hash(name) for name in files if name]}
    wanted = settings(config) | weights
    path = out / "config.json"
    if path.exists():
        # A flag that is newer than the folder had its default there; older ones may be gone.
        old = json.loads(path.read_text())
        old = {name: value for name, value in old.items() if name in wanted}
        saved = settings(Config()) | weights | old
        if saved != wanted:
            raise UserError(
                f"--out {out}: holds an evaluation with other settings or weights ({path}); "
                "name another folder"
            )
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(wanted, indent=1) + "\n")


def main(argv: list[str]) -> None:
    config = cli.flags(Config, argv, "Evaluate a model as designer and executor of MAS.")
    plugins.load(config.plugin)
    check(config)
    is_evaluation = config.ask is None and not config.serve
    sets = load_sets(config) if is_evaluation else []
    out = pathlib.Path(config.out) if config.out else None
    if out:
        open_folder(config, out)
    try:
        results = asyncio.run(run(config, sets))
    except InfrastructureError as error:
        raise UserError(str(error)) from None
    if not results:
        return
    text = table(results)
    has_front = len(parse_prices(config.prices)) > 1
    if has_front:
        text += "\n\n" + front(results)
    if out:
        rows = {"config": asdict(config), "results": [asdict(result) for result in results]}
        atomic_write(out / "results.md", text + "\n")
        atomic_write(out / "results.json", json.dumps(rows, indent=1))
        if has_front:
            draw_front(results, out / "front.png")
    log.info(text)


if __name__ == "__main__":
    cli.command(main)
