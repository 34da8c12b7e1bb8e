"""Builds the tiny model from nothing: tokenizer, weights, cold start.

    python -m tiny.build                                writes tiny/ anew, in half an hour
    python -m tiny.build --out DIR                      writes another folder
    python -m tiny.build --world arithmetic --out DIR   a model for the set `arithmetic`
    python -m tiny.build --world namesakes --out DIR    a model for the set `namesakes`

A Qwen3 of 0.9M parameters. Its chat template keeps the first line of a system message, which says
who speaks, and to a designer which tools and blocks there are: the documented prompt is for models
that can read it.

Test: `pytest tests/test_sft.py`. Read next: ../docs/tour.md.
"""

import os
import pathlib
import tempfile
from dataclasses import dataclass
from typing import Literal

import torch

from lib import cli
from lib.cli import ROOT, log
from lib.shapes import write_shapes
from policy import Policy
from sft import encode, fine_tune
from tiny import teacher
from tiny.arithmetic import teacher as arithmetic

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}<|system|>{{ message['content'].split('\\n')[0] }}"
    "{% else %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# What a token never crosses: a capitalised word, a line, a step in a chain of relations, two
# digits. Inside a token there may be several words, so that a design has some thirty tokens.
PIECES = r"[A-Z][a-z]+|\n| of (?:the )?|'s |[0-9]{1,2}"
SPECIAL_TOKENS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
VOCABULARY = 1024
TOKENIZER_SAMPLES = 20_000  # samples that the tokenizer is trained on


@dataclass(frozen=True)
class Config:
    out: str = str(ROOT / "tiny")  # folder of the model
    world: Literal["registry", "namesakes", "arithmetic"] = "registry"  # set it is built for
    samples: int = 120_000  # samples of the scripted teacher
    steps: int = 4400  # number of updates
    batch: int = 64  # samples per update
    lr: float = 2e-3  # learning rate, decaying linearly to a tenth
    batch_tokens: int = 8192  # max tokens of a forward pass
    max_length: int = 2048  # max tokens per sample
    seed: int = 0  # random seed


def train_tokenizer(texts: list[str], size: int = VOCABULARY):
    """A byte-level BPE: it can write any text, common phrases are one token, so are two digits."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        chat_template=TEMPLATE,
        additional_special_tokens=SPECIAL_TOKENS[2:],
    )


def new_model(tokenizer):
    """Freshly initialised."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def texts_of(rows: list[tuple]) -> list[str]:
    """The texts that the model will see: of system messages, the first line."""
    texts = []
    for _, messages, _ in rows:
        for message in messages:
            content = message["content"]
            texts.append(content.split("\n")[0] if message["role"] == "system" else content)
    return texts + [completion for _, _, completion in rows]


def build(config: Config, folder: pathlib.Path) -> list[float]:
    """Write the model into `folder`. Returns the losses of its cold start."""
    torch.manual_seed(config.seed)
    if config.world == "arithmetic":
        rows = arithmetic.cold_start(config.samples, config.seed)
    else:
        rows = teacher.cold_start(config.samples, config.seed, config.world)
    tokenizer = train_tokenizer(texts_of(rows[:TOKENIZER_SAMPLES]))
    new_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    policy = Policy(str(folder))  # from here on like any other model
    losses = fine_tune(policy, encode(policy, rows, config.max_length), config)
    policy.save(folder)
    write_shapes(folder, rows)
    return losses


def main(argv: list[str]) -> None:
    config = cli.flags(Config, argv, "Build the tiny model from nothing.")
    cli.check_at_least(config, 1, "samples steps batch")
    cli.share_cores()
    out = pathlib.Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        losses = build(config, pathlib.Path(folder))
        for path in pathlib.Path(folder).iterdir():  # file by file: the folder has code, too
            os.replace(path, out / path.name)
    log.info(f"{out}: loss {losses[0]:.3f} -> {losses[-1]:.3f} in {config.steps} steps")


if __name__ == "__main__":
    cli.command(main)
