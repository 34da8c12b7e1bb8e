"""Grading: what a reply commits to, and whether it is right.

Math (ours, around math-verify): the last \\boxed by brace matching, never a number in prose; integers exactly; else math-verify
with both sides boxed, in a worker process that can be killed. Traps avoided: boxed answers are not de-duplicated
("42, 17, 42" is 42), no numeric tolerance (703 is not 700). reasoning-gym's questions are graded by its own scorers.
Test: `pytest tests/test_tasks.py`. Read next: mas.py.
"""
import atexit
import json
import re
import select
import subprocess
import sys
import threading

# Scorers of reasoning-gym that hand the answer to an evaluator: of Python, where only plain answers are let through ...
EVALUATED = frozenset({"string_insertion", "spiral_matrix", "binary_matrix", "n_queens", "puzzle24", "countdown"})
# ... and of sympy, which runs what it reads, and where plain answers are not enough: these sets are refused.
REFUSED = frozenset({"simple_integration", "intermediate_integration", "polynomial_multiplication"})


def grade(question, text: str) -> float:
    """The reward of an answer to a tasks.Question, 0.0 to 1.0, by the rule of its kind."""
    return _grade_rg(question, text) if question.kind == "rg" else grade_math(question.answer, text)


def last_boxed(text: str) -> str | None:
    """What stands in the last \\boxed{} or \\fbox{}, by brace matching; None if there is none or it is not closed.

    >>> last_boxed(r"\\boxed{42}, then \\boxed{17}, then \\boxed{\\frac{4}{2}}")
    '\\\\frac{4}{2}'
    """
    start = None
    for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text):
        start = match
    if start is None:
        return None
    depth = 1
    for position in range(start.end(), len(text)):
        if text[position] in "{}" and text[position - 1] != "\\":
            depth += 1 if text[position] == "{" else -1
            if depth == 0:
                return text[start.end():position].strip() or None
    return None


def final_answer(text: str) -> str | None:
    """The answer that a reply commits to: its last box, else its last line that starts with "Answer:"."""
    if re.search(r"\\(?:boxed|fbox)\s*\{", text):
        return last_boxed(text)
    lines = re.findall(r"^[ \t]*\**answer:?\**:?[ \t]+(.+)$", text, re.IGNORECASE | re.MULTILINE)
    return lines[-1].strip(" \t*\r") or None if lines else None


def canonical_integer(text: str) -> str | None:
    """The integer that a LaTeX text writes, as plain digits; None if it is not one.

    >>> canonical_integer(r"32,\\!349"), canonical_integer("073"), canonical_integer(r"125\\text{ miles}"), canonical_integer("1,2")
    ('32349', '73', '125', None)
    """
    unit = r"\\(?:text|mbox|textnormal|mathrm)\{(?!\s*(?:or|and|[ei]|[a-z]*(?:hundred|thousand|illion)s?)\b)[^{}\d]*\}(\^\{?\d\}?)?\s*$"
    text = re.sub(unit, "", text.strip().strip("$").strip())  # a unit is not part of the number; "or 6", "million" and "i" are
    text = text.replace("\\!", "").replace("\\$", "").replace("{,}", ",").strip()
    text = re.sub(r"(?<=\d)(?:\\[,; ]|~)(?=\d{3}(?!\d))", ",", text)  # thousands set apart by a thin space
    text = re.sub(r"\^\{?\\circ\}?$|\.0*$", "", text)
    if not re.fullmatch(r"[+-]?(\d+|\d{1,3}(,\d{3})+)", text):
        return None
    digits = text.replace(",", "").lstrip("+-").lstrip("0") or "0"
    return ("-" if text[0] == "-" and digits != "0" else "") + digits


# Where the gold is an integer: a calculation that is not carried out, a hedge, a per cent, is not the answer, though it may equal it.
_UNFINISHED = re.compile(r"[+*/=%]|\\(times|cdot|div|approx|frac|dfrac|tfrac|sum|prod)|\d\s*-|\\(?:mathrm|text)\{\s*[ei]\s*\}|\b(or|and|maybe|hundred|thousand|[a-z]*illion)\b|\d\s*!")


def grade_math(gold: str, text: str) -> float:
    """1.0 if the answer that `text` commits to equals `gold`, else 0.0. Never raises on any text; at most 10 s.

    >>> grade_math("700", r"\\boxed{703}"), grade_math("42", r"\\boxed{42}, 17, \\boxed{42}")
    (0.0, 1.0)
    """
    answer = final_answer(text)
    if answer is None:
        return 0.0
    gold, percent = gold.strip(), "%" in gold
    if percent:  # 28 and 28% are the same only where the gold is a percentage
        gold, answer = (re.sub(r"\\?%", "", side) for side in (gold, answer))
    number = canonical_integer(gold)
    if number is not None:
        if (said := canonical_integer(answer)) is not None:
            return float(said == number)
        if not re.search(r"[\d\\]", answer) or _UNFINISHED.search(re.sub(r"^\s*[a-zA-Z]\w*\s*=", "", answer)):
            return 0.0
    if len(answer) > 2000:
        return 0.0
    return float(_WORKER.check(_plain(gold), _plain(answer)))


def _plain(latex):
    return re.sub(r"\\(?:mathrm|text)\{\s*e\s*\}", "e", latex).replace("\\fbox", "\\boxed")


def _grade_rg(question, text):
    import reasoning_gym
    answer = final_answer(text)
    if answer is None:
        return 0.0
    entry = {key: value for key, value in question.entry.items() if key != "generator"}
    if question.entry["generator"] in EVALUATED and not is_plain(answer):
        return 0.0
    return float(reasoning_gym.get_score_answer_fn(question.entry["generator"])(answer, entry))


def is_plain(answer: str) -> bool:
    """A list of literals, or arithmetic without powers: nothing that an evaluator could be made to do harm with.

    >>> is_plain("(3 + 4) * 12"), is_plain("['a', 'b']"), is_plain("__import__('os')"), is_plain("9**9**9"), is_plain("[0]*9999999999")
    (True, True, False, False, False)
    """
    if "*" in answer:
        return len(answer) < 200 and "**" not in answer and re.fullmatch(r"[\d\s+\-*/.()=]*", answer) is not None
    allowed = re.fullmatch(r"[\w\s+\-/.,=()\[\]'\"|]*", answer)
    return len(answer) < 2000 and allowed is not None and not re.search(r"__|[\w\])'\"]\s*[\[(]|[^\d\s]\s*\.|\.\s*[^\d\s]", answer)


class MathWorker:
    """One child process that runs math-verify. Some answers (9^{9^{9}}) freeze Python inside one big-integer operation,
    where no alarm and no thread can reach: so the check runs elsewhere and is killed after `seconds`."""

    def __init__(self, seconds: float = 8.0):
        self.seconds, self.process, self.lock = seconds, None, threading.Lock()

    def check(self, gold: str, answer: str) -> bool:
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self.process = subprocess.Popen([sys.executable, __file__, "--math-worker"], stdin=subprocess.PIPE,
                                                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
                if self._ask(None, 60.0) is not False:  # the import of sympy is not part of the check
                    raise RuntimeError("the math-verify worker does not start; is math-verify installed?")
            return self._ask([gold, answer], self.seconds) is True

    def _ask(self, question, seconds):
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
            if select.select([self.process.stdout], [], [], seconds)[0]:
                return json.loads(self.process.stdout.readline() or b"null")
        except BrokenPipeError:
            pass
        self.close()  # too slow, or dead: the next check gets a fresh one
        return None

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


_WORKER = MathWorker()
atexit.register(_WORKER.close)


def _math_worker():
    import logging
    import resource

    import sympy
    from math_verify import parse, verify
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))

    def check(gold, answer):
        gold, answer = parse("\\boxed{" + gold + "}"), parse("\\boxed{" + answer + "}")
        if not verify(gold, answer):  # gold first: verify is not symmetric
            return False
        numbers = [side[0] for side in (gold, answer) if side and isinstance(side[0], sympy.Expr) and side[0].is_number]
        if len(numbers) == 2 and abs(numbers[0].evalf()) < 1e-2:  # verify rounds to 6 decimals: 1/2004! and 1/2006! are the same nothing
            return bool(abs((numbers[0] - numbers[1]) / numbers[0]).evalf(30) < 1e-6) if numbers[0] != 0 else numbers[1] == 0
        return True

    for line in sys.stdin:
        question = json.loads(line)
        try:
            result = question is not None and bool(check(*question))
        except Exception:  # the boundary: whatever sympy does with a model's text, the text is then not the answer
            result = False
        print(json.dumps(result), flush=True)


if __name__ == "__main__" and sys.argv[1:] == ["--math-worker"]:
    _math_worker()
