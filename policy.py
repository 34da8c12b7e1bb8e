"""The one shared model: loading, saving, and sampling with recorded log-probabilities.

Both roles, designer and executor, are this model. An engine samples from it: token ids in, token ids and their
log-probabilities out, and nothing that is trained on is ever re-tokenised from text.

Sampling is plain (temperature 1, no top-k, top-p or repetition penalty): the distribution that is sampled is the one that
is scored. (Trap avoided: greedy executor calls with a repetition penalty, scored under another distribution.)
A sample depends on its prompt and its seed, not (but for rounding) on its batch: one uniform number per token, drawn from the sample's own
generator, goes through the inverse of the cumulative distribution.

Precision: the weights that are trained are fp32; with dtype bfloat16 the forward pass computes in bf16 (autocast), and the engine samples from
a bf16 copy that `sync` renews after every update.

Shapes: B rows, T positions, V vocabulary.
Test: `pytest tests/test_policy.py`. Read next: scorer.py.
"""
import asyncio
import copy
import hashlib
import os
import pathlib
import time
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.nn.functional import log_softmax, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tasks import BadInput


class PromptTooLong(ValueError):
    """The prompt leaves no room in the context. An outcome of the execution; nothing is cut off in silence."""


class EngineError(RuntimeError):
    """The engine failed. The executions that it held are infrastructure outcomes, and take no part in training."""


@dataclass(frozen=True)
class Completion:
    """One sample. `ids` includes the end token if it was sampled; `logprobs[i]` is log p(ids[i] | prompt, ids[:i])."""
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    truncated: bool = False  # stopped by max_tokens or the context, not by its own end token


def seed_of(*parts) -> int:
    """A seed hashed from whatever names a sample: (run seed, step, question, m, n, call).

    >>> seed_of(0, "q1", 2) == seed_of(0, "q1", 2) != seed_of(0, "q1", 3)
    True
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


def _load(loader, file: pathlib.Path, path: str, **options):
    return loader.from_pretrained(str(file.parent), gguf_file=file.name, **options) if file.suffix == ".gguf" else loader.from_pretrained(path, **options)


class Policy:
    """A causal language model of the Hugging Face kind with its tokenizer and chat template, on one device."""

    def __init__(self, path: str, device: str = "cpu", max_length: int = 0, dtype: torch.dtype = torch.float32,
                 place: str | None = None):
        """Load from a folder, the Hub, or a .gguf file, in fp32 (in fp64 for dtype float64). dtype: what the forward pass computes in. max_length: of prompt and
        completion together, in tokens (0: the model's own limit). place: where the weights are put, if not on `device`. Raises BadInput if that can't be."""
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
        logging.disable_progress_bar()
        file = pathlib.Path(path)
        if not file.is_dir() and not (file.suffix == ".gguf" and file.is_file()) and (path.startswith((".", "/")) or path.count("/") != 1):
            raise BadInput(f"--model {path}: no such folder or .gguf file, and not a Hub id (OWNER/NAME)")
        try:
            self.tokenizer, self.model = _load(AutoTokenizer, file, path), _load(
                AutoModelForCausalLM, file, path, dtype=torch.promote_types(dtype, torch.float32), attn_implementation="grouped")
        except Exception as error:  # the boundary to the loaders: they raise what they like on a bad folder
            raise BadInput(f"--model {path}: cannot be loaded ({' '.join(str(error).split())[:160]})") from error
        if file.suffix == ".gguf":  # it was read as numbers: what it was quantised with does not belong to this model
            del self.model.config.quantization_config
            weights, self.model = self.model.state_dict(), type(self.model)(self.model.config)
            self.model.load_state_dict(weights)
        self.model.to(place or device).eval()
        if not self.tokenizer.chat_template:
            raise BadInput(f"--model {path}: its tokenizer has no chat template; use an instruct model, or add a template")
        self.path, self.device, self.dtype = path, torch.device(device), dtype
        limit = getattr(self.model.config, "max_position_embeddings", None) or 1 << 30
        self.max_length = min(limit, max_length or limit)
        ends = self.model.generation_config.eos_token_id or self.tokenizer.eos_token_id
        self.end_ids = frozenset(ends if isinstance(ends, list) else [ends]) | {self.tokenizer.eos_token_id}
        self.pad_id = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id

    def render(self, messages: list[dict]) -> tuple[int, ...]:
        """The token ids of a conversation, up to where the assistant speaks next. No thinking, as in the paper's runs."""
        return self._render(tuple((message["role"], message["content"]) for message in messages))

    @lru_cache(maxsize=4096)  # the designs of a question, its votes, its executions ask the same
    def _render(self, conversation) -> tuple[int, ...]:
        messages = [{"role": role, "content": content} for role, content in conversation]
        return tuple(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True,
                                                        return_dict=False, enable_thinking=False))

    def text(self, ids) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def pieces(self, ids) -> list[str]:
        """The text of each token, special ones too. Of tokens that make up one character together, the last has it."""
        found, start = [], 0
        for end in range(1, len(ids) + 1):
            before = ids[max(0, start - 1):start]  # with the token before: some decoders drop a text's first space
            piece = self.tokenizer.decode(ids[max(0, start - 1):end])[len(self.tokenizer.decode(before)):]
            whole = not piece.endswith("\N{REPLACEMENT CHARACTER}") or end - start == 4 or end == len(ids)
            found.append(piece if whole else "")
            start = end if whole else start
        return found

    def autocast(self):
        """The context in which a forward pass of the fp32 weights computes in `dtype`."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype == torch.bfloat16)

    def save(self, folder: pathlib.Path, weights: dict | None = None) -> None:
        """Write a Hugging Face folder. weights: whole tensors by name, where the model holds only its rank's part of them."""
        self.model.save_pretrained(folder, state_dict=weights)
        self.tokenizer.save_pretrained(folder)


# ------------------------------------------------------------------------------------------------------------- sampling

@dataclass(frozen=True)
class Request:
    prompt_ids: tuple[int, ...]
    max_tokens: int
    temperature: float
    seed: int


class HFEngine:
    """Dynamic batching: a batch runs once every coroutine that could still ask is waiting for a sample.

    So rounds are the same in every run, whatever the timing of scripts and tools. `live` counts the coroutines that could
    still ask: it starts with one, the caller; `gather` turns one into several (a server sets it to -inf: nobody waits for others). Whose sample is complete goes on at once, its
    script starts and its tools run, while the batch decodes the longer ones. In fp32 the weights are the trainer's own; in bf16, or when
    the trainer holds only a part of them (`own`), they are a copy.
    """

    def __init__(self, policy: Policy, max_batch: int = 256, own: bool = False):
        self.policy, self.max_batch = policy, max_batch
        own = own or policy.dtype == torch.bfloat16
        self.model = copy.deepcopy(policy.model).to(policy.device, policy.dtype).requires_grad_(False) if own else policy.model
        self.live, self.waiting, self.running = 1, [], None
        self.tokens, self.seconds, self.cpu_seconds = 0, 0.0, 0.0  # sampled, spent sampling; of that, this thread's CPU time

    async def gather(self, *coroutines) -> list:
        """asyncio.gather for coroutines that sample."""
        if len(coroutines) <= 1:
            return [await coroutine for coroutine in coroutines]
        running = len(coroutines)
        self.live += running - 1

        def ended(_):
            nonlocal running
            running -= 1
            if running:  # the last one hands its place back to the caller
                self.live -= 1
                self._run_if_all_wait()

        running_tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
        for task in running_tasks:
            task.add_done_callback(ended)  # also when it is cancelled before its first step
        results = await asyncio.gather(*running_tasks, return_exceptions=True)  # all end before one of them raises
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results

    async def sample(self, prompt_ids, max_tokens: int, seed: int, temperature: float = 1.0) -> Completion:
        """One completion. Raises PromptTooLong, or EngineError when the model fails."""
        room = self.policy.max_length - len(prompt_ids)
        if room < 1:
            raise PromptTooLong(f"a prompt of {len(prompt_ids)} tokens; the context holds {self.policy.max_length}")
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((Request(tuple(prompt_ids), min(max_tokens, room), temperature, seed), future))
        self._run_if_all_wait()
        try:
            return await future
        except asyncio.CancelledError:
            self.waiting = [item for item in self.waiting if item[1] is not future]
            raise

    async def pause(self):
        """The update begins: an engine that can give its memory to the trainer does so."""

    @torch.no_grad()
    def sync(self, weights):
        """The update is over: take the trainer's weights, an iterable of (name, tensor). Where they are the same tensors it is not read."""
        if self.model is not self.policy.model:
            own = self.model.state_dict()
            for name, tensor in weights:
                own[name].copy_(tensor)

    def close(self):
        """Nothing to shut down."""

    def _run_if_all_wait(self):
        if self.waiting and len(self.waiting) >= self.live and self.running is None:
            self.running = asyncio.ensure_future(self._run())

    async def _run(self):
        await asyncio.sleep(0)  # coroutines that end just now may still cancel others
        waiting, self.waiting = [item for item in self.waiting if not item[1].done()], []  # a time-out may have cancelled some
        batch = sorted(waiting, key=lambda item: (len(item[0].prompt_ids), item[0].seed))
        for start in range(0, len(batch), self.max_batch):
            await self._decode(batch[start:start + self.max_batch])
        self.running = None
        self._run_if_all_wait()

    async def _decode(self, batch):
        steps, finished = None, []
        while finished is not None:
            started, cpu = time.monotonic(), time.thread_time()
            try:
                steps = steps or decode(self.policy, [request for request, _ in batch], self.model)
                finished = next(steps, None)
            except Exception as error:  # the boundary to torch: whoever waits gets the error, and nobody waits for ever
                failure = EngineError(str(error)[:300]) if isinstance(error, RuntimeError) else error  # out of memory, device lost
                for future in [future for _, future in batch if not future.done()]:
                    future.set_exception(failure)
                return
            finally:
                self.seconds, self.cpu_seconds = self.seconds + time.monotonic() - started, self.cpu_seconds + time.thread_time() - cpu
            for row, completion in finished or ():
                self.tokens += len(completion.ids)
                if not batch[row][1].done():  # Ctrl-C cancels in the middle of a batch
                    batch[row][1].set_result(completion)
            await asyncio.sleep(0)
            if all(future.done() for _, future in batch):
                return  # or nobody waits any more


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer, in a buffer with room for more: a token is written to its place, where transformers would copy all that came before.
    `keys` and `values` are views of the part in use, (B, heads, T, head_dim)."""
    ROOM = 64  # positions

    def update(self, key_states, value_states, *args, **kwargs):
        old = self.get_seq_length() if self.is_initialized else 0
        new = old + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if old == 0 or self.keys._base is None or self.keys._base.shape[-2] < new:
            B, heads, _, D = key_states.shape
            for name in ("keys", "values"):
                buffer = key_states.new_empty(B, heads, new + self.ROOM, D)
                if old:
                    buffer[:, :, :old] = getattr(self, name)
                setattr(self, name, buffer[:, :, :old])
        for name, states in (("keys", key_states), ("values", value_states)):
            buffer = getattr(self, name)._base
            buffer[:, :, old:new] = states
            setattr(self, name, buffer[:, :, :new])
        return self.keys, self.values


def grouped_attention(module, query, key, value, attention_mask, scaling=None, **options):
    """Attention of one new token: the query heads that share a key-value head are rows of one product, where transformers would copy keys and values for
    each of them. In fp32 the product is written out: on a CPU the fused kernel takes 2-3 times as long for a single query. Anything else goes the usual way."""
    B, heads, T, D = query.shape
    if T > 1 or torch.is_grad_enabled():
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    query = query.reshape(B, key.shape[1], -1, D)
    if query.dtype == torch.bfloat16:  # the fused kernel keeps scores in fp32
        out = scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
    else:
        scores = (query * (scaling or D ** -0.5)) @ key.transpose(-1, -2)
        out = (scores if attention_mask is None else scores.masked_fill_(~attention_mask, -torch.inf)).softmax(-1) @ value
    return out.reshape(B, 1, heads, D), None


AttentionInterface.register("grouped", grouped_attention)
AttentionMaskInterface.register("grouped", sdpa_mask)


@torch.no_grad()
def decode(policy: Policy, requests: list[Request], model=None):
    """Decode a batch: one prefill per distinct prompt, then a token per row and step; finished rows leave the batch.

    Yields after every step what it finished: [(which request, Completion)].
    """
    model, device = model or policy.model, policy.device
    prompts = list(dict.fromkeys(request.prompt_ids for request in requests))
    out, mask_B_T = prefill(model, prompts, policy.pad_id, device)
    rows = torch.tensor([prompts.index(request.prompt_ids) for request in requests], device=device)
    cache, mask_B_T, logits_B_V = out.past_key_values, mask_B_T[rows], out.logits[rows, -1]
    cache.batch_select_indices(rows)
    temperature_B = torch.tensor([request.temperature for request in requests], device=device)
    uniform_B_T = torch.stack([torch.rand(max(r.max_tokens for r in requests), generator=torch.Generator().manual_seed(request.seed))
                               for request in requests]).to(device)
    ids, logprobs = [[] for _ in requests], [[] for _ in requests]
    alive = list(range(len(requests)))  # which request each row of the batch is
    for step in range(uniform_B_T.shape[1]):
        token_B, logprob_B = pick(logits_B_V, temperature_B, uniform_B_T[:, step])
        for row, token, logprob in zip(alive, token_B.tolist(), logprob_B.tolist()):
            if row is not None:
                ids[row].append(token)
                logprobs[row].append(logprob)
        done = [row is None or ids[row][-1] in policy.end_ids or len(ids[row]) >= requests[row].max_tokens for row in alive]
        yield [(row, Completion(tuple(ids[row]), tuple(logprobs[row]), policy.text(ids[row]), ids[row][-1] not in policy.end_ids))
               for row, over in zip(alive, done) if over and row is not None]
        alive = [None if over else row for row, over in zip(alive, done)]
        if all(done):
            break
        mask_B_T = torch.cat([mask_B_T, mask_B_T.new_ones(len(alive), 1)], 1)
        if sum(done) >= len(done) // 2:  # half of the rows are finished: go on with the other half
            keep = torch.tensor([i for i, over in enumerate(done) if not over], device=device)
            alive = [alive[i] for i in keep.tolist()]
            cache.batch_select_indices(keep)
            token_B, mask_B_T, temperature_B, uniform_B_T = token_B[keep], mask_B_T[keep], temperature_B[keep], uniform_B_T[keep]
        out = model(input_ids=token_B[:, None], attention_mask=mask_B_T, position_ids=mask_B_T.sum(-1, keepdim=True) - 1,
                    past_key_values=cache, use_cache=True)
        logits_B_V = out.logits[:, -1]


def pick(logits_B_V, temperature_B, uniform_B):
    """One token per row by inverse CDF (temperature 0: the most likely), and its log-probability under what was sampled."""
    greedy_B = temperature_B == 0
    logprobs_B_V = log_softmax(logits_B_V.to(torch.promote_types(logits_B_V.dtype, torch.float32)) / torch.where(greedy_B, 1.0, temperature_B)[:, None], -1)
    cdf_B_V = logprobs_B_V.double().exp().cumsum(-1)
    sampled_B = (cdf_B_V <= uniform_B[:, None] * cdf_B_V[:, -1:]).sum(-1).clamp(max=logits_B_V.shape[-1] - 1)
    token_B = torch.where(greedy_B, logprobs_B_V.argmax(-1), sampled_B)
    return token_B, logprobs_B_V.gather(-1, token_B[:, None])[:, 0]


def prefill(model, prompts, pad_id, device):
    """The model's output at the end of each prompt, with its cache, and the mask (B, T). What all prompts begin with (the blocks' documentation, in
    those of a designer) is computed once."""
    shared = len(os.path.commonprefix(prompts)) if len(prompts) > 1 else 0
    shared = min(shared, min(map(len, prompts)) - 1)
    shared = shared if shared >= 64 else 0
    cache = Cache(layer_class_to_replicate=GrowingLayer)
    if shared:
        model(input_ids=torch.tensor([prompts[0][:shared]], device=device), past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(len(prompts))
    ids_B_T, mask_B_T = pad_left([prompt[shared:] for prompt in prompts], pad_id, device)
    position_B_T = (mask_B_T.cumsum(-1) - 1).clamp(min=0) + shared
    mask_B_T = torch.cat([mask_B_T.new_ones(len(prompts), shared), mask_B_T], 1)
    return model(input_ids=ids_B_T, attention_mask=mask_B_T, position_ids=position_B_T, past_key_values=cache, use_cache=True,
                 logits_to_keep=1), mask_B_T


def pad_left(prompts, pad_id, device):
    """Ids and attention mask (B, T) of prompts that end at the same position."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask
