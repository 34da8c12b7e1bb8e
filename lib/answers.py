"""What a reply commits to: its last box, else its last line "Answer: ..."; or its last program.

Never a number in prose, and boxes are not de-duplicated: "42, 17, 42" is 42 (trap 4).

Test: `pytest tests/test_tasks.py`. Read next: benchmarks/math_grading.py.
"""

import re

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def last_boxed(text: str) -> str | None:
    """What stands in the last \\boxed{} or \\fbox{}, by brace matching.

    None if there is none or it is not closed.

    >>> last_boxed(r"\\boxed{42}, then \\boxed{17}, then \\boxed{\\frac{4}{2}}")
    '\\\\frac{4}{2}'
    """
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    start = boxes[-1].end()
    depth = 1
    for position in range(start, len(text)):
        if text[position] not in "{}" or text[position - 1] == "\\":
            continue
        depth += 1 if text[position] == "{" else -1
        if depth == 0:
            return text[start:position].strip() or None
    return None


def final_answer(text: str) -> str | None:
    """The answer that a reply commits to: its last box, else its last line "Answer: ..."."""
    if _BOX.search(text):
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
    pattern = r"^[ \t]*```([^\n`]*)\n(.*?)^[ \t]*```[ \t]*$"
    blocks = re.findall(pattern, text, re.DOTALL | re.MULTILINE)
    for languages in (("solution",), ("python", "py", "python3", "")):
        programs = [code for language, code in blocks if language.strip().lower() in languages]
        if programs:
            return programs[-1].rstrip() or None
    return None


def committed_answer(kind: str, text: str) -> str | None:
    """What a reply to a question of this kind commits to."""
    return last_program(text) if kind == "code" else final_answer(text)
