"""Every formula of credit.py against numbers worked out by hand."""

import math
import subprocess
import sys

import pytest
import torch

import credit
from credit import designer_advantages, executor_advantages, policy_loss, trained_roles

R = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])  # one question, two designs, two executions


def close(value, expected):
    expected = torch.as_tensor(expected)
    assert torch.allclose(torch.as_tensor(value), expected, atol=2e-5), (value, expected)


def test_designer_advantages_by_hand():
    # r = (1/2, 1): mean 3/4, std (ddof 1) = sqrt(2 / 16) = 0.353553.
    # (1/2 - 3/4) / 0.353553 = -0.707107
    close(designer_advantages(R), [[-0.707105, 0.707105]])


def test_executor_advantages_by_hand():
    # all four: mean 3/4, std = sqrt((3 / 16 + 9 / 16) / 3) = 0.5
    close(executor_advantages(R), [[[0.5, -1.5], [0.5, 0.5]]])
    # within designs: (1, 0) has mean 1/2 and std 0.707107; (1, 1) are equals
    close(executor_advantages(R, group="design"), [[[0.707106, -0.707106], [0.0, 0.0]]])


def test_invalid_entries_take_no_part():
    valid = torch.tensor([[[True, False], [True, True]]])
    # designs: r = (1, 1): equals.  executions: (1, -, 1, 1): equals
    assert not designer_advantages(R, valid).any() and not executor_advantages(R, valid).any()
    rewards = torch.tensor([[[1.0, 5.0], [0.0, 1.0]]])
    # valid are 1, 0, 1: mean 2/3, std = sqrt((1/9 + 4/9 + 1/9) / 2) = 0.577350
    close(executor_advantages(rewards, valid), [[[0.577349, 0.0], [-1.154699, 0.577349]]])
    # r = (1, 1/2)
    close(designer_advantages(rewards, valid), [[0.707105, -0.707105]])


def test_a_design_without_a_valid_execution_takes_no_part():
    rewards = torch.tensor([[[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]])
    valid = torch.tensor([[[True, True], [False, False], [True, True]]])
    close(designer_advantages(rewards, valid), [[0.707106, 0.0, -0.707106]])


def test_a_design_is_credited_with_the_mean_of_its_executions():
    rewards = torch.tensor([[[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]])
    close(designer_advantages(rewards), [[0.0, 0.999998, -0.999998]])  # r = (1/2, 1, 0), std 1/2


@pytest.mark.parametrize(
    "rewards",
    [
        torch.full((2, 3, 4), 0.1),
        torch.full((1, 4, 4), 1 / 3),
        torch.ones(1, 1, 1),
        torch.zeros(3, 2, 2),
        torch.tensor([[[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.2, 0.3, 0.1]]]),
    ],
    ids=str,
)
def test_equals_and_singles_are_exact_zeros(rewards):
    assert torch.equal(designer_advantages(rewards), torch.zeros(rewards.shape[:2]))
    if len(set(rewards.flatten().tolist())) == 1:
        for group in ("question", "design"):
            advantages = executor_advantages(rewards, group=group)
            assert torch.equal(advantages, torch.zeros(rewards.shape))


def test_a_group_of_one_is_zero_in_its_own_direction():
    assert not designer_advantages(torch.tensor([[[1.0, 0.0]]])).any()  # one design
    one_execution_each = torch.tensor([[[1.0], [0.0]]])
    assert not executor_advantages(one_execution_each, group="design").any()


def test_bad_arguments_are_errors():
    with pytest.raises(AssertionError, match=r"\(Q, M, N\)"):
        designer_advantages(torch.zeros(2, 2))
    with pytest.raises(AssertionError, match="call"):
        executor_advantages(R, group="call")
    with pytest.raises(AssertionError, match="sometimes"):
        trained_roles(0, stage="sometimes")


def test_inputs_are_not_changed_and_lists_are_welcome():
    before = R.clone()
    designer_advantages(R)
    executor_advantages(R)
    assert torch.equal(R, before)
    close(designer_advantages([[[1, 0], [1, 1]]]), [[-0.707105, 0.707105]])


@pytest.mark.parametrize(
    "ratio, advantage, expected",
    [
        (1.0, 2.0, -2.0),
        (1.5, 1.0, -1.2),
        (1.5, -1.0, 1.5),
        (0.5, 1.0, -0.5),
        (0.5, -1.0, 0.8),
        (1.1, 1.0, -1.1),
    ],
)
def test_clipped_loss_by_hand(ratio, advantage, expected):
    loss, _ = policy_loss(
        torch.tensor([math.log(ratio)]), torch.zeros(1), torch.tensor([advantage])
    )
    close(loss, [expected])


def test_clip_high_and_dual_clip_by_hand():
    one = torch.ones(1)

    def loss(ratio, advantages, **options):
        logprobs = torch.tensor([math.log(ratio)])
        return policy_loss(logprobs, torch.zeros(1), advantages, **options)[0]

    close(loss(1.5, one, clip=(0.2, 0.3)), [-1.3])
    close(loss(5.0, -one), [5.0])
    close(loss(5.0, -one, dual_clip=3.0), [3.0])
    close(loss(1.1, -one, dual_clip=3.0), [1.1])


def test_kl_term_by_hand():
    # reference twice as likely: exp(log 2) - log 2 - 1 = 0.306853, and equal policies cost nothing
    logprobs = torch.tensor([math.log(0.25), math.log(0.5)])
    reference = torch.tensor([math.log(0.5)] * 2)
    close(credit.kl_penalty(logprobs, reference), [0.306853, 0.0])


def test_statistics_by_hand():
    logprobs = torch.tensor([1.5, 0.5, 1.0]).log()
    _, statistics = policy_loss(logprobs, torch.zeros(3), torch.tensor([1.0, 1.0, 1.0]))
    # Only the ratio 1.5 with a positive advantage is clipped.
    assert statistics["clip_frac"].item() == 1
    assert statistics["ratio"].item() == pytest.approx(3.0)
    approx_kl = sum(ratio - 1 - math.log(ratio) for ratio in (1.5, 0.5, 1.0))
    assert statistics["approx_kl"].item() == pytest.approx(approx_kl, abs=1e-6)


def test_gradient_of_the_loss_is_the_policy_gradient():
    """On policy the gradient with respect to a log-probability is -advantage; where the clip binds
    it is zero."""
    logprobs = torch.zeros(3, requires_grad=True)
    old, advantages = torch.tensor([0.0, 0.0, -1.0]), torch.tensor([2.0, -3.0, 1.0])
    loss, _ = policy_loss(logprobs, old, advantages)
    loss.sum().backward()
    close(logprobs.grad, [-2.0, 3.0, 0.0])


def test_stage_schedule():
    roles = [trained_roles(step, phase_steps=2) for step in range(6)]
    executor, designer = {"executor"}, {"designer"}
    assert roles == [executor, executor, designer, designer, executor, executor]
    assert trained_roles(7, "both") == {"designer", "executor"}
    assert trained_roles(7, "designer") == designer and trained_roles(7, "executor") == executor
    assert [trained_roles(step) for step in (29, 30, 60)] == [executor, designer, executor]


def test_the_worked_example_shows_its_numbers():
    text = subprocess.run([sys.executable, credit.__file__], capture_output=True, text=True).stdout
    for numbers in ("[[0.5, 1.0], [0.0, 0.0]]", "[[-0.707, 0.707], [0.0, 0.0]]", "[0.5, -1.5]"):
        assert numbers in text


def test_truncated_importance_sampling_corrects_for_the_sampler():
    """Tokens come from q, the model that is trained is p. Expected gradients, summed exactly over
    four tokens: with the weights it is the gradient of the expected advantage under p; without any
    correction, or with clipping against q alone, it is another one."""
    logits = torch.tensor([0.5, -0.2, 0.1, -0.7], dtype=torch.float64, requires_grad=True)
    log_q = (logits.detach() + torch.tensor([-0.9, 0.6, 0.3, 0.0])).log_softmax(0)
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.3], dtype=torch.float64)

    def gradient(loss_K, probabilities):
        return torch.autograd.grad((probabilities * loss_K).sum(), logits, retain_graph=True)[0]

    log_p = logits.log_softmax(0)
    exact = gradient(-log_p * advantages, log_p.detach().exp())
    errors = {}
    for cap in (10.0, 1.2):
        weights = credit.importance_weights(log_p, log_q, cap)
        loss, _ = policy_loss(log_p, log_p.detach(), advantages)
        errors[cap] = (gradient(weights * loss, log_q.exp()) - exact).norm() / exact.norm()
    uncorrected, _ = credit.policy_loss(log_p, log_p.detach(), advantages)
    errors["none"] = (gradient(uncorrected, log_q.exp()) - exact).norm() / exact.norm()
    clipped, _ = credit.policy_loss(log_p, log_q, advantages)
    errors["clip"] = (gradient(clipped, log_q.exp()) - exact).norm() / exact.norm()
    others = min(errors["none"], errors["clip"])
    assert errors[10.0] < 1e-12 < errors[1.2] < others and others > 0.1
