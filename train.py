"""MetaAgent-X: train one model as the designer and the executor of multi-agent systems.

    python train.py                                      the tiny model, on two CPU cores
    torchrun --nproc_per_node 8 train.py --preset paper  Qwen3-8B, on eight GPUs

`Trainer.train_step` is the algorithm: roll out, assign credit, update the shared weights. `Learner`
is the update: clipped policy-gradient steps, one for each of --minibatches, whose loss is a mean
over each role's completion tokens, of all ranks.

Test: `pytest tests/test_train.py tests/test_update.py`. Read next: policy.py.
"""

import contextlib
import math
import pathlib

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import credit
import tasks
from config import PRESETS, Config
from data_types import Question, Sample, Tree
from executor import Runtime
from lib import checkpoint, cli, distributed, launch, metrics
from lib.distributed import all_gather, all_reduce_sum, world_size
from lib.heldout import evaluate_heldout
from lib.minibatches import MiniBatch, make_minibatches, make_samples
from lib.model_check import check_alive
from lib.prefix_sharing import MicroBatch, make_micro_batches
from lib.records import Records
from lib.replay import replay_calls
from lib.resampling import replace_ties
from lib.shapes import read_shapes
from lib.ways import set_training
from policy import CompletionLogprobs, Policy
from rollout import Rollout, stack_rewards
from sandbox import Sandbox

WEIGHT_DECAY = 0.01  # of AdamW; the paper's
GRAD_CLIP = 1.0  # largest norm of the gradient; the paper's
TRAIN_QUESTIONS = 50_000  # max questions to train on


class Learner:
    """One set of weights: the policy, the engine that samples from it, the update."""

    def __init__(self, config: Config, policy: Policy, engine, roles):
        self.config = config
        self.policy = policy
        self.engine = engine
        self.roles = roles
        self.max_tokens = launch.batch_tokens(config, policy)
        self.is_sharded = distributed.is_sharded(config)
        self.model = distributed.wrap(CompletionLogprobs(policy), policy, self.is_sharded)
        self.uses_ddp = isinstance(self.model, DistributedDataParallel)
        self.reference_model = launch.load_reference(config, roles, policy) if config.kl else None
        self.optimizer = torch.optim.AdamW(
            [p for p in policy.model.parameters() if p.requires_grad],
            lr=config.lr,
            weight_decay=WEIGHT_DECAY,
            fused=policy.device.type == "cuda",
        )
        if config.checkpointing:
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.num_bad_steps = 0  # in a row

    def update(self, samples: list[Sample]) -> dict:
        """A policy-gradient step on each mini-batch of all ranks' samples."""
        stats = metrics.LossStats()
        minibatches = make_minibatches(samples, self.config.minibatches, bool(self.config.kl))
        prepared = []
        for minibatch in minibatches:
            micro_batches = make_micro_batches(minibatch.samples, self.max_tokens, self.policy)
            if len(minibatches) > 1:  # before a step moves the weights
                for micro_batch in micro_batches:
                    micro_batch.keep_trainer_logprobs(self.model)
            prepared.append((minibatch, micro_batches))
        grad_norms = []
        for minibatch, micro_batches in prepared:
            grad_norms.append(self.step(minibatch, micro_batches, stats))
        if prepared:
            check_alive(self, micro_batches[-1])
        num_trained = sum(minibatch.num_trained for minibatch in minibatches)
        return {
            **stats.means(len(minibatches), num_trained),
            "grad_norm": metrics.mean(grad_norms),
            "trained_tokens": num_trained,
            "skipped": sum(not math.isfinite(norm) for norm in grad_norms),
        }

    def step(self, minibatch: MiniBatch, micro_batches: list[MicroBatch], stats) -> float:
        """One optimizer step. Returns the norm of the gradient."""
        set_training(self.policy.model, self.config.checkpointing)
        for micro_batch in micro_batches:
            # DDP exchanges gradients once, in the last backward pass.
            waits = self.uses_ddp and micro_batch is not micro_batches[-1]
            with self.model.no_sync() if waits else contextlib.nullcontext():
                self.accumulate_gradient(micro_batch, minibatch, stats)
        set_training(self.policy.model, False)

        norm = torch.nn.utils.clip_grad_norm_(self.policy.model.parameters(), GRAD_CLIP)
        grad_norm = distributed.full_tensor(norm).item()
        self.step_optimizer(grad_norm)
        return grad_norm

    def accumulate_gradient(self, micro_batch: MicroBatch, minibatch: MiniBatch, stats) -> None:
        """Forward and backward."""
        config, batch = self.config, micro_batch.batch
        logprobs_K, entropy_K = self.model(batch)
        sampler_logprobs_K, advantages_K = micro_batch.per_token(logprobs_K)
        weights_K = minibatch.weights_K(micro_batch.samples, logprobs_K)
        if micro_batch.trainer_logprobs_K is None:  # one mini-batch: no step yet
            micro_batch.trainer_logprobs_K = logprobs_K.detach()
        trainer_logprobs_K = micro_batch.trainer_logprobs_K

        cap = config.importance_cap
        if cap:
            importance_K = credit.importance_weights(trainer_logprobs_K, sampler_logprobs_K, cap)
            old_logprobs_K = trainer_logprobs_K
        else:
            importance_K = 1.0
            old_logprobs_K = sampler_logprobs_K
        loss_K, loss_stats = credit.policy_loss(
            logprobs_K,
            old_logprobs_K,
            advantages_K,
            clip=config.clip[:2],
            dual_clip=config.dual_clip,
            lengths=[len(sample.completion_ids) for sample in micro_batch.samples],
        )
        loss_K = loss_K * importance_K
        if config.kl:
            with torch.no_grad():
                reference_logprobs_K, _ = self.reference_model(batch)
            loss_K = loss_K + config.kl * credit.kl_penalty(logprobs_K, reference_logprobs_K)

        # The ranks' gradients are averaged; times their number is a sum.
        loss = (loss_K * weights_K).sum() / minibatch.num_tokens
        (loss * world_size()).backward()
        if not micro_batch.is_empty:
            gap = metrics.mismatch(trainer_logprobs_K, sampler_logprobs_K)
            stats.add(loss=loss, entropy=entropy_K.sum(), **loss_stats, **gap)

    def step_optimizer(self, grad_norm: float) -> None:
        """Skips a step whose gradient is not finite; the third in a row is a FloatingPointError."""
        if math.isfinite(grad_norm):
            self.num_bad_steps = 0
            self.optimizer.step()
        else:
            self.num_bad_steps += 1
        if self.num_bad_steps == 3:
            raise FloatingPointError("the gradient was not finite in three steps in a row")
        self.optimizer.zero_grad(set_to_none=not self.uses_ddp)  # DDP's are parts of its buckets


class Trainer:
    """What a run holds, and its loop."""

    def __init__(self, config: Config, out: pathlib.Path, rank: int, device: str):
        self.config = config
        self.out = out
        self.rank = rank
        self.step = 0  # updates done
        self.questions, self.heldout_questions = launch.load_questions(config, TRAIN_QUESTIONS)
        self.players, self.learners = {}, []  # role -> (engine, policy); those that learn
        folders = checkpoint.folders(out, config)
        for roles, model in config.models.items():
            folder = folders.get(roles)
            engine, policy = launch.load(config, roles, folder, device, self.questions)
            self.players |= dict.fromkeys(roles, (engine, policy))
            if config.learns(roles):
                learner = Learner(config, policy, engine, roles)
                self.learners.append(learner)
                if folder:
                    self.step = checkpoint.restore(checkpoint.read(folder), learner)
        self.fixed_design = launch.hand_designs(config).get(config.design_by_hand)
        self.shown = read_shapes(config.designer or config.model)
        self.engines = list(dict.fromkeys(engine for engine, _ in self.players.values()))
        self.clock = metrics.Clock(self.engines)
        self.best_accuracy = -1.0  # held out, at temperature 0
        self.records = Records(out, config, self.step, is_writer=rank == 0)

    async def train_step(self, step: int) -> dict:
        """One step of the algorithm, numbered as in README.md."""
        config = self.config
        # 6. Take turns
        roles = credit.trained_roles(step, config.stage, config.phase_steps)

        # 1-3. Design, execute, reward
        trees = await self.grow(self.questions_of_step(step), step)
        num_replaced = await replace_ties(trees, self, step)
        replays = {}
        if config.executor_credit == "replay" and "executor" in roles:
            replays = await replay_calls(trees, self.rollout, (config.seed, step))
        self.clock.lap("rollout")
        rewards_Q_M_N, valid_Q_M_N = stack_rewards(trees)
        await launch.check_infrastructure(trees, self)
        self.clock.lap("ranks")

        # 4-5. Credit
        designer_adv_Q_M = credit.designer_advantages(rewards_Q_M_N, valid_Q_M_N)
        executor_adv_Q_M_N = credit.executor_advantages(
            rewards_Q_M_N, valid_Q_M_N, group=config.executor_group
        )
        advantages = designer_adv_Q_M, executor_adv_Q_M_N

        # 7. Update
        update_metrics = await self.update(
            make_samples(trees, *advantages, roles, config.loss_mean, replays)
        )
        self.clock.lap("update")

        self.records.keep_episode(step, trees, *advantages, replays, self)
        return {
            "step": step,
            "trained_roles": sorted(roles),
            **metrics.rollout_metrics(all_gather(metrics.execution_stats(trees)), self.shown),
            **metrics.variance_metrics(rewards_Q_M_N, valid_Q_M_N),
            "resampled": int(all_reduce_sum(num_replaced)),
            **update_metrics,
            **self.clock.metrics(),
        }

    async def grow(self, questions: list[Question], step: int, *attempt: int) -> list[Tree]:
        """The rollout of some questions. attempt: see questions_of_step."""
        return await self.rollout.rollout(
            questions,
            num_designs=self.config.designs,
            num_executions=self.config.executions,
            seed=(self.config.seed, step, *attempt),
            fixed_design=self.fixed_design,
        )

    async def update(self, samples: list[Sample]) -> dict:
        """Every learner learns from the samples of its roles, while its engine sleeps."""
        updates = []
        for learner in self.learners:
            await learner.engine.sleep()
            for group in learner.optimizer.param_groups:
                group["lr"] = self.config.learning_rate(self.step)
            updates.append(learner.update([s for s in samples if s.role in learner.roles]))
        return metrics.merge_updates(updates)

    def publish(self) -> None:
        """Every engine wakes up and takes its learner's weights."""
        for learner in self.learners:
            policy = learner.policy
            learner.engine.update_weights(distributed.iterate_weights(policy.model, policy.dtype))

    async def train(self, sandbox: Sandbox) -> None:
        """The loop: from the checkpoint's step, or 0, to config.steps."""
        config = self.config
        budget = launch.execution_budget(config)
        self.rollout = Rollout(
            Runtime(*self.players["executor"], sandbox, budget),
            designer=self.players.get("designer"),
            design_tokens=config.design_tokens,
        )
        await self.evaluate_if_due()  # also where a resumed run was stopped
        steps = range(self.step, config.steps)
        bar = tqdm(steps, "train", disable=True if self.rank else None, mininterval=1)
        for step in bar:
            self.clock.start()
            step_metrics = await self.train_step(step)
            self.step = step + 1
            self.records.add_step(step_metrics, bar)
            if self.is_due(config.save_every):
                self.save_checkpoint()  # while the engines sleep
            self.publish()
            await self.evaluate_if_due()

    def questions_of_step(self, step: int, attempt: int = 0) -> list[Question]:
        """This rank's questions. attempt: from 1, others to replace ties (--resample)."""
        Q, seed = self.config.questions, self.config.seed
        seed = f"{seed} again {attempt}" if attempt else seed
        return tasks.questions_of_step(self.questions, Q, step, seed)[self.rank :: world_size()]

    def is_due(self, every: int) -> bool:
        """Whether what happens every so many steps, and at the end, happens now."""
        return self.step == self.config.steps or (every > 0 and self.step % every == 0)

    async def evaluate_if_due(self) -> None:
        """Before the first step, after the last, and every --eval-every."""
        if self.step == 0 or self.is_due(self.config.eval_every):
            evaluation = await evaluate_heldout(self)
            self.records.add_evaluation(evaluation)
            await launch.keep_best(self, evaluation)

    def save_checkpoint(self) -> None:
        checkpoint.save(self.out, self.learners, self.step, is_writer=self.rank == 0)
        self.records.draw()


def main(argv: list[str]) -> None:
    launch.launch(Trainer, Config, PRESETS, argv)


if __name__ == "__main__":
    cli.command(main)
