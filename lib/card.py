"""The model card of a run's checkpoint: what it was trained from, how, and how good it is.

Test: `pytest tests/test_card.py`. Read next: records.py.
"""

import json
import pathlib
import subprocess

from lib.cli import ROOT, flag_name
from lib.files import atomic_write, complete_lines
from lib.metrics import net_accuracy, start_of

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
base_model: {model}
tags: [metaagent-x, multi-agent, grpo]
---

# {name}

Trained by MetaAgent-X, minimal, to design multi-agent systems, as short Python scripts, and to play
their agents{roles}. It expects the prompts of designer.py and executor.py.

| | |
|---|---|
{facts}

Flags: `{flags}`
"""


def write_cards(out: pathlib.Path) -> None:
    """A README.md in each folder of models of the run in `out`."""
    config = json.loads((out / "config.json").read_text())
    rows = [json.loads(line) for line in complete_lines(out / "metrics.jsonl")]
    evaluated = [row for row in rows if "eval_greedy" in row]
    for name in ("checkpoint", "best"):
        for folder in (out / name, out / name / "designer"):
            if folder.is_dir():
                is_designer = folder.name == "designer" or config["stage"] == "designer"
                base = config["designer" if is_designer else "executor"] or config["model"]
                text = card(config, base, evaluated, out.name, name)
                atomic_write(folder / "README.md", text)


def card(config: dict, base: str, evaluated: list[dict], run: str, name: str) -> str:
    """The text.

    Args:
        config: the run's flags.
        base: the model that it began with.
        evaluated: those rows of metrics.jsonl that have an evaluation.
        name: "checkpoint" or "best".
    """
    # The first row is the start's, unless that stands in it beside the first step's.
    ends = [row for row in evaluated if row is not evaluated[0] or "eval_start" in row]
    last = ends[-1] if ends else None
    if name == "best":
        last = max(ends, key=net_accuracy, default=None)
    facts = {"questions": config["tasks"], "commit": commit()}
    if evaluated:
        before = start_of(evaluated[0])["eval_greedy"]
        facts["held-out accuracy before, temperature 0"] = f"{before:.3f}"
    if last:
        facts[f"after {last['step'] + 1} steps, temperature 0"] = f"{last['eval_greedy']:.3f}"
        facts[f"after {last['step'] + 1} steps, temperature 1"] = f"{last['eval_accuracy']:.3f}"
    private = ("out", "resume", "data_dir", "questions_hash")
    flags = [
        f"{flag_name(flag)} {value}"
        for flag, value in config.items()
        if value not in (None, "") and flag not in private
    ]
    stage = config["stage"]
    roles = "" if stage in ("stagewise", "both") else f" (only the {stage} role)"
    return CARD.format(
        model=base,
        name=f"{run}, {name}",
        roles=roles,
        facts="\n".join(f"| {fact} | {value} |" for fact, value in facts.items()),
        flags=" ".join(flags),
    )


def commit() -> str:
    """Of the code; "unknown" outside a checkout."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
