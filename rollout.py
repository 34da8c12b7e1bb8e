"""The rollout: Q questions x M designs per question x N executions per design, all of it concurrent.

    question q --designer--> design q,m --executor--> execution q,m,n --grade--> rewards_Q_M_N[q, m, n]

The two levels are what separate the quality of a design from the luck of one execution. Every sample has a seed of its own,
hashed from (seed, step, question, m, n, call), so a tree is the same whatever its neighbours, its batch or its rank.
Test: `pytest tests/test_rollout.py`. Read next: credit.py.
"""
import asyncio
from dataclasses import dataclass, replace

import torch

import programs
from designer import Design, design
from executor import Budget, Execution, Executor
from policy import EngineError, seed_of
from sandbox import SandboxError
from scorer import Sample
from tasks import Question, grade


@dataclass(frozen=True)
class Tree:
    """What came of one question: M designs, M x N executions with their rewards; `valid` is False where the infrastructure failed."""
    question: Question
    designs: tuple[Design, ...]
    executions: tuple[tuple[Execution, ...], ...]
    rewards_M_N: torch.Tensor
    valid_M_N: torch.Tensor

    def flat(self):
        """All (design, execution, reward) of the tree."""
        return [(design, execution, self.rewards_M_N[m, n].item()) for m, design in enumerate(self.designs)
                for n, execution in enumerate(self.executions[m])]


class Rollout:
    """Grows trees with one sandbox and one engine, or two: one for each role."""

    def __init__(self, engine, policy, sandbox, budget: Budget = Budget(), design_tokens: int = 1024, temperature: float = 1.0, designer=None,
                 all_tests: bool = True):
        """designer: (engine, policy) of the designer role, where it is another model. all_tests: if not, the tests of a program end at the first that fails."""
        self.designer, self.all_tests = designer or (engine, policy), all_tests
        self.engine, self.policy, self.design_tokens, self.temperature = engine, policy, design_tokens, temperature
        self.executor = Executor(engine, policy, sandbox, budget, temperature)

    async def __call__(self, questions: list[Question], designs: int, executions: int, seed: tuple, fixed: str | None = None,
                       on_done=lambda tree: None) -> list[Tree]:
        """The trees of `questions`, M = `designs`, N = `executions`. fixed: run this script instead of sampling (a baseline).
        on_done: is called with each tree as it is done."""
        return await self.engine.gather(*(self.tree(question, designs, executions, (*seed, question.id), fixed, on_done)
                                          for question in questions))

    async def tree(self, question, M, N, seed, fixed, on_done) -> Tree:
        branches = await self.engine.gather(*(self.branch(question, N, (*seed, m), fixed) for m in range(M)))
        rewards = torch.tensor([[reward for _, reward in runs] for _, runs in branches])
        executions = tuple(tuple(execution for execution, _ in runs) for _, runs in branches)
        valid = torch.tensor([[execution.status != "infrastructure" for execution in runs] for runs in executions])
        assert rewards.shape == valid.shape == (M, N)
        tree = Tree(question, tuple(design for design, _ in branches), executions, rewards, valid)
        on_done(tree)
        return tree

    async def branch(self, question, N, seed, fixed):
        """One design and its N executions, graded."""
        if fixed is not None:
            sampled = Design(fixed)
        else:
            try:
                sampled = await design(*self.designer, question, seed, self.design_tokens, self.temperature)
            except EngineError as error:
                return Design("", error=str(error)), [(Execution((), None, "infrastructure", str(error)), 0.0)] * N
        return sampled, await self.engine.gather(*(self.leaf(sampled, question, (*seed, n)) for n in range(N)))

    async def leaf(self, sampled, question, seed):
        execution = await self.executor.execute(sampled, question, seed)
        if execution.answer is None:
            return execution, 0.0
        try:
            return execution, await self.reward(question, execution.answer)
        except SandboxError as error:
            return replace(execution, status="infrastructure", detail=str(error)), 0.0

    async def reward(self, question, answer: str) -> float:
        """Of a submitted answer: its grade, or the fraction of the tests that its program passes. Raises SandboxError."""
        if question.kind == "code":
            return await programs.grade(self.executor.sandbox, question.tests, programs.last_program(answer), stop=not self.all_tests)
        return await asyncio.to_thread(grade, question, answer)


def stack(trees: list[Tree]):
    """rewards_Q_M_N and valid_Q_M_N of a batch of trees."""
    return torch.stack([tree.rewards_M_N for tree in trees]), torch.stack([tree.valid_M_N for tree in trees])


def samples(trees: list[Tree], designer_Q_M, executor_Q_M_N, roles) -> list[Sample]:
    """The completions of `roles` with the advantage of their trajectory: all calls of an execution share one.

    Executions that the infrastructure spoiled, and designs that have no other, are left out.
    """
    found = []
    for q, tree in enumerate(trees):
        for m, design in enumerate(tree.designs):
            if "designer" in roles and design.completion_ids and tree.valid_M_N[m].any():
                found.append(Sample(design.prompt_ids, design.completion_ids, design.logprobs, designer_Q_M[q, m].item(), "designer"))
            for n, execution in enumerate(tree.executions[m]):
                if "executor" in roles and tree.valid_M_N[m, n]:
                    found += [Sample(call.prompt_ids, call.completion_ids, call.logprobs, executor_Q_M_N[q, m, n].item(), "executor")
                              for call in execution.calls]
    return found


def idle_samples(trees: list[Tree], roles, seed: tuple) -> list[Sample]:
    """One completion of each of `roles` per design, without an advantage: what the anchor holds in place."""
    found = []
    for tree in trees:
        for m, design in enumerate(tree.designs):
            if "designer" in roles and design.completion_ids:
                found.append(Sample(design.prompt_ids, design.completion_ids, design.logprobs, 0.0, "designer"))
            calls = [call for execution in tree.executions[m] for call in execution.calls]
            if "executor" in roles and calls:
                call = calls[seed_of(*seed, tree.question.id, m) % len(calls)]
                found.append(Sample(call.prompt_ids, call.completion_ids, call.logprobs, 0.0, "executor"))
    return found
