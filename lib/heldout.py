"""The held-out evaluation of a training run.

Test: `pytest tests/test_train.py`. Read next: metrics.py.
"""

import asyncio
import copy
from collections import Counter
from dataclasses import replace

import tasks
from data_types import Tree
from lib.distributed import all_gather, world_size
from lib.launch import check_infrastructure
from lib.metrics import by_family, design_metrics, execution_stats, mean
from lib.shapes import shape, shape_hash

MAX_AT_ONCE = 256  # executions of a rank at a time; one job may have more
NUM_EXAMPLES = 5  # new designs that are written out


async def evaluate_heldout(trainer) -> dict:
    """Answer the held-out questions at temperature 1 and at 0, once each. Metrics of all ranks.

    The designs are the model's own, or the one by hand. Before the first step and after the last
    the same weights answer by every hand-written design of the set, too.
    """
    config = trainer.config
    is_end = trainer.step in (0, config.steps)
    by_hand = tasks.designs_by_hand(config.tasks) if is_end else {}
    jobs = []
    for script in (trainer.fixed_design, *by_hand.values()):
        jobs += [(script, 1.0), (script, 0.0)]
    answers = await answer_all(trainer, jobs)
    trees, stats, num_failed = answers[trainer.fixed_design, 1.0]
    _, greedy, num_failed_greedy = answers[trainer.fixed_design, 0.0]
    designs = design_metrics(stats, trainer.shown)
    evaluation = {
        "eval_accuracy": mean(s.eval_score for s in stats),
        "eval_greedy": mean(s.eval_score for s in greedy),
        "eval_cost": mean(s.cost for s in greedy),
        "eval_valid_designs": mean(s.script_runs for s in stats),
        "eval_infra_errors": num_failed + num_failed_greedy,
        "eval_families": by_family(stats),
        "eval_greedy_families": accuracy_by_family(greedy),
        **{f"eval_{name}": value for name, value in designs.items()},
    }
    if trainer.shown is not None:
        evaluation["eval_new_examples"] = new_examples(trees, trainer.shown)
    if not is_end:
        return evaluation

    for key, temperature in (("eval_fixed", 1.0), ("eval_fixed_greedy", 0.0)):
        evaluation[key], evaluation[f"{key}_families"] = {}, {}
        for name, script in by_hand.items():
            _, stats, _ = answers[script, temperature]
            evaluation[key][name] = mean(s.eval_score for s in stats)
            evaluation[f"{key}_families"][name] = accuracy_by_family(stats)
    return evaluation


async def answer_all(trainer, jobs: list[tuple]) -> dict[tuple, tuple[list[Tree], list, int]]:
    """One answer to each question in each job. A job is (script, temperature).

    script: as for Rollout.rollout. Several jobs run at a time, as a GPU would be idle while it
    waits for the last answers of one. Returns for each job this rank's trees, and of all ranks:
    the statistics of the executions that count, and how many do not, as the infrastructure failed.
    Collective. Raises AllRanksStop if none counts.
    """
    rollout = copy.copy(trainer.rollout)
    rollout.stop_at_failure = True  # of a program's tests: an answer is right or not
    questions = trainer.heldout_questions[trainer.rank :: world_size()]
    seed = (trainer.config.seed, "held-out")

    async def answer(script, temperature: float) -> list[Tree]:
        at_temperature = copy.copy(rollout)
        at_temperature.runtime = replace(rollout.runtime, temperature=temperature)
        return await at_temperature.rollout(questions, 1, 1, seed, script)

    answers = {}
    num_jobs = max(1, MAX_AT_ONCE // max(1, len(questions)))
    for first in range(0, len(jobs), num_jobs):
        some = jobs[first : first + num_jobs]
        grown = await asyncio.gather(*(answer(*job) for job in some))
        for job, trees in zip(some, grown):
            await check_infrastructure(trees, trainer)
            stats = all_gather(execution_stats(trees))
            counting = [s for s in stats if s.valid]
            answers[job] = trees, counting, len(stats) - len(counting)
    return answers


def accuracy_by_family(stats: list) -> dict[str, float]:
    return {family: values["accuracy"] for family, values in by_family(stats).items()}


def new_examples(trees: list[Tree], shown: frozenset) -> list[dict]:
    """The most used shapes that the cold start did not show, each with a design and its question.

    Of this rank's questions, those whose answer was right.
    """
    examples, counts = {}, Counter()
    for tree in trees:
        question, script = tree.question.prompt, tree.designs[0].script
        is_right = tree.executions[0][0].reward == 1.0
        if is_right and shape_hash(question, script) not in shown:
            counts[shape(question, script)] += 1
            examples.setdefault(shape(question, script), {"question": question, "design": script})
    return [
        {"count": n, "shape": name, **examples[name]}
        for name, n in counts.most_common(NUM_EXAMPLES)
    ]
