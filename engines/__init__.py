"""Engines: what samples from the policy. One protocol, three of them; read one or none.

    hf          transformers in this process, in rounds that are the same in every run: the default
    vllm        vLLM in this process, for GPUs
    openai_api  a server with the OpenAI chat API: evaluation, and collecting cold-start data

Test: `pytest tests/test_engine_hf.py tests/test_engine_vllm.py`. Read next: hf.py.
"""

import gc
from typing import Iterable, Protocol

from data_types import Completion


class Engine(Protocol):
    """What the trainer and the executor need of an engine."""

    tokens: int  # sampled so far
    seconds: float  # spent sampling
    cpu_seconds: float  # of those, CPU seconds of the thread that runs the event loop

    async def sample(
        self, prompt_ids: tuple[int, ...], max_tokens: int, seed: int, temperature: float = 1.0
    ) -> Completion:
        """One completion. Raises PromptTooLong, or EngineError when the engine fails."""

    async def sleep(self) -> None:
        """An update begins: give the accelerator's memory to the trainer. Nothing is sampling."""

    def update_weights(self, weights: Iterable) -> None:
        """The update is over: take the weights, (name, tensor) one after another, and wake up.

        Where a rank holds only a part of the weights, every rank has to go through all of them.
        """

    def close(self) -> None:
        """Shut down. torch.distributed may be gone afterwards."""


def open_engine(kind: str, policy, own_weights: bool = False, gpu_memory: float = 0.5) -> Engine:
    """The engine of `--engine hf` or `vllm`.

    Args:
        own_weights: it needs a copy, as the trainer holds only a part of the weights.
        gpu_memory: share of the GPU's memory that vLLM takes.
    """
    if kind == "vllm":
        from engines.vllm import VLLMEngine

        engine = VLLMEngine(policy, gpu_memory)
    else:
        from engines.hf import HFEngine

        engine = HFEngine(policy, own_weights=own_weights)
    # Models and libraries stay: a full garbage collection that looks through them takes 0.2 s.
    gc.unfreeze()  # an earlier engine may be garbage by now
    gc.collect()
    gc.freeze()
    return engine
