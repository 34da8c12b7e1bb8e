"""Trackers: what a run sends to TensorBoard or Weights & Biases, beside its own files.

Metrics by group, the flags, and at every evaluation a table of the designs of one question.

Test: `pytest tests/test_trackers.py`. Read next: plots.py.
"""

import pathlib
import secrets

from lib.errors import UserError
from lib.files import atomic_write

GROUPS = ("eval", "seconds", "mismatch")  # prefixes of metrics; the others are train/
COLUMNS = ["question", "design", "reward", "advantage"]


def open_tracker(name: str, out: pathlib.Path, flags: dict):
    """The tracker of `--tracker`. Raises UserError if it is not installed, or nobody is logged in.

    flags: of the run.
    """
    if name == "none":
        return Tracker()
    try:
        return {"wandb": WandbTracker, "tensorboard": TensorBoardTracker}[name](out, flags)
    except ImportError:
        raise UserError(f"--tracker {name}: not installed; pip install {name}") from None


def grouped(metrics: dict) -> dict[str, float]:
    """The numbers among the metrics, by group.

    >>> grouped({"step": 3, "eval_greedy": 0.5, "reward": 1.0, "trained_roles": ["designer"]})
    {'eval/greedy': 0.5, 'train/reward': 1.0}
    """
    numbers = {}
    for name, value in metrics.items():
        group, _, rest = name.partition("_")
        if name != "step" and isinstance(value, (int, float)):
            numbers[f"{group}/{rest}" if group in GROUPS else f"train/{name}"] = value
    return numbers


def rows_of(episode: dict) -> list[list]:
    """COLUMNS of each design of an episode (viewer.pages.episode)."""
    rows = []
    for design in episode["designs"]:
        numbers = design.get("reward"), design.get("advantage")
        rows.append([episode["question"], design["script"], *numbers])
    return rows


class Tracker:
    """Of `--tracker none`."""

    def numbers(self, metrics: dict, step: int) -> None:
        pass

    def designs(self, episode: dict, step: int) -> None:
        pass

    def close(self, has_failed: bool) -> None:
        """Send what is left. A rank that fails ends at once, without Python's clean-up."""


class TensorBoardTracker(Tracker):
    def __init__(self, out: pathlib.Path, flags: dict):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(out / "tensorboard")
        lines = [f"| {name} | {value} |" for name, value in flags.items()]
        self.writer.add_text("flags", "\n".join(["| flag | value |", "|---|---|", *lines]))

    def numbers(self, metrics: dict, step: int) -> None:
        for name, value in grouped(metrics).items():
            self.writer.add_scalar(name, value, step)

    def designs(self, episode: dict, step: int) -> None:
        lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        for question, script, *numbers in rows_of(episode):
            code = script.replace("|", "\\|").replace("\n", "<br>")
            lines.append(f"| {question} | {code} | {' | '.join(map(str, numbers))} |")
        self.writer.add_text("designs", "\n".join(lines), step)

    def close(self, has_failed: bool) -> None:
        self.writer.close()


class WandbTracker(Tracker):
    """The run of this folder, which a resumed run goes on with."""

    def __init__(self, out: pathlib.Path, flags: dict):
        import wandb

        self.wandb = wandb
        file = out / "wandb_id"
        options = {"id": file.read_text() if file.exists() else secrets.token_hex(4)}
        options |= {"project": "metaagent-x", "name": out.name, "dir": out, "resume": "allow"}
        try:
            self.run = wandb.init(config=flags, **options)
        except wandb.Error as error:
            problem = " ".join(str(error).split())[:200]
            raise UserError(f"--tracker wandb: {problem}") from None
        atomic_write(file, options["id"])

    def numbers(self, metrics: dict, step: int) -> None:
        self.run.log(grouped(metrics), step=step)

    def designs(self, episode: dict, step: int) -> None:
        table = self.wandb.Table(columns=COLUMNS, data=rows_of(episode))
        self.run.log({"designs": table}, step=step)

    def close(self, has_failed: bool) -> None:
        self.run.finish(exit_code=int(has_failed))
