"""One training step, ours and that of TRL's GRPOTrainer, on the tiny model.

    python -m experiments.bench.step                            (tests/requirements.txt has TRL)
    ONEDNN_MAX_CPU_ISA=AVX2 python -m experiments.bench.step    as on a CPU without bf16

A step samples 128 completions of 48 tokens (8 of each of 16 questions), grades them, and makes one
update on them. Both sides get the same prompts, AdamW, fp32, two threads and no KL term, one after
the other in one process. All completions have the same length, because the end token ends nothing
here. The reward is whether a text has an odd number of characters, so that there is something to
learn. Neither side has a tree or scripts.

It prints the seconds of a step (the median, and the range), the sampled tokens per second, and the
ratio of the two rates: above 1, ours is faster. TRL runs twice: without bf16 and gradient
checkpointing, which cost time on a CPU, and with its defaults. The goal is a ratio of 3.
Test: by hand, the command above. Read next: rollout.py.
"""

import asyncio
import statistics
import tempfile
import time

import torch

import tasks
from config import Config
from credit import designer_advantages
from data_types import Completion, Sample, seed_of
from designer import designer_messages
from engines.hf import HFEngine
from lib.cli import ROOT
from policy import Policy
from train import Learner

TINY = str(ROOT / "tiny")
NUM_THREADS = 2
NUM_STEPS = 6  # the first is not counted
Q = 16  # questions
M = 8  # completions of each
T = 48  # tokens of a completion
QUESTIONS = tasks.load("registry", "train", 0, Q)


def reward(text: str) -> float:
    return float(len(text) % 2)


# --------------------------------------------------------------------------------------------- ours


async def sample_completions(engine: HFEngine, prompts: list[tuple], step: int) -> list[Completion]:
    """M completions of each prompt, prompt by prompt."""
    requests = []
    for q, prompt_ids in enumerate(prompts):
        for m in range(M):
            requests.append(engine.sample(prompt_ids, T, seed_of(step, q, m)))
    return await asyncio.gather(*requests)


def make_samples(completions: list[Completion], prompts: list[tuple]) -> list[Sample]:
    """Grade the completions, and give each its advantage."""
    rewards = []
    for i, completion in enumerate(completions):
        tasks.grade(QUESTIONS[i // M], completion.text)  # takes its time; its verdict is not used
        rewards.append(reward(completion.text))
    advantages_Q_M = designer_advantages(torch.tensor(rewards).reshape(Q, M, 1))
    advantages = advantages_Q_M.flatten().tolist()

    samples = []
    for i, completion in enumerate(completions):
        sample = Sample(
            prompt_ids=prompts[i // M],
            completion_ids=completion.ids,
            sampler_logprobs=completion.logprobs,
            advantage=advantages[i],
            role="designer",
        )
        samples.append(sample)
    return samples


def time_our_steps() -> list[float]:
    """Seconds of each counted step."""
    policy = Policy(TINY)
    policy.end_ids = frozenset()
    engine = HFEngine(policy)
    learner = Learner(Config(), policy, engine, roles={"designer"})
    prompts = [policy.render(designer_messages(question)) for question in QUESTIONS]

    seconds = []
    for step in range(NUM_STEPS):
        started = time.monotonic()
        completions = asyncio.run(sample_completions(engine, prompts, step))
        learner.update(make_samples(completions, prompts))
        seconds.append(time.monotonic() - started)
        assert all(len(completion.ids) == T for completion in completions)
    return seconds[1:]


# ---------------------------------------------------------------------------------------------- TRL


def time_trl_steps(**options) -> list[float]:
    """Seconds of each counted step. options: of GRPOConfig."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    seconds = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.started = time.monotonic()

        def on_step_end(self, *_, **__):
            seconds.append(time.monotonic() - self.started)

    def rewards(completions, **_) -> list[float]:
        return [reward(messages[0]["content"]) for messages in completions]

    prompts = [{"prompt": designer_messages(question)} for question in QUESTIONS]
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=Q * M,
            num_generations=M,
            max_completion_length=T,
            max_steps=NUM_STEPS,
            learning_rate=Config().lr,
            beta=0.0,  # no KL term
            generation_kwargs={"min_new_tokens": T},
            temperature=1.0,
            top_k=0,
            use_cpu=True,
            report_to=[],
            logging_strategy="no",
            save_strategy="no",
            shuffle_dataset=False,
            disable_tqdm=True,
            **options,
        )
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(TINY),
            reward_funcs=rewards,
            args=config,
            train_dataset=Dataset.from_list(prompts),
            processing_class=AutoTokenizer.from_pretrained(TINY),
            callbacks=[Clock()],
        )
        trainer.train()
    return seconds[1:]


def print_rate(name: str, seconds: list[float]) -> None:
    median = statistics.median(seconds)
    tokens_per_second = Q * M * T / median
    print(
        f"{name:<12} {median:.2f} s a step ({min(seconds):.2f} to {max(seconds):.2f}), "
        f"{tokens_per_second:.0f} tokens/s"
    )


def main() -> None:
    torch.set_num_threads(NUM_THREADS)
    ours = time_our_steps()
    trl = time_trl_steps(bf16=False, gradient_checkpointing=False)
    trl_defaults = time_trl_steps()
    ours += time_our_steps()  # before and after TRL's, so that a drift of the machine shows

    print_rate("ours", ours)
    print_rate("TRL", trl)
    print_rate("TRL defaults", trl_defaults)
    our_median = statistics.median(ours)
    ratio = statistics.median(trl) / our_median
    ratio_to_defaults = statistics.median(trl_defaults) / our_median
    print(f"ratio {ratio:.2f}; to TRL's defaults {ratio_to_defaults:.2f}")


if __name__ == "__main__":
    main()
