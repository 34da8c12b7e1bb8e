"""Tasks: questions, and how an answer is graded.

    questions = load("arithmetic", split="train", seed=0, size=300)
    reward = grade(questions[0], r"... so the answer is \\boxed{42}.")

The default set, `arithmetic`, is a small closed world made from a seed. It has three families of
questions, each with another best design; no design without a condition serves all of them.
`rg:NAME` opens a generator of reasoning-gym with its own scorer, a path opens a JSONL file, and the
published sets are in benchmarks/.

No hint about the answer ("an integer 0..999") is added to any prompt (trap 15).

Test: `pytest tests/test_tasks.py`. Read next: eval.py.
"""

import hashlib
import itertools
import os
import pathlib
import random
import re
from dataclasses import replace

from data_types import Question
from lib.answers import last_boxed
from lib.cli import log
from lib.errors import UserError
from lib.files import read_jsonl

# ---------------------------------------------------------------------- the default set: arithmetic
#
# compute  a product of two-digit numbers plus or minus a third. A small network can't; Python can.
# recall   two facts that only the weights hold. Closed book: an agent with a tool is refused.
#          Several tries and a vote help at temperature 1.
# relay    who keeps what (one fact), then its code (another). One agent has to find the things, a
#          second to read their codes, and the first one's reply is all that the second sees.

THINGS = (
    *("river", "oak", "stone", "cloud", "lamp", "bread", "horse", "glass", "chair", "flute"),
    *("wheel", "rope", "spoon", "apple", "boat", "tower", "knife", "coin", "drum", "plum"),
)
KEEPERS = (
    *("Ada", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ivo", "Jill"),
    *("Kai", "Lea", "Max", "Nora", "Otto", "Pia", "Quinn", "Rosa", "Sam", "Tess"),
)
CODES = dict(zip(THINGS, random.Random("codes").sample(range(10, 100), len(THINGS))))
KEEPS = dict(zip(KEEPERS, random.Random("keeps").sample(THINGS, len(KEEPERS))))


def make_compute(rng: random.Random) -> tuple[str, int]:
    a, b, c = rng.randint(12, 99), rng.randint(12, 99), rng.randint(100, 999)
    forms = [
        (f"{a} * {b} + {c}", a * b + c),
        (f"{c} + {a} * {b}", a * b + c),
        (f"{a} * {b} - {c}", a * b - c),
    ]
    text, value = rng.choice(forms)
    return f"What is {text}?", value


def make_recall(rng: random.Random) -> tuple[str, str]:
    x, y = rng.sample(THINGS, 2)
    return f"Which number do the codes of {x} and {y} make?", f"{CODES[x]}{CODES[y]}"


def make_relay(rng: random.Random) -> tuple[str, str]:
    x, y = rng.sample(KEEPERS, 2)
    answer = f"{CODES[KEEPS[x]]}{CODES[KEEPS[y]]}"
    return f"Which number do the codes of what {x} and {y} keep make?", answer


FAMILIES = {  # how a question is made, and the tools that it offers
    "compute": (make_compute, ("python",)),
    "recall": (make_recall, ()),
    "relay": (make_relay, ()),
}
MIX = ("compute", "recall", "compute", "relay")  # half of the questions offer a tool


def held_out(prompt: str) -> bool:
    """Which side of the split a question is on, by its text alone: it can't be on both.

    >>> held_out("What is 12 * 13 + 100?") == held_out("What is 12 * 13 + 100?")
    True
    """
    return hashlib.sha256(prompt.encode()).digest()[0] % 4 == 0


def arithmetic(split: str, seed: int, size: int, mix=MIX) -> list[Question]:
    """`size` different questions, the families in turn as in `mix`; fewer if one is used up.

    split: "train" or "heldout".
    """
    rng = random.Random(f"arithmetic {split} {seed}")
    seen = set()
    questions = []
    for family in itertools.islice(itertools.cycle(mix), size):
        make, tools = FAMILIES[family]
        for _ in range(10_000):
            prompt, answer = make(rng)
            if prompt not in seen and held_out(prompt) == (split == "heldout"):
                break
        else:  # used up: stop here, so that the families stay balanced
            return questions
        seen.add(prompt)
        questions.append(
            Question(
                id=f"{family}-{len(questions)}",
                prompt=prompt,
                answer=str(answer),
                family=family,
                tools=tools,
            )
        )
    return questions


def grade(question: Question, text: str) -> float:
    """The reward of an answer, 0.0 to 1.0. For code questions see `grade_code_answer`."""
    from benchmarks.math_grading import grade_math, grade_rg

    return grade_rg(question, text) if question.kind == "rg" else grade_math(question.answer, text)


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
NAMES = ("arithmetic", *BENCHMARKS)
MIXTURES = {"paper": "polaris:0.5,apps@introductory:0.35,codecontests:0.15"}
TRAINING_TESTS = 20  # tests of a code question in training; an evaluation runs all
MAX_GENERATED = 3000  # questions of a reasoning-gym generator


def load(spec: str, split="heldout", seed=0, size=1000, data_dir: str | None = None):
    """The questions of `spec`, in an order in which every stretch mixes the sets in proportion.

    Args:
        spec: names or paths, comma-separated, each with an optional weight
            (`gsm8k:0.7,arithmetic:0.3`): its share of the training questions, for which those of a
            small set are repeated. Without any weight, sets are as large as they are. -NAME drops
            questions that are also in the set NAME.
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
    return interleave(sets)


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
    for name, mixture in MIXTURES.items():
        spec = re.sub(rf"(?<![^,]){name}(?![^,])", mixture, spec)
    for item in spec.split(","):
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
        is_known = name.split("@")[0] in NAMES or is_file
        in_generators = name.startswith("rg:") or (in_generators and not is_known)
        if in_generators and not name.startswith("rg:"):
            name = "rg:" + name
        included.append((name, weight))
    if not included:
        raise UserError("--tasks is empty: name a set, for instance arithmetic")
    return included, excluded


def load_set(name: str, split: str, seed: int, size: int, data_dir: str | None) -> list[Question]:
    if name == "arithmetic":
        return arithmetic("train" if split == "train" else "heldout", seed, size)
    if name.startswith("rg:"):
        return load_generator(name[3:], split, seed, min(size, MAX_GENERATED))
    if name.split("@")[0] in BENCHMARKS:
        return load_benchmark(name, split, seed, size, data_dir)
    if not (os.path.exists(name) or name.endswith(".jsonl") or os.sep in name):
        names = ", ".join(NAMES)
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


def questions_of_step(questions: list[Question], Q: int, step: int, seed: int) -> list[Question]:
    """Q questions. Each pass through the set has a seeded order, the same in every run."""
    chosen = []
    for index in range(step * Q, (step + 1) * Q):
        epoch, place = divmod(index, len(questions))
        if not chosen or place == 0:
            order = shuffled(questions, f"epoch {seed} {epoch}")
        chosen.append(order[place])
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
