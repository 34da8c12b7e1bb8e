"""One full step against TRL's GRPOTrainer, on the tiny model: 128 completions of 48 tokens
sampled, graded, and one update on them.

    python tests/bench_step.py                            (tests/requirements.txt has TRL)
    ONEDNN_MAX_CPU_ISA=AVX2 python tests/bench_step.py    as on a CPU without instructions for bf16

The same number and length of completions of the same prompts (16 questions, 8 completions each), no KL term, AdamW, fp32, two threads, in turn in
one process; completions run to their limit, as the end token counts for nothing. TRL without bf16 and checkpointing, which a CPU pays for; beside it, as it comes. Rewards are the parity of the text's length in both, so that
there is something to learn. Neither has a tree or scripts. Asked for: three times the tokens per second.
"""

import asyncio
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import torch  # noqa: E402
from learner import Learner  # noqa: E402
from scorer import Sample  # noqa: E402

import credit  # noqa: E402
import designer  # noqa: E402
import tasks  # noqa: E402
import train  # noqa: E402
from policy import HFEngine, Policy, seed_of  # noqa: E402

Q, M, T, STEPS = 16, 8, 48, 6
TINY = str(pathlib.Path(__file__).resolve().parent.parent / "tiny")
QUESTIONS = tasks.arithmetic("train", 0, Q)


def reward(text: str) -> float:
    return float(len(text) % 2)


def ours() -> list[float]:
    """Seconds of each step."""
    policy = Policy(TINY)
    policy.end_ids = frozenset()
    engine, learner, seconds = HFEngine(policy), Learner(policy, train.Config(anchor=0.0)), []
    prompts = [policy.render(designer.messages(question)) for question in QUESTIONS]
    for step in range(STEPS):
        started = time.monotonic()
        found = asyncio.run(
            engine.gather(
                *(
                    engine.sample(prompt, T, seed_of(step, q, m))
                    for q, prompt in enumerate(prompts)
                    for m in range(M)
                )
            )
        )
        for completion, question in zip(
            found, [question for question in QUESTIONS for _ in range(M)]
        ):
            tasks.grade(question, completion.text)
        advantages = (
            credit.designer_advantages(
                torch.tensor([reward(c.text) for c in found]).reshape(Q, M, 1)
            )
            .flatten()
            .tolist()
        )
        learner.update(
            [
                Sample(prompts[i // M], c.ids, c.logprobs, advantages[i], "designer")
                for i, c in enumerate(found)
            ]
        )
        seconds.append(time.monotonic() - started)
        assert all(len(completion.ids) == T for completion in found)
    return seconds


def theirs(**options) -> list[float]:
    """Seconds of each step. options: of GRPOConfig."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(TINY),
        AutoTokenizer.from_pretrained(TINY),
    )
    rows = Dataset.from_list([{"prompt": designer.messages(question)} for question in QUESTIONS])

    seconds = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            seconds.append(time.monotonic())

        def on_step_end(self, *_, **__):
            seconds[-1] = time.monotonic() - seconds[-1]

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            folder,
            per_device_train_batch_size=Q * M,
            num_generations=M,
            max_completion_length=T,
            max_steps=STEPS,
            learning_rate=3e-4,
            beta=0.0,
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
        GRPOTrainer(
            model,
            lambda completions, **_: [reward(c[0]["content"]) for c in completions],
            config,
            rows,
            processing_class=tokenizer,
            callbacks=[Clock()],
        ).train()
    return seconds


if __name__ == "__main__":
    torch.set_num_threads(2)
    a = ours()[1:]
    b = theirs(bf16=False, gradient_checkpointing=False)[1:]
    c = theirs()[1:]
    a += ours()[1:]
    rate_a, rate_b = Q * M * T / statistics.median(a), Q * M * T / statistics.median(b)
    print(
        f"ours {statistics.median(a):.2f} s a step ({min(a):.2f} to {max(a):.2f}), {rate_a:.0f} tokens/s"
    )
    print(
        f"TRL  {statistics.median(b):.2f} s a step ({min(b):.2f} to {max(b):.2f}), {rate_b:.0f} tokens/s"
    )
    print(
        f"ratio {rate_a / rate_b:.1f}; to TRL's defaults (bf16, gradient checkpointing): {statistics.median(c) / statistics.median(a):.1f} ({statistics.median(c):.2f} s a step)"
    )
