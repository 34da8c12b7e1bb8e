"""Tasks: questions, and how an answer is graded.

    questions = load("registry", split="train", seed=0, size=300)
    reward = grade(questions[0], r"... so the answer is \\boxed{42}.")

The default set, `registry`, is a small closed world made from a seed (tiny/registry.py), as is
`arithmetic` (tiny/arithmetic/world.py). `rg:NAME` opens a generator of reasoning-gym with its own
scorer, a path opens a JSONL file, and the published sets are in benchmarks/.

No hint about the answer ("an integer 0..999") is added to any prompt (trap 15).

Test: `pytest tests/test_tasks.py`. Read next: eval.py.
"""

import asyncio
import hashlib
import itertools
import os
import pathlib
import random
import re
from collections import Counter
from dataclasses import replace

from data_types import Question
from designer import FIXED_DESIGNS
from lib.answers import last_boxed
from lib.cli import log
from lib.errors import UserError
from lib.files import read_jsonl
from lib.split import held_out
from tiny import namesakes, registry
from tiny.arithmetic import world as arithmetic


def grade(question: Question, text: str) -> float:
    """The reward of an answer, 0.0 to 1.0. For code questions see `grade_code_answer`."""
    from benchmarks.math_grading import grade_math, grade_rg

    return grade_rg(question, text) if question.kind == "rg" else grade_math(question.answer, text)


async def reward(question: Question, text: str, sandbox, stop_at_failure: bool = False) -> float:
    """The reward of an answer to any question, 0.0 to 1.0. Raises SandboxError.

    stop_at_failure: after a program's first failed test, the others are left out.
    """
    if question.kind == "code":
        return await grade_code_answer(sandbox, question, text, stop_at_failure)
    # In a thread: checking an expression may take seconds, and nothing else waits for it.
    return await asyncio.to_thread(grade, question, text)


async def grade_code_answer(sandbox, question: Question, text: str, stop_at_failure: bool) -> float:
    """The fraction of the tests that the answer's program passes. Raises SandboxError."""
    from benchmarks.code_grading import grade_program
    from lib.answers import last_program

    return await grade_program(sandbox, question.tests, last_program(text), stop=stop_at_failure)


# ------------------------------------------------------------------------------------- all the sets

BENCHMARKS = (  # benchmarks/datasets.py
    *("aime24", "aime25", "olympiadbench", "math500", "gsm8k", "polaris", "dapo"),
    *("humaneval", "mbpp", "livecodebench", "apps", "codecontests"),
)
# Made from a seed.
WORLDS = {"registry": registry, "namesakes": namesakes, "arithmetic": arithmetic}
MIXTURES = {"paper": "polaris:0.5,apps@introductory:0.35,codecontests:0.15"}
MORE_TOOLS = []  # of a plug-in (lib/plugins.py)
TRAINING_TESTS = 20  # tests of a code question in training; an evaluation runs all
MAX_GENERATED = 3000  # questions of a reasoning-gym generator


def designs_by_hand(spec: str) -> dict:
    """Baselines for the sets of `spec`: scripts, or functions question -> script.

    A world has its own: "conditional" is one script with conditions on the question, "oracle" the
    best design of each question. What the oracle has above a model's own designs is their regret.
    """
    return WORLDS[spec].DESIGNS if spec in WORLDS else FIXED_DESIGNS


def load(spec: str, split="heldout", seed=0, size=1000, data_dir: str | None = None):
    """The questions of `spec`, in an order in which every stretch mixes the sets in proportion.

    Args:
        spec: names or paths, comma-separated, each with an optional weight
            (`gsm8k:0.7,arithmetic:0.3`): its share of the training questions, for which those of a
            small set are repeated. Without any weight, each set gives as many, or all it has. -NAME
            drops questions that are also in the set NAME.
        split: "train" or "heldout" (disjoint by the text of the question), or "all" (benchmarks as
            they are).
        size: max questions. The same arguments give the same questions.

    Raises:
        UserError: an unknown set, a file that can't be read, no question left.
    """
    included, excluded = parse_spec(spec)
    weights = [weight or 1.0 for _, weight in included]
    sets = []
    for (name, _), weight in zip(included, weights):
        share = max(1, round(size * weight / sum(weights)))
        questions = load_set(name, split, seed, share, data_dir)[:share]
        if not questions:
            raise UserError(f"--tasks {name}: no question is left in split {split!r}")
        sets.append(questions)
    for name in excluded:
        sets = without(sets, name, seed, data_dir)
    if split == "train" and any(weight for _, weight in included):
        sets = in_proportion(sets, weights)
    return [with_tools(question) for question in interleave(sets)]


def with_tools(question: Question) -> Question:
    """Every question offers a plug-in's tools."""
    return replace(question, tools=(*question.tools, *MORE_TOOLS))


def in_proportion(sets: list[list], weights: list[float]) -> list[list]:
    """Sets whose lengths are as their weights, by repeating what is too small.

    >>> in_proportion([["a", "b", "c", "d"], ["x"]], [0.5, 0.25])
    [['a', 'b', 'c', 'd'], ['x', 'x']]
    """
    size_of_one = max(len(items) / weight for items, weight in zip(sets, weights))
    lengths = [round(size_of_one * weight) for weight in weights]
    return [list(itertools.islice(itertools.cycle(s), n)) for s, n in zip(sets, lengths)]


def parse_spec(spec: str) -> tuple[list[tuple[str, float | None]], list[str]]:
    """(sets with their weights, sets whose questions are dropped). Raises UserError.

    >>> parse_spec("rg:gcd,leg_counting,gsm8k:0.5,-math500")
    ([('rg:gcd', None), ('rg:leg_counting', None), ('gsm8k', 0.5)], ['math500'])
    """
    included, excluded = [], []
    in_generators = False  # rg:a,b is rg:a,rg:b
    items = []
    for item in spec.split(","):
        items += MIXTURES.get(item.strip(), item).split(",")
    for item in items:
        item = item.strip()
        if not item:
            continue
        if item.startswith("-"):
            excluded.append(item[1:])
            continue
        name, weight = item, None
        if match := re.fullmatch(r"(.+):(-?\d*\.?\d+)", item):
            name, weight = match[1], float(match[2])
        if weight is not None and weight <= 0:
            raise UserError(f"--tasks {item}: the weight must be a positive number")
        is_file = name.endswith(".jsonl") or os.sep in name
        is_known = name.split("@")[0] in (*WORLDS, *BENCHMARKS) or is_file
        in_generators = name.startswith("rg:") or (in_generators and not is_known)
        if in_generators and not name.startswith("rg:"):
            name = "rg:" + name
        included.append((name, weight))
    if not included:
        raise UserError("--tasks is empty: name a set, for instance registry")
    return included, excluded


def load_set(name: str, split: str, seed: int, size: int, data_dir: str | None) -> list[Question]:
    if name in WORLDS:
        side = "train" if split == "train" else "heldout"
        return WORLDS[name].questions(side, seed, size)
    if name.startswith("rg:"):
        return load_generator(name[3:], split, seed, min(size, MAX_GENERATED))
    if name.split("@")[0] in BENCHMARKS:
        return load_benchmark(name, split, seed, size, data_dir)
    if not (os.path.exists(name) or name.endswith(".jsonl") or os.sep in name):
        names = ", ".join((*WORLDS, *BENCHMARKS))
        raise UserError(
            f"--tasks {name}: unknown; one of {names}, rg:GENERATOR, or a path to a .jsonl file"
        )
    questions = {}
    for number, row in enumerate(read_jsonl(pathlib.Path(name)), 1):
        question = question_of_row(row, f"{name}:{number}", name)
        questions[question.prompt] = question
    candidates = side_of(split, list(questions.values()))
    return random.Random(f"{name} {seed}").sample(candidates, min(size, len(candidates)))


def side_of(split: str, questions: list[Question]) -> list[Question]:
    if split == "all":
        return questions
    return [q for q in questions if held_out(q.prompt) == (split == "heldout")]


def question_of_row(row: dict, where: str, family: str) -> Question:
    """A question of a user's file. Raises UserError that names the row and what it lacks."""
    prompt = next((row[key] for key in ("question", "problem", "prompt") if row.get(key)), None)
    answer_keys = ("final_answer", "answer", "solution")
    answer_key = next((key for key in answer_keys if row.get(key) is not None), None)
    columns = ", ".join(sorted(row)) or "none"
    if not isinstance(prompt, str):
        raise UserError(f"{where}: no column question (or problem, prompt); the row has {columns}")
    if answer_key is None:
        raise UserError(f"{where}: no column answer (or final_answer); the row has {columns}")
    answer = row[answer_key]
    if isinstance(answer, str) and answer == row.get("solution"):
        answer = last_boxed(answer) or answer  # a worked solution: its box is the answer
    if isinstance(answer, list):
        answer = ",".join(str(value) for value in answer)
    answer = str(answer).split("####")[-1].strip()  # GSM8K keeps the answer behind ####
    name = hashlib.sha256(prompt.encode("utf-8", "replace")).hexdigest()[:12]
    if family.endswith(".jsonl"):
        family = pathlib.Path(family).stem
    return Question(str(row.get("id", name)), prompt, answer, "math", family)


def load_benchmark(name, split, seed, size, data_dir) -> list[Question]:
    """A published set: all of its test questions, or one side of its training questions.

    A set without a training split gives a side of its test questions.
    """
    from benchmarks import datasets

    source = datasets.SOURCES[name.split("@")[0]]
    if split == "all":
        questions, skipped = datasets.read(name, "test", data_dir, size, seed)
    else:  # a quarter of the training questions is held out
        questions, skipped = datasets.read(name, "train", data_dir, 5 * size, seed)
    if skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.most_common())
        log.info(f"{name}: {len(questions)} questions; rows left out: {reasons}")
    if split == "train":
        if "train" not in source.splits:
            log.info(f"{name} has no training split: its test questions are trained on")
        for i, question in enumerate(questions):
            if question.tests:
                questions[i] = replace(question, tests=question.tests.capped(TRAINING_TESTS))
    return side_of(split, questions)[:size]


def load_generator(name: str, split: str, seed: int, size: int) -> list[Question]:
    """Questions of a reasoning-gym generator."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    from benchmarks.math_grading import REFUSED

    if name not in DATASETS:
        raise UserError(f"--tasks rg:{name}: reasoning-gym has no generator of that name")
    if name in REFUSED:
        raise UserError(f"--tasks rg:{name}: its scorer would run a model's answer as code")
    questions = {}
    for entry in reasoning_gym.create_dataset(name, seed=seed, size=min(20 * size, 20_000)):
        prompt = entry["question"]
        if held_out(prompt) == (split != "train") and prompt not in questions:
            questions[prompt] = Question(
                id=f"{name}-{len(questions)}",
                prompt=prompt,
                answer=str(entry["answer"]),
                kind="rg",
                family=f"rg:{name}",
                entry=entry | {"generator": name},
            )
        if len(questions) == size:
            break
    return list(questions.values())


def without(sets: list[list[Question]], name: str, seed: int, data_dir: str | None):
    """Sets without near-duplicates of the questions of another one. Raises UserError."""
    from benchmarks.datasets import Shingles, overlap

    others = load_set(name, "all", seed, 1 << 30, data_dir)
    shingles = Shingles(question.prompt for question in others)
    left = [[q for q in questions if not overlap(q.prompt, shingles)] for questions in sets]
    num_before, num_left = sum(map(len, sets)), sum(map(len, left))
    log.info(f"-{name}: {num_before - num_left} of {num_before} questions dropped")
    if not all(left):
        raise UserError(f"--tasks -{name}: no question is left of a set")
    return left


def questions_of_step(questions: list[Question], Q: int, step: int, seed) -> list[Question]:
    """Q questions. Each pass through the set has a seeded order, the same in every run.

    A question that comes twice in a step gets another id there, and so samples of its own.
    """
    chosen = []
    for index in range(step * Q, (step + 1) * Q):
        epoch, place = divmod(index, len(questions))
        if not chosen or place == 0:
            order = shuffled(questions, f"epoch {seed} {epoch}")
        chosen.append(order[place])
    seen = Counter()
    for i, question in enumerate(chosen):
        seen[question.id] += 1
        if seen[question.id] > 1:
            chosen[i] = replace(question, id=f"{question.id} again {seen[question.id]}")
    return chosen


def shuffled(questions: list[Question], seed: str) -> list[Question]:
    """A random order in which every stretch holds the families in proportion."""
    rng = random.Random(seed)
    families = {}
    for question in questions:
        families.setdefault(question.family, []).append(question)
    return interleave([rng.sample(members, len(members)) for members in families.values()])


def interleave(lists: list[list]) -> list:
    """Merge so that every stretch holds the lists in proportion to their lengths.

    >>> interleave([["a", "b", "c", "d"], ["x", "y"]])
    ['a', 'x', 'b', 'c', 'y', 'd']
    """
    places = []
    for number, items in enumerate(lists):
        places += [((i + 0.5) / len(items), number, i) for i in range(len(items))]
    return [lists[number][i] for _, number, i in sorted(places)]
