"""What a reply commits to: its last box, else its last line "Answer: ..."; or its last program.

`code_blocks` is the one parser of fences: of designs, tool calls and programs.

Never a number in prose, and boxes are not de-duplicated: "42, 17, 42" is 42 (trap 4).

Test: `pytest tests/test_answers.py`. Read next: votes.py.
"""

import re

_LAST_BOX = re.compile(r".*\\(?:boxed|fbox)\s*\{", re.DOTALL)  # .* takes all that it can
_BRACE = re.compile(r"(?<!\\)[{}]")
# A line of backticks and the language; [^\S\n] is white space that ends no line.
_FENCE = re.compile(r"^[^\S\n]*(`{3,})([^`\n]*)$", re.MULTILINE)
MAX_BOX = 100_000  # characters: a longer box counts as not closed
LANGUAGES = {"py": "python", "python3": "python"}  # other names


def last_boxed(text: str) -> str | None:
    """What stands in the last \\boxed{} or \\fbox{}, by brace matching.

    None if there is none or it is not closed.

    >>> last_boxed(r"\\boxed{42}, then \\boxed{17}, then \\boxed{\\frac{4}{2}}")
    '\\\\frac{4}{2}'
    """
    box = _LAST_BOX.match(text)
    if box is None:
        return None
    start = box.end()
    depth = 1
    for brace in _BRACE.finditer(text, start, start + MAX_BOX):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[start : brace.start()].strip() or None
    return None


def final_answer(text: str) -> str | None:
    """The answer that a reply commits to: its last box, else its last line "Answer: ..."."""
    if _LAST_BOX.match(text):
        return last_boxed(text)
    pattern = r"^[ \t]*\**answer:?\**:?[ \t]+(.+)$"
    lines = re.findall(pattern, text, re.IGNORECASE | re.MULTILINE)
    if not lines:
        return None
    return lines[-1].strip(" \t*\r") or None


def last_program(text: str) -> str | None:
    """The program that a reply commits to: its last ```solution block, else its last code block.

    >>> last_program("```python\\nprint(1)\\n```\\nNo:\\n```solution\\nprint(2)\\n```\\nDone.")
    'print(2)'
    """
    blocks = code_blocks(text)
    for languages in (("solution",), ("python", "")):
        programs = [code for language, code in blocks if language in languages]
        if programs:
            return programs[-1] or None
    return None


def code_blocks(text: str, unclosed: bool = False) -> list[tuple[str, str]]:
    """(language, code) of each fenced block. The language is in lower case; py is python.

    A fence is a line of its own: ``` within a line of code ends nothing. A whole block within a
    block, such as in a string of a script, is a part of it.

    Args:
        unclosed: whether a block that nothing closes counts; it goes to the end of the text.

    >>> code_blocks("``` Python3\\nprint('```')\\n```")
    [('python', "print('```')")]
    """
    text = text.replace("\r\n", "\n")
    blocks = []
    depth = 0  # how many blocks are open, one within the other
    for fence in _FENCE.finditer(text):
        word = fence[2].strip().lower().partition(" ")[0]
        if depth == 0:  # a block begins
            language = LANGUAGES.get(word, word)
            num_backticks = len(fence[1])
            start = fence.end()
            depth = 1
        elif len(fence[1]) >= num_backticks:
            depth += 1 if word else -1
            if depth == 0:  # it ends
                blocks.append((language, text[start : fence.start()].strip("\n")))
    if depth > 0 and unclosed:
        blocks.append((language, text[start:].strip("\n")))
    return blocks


def committed_answer(kind: str, text: str) -> str | None:
    """What a reply to a question of this kind commits to."""
    return last_program(text) if kind == "code" else final_answer(text)
