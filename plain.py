"""Plain designs: short scripts that are data more than code, and need no process.

    solver = Agent("solver", "Solve the question.")
    submit(vote([solver] * 3, question))

Such a script names agents and calls blocks, nothing else. It is not executed: its syntax tree is read here, in the trainer, by `Reader`, which knows
literals, the script's own names, lists of at most 64, and calls of blocks (mas.py) and agents. It knows no attribute, loop, function, import or builtin, so
there is nothing that a plain script could reach; and what it can be made to do is small, as neither a clock nor a limit of memory is kept here.
Whatever has anything else in it runs in the sandbox, as all of it would without this file, to the same end (unless a clock or the memory would have
ended it): tests/test_plain.py runs both ways.
It is here for speed: a process costs 3 ms of CPU time, as much as a tiny model's replies; this, a tenth of that.

A plain script draws no random numbers and looks at no clock: what it says next is a function of the replies so far. So it is gone through anew,
from its start, at each of its messages, and nothing has to wait in the middle of it.
Test: `pytest tests/test_plain.py`. Read next: executor.py.
"""
import ast
import importlib.util
import itertools
import json
import threading
import traceback
import warnings
from functools import lru_cache

import mas
from sandbox import MAX_LINE, Limits, Outcome, ProtocolError, parse_message

SPEC = importlib.util.find_spec("mas")
BLOCKS, LOCK = importlib.util.module_from_spec(SPEC), threading.Lock()  # mas.py once more, for one script at a time
SPEC.loader.exec_module(BLOCKS)
KNOWN = set(mas.__all__) - {"Reply"}  # which would put lists into one text
LONGEST = 1500  # characters of a script
MOST = 64  # of a list: as many as one ask may hold


class NotPlain(Exception):
    """The script has something that is for the sandbox."""


class Unanswered(BaseException):
    """The script waits for the reply to a message."""


class Reader:
    """Reads one script. Each method turns a node of its syntax tree into a function from a scope to a value, or raises NotPlain.

    Lists hold no lists, and agents are made of literals: else `Agent([a] * 64, "")`, whose name is 64 times as long as that of `a`, line after
    line, would fill the memory.
    """

    def __init__(self):
        self.names = {"question": False}  # given so far -> whether it stands for a list

    def statement(self, node):
        """-> (the name that it gives or None, function)"""
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name not in mas.__all__ and not name.startswith("__"):  # __builtins__ = 3
                found = self.value(value)
                self.names[name] = self.is_list(value)
                return name, found
            case ast.Expr(value=value):
                return None, self.value(value)
        raise NotPlain

    def is_list(self, node) -> bool:
        match node:
            case ast.Name(id=name):
                return self.names.get(name, False)
            case ast.Call(func=ast.Name(id="ask_all")):
                return True
        return isinstance(node, (ast.List, ast.BinOp))

    def value(self, node):
        match node:
            case ast.Constant(value=str() | int() | float() | None as value):
                return lambda scope: value
            case ast.Name(id=name) if name in self.names:
                return lambda scope: scope[name]
            case ast.List(elts=parts) if len(parts) <= MOST and not any(map(self.is_list, parts)):
                parts = [self.value(part) for part in parts]
                return lambda scope: [part(scope) for part in parts]
            case ast.BinOp(left=ast.List() as part, op=ast.Mult(), right=ast.Constant(value=int(times))) if 0 <= times * len(part.elts) <= MOST:
                part = self.value(part)
                return lambda scope: part(scope) * times
            case ast.Call():
                return self.call(node)
        raise NotPlain

    def call(self, node):
        names, values = [option.arg for option in node.keywords], [*node.args, *(option.value for option in node.keywords)]
        if None in names or "__debug__" in names or len(set(names)) < len(names):  # **options; and what does not compile
            raise NotPlain
        block = isinstance(node.func, ast.Name) and node.func.id in KNOWN and node.func.id
        if block == "Agent" and not all(isinstance(part, ast.Constant) for value in values for part in getattr(value, "elts", [value])):
            raise NotPlain
        function = (lambda scope: scope[block]) if block else self.value(node.func)
        values, first = [self.value(value) for value in values], len(node.args)

        def run(scope):
            called, given = function(scope), [value(scope) for value in values]
            return called(*given[:first], **dict(zip(names, given[first:])))
        return run


@lru_cache(maxsize=64)  # a design runs several times, and many are the same
def read(script: str):
    """The statements of a plain script; None if it is not one. A script that is empty or does not parse is left to the sandbox, which says so."""
    if len(script) > LONGEST:
        return None
    reader = Reader()
    try:
        with warnings.catch_warnings(action="ignore"):
            nodes = ast.parse(script).body
        return [reader.statement(node) for node in nodes] or None
    except (NotPlain, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def next_message(statements, question: str, replies: list) -> bytes | None:
    """The first message of a script that none of `replies` answers, as a line of JSON; None if it ends without one. Raises what the blocks raise."""
    answers, scope = iter(replies), {name: getattr(BLOCKS, name) for name in KNOWN} | {"question": question}

    def request(message):
        for answer in answers:
            return answer
        raise Unanswered(json.dumps(message).encode())

    with LOCK:
        BLOCKS._request, BLOCKS._keys = request, itertools.count()
        try:
            for name, value in statements:
                scope[name] = value(scope)
        except Unanswered as unanswered:
            return unanswered.args[0]
    return None


class Session:
    """A plain script that talks: what executor.py uses of sandbox.Session."""

    def __init__(self, statements, question: str):
        self.statements, self.question, self.replies, self.outcome = statements, question, [], Outcome("ok", "", "", 0.0, "plain")

    async def receive(self) -> dict | None:
        """The script's next message, None when it has ended. Raises ProtocolError."""
        try:
            line = next_message(self.statements, self.question, self.replies)
        except Exception as error:  # the boundary to a script that calls a block wrongly
            self.outcome = Outcome("error", "", "".join(traceback.format_exception_only(error)), 0.0, "plain")
            return None
        if line is None:
            return None
        if len(line) > MAX_LINE:
            raise ProtocolError(f"a message of more than {MAX_LINE} bytes")
        if len(self.replies) >= Limits.messages:
            raise ProtocolError(f"more than {Limits.messages} messages")
        return parse_message(line)

    async def send(self, message: dict) -> None:
        self.replies.append(message)

    def kill(self) -> None:
        """It does not run."""

    async def finish(self) -> Outcome:
        return self.outcome


def session(script: str, question: str) -> Session | None:
    """The session of a plain script; None if it is not one."""
    statements = read(script)
    return statements and Session(statements, question)
