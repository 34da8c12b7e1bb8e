"""Several optimizer steps per rollout, a mean per role, samples dealt out to the ranks."""

import asyncio
import math
from dataclasses import replace

import pytest
import torch
from conftest import QUESTION, learner
from runs import same, train_run, weights
from test_update import batch

import credit
import train
from config import Config
from data_types import Call, Design, Execution, Tree
from lib import minibatches
from lib.errors import UserError
from lib.minibatches import cut, make_minibatches
from lib.resampling import replace_ties
from policy import collate

ADVANTAGES = [1.0, -1.0, 0.5, -0.5]


def as_sampled(subject, samples):
    """With the log-probabilities of the policy as it is."""
    done = []
    for sample in samples:
        logprobs_K, _ = subject.model(collate([sample], subject.policy.pad_id))
        done.append(replace(sample, sampler_logprobs=tuple(logprobs_K.tolist())))
    return done


def test_steps_by_hand(monkeypatch):
    """Four mini-batches: each a step of AdamW on its own mean; the ratio refers to the policy
    before the first, leaves 1, and is clipped as computed here."""
    monkeypatch.setattr(minibatches, "MIN_SAMPLES", 2)
    options = {"minibatches": 4, "lr": 1e-3, "clip": (0.05, 0.05)}
    subject, by_hand = learner(**options), learner(**options)
    for one in (subject, by_hand):
        one.policy.model.double()
    samples = as_sampled(subject, batch(ADVANTAGES * 2, varied=False))
    update = subject.update(samples)

    num_clipped, ratios = 0, []
    for first in range(0, 8, 2):
        loss = 0.0
        for sample in samples[first : first + 2]:
            logprobs_K, _ = by_hand.model(collate([sample], by_hand.policy.pad_id))
            for logprob, old in zip(logprobs_K, sample.sampler_logprobs):
                ratio, advantage = (logprob - old).exp(), sample.advantage
                kept = ratio.clamp(0.95, 1.05)
                loss = loss - torch.minimum(ratio * advantage, kept * advantage) / 24
                ratios.append(ratio.item())
                is_beyond = ratio > 1.05 if advantage > 0 else ratio < 0.95
                num_clipped += int(is_beyond)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(by_hand.policy.model.parameters(), 1.0)
        by_hand.optimizer.step()
        by_hand.optimizer.zero_grad()

    assert num_clipped > 0 and update["clip_frac"] == pytest.approx(num_clipped / 96)
    assert update["ratio"] == pytest.approx(sum(ratios) / 96, rel=1e-4)
    assert abs(update["ratio"] - 1) > 1e-3 and update["mismatch_max"] < 1e-4
    theirs = dict(by_hand.policy.model.named_parameters())
    for name, parameter in subject.policy.model.named_parameters():
        torch.testing.assert_close(parameter, theirs[name], rtol=0, atol=1e-5)


def test_importance_weights_are_of_the_policy_before_the_first_step(monkeypatch):
    """A sampler that is 0.1 too low: every token is weighed by exp(0.1), in the last step, too."""
    monkeypatch.setattr(minibatches, "MIN_SAMPLES", 2)
    seen = []

    def spy(policy_logprobs_K, sampler_logprobs_K, cap):
        seen.append((policy_logprobs_K - sampler_logprobs_K).exp())
        return torch.ones_like(policy_logprobs_K)

    monkeypatch.setattr(credit, "importance_weights", spy)
    subject = learner(minibatches=4, lr=1e-3, tis=2.0)
    samples = []
    for sample in as_sampled(subject, batch(ADVANTAGES * 2, varied=False)):
        lower = tuple(logprob - 0.1 for logprob in sample.sampler_logprobs)
        samples.append(replace(sample, sampler_logprobs=lower))
    update = subject.update(samples)
    assert len(seen) == 4
    for weights_K in seen:
        torch.testing.assert_close(weights_K, torch.full_like(weights_K, math.exp(0.1)))
    assert update["ratio"] != pytest.approx(1.0, abs=1e-3)


def test_each_role_has_its_own_mean():
    """The designer's few tokens count as much as the executor's many: the losses add up."""
    executor = batch([1.0, -1.0, 0.5, 0.5])
    designer = [replace(sample, role="designer") for sample in batch([-0.5, 1.0])]
    losses = [learner().update(samples)["loss"] for samples in (executor, designer)]
    assert learner().update(executor + designer)["loss"] == pytest.approx(sum(losses), rel=1e-5)


def call(num_tokens):
    return Call("a", (5, 6), (7,) * num_tokens, (-1.0,) * num_tokens, "text")


def test_a_long_execution_weighs_no_more():
    """--loss-mean execution: tokens of each execution first, whatever its calls are."""
    calls = ((call(10), call(2)), (call(4),))
    executions = tuple(Execution(c, "x", "answered") for c in calls)
    tree = Tree(QUESTION, (Design("s", (5,), (6,), (-1.0,)),), (executions,))
    advantages = torch.zeros(1, 1), torch.ones(1, 1, 2)
    for loss_mean, shares in (("token", [10 / 16, 2 / 16, 4 / 16]), ("execution", [5, 1, 6])):
        samples = train.make_samples([tree], *advantages, {"executor"}, loss_mean)
        (minibatch,) = make_minibatches(samples, 1)
        weights_K = minibatch.weights_K(samples, torch.zeros(1, dtype=torch.float64))
        parts = weights_K.split([10, 2, 4])
        got = [part.sum().item() / minibatch.num_tokens for part in parts]
        assert got == pytest.approx([share / sum(shares) for share in shares])


def test_parts_have_about_as_many_tokens():
    costs = [7, 1, 1, 5, 3, 9, 2, 2, 2, 8]
    parts = cut(list(range(10)), costs, 4)
    assert sum(parts, []) == list(range(10))
    assert all(abs(sum(costs[i] for i in part) - 10) <= 5 for part in parts)


def test_a_part_has_sixteen_samples_at_least():
    samples = batch([1.0] * 40, varied=False)
    assert [len(m.samples) for m in make_minibatches(samples, 8)] == [20, 20]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_learning_rate(schedule):
    config = Config(lr=1.0, warmup=4, lr_schedule=schedule, steps=104)
    rates = [config.learning_rate(step) for step in range(104)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0] and max(rates) == 1.0
    assert rates[54] == pytest.approx(1.0 if schedule == "constant" else 0.65)
    assert min(rates[4:]) == pytest.approx(1.0 if schedule == "constant" else 0.3, abs=1e-3)


class Stopped(BaseException):
    pass


def test_a_resumed_run_has_the_same_learning_rates(tmp_path, monkeypatch):
    flags = ("--steps", 3, "--minibatches", 2, "--warmup", 2, "--lr-schedule", "cosine")
    train_run("--out", tmp_path / "straight", *flags)

    publish = train.Trainer.publish

    def publish_once(trainer):
        if trainer.step == 2:
            raise Stopped
        publish(trainer)

    monkeypatch.setattr(train.Trainer, "publish", publish_once)
    with pytest.raises(Stopped):
        train_run("--out", tmp_path / "run", *flags, "--save-every", 1)
    monkeypatch.undo()
    train_run("--out", tmp_path / "run", "--resume", flags=())
    assert same(weights(tmp_path / "straight"), weights(tmp_path / "run"))
    with pytest.raises(UserError, match="--steps can't change"):  # a cosine ends at --steps
        train.main(["--out", str(tmp_path / "run"), "--resume", "--steps", "5"])


class Stub:
    """A trainer whose questions 0 to 3 teach nothing, and whose further ones are 10, 11 ..."""

    def __init__(self, resample):
        self.config = Config(resample=resample)
        self.asked = []

    def questions_of_step(self, step, attempt):
        return [10 * attempt + i for i in range(4)]

    async def grow(self, questions, step, attempt):
        assert all(question // 10 == attempt for question in questions)  # it is in their seeds
        self.asked.append(questions)
        return [tree_of(question, question % 3 != 0) for question in questions]


def tree_of(question, teaches):
    rewards = (0.0, 1.0) if teaches else (1.0, 1.0)
    executions = tuple(Execution((), "x", "answered", reward=reward) for reward in rewards)
    return Tree(replace(QUESTION, id=str(question)), (Design("s"),), (executions,))


@pytest.mark.parametrize(
    "resample, asked, left",
    [
        (0, [], [0, 1, 2, 3]),
        (1, [[10, 11, 12]], [10, 1, 11, 3]),
        (5, [[10, 11, 12], [20]], [10, 1, 11, 20]),
    ],
)
def test_questions_that_teach_nothing_are_replaced(resample, asked, left):
    trainer = Stub(resample)
    trees = [tree_of(question, question == 1) for question in range(4)]
    num_replaced = asyncio.run(replace_ties(trees, trainer, step=0))
    assert trainer.asked == asked and [int(tree.question.id) for tree in trees] == left
    assert num_replaced == sum(question >= 10 for question in left)
