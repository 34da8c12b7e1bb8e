r"""Math grading: whether a reply's answer is right.

    grade_math("42", r"... so it is \boxed{42}")      1.0

The answer is in the last \boxed, never a number in prose. Integers are compared exactly. Everything
else goes to math-verify, in a worker process that can be killed. There is no numeric tolerance
(trap 7: 703 is not 700). Questions of reasoning-gym are graded by its own scorers.

Test: `pytest tests/test_math_grading.py`. Read next: math_worker.py.
"""

import atexit
import json
import pathlib
import re
import select
import subprocess
import sys
import threading

from lib.answers import final_answer
from lib.errors import SandboxError

WORKER = pathlib.Path(__file__).with_name("math_worker.py")
MAX_ANSWER_CHARS = 2000  # or twice as many as the gold answer has
CHECK_SECONDS = 8.0  # then the worker is killed
START_SECONDS = 60.0  # the import of sympy is not part of a check

# Scorers of reasoning-gym that hand the answer to an evaluator of Python: only plain answers pass.
EVALUATED = frozenset(
    {"string_insertion", "spiral_matrix", "binary_matrix", "n_queens", "puzzle24", "countdown"}
)
# Scorers that hand it to sympy, which runs what it reads. Plain answers are not enough there: these
# generators are refused.
REFUSED = frozenset({"simple_integration", "intermediate_integration", "polynomial_multiplication"})

# A unit after a number. "or 6", "million" and "i" are no units.
UNIT = re.compile(
    r"\\(?:text|mbox|textnormal|mathrm)"
    r"\{(?!\s*(?:or|and|[ei]|[a-z]*(?:hundred|thousand|illion)s?)\b)[^{}\d]*\}(\^\{?\d\}?)?\s*$"
)
# Where the gold is an integer: a calculation that is not carried out, a hedge or a per cent is not
# the answer, though it may equal it.
UNFINISHED = re.compile(
    r"[+*/=%]|\\(times|cdot|div|approx|frac|dfrac|tfrac|sum|prod)|\d\s*-"
    r"|\\(?:mathrm|text)\{\s*[ei]\s*\}|\b(or|and|maybe|hundred|thousand|[a-z]*illion)\b|\d\s*!"
)


def canonical_integer(text: str) -> str | None:
    r"""The integer that a LaTeX text writes, as plain digits; None if it is not one.

    >>> canonical_integer(r"32,\!349"), canonical_integer("073"), canonical_integer("1,2")
    ('32349', '73', None)
    >>> canonical_integer(r"125\text{ miles}")
    '125'
    """
    text = UNIT.sub("", text.strip().strip("$").strip())
    text = text.replace("\\!", "").replace("\\$", "").replace("{,}", ",").strip()
    text = re.sub(r"(?<=\d)(?:\\[,; ]|~)(?=\d{3}(?!\d))", ",", text)  # thousands by a thin space
    text = re.sub(r"\^\{?\\circ\}?$|\.0*$", "", text)
    if not re.fullmatch(r"[+-]?(\d+|\d{1,3}(,\d{3})+)", text):
        return None
    digits = text.replace(",", "").lstrip("+-").lstrip("0") or "0"
    is_negative = text[0] == "-" and digits != "0"
    return "-" + digits if is_negative else digits


def grade_math(gold: str, text: str) -> float:
    r"""1.0 if the answer that `text` commits to equals `gold`, else 0.0.

    Never raises on any text; takes at most 10 s.

    >>> grade_math("700", r"\boxed{703}"), grade_math("42", r"\boxed{42}, 17, \boxed{42}")
    (0.0, 1.0)
    """
    answer = final_answer(text)
    return 0.0 if answer is None else float(is_right(gold, answer, _grader))


def same_answer(one: str, other: str) -> bool:
    r"""Whether `other` would be right if `one` were the gold: for votes.

    >>> same_answer("1,000", "1000."), same_answer("0.5", "0.51")
    (True, False)
    """
    return one == other or is_right(one, other, _voter)


def is_right(gold: str, answer: str, worker: "MathWorker") -> bool:
    gold = gold.strip()
    if len(answer) > max(MAX_ANSWER_CHARS, 2 * len(gold)):
        return False
    if "%" in gold:  # 28 and 28% are the same only where the gold is a percentage
        gold = re.sub(r"\\?%", "", gold)
        answer = re.sub(r"\\?%", "", answer)
    gold_integer = canonical_integer(gold)
    if gold_integer is not None:
        answer_integer = canonical_integer(answer)
        if answer_integer is not None:
            return answer_integer == gold_integer
        without_name = re.sub(r"^\s*[a-zA-Z]\w*\s*=", "", answer)
        if not re.search(r"[\d\\]", answer) or UNFINISHED.search(without_name):
            return False
    return worker.check(plain_latex(gold), plain_latex(answer))


def plain_latex(latex: str) -> str:
    """`latex` without what math-verify reads wrongly: an upright e, a second kind of box."""
    latex = re.sub(r"\\(?:mathrm|text)\{\s*e\s*\}", "e", latex)
    return latex.replace("\\fbox", "\\boxed")


def grade_rg(question, text: str) -> float:
    """The score of reasoning-gym's own scorer, 0.0 to 1.0."""
    import reasoning_gym

    answer = final_answer(text)
    if answer is None:
        return 0.0
    generator = question.entry["generator"]
    if generator in EVALUATED and not is_plain(answer):
        return 0.0
    entry = {key: value for key, value in question.entry.items() if key != "generator"}
    try:
        return float(reasoning_gym.get_score_answer_fn(generator)(answer, entry))
    except Exception:  # boundary: some scorers raise anything at an answer that they don't expect
        return 0.0


def is_plain(answer: str) -> bool:
    """A list of literals, or arithmetic without powers: nothing that could harm an evaluator.

    >>> is_plain("(3 + 4) * 12"), is_plain("['a', 'b']"), is_plain("__import__('os')")
    (True, True, False)
    >>> is_plain("9**9**9"), is_plain("[0]*9999999999")
    (False, False)
    """
    if "*" in answer:
        is_arithmetic = re.fullmatch(r"[\d\s+\-*/.()=]*", answer) is not None
        return is_arithmetic and len(answer) < 200 and "**" not in answer
    if len(answer) >= MAX_ANSWER_CHARS:
        return False
    if not re.fullmatch(r"[\w\s+\-/.,=()\[\]'\"|]*", answer):
        return False
    return not re.search(r"__|[\w\])'\"]\s*[\[(]|[^\d\s]\s*\.|\.\s*[^\d\s]", answer)


class MathWorker:
    """One child process that runs math-verify.

    Some answers (9^{9^{9}}) freeze Python inside one big-integer operation, where no alarm and no
    thread can reach: so the check runs elsewhere and is killed after `seconds`.
    """

    def __init__(self, seconds: float = CHECK_SECONDS):
        self.seconds = seconds
        self.process: subprocess.Popen | None = None
        self.lock = threading.Lock()

    def check(self, gold: str, answer: str) -> bool:
        """Whether two LaTeX texts are the same answer. Raises SandboxError."""
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self.start()
            return self.ask([gold, answer], self.seconds) is True

    def start(self) -> None:
        # -P: our datasets.py must not shadow a package.
        command = [sys.executable, "-P", str(WORKER)]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise SandboxError(f"no process for math-verify ({error.strerror})") from None
        if self.ask(None, START_SECONDS) is not False:
            raise SandboxError("the math-verify worker does not start; is math-verify installed?")

    def ask(self, question: list | None, seconds: float) -> bool | None:
        """The worker's answer; None if it is too slow, or dead."""
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
            ready = select.poll()  # select.select takes no descriptor above 1023
            ready.register(self.process.stdout, select.POLLIN)
            if ready.poll(1000 * seconds):
                return json.loads(self.process.stdout.readline() or b"null")
        except BrokenPipeError:
            pass
        self.close()  # the next check gets a fresh one
        return None

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


_grader = MathWorker()
_voter = MathWorker(seconds=2.0)  # of its own: a vote compares many answers, and none must wait
for _worker in (_grader, _voter):
    atexit.register(_worker.close)
