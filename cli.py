"""The edge of the commands: flags in, one line out when something is wrong.

`train.py`, `eval.py` and `sft.py` share this contract: flags are the fields of one flat dataclass (tyro: `--help` shows every
default, an unknown flag is an error with a suggestion), bad input ends with one line and exit code 2, Ctrl-C with 130,
and what the commands say goes through one logger.  Test: `pytest tests/test_cli.py`.
"""
import argparse
import asyncio
import contextlib
import errno
import io
import json
import logging
import os
import pathlib
import re
import sys
from dataclasses import asdict

import tyro

import sandbox
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


def run_file() -> None:
    """`python sandbox.py FILE.py`: run one file in the sandbox and print its outcome as JSON; `--check`: say which level works here."""
    parser = argparse.ArgumentParser(description="Run one Python file in the sandbox and print its outcome as JSON.")
    parser.add_argument("file", nargs="?", default="", help="the file to run")
    parser.add_argument("--sandbox", default="auto", choices=("auto", *sandbox.LEVELS), help="level (default: %(default)s)")
    parser.add_argument("--wall", type=float, default=5.0, help="seconds of wall time (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="say which level works here, and why none above it does")
    arguments = parser.parse_args()

    async def go():
        async with sandbox.Sandbox(arguments.sandbox) as box:
            if arguments.check:
                return {"level": box.level, "why_not": box.why_not}
            code = pathlib.Path(arguments.file).read_bytes().decode("utf-8", "surrogateescape")
            return {**asdict(await box.run(code, limits=sandbox.Limits(wall=arguments.wall))), "results": None}

    try:
        if not arguments.check and not os.path.isfile(arguments.file):
            raise BadInput(f"no such file: {arguments.file}" if arguments.file else "name a file to run, or --check")
        print(json.dumps(asyncio.run(go())))
    except (BadInput, sandbox.SandboxError, OSError, ValueError) as error:
        sys.stderr.write(f"sandbox.py: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def model_path(name: str) -> str:
    """`tiny` is the model that comes with this repository, wherever the command is run from."""
    return str(HERE / "tiny") if name == "tiny" and not os.path.isdir(name) else name


def device() -> str:
    """This rank's device."""
    import torch
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def dtype(name: str):
    """What a model computes in: `auto` is bfloat16 on a GPU, float32 on a CPU."""
    import torch
    return getattr(torch, name) if name != "auto" else torch.bfloat16 if torch.cuda.is_available() else torch.float32


def atomic_write(path: pathlib.Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
