"""Checkpoints: written beside the old one and swapped in by renames.

    checkpoint/            a Hugging Face folder, with --lora of the adapter alone, and trainer.pt:
                           optimizer, rng, step, flags
    checkpoint/designer/   where both roles learn with weights of their own: the designer's; the
                           folder above is the executor's
    best/                  the models alone, of the best evaluation at temperature 0

A kill at any moment leaves a complete one, the new or the old.

Test: `pytest tests/test_checkpoint.py`. Read next: records.py.
"""

import asyncio
import os
import pathlib
import shutil
from dataclasses import asdict

import torch

from lib import trained_on
from lib.distributed import gather_optimizer, gather_weights, iterate_weights, restore_optimizer
from lib.errors import UserError
from lib.shapes import copy_shapes


def save(out: pathlib.Path, learners: list, step: int, is_writer: bool = True) -> None:
    """Write `out`/checkpoint: `step` updates are done. Collective, where weights are divided.

    Args:
        learners: train.Learner of the shared weights, of one role's, or of the executor's and the
            designer's.
        is_writer: rank 0 writes.

    Raises:
        UserError: the disk is full; the old checkpoint stays in place.
    """

    trainer_states = [
        {
            "optimizer": gather_optimizer(
                learner.policy.model, learner.optimizer, learner.is_sharded
            ),
            "rng": torch.get_rng_state(),
            "step": step,
            "config": asdict(learner.config),
        }
        for learner in learners
    ]
    write_folder(out, "checkpoint", learners, trainer_states, step, is_writer)


def save_best(out: pathlib.Path, learners: list, step: int, is_writer: bool = True) -> None:
    """Write `out`/best, the models alone. Collective and raises UserError, as `save`."""
    write_folder(out, "best", learners, [None] * len(learners), step, is_writer)


def write_folder(out, name: str, learners: list, trainer_states: list, step, is_writer) -> None:
    """The models, written beside what was there and then put in its place.

    trainer_states: of each learner what goes to trainer.pt; None: no such file.
    """
    weights = [gather_weights(learner.policy.model, learner.is_sharded) for learner in learners]
    if not is_writer:
        return
    new, current, old = (out / f"{name}{end}" for end in (".new", "", ".old"))
    shutil.rmtree(new, ignore_errors=True)
    try:
        folders = new, new / "designer"
        for folder, learner, own, state in zip(folders, learners, weights, trainer_states):
            learner.policy.save(folder, own)
            if state is not None:
                torch.save(state, folder / "trainer.pt")
            copy_shapes(learner.config.model_of(learner.roles), folder)
            trained_on.copy(out, folder)
            sync_files(folder)
    except Exception as error:  # boundary to libraries: a full disk has four names in theirs
        free = shutil.disk_usage(out).free >> 20
        shutil.rmtree(new, ignore_errors=True)
        problem = f"{free} MB are free on the disk; {str(error)[:120]}"
        raise UserError(
            f"{out}: the {name} of step {step} could not be written ({problem})"
        ) from error
    if current.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(current, old)  # a kill here leaves `old`, which `find` knows
    os.rename(new, current)
    shutil.rmtree(old, ignore_errors=True)


def sync_files(folder: pathlib.Path) -> None:
    for path in folder.iterdir():
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def find(out: pathlib.Path) -> pathlib.Path | None:
    """The newest complete checkpoint of a run; None if it was stopped before its first."""
    for name in ("checkpoint", "checkpoint.old"):
        if (out / name / "trainer.pt").is_file():
            return out / name
    return None


def folders(out: pathlib.Path, config) -> dict[tuple[str, ...], pathlib.Path | None]:
    """Roles that learn the same weights -> the folder to resume these from; None: a new run."""
    folder = find(out) if config.resume else None
    learning = [roles for roles in config.models if config.learns(roles)]
    places = (folder, folder and folder / "designer")
    return dict(zip(learning, places))


def read(folder: pathlib.Path) -> dict:
    """The trainer's state in a checkpoint. Raises UserError if it can't be read."""
    path = folder / "trainer.pt"
    try:
        # Mapped: the ranks of a machine read the same pages, when they need them.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not {"optimizer", "rng", "step", "config"} <= set(state):
            raise ValueError("parts are missing")
        return state
    except Exception as error:  # boundary to pickle and zip: their errors have no common base
        raise UserError(f"{path}: a corrupt checkpoint ({type(error).__name__})") from None


def restore(state: dict, learner) -> int:
    """Load all but the weights, which are the checkpoint's model. Returns the updates done.

    Meanwhile the engine sleeps: where weights are divided, torch has the moments twice for a while.
    """
    model, optimizer = learner.policy.model, learner.optimizer
    asyncio.run(learner.engine.sleep())
    restore_optimizer(model, optimizer, state["optimizer"], learner.is_sharded)
    learner.engine.update_weights(iterate_weights(model, learner.policy.dtype))
    torch.set_rng_state(state["rng"])
    return state["step"]
