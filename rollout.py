"""The rollout: Q questions, M designs of each, N executions of each design; all of it concurrent.

    question q --designer--> design m --executor--> execution n --grade--> rewards_Q_M_N[q, m, n]

The two levels of the tree separate the quality of a design from the luck of one execution (arXiv
2605.14212). Every sample has a seed of its own, hashed from (seed, step, question, m, n, call): a
tree is the same whatever its neighbours, its batch or its rank (trap 17).

Test: `pytest tests/test_rollout.py`. Read next: credit.py.
"""

import asyncio
from dataclasses import replace
from typing import Callable

import torch

import tasks
from data_types import Design, Execution, Question, Tree
from designer import sample_design
from executor import Executor, Runtime
from lib.errors import EngineError, InfrastructureError
from lib.prices import net_rewards


class Rollout:
    """Grows trees. Designer and executor may be two models, each with its engine."""

    def __init__(self, runtime: Runtime, designer=None, design_tokens=1024, stop_at_failure=False):
        self.runtime = runtime  # engine, policy, sandbox and budget of the executor role
        self.designer = designer or (runtime.engine, runtime.policy)
        self.design_tokens = design_tokens  # max new tokens per design
        self.stop_at_failure = stop_at_failure  # of a program's tests

    async def rollout(
        self,
        questions: list[Question],
        num_designs: int,
        num_executions: int,
        seed: tuple,
        fixed_design=None,
        on_tree: Callable = lambda tree: None,
    ) -> list[Tree]:
        """The trees of `questions`. on_tree is called with each tree when it is done.

        fixed_design: a script to run instead of sampled ones, or a function of the question.
        """

        async def rollout_question(question: Question) -> Tree:
            script = fixed_design(question) if callable(fixed_design) else fixed_design
            designs = [
                self.rollout_design(question, num_executions, (*seed, question.id, m), script)
                for m in range(num_designs)
            ]
            branches = await asyncio.gather(*designs)
            tree = Tree(
                question=question,
                designs=tuple(design for design, _ in branches),
                executions=tuple(executions for _, executions in branches),
            )
            on_tree(tree)
            return tree

        return await asyncio.gather(*(rollout_question(question) for question in questions))

    async def rollout_design(
        self, question: Question, num_executions: int, seed: tuple, fixed_design: str | None
    ) -> tuple[Design, tuple[Execution, ...]]:
        """Sample one design and execute it N times."""
        engine, policy = self.designer
        try:
            if fixed_design is not None:
                design = Design(fixed_design)
            else:
                design = await sample_design(
                    engine, policy, question, seed, self.design_tokens, self.runtime.temperature
                )
        except EngineError as error:
            failed = Execution((), None, "infra_error", str(error))
            return Design("", error=str(error)), (failed,) * num_executions
        runs = [self.rollout_execution(design, question, (*seed, n)) for n in range(num_executions)]
        return design, tuple(await asyncio.gather(*runs))

    async def rollout_execution(
        self, design: Design, question: Question, seed: tuple, executor=Executor
    ) -> Execution:
        """Execute a design once, and grade the answer."""
        execution = await executor(self.runtime, question, seed).execute(design)
        if execution.answer is None:
            return execution  # reward 0; the status says why
        try:
            return replace(execution, reward=await self.reward_of(question, execution.answer))
        except InfrastructureError as error:
            return replace(execution, status="infra_error", detail=str(error))

    async def reward_of(self, question: Question, answer: str) -> float:
        """The reward of an answer, 0 to 1. Raises InfrastructureError."""
        return await tasks.reward(question, answer, self.runtime.sandbox, self.stop_at_failure)


def stack_rewards(trees: list[Tree]) -> tuple[torch.Tensor, torch.Tensor]:
    """rewards_Q_M_N less what tokens cost, valid_Q_M_N: False where the infrastructure failed."""
    rewards = [net_rewards(tree) for tree in trees]
    valid = [[[e.valid for e in row] for row in tree.executions] for tree in trees]
    return torch.tensor(rewards), torch.tensor(valid)
