"""Files: written whole or not at all, JSONL read with the line that is wrong.

Test: `pytest tests/test_tasks.py tests/test_cli.py`. Read next: metrics.py.
"""

import json
import os
import pathlib
from typing import Iterator

from lib.errors import UserError


def atomic_write(path: pathlib.Path, text: str) -> None:
    """Write a file whole or not at all. Raises UserError."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: not written ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_jsonl(path: pathlib.Path, only_complete_lines: bool = False) -> list[dict]:
    """The rows of a JSONL file. Raises UserError with the file and the line that is wrong.

    only_complete_lines: leave out a last line that a kill cut off.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # with or without a byte order mark
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a UTF-8 text file") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if only_complete_lines:
        text = text[: text.rfind("\n") + 1]
    rows = []
    # Not splitlines: U+2028 and others may stand inside a string.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            rows.append(parse_row(path, number, line))
    if not rows:
        raise UserError(f"{path}: the file has no rows")
    return rows


def parse_row(path: pathlib.Path, number: int, line: str) -> dict:
    """The row that a line of a JSONL file holds. Raises UserError."""
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(f"{path}, line {number}: half of a surrogate pair, no character") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {number}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise UserError(f"{path}, line {number}: a row must be a JSON object")
    return row


def complete_lines(path: pathlib.Path) -> Iterator[str]:
    """The lines of a file, but for a last one that a kill cut off.

    Raises OSError at once if there is no such file.
    """
    file = open(path, encoding="utf-8")

    def lines():
        with file:
            for line in file:
                if line.endswith("\n"):
                    yield line[:-1]

    return lines()
