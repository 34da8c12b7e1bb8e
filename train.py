"""MetaAgent-X: train one model as the designer and the executor of multi-agent systems.

    python train.py                                            the tiny model, on two CPU cores
    torchrun --nproc_per_node 8 train.py --preset paper        Qwen3-8B, on eight GPUs

`Trainer.train_step` is the algorithm: roll out, assign credit, update the shared weights. `Learner`
is the update: one clipped policy-gradient step, whose loss is a mean over the completion tokens of
all ranks.

Deviations from the paper: (1) one update per rollout, so the ratio is about 1 and clip rarely acts;
the original makes tens. (2) --stage both takes one token mean over both roles; the original
updates them one after the other. (3) No dual clip (the original code: 3.0), no warm-up or decay of
the learning rate. (4) --tis corrects for the difference between vLLM and the trainer.

Test: `pytest tests/test_train.py tests/test_update.py`. Read next: policy.py.
"""

import contextlib
import math
import pathlib

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import tasks
from config import PRESETS, Config
from credit import (
    designer_advantages,
    executor_advantages,
    importance_weights,
    kl_penalty,
    policy_loss,
    trained_roles,
)
from data_types import Question, Sample, Tree
from designer import FIXED_DESIGNS
from executor import Runtime
from lib import checkpoint, cli, distributed, launch, metrics
from lib.distributed import all_gather, all_reduce_max, all_reduce_sum, world_size
from lib.heldout import evaluate_heldout
from lib.model_check import check_alive
from lib.prefix_sharing import MicroBatch, make_micro_batches
from lib.records import Records
from lib.ways import set_training
from policy import CompletionLogprobs, Policy
from rollout import Rollout, stack_rewards
from sandbox import Sandbox

WEIGHT_DECAY = 0.01  # of AdamW; the paper's
GRAD_CLIP = 1.0  # largest norm of the gradient; the paper's
DUAL_CLIP = None  # bounds the loss of a negative advantage
TRAIN_QUESTIONS = 50_000  # max questions to train on


class Learner:
    """One set of weights: the policy, the engine that samples from it, the update."""

    def __init__(self, config: Config, policy: Policy, engine, roles: set):
        self.config = config
        self.policy = policy
        self.engine = engine
        self.roles = roles  # which it plays
        self.max_tokens = config.batch_tokens or policy.max_length
        self.is_sharded = distributed.is_sharded(config)
        self.model = distributed.wrap(CompletionLogprobs(policy), policy, self.is_sharded)
        self.reference_model = launch.load_reference(config, policy) if config.kl else None
        self.optimizer = torch.optim.AdamW(
            policy.model.parameters(), lr=config.lr, weight_decay=WEIGHT_DECAY
        )
        if config.checkpointing:
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.num_bad_steps = 0  # in a row

    def update(self, samples: list[Sample]) -> dict:
        """One policy-gradient step; the loss is a mean over the completion tokens of all ranks."""
        num_tokens = all_reduce_sum(sum(len(s.completion_ids) for s in samples))

        # Samples with advantage 0 have no gradient but for the KL term: they only count above.
        samples = [s for s in samples if s.advantage != 0 or self.config.kl]
        num_trained = all_reduce_sum(sum(len(s.completion_ids) for s in samples))
        stats = metrics.LossStats()
        if num_trained == 0:  # nothing to learn from, on any rank
            return {**stats.means(0, 0), "grad_norm": 0.0, "trained_tokens": 0, "skipped": 0}

        # A backward pass is collective: every rank has to make the same number of them.
        micro_batches = make_micro_batches(samples, self.max_tokens, self.policy)
        num_passes = int(all_reduce_max(len(micro_batches)))
        pad = (self.policy.pad_id,)
        empty = MicroBatch([Sample(pad, pad, (0.0,), 0.0, "executor")])
        micro_batches += [empty] * (num_passes - len(micro_batches))

        set_training(self.policy.model, self.config.checkpointing)
        uses_ddp = isinstance(self.model, DistributedDataParallel)
        for i, micro_batch in enumerate(micro_batches):
            # DDP exchanges gradients once, in the last backward pass.
            is_last = i == num_passes - 1
            with self.model.no_sync() if uses_ddp and not is_last else contextlib.nullcontext():
                logprobs_K = self.accumulate_gradient(micro_batch, num_tokens, stats)
        set_training(self.policy.model, False)

        norm = torch.nn.utils.clip_grad_norm_(self.policy.model.parameters(), GRAD_CLIP)
        grad_norm = distributed.full_tensor(norm).item()
        self.step_optimizer(grad_norm)
        check_alive(self, micro_batch, logprobs_K)
        return {
            **stats.means(num_tokens, num_trained),
            "grad_norm": grad_norm,
            "trained_tokens": int(num_trained),
            "skipped": int(not math.isfinite(grad_norm)),
        }

    def accumulate_gradient(self, micro_batch: MicroBatch, num_tokens: float, stats):
        """Forward and backward of one micro-batch. Returns its logprobs_K."""
        device = self.policy.device
        samples = micro_batch.samples
        batch = micro_batch.collate(self.policy.pad_id, device)
        logprobs_K, entropy_K = self.model(batch)
        old_logprobs = [logprob for s in samples for logprob in s.old_logprobs]
        advantages = [s.advantage for s in samples for _ in s.completion_ids]
        sampler_logprobs_K = torch.tensor(old_logprobs, device=device, dtype=logprobs_K.dtype)
        advantages_K = torch.tensor(advantages, device=device, dtype=logprobs_K.dtype)

        old_logprobs_K, weights_K = sampler_logprobs_K, 1.0
        if cap := self.config.importance_cap:
            # With one update per rollout, the policy before the update is the current one.
            old_logprobs_K = logprobs_K.detach()
            weights_K = importance_weights(old_logprobs_K, sampler_logprobs_K, cap)
        loss_K, loss_stats = policy_loss(
            logprobs_K, old_logprobs_K, advantages_K, self.config.clip, DUAL_CLIP
        )
        loss_K = loss_K * weights_K
        if self.config.kl:
            with torch.no_grad():
                reference_logprobs_K, _ = self.reference_model(batch)
            loss_K = loss_K + self.config.kl * kl_penalty(logprobs_K, reference_logprobs_K)

        # The ranks' gradients are averaged; multiplying by their number makes that a sum.
        (loss_K.sum() * world_size() / num_tokens).backward()
        gap = metrics.mismatch(logprobs_K, sampler_logprobs_K)
        stats.add(loss=loss_K.sum(), entropy=entropy_K.sum(), **loss_stats, **gap)
        return logprobs_K.detach()

    def step_optimizer(self, grad_norm: float) -> None:
        """Skips a step whose gradient is not finite; the third in a row is a FloatingPointError."""
        if math.isfinite(grad_norm):
            self.num_bad_steps = 0
            self.optimizer.step()
        else:
            self.num_bad_steps += 1
        if self.num_bad_steps == 3:
            raise FloatingPointError("the gradient was not finite in three steps in a row")
        self.optimizer.zero_grad(set_to_none=True)


class Trainer:
    """Everything that a run holds, and its loop."""

    def __init__(self, config: Config, out: pathlib.Path, rank: int, device: str):
        self.config = config
        self.out = out  # the run's folder
        self.rank = rank
        self.step = 0  # updates done
        self.questions, self.heldout_questions = launch.load_questions(config, TRAIN_QUESTIONS)
        self.learners = []
        for roles, folder in checkpoint.folders(out, config).items():
            policy, engine = launch.load(config, folder, device, self.questions)
            learner = Learner(config, policy, engine, roles)
            self.learners.append(learner)
            if folder:
                self.step = checkpoint.restore(checkpoint.read(folder), learner)
        self.executor, self.designer = self.learners[0], self.learners[-1]
        self.fixed_design = FIXED_DESIGNS.get(config.fixed_design)
        self.clock = metrics.Clock([learner.engine for learner in self.learners])
        self.records = Records(out, config, self.step, is_writer=rank == 0)

    async def train_step(self, step: int) -> dict:
        """One step of the algorithm: roll out, assign credit, update, publish the new weights."""
        config = self.config
        roles = trained_roles(step, config.stage, config.phase_steps)

        trees = await self.rollout.rollout(
            self.questions_of_step(step),
            num_designs=config.designs,
            num_executions=config.executions,
            seed=(config.seed, step),
            fixed_design=self.fixed_design,
        )
        self.clock.lap("rollout")
        rewards_Q_M_N, valid_Q_M_N = stack_rewards(trees)
        launch.check_infrastructure(trees, self)

        designer_adv_Q_M = designer_advantages(
            rewards_Q_M_N, valid_Q_M_N, credit=config.designer_credit
        )
        executor_adv_Q_M_N = executor_advantages(
            rewards_Q_M_N, valid_Q_M_N, group=config.executor_group
        )
        samples = make_samples(trees, designer_adv_Q_M, executor_adv_Q_M_N, roles)
        update_metrics = await self.update(samples)
        self.clock.lap("update")

        self.records.keep_episode(step, trees, designer_adv_Q_M, executor_adv_Q_M_N, self)
        return {
            "step": step,
            "trained_roles": sorted(roles),
            **metrics.rollout_metrics(all_gather(metrics.execution_stats(trees))),
            **metrics.variance_metrics(rewards_Q_M_N, valid_Q_M_N),
            **update_metrics,
            **self.clock.metrics(),
        }

    async def update(self, samples: list[Sample]) -> dict:
        """Every learner learns from the samples of its roles; its engine takes the new weights."""
        updates = []
        for learner in self.learners:
            await learner.engine.sleep()
            updates.append(learner.update([s for s in samples if s.role in learner.roles]))
            learner.engine.update_weights(distributed.iterate_weights(learner.policy.model))
        return metrics.merge_updates(updates)

    async def train(self, sandbox: Sandbox) -> None:
        """The loop: from the checkpoint's step, or 0, to config.steps."""
        config = self.config
        budget = launch.execution_budget(config)
        self.rollout = Rollout(
            Runtime(self.executor.engine, self.executor.policy, sandbox, budget),
            designer=(self.designer.engine, self.designer.policy),
            design_tokens=config.design_tokens,
        )
        await self.evaluate_if_due()  # before the first step, or where a resumed run was stopped
        steps = range(self.step, config.steps)
        bar = tqdm(steps, "train", disable=True if self.rank else None, mininterval=1)
        for step in bar:
            self.clock.start()
            step_metrics = await self.train_step(step)
            self.step = step + 1
            self.records.add_step(step_metrics, bar)
            if self.is_due(config.save_every):
                self.save_checkpoint()
            await self.evaluate_if_due()

    def questions_of_step(self, step: int) -> list[Question]:
        """This rank's share of them."""
        Q, seed = self.config.questions, self.config.seed
        return tasks.questions_of_step(self.questions, Q, step, seed)[self.rank :: world_size()]

    def is_due(self, every: int) -> bool:
        """Whether what happens every so many steps, and at the end, happens now."""
        return self.step == self.config.steps or (every > 0 and self.step % every == 0)

    async def evaluate_if_due(self) -> None:
        """Before the first step, after the last, and every --eval-every."""
        if self.step == 0 or self.is_due(self.config.eval_every):
            self.records.add_evaluation(await evaluate_heldout(self))

    def save_checkpoint(self) -> None:
        checkpoint.save(self.out, self.learners, self.step, is_writer=self.rank == 0)
        self.records.draw()


def make_samples(trees: list[Tree], designer_adv_Q_M, executor_adv_Q_M_N, roles) -> list[Sample]:
    """The completions of `roles`, each with its trajectory's advantage; valid executions only."""
    samples = []

    def add(completion, advantage, role):  # completion: a Design or a Call
        ids = completion.prompt_ids, completion.completion_ids
        samples.append(Sample(*ids, completion.logprobs, advantage.item(), role))

    for q, tree in enumerate(trees):
        for m, (design, executions) in enumerate(zip(tree.designs, tree.executions)):
            is_valid = any(execution.valid for execution in executions)
            if "designer" in roles and is_valid and design.completion_ids:
                add(design, designer_adv_Q_M[q, m], "designer")
            for n, execution in enumerate(executions):
                if "executor" in roles and execution.valid:
                    for call in execution.calls:
                        add(call, executor_adv_Q_M_N[q, m, n], "executor")
    return samples


def main(argv: list[str]) -> None:
    launch.launch(Trainer, Config, PRESETS, argv)


if __name__ == "__main__":
    cli.command(main)
