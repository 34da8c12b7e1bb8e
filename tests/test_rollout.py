"""The tree: its shape, its credit, its samples."""

import pytest
import torch
from conftest import QUESTION, Scripted, grow

import designer
from lib.errors import EngineError
from rollout import stack_rewards
from train import make_samples


def test_the_tree_has_its_shape_and_rewards(policy):
    """Two designs: one answers right, one does not run."""
    designs = iter([designer.FIXED_DESIGNS["single"], "nonsense("])

    def speak(prompt):
        return next(designs) if designer.ROLE in prompt else r"\boxed{42}"

    (tree,) = grow(policy, Scripted(policy, speak), [QUESTION], 2, 3)
    rewards, valid = stack_rewards([tree])
    assert rewards.tolist() == [[[1.0] * 3, [0.0] * 3]] and valid.all()
    assert [execution.status for execution in tree.executions[1]] == ["invalid_script"] * 3


def test_samples_carry_the_advantage_of_their_trajectory(policy):
    def speak(prompt):
        return designer.FIXED_DESIGNS["vote"] if designer.ROLE in prompt else r"\boxed{42}"

    (tree,) = grow(policy, Scripted(policy, speak), [QUESTION], 2, 2)
    designer_adv = torch.tensor([[1.0, -1.0]])
    executor_adv = torch.tensor([[[0.1, 0.2], [0.3, 0.4]]])
    samples = make_samples([tree], designer_adv, executor_adv, {"designer", "executor"})
    of_designer = [sample for sample in samples if sample.role == "designer"]
    assert [sample.advantage for sample in of_designer] == [1.0, -1.0]
    of_executor = [sample.advantage for sample in samples if sample.role == "executor"]
    assert of_executor == pytest.approx([0.1] * 3 + [0.2] * 3 + [0.3] * 3 + [0.4] * 3)
    assert make_samples([tree], designer_adv, executor_adv, {"designer"}) == of_designer


def test_an_engine_that_fails_at_the_design_is_infrastructure(policy):
    (tree,) = grow(policy, Scripted(policy, lambda prompt: EngineError("down")), [QUESTION], 2, 2)
    assert not stack_rewards([tree])[1].any()
    assert {execution.status for _, execution in tree.pairs()} == {"infra_error"}
