"""The held-out evaluation of a training run.

Test: `pytest tests/test_train.py`. Read next: metrics.py.
"""

from designer import FIXED_DESIGNS
from lib.distributed import all_gather
from lib.metrics import by_family, execution_stats, mean


async def evaluate_heldout(
    rollout, questions: list, seed: tuple, design: str | None, with_fixed_designs: bool
) -> dict:
    """Answer this rank's questions once each, at temperature 1. Returns metrics of all ranks.

    Args:
        design: a hand-written design for all of them; None: the model's own. with_fixed_designs:
        answer them by every hand-written design, too. All with the same weights.
    """

    async def answer(script: str | None) -> list:
        trees = await rollout.rollout(questions, 1, 1, seed, script)
        return [stats for stats in all_gather(execution_stats(trees)) if stats.valid]

    stats = await answer(design)
    evaluation = {
        "eval_accuracy": mean(s.eval_score for s in stats),
        "eval_valid_designs": mean(s.script_runs for s in stats),
        "eval_families": by_family(stats),
    }
    if not with_fixed_designs:
        return evaluation
    evaluation["eval_fixed"] = {}
    evaluation["eval_fixed_families"] = {}
    for name, script in FIXED_DESIGNS.items():
        stats = await answer(script)
        families = by_family(stats)
        accuracies = {family: families[family]["accuracy"] for family in families}
        evaluation["eval_fixed"][name] = mean(s.eval_score for s in stats)
        evaluation["eval_fixed_families"][name] = accuracies
    return evaluation
