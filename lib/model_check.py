"""The check of a model, when it is loaded: do sampler, trainer and the model itself agree?

    sampler    log-probabilities of what the engine samples, a batch of prompts of several lengths
    rows       the trainer's padded rows
    shared     the trainer's rows of several samples with a common beginning
    itself     transformers' eager forward: one sequence, no padding, no cache

All in the mode in which the run trains, and where the weights are then: with --shard that is the
CPU. In bf16 the rows are compared in fp32, too, as rounding hides a small fault. Where they differ
from the model itself, the next of WAYS is tried; where none is left, the model is refused. So a
policy is never trained under another distribution than it was sampled from.

Test: `pytest tests/test_models.py`. Read next: attention.py.
"""

import asyncio
import contextlib
import math
import random

import torch

import designer
from config import is_server
from data_types import Question, Sample
from engines import open_engine
from engines.openai_api import open_server
from lib import cli
from lib.cli import log
from lib.distributed import all_reduce_max, iterate_weights
from lib.errors import EngineError, PromptTooLong, UserError
from lib.prefix_sharing import collate_rows, make_row
from lib.ways import FAST, WAYS, attention_window, set_attention, set_training, set_way
from policy import CompletionLogprobs, Policy

SHARED = 72  # tokens that all prompts begin with: enough for the sampler to share them
LENGTHS = (1, 9, 33)  # tokens of a prompt after them
NEW_TOKENS = 6  # sampled for each
MAX_TOKENS = 1536  # of the longest prompt: what lies beyond it isn't tried
MAX_GAP = 1e-3  # nats, of any token, in fp32
# In bf16, of the mean over the tokens: times what rounding changes in the model's own forward.
# Measured: 0.3 to 1.8 where all is right, 18 to 59 where the way is wrong (tests/families.py). With
# their signs, roundings cancel: 0.0 to 0.9.
MAX_ROUNDINGS = 4
MAX_ROUNDINGS_SIGNED = 1.5


async def open_to_sample(
    model: str,
    kind: str,
    dtype: str,
    max_length: int = 0,
    gpu_memory: float = 0.8,
    skip_check: bool = False,
) -> tuple:
    """(engine, policy) of a model that nobody trains: checked, with weights as they compute.

    model: its name, or the URL of a server, which is both. kind: `--engine hf` or `vllm`. Raises
    UserError.
    """
    if is_server(model):
        server = open_server(model)
        return server, server
    policy = Policy(
        cli.model_path(model),
        cli.load_device(),
        max_length,
        cli.load_dtype(dtype),
        load_device="cpu" if kind == "vllm" else None,  # vLLM has weights of its own
        weights_dtype=cli.load_dtype(dtype),
    )
    engine = open_engine(kind, policy, gpu_memory=gpu_memory)
    if not skip_check:
        said = await check_model(policy, engine)
        if policy.way is not FAST:
            log.info(f"{model}: {said}")
    return engine, policy


async def check_model(policy, engine, checkpointing: bool = False, learns: bool = False) -> str:
    """Take the first way in which all agree. Returns a line about it.

    Raises UserError if there is none, if the weights or the tokenizer can't be right, or if it
    learns and the engine does not get the new weights.
    """
    check_weights(policy)
    if checkpointing:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    problem = ""
    window = attention_window(policy.model)
    if window and policy.max_length > window:
        # A window is counted in places of a row, and where prefixes are shared a row has other
        # tokens, or padding, between two of a sample. This is not left to the measurement, as the
        # window may be longer than its prompts.
        problem = f"layers see {window} tokens"
    for way in WAYS:
        if problem and way.share_prefixes:
            continue
        set_way(policy, engine, way)
        why, gap = await disagreement(policy, engine, checkpointing)
        if not why:
            if learns:
                await check_updates(policy, engine)
            agree = f"sampler, trainer and the model itself agree ({gap:.1g} nats)"
            return f"{agree}; {way.name}, as {problem}" if problem else agree
        problem = problem or why
    raise UserError(f"--model {policy.path}: {why}. --skip-check goes on with wrong numbers")


async def check_updates(policy, engine) -> None:
    """Refuse an engine that goes on with its old weights, or takes new ones for others.

    All weights are halved, sent and compared, and doubled again: both are exact. As loaded, old and
    new weights are the same, and nothing would be seen.
    """
    if getattr(engine, "model", None) is policy.model:
        return
    scale_weights(policy.model, 0.5)
    engine.update_weights(iterate_weights(policy.model, policy.dtype))
    why, _ = await disagreement(policy, engine, False)
    scale_weights(policy.model, 2)
    engine.update_weights(iterate_weights(policy.model, policy.dtype))
    if why:
        raise UserError(
            f"--model {policy.path}: new weights don't get to the engine ({why}). "
            "--skip-check goes on with wrong numbers"
        )


@torch.no_grad()
def scale_weights(model, factor: float) -> None:
    for weight in model.parameters():
        if weight.is_floating_point():
            weight.mul_(factor)


def check_weights(policy) -> None:
    """Refuse weights that are no numbers, and a tokenizer that knows more tokens than the model."""
    for name, parameter in policy.model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(f"--model {policy.path}: {name} has weights that are NaN or infinite")
    num_embeddings = policy.model.get_input_embeddings().num_embeddings
    if len(policy.tokenizer) > num_embeddings:
        raise UserError(
            f"--model {policy.path}: its tokenizer has {len(policy.tokenizer)} tokens, "
            f"the model {num_embeddings}"
        )


def check_designer_prompt(policy, questions: list[Question]) -> None:
    """Refuse a context that not even the shortest of some questions leaves a token in."""

    def fits(question: Question) -> bool:
        try:
            prompt_ids = policy.render(designer.designer_messages(question))
        except PromptTooLong:
            return False
        return len(prompt_ids) < policy.max_length

    if questions and not any(map(fits, questions[:20])):
        raise UserError(
            f"--model {policy.path}: the designer's prompt does not fit into its context of "
            f"{policy.max_length} tokens (--max-length)"
        )


@torch.no_grad()
def check_alive(learner, micro_batch) -> None:
    """Compare log-probabilities after an update with those from before it. Collective.

    Raises FloatingPointError if the samples are now no likelier than tokens drawn blindly: the
    update has destroyed the model.
    """
    policy = learner.policy
    new_logprobs_K, _ = learner.model(micro_batch.batch)
    before, after = micro_batch.trainer_logprobs_K.mean().item(), new_logprobs_K.mean().item()
    blind = -0.99 * math.log(len(policy.tokenizer))
    is_trained = any(sample.advantage for sample in micro_batch.samples)
    if all_reduce_max(float(is_trained and before > blind and not after > blind)):
        raise FloatingPointError(
            "the model has died: the update took the log-probabilities of its own samples from "
            f"{before:.2g} to {after:.2g} nats a token"
        )


async def disagreement(policy, engine, checkpointing: bool) -> tuple[str, float]:
    """What disagrees with the model itself ("" if nothing does), and the largest difference."""
    try:
        gaps = await measure(policy, engine, checkpointing)
    except (EngineError, PromptTooLong) as error:
        return f"the sampler fails ({str(error)[:120]})", 0.0
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"--model {policy.path}: too little memory for its check ({str(error)[:80]}); "
            "--skip-check leaves it out"
        ) from None
    except Exception as error:  # boundary: a family may raise anything where it can't do a thing
        return f"it fails ({' '.join(str(error).split())[:120]})", 0.0
    wrong = [f"{name} by {size:.2g}" for name, (size, bound) in gaps.items() if not size <= bound]
    if not wrong:
        return "", max(size for size, _ in gaps.values())
    return f"log-probabilities differ from the model's own: {', '.join(wrong)} nats", 0.0


async def measure(policy, engine, checkpointing: bool) -> dict[str, tuple[float, float]]:
    """By who computed them: difference from the model's own log-probabilities, and its bound."""
    samples = await draw_samples(policy, engine)
    sampled_K = torch.tensor([logprob for sample in samples for logprob in sample.sampler_logprobs])
    dtype = torch.promote_types(policy.dtype, torch.float32)
    async with weights_in(dtype, policy, engine):
        exact_K, rows_K = compute(policy, samples, dtype, checkpointing)
    gaps = {name: ((logprobs_K - exact_K).abs().max(), MAX_GAP) for name, logprobs_K in rows_K}
    if policy.dtype != torch.bfloat16:
        gaps["sampler"] = (sampled_K - exact_K).abs().max(), MAX_GAP
    else:
        own_K, rows_K = compute(policy, samples, policy.dtype, checkpointing)
        rounding = (own_K - exact_K).abs().mean()
        bound = max(MAX_GAP, MAX_ROUNDINGS * rounding)
        bound_signed = max(MAX_GAP, MAX_ROUNDINGS_SIGNED * rounding)
        for name, logprobs_K in [("sampler", sampled_K), *rows_K]:
            gap_K = logprobs_K - own_K
            gaps[f"{name} in bf16"] = gap_K.abs().mean(), bound
            gaps[f"{name} in bf16 one way"] = gap_K.mean().abs(), bound_signed
    return {name: (size.item(), float(bound)) for name, (size, bound) in gaps.items()}


def compute(policy, samples: list[Sample], dtype: torch.dtype, checkpointing: bool):
    """Log-probabilities by the model itself, own_K, and by the trainer, (name, logprobs_K) each."""
    own_K = torch.cat([own_logprobs(policy, sample, dtype) for sample in samples])
    rows = {"rows": [make_row([sample]) for sample in samples]}
    if policy.way.share_prefixes:
        rows["shared rows"] = [make_row(samples)]
    trainer = CompletionLogprobs(policy)
    trainer.dtype = dtype
    set_training(policy.model, checkpointing)
    try:
        computed = []
        for name in rows:
            logprobs_K, _ = trainer(collate_rows(rows[name], policy.pad_id, policy.model.device))
            computed.append((name, logprobs_K.detach().cpu()))
        return own_K, computed
    finally:
        set_training(policy.model, False)


async def draw_samples(policy, engine) -> list[Sample]:
    """Completions of prompts of random tokens, in lexicographic order."""
    requests = []
    for seed, prompt_ids in enumerate(make_prompts(policy)):
        requests.append((prompt_ids, engine.sample(prompt_ids, NEW_TOKENS, seed)))
    completions = await asyncio.gather(*(completion for _, completion in requests))
    samples = []
    for (prompt_ids, _), completion in zip(requests, completions):
        samples.append(Sample(prompt_ids, completion.ids, completion.logprobs, 0.0, "executor"))
    return sorted(samples, key=lambda sample: sample.prompt_ids + sample.completion_ids)


def make_prompts(policy) -> list[tuple[int, ...]]:
    """Two of each length: with a common beginning, and longer than any window of the model."""
    rng = random.Random(0)
    special = set(policy.tokenizer.all_special_ids)
    tokens = [token for token in range(len(policy.tokenizer)) if token not in special]
    longest = min(MAX_TOKENS, policy.max_length - NEW_TOKENS)
    window = attention_window(policy.model)
    shared = rng.choices(tokens, k=SHARED)
    prompts = []
    for length in (*LENGTHS, window + LENGTHS[-1]):
        for _ in range(2):
            prompts.append(tuple(shared + rng.choices(tokens, k=length))[:longest])
    return prompts


@contextlib.asynccontextmanager
async def weights_in(dtype: torch.dtype, policy, engine):
    """Weights in bf16 (of a policy that does not learn, or under an adapter) are in `dtype` here.

    Where they take more of a GPU then, the engine gives its memory back in the meantime.
    """
    weights = [weight for weight in policy.model.parameters() if weight.dtype == torch.bfloat16]
    has_to_sleep = weights and is_on_gpu(policy)
    if has_to_sleep:
        await engine.sleep()
    try:
        for weight in weights:
            weight.data = weight.data.to(dtype)
        yield
    finally:
        for weight in weights:
            weight.data = weight.data.bfloat16()
        if has_to_sleep:
            engine.update_weights(iterate_weights(policy.model, policy.dtype))  # it wakes up


def is_on_gpu(policy) -> bool:
    return policy.model.device.type == "cuda"


@torch.no_grad()
def own_logprobs(policy, sample: Sample, dtype: torch.dtype) -> torch.Tensor:
    """The model's own log-probabilities of a completion: eager attention, no padding, no cache."""
    model, way = policy.model, policy.way
    ids = torch.tensor([sample.prompt_ids + sample.completion_ids], device=model.device)
    is_bf16 = dtype == torch.bfloat16
    set_attention(model, "eager")
    try:
        with torch.autocast(model.device.type, dtype, enabled=is_bf16):
            logits_T_V = model(input_ids=ids, use_cache=False).logits[0]
    finally:
        set_attention(model, way.attention)
    first = len(sample.prompt_ids)
    wide = torch.promote_types(logits_T_V.dtype, torch.float32)
    logprobs_T_V = torch.log_softmax(logits_T_V[first - 1 : -1].to(wide), dim=-1)
    return logprobs_T_V.gather(-1, ids[0, first:, None]).squeeze(-1).cpu()
