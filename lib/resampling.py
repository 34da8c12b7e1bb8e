"""Dynamic sampling: questions that teach nothing are replaced by further ones (--resample).

Where all executions of a question got the same reward, every advantage is 0, but for those of
single calls where replays give them. As in DAPO (arXiv 2503.14476), but with a limit: what is still
missing after so many attempts stays as it is. Rewards and shares in the metrics are of the
questions that stay. In their replays, calls are drawn with other seeds than in the rollout.

Test: `pytest tests/test_minibatches.py`. Read next: minibatches.py.
"""

from data_types import Tree
from rollout import stack_rewards


async def replace_ties(trees: list[Tree], trainer, step: int) -> int:
    """Replace trees without a difference in reward, in place. Returns how many were."""
    num_replaced = 0
    for attempt in range(1, trainer.config.resample + 1):
        ties = [place for place, tree in enumerate(trees) if is_tie(tree)]
        if not ties:
            break
        questions = trainer.questions_of_step(step, attempt)[: len(ties)]
        grown = await trainer.grow(questions, step, attempt)
        grown = [tree for tree in grown if not is_tie(tree)]
        for place, tree in zip(ties, grown):
            trees[place] = tree
            num_replaced += 1
    return num_replaced


def is_tie(tree: Tree) -> bool:
    """Whether its valid executions all have the same reward, or there are none."""
    rewards_Q_M_N, valid_Q_M_N = stack_rewards([tree])
    return len(rewards_Q_M_N[valid_Q_M_N].unique()) < 2
