"""The cold start: supervised fine-tuning, so that the model can write designs and play agents at all.

    python sft.py                                              builds tiny/ from nothing: tokenizer, weights, cold start
    python sft.py --model M --data FILE.jsonl --out DIR        fine-tunes M on collected samples
    python sft.py --model M --scripted --tasks T --out DIR     fine-tunes M on the scripted teacher's samples
    python sft.py --model M.gguf --out DIR                     writes M as a Hugging Face folder
    python sft.py --collect --tasks T --teacher M --out F      collects samples from a teacher, keeps what ended right

The tiny model (about 1M parameters) sees designs and replies of deliberately mixed quality, made by a scripted teacher that
errs (teacher.py): it can write every kind of design and play every agent, but badly. Reinforcement learning has room.

Equation: minimise -mean log p(completion token | prompt, earlier tokens), over completion tokens only.
Test: `pytest tests/test_sft.py`. Read next: train.py.
"""
import asyncio
import json
import math
import pathlib
import random
import shutil
from dataclasses import dataclass
from typing import Literal

import torch
from tqdm import tqdm

import cli
import designer
import tasks
from cli import log
from engines import ChatEngine, open_engine
from executor import Budget
from policy import Policy
from rollout import Rollout
from sandbox import Sandbox, SandboxError
from scorer import Row, Sample, Scorer, collate, micro_batches, share_prefixes
from teacher import cold_start

# ------------------------------------------------------------------------------------------------ the tiny model itself

TEMPLATE = (  # of a system message, the first line alone: who speaks. The documented prompt is for models that can read it.
    "{% for message in messages %}{% if message['role'] == 'system' %}<|system|>{{ message['content'].split('\\n')[0] }}"
    "{% else %}<|{{ message['role'] }}|>{{ message['content'] }}{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}")
SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def tiny_tokenizer(texts, size: int):
    """A byte-level BPE trained on `texts`: any text can be written, the words of the tiny world are one token, digits are split."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)])
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False,
                                                       initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|end|>", chat_template=TEMPLATE,
                                   additional_special_tokens=SPECIAL[2:])


def tiny_model(tokenizer):
    """A Qwen3 of about 1M parameters, freshly initialised."""
    from transformers import Qwen3Config, Qwen3ForCausalLM
    return Qwen3ForCausalLM(Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))


def packed(policy, samples: list[Sample], budget: int) -> list[list[Row]]:
    """The micro-batches of an update: one, a row per sample, if that fits; else rows that share beginnings, in parts of at most `budget` tokens."""
    if len(samples) * max(map(len, samples)) <= budget:
        return [[Row.of([sample]) for sample in samples]]
    return micro_batches(share_prefixes(samples, budget, policy.model.config.hidden_size), budget)


def fine_tune(policy, samples: list[Sample], steps: int, batch: int, lr: float, seed: int, decay: float = 0.1, budget: int = 8192):
    """AdamW, 50 steps of warm-up, a linear decay to `decay` x lr; the mean log-probability of completion tokens. Returns the losses."""
    order, losses = random.Random(f"fine-tune {seed}"), []
    scorer = Scorer(policy)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=lr, weight_decay=0.01)
    policy.model.train()
    bar = tqdm(range(steps), desc="fine-tune", mininterval=2)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 50) * (1 - (1 - decay) * step / steps)
        if step % 8 == 0:  # draw eight batches at once, alike in length: half of the padding goes
            drawn = sorted((samples[order.randrange(len(samples))] for _ in range(8 * batch)), key=len)
            batches = [drawn[i * batch:(i + 1) * batch] for i in range(8)]
            order.shuffle(batches)
        chosen = batches[step % 8]
        tokens, loss = sum(len(sample.completion_ids) for sample in chosen), 0.0
        for rows in packed(policy, chosen, budget):
            logprobs_K, _ = scorer(collate(rows, policy.pad_id, policy.device))
            part = -logprobs_K.sum() / tokens
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss)
        bar.set_postfix(loss=f"{loss:.3f}")
    policy.model.eval()
    return losses


# --------------------------------------------------------------------------------------------------------- the commands

@dataclass(frozen=True)
class Config:
    model: str | None = None
    """The model to fine-tune; without --model and --data the tiny model is built from nothing."""
    data: str | None = None
    """A JSONL file of samples, as --collect writes it."""
    scripted: bool = False
    """Fine-tune --model on samples of the scripted teacher, on --tasks: arithmetic, or sets whose questions state an expression."""
    out: str = "tiny"
    """Folder of the model, or file of the collected samples."""
    collect: bool = False
    """Collect samples from --teacher instead of training."""
    teacher: str = "tiny"
    """The model that collects: a folder, a Hub id, or the URL of a server with the OpenAI chat API (up to and with /v1)."""
    teacher_model: str = "default"
    """The model's name on that server."""
    tasks: str = "arithmetic"
    """Sets to collect on, or to script samples of: their training questions."""
    questions: int = 100
    """Questions to collect on."""
    designs: int = 4
    """Designs of a question."""
    executions: int = 2
    """Executions of a design."""
    data_dir: str | None = None
    """Folder with local files of the benchmarks."""
    samples: int = 80_000
    """Samples of the scripted teacher."""
    steps: int = 2200
    """Updates."""
    batch_tokens: int = 8192
    """An update of more tokens is divided into parts, in which samples share beginnings."""
    batch: int = 64
    """Samples of an update."""
    lr: float = 2e-3
    """Learning rate, decaying linearly to a tenth."""
    design_tokens: int = 1024
    """At most so many tokens of a design, when collecting."""
    reply_tokens: int = 1024
    """At most so many tokens of a reply, when collecting."""
    max_length: int = 8192
    """Longer samples are left out, and counted."""
    seed: int = 0
    """Of everything that is drawn."""
    threads: int = 2
    """CPU threads of torch; another number rounds differently."""
    dtype: Literal["auto", "bfloat16", "float32", "float64"] = "auto"
    """What the model computes in; auto is bfloat16 on a GPU, else float32."""
    engine: Literal["hf", "vllm"] = "hf"
    """What samples, when collecting from a model in this process."""


def encode(policy: Policy, rows, max_length: int) -> list[Sample]:
    """(role, messages, completion) -> Sample, the completion ended by the end token."""
    found = []
    for role, messages, completion in rows:
        ids = (*policy.tokenizer.encode(completion, add_special_tokens=False), policy.tokenizer.eos_token_id)
        found.append(Sample(policy.render(messages), ids, (), 1.0, role))
    kept = [sample for sample in found if len(sample) <= max_length]
    if len(kept) < len(found):
        log.info(f"{len(found) - len(kept)} of {len(found)} samples are longer than {max_length} tokens and left out")
    return kept


def read_samples(path: pathlib.Path):
    """The rows of a collected file. Raises BadInput with the line that is wrong."""
    rows = []
    for number, row in enumerate(tasks.read_jsonl(path), 1):
        if row.get("role") not in ("designer", "executor") or not isinstance(row.get("completion"), str) or not _is_conversation(row.get("messages")):
            raise tasks.BadInput(f"{path}, row {number}: needs role (designer or executor), messages (with role and content) and completion (a text)")
        rows.append((row["role"], row["messages"], row["completion"]))
    return rows


def _is_conversation(messages) -> bool:
    return isinstance(messages, list) and all(isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
                                              for m in messages)


def build_tiny(config: Config, folder: pathlib.Path) -> tuple[Policy, list[Sample]]:
    """The tiny model before its cold start, saved in `folder` and loaded like any other, and the samples for it."""
    rows = cold_start(config.samples, config.seed)
    texts = [m["content"].split("\n")[0] if m["role"] == "system" else m["content"] for _, messages, _ in rows[:20_000] for m in messages]
    tokenizer = tiny_tokenizer(texts + [completion for _, _, completion in rows[:20_000]], 1024)
    tiny_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    policy = Policy(str(folder))
    return policy, encode(policy, rows, config.max_length)


def train(config: Config) -> None:
    """Fine-tune, or build the tiny model, and write the folder whole or not at all."""
    out = pathlib.Path(config.out)
    folder = check_free(out)
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(config.seed)
    if config.model is None and config.data is None:
        policy, samples = build_tiny(config, folder)
    else:
        rows = cold_start(config.samples, config.seed, config.tasks, config.data_dir) if config.scripted else read_samples(pathlib.Path(config.data))
        policy = Policy(cli.model_path(config.model or "tiny"), cli.device(), dtype=cli.dtype(config.dtype))
        samples = encode(policy, rows, config.max_length)
    if not samples:
        raise tasks.BadInput(f"--data {config.data}: no sample is left")
    losses = fine_tune(policy, samples, config.steps, config.batch, config.lr, config.seed, budget=config.batch_tokens)
    if not math.isfinite(losses[-1]):
        raise tasks.BadInput(f"--lr {config.lr}: the loss is not finite; nothing was written")
    write(policy, out, f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {config.steps} steps on {len(samples)} samples")


def write(policy: Policy, out: pathlib.Path, what: str) -> None:
    """Write a model's folder, whole or not at all, over an older one."""
    folder, old = check_free(out), out.with_name(out.name + ".old")
    folder.mkdir(parents=True, exist_ok=True)
    policy.save(folder)
    if out.exists():
        out.rename(old)
    folder.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    log.info(f"{out}: {what}")


def check_free(out: pathlib.Path) -> pathlib.Path:
    """The folder beside `out` that is written first. Raises BadInput if `out` is something else than a model's folder."""
    if out.exists() and not ((out / "config.json").is_file() and "model_type" in (out / "config.json").read_text()):
        raise tasks.BadInput(f"--out {out}: exists and is not a model's folder; nothing was touched")
    return out.with_name(out.name + ".new")


def kept_samples(config: Config, tree) -> list[dict]:
    """The samples of a question that are worth learning: executions that ended right, and the designs that led there, each text once."""
    rows = {}
    source = {"question": tree.question.id, "tasks": config.tasks, "teacher": config.teacher, "teacher_model": config.teacher_model, "seed": config.seed}
    for design, execution, reward in tree.flat():
        if reward == 1.0:
            designed = ("designer", designer.messages(tree.question), design.text)
            for role, messages, completion in (designed, *(("executor", list(c.messages), c.text) for c in execution.calls)):
                row = {"role": role, "messages": messages, "completion": completion, **source}
                rows[json.dumps(row)] = row
    return list(rows.values())


async def collect(config: Config, out: pathlib.Path) -> int:
    """Sample designs and executions from the teacher, and append what ended right to `out`, question by question; go on where an
    earlier run was stopped (`out`.progress names the questions that are done). Returns how many samples there are. Raises BadInput."""
    questions = tasks.load(config.tasks, "train", config.seed, config.questions, config.data_dir)
    progress, settings = out.with_name(out.name + ".progress"), json.dumps([config.tasks, config.teacher, config.teacher_model, config.seed])
    lines = progress.read_text().splitlines() if progress.exists() else []
    if out.exists() and not lines or lines and lines[0] != settings:
        raise tasks.BadInput(f"--out {out}: exists and is not this collection, half done; nothing was touched")
    done = set(lines[1:])
    rows = [row for row in tasks.read_jsonl(out, whole_lines=True) if row["question"] in done] if done and out.stat().st_size else []
    cli.atomic_write(out, "".join(json.dumps(row) + "\n" for row in rows))  # without what was being written when it stopped
    cli.atomic_write(progress, "\n".join([settings, *sorted(done)]) + "\n")
    if config.teacher.startswith(("http://", "https://")):
        engine = policy = ChatEngine(config.teacher, config.teacher_model)
    else:
        policy = Policy(cli.model_path(config.teacher), cli.device(), dtype=cli.dtype(config.dtype))
        engine = open_engine(config.engine, policy, memory=0.8)
    count, todo = len(rows), [question for question in questions if question.id not in done]
    async with Sandbox() as sandbox:
        grow = Rollout(engine, policy, sandbox, Budget(reply_tokens=config.reply_tokens), config.design_tokens)
        with tqdm(total=len(questions), initial=len(questions) - len(todo), desc="collect", disable=None) as bar:
            for start in range(0, len(todo), 16):
                for tree in await grow(todo[start:start + 16], config.designs, config.executions, (config.seed, "collect"), on_done=lambda tree: bar.update()):
                    kept = kept_samples(config, tree)
                    with open(out, "a", encoding="utf-8") as samples, open(progress, "a", encoding="utf-8") as names:
                        samples.write("".join(json.dumps(row) + "\n" for row in kept))
                        if tree.valid_M_N.any():
                            names.write(tree.question.id + "\n")
                            done.add(tree.question.id)
                        else:
                            failure = tree.executions[0][0].detail
                    count += len(kept)
    if missing := [question for question in todo if question.id not in done]:
        raise tasks.BadInput(f"{len(missing)} of {len(questions)} questions failed ({failure}); {out} has what the others gave, the same command goes on")
    progress.unlink()
    return count


def main(argv) -> None:
    config = cli.flags(Config, argv, "The cold start: build the tiny model, fine-tune on samples, or collect samples from a teacher.")
    for flag in ("questions", "designs", "executions", "samples", "steps", "batch", "max_length", "design_tokens", "reply_tokens", "threads"):
        if getattr(config, flag) < 1:
            raise tasks.BadInput(f"--{flag.replace('_', '-')} {getattr(config, flag)}: must be at least 1")
    if not 0 < config.lr < math.inf:
        raise tasks.BadInput(f"--lr {config.lr}: must be a positive number")
    if (config.data or config.model) and config.out == "tiny":
        raise tasks.BadInput("--model and --data need --out, a folder of its own")
    if config.scripted and not config.model:
        raise tasks.BadInput("--scripted needs --model, which it fine-tunes")
    torch.set_num_threads(config.threads)
    if config.model and not (config.data or config.scripted or config.collect):
        return write(Policy(cli.model_path(config.model)), pathlib.Path(config.out), "written as it is")
    if not config.collect:
        return train(config)
    if config.out == "tiny":
        raise tasks.BadInput("--collect needs --out FILE.jsonl")
    pathlib.Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    try:
        count = asyncio.run(collect(config, pathlib.Path(config.out)))
    except SandboxError as error:
        raise tasks.BadInput(str(error)) from None
    log.info(f"{config.out}: {count} samples of {config.questions} questions")


if __name__ == "__main__":
    cli.command(main)
