"""Planning: what a configuration needs, before anything is started.

    python train.py --preset paper --dry-run --gpus 8 --gpu-gb 80      one configuration, part by part, and which flag to change
    python memory.py                                                   the README's table

With P parameters, L layers of width H, feed-forward width I, query and key-value widths q and k, T tokens of a micro-batch, R ranks that share
(--shard) or 1, bytes of a GPU are, during the update

    weights 4 P / R, gradients 4 P / R, AdamW's moments 8 P / R              fp32
    bf16 copies of the weights 2 P, or of two layers and the embeddings      what the forward pass computes with
    kept activations, per token and layer    24 H + 16 I + 16 (q + k)        fp32
                                             26 H +  8 I + 10 (q + k)        bf16 autocast
    or with --checkpointing 4 H, and one layer in full
    logits, a chunk of 2^26 at a time: 14 bytes each

and while sampling weights, moments and the engine. The formulas for activations are counted on the tensors that autograd keeps (tests/test_memory.py);
the rest is arithmetic; CONTEXT is an assumption. Nothing here was measured on a GPU. GB are 2^30 bytes.
Test: `pytest tests/test_memory.py`. Read next: train.py.
"""
from dataclasses import dataclass, replace

from tasks import BadInput

GB = 1 << 30
CONTEXT = 2 * GB  # CUDA's context, cuBLAS workspaces, what the allocator can't use: an assumption


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
        return 2 * self.hidden * (self.query + self.key) + 3 * self.hidden * self.intermediate

    @property
    def embeddings(self) -> int:
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        return self.layers * (self.layer + 2 * self.hidden) + self.embeddings + self.hidden


KNOWN = {  # so that planning needs no download
    "Qwen/Qwen3-0.6B": Shape(28, 1024, 3072, 16, 8, 128, 151936, True),
    "Qwen/Qwen3-1.7B": Shape(28, 2048, 6144, 16, 8, 128, 151936, True),
    "Qwen/Qwen3-4B": Shape(36, 2560, 9728, 32, 8, 128, 151936, True),
    "Qwen/Qwen3-8B": Shape(36, 4096, 12288, 32, 8, 128, 151936, False),
}


def shape_of(model: str) -> Shape:
    """The shape of a known model, of a folder, or of a Hub id. Raises BadInput."""
    if model in KNOWN:
        return KNOWN[model]
    from transformers import AutoConfig

    import cli
    try:
        c = AutoConfig.from_pretrained(cli.model_path(model))
        head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        return Shape(c.num_hidden_layers, c.hidden_size, c.intermediate_size, c.num_attention_heads, c.num_key_value_heads, head, c.vocab_size,
                     c.tie_word_embeddings)
    except (OSError, ValueError, AttributeError) as error:
        raise BadInput(f"--model {model}: no readable config.json ({' '.join(str(error).split())[:120]})") from None


def activations(shape: Shape, bf16: bool) -> int:
    """Bytes that one layer keeps for its backward pass, per token."""
    per_hidden, per_intermediate, per_head = (26, 8, 10) if bf16 else (24, 16, 16)
    return per_hidden * shape.hidden + per_intermediate * shape.intermediate + per_head * (shape.query + shape.key)


def update_parts(shape: Shape, config, ranks: int, bf16: bool) -> dict[str, float]:
    """Bytes of a GPU during the update. `config` is train.Config."""
    P, R = shape.parameters, ranks if config.shard else 1
    references = bool(config.kl) + bool(config.anchor and config.stage == "stagewise" and config.policies == "shared")
    tokens = max(config.batch_tokens, min(config.max_length or 1 << 62, config.design_tokens + 1024, 1 << 15))
    copies = 0
    if config.shard and ranks > 1:  # two layers at a time, and the embeddings throughout, with their gradients
        copies = (2 * shape.layer + shape.embeddings) * (2 if bf16 else 4) + (shape.layer + shape.embeddings) * 4
    elif bf16:
        copies = 2 * P
    layers = activations(shape, bf16) * tokens * (1 if config.checkpointing else shape.layers)
    return {"weights": 4 * P / R, "gradients": 4 * P / R, "moments": 8 * P / R, "copies and gathered layers": copies,
            "references": references * P * (2 if bf16 else 4) / R, "the other role's policy": 12 * P if config.policies == "two" else 0,
            "activations": layers + (4 * shape.hidden * tokens * shape.layers if config.checkpointing else 0),
            "logits": 14 * max(16 * shape.vocabulary, min(1 << 26, tokens * shape.vocabulary)), "context": CONTEXT}


def sampling_parts(shape: Shape, config, ranks: int, bf16: bool, gpu_bytes: float) -> dict[str, float]:
    """Bytes of a GPU during the rollout."""
    P, R = shape.parameters, ranks if config.shard else 1
    kept = {"weights": 4 * P / R, "moments": 8 * P / R, "context": CONTEXT}
    kept |= {name: update_parts(shape, config, ranks, bf16)[name] for name in ("references", "the other role's policy")}
    if config.engine == "vllm":
        return kept | {"vllm": config.gpu_memory * gpu_bytes}
    room = config.max_length or 2 * max(config.design_tokens, config.reply_tokens)
    return kept | {"hf: a copy of the weights": 2 * P * (1 + (config.policies == "two")) if bf16 else 0 if R == 1 else 4 * P, "hf: keys and values": 256 * room * cache(shape, bf16)}


def cache(shape: Shape, bf16: bool) -> int:
    """Bytes of keys and values per token."""
    return 2 * shape.layers * shape.key * (2 if bf16 else 4)


def advice(shape: Shape, config, ranks: int, bf16: bool, gpu_bytes: float) -> list[str]:
    """What to change, if the configuration does not fit; most worthwhile first."""
    update, sampling = update_parts(shape, config, ranks, bf16), sampling_parts(shape, config, ranks, bf16, gpu_bytes)
    found = []
    if sum(update.values()) > gpu_bytes:
        found += ["--checkpointing: activations are recomputed"] * (not config.checkpointing)
        found += ["--shard: weights, gradients and moments are divided among the ranks"] * (not config.shard and ranks > 1)
        found += ["--anchor 0 or --kl 0: no reference"] * (update["references"] > 0)
        found += [f"--batch-tokens {config.batch_tokens // 2}: smaller micro-batches"] * (config.batch_tokens > 4096)
        found += ["more GPUs (with --shard) or larger ones"] * (not found)
    elif sum(sampling.values()) > gpu_bytes:
        rest = (gpu_bytes - sum(value for name, value in sampling.items() if name != "vllm")) / gpu_bytes
        smaller = f"--gpu-memory {int(rest * 20) / 20:.2f}: vllm beside weights and moments" if rest > 0.05 else "more GPUs (with --shard) or larger ones"
        found += [smaller if config.engine == "vllm" else "--engine vllm: its cache has pages"]
    if config.engine == "vllm" and not found:
        room = config.gpu_memory * gpu_bytes - 2 * shape.parameters
        longest = config.max_length or config.design_tokens + 1024
        if room < longest * cache(shape, bf16):
            found.append("a larger --gpu-memory or a smaller --max-length: not one sequence of the full length fits the cache")
    return found


def report(config, ranks: int) -> str:
    """What `train.py --dry-run` prints. Raises BadInput."""
    shape, gpu_bytes = shape_of(config.model), config.gpu_gb * GB
    bf16 = config.dtype in ("auto", "bfloat16")  # it plans for GPUs, whatever this machine has
    update, sampling = update_parts(shape, config, ranks, bf16), sampling_parts(shape, config, ranks, bf16, gpu_bytes)
    Q, M, N = config.questions, config.designs, config.executions
    tokens = Q * M * config.design_tokens + Q * M * N * min(config.max_calls * config.reply_tokens, config.execution_tokens)
    lines = [f"{config.model}: {shape.parameters / 1e9:.2f}B parameters, {'bfloat16' if bf16 else 'float32'}, {ranks} GPU(s) of {config.gpu_gb:g} GB; computed, not measured"]
    for name, parts in (("update", update), ("sampling", sampling)):
        lines.append(f"{name:<9} {sum(parts.values()) / GB:6.1f} GB a GPU: " + ", ".join(f"{part} {size / GB:.1f}" for part, size in parts.items() if size >= GB / 20))
    if config.engine == "vllm" and (room := config.gpu_memory * gpu_bytes - 2 * shape.parameters) > 0:
        lines.append(f"cache     {room / GB:6.1f} GB of it for keys and values of {room / cache(shape, bf16):,.0f} tokens at a time")
    lines.append(f"a step    {Q} questions, {Q * M} designs, {Q * M * N} executions: at most {tokens / 1e6:.2f}M sampled tokens, {tokens / ranks / 1e6:.2f}M a rank")
    if Q % ranks:
        lines.append(f"change    --questions {-(-Q // ranks) * ranks}: it must divide by the {ranks} ranks")
    changes = advice(shape, config, ranks, bf16, gpu_bytes)
    return "\n".join(lines + [f"change    {change}" for change in changes] + ["it fits" if not changes else "it does not fit as it is"])


def table() -> str:
    """The README's table: update | sampling, GB of one GPU, for the small preset's lengths."""
    import train
    setups = [(gb, ranks) for ranks in (1, 8) for gb in (24, 80, 141)]
    lines = ["| | " + " | ".join(f"{ranks} x {gb} GB" for gb, ranks in setups) + " |", "|---" * (len(setups) + 1) + "|"]
    for model, shape in KNOWN.items():
        cells = []
        for gb, ranks in setups:
            base = replace(train.PRESETS["small"], model=model, shard=ranks > 1)
            fits = [share for share in (0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
                    if not advice(shape, replace(base, gpu_memory=share), ranks, True, gb * GB)]
            update = sum(update_parts(shape, base, ranks, True).values()) / GB
            cells.append(f"{update:.0f} GB, `--gpu-memory {fits[0]}`" if fits else f"no ({update:.0f} GB)")
        lines.append(f"| {model.split('/')[1]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
