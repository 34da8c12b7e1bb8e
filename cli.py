"""The edge of the commands: flags in, one line out when something is wrong.

`train.py`, `eval.py` and `sft.py` share this contract: flags are the fields of one flat dataclass (tyro: `--help` shows every
default, an unknown flag is an error with a suggestion), bad input ends with one line and exit code 2, Ctrl-C with 130,
and what the commands say goes through one logger.  Test: `pytest tests/test_cli.py`.
"""
import contextlib
import errno
import io
import logging
import os
import pathlib
import re
import sys

import tyro

from tasks import BadInput

HERE = pathlib.Path(__file__).resolve().parent
log = logging.getLogger("metaagent")


def flags(config_class, argv, description, default=None):
    """An instance of `config_class` from the command line. Raises BadInput; exits after --help."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(config_class, args=argv, default=default, description=description) if default is not None else \
                tyro.cli(config_class, args=argv, description=description)
    except SystemExit as stop:
        if not stop.code:
            raise
        text = " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─┌┐└┘]|-{4,}", " ", said.getvalue()).split())
        raise BadInput(re.sub(r"^(Parsing error|Required options|Unrecognized options|Value error) ", "", text)) from None


def command(main) -> None:
    """Run `main(argv)` as a program: set up the logger, turn bad input into one line and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    for noisy in ("httpx", "transformers", "datasets", "reasoning_gym"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    log.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)  # of several ranks, the first speaks
    name = pathlib.Path(sys.argv[0]).name
    try:
        main(sys.argv[1:])
    except BadInput as error:
        problem = str(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            raise
        problem = f"{error.filename or 'writing'}: {error.strerror}"
    except KeyboardInterrupt:
        sys.exit(130)
    else:
        return
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"{name}: {' '.join(problem.split())}\n")
    sys.exit(2)


def model_path(name: str) -> str:
    """`tiny` is the model that comes with this repository, wherever the command is run from."""
    return str(HERE / "tiny") if name == "tiny" and not os.path.isdir(name) else name


def atomic_write(path: pathlib.Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
