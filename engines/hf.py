"""The `hf` engine: transformers in this process, in rounds that are the same in every run.

A sample depends on its prompt and its seed. But it is computed in a batch, and in another batch
sums are rounded in another order. So that a run can be repeated bit for bit, the batches must not
depend on how long a script, a tool or a grader took. Therefore a round begins when nobody is left
who might still ask:

    task               time ->
    main               gather ...................................................
      design 0         sample ====|
      design 1         sample =======|
        execution 1,0                sandbox ...... sample ----====|
        execution 1,1                sandbox .. sample --------=======| sandbox ... sample
                                                       ^ both wait: the round begins

Who might still ask is read off the event loop: every task but those that wait for a sample, or for
other tasks. Call sites are plain asyncio: await, gather, timeout. (TaskGroup, wait_for and shield
hide what they wait for.) A program whose loop has tasks that never ask, such as a server, sets
`in_rounds` to False: then whatever waits is a batch.

Whose sample is complete goes on at once, while the batch decodes the longer ones. The weights are
the trainer's own, or a copy: where it trains in fp32 and samples in bf16, trains an adapter in
bf16, or holds only a part of them.

Sampling is plain: temperature alone, no top-k, top-p or repetition penalty (trap 1).
Shapes: B rows, T positions, V vocabulary.

Test: `pytest tests/test_engine_hf.py`. Read next: vllm.py.
"""

import asyncio
import copy
import os
import time
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import log_softmax
from transformers import Cache

from data_types import Completion
from lib.attention import GrowingLayer
from lib.errors import EngineError, PromptTooLong

# Without cuDNN's, which on a GPU makes a plan for each new length: at every token.
DECODE_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
MAX_BATCH = 256  # rows that are decoded together
POLL_SECONDS = 0.001  # how often it looks whether all wait
MIN_SHARED_PREFIX = 64  # tokens from which on a common beginning of all prompts is computed once


PUMP = "hf engine"  # name of the task that decodes
GATHERED = asyncio.tasks._GatheringFuture  # what a task waits for in `await asyncio.gather(...)`


class SampleFuture(asyncio.Future):
    """What a coroutine that asked for a sample waits for."""

    is_decoding = False  # its round has begun


@dataclass(frozen=True)
class Request:
    prompt_ids: tuple[int, ...]
    max_tokens: int
    temperature: float
    seed: int


class HFEngine:
    """Samples with transformers, a batch at a time. Use it in one event loop at a time."""

    def __init__(self, policy, max_batch: int = MAX_BATCH, own_weights: bool = False):
        self.policy = policy
        self.max_batch = max_batch
        self.in_rounds = True
        self.model = policy.model
        if own_weights or policy.model.dtype != policy.dtype:
            self.model = copy.deepcopy(policy.model).to(policy.device, policy.dtype)
            self.model.requires_grad_(False)
        self.waiting: dict[asyncio.Future, Request] = {}
        self.pump: asyncio.Task | None = None
        self.tokens = 0
        self.seconds = 0.0
        self.cpu_seconds = 0.0

    async def sample(self, prompt_ids, max_tokens, seed, temperature=1.0) -> Completion:
        """One completion. Raises PromptTooLong, or EngineError when the model fails."""
        room = self.policy.max_length - len(prompt_ids)
        if room < 1:
            raise PromptTooLong(
                f"a prompt of {len(prompt_ids)} tokens; the context holds {self.policy.max_length}"
            )
        future = SampleFuture()
        request = Request(tuple(prompt_ids), min(max_tokens, room), temperature, seed)
        self.waiting[future] = request
        if self.pump is None or self.pump.done():
            self.pump = asyncio.create_task(self.run_rounds(), name=PUMP)
        try:
            return await future
        finally:
            self.waiting.pop(future, None)  # also when a timeout cancels it

    async def run_rounds(self) -> None:
        """Decode what waits, round by round, until nothing does."""
        while self.waiting:
            while self.in_rounds and any(map(may_still_ask, asyncio.all_tasks())):
                await asyncio.sleep(POLL_SECONDS)
            batch = sorted(
                self.waiting.items(), key=lambda item: (len(item[1].prompt_ids), item[1].seed)
            )
            self.waiting = {}
            for future, _ in batch:
                future.is_decoding = True
            for start in range(0, len(batch), self.max_batch):
                await self.decode_batch(batch[start : start + self.max_batch])

    async def decode_batch(self, batch: list[tuple[asyncio.Future, Request]]) -> None:
        """Decode to the end, handing out completions as they finish."""
        futures = [future for future, _ in batch]
        requests = [request for _, request in batch]
        steps = None
        while not all(future.done() for future in futures):  # cancelled ones are done, too
            started, cpu_started = time.monotonic(), time.thread_time()
            try:
                if steps is None:
                    steps = decode(self.policy, requests, self.model)
                finished = next(steps)
            except Exception as error:  # boundary to torch: whoever waits gets the error
                if isinstance(error, RuntimeError):  # out of memory, device lost
                    error = EngineError(str(error)[:300])
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
                return
            finally:
                self.seconds += time.monotonic() - started
                self.cpu_seconds += time.thread_time() - cpu_started
            for row, completion in finished:
                self.tokens += len(completion.ids)
                if not futures[row].done():
                    futures[row].set_result(completion)
            await asyncio.sleep(0)  # who has its sample goes on

    async def sleep(self) -> None:
        """Nothing to give back."""

    @torch.no_grad()
    def update_weights(self, weights) -> None:
        """Take the trainer's weights. Where they are the same tensors there is nothing to do."""
        if self.model is self.policy.model:
            return
        own_weights = self.model.state_dict()
        for name, tensor in weights:
            own_weights[name].copy_(tensor)

    def close(self) -> None:
        """Nothing to shut down."""


def may_still_ask(task: asyncio.Task) -> bool:
    """Whether a task might ask for a sample before any sample arrives.

    It won't if it waits for a sample whose round has not begun, for another task, or for several.
    asyncio keeps what a task waits for in `_fut_waiter`, not a public name, but there since Python
    3.4. If that is done, the task is about to go on.
    """
    if task.get_name() == PUMP:
        return False
    waits_for = task._fut_waiter
    if waits_for is None or waits_for.done():
        return True
    if isinstance(waits_for, SampleFuture):
        return waits_for.is_decoding  # by another engine: it gets its sample soon, and goes on
    return not isinstance(waits_for, (asyncio.Task, GATHERED))


# ----------------------------------------------------------------------------------------- decoding


@torch.no_grad()
def decode(policy, requests: list[Request], model=None):
    """Decode a batch: each distinct prompt once, then a token per row and step.

    Finished rows leave the batch when half of it is finished. Yields after every step what it
    finished: [(index of the request, Completion), ...].
    """
    model = model or policy.model
    device = policy.device
    prompts = [request.prompt_ids for request in requests]
    if not policy.way.own_cache:
        prompts = list(dict.fromkeys(prompts))
    out, mask_B_T = prefill(policy, model, prompts)
    logits_B_V = out.logits[:, -1]
    cache = out.past_key_values
    if not policy.way.own_cache:
        rows = [prompts.index(request.prompt_ids) for request in requests]
        rows_B = torch.tensor(rows, device=device)
        logits_B_V = logits_B_V[rows_B]
        mask_B_T = mask_B_T[rows_B]
        cache.batch_select_indices(rows_B)

    temperature_B = torch.tensor([request.temperature for request in requests], device=device)
    uniform_B_T = uniforms(requests).to(device)
    ids = [[] for _ in requests]
    logprobs = [[] for _ in requests]
    row_requests = list(range(len(requests)))  # which request a row is; None: it is finished

    for step in range(uniform_B_T.shape[1]):
        token_B, logprob_B = sample_tokens(logits_B_V, temperature_B, uniform_B_T[:, step])
        finished = []
        for row, (token, logprob) in enumerate(zip(token_B.tolist(), logprob_B.tolist())):
            index = row_requests[row]
            if index is None:
                continue
            ids[index].append(token)
            logprobs[index].append(logprob)
            ended = token in policy.end_ids
            if ended or len(ids[index]) == requests[index].max_tokens:
                row_requests[row] = None
                completion = Completion(
                    ids=tuple(ids[index]),
                    logprobs=tuple(logprobs[index]),
                    text=policy.text(ids[index]),
                    truncated=not ended,
                )
                finished.append((index, completion))
        yield finished

        alive = [row for row, index in enumerate(row_requests) if index is not None]
        if not alive:
            return
        mask_B_T = torch.cat([mask_B_T, mask_B_T.new_ones(len(mask_B_T), 1)], dim=1)
        # The model's own cache may not be able to drop rows.
        num_finished = len(row_requests) - len(alive)
        is_half = num_finished >= max(1, len(row_requests) // 2)
        if is_half and not policy.way.own_cache:
            keep_B = torch.tensor(alive, device=device)
            cache.batch_select_indices(keep_B)
            row_requests = [row_requests[row] for row in alive]
            token_B, mask_B_T = token_B[keep_B], mask_B_T[keep_B]
            temperature_B, uniform_B_T = temperature_B[keep_B], uniform_B_T[keep_B]
        with sdpa_kernel(DECODE_KERNELS):
            out = model(
                input_ids=token_B[:, None],
                attention_mask=mask_B_T,
                position_ids=mask_B_T.sum(-1, keepdim=True) - 1,
                past_key_values=cache,
                use_cache=True,
            )
        logits_B_V = out.logits[:, -1]


def uniforms(requests: list[Request]) -> torch.Tensor:
    """(B, T): a number in [0, 1) for every token, from each request's own generator."""
    T = max(request.max_tokens for request in requests)
    rows = []
    for request in requests:
        generator = torch.Generator().manual_seed(request.seed)
        rows.append(torch.rand(T, generator=generator))
    return torch.stack(rows)


def sample_tokens(logits_B_V, temperature_B, uniform_B):
    """Sample one token per row by inverse CDF; temperature 0 takes the most likely token.

    Returns (token_B, logprob_B), the log-probability under the distribution sampled from (at
    temperature 0: under softmax of the logits).
    """
    logits_B_V = logits_B_V.to(torch.promote_types(logits_B_V.dtype, torch.float32))
    is_greedy_B = temperature_B == 0
    temperature_B = temperature_B.masked_fill(is_greedy_B, 1.0)  # greedy rows must not divide by 0
    logprobs_B_V = log_softmax(logits_B_V / temperature_B[:, None], dim=-1)

    # float64 for a sum over a large vocabulary; its last entry is 1 up to rounding: scale by it.
    cdf_B_V = logprobs_B_V.double().exp().cumsum(dim=-1)
    threshold_B = uniform_B * cdf_B_V[:, -1]
    sampled_B = (cdf_B_V <= threshold_B[:, None]).sum(dim=-1)
    sampled_B = sampled_B.clamp(max=logits_B_V.shape[-1] - 1)

    token_B = torch.where(is_greedy_B, logprobs_B_V.argmax(dim=-1), sampled_B)
    return token_B, logprobs_B_V.gather(-1, token_B[:, None]).squeeze(-1)


def prefill(policy, model, prompts: list[tuple[int, ...]]):
    """The model's output at the end of each prompt, with its cache, and the mask (B, T).

    What all prompts begin with (the blocks' documentation, in those of a designer) is computed
    once.
    """
    device = policy.device
    shared = 0
    if len(prompts) > 1 and policy.way.share_prefixes:
        shortest = min(len(prompt) for prompt in prompts)
        shared = min(len(os.path.commonprefix(prompts)), shortest - 1)
        if shared < MIN_SHARED_PREFIX:
            shared = 0
    cache = None if policy.way.own_cache else Cache(layer_class_to_replicate=GrowingLayer)
    if shared:
        prefix = torch.tensor([prompts[0][:shared]], device=device)
        model(input_ids=prefix, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(len(prompts))

    rest = [prompt[shared:] for prompt in prompts]
    ids_B_T, mask_B_T = pad_left(rest, policy.pad_id, device)
    position_B_T = (mask_B_T.cumsum(dim=-1) - 1).clamp(min=0) + shared
    mask_B_T = torch.cat([mask_B_T.new_ones(len(prompts), shared), mask_B_T], dim=1)
    out = model(
        input_ids=ids_B_T,
        attention_mask=mask_B_T,
        position_ids=position_B_T,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return out, mask_B_T


def pad_left(prompts, pad_id: int, device):
    """Ids and attention mask (B, T) of prompts that end at the same position."""
    T = max(len(prompt) for prompt in prompts)
    ids = [[pad_id] * (T - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (T - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
