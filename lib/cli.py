"""The edge of the commands: flags in, one line out when something is wrong.

All commands share this contract. Flags are the fields of one flat dataclass (tyro: `--help` shows
every default, an unknown flag is an error with a suggestion). Bad input ends with one line and exit
code 2, Ctrl-C with 130. What the commands print goes through one logger.

Test: `pytest tests/test_cli.py`. Read next: files.py.
"""

import contextlib
import errno
import io
import logging
import os
import pathlib
import re
import sys
import time
import traceback

import tyro
import yaml

from lib.errors import RankError, UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
log = logging.getLogger("metaagent")

# torchrun ends the first rank as soon as another one ends, and the first has to say why.
SECONDS_TO_SPEAK = 20.0

# What a file system says to a user: no space, no permission, a file where a folder should be ...
USER_ERRNOS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
)


def flags(config_class, argv: list[str], description: str, default=None):
    """An instance of `config_class` from the command line. Raises UserError; exits after --help."""
    argv = with_config_file(argv)
    description += " --config FILE.yaml: flags of a file; those of the command line win."
    options = {} if default is None else {"default": default}
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(config_class, args=argv, description=description, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
    # tyro prints its errors in boxes: keep the words.
    boxes = r"\x1b\[[0-9;]*m|[│╭╮╰╯─┌┐└┘]|-{4,}"
    text = " ".join(re.sub(boxes, " ", stderr.getvalue()).split())
    title = r"^(Parsing error|Required options|Unrecognized options|Value error) "
    raise UserError(re.sub(title, "", text))


def with_config_file(argv: list[str]) -> list[str]:
    """The flags of `--config FILE`, before those of the command line. Raises UserError.

    The file is YAML, name: value; a run's config.json is one, too.
    """
    if "--config" not in argv:
        return argv
    place = argv.index("--config")
    if place + 1 == len(argv):
        raise UserError("--config: which file?")
    path, others = argv[place + 1], argv[:place] + argv[place + 2 :]
    try:
        values = yaml.safe_load(pathlib.Path(path).read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())[:200]
        raise UserError(f"--config {path}: can't be read as YAML ({problem})") from None
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: has to have lines name: value")
    given = []
    for name, value in values.items():
        flag = flag_name(str(name))
        if flag in ("--out", "--resume", "--questions-hash") or value is None:  # a run's own
            continue
        if isinstance(value, bool):
            given.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            values_of_flag = value if isinstance(value, list) else [value]
            given += [flag, *map(str, values_of_flag)]
    return given + others


def log_to(path: pathlib.Path) -> None:
    """What is said goes to this file, too."""
    for old in list(log.handlers):
        if isinstance(old, logging.FileHandler):  # an earlier run's, in the same process
            log.removeHandler(old)
            old.close()
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)


class Console(logging.StreamHandler):
    """Standard output. Whoever reads it may leave (`| head`); the program goes on."""

    def handleError(self, record) -> None:
        if not isinstance(sys.exception(), BrokenPipeError):
            return super().handleError(record)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # from now on, what is written there is dropped


def command(main) -> None:
    """Run `main(argv)` as a program: one line and exit code 2 for bad input.

    Of several ranks, one that fails ends here at once. What Python does at the end of a process
    would take NCCL down, which waits for the other ranks; and they wait for this one.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return run_command(main)
    try:
        return run_command(main)
    except SystemExit as stop:
        if not stop.code:  # as after --help
            raise
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:  # boundary: the process ends
        traceback.print_exc()
        code = 1
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # also where the disk is full
        os._exit(code)


def run_command(main) -> None:
    """Run `main(argv)`. Bad input raises SystemExit with code 2; a bug, its own exception."""
    console = Console(sys.stdout)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[console])
    for noisy in ("httpx", "transformers", "datasets", "reasoning_gym", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    is_first_rank = os.environ.get("RANK", "0") == "0"  # of several ranks, the first speaks
    log.setLevel(logging.INFO if is_first_rank else logging.ERROR)
    speaks = is_first_rank
    try:
        main(sys.argv[1:])
        return
    except RankError as error:  # the first rank may not know of it
        speaks = True
        is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
        problem = str(error) if is_alone else f"rank {os.environ['RANK']}: {error}"
    except (UserError, FloatingPointError) as error:  # the latter: a model whose output is NaN
        problem = str(error)
    except OSError as error:
        if error.errno not in USER_ERRNOS:
            raise
        problem = f"{error.filename or 'writing'}: {error.strerror}"
    except KeyboardInterrupt:
        sys.exit(130)
    if speaks:
        for handler in log.handlers:  # the run's log file
            handler.handle(log.makeRecord(log.name, logging.ERROR, "", 0, problem, (), None))
        sys.stderr.write(f"{pathlib.Path(sys.argv[0]).name}: {' '.join(problem.split())}\n")
    else:
        time.sleep(SECONDS_TO_SPEAK)
    sys.exit(2)


def flag_name(field: str) -> str:
    return "--" + field.replace("_", "-")


def check_at_least(config, minimum: int, fields: str) -> None:
    """Raises UserError if one of the fields (separated by spaces) is below `minimum`, or NaN."""
    for field in fields.split():
        value = getattr(config, field)
        if not value >= minimum:
            must = "must be at least 1" if minimum == 1 else f"must be {minimum} or more"
            raise UserError(f"{flag_name(field)} {value}: {must}")


OWN_MODELS = ("tiny", "tiny/arithmetic")  # come with this repository


def model_path(name: str) -> str:
    """Its own models have their names wherever a command is run from."""
    return str(ROOT / name) if name in OWN_MODELS and not os.path.isdir(name) else name


def load_device() -> str:
    """This rank's device. Products in fp32 are not rounded to TF32, which some containers turn on:
    a sampler and a trainer that round otherwise disagree."""
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every length; vLLM wants it so
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def load_dtype(name: str):
    """What a model computes in. auto: bfloat16 on a GPU, float32 on a CPU."""
    import torch

    if name != "auto":
        return getattr(torch, name)
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def share_cores() -> None:
    """Divide the CPU cores among the ranks of this machine.

    With one rank OMP_NUM_THREADS overrides it. Of several, torchrun sets it, if nobody did.
    """
    import torch

    num_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if "OMP_NUM_THREADS" not in os.environ or num_ranks > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_ranks))
