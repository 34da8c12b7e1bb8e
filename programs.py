"""Programs: candidate answers to code questions run in the sandbox, and are judged here.

A program never sees an expected output: it gets inputs, and what it prints or returns comes back as data, to be compared in
this process. It can only answer, well or badly. Three kinds of test:

| kind | a case | how it runs |
|---|---|---|
| stdin | input text, expected output | a fresh process each; the output is compared by `same_output` |
| call | arguments, expected value | one process for all cases; values are compared by `same_value` |
| assert | test code that calls the program | two processes: the test code calls a proxy, the program answers in the other one |

Comparison (`rule`): "lines" is LiveCodeBench's own; "tokens" is ours, for APPS and CodeContests, whose own rules are too lenient for a
reward (APPS ignores order and repeats and takes 1000000 for 1000009, CodeContests takes 10^17 for 10^17 + 1). Differences to the
official runners, which run programs inside themselves: a program may read its input in any way, and end as it likes.
Test: `pytest tests/test_programs.py`. Speed: `python tests/bench_grade.py`. Read next: mas.py.
"""
import asyncio
import inspect
import json
import math
import os
import random
import re
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation

from sandbox import MAX_PARTS, Limits, ProtocolError, Sandbox


@dataclass(frozen=True)
class Suite:
    """What a program is judged by. Public cases may be shown; hidden ones reach no prompt, and no expected value any sandbox."""
    kind: str  # "stdin", "call" or "assert"
    public: tuple = ()
    hidden: tuple = ()
    function: str = ""  # an expression: "f", "Solution().f"
    rule: str = "tokens"  # "tokens" or "lines"
    setup: str = ""  # code that runs before the program, and before the test code of an "assert"
    after: str = ""  # code that runs after the program, before the first call
    seconds: float = 6.0  # CPU time of a case

    def limits(self, cases: int = 1) -> Limits:
        cpu = self.seconds * cases
        return Limits(wall=3 * cpu + 2, cpu=cpu, output=1 << 20, memory=1 << 30, messages=100_000)  # wall time: or verdicts depend on the machine's load


    def capped(self, cases: int) -> "Suite":
        """At most so many cases, the public ones first, the hidden ones drawn by a fixed seed: enough for a training reward."""
        left = max(0, cases - len(self.public))
        return replace(self, public=self.public[:cases], hidden=tuple(random.Random(0).sample(self.hidden, min(left, len(self.hidden)))))


@dataclass(frozen=True)
class Verdict:
    """What became of one case: passed or not, and, for a message about a public case, what the program said."""
    passed: bool
    said: str = ""


def last_program(text: str) -> str | None:
    """The program that a reply commits to: its last ```solution block, else its last block of code.

    >>> last_program("Like this:\\n```python\\nprint(1)\\n```\\nNo:\\n```solution\\nprint(2)\\n```\\nDone.")
    'print(2)'
    """
    blocks = re.findall(r"^[ \t]*```([^\n`]*)\n(.*?)^[ \t]*```[ \t]*$", text, re.DOTALL | re.MULTILINE)
    for wanted in (("solution",), ("python", "py", "python3", "")):
        found = [code for language, code in blocks if language.strip().lower() in wanted]
        if found:
            return found[-1].rstrip() or None
    return None


# ----------------------------------------------------------------------------------------------------- results are data

def encode(value, depth=0):
    """A value as JSON that tells its type: scalars and lists as they are, anything else as {type: content}.

    Raises TypeError for what is not data; nothing of a candidate's is ever called or hashed outside of the sandbox.
    >>> encode([(1, 2.5), {3}, {"a": None}, float("inf")])
    [{'tuple': [1, 2.5]}, {'set': [3]}, {'dict': [['a', None]]}, {'float': 'inf'}]
    """
    kind = type(value)
    if depth > 50:
        raise TypeError("a result of more than 50 levels")
    if value is None or kind in (bool, int, str) or kind is float and value - value == 0:
        return value
    if kind in (float, complex):
        return {kind.__name__: repr(value)}
    if kind is bytes:
        return {"bytes": value.decode("latin-1")}
    if issubclass(kind, dict):
        return {"dict": [[encode(key, depth + 1), encode(item, depth + 1)] for key, item in dict.items(value)]}
    if kind not in (list, tuple, set, frozenset):
        raise TypeError(f"a result of type {kind.__name__}")
    inner = [encode(item, depth + 1) for item in value]
    return inner if kind is list else {"tuple": inner} if kind is tuple else {"set": sorted(inner, key=repr)}


def decode(value):
    """The value of an encoding. For one of a candidate's, only inside of a sandbox: hashing what it holds can take for ever.

    >>> decode(encode([(1, 2.5), {3}, {"a": None}]))
    [(1, 2.5), {3}, {'a': None}]
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    (tag, inner), = value.items()
    if tag == "bytes":
        return inner.encode("latin-1")
    return {"tuple": tuple, "set": set, "dict": dict, "float": float, "complex": complex}[tag](decode(inner))


def _call_all(scope, function, calls):
    # Runs in the sandbox, after the candidate: a line of JSON on descriptor 3 for each call, as soon as it is there
    for arguments in calls:
        try:
            line = json.dumps({"value": encode(eval(function, scope)(*decode(arguments)))})
        except Exception as error:  # the boundary: a candidate raises what it likes, and the next call is another test
            line = json.dumps({"error": type(error).__name__})
        os.write(3, line.encode() + b"\n")


def _answer_calls(scope, function):
    # Runs in the sandbox, after the candidate: answers the calls of test code that runs elsewhere
    import mas
    message = {"op": "ready"}
    while True:
        arguments, keywords = json.loads(mas._request(message)["text"])
        try:
            message = {"op": "value", "text": json.dumps(encode(eval(function, scope)(*decode(arguments), **decode(keywords))))}
        except Exception as error:  # the boundary, as above
            message = {"op": "error", "text": type(error).__name__}


def _ask_elsewhere(*arguments, **keywords):
    # Runs in the sandbox with the test code, in place of the candidate
    import mas
    reply = mas._request({"op": "call", "text": json.dumps([encode(list(arguments)), encode(keywords)])})
    if reply["op"] != "value":
        raise RuntimeError(reply["text"])
    return decode(json.loads(reply["text"]))


CODEC = "import json, os, sys\n" + inspect.getsource(encode) + inspect.getsource(decode)


async def call(sandbox, code: str, function: str, calls: list, limits: Limits, setup: str = ""):
    """Run a candidate program and call its `function` (an expression: "f", "Solution().f") with each of `calls`, lists of arguments.

    Returns (sandbox.Outcome, one result per call): {"value": encoding} or {"error": text}. Raises SandboxError.
    """
    driver = CODEC + inspect.getsource(_call_all) + "_call_all(scope, *json.load(sys.stdin))"
    stdin = json.dumps([function, [encode(list(arguments)) for arguments in calls]]).encode()
    outcome = await sandbox.run(code, stdin, limits, driver, setup, "candidate")
    lines = outcome.results.split(b"\n")[:-1]
    return outcome, [_result(lines[number]) if number < len(lines) else {"error": "no result"} for number in range(len(calls))]


def _result(line):
    try:
        if line.count(b"[") + line.count(b"{") > MAX_PARTS:
            raise ValueError("too many parts")
        result = json.loads(line, parse_constant=lambda name: {"float": name})
    except (ValueError, RecursionError):
        result = None
    return result if isinstance(result, dict) and len(result) == 1 and set(result) <= {"value", "error"} else {"error": "not a result"}


# ------------------------------------------------------------------------------------------------------------ comparing

def same_output(expected: str, got: str, rule: str = "tokens") -> bool:
    """Whether a program printed what it should.

    "lines" (LiveCodeBench): as many lines, each the same text, or the same numbers as Decimals: no tolerance.
    "tokens" (ours): the same tokens, however they are spread over lines; integers exactly, and where the expected token has a point
    or an exponent, within 1e-6, absolute or relative.
    >>> same_output("1.0 2", "1 2", "lines"), same_output("0.333333333", "0.333333", "lines"), same_output("0.333333333", "0.333333")
    (True, False, True)
    """
    if rule == "lines":
        one, two = ([line.strip() for line in text.strip().split("\n")] for text in (expected, got))
        return len(one) == len(two) and all(a == b or _decimals(a) == _decimals(b) is not None for a, b in zip(one, two))
    one, two = expected.split(), got.split()
    return len(one) == len(two) and all(a == b or _close(a, b) for a, b in zip(one, two))


def _decimals(line):
    try:
        numbers = [Decimal(token) for token in line.split()]
    except InvalidOperation:
        return None
    return None if any(number.is_snan() for number in numbers) else numbers  # to compare with a signalling NaN is an error


def _close(expected, got):
    if not re.fullmatch(r"[+-]?\d*\.?\d*([eE][+-]?\d+)?", expected) or not re.search(r"\d[.eE]|\.\d", expected) or "_" in got:
        return False
    try:
        return math.isclose(float(expected), float(got), rel_tol=1e-6, abs_tol=1e-6)
    except (ValueError, OverflowError):
        return False


def same_value(expected, got) -> bool:
    """Whether two encodings are the same value, as == has it in Python: 2.0 is 2, 1 is True, [1] is not (1,), but for a tuple as the
    whole result (LiveCodeBench's rule: its golds are JSON and have no tuples). NaN equals nothing.

    >>> same_value([1, 2.0], {"tuple": [True, 2]}), same_value([[1]], [{"tuple": [1]}])
    (True, False)
    """
    if isinstance(got, dict) and isinstance(expected, list) and set(got) == {"tuple"}:
        got = got["tuple"]
    pairs = [(expected, got)]
    while pairs:
        one, two = pairs.pop()
        if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
            pairs += zip(one, two)
        elif isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys() and one != {"float": "nan"}:
            pairs += [(_in_order(tag, one[tag]), _in_order(tag, two[tag])) for tag in one]
        elif isinstance(one, (list, dict)) or isinstance(two, (list, dict)) or one != two:
            return False
    return True


def _in_order(tag, content):
    return sorted(content, key=repr) if tag in ("dict", "set") and isinstance(content, list) else content


# -------------------------------------------------------------------------------------------------------------- judging

async def judge(sandbox, tests: Suite, cases, program: str, stop: bool = False) -> list[Verdict]:
    """The verdict of each of `cases`, some of tests.public and tests.hidden. stop: after the first failure the rest count as failed,
    and are not run. Raises SandboxError."""
    if tests.kind == "call":
        return await _judge_calls(sandbox, tests, list(cases), program, stop)
    one = _judge_stdin if tests.kind == "stdin" else _judge_assert
    if not stop:
        return await asyncio.gather(*(one(sandbox, tests, case, program) for case in cases))
    verdicts = []
    for case in cases:
        verdicts.append(await one(sandbox, tests, case, program))
        if not verdicts[-1].passed:
            break
    return verdicts + [Verdict(False, "not run")] * (len(cases) - len(verdicts))


async def _judge_stdin(sandbox, tests, case, program):
    given, expected = case
    outcome = await sandbox.run(program, given.encode("utf-8", "surrogatepass"), tests.limits(), setup=tests.setup, kind="candidate")
    passed = outcome.status == "ok" and same_output(expected, outcome.stdout, tests.rule)
    return Verdict(passed, outcome.stdout if outcome.status == "ok" else outcome.stderr or outcome.status)


async def _judge_calls(sandbox, tests, cases, program, stop):
    verdicts, limits = [], tests.limits(len(cases))
    while len(verdicts) < len(cases):
        left = cases[len(verdicts):]
        if limits.cpu <= 0 or limits.wall <= 0:  # the program has used up the time of all its cases
            return verdicts + [Verdict(False, "no time is left")] * len(left)
        outcome, results = await call(sandbox, program + "\n" + tests.after, tests.function, [arguments for arguments, _ in left], limits, tests.setup)
        limits = replace(limits, cpu=max(0.0, limits.cpu - outcome.cpu), wall=max(0.0, limits.wall - outcome.seconds))
        for (_, expected), result in zip(left, results):
            passed = "value" in result and same_value(encode(expected), result["value"])
            verdicts.append(Verdict(passed, json.dumps(result.get("value", result.get("error")))[:1000]))
            if stop and not passed:
                return verdicts + [Verdict(False, "not run")] * (len(cases) - len(verdicts))
            if result == {"error": "no result"}:  # the process is gone: the next case starts a new one
                verdicts[-1] = replace(verdicts[-1], said=outcome.stderr or outcome.status)
                break
    return verdicts


async def _judge_assert(sandbox, tests, case, program):
    """The test code in one process, the program in another, in between them this one, which passes on calls and results as text."""
    proxy = CODEC + inspect.getsource(_ask_elsewhere)
    test_code = f"_codec = {{}}\nexec({proxy!r}, _codec)\n{tests.function} = _codec['_ask_elsewhere']\n{case}\n__import__('mas')._request({{'op': 'passed'}})"
    player = CODEC + inspect.getsource(_answer_calls) + f"_answer_calls(scope, {tests.function!r})"
    sessions, passed, said = [], False, "the program gave no answer"
    try:
        sessions.append(await sandbox.talk(test_code, limits=tests.limits(), kind="line", setup=tests.setup))
        sessions.append(await sandbox.talk(program, limits=tests.limits(), kind="line", setup=tests.setup, driver=player))
        ready = await sessions[1].receive()
        while ready is not None and (message := await sessions[0].receive()) is not None:
            if passed := message.get("op") == "passed":
                break
            await sessions[1].send({"text": str(message.get("text"))})
            answer = await sessions[1].receive() or {}
            await sessions[0].send({"op": str(answer.get("op")), "text": str(answer.get("text"))})
    except ProtocolError as error:
        said = str(error)
    finally:
        for session in sessions:
            session.kill()
        outcomes = await asyncio.gather(*(session.finish() for session in sessions))
    return Verdict(passed, "" if passed else "\n".join(filter(None, (outcome.stderr for outcome in outcomes))) or said)


async def grade(sandbox, tests: Suite, program: str | None, stop: bool = False) -> float:
    """The fraction of all cases, public and hidden, that the program passes; 0.0 without a program. Raises SandboxError."""
    cases = tests.public + tests.hidden
    if program is None or not cases:
        return 0.0
    verdicts = await judge(sandbox, tests, cases, program, stop)
    return sum(verdict.passed for verdict in verdicts) / len(verdicts)


def grade_code(question, program: str) -> float:
    """`grade` for callers without an event loop: starts a sandbox of its own. Raises SandboxError."""
    async def go():
        async with Sandbox() as sandbox:
            return await grade(sandbox, question.tests, program)

    return asyncio.run(go())
