"""The one shared model: sampling with recorded log-probabilities, log-probabilities for training, loading and saving.

Both roles, designer and executor, are this model. An engine samples from it: token ids in, token ids and their
log-probabilities out, and nothing that is trained on is ever re-tokenised from text.

Sampling is plain (temperature 1, no top-k, top-p or repetition penalty): the distribution that is sampled is the one that
is scored. (Trap avoided: greedy executor calls with a repetition penalty, scored under another distribution.)
A sample depends on its prompt and its seed, not (but for rounding) on its batch: one uniform number per token, drawn from the sample's own
generator, goes through the inverse of the cumulative distribution.

Shapes: B rows, T positions, V vocabulary, K completion tokens of a micro-batch, all rows one after another.
Test: `pytest tests/test_policy.py`. Read next: designer.py.
"""
import asyncio
import hashlib
import pathlib
import time
from dataclasses import dataclass

import torch
from torch.nn.functional import log_softmax
from torch.utils.checkpoint import checkpoint

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


@dataclass(frozen=True)
class Sample:
    """One completion to learn from, with the log-probabilities of the sampler and the advantage of its trajectory."""
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    old_logprobs: tuple[float, ...]
    advantage: float
    role: str  # "designer" or "executor"

    def __len__(self):
        return len(self.prompt_ids) + len(self.completion_ids)


def seed_of(*parts) -> int:
    """A seed hashed from whatever names a sample: (run seed, step, question, m, n, call).

    >>> seed_of(0, "q1", 2) == seed_of(0, "q1", 2) != seed_of(0, "q1", 3)
    True
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


class Policy:
    """A causal language model of the Hugging Face kind with its tokenizer and chat template, on one device."""

    def __init__(self, path: str, device: str = "cpu", max_length: int | None = None):
        """Load from a folder or the Hub, in fp32 (the master weights). Raises BadInput if that can't be."""
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
        logging.disable_progress_bar()
        if not pathlib.Path(path).is_dir() and (path.startswith((".", "/")) or path.count("/") != 1):
            raise BadInput(f"--model {path}: no such folder, and not a Hub id (OWNER/NAME)")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(path)
            self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to(device).eval()
        except Exception as error:  # the boundary to the loaders: they raise what they like on a bad folder
            raise BadInput(f"--model {path}: cannot be loaded ({' '.join(str(error).split())[:160]})") from error
        if not self.tokenizer.chat_template:
            raise BadInput(f"--model {path}: its tokenizer has no chat template; use an instruct model, or add a template")
        self.device = torch.device(device)
        limit = getattr(self.model.config, "max_position_embeddings", None) or 1 << 30
        self.max_length = min(limit, max_length or limit)
        ends = self.model.generation_config.eos_token_id or self.tokenizer.eos_token_id
        self.end_ids = frozenset(ends if isinstance(ends, list) else [ends]) | {self.tokenizer.eos_token_id}
        self.pad_id = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id

    def render(self, messages: list[dict]) -> tuple[int, ...]:
        """The token ids of a conversation, up to where the assistant speaks next. No thinking, as in the paper's runs."""
        return tuple(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True,
                                                        return_dict=False, enable_thinking=False))

    def text(self, ids) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def save(self, folder: pathlib.Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


# ------------------------------------------------------------------------------------------------------------- sampling

@dataclass(frozen=True)
class Request:
    prompt_ids: tuple[int, ...]
    max_tokens: int
    temperature: float
    seed: int


class HFEngine:
    """Batches what waits: when every coroutine that could still ask is waiting for a sample, the batch runs.

    So rounds are the same in every run, whatever the timing of scripts and tools. `live` counts the coroutines that could
    still ask: it starts with one, the caller; `gather` turns one into several. Whose sample is complete goes on at once, its
    script starts and its tools run, while the batch decodes the longer ones. The weights are the trainer's own: an update
    needs no sync.
    """

    def __init__(self, policy: Policy, max_batch: int = 256):
        self.policy, self.max_batch = policy, max_batch
        self.live, self.waiting, self.running = 1, [], None
        self.tokens, self.seconds, self.cpu_seconds = 0, 0.0, 0.0  # sampled, spent sampling; of that, this thread's CPU time

    async def gather(self, *coroutines) -> list:
        """asyncio.gather for coroutines that sample."""
        if not coroutines:
            return []
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

    def sync(self):
        """Push the trainer's weights to the engine. Here they are the same tensors."""

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
                steps = steps or decode(self.policy, [request for request, _ in batch])
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


@torch.no_grad()
def decode(policy: Policy, requests: list[Request]):
    """Decode a batch: one prefill per distinct prompt, then a token per row and step; finished rows leave the batch.

    Yields after every step what it finished: [(which request, Completion)].
    """
    model, device = policy.model, policy.device
    prompts = list(dict.fromkeys(request.prompt_ids for request in requests))
    ids_B_T, mask_B_T = pad_left(prompts, policy.pad_id, device)
    out = model(input_ids=ids_B_T, attention_mask=mask_B_T, position_ids=(mask_B_T.cumsum(-1) - 1).clamp(min=0),
                use_cache=True, logits_to_keep=1)
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
    logprobs_B_V = log_softmax(logits_B_V.float() / torch.where(greedy_B, 1.0, temperature_B)[:, None], -1)
    cdf_B_V = logprobs_B_V.double().exp().cumsum(-1)
    sampled_B = (cdf_B_V <= uniform_B[:, None] * cdf_B_V[:, -1:]).sum(-1).clamp(max=logits_B_V.shape[-1] - 1)
    token_B = torch.where(greedy_B, logprobs_B_V.argmax(-1), sampled_B)
    return token_B, logprobs_B_V.gather(-1, token_B[:, None])[:, 0]


def pad_left(prompts, pad_id, device):
    """Ids and attention mask (B, T) of prompts that end at the same position."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


# ------------------------------------------------------------------------------------------------------------- training

class Scorer(torch.nn.Module):
    """Log-probabilities of completions under the model, with gradient: what DDP wraps.

    The head runs on completion positions only and in chunks that are recomputed in the backward pass: the logits of
    a 150k vocabulary times 8k tokens never exist at once.
    """

    def __init__(self, model, chunk: int = 2048):
        super().__init__()
        self.model, self.chunk = model, chunk

    def forward(self, batch: "Batch"):
        """-> logprobs_K, entropy_K (without gradient): the K completion tokens of all rows, in order."""
        hidden_B_T_H = self.model.base_model(input_ids=batch.ids_B_T, attention_mask=batch.attention(self.model.dtype),
                                             position_ids=batch.position_B_T).last_hidden_state
        hidden_K_H = hidden_B_T_H.flatten(0, 1)[batch.source_K]
        parts = [checkpoint(self._head, hidden, targets, use_reentrant=False)
                 for hidden, targets in zip(hidden_K_H.split(self.chunk), batch.target_K.split(self.chunk))]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _head(self, hidden_K_H, targets_K):
        logits_K_V = self.model.get_output_embeddings()(hidden_K_H)
        logprobs_K_V = log_softmax(logits_K_V, -1, dtype=torch.promote_types(logits_K_V.dtype, torch.float32))  # fp32 at least
        with torch.no_grad():
            entropy_K = -(logprobs_K_V.exp() * logprobs_K_V).sum(-1)
        return logprobs_K_V.gather(-1, targets_K[:, None])[:, 0], entropy_K


@dataclass(frozen=True)
class Row:
    """Samples with the same prompt: one row of a batch, the prompt once, then every completion."""
    samples: tuple[Sample, ...]

    def __len__(self):
        return len(self.samples[0].prompt_ids) + sum(len(sample.completion_ids) for sample in self.samples)


def share_prompts(samples: list[Sample], limit: int = 256) -> list[Row]:
    """Rows of at most `limit` tokens (one sample may be longer). The M designs of a question and the votes of an ensemble have
    the same prompt, which is then computed once.

    >>> [len(row.samples) for row in share_prompts([Sample((1, 2), (3,), (0.,), 1., "designer")] * 3, limit=4)]
    [2, 1]
    """
    rows = {}
    for sample in samples:
        parts = rows.setdefault(sample.prompt_ids, [[]])
        if parts[-1] and len(Row(tuple(parts[-1]))) + len(sample.completion_ids) > limit:
            parts.append([])
        parts[-1].append(sample)
    return [Row(tuple(part)) for parts in rows.values() for part in parts]


@dataclass(frozen=True)
class Batch:
    """Rows as tensors. segment_B_T: 0 in the prompt, k in the k-th completion of the row, -1 in padding. The token
    target_K[k] is predicted at the flat position source_K[k]. Which tokens are trained comes from what was sampled: the end token
    is, padding never, even where both are the same id."""
    ids_B_T: torch.Tensor
    position_B_T: torch.Tensor
    segment_B_T: torch.Tensor
    source_K: torch.Tensor
    target_K: torch.Tensor

    def attention(self, dtype):
        """The mask: causal, and a completion sees the prompt and itself, not its neighbours. Rows of one sample need no more
        than the usual (B, T) mask; shared ones get (B, 1, T, T), 0 where attention may look and a large negative elsewhere."""
        if self.segment_B_T.max() <= 1:
            return (self.segment_B_T >= 0).long()
        T, key, query = self.segment_B_T.shape[1], self.segment_B_T[:, None, None, :], self.segment_B_T[:, None, :, None]
        seen = ((key == 0) | (key == query)) & torch.ones(T, T, dtype=torch.bool, device=key.device).tril()
        return torch.zeros(seen.shape, dtype=dtype, device=key.device).masked_fill(~seen, torch.finfo(dtype).min)


def collate(rows: list[Row], pad_id: int, device="cpu", extra: int = 0) -> Batch:
    """Right-padded tensors of `rows`. `extra` pads more (for a test)."""
    width = max(map(len, rows)) + extra
    ids, positions, segments, sources, targets = [], [], [], [], []
    for b, row in enumerate(rows):
        prompt = row.samples[0].prompt_ids
        line, places, parts = list(prompt), list(range(len(prompt))), [0] * len(prompt)
        for number, sample in enumerate(row.samples, 1):
            start, count = b * width + len(line), len(sample.completion_ids)
            sources += [b * width + len(prompt) - 1, *range(start, start + count - 1)]  # the first token follows the prompt
            targets += range(start, start + count)
            line += sample.completion_ids
            places += range(len(prompt), len(prompt) + count)
            parts += [number] * count
        rest = width - len(line)
        ids.append(line + [pad_id] * rest)
        positions.append(places + [0] * rest)
        segments.append(parts + [-1] * rest)
    flat = [torch.tensor(part, device=device) for part in (ids, positions, segments, sources)]
    return Batch(*flat, flat[0].flatten()[torch.tensor(targets, device=device)])


def micro_batches(samples: list, budget: int) -> list[list]:
    """Split samples (or rows) into micro-batches of at most `budget` padded tokens each, alike in length, so that little is padding.

    >>> [len(batch) for batch in micro_batches(["aaaa", "bb", "cc", "d"], budget=4)]
    [1, 2, 1]
    """
    batches = []
    for sample in sorted(samples, key=len, reverse=True):
        if batches and (len(batches[-1]) + 1) * len(batches[-1][0]) <= budget:
            batches[-1].append(sample)
        else:
            batches.append([sample])
    return batches
