"""The tools that agents may use: their help in the prompt, how a reply calls one, what comes back.

A tool call is a fenced block in a reply, ```python or ```tests, the last one if there are several.
What the reply says after it does not count: it could not know the output. Its code runs in the
sandbox.

Test: `pytest tests/test_executor.py`. Read next: answers.py.
"""

from dataclasses import dataclass
from typing import Callable

from lib.answers import code_blocks
from sandbox import Limits

MAX_OUTPUT = 2000  # characters of a tool's output that an agent sees


def parse_tool_call(text: str, tools: tuple[str, ...]) -> tuple[str, str] | None:
    """The tool that a reply calls, and the code: its last block that names one of `tools`.

    None if there is no such block, or if the reply has a final program.

    >>> parse_tool_call("```python\\nprint(6 * 7)\\n```", ("python",))
    ('python', 'print(6 * 7)')
    """
    if not tools:
        return None
    blocks = code_blocks(text)
    if any(name == "solution" for name, _ in blocks):
        return None
    calls = [(name, code) for name, code in blocks if name in tools]
    return calls[-1] if calls else None


async def run_tool(name: str, code: str, question, sandbox, seconds: float) -> str:
    """What the agent sees of its tool call. Raises InfrastructureError."""
    output = await TOOLS[name].run(code, question, sandbox, seconds)
    return output[:MAX_OUTPUT]


async def run_tests(code: str, question, sandbox, seconds: float) -> str:
    from benchmarks.code_grading import public_test_report

    return await public_test_report(sandbox, question.tests, code)


async def run_python(code: str, question, sandbox, seconds: float) -> str:
    """What the code prints, and the last line of its error if it fails."""
    outcome = await sandbox.run(code, limits=Limits(wall=seconds, cpu=seconds))
    lines = []
    if outcome.stdout.strip():
        lines.append(outcome.stdout.strip())
    if outcome.status != "ok":
        error_lines = outcome.stderr.strip().splitlines()
        lines.append(error_lines[-1] if error_lines else outcome.status)
    return "\n".join(lines)


@dataclass(frozen=True)
class Tool:
    """run(code, question, sandbox, seconds) -> what the agent sees."""

    help: str  # in the agent's prompt
    run: Callable


TOOLS = {
    "python": Tool(
        "You can run Python: reply with a ```python block and nothing after it, and you get to see "
        "what it prints.",
        run_python,
    ),
    "tests": Tool(
        "You can test a program on the question's examples: reply with it in a ```tests block and "
        "nothing after it, and you get to see what passes.",
        run_tests,
    ),
}
