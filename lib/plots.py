"""curves.png: rewards and held-out accuracy, designs, outcomes; the stages as bands. front.png.

Test: `pytest tests/test_train.py`. Read next: memory.py.
"""

import json
import os
import pathlib

from lib.files import complete_lines
from lib.prices import price_of

COLOURS = {"executor": "#d9822b", "designer": "#2b6cd9", "both": "#888888"}


def draw_curves(out: pathlib.Path) -> None:
    """Write curves.png of a run's folder from its metrics.jsonl."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [json.loads(line) for line in complete_lines(out / "metrics.jsonl")]
    if not rows:
        return
    figure, axes = plt.subplots(3, 1, figsize=(9, 9), sharex=True, constrained_layout=True)
    for axis in axes:
        draw_stages(axis, rows)
    draw_rewards(axes[0], rows)
    colours = plt.get_cmap("tab20").colors
    draw_shares(axes[1], rows, "structures", "share of designs", colours)
    if "new_designs" in rows[0]:
        new = [row["new_designs"] for row in rows]
        axes[1].plot([row["step"] for row in rows], new, "k--", label="not in the cold start")
    draw_shares(axes[2], rows, "statuses", "share of outcomes", colours)
    axes[2].set_xlabel("step (bands: orange the executor learns, blue the designer)")
    for axis in axes:
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    figure.savefig(out / "curves.tmp.png", dpi=110)
    plt.close(figure)
    os.replace(out / "curves.tmp.png", out / "curves.png")


def draw_stages(axis, rows: list[dict]) -> None:
    axis.set_ylim(0, 1.02)
    for row in rows:
        roles = row["trained_roles"]
        colour = COLOURS[roles[0] if len(roles) == 1 else "both"]
        axis.axvspan(row["step"] - 0.5, row["step"] + 0.5, color=colour, alpha=0.08, linewidth=0)


def draw_rewards(axis, rows: list[dict]) -> None:
    steps = [row["step"] for row in rows]
    for role in ("designer", "executor"):
        rewards = [row[f"{role}_reward"] for row in rows]
        label = f"{role} reward (training questions)"
        axis.plot(steps, rewards, color=COLOURS[role], linewidth=1, label=label)
    evaluated = [row for row in rows if "eval_accuracy" in row]
    if evaluated:
        accuracies = [row["eval_accuracy"] for row in evaluated]
        steps = [row["step"] for row in evaluated]
        axis.plot(steps, accuracies, "ko-", label="held-out accuracy")
        greedy = [row["eval_greedy"] for row in evaluated]
        axis.plot(steps, greedy, "k^:", label="held-out accuracy, temperature 0")
    axis.set_ylabel("reward")


def draw_shares(axis, rows: list[dict], key: str, label: str, colours) -> None:
    steps = [row["step"] for row in rows]
    names = sorted({name for row in rows for name in row[key]})
    shares = []
    for name in names:
        shares.append([row[key].get(name, 0) / max(1, sum(row[key].values())) for row in rows])
    axis.stackplot(steps, shares, labels=names, alpha=0.85, colors=colours)
    axis.set_ylabel(label)


def draw_front(results: list, path: pathlib.Path) -> None:
    """Accuracy against sampled tokens: own designs at each price, all else beside them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(result.tasks for result in results))
    figure, axes = plt.subplots(
        1, len(names), figsize=(6 * len(names), 4.5), squeeze=False, constrained_layout=True
    )
    for axis, name in zip(axes[0], names):
        for is_own, style in ((True, "o-"), (False, "s")):
            shown = [
                r for r in results if r.tasks == name and (price_of(r.mode) is not None) == is_own
            ]
            shown.sort(key=lambda result: result.tokens)
            axis.plot([r.tokens for r in shown], [r.accuracy for r in shown], style)
            for result in shown:
                axis.annotate(result.mode, (result.tokens, result.accuracy), fontsize=8)
        axis.set(title=name, xlabel="sampled tokens per answer", ylabel="accuracy")
    figure.savefig(path, dpi=110)
    plt.close(figure)
