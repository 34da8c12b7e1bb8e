"""Tasks: a question and how its answer is graded.

    questions = load("arithmetic", split="train", seed=0, size=300)
    reward = grade(questions[0], r"... so the answer is \\boxed{42}.")

The default set, `arithmetic`, is a small closed world made from a seed: three families of questions such that no single
design can serve them all, by their nature (see the section below). `rg:NAME[,NAME]` opens any reasoning-gym generator with
its own scorer, a path opens a JSONL file, and the published sets, math and code, are benchmarks.py's.

Grading is grading.py's. No hint about the answer ("an integer 0..999") is added to any prompt.
Test: `pytest tests/test_tasks.py`. Read next: grading.py.
"""
import hashlib
import itertools
import json
import logging
import os
import pathlib
import random
import re
from dataclasses import dataclass, field, replace

from grading import REFUSED, canonical_integer, final_answer, grade, grade_math, last_boxed  # noqa: F401 - the public names
from programs import Suite, grade_code, last_program  # noqa: F401


log = logging.getLogger("metaagent")


class BadInput(ValueError):
    """Something that the user gave is wrong: shown as one line, exit code 2."""


@dataclass(frozen=True)
class Question:
    """A question. `answer` (the gold) stays in the parent process: no prompt and no sandbox ever sees it."""
    id: str
    prompt: str
    answer: str
    kind: str = "math"  # "math"; "code", judged by `tests`; or "rg", with the generator's own scorer
    family: str = ""
    tools: tuple[str, ...] = ("python",)  # what its agents may use; () is a closed-book question
    entry: dict | None = field(default=None, repr=False)  # reasoning-gym's own row
    tests: Suite | None = field(default=None, repr=False)


# ------------------------------------------------------------------------------------------- the default set: arithmetic
# compute  a product of two-digit numbers plus or minus a third: a small network cannot, Python can.
# recall   two facts that only the weights hold, closed book: an agent with a tool is refused; several tries and a vote help.
# relay    who keeps what (one fact), then its code (another): one agent must find the things, a second must read their codes.
#          The first reply is all that the second sees. Closed book, too.

THINGS = ("river", "oak", "stone", "cloud", "lamp", "bread", "horse", "glass", "chair", "flute", "wheel", "rope",
          "spoon", "apple", "boat", "tower", "knife", "coin", "drum", "plum")
KEEPERS = ("Ada", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ivo", "Jill", "Kai", "Lea",
           "Max", "Nora", "Otto", "Pia", "Quinn", "Rosa", "Sam", "Tess")
CODES = dict(zip(THINGS, random.Random("codes").sample(range(10, 100), len(THINGS))))
KEEPS = dict(zip(KEEPERS, random.Random("keeps").sample(THINGS, len(KEEPERS))))


def _compute(rng):
    a, b, c = rng.randint(12, 99), rng.randint(12, 99), rng.randint(100, 999)
    text, value = rng.choice([(f"{a} * {b} + {c}", a * b + c), (f"{c} + {a} * {b}", a * b + c), (f"{a} * {b} - {c}", a * b - c)])
    return f"What is {text}?", value


def _recall(rng):
    x, y = rng.sample(THINGS, 2)
    return f"Which number do the codes of {x} and {y} make?", f"{CODES[x]}{CODES[y]}"


def _relay(rng):
    x, y = rng.sample(KEEPERS, 2)
    return f"Which number do the codes of what {x} and {y} keep make?", f"{CODES[KEEPS[x]]}{CODES[KEEPS[y]]}"


FAMILIES = {"compute": (_compute, ("python",)), "recall": (_recall, ()), "relay": (_relay, ())}
MIX = ("compute", "recall", "compute", "relay")  # half of the questions offer a tool, half are closed book


def held_out(prompt: str) -> bool:
    """Which side of the split a question is on, by its text alone: a question can never be on both sides.

    >>> held_out("What is 12 * 13 + 100?") == held_out("What is 12 * 13 + 100?")
    True
    """
    return hashlib.sha256(prompt.encode()).digest()[0] % 4 == 0


def arithmetic(split: str, seed: int, size: int, mix=MIX) -> list[Question]:
    """`size` different questions, the families in turn, as in `mix`. split: "train" or "heldout"."""
    rng, seen, questions = random.Random(f"arithmetic {split} {seed}"), set(), []
    for family in itertools.islice(itertools.cycle(mix), size):
        make, tools = FAMILIES[family]
        for _ in range(10_000):
            prompt, answer = make(rng)
            if prompt not in seen and held_out(prompt) == (split == "heldout"):
                break
        else:  # a family is used up: stop here, so that the families stay balanced
            break
        seen.add(prompt)
        questions.append(Question(f"{family}-{len(questions)}", prompt, str(answer), "math", family, tools))
    return questions


# ---------------------------------------------------------------------------------------------------------- other sets

BENCHMARKS = ("aime24", "aime25", "olympiadbench", "math500", "gsm8k", "polaris", "dapo",  # benchmarks.py
              "humaneval", "mbpp", "livecodebench", "apps", "codecontests")
NAMES = ("arithmetic", *BENCHMARKS)
TRAINING_TESTS = 20  # of a code question: a training reward needs no hundred tests. An evaluation runs all
MIXTURES = {"paper": "polaris:0.5,apps@introductory:0.35,codecontests:0.15"}


def load(spec: str, split: str = "heldout", seed: int = 0, size: int = 1000, data_dir: str | None = None) -> list[Question]:
    """The questions of `spec`: names or paths, comma-separated, each with an optional weight (`gsm8k:0.7,arithmetic:0.3`).

    split: "train" or "heldout" (disjoint by the text of the question), or "all" (benchmarks as they are).
    size: at most so many questions. The same arguments give the same questions. Raises BadInput.
    """
    parts = parse_spec(spec)
    total = sum(weight for _, weight in parts)
    questions = []
    for name, weight in parts:
        share = max(1, round(size * weight / total))
        found = _load_one(name, split, seed, share, data_dir)
        if not found:
            raise BadInput(f"--tasks {name}: no question is left in split {split!r}")
        questions.append(found[:share])
    return _interleave(questions)


def parse_spec(spec: str) -> list[tuple[str, float]]:
    """
    >>> parse_spec("rg:gcd,leg_counting,gsm8k:0.5")
    [('rg:gcd', 1.0), ('rg:leg_counting', 1.0), ('gsm8k', 0.5)]
    """
    parts, generator = [], False
    for item in filter(None, (part.strip() for part in MIXTURES.get(spec, spec).split(","))):
        name, weight = item, 1.0
        if match := re.fullmatch(r"(.+):(-?\d*\.?\d+)", item):
            name, weight = match[1], float(match[2])
            if weight <= 0:
                raise BadInput(f"--tasks {item}: the weight must be a positive number")
        known = name.split("@")[0] in NAMES or name.endswith(".jsonl") or os.sep in name
        generator = name.startswith("rg:") or (generator and not known)  # rg:a,b is rg:a,rg:b
        parts.append((name if known or name.startswith("rg:") or not generator else "rg:" + name, weight))
    if not parts:
        raise BadInput("--tasks is empty: name a set, for instance arithmetic")
    return parts


def _load_one(name, split, seed, size, data_dir):
    if name == "arithmetic":
        return arithmetic("train" if split == "train" else "heldout", seed, size)
    if name.startswith("rg:"):
        return _reasoning_gym(name[3:], split, seed, size)
    if name.split("@")[0] in BENCHMARKS:
        return _benchmark(name, split, seed, size, data_dir)
    if os.path.exists(name) or name.endswith(".jsonl") or os.sep in name:
        rows = read_jsonl(pathlib.Path(name))
    else:
        raise BadInput(f"--tasks {name}: unknown; one of {', '.join(NAMES)}, rg:GENERATOR, or a path to a .jsonl file")
    questions = [_from_row(row, f"{name}:{number}", name) for number, row in enumerate(rows, 1)]
    unique = _side(list({question.prompt: question for question in questions}.values()), split)
    return random.Random(f"{name} {seed}").sample(unique, min(size, len(unique)))


def _side(questions, split):
    return [question for question in questions if split == "all" or held_out(question.prompt) == (split == "heldout")]


def _benchmark(name, split, seed, size, data_dir):
    """A published set: all of its test questions, or one side of its training questions (of a set without any, of the test questions)."""
    import benchmarks
    source = benchmarks.SOURCES[name.split("@")[0]]
    questions, skipped = benchmarks.read(name, "test" if split == "all" else "train", data_dir, size * (1 if split == "all" else 5), seed)
    if skipped:
        log.info(f"{name}: {len(questions)} questions; rows left out: " + ", ".join(f"{count} {reason}" for reason, count in skipped.most_common()))
    if split == "train" and "train" not in source.splits:
        log.info(f"{name} has no training split: its test questions are trained on")
    if split == "train":
        questions = [replace(question, tests=question.tests and question.tests.capped(TRAINING_TESTS)) for question in questions]
    return _side(questions, split)[:size]


def read_jsonl(path: pathlib.Path, whole_lines: bool = False) -> list[dict]:
    """The rows of a JSONL file. whole_lines: without a last line that has no end. Raises BadInput with the file and the line that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
        lines = (text[:text.rfind("\n") + 1] if whole_lines else text).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error.strerror if isinstance(error, OSError) else 'not a UTF-8 text file'}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        rows.append(parse_row(path, number, line))
    if not rows:
        raise BadInput(f"{path}: the file has no rows")
    return rows


def parse_row(path: pathlib.Path, number: int, line: str) -> dict:
    """The row that a line of a JSONL file holds. Raises BadInput."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}, line {number}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise BadInput(f"{path}, line {number}: a row must be a JSON object")
    return row


def _from_row(row, where, family):
    prompt = next((row[key] for key in ("question", "problem", "prompt") if row.get(key)), None)
    answer = next((row[key] for key in ("final_answer", "answer", "solution") if row.get(key) is not None), None)
    if not isinstance(prompt, str) or answer is None:
        missing = "question (or problem, prompt)" if not isinstance(prompt, str) else "answer (or final_answer)"
        raise BadInput(f"{where}: no column {missing}; the row has {', '.join(sorted(row)) or 'none'}")
    if isinstance(row.get("solution"), str) and answer == row["solution"]:
        answer = last_boxed(answer) or answer  # a worked solution: its box is the answer
    if isinstance(answer, list):
        answer = ",".join(map(str, answer))
    answer = str(answer).split("####")[-1].strip()  # GSM8K keeps the answer behind ####
    family = pathlib.Path(family).stem if family.endswith(".jsonl") else family
    return Question(str(row.get("id", hashlib.sha256(prompt.encode("utf-8", "replace")).hexdigest()[:12])), prompt, answer, "math", family)


def _reasoning_gym(name, split, seed, size):
    import reasoning_gym
    from reasoning_gym.factory import DATASETS
    if name not in DATASETS:
        raise BadInput(f"--tasks rg:{name}: reasoning-gym has no generator of that name")
    if name in REFUSED:
        raise BadInput(f"--tasks rg:{name}: its scorer runs the answer as code; not with answers of a model")
    questions, wanted = {}, split != "train"
    for entry in reasoning_gym.create_dataset(name, seed=seed, size=min(20 * size, 20_000)):
        if held_out(entry["question"]) == wanted and entry["question"] not in questions:
            questions[entry["question"]] = Question(f"{name}-{len(questions)}", entry["question"], str(entry["answer"]), "rg",
                                                    f"rg:{name}", entry=entry | {"generator": name})
        if len(questions) == size:
            break
    return list(questions.values())


def without(questions: list[Question], exclude: str, seed: int = 0, data_dir: str | None = None) -> list[Question]:
    """`questions` without those whose text is, but for small changes, in the evaluation sets of the spec `exclude`."""
    if not exclude:
        return questions
    import benchmarks
    others = benchmarks.Shingles(question.prompt for question in load(exclude, "all", seed, 1 << 30, data_dir))
    kept = [question for question in questions if not benchmarks.overlap(question.prompt, others)]
    log.info(f"--exclude {exclude}: {len(questions) - len(kept)} of {len(questions)} questions dropped")
    if not kept:
        raise BadInput(f"--exclude {exclude}: no question is left")
    return kept


def shuffled(questions: list[Question], seed: str) -> list[Question]:
    """The questions in a random order in which every stretch holds the families in proportion."""
    rng = random.Random(seed)
    parts = [[q for q in questions if q.family == family] for family in dict.fromkeys(q.family for q in questions)]
    return _interleave([rng.sample(part, len(part)) for part in parts])


def _interleave(lists):
    """Merge so that every stretch holds the lists in proportion to their lengths."""
    places = sorted(((i + 0.5) / len(part), number, i) for number, part in enumerate(lists) for i in range(len(part)))
    return [lists[number][i] for _, number, i in places]
