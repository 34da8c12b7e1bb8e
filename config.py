"""The flags of train.py, and sets of them for three sizes of machine.

What defines the method comes first; constants that no run has to change stand in the files that use
them. A flag that is given wins over its preset.

Test: `pytest tests/test_cli.py tests/test_config.py`. Read next: train.py.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import tyro

MAX_BATCH_TOKENS = 8192  # of a forward pass, without --batch-tokens and --max-length
FINAL_LR = 0.3  # of the learning rate, at the end of a cosine; the original's

BY_HAND = "hand:"  # before the name of a design by hand, in --designer


def is_server(model: str) -> bool:
    """Whether a role is played by a server, and not by a model in this process."""
    return model.startswith(("http://", "https://"))


ExecutorCredit = Annotated[
    Literal["question", "design", "replay"], tyro.conf.arg(aliases=["--executor-group"])
]


@dataclass(frozen=True)
class Config:
    model: str = "tiny"
    """Model of both roles: a folder in Hugging Face format, or a Hub id. tiny comes with this
    repository; paper has none, as it begins at a cold start that sft.py makes."""
    designer: str | None = None
    """A model of its own for the designer role: it learns from its designs alone, or stays frozen
    with --stage executor. hand:NAME, with that stage, is a design by hand (single, coder, vote
    ... or one of the set's own)."""
    executor: str | None = None
    """A model of its own for the executor role, frozen with --stage designer. Either may be the URL
    of a server with the OpenAI chat API, which never learns: http://HOST:8000/v1, or with #MODEL
    behind it."""
    tasks: str = "registry"
    """Training sets: names, rg:GENERATOR or paths, with optional weights (polaris:0.5,apps:0.5).
    -NAME drops questions that are also in the set NAME, if only nearly."""
    plugin: str | None = None
    """A Python file of your own that changes the method: reward, questions, tools, blocks, prompt,
    advantages, loss, learning rate (lib/plugins.py)."""
    preset: Literal["tiny", "one-gpu", "paper"] = "tiny"
    """Defaults of all flags. tiny: two CPU cores. one-gpu: a LoRA adapter of Qwen3-1.7B on a GPU of
    24 GB. paper: Qwen3-8B on eight GPUs of 80 GB, with the paper's numbers where there is a flag
    for them."""

    # Rollout
    steps: int = 100  # number of updates
    questions: int = 12  # questions per step, over all ranks (Q)
    designs: int = 8  # designs per question (M)
    executions: int = 2  # executions per design (N)
    resample: int = 0
    """Dynamic sampling: how often questions whose executions all got the same reward are replaced
    by further ones."""
    design_tokens: int = 96  # max new tokens per design
    reply_tokens: int = 24  # max new tokens per agent reply
    max_calls: int = 12  # max completions per execution
    max_length: int = 0
    """Max tokens of a prompt and its completion together; 0 is the model's own limit. The memory of
    an update depends on it."""

    # Credit and schedule
    stage: Literal["stagewise", "both", "designer", "executor"] = "stagewise"
    """Roles that learn: in turn, both at once, or only one. In as many steps, both at once
    updates each role twice as often as in turn."""
    phase_steps: int = 1  # steps per stagewise phase (K)
    executor_credit: ExecutorCredit = "question"
    """Group of an execution: those of its question, or of its design. Its calls share its
    advantage. replay: each call has its own, from four replays of its execution in each of
    which one call says something else (lib/replay.py)."""
    price: tuple[float, ...] = (0.0,)
    """Prices of a thousand sampled tokens, in rewards. Each question has one of them, drawn at
    random, which its designer is told; what is learned from is the reward less that cost."""

    # Update
    lr: float = 5e-4  # learning rate of AdamW, after the warm-up
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate after the warm-up. cosine: towards 0.3 of --lr after --steps."""
    warmup: int = 0  # steps in which the learning rate rises from 0 to --lr
    minibatches: int = 1
    """Optimizer steps per rollout, each on a part of its samples with about as many tokens; at most
    one for every 16 samples."""
    loss_mean: Literal["token", "execution"] = "token"
    """What the loss of a role is a mean over. execution: of the tokens of each trajectory first, so
    that a long one weighs no more."""
    clip: tuple[float, ...] = (0.2, 0.2)
    """Clip range of the ratio, below and above 1; a third number is the dual clip's, the bound of
    the loss of a negative advantage, in advantages."""
    kl: float = 0.0  # weight of the KL term to the starting model
    tis: float | None = None
    """Cap of the importance weights that correct for the sampler's log-probabilities; 0 is off. The
    default is 2 with vllm, off with hf."""
    dtype: Literal["auto", "bfloat16", "float32", "float64"] = "auto"
    """Precision of the forward pass, and with --lora of the frozen weights; weights that are
    trained are float32 (float64 with float64). auto: bfloat16 on a GPU, else float32."""
    batch_tokens: int = 0
    """Max tokens of a micro-batch of the update, but for one sequence that is longer; 0:
    --max-length, or 8,192 or the context without it. The gradient does not depend on it."""
    lora: int = 0  # rank of a LoRA adapter, which is trained instead of the weights; 0: none
    checkpointing: bool = False  # recomputation of activations in the backward pass
    shard: bool = False  # weights, gradients and moments divided among the ranks (fully_shard)

    # Where it runs
    engine: Literal["hf", "vllm"] = "hf"  # sampling engine in every rank
    gpu_memory: float = 0.5  # share of the GPU's memory that vllm takes while it samples
    sandbox: Literal["auto", "namespaces", "landlock", "none"] = "auto"
    """Isolation of scripts and tools. auto: the best that works here, but never none."""
    skip_check: bool = False  # no check that sampler, trainer and the model itself agree
    data_dir: str | None = None  # folder with local files of the published sets
    seed: int = 0  # random seed for questions, sampling and initialisation
    dry_run: str = ""  # GPUs and their memory, such as 8x80: print what the run needs, and stop

    # Evaluation and the run's folder
    eval_size: int = 100  # held-out questions per evaluation
    eval_every: int = 50  # steps between evaluations; 0: only before the first and after the last
    save_every: int = 30  # steps between checkpoints; 0: only at the end
    tracker: Literal["none", "tensorboard", "wandb"] = "none"  # tracker that also gets the metrics
    out: str | None = None  # folder of the run; default runs/DATE-TIME
    resume: bool = False  # continuation of the run in --out, with its flags

    def learning_rate(self, step: int) -> float:
        """The learning rate after `step` updates: linear warm-up, then constant or half a cosine.

        >>> config = Config(lr=1.0, warmup=2, lr_schedule="cosine", steps=12)
        >>> [round(config.learning_rate(step), 2) for step in (0, 1, 2, 7, 11)]
        [0.5, 1.0, 1.0, 0.65, 0.32]
        """
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.lr_schedule == "constant":
            return self.lr
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        cosine = (1 + math.cos(math.pi * progress)) / 2
        return self.lr * (FINAL_LR + (1 - FINAL_LR) * cosine)

    @property
    def models(self) -> dict[tuple[str, ...], str]:
        """Roles that share their weights -> the model they begin with, or a server's URL.

        >>> Config(executor="http://host/v1").models
        {('executor',): 'http://host/v1', ('designer',): 'tiny'}
        """
        if self.design_by_hand is not None:
            return {("executor",): self.model_of(("executor",))}
        if self.designer is None and self.executor is None:
            return {("executor", "designer"): self.model}
        return {(role,): self.model_of((role,)) for role in ("executor", "designer")}

    def model_of(self, roles) -> str:
        """The model that plays these roles."""
        own = [getattr(self, role) for role in roles if getattr(self, role)]
        return own[0] if own else self.model

    @property
    def design_by_hand(self) -> str | None:
        """The name of the design, if --designer names one."""
        if self.designer is None or not self.designer.startswith(BY_HAND):
            return None
        return self.designer.removeprefix(BY_HAND)

    @property
    def executor_group(self) -> str:
        """The group of an execution."""
        return "design" if self.executor_credit == "design" else "question"

    @property
    def dual_clip(self) -> float | None:
        return self.clip[2] if len(self.clip) == 3 else None

    def learns(self, roles: tuple[str, ...]) -> bool:
        """Whether any of the roles ever learns."""
        return self.stage in ("stagewise", "both", *roles)

    @property
    def importance_cap(self) -> float:
        if self.tis is not None:
            return self.tis
        return 2.0 if self.engine == "vllm" else 0.0


ONE_GPU = Config(
    preset="one-gpu",
    model="Qwen/Qwen3-1.7B",
    tasks="gsm8k",
    steps=200,
    questions=16,
    designs=4,
    executions=4,
    phase_steps=10,
    lr=2e-5,  # an adapter's is about ten times that of all weights (Schulman 2025)
    lr_schedule="constant",
    lora=32,
    design_tokens=1024,
    reply_tokens=1024,
    max_calls=12,
    max_length=8192,
    checkpointing=True,
    engine="vllm",
    eval_every=20,
)
PAPER = replace(
    ONE_GPU,  # what is not named here
    preset="paper",
    model="",
    tasks="paper",
    steps=400,
    questions=8,
    phase_steps=30,
    save_every=10,
    lr=5e-6,
    lora=0,
    warmup=10,
    lr_schedule="cosine",
    minibatches=16,
    clip=(0.2, 0.2, 3.0),
    design_tokens=8192,
    reply_tokens=8192,
    max_calls=16,
    max_length=16384,
    shard=True,
)
PRESETS = {"tiny": Config(), "one-gpu": ONE_GPU, "paper": PAPER}
