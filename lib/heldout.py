"""The held-out evaluation of a training run.

Test: `pytest tests/test_train.py`. Read next: metrics.py.
"""

from designer import FIXED_DESIGNS
from lib.distributed import all_gather, world_size
from lib.metrics import by_family, execution_stats, mean


async def evaluate_heldout(trainer) -> dict:
    """Answer the held-out questions once each, at temperature 1. Returns metrics of all ranks.

    The designs are the model's own, or --fixed-design. Before the first step and after the last the
    same weights answer by every hand-written design, too.
    """
    questions = trainer.heldout_questions[trainer.rank :: world_size()]
    seed = (trainer.config.seed, "held-out")
    with_fixed_designs = trainer.step in (0, trainer.config.steps)

    async def answer(script: str | None) -> list:
        trees = await trainer.rollout.rollout(questions, 1, 1, seed, script)
        return [stats for stats in all_gather(execution_stats(trees)) if stats.valid]

    stats = await answer(trainer.fixed_design)
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
