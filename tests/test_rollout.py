"""The tree: its shape, its credit, its samples."""
import torch
from conftest import QUESTION, Scripted, grow

import designer
from policy import EngineError
from rollout import samples, stack


def test_the_tree_has_its_shape_and_rewards(policy):
    """Two designs: one answers right, one does not run."""
    designs = iter([designer.FIXED["single"], "nonsense("])

    def speak(prompt):
        return next(designs) if designer.ROLE in prompt else r"\boxed{42}"

    tree, = grow(policy, Scripted(policy, speak), [QUESTION], 2, 3)
    rewards, valid = stack([tree])
    assert rewards.tolist() == [[[1.0] * 3, [0.0] * 3]] and valid.all()
    assert [run.status for run in tree.executions[1]] == ["invalid_script"] * 3


def test_samples_carry_the_advantage_of_their_trajectory(policy):
    tree, = grow(policy, Scripted(policy, lambda p: designer.FIXED["vote"] if designer.ROLE in p else r"\boxed{42}"), [QUESTION], 2, 2)
    designer_Q_M, executor_Q_M_N = torch.tensor([[1.0, -1.0]]), torch.tensor([[[0.1, 0.2], [0.3, 0.4]]])
    found = samples([tree], designer_Q_M, executor_Q_M_N, {"designer", "executor"})
    assert [s.advantage for s in found if s.role == "designer"] == [1.0, -1.0]
    executor = [round(s.advantage, 6) for s in found if s.role == "executor"]
    assert executor == [a for a in (0.1, 0.2, 0.3, 0.4) for _ in range(3)]
    assert samples([tree], designer_Q_M, executor_Q_M_N, {"designer"}) == [s for s in found if s.role == "designer"]


def test_an_engine_that_fails_at_the_design_is_infrastructure(policy):
    tree, = grow(policy, Scripted(policy, lambda prompt: EngineError("down")), [QUESTION], 2, 2)
    assert not tree.valid_M_N.any() and {run.status for runs in tree.executions for run in runs} == {"infrastructure"}
