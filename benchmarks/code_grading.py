"""Code grading: candidate programs run in the sandbox, and are judged here.

A program never sees an expected output: it gets inputs, and what it prints or returns comes back as
data, to be compared in this process. It can only answer, well or badly. Three kinds of test:

| kind | a case | how it runs |
|---|---|---|
| stdin | input text, expected output | a fresh process each; compared by `same_output` |
| call | arguments, expected value | one process for all cases; compared by `same_value` |
| assert | test code that calls the program | the test code in one process, the program in another |

Comparison (`rule`): "lines" is LiveCodeBench's own. "tokens" is ours, for APPS and CodeContests,
whose own rules are too lenient for a reward: APPS ignores order and repeats and takes 1000000 for
1000009, CodeContests takes 10^17 for 10^17 + 1. The official runners run a program inside
themselves; here it may read its input in any way, and end as it likes.

Test: `pytest tests/test_code_grading.py`. Speed: `python -m experiments.bench.grade`.
Read next: datasets.py.
"""

import asyncio
import hashlib
import inspect
import itertools
import json
import math
import os
import random
import re
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation

from lib.errors import ProtocolError
from lib.turns import my_turn
from sandbox import MAX_PARTS, Limits, Sandbox

TOLERANCE = 1e-6  # of floating-point outputs under rule "tokens"


@dataclass(frozen=True)
class Suite:
    """What a program is judged by.

    Public cases may be shown; hidden ones reach no prompt, and no expected value any sandbox.
    """

    kind: str  # "stdin", "call" or "assert"
    public: tuple = ()
    hidden: tuple = ()
    function: str = ""  # an expression: "f", "Solution().f"
    rule: str = "tokens"  # "tokens" or "lines"
    setup: str = ""  # code that runs before the program, and before the test code of an "assert"
    after: str = ""  # code that runs after the program, before the first call
    seconds: float = 6.0  # CPU time of a case

    def limits(self, num_cases: int = 1) -> Limits:
        """Limits of one process that runs so many cases."""
        cpu = self.seconds * num_cases
        wall = 3 * cpu + 2  # generous: a verdict must not depend on the machine's load
        return Limits(wall=wall, cpu=cpu, output=1 << 20, memory=1 << 30, messages=100_000)

    def capped(self, num_cases: int) -> "Suite":
        """A suite of at most `num_cases`: the public ones first, then hidden ones by a fixed seed.

        Enough for a training reward.
        """
        num_hidden = min(max(0, num_cases - len(self.public)), len(self.hidden))
        hidden = random.Random(0).sample(self.hidden, num_hidden)
        return replace(self, public=self.public[:num_cases], hidden=tuple(hidden))


@dataclass(frozen=True)
class Verdict:
    """What became of one case."""

    passed: bool
    output: str = ""  # what the program said, for a message about a public case


# ------------------------------------------------------------------------------- results are data


def encode(value, depth=0):
    """A value as JSON that tells its type: scalars and lists as they are, else {type: content}.

    Raises TypeError for what is not data. So no object of a candidate is ever called or hashed
    outside of the sandbox.

    >>> encode([(1, 2.5), {3}, {"a": None}, float("inf")])
    [{'tuple': [1, 2.5]}, {'set': [3]}, {'dict': [['a', None]]}, {'float': 'inf'}]
    """
    kind = type(value)
    if depth > 50:
        raise TypeError("a result of more than 50 levels")
    if value is None or kind in (bool, int, str):
        return value
    if kind is float and value - value == 0:  # finite
        return value
    if kind in (float, complex):
        return {kind.__name__: repr(value)}
    if kind is bytes:
        return {"bytes": value.decode("latin-1")}
    if issubclass(kind, dict):
        items = dict.items(value)
        return {"dict": [[encode(key, depth + 1), encode(item, depth + 1)] for key, item in items]}
    if kind not in (list, tuple, set, frozenset):
        raise TypeError(f"a result of type {kind.__name__}")
    inner = [encode(item, depth + 1) for item in value]
    if kind is list:
        return inner
    if kind is tuple:
        return {"tuple": inner}
    return {"set": sorted(inner, key=repr)}


def decode(value):
    """The value of an encoding.

    An encoding that a candidate wrote is decoded only inside of a sandbox: hashing its content can
    take for ever.

    >>> decode(encode([(1, 2.5), {3}, {"a": None}]))
    [(1, 2.5), {3}, {'a': None}]
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, inner),) = value.items()
    if tag == "bytes":
        return inner.encode("latin-1")
    types = {"tuple": tuple, "set": set, "dict": dict, "float": float, "complex": complex}
    return types[tag](decode(inner))


def _call_all(scope, function, calls):
    # Runs in the sandbox, after the candidate. Each result is written at once, a line of JSON on
    # descriptor 3: a later call may end the process.
    for arguments in calls:
        try:
            line = json.dumps({"value": encode(eval(function, scope)(*decode(arguments)))})
        except Exception as error:  # boundary: a candidate may raise anything, in any one call
            line = json.dumps({"error": type(error).__name__})
        os.write(3, line.encode() + b"\n")


def _answer_calls(scope, function):
    # Runs in the sandbox, after the candidate: answers the calls of test code that runs elsewhere.
    import mas

    message = {"op": "ready"}
    while True:
        arguments, keywords = json.loads(mas._request(message)["text"])
        try:
            value = eval(function, scope)(*decode(arguments), **decode(keywords))
            message = {"op": "value", "text": json.dumps(encode(value))}
        except Exception as error:  # boundary: a candidate may raise anything
            message = {"op": "error", "text": type(error).__name__}


def _ask_elsewhere(*arguments, **keywords):
    # Runs in the sandbox with the test code, in place of the candidate.
    import mas

    text = json.dumps([encode(list(arguments)), encode(keywords)])
    reply = mas._request({"op": "call", "text": text})
    if reply["op"] != "value":
        raise RuntimeError(reply["text"])
    return decode(json.loads(reply["text"]))


CODEC = "import json, os, sys\n" + inspect.getsource(encode) + inspect.getsource(decode)


async def call(
    sandbox, code: str, function: str, calls: list, limits: Limits, setup: str = ""
) -> tuple:
    """Run a candidate program and call its `function` with each of `calls`, lists of arguments.

    function: an expression, "f" or "Solution().f". Returns (sandbox.Outcome, one result per call):
    {"value": encoding} or {"error": text}. Raises SandboxError.
    """
    driver = CODEC + inspect.getsource(_call_all) + "_call_all(scope, *json.load(sys.stdin))"
    encoded_calls = [encode(list(arguments)) for arguments in calls]
    stdin = json.dumps([function, encoded_calls]).encode()
    outcome = await sandbox.run(code, stdin, limits, driver, setup, "candidate")
    lines = outcome.results.split(b"\n")[:-1]
    results = []
    for line in lines[: len(calls)]:
        await my_turn()
        results.append(parse_result(line))
    results += [{"error": "no result"}] * (len(calls) - len(results))
    return outcome, results


def parse_result(line: bytes) -> dict:
    """One line that an untrusted run wrote."""
    try:
        if line.count(b"[") + line.count(b"{") > MAX_PARTS:
            raise ValueError("too many parts")
        result = json.loads(line.decode(), parse_constant=lambda name: {"float": name})
    except (ValueError, RecursionError):
        return {"error": "not a result"}
    if isinstance(result, dict) and len(result) == 1 and set(result) <= {"value", "error"}:
        return result
    return {"error": "not a result"}


def beginning(value, num_parts: int = 1000) -> str:
    """The beginning of a value's JSON, which may be megabytes long and hundreds of levels deep."""
    parts = json.JSONEncoder().iterencode(value)
    try:
        return "".join(itertools.islice(parts, num_parts))[:1000]
    except RecursionError:
        return "a value of too many levels"


# ---------------------------------------------------------------------------------------- comparing


def same_output(expected: str, got: str, rule: str = "tokens") -> bool:
    """Whether a program printed what it should.

    "lines" (LiveCodeBench): as many lines, each the same text, or the same numbers as Decimals; no
    tolerance. "tokens" (ours): the same tokens, however they are spread over lines; integers
    exactly, and where the expected token has a point or an exponent, within 1e-6, absolute or
    relative.

    >>> same_output("1.0 2", "1 2", "lines"), same_output("0.333333333", "0.333333", "lines")
    (True, False)
    >>> same_output("0.333333333", "0.333333")
    True
    """
    if rule == "lines":
        expected_lines = [line.strip() for line in expected.strip().split("\n")]
        got_lines = [line.strip() for line in got.strip().split("\n")]
        return same_sequence(expected_lines, got_lines, same_line)
    return same_sequence(expected.split(), got.split(), same_token)


def same_sequence(expected: list, got: list, same) -> bool:
    """Whether two lists agree, item by item, by the function `same`."""
    return len(expected) == len(got) and all(same(a, b) for a, b in zip(expected, got))


def same_line(expected: str, got: str) -> bool:
    """Rule "lines": the same text, or the same numbers."""
    if expected == got:
        return True
    numbers = decimals(expected)
    return numbers is not None and numbers == decimals(got)


def decimals(line: str) -> list[Decimal] | None:
    """The numbers of a line; None if it holds anything else."""
    try:
        numbers = [Decimal(token) for token in line.split()]
    except InvalidOperation:
        return None
    if any(number.is_snan() for number in numbers):  # to compare with a signalling NaN is an error
        return None
    return numbers


def same_token(expected: str, got: str) -> bool:
    """Rule "tokens": the same text, or close to an expected floating-point number."""
    if expected == got:
        return True
    is_number = re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", expected)
    if not is_number or not re.search(r"\d[.eE]|\.\d", expected) or "_" in got:
        return False
    try:
        return math.isclose(float(expected), float(got), rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    except (ValueError, OverflowError):
        return False


def same_value(expected, got) -> bool:
    """Whether two encodings are the same value, as == has it in Python: 2.0 is 2, 1 is True.

    [1] is not (1,), except where a tuple is the complete result (LiveCodeBench's rule: its golds
    are JSON and have no tuples). NaN equals nothing.

    >>> same_value([1, 2.0], {"tuple": [True, 2]}), same_value([[1]], [{"tuple": [1]}])
    (True, False)
    """
    if isinstance(got, dict) and isinstance(expected, list) and set(got) == {"tuple"}:
        got = got["tuple"]
    pairs = [(expected, got)]
    while pairs:
        a, b = pairs.pop()
        if isinstance(a, list) and isinstance(b, list):
            if len(a) != len(b):
                return False
            pairs += zip(a, b)
        elif isinstance(a, dict) and isinstance(b, dict):
            if a.keys() != b.keys() or a == {"float": "nan"}:
                return False
            pairs += [in_order(tag, a[tag], b[tag]) for tag in a]
        elif isinstance(a, (list, dict)) or isinstance(b, (list, dict)) or a != b:
            return False
    return True


def in_order(tag: str, expected, got) -> tuple:
    """The contents of two dicts or sets, each in an order of its own if they may be the same."""
    is_unordered = tag in ("dict", "set") and isinstance(expected, list) and isinstance(got, list)
    if not is_unordered or len(expected) != len(got):
        return expected, got
    return sorted(expected, key=repr), sorted(got, key=repr)


# ------------------------------------------------------------------------------------------ judging


async def judge(sandbox, tests: Suite, cases, program: str, stop: bool = False) -> list[Verdict]:
    """The verdict of each of `cases`, some of tests.public and tests.hidden. Raises SandboxError.

    stop: after the first failure the rest count as failed, and are not run.
    """
    cases = list(cases)
    if tests.kind == "call":
        return await judge_calls(sandbox, tests, cases, program, stop)
    judge_case = judge_stdin if tests.kind == "stdin" else judge_assert
    if not stop:
        judging = [judge_case(sandbox, tests, case, program) for case in cases]
        return await asyncio.gather(*judging)
    verdicts = []
    for case in cases:
        verdicts.append(await judge_case(sandbox, tests, case, program))
        if not verdicts[-1].passed:
            break
    return fill_up(verdicts, len(cases), "not run")


def fill_up(verdicts: list[Verdict], num_cases: int, reason: str) -> list[Verdict]:
    """`verdicts`, and failures for the cases that were not judged."""
    return verdicts + [Verdict(False, reason)] * (num_cases - len(verdicts))


async def judge_stdin(sandbox, tests: Suite, case: tuple[str, str], program: str) -> Verdict:
    """A fresh process that reads the case's input."""
    given, expected = case
    stdin = given.encode("utf-8", "surrogatepass")
    outcome = await sandbox.run(program, stdin, tests.limits(), setup=tests.setup, kind="candidate")
    if outcome.status != "ok":
        return Verdict(False, outcome.stderr or outcome.status)
    await my_turn()
    return Verdict(same_output(expected, outcome.stdout, tests.rule), outcome.stdout)


async def judge_calls(sandbox, tests: Suite, cases, program: str, stop: bool) -> list[Verdict]:
    """All cases in one process, and after one that ends the process, the rest in a new one.

    All processes together have the time of all cases.
    """
    verdicts = []
    limits = tests.limits(len(cases))
    code = program + "\n" + tests.after
    while len(verdicts) < len(cases):
        if limits.cpu <= 0 or limits.wall <= 0:  # the program has used up the time of all cases
            return fill_up(verdicts, len(cases), "no time is left")
        left = cases[len(verdicts) :]
        calls = [arguments for arguments, _ in left]
        outcome, results = await call(sandbox, code, tests.function, calls, limits, tests.setup)
        limits = replace(
            limits,
            cpu=max(0.0, limits.cpu - outcome.cpu),
            wall=max(0.0, limits.wall - outcome.seconds),
        )
        for (_, expected), result in zip(left, results):
            passed = "value" in result and same_value(encode(expected), result["value"])
            output = beginning(result.get("value", result.get("error")))
            is_gone = result == {"error": "no result"}
            if is_gone:
                output = outcome.stderr or outcome.status
            verdicts.append(Verdict(passed, output))
            if stop and not passed:
                return fill_up(verdicts, len(cases), "not run")
            if is_gone:  # the process is gone: the next case starts a new one
                break
    return verdicts


async def judge_assert(sandbox, tests: Suite, case: str, program: str) -> Verdict:
    """The test code in one process, the program in another.

    This process passes on the calls of the one and the results of the other, as text.
    """
    proxy = CODEC + inspect.getsource(_ask_elsewhere)
    test_code = (
        f"_codec = {{}}\nexec({proxy!r}, _codec)\n"
        f"{tests.function} = _codec['_ask_elsewhere']\n{case}\n"
        "__import__('mas')._request({'op': 'passed'})"
    )
    player = CODEC + inspect.getsource(_answer_calls) + f"_answer_calls(scope, {tests.function!r})"
    talk = {"limits": tests.limits(), "kind": "line", "setup": tests.setup}
    sessions = []
    passed = False
    problem = "the program gave no answer"
    try:
        sessions.append(await sandbox.talk(test_code, **talk))
        sessions.append(await sandbox.talk(program, driver=player, **talk))
        passed = await connect(*sessions)
    except ProtocolError as error:
        problem = str(error)
    finally:
        for session in sessions:
            session.kill()
        outcomes = await asyncio.gather(*(session.finish() for session in sessions))
    if passed:
        return Verdict(True)
    errors = [outcome.stderr for outcome in outcomes if outcome.stderr]
    return Verdict(False, "\n".join(errors) or problem)


async def connect(tester, player) -> bool:
    """Pass the tester's calls to the player, and its answers back. Returns if the test passed."""
    is_ready = await player.receive() is not None
    if not is_ready:
        return False
    while (message := await tester.receive()) is not None:
        if message.get("op") == "passed":
            return True
        await player.send({"text": str(message.get("text"))})
        answer = await player.receive() or {}
        await tester.send({"op": str(answer.get("op")), "text": str(answer.get("text"))})
    return False


async def grade_program(sandbox, tests: Suite, program: str | None, stop: bool = False) -> float:
    """The fraction of all cases, public and hidden, that the program passes.

    0.0 without a program. Raises SandboxError.
    """
    cases = tests.public + tests.hidden
    if program is None or not cases:
        return 0.0
    verdicts = await judge(sandbox, tests, cases, program, stop)
    return sum(verdict.passed for verdict in verdicts) / len(verdicts)


async def behaviour(sandbox, tests: Suite, program: str | None) -> str | None:
    """A digest of what a program does on the public tests; equal ones are one answer to a vote.

    Raises SandboxError.
    """
    if program is None:
        return None
    verdicts = await judge(sandbox, tests, tests.public, program)
    outputs = [verdict.output for verdict in verdicts] or program
    return hashlib.sha256(repr(outputs).encode("utf-8", "replace")).hexdigest()


async def public_test_report(sandbox, tests: Suite, program: str) -> str:
    """The program's verdicts on the public tests, and the first failure. Raises SandboxError.

    Hidden tests are not run before the end.
    """
    verdicts = await judge(sandbox, tests, tests.public, program)
    num_passed = sum(verdict.passed for verdict in verdicts)
    summary = f"{num_passed} of {len(verdicts)} passed."
    for case, verdict in zip(tests.public, verdicts):
        if not verdict.passed:
            shown = f"Failed: {case}"
            if tests.kind != "assert":
                shown = f"Input:\n{case[0]}\nExpected:\n{case[1]}"
            return f"{summary}\n{shown}\nGot:\n{verdict.output}"
    return summary


def grade_code(question, program: str) -> float:
    """`grade_program` without an event loop: starts a sandbox of its own. Raises SandboxError."""

    async def go():
        async with Sandbox() as sandbox:
            return await grade_program(sandbox, question.tests, program)

    return asyncio.run(go())
