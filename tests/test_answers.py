"""What replies commit to: one parser of fences, one rule for which answers a vote counts as one."""

import asyncio

import pytest
from conftest import QUESTION

from designer import extract_script
from lib.answers import code_blocks, last_program
from lib.tools import parse_tool_call
from lib.votes import group_answers

FENCE = "`" * 3
IN_A_STRING = f'a("""Reply with\n{FENCE}solution\n...\n{FENCE}\n""")\nb()'
BARE_IN_A_STRING = f'a = """\n{FENCE}\n"""'


@pytest.mark.parametrize(
    "text, code",
    [
        (f"{FENCE}python\na\n{FENCE}", "a"),
        (f"{FENCE}py\na\n{FENCE}", "a"),
        (f"{FENCE}Python\na\n{FENCE}", "a"),
        (f"{FENCE}python3\na\n{FENCE}", "a"),
        (f"{FENCE} python\na\n{FENCE}", "a"),
        (f"{FENCE}python \na\n{FENCE} ", "a"),
        (f"{FENCE}python title=x\na\n{FENCE}", "a"),
        (f"{FENCE}python\r\na\r\nb\r\n{FENCE}\r\n", "a\nb"),
        (f"  {FENCE}python\na\n  {FENCE}\nDone.", "a"),
        (f"{FENCE}python\nprint('{FENCE}')\nb\n{FENCE}", f"print('{FENCE}')\nb"),
        (f"{FENCE}python\n{IN_A_STRING}\n{FENCE}", IN_A_STRING),
        (f"`{FENCE}python\n{BARE_IN_A_STRING}\n`{FENCE}", BARE_IN_A_STRING),
        (f"{FENCE}python\na\n{FENCE}\nor\n{FENCE}python\nb\n{FENCE}", "b"),
    ],
)
def test_designs_tools_and_programs_share_one_parser(text, code):
    assert extract_script(text) == code
    assert parse_tool_call(text, ("python",)) == ("python", code)
    assert last_program(text) == code


def test_a_block_that_nothing_closes():
    """A design goes to the end; a tool call or a program that was cut off is none."""
    text = f"{FENCE}python\na"
    assert extract_script(text) == "a"
    assert parse_tool_call(text, ("python",)) is None and last_program(text) is None


@pytest.mark.parametrize(
    "text", [f"{FENCE}\n" * 250_000, "`" * 10**6 + "a`", f"{FENCE}{' ' * 10**6}`"]
)
def test_a_megabyte_is_read_at_once(text):
    assert len(code_blocks(text)) in (0, 125_000)


@pytest.mark.parametrize(
    "answers, groups",
    [
        (["1,000", "1000.", "999"], ["1,000", "1,000", "999"]),
        (["0.5", r"\frac{1}{2}", "0.51"], ["0.5", "0.5", "0.51"]),
        (["x^2+1", None, "1+x^2"], ["x^2+1", None, "x^2+1"]),
        (["700", "703", "700"], ["700", "703", "700"]),
        ([None, None], [None, None]),
    ],
)
def test_a_vote_counts_equal_answers_as_one(answers, groups):
    assert asyncio.run(group_answers(None, QUESTION, answers)) == groups
