"""--plugin FILE: a Python file of the reader's own that changes the method; ours stay as they are.

A function in it takes the place of ours of the same name, and has its parameters:

    reward(question, answer) -> number                tasks.reward, also in evaluations: the
                                                      tests of programs don't run then
    designer_messages(question) -> [dict]             designer.designer_messages; with --price it
                                                      has to tell question.price itself
    designer_advantages(rewards_Q_M_N, valid_Q_M_N)   credit.designer_advantages
    executor_advantages(rewards_Q_M_N, valid_Q_M_N, group)
    policy_loss(logprobs_K, old_logprobs_K, advantages_K, clip, dual_clip, lengths)
    learning_rate(config, step)                       config.Config.learning_rate

A list or a dictionary adds to ours:

    TASKS = {"mine": questions}    questions(split, seed, size) -> [Question]; --tasks mine
    TOOLS = {"lookup": lookup}     lookup(text) -> str; an agent calls it by a ```lookup block
    BLOCKS = [tournament]          functions of agents, as those of mas.py

Docstrings are what the model is told of tools and blocks. Their source runs in the sandbox: they
import what they need inside. A tool that is `async def` runs in the trainer instead, on whatever a
model wrote. A reward may be async, too. Where a reward or such a tool fails or hangs, the execution
is an infra_error. Whatever else fails, hangs or is wrong ends the program with one line.

Test: `pytest tests/test_plugins.py`. Read next: launch.py.
"""

import asyncio
import contextlib
import functools
import importlib.util
import inspect
import math
import pathlib
import signal
import textwrap
import threading
from types import SimpleNamespace

import torch

import credit
import designer
import executor
import mas
import tasks
from config import Config
from data_types import Question
from lib import tools
from lib.errors import PluginError, UserError
from lib.files import atomic_write

SECONDS = 60.0  # max time of importing the file, and of a call of one of its functions

# name -> (where ours is, its parameters)
FUNCTIONS = {
    "designer_messages": (designer, "question"),
    "designer_advantages": (credit, "rewards_Q_M_N valid_Q_M_N"),
    "executor_advantages": (credit, "rewards_Q_M_N valid_Q_M_N group"),
    "policy_loss": (credit, "logprobs_K old_logprobs_K advantages_K clip dual_clip lengths"),
    "learning_rate": (Config, "config step"),
    "reward": (tasks, "question answer"),
}
LOSS_SUMS = ("ratio", "clip_frac", "approx_kl")  # over the tokens; metrics.jsonl has their means
COLLECTIONS = {"TASKS": dict, "TOOLS": dict, "BLOCKS": list}


def load(path: str | None, out: pathlib.Path | None = None) -> set[str]:
    """Run the file, put its parts in their places, and return their names. Raises UserError.

    out: folder of a run, which keeps the file; a resumed run must have the same.
    """
    if path is None:
        return set()
    try:
        text = pathlib.Path(path).read_text()
    except (OSError, ValueError) as error:
        raise UserError(f"--plugin {path}: can't be read ({error})") from None
    if out is not None:
        copy = out / "plugin.py"
        if copy.exists() and copy.read_text() != text:
            raise UserError(f"--plugin {path}: is not what the run in {out} began with ({copy})")
        atomic_write(copy, text)
    return install(run_file(path), path)


def run_file(path: str) -> dict:
    """The names that the file defines. Raises UserError."""
    spec = importlib.util.spec_from_file_location("plugin", path)
    if spec is None:
        raise UserError(f"--plugin {path}: its name has to end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        with time_limit():
            spec.loader.exec_module(module)
    except Exception as error:  # boundary: the reader's own code
        raise UserError(f"--plugin {path}: {said(error)}") from None
    return vars(module)


@contextlib.contextmanager
def time_limit():
    """A TimeoutError after SECONDS, in the main thread."""

    def too_long(*_):
        raise TimeoutError(f"took longer than {SECONDS:.0f} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def install(names: dict, path: str) -> set[str]:
    """Put each part in its place; their names. Raises UserError."""
    parts = {name: names[name] for name in (*FUNCTIONS, *COLLECTIONS) if name in names}
    if not parts:
        raise UserError(f"--plugin {path}: defines none of {', '.join((*FUNCTIONS, *COLLECTIONS))}")
    for name, part in parts.items():
        where = f"--plugin {path}: {name}"
        if name in FUNCTIONS:
            replace_ours(name, part, where)
        else:
            check_collection(part, COLLECTIONS[name], where)
    for name, function in parts.get("TASKS", {}).items():
        questions = checked(function, f"--plugin {path}: TASKS[{name!r}]", "TASKS")
        tasks.WORLDS[name] = SimpleNamespace(questions=questions, DESIGNS=designer.FIXED_DESIGNS)
    for name, function in parts.get("TOOLS", {}).items():
        run = in_trainer(function) if inspect.iscoroutinefunction(function) else boxed(function)
        tools.TOOLS[name] = tools.Tool(inspect.getdoc(function), run)
        tasks.MORE_TOOLS.append(name)
    for function in parts.get("BLOCKS", []):
        setattr(mas, function.__name__, function)
        mas.__all__.append(function.__name__)
        executor.MORE_BLOCKS.append(textwrap.dedent(inspect.getsource(function)))
    return set(parts)


def replace_ours(name: str, function, where: str) -> None:
    """Put the function in the place of ours. Raises UserError if it has other parameters."""
    place, text = FUNCTIONS[name]
    parameters = text.split()
    is_function = inspect.isfunction(function)
    if not is_function or list(inspect.signature(function).parameters) != parameters:
        raise UserError(f"{where}: has to be a function of {', '.join(parameters)}")
    if name == "reward":
        function = rewarding(function)
    else:
        function = checked(function, where, name)
    setattr(place, name, function)


def check_collection(part, kind: type, where: str) -> None:
    """Raises UserError if it is no list, or dictionary by name, of functions."""
    items = part.values() if isinstance(part, dict) else part
    if not isinstance(part, kind) or not all(map(inspect.isfunction, items)):
        raise UserError(f"{where}: has to be a {kind.__name__} of functions")
    if where.endswith(("TOOLS", "BLOCKS")) and not all(map(inspect.getdoc, items)):
        raise UserError(f"{where}: each needs a docstring, which is what the model is told of it")


def said(error: Exception) -> str:
    """What is wrong, and in which line of the reader's file."""
    frames = inspect.getinnerframes(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename.endswith(".py")]
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text} (line {lines[-1] if lines else '?'})"


def checked(function, where: str, name: str):
    """The function in the place of `name`: what is wrong with it ends the program with one line."""

    @functools.wraps(function)
    def call(*arguments, **options):
        try:
            with time_limit():
                result = function(*arguments, **options)
        except Exception as error:  # boundary: the reader's own code
            raise UserError(f"{where}: {said(error)}") from None
        problem = wrong(name, result, arguments)
        if problem:
            raise UserError(f"{where}: {problem}")
        return result

    return call


def wrong(name: str, result, arguments: tuple) -> str:
    """What is wrong with the result of a function; "" if nothing is."""
    if name == "policy_loss":
        is_right = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)
        if not (is_right and is_tensor(result[0], arguments[0].shape)):
            return "has to return a tensor as logprobs_K is, and a dict of sums"
        unknown = sorted(set(result[1]) - set(LOSS_SUMS))
        if unknown:
            return f"has a sum {unknown[0]}; of these alone: {', '.join(LOSS_SUMS)}"
    elif name.endswith("_advantages"):
        Q_M_N = arguments[0].shape
        shape = Q_M_N[:2] if name == "designer_advantages" else Q_M_N
        if not is_tensor(result, shape) or not result.isfinite().all():
            return f"has to return a finite tensor of shape {tuple(shape)}"
    elif name == "learning_rate":
        if not is_number(result) or result < 0:
            return f"has to return a number, 0 or more, not {result!r}"
    elif name == "designer_messages":
        if not isinstance(result, list) or not all(
            isinstance(m, dict) and {"role", "content"} <= set(m) for m in result
        ):
            return 'has to return a list of {"role": ..., "content": ...}'
    elif not isinstance(result, list) or not all(isinstance(q, Question) for q in result):
        return "has to return a list of data_types.Question"
    return ""


def is_tensor(value, shape) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == shape


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


# ------------------------------------------------------------------------------ rewards and tools


def rewarding(function):
    """tasks.reward with the reader's function in it."""

    async def reward(question: Question, text: str, sandbox, stop_at_failure=False) -> float:
        value = await limited(function, question, text)
        if not is_number(value):
            raise PluginError(f"reward: {value!r} is no finite number")
        return float(value)

    return reward


def in_trainer(function):
    """A tool that runs in the trainer's event loop."""

    async def run(text: str, question: Question, sandbox, seconds: float) -> str:
        return str(await limited(function, text))

    return run


def boxed(function):
    """A tool whose source runs in the sandbox."""
    source = textwrap.dedent(inspect.getsource(function))

    async def run(text: str, question: Question, sandbox, seconds: float) -> str:
        code = f"{source}\nprint({function.__name__}({text!r}))"
        return await tools.run_python(code, question, sandbox, seconds)

    return run


async def limited(function, *arguments):
    """The result of a function, async or not, within SECONDS. Raises PluginError."""
    try:
        async with asyncio.timeout(SECONDS):
            if inspect.iscoroutinefunction(function):
                return await function(*arguments)
            return await in_thread(function, *arguments)
    except TimeoutError:
        raise PluginError(f"{function.__name__}: took longer than {SECONDS:.0f} s") from None
    except Exception as error:  # boundary: the reader's own code
        raise PluginError(f"{function.__name__}: {said(error)}") from None


async def in_thread(function, *arguments):
    """As asyncio.to_thread, but a thread that hangs does not keep the program from ending."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def settle(result, error) -> None:
        if not future.done():  # it may have been given up
            future.set_exception(error) if error else future.set_result(result)

    def work() -> None:
        result = error = None
        try:
            result = function(*arguments)
        except Exception as problem:  # boundary: handed on to whoever waits
            error = problem
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, daemon=True).start()
    return await future
