"""Other engines: a server with the OpenAI chat API as the model, for evaluation and for collecting cold-start data.

    engine = ChatEngine("http://127.0.0.1:8000/v1", model="Qwen/Qwen3-8B")

It stands in for both halves of policy.py: `render` keeps a conversation as it is, as the server has the tokenizer, and `sample` sends it.
There are no token ids and no log-probabilities to train on; tokens are counted as the server reports them. A server that
fails, stalls or answers nonsense is asked again, with growing pauses; after the last try it is an EngineError: an
infrastructure outcome, counted, never a score of 0.
Test: `pytest tests/test_engines.py`. Read next: eval.py.
"""
import asyncio
import json
import os
import random
import time

from policy import Completion, EngineError, PromptTooLong


class ChatEngine:
    """Samples from a server. Use it as the engine and as the policy."""

    def __init__(self, url: str, model: str = "default", concurrency: int = 64, timeout: float = 300.0, tries: int = 5, pause: float = 1.0):
        """url: of the API, up to and with /v1. timeout: seconds of one request. pause: seconds before the second try; doubled each time."""
        import openai
        self.client = openai.AsyncOpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"), timeout=timeout, max_retries=0)
        self.model, self.gate, self.tries, self.pause = model, asyncio.Semaphore(concurrency), tries, pause
        self.tokens, self.seconds, self.cpu_seconds, self.retries = 0, 0.0, 0.0, 0

    async def gather(self, *coroutines) -> list:
        """asyncio.gather that lets all end before one of them raises."""
        results = await asyncio.gather(*coroutines, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return list(results)

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
