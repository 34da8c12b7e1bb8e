"""Planning: what a configuration needs of a GPU, before it is started.

    python train.py --preset paper --dry-run 8x80

Computed, not measured on a GPU; CONTEXT is an assumption. With P parameters, L layers of width H,
feed-forward width I, query and key-value widths q and k, T tokens of a micro-batch, R ranks that
share (--shard) or 1, the bytes of a GPU are, during the update

    weights 4 P / R, gradients 4 P / R, AdamW's moments 8 P / R      fp32
    or with --lora weights 2 P, and 16 bytes for each parameter of the adapter
    bf16 copies of the weights: 2 P, or of two layers and the embeddings
    kept activations, per token and layer    24 H + 16 I + 16 (q + k)     fp32
                                             26 H +  8 I + 10 (q + k)     bf16 autocast
    or with --checkpointing 4 H, and one layer in full
    logits, GPU_CHUNK_LOGITS at a time: 14 bytes each

and while sampling weights, moments and the engine, with DDP also the gradients. GB are 2^30 bytes;
of a GPU of 80 GB a program sees 78.

Test: `pytest tests/test_memory.py`. Read next: ../docs/scale.md.
"""

import re
from dataclasses import dataclass, replace

from config import MAX_BATCH_TOKENS, is_server
from data_types import Budget
from lib import cli
from lib.errors import UserError
from lib.lora import base_of
from policy import GPU_CHUNK_LOGITS

GB = 1 << 30
VISIBLE = 0.98  # of a GPU's nominal memory
CONTEXT = 2 * GB  # CUDA's context, workspaces, what the allocator can't use
VLLM_ASLEEP = GB  # CUDA graphs, which stay, and NCCL's buffers
HF_BATCH = 256  # rows that engine hf decodes together


@dataclass(frozen=True)
class Shape:
    """A dense decoder as Qwen3's and Llama's."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    @property
    def query(self) -> int:
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def layer(self) -> int:
        """Parameters of one layer, but for its norms."""
        attention = 2 * self.hidden * (self.query + self.key)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def embeddings(self) -> int:
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        return self.layers * (self.layer + 2 * self.hidden) + self.embeddings + self.hidden

    def adapter(self, rank: int) -> int:
        """Parameters of a LoRA adapter."""
        attention = 2 * (2 * self.hidden + self.query + self.key)
        return self.layers * rank * (attention + 3 * (self.hidden + self.intermediate))


KNOWN = {  # so that planning needs no download
    "Qwen/Qwen3-0.6B": Shape(28, 1024, 3072, 16, 8, 128, 151936, True),
    "Qwen/Qwen3-1.7B": Shape(28, 2048, 6144, 16, 8, 128, 151936, True),
    "Qwen/Qwen3-4B": Shape(36, 2560, 9728, 32, 8, 128, 151936, True),
    "Qwen/Qwen3-8B": Shape(36, 4096, 12288, 32, 8, 128, 151936, False),
}


def shape_of(model: str) -> Shape:
    """The shape of a known model, of a folder, or of a Hub id. Raises UserError."""
    model = base_of(model)
    if model in KNOWN:
        return KNOWN[model]
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(cli.model_path(model))
        head_dim = getattr(config, "head_dim", None)
        return Shape(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=head_dim or config.hidden_size // config.num_attention_heads,
            vocabulary=config.vocab_size,
            tied=config.tie_word_embeddings,
        )
    except (OSError, ValueError, AttributeError) as error:
        problem = " ".join(str(error).split())[:120]
        raise UserError(f"--model {model}: no readable config.json ({problem})") from None


@dataclass(frozen=True)
class Plan:
    """A configuration on so many GPUs of so many bytes."""

    config: object  # config.Config
    shape: Shape
    ranks: int
    gpu_bytes: float
    other: Shape | None = None  # of the other role's model, if it has one in this process
    other_learns: bool = False

    @property
    def bf16(self) -> bool:
        """It plans for GPUs, whatever this machine has: auto is bfloat16."""
        return self.config.dtype in ("auto", "bfloat16")

    @property
    def sharers(self) -> int:
        return self.ranks if self.config.shard else 1

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        lora = self.config.lora
        return self.shape.adapter(lora) if lora else self.shape.parameters

    @property
    def max_length(self) -> int:
        """Tokens of a sequence."""
        return self.config.max_length or self.config.design_tokens + 1024


def activation_bytes(shape: Shape, bf16: bool) -> int:
    """What one layer keeps for its backward pass, per token."""
    per_hidden, per_intermediate, per_head = (26, 8, 10) if bf16 else (24, 16, 16)
    heads = per_head * (shape.query + shape.key)
    return per_hidden * shape.hidden + per_intermediate * shape.intermediate + heads


def cache_bytes(shape: Shape, bf16: bool) -> int:
    """Keys and values, per token."""
    return 2 * shape.layers * shape.key * (2 if bf16 else 4)


def state_bytes(plan: Plan) -> dict[str, float]:
    """What is there all the time."""
    P, config = plan.shape.parameters, plan.config
    low_precision = (2 if plan.bf16 else 4) * P  # of weights that are not trained
    weights = 4 * P / plan.sharers
    if config.lora:
        weights = low_precision + 4 * plan.trained
    moments = 8 * plan.trained / plan.sharers
    return {
        "weights": weights,
        "moments": moments,
        "reference model": low_precision / plan.sharers if config.kl else 0,
        "the other role's model": other_bytes(plan),
        "context": CONTEXT + (VLLM_ASLEEP if config.engine == "vllm" else 0),
    }


def other_bytes(plan: Plan) -> float:
    """Weights, and moments if it learns, of the other role's model."""
    if plan.other is None:
        return 0
    frozen = (2 if plan.bf16 else 4) * plan.other.parameters
    if not plan.other_learns:
        return frozen
    lora = plan.config.lora
    return frozen + 12 * plan.other.adapter(lora) if lora else 12 * plan.other.parameters


def update_bytes(plan: Plan) -> dict[str, float]:
    """Bytes of a GPU during the update."""
    shape, config = plan.shape, plan.config
    # Without --max-length, the context of a real model is longer than MAX_BATCH_TOKENS.
    longest = config.max_length or MAX_BATCH_TOKENS
    tokens = max(plan.max_length, config.batch_tokens or longest)  # at least one whole sequence
    copies = 0
    if plan.sharers > 1:
        # Two layers at a time, and the embeddings throughout, with their gradients.
        gathered = (2 * shape.layer + shape.embeddings) * (2 if plan.bf16 else 4)
        copies = gathered + (shape.layer + shape.embeddings) * 4
    elif plan.bf16 and not config.lora:
        copies = 2 * shape.parameters
    layer_activations = activation_bytes(shape, plan.bf16) * tokens
    if config.checkpointing:
        activations = layer_activations + 4 * shape.hidden * tokens * shape.layers
    else:
        activations = layer_activations * shape.layers
    num_logits = max(16 * shape.vocabulary, min(GPU_CHUNK_LOGITS, tokens * shape.vocabulary))
    return {
        **state_bytes(plan),
        "gradients": 4 * plan.trained / plan.sharers,
        "copies and gathered layers": copies,
        "activations": activations,
        "logits": 14 * num_logits,
    }


def sampling_bytes(plan: Plan) -> dict[str, float]:
    """Bytes of a GPU during the rollout."""
    P, config = plan.shape.parameters, plan.config
    uses_ddp = plan.ranks > 1 and not config.shard  # whose buckets stay
    state = {**state_bytes(plan), "gradients": 4 * plan.trained if uses_ddp else 0}
    if config.engine == "vllm":
        return {**state, "vllm": config.gpu_memory * plan.gpu_bytes}
    weight_copies = 0
    if plan.bf16:
        weight_copies = 2 * P
        if plan.other_learns:  # what is frozen is in low precision already
            weight_copies += 2 * plan.other.parameters
    elif plan.sharers > 1:
        weight_copies = 4 * P
    cache = HF_BATCH * plan.max_length * cache_bytes(plan.shape, plan.bf16)
    return {**state, "copy of the weights": weight_copies, "keys and values": cache}


def advice(plan: Plan) -> list[str]:
    """What to change if the configuration does not fit; most worthwhile first."""
    config = plan.config
    update, sampling = sum(update_bytes(plan).values()), sum(sampling_bytes(plan).values())
    changes = []
    if update > plan.gpu_bytes:
        if not config.checkpointing:
            changes.append("--checkpointing: activations are recomputed")
        if not config.shard and plan.ranks > 1:
            changes.append("--shard: weights, gradients and moments are divided among the ranks")
        if not config.lora and plan.sharers == 1:
            flags = "--lora 32" + (" --no-shard" if config.shard else "")
            changes.append(f"{flags}: an adapter is trained instead of the weights")
        if config.kl:
            changes.append("--kl 0: no reference model")
        if plan.max_length > 4096:
            changes.append(f"--max-length {plan.max_length // 2}: shorter sequences")
        return changes or ["more GPUs (with --shard) or larger ones"]
    if config.engine != "vllm":
        return ["--engine vllm: its cache has pages"] if sampling > plan.gpu_bytes else []
    if sampling > plan.gpu_bytes:
        others = sampling - config.gpu_memory * plan.gpu_bytes
        share = int((plan.gpu_bytes - others) / plan.gpu_bytes * 20) / 20
        if share > 0.05:
            return [f"--gpu-memory {share:.2f}: vllm beside weights and moments"]
        return ["more GPUs (with --shard) or larger ones"]
    room = config.gpu_memory * plan.gpu_bytes - 2 * plan.shape.parameters
    if room < plan.max_length * cache_bytes(plan.shape, plan.bf16):
        return ["a larger --gpu-memory or a smaller --max-length: no full sequence fits the cache"]
    return []


def parse_gpus(text: str) -> tuple[int, float]:
    """
    >>> parse_gpus("8x80")
    (8, 80.0)
    """
    match = re.fullmatch(r"(\d+)x(\d+(?:\.\d+)?)", text)
    if not match or int(match[1]) < 1 or float(match[2]) <= 0:
        raise UserError(f"--dry-run {text}: has to be GPUs x GB, such as 8x80")
    return int(match[1]), float(match[2])


def report(config) -> str:
    """What `train.py --dry-run GPUSxGB` prints. Raises UserError."""
    ranks, gpu_gb = parse_gpus(config.dry_run)
    # The one that learns first.
    local = {roles: model for roles, model in config.models.items() if not is_server(model)}
    (_, model), *others = sorted(local.items(), key=lambda item: not config.learns(item[0]))
    model = model or "Qwen/Qwen3-8B"
    plan = Plan(config, shape_of(model), ranks, gpu_gb * VISIBLE * GB)
    for roles, other in others:
        plan = replace(plan, other=shape_of(other), other_learns=config.learns(roles))
    Q, M, N = config.questions, config.designs, config.executions
    execution_tokens = min(config.max_calls * config.reply_tokens, Budget.tokens)
    tokens = Q * M * (config.design_tokens + N * execution_tokens)
    lines = [
        f"{model}: {plan.shape.parameters / 1e9:.2f}B parameters, "
        f"{'bfloat16' if plan.bf16 else 'float32'}, {ranks} GPU(s) of {gpu_gb:g} GB; "
        "computed, not measured"
    ]
    for name, sizes in (("update", update_bytes(plan)), ("sampling", sampling_bytes(plan))):
        large = [f"{item} {size / GB:.1f}" for item, size in sizes.items() if size >= GB / 20]
        lines.append(f"{name:<9} {sum(sizes.values()) / GB:6.1f} GB a GPU: {', '.join(large)}")
    if config.engine == "vllm":
        room = config.gpu_memory * plan.gpu_bytes - 2 * plan.shape.parameters
        cached = max(0, room) / cache_bytes(plan.shape, plan.bf16)
        lines.append(f"cache     keys and values of {cached:,.0f} tokens at a time")
    lines.append(
        f"a step    {Q} questions, {Q * M} designs, {Q * M * N} executions: at most "
        f"{tokens / 1e6:.2f}M sampled tokens, {tokens / ranks / 1e6:.2f}M a rank"
    )
    changes = advice(plan)
    if Q % ranks:
        changes.append(f"--questions {-(-Q // ranks) * ranks}: has to divide by the {ranks} ranks")
    lines += [f"change    {change}" for change in changes]
    lines.append("it does not fit as it is" if advice(plan) else "it fits")
    return "\n".join(lines)
