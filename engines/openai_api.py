"""A server with the OpenAI chat API as an engine (vLLM's, llama.cpp's, any other).

    engine = ChatEngine("http://127.0.0.1:8000/v1", model="...")

It stands in for the engine and for the policy: `render` keeps a conversation as it is, as the
server has the tokenizer, and `sample` sends it. There are no token ids and no log-probabilities to
train on; tokens are counted as the server reports them. A server that fails, stalls or answers
nonsense is asked again, with growing pauses. After the last try it is an EngineError: counted,
never a score of 0.

Test: `pytest tests/test_engine_openai_api.py`. Read next: ../lib/cli.py.
"""

import asyncio
import json
import logging
import os
import random
import time

from data_types import Completion
from lib.errors import EngineError, PromptTooLong, UserError

LEAST_ROOM = 16  # tokens of a completion: a prompt that leaves fewer is too long
MAX_SEED = 1 << 31  # servers take no larger one


def open_server(address: str) -> "ChatEngine":
    """The engine of a server.

    address: its URL up to and with /v1, and #MODEL if it has several. Raises UserError if it does
    not answer.
    """
    import openai

    url, _, model = address.partition("#")
    engine = ChatEngine(url, model)
    try:
        names = [served.id for served in openai.OpenAI(base_url=url, api_key=key()).models.list()]
    except (openai.OpenAIError, ValueError) as error:
        problem = " ".join(str(error).split())[:200]
        raise UserError(f"{url}: no server with the OpenAI chat API ({problem})") from None
    if not model and len(names) != 1:
        raise UserError(f"{url}: serves {', '.join(names) or 'no model'}; add one: {url}#MODEL")
    engine.model = model or names[0]
    return engine


def key() -> str:
    return os.environ.get("OPENAI_API_KEY", "none")


class ChatEngine:
    """Samples from a server."""

    def __init__(
        self,
        url: str,
        model: str = "default",
        concurrency: int = 64,
        timeout: float = 300.0,
        tries: int = 5,
        pause: float = 1.0,
    ):
        """
        Args:
            url: the API's, up to and with /v1.
            concurrency: max requests at the same time.
            timeout: seconds of one request.
            pause: seconds before the second try; doubled each time.
        """
        import openai

        for name in ("httpx", "httpx2", "openai"):  # they log every request
            logging.getLogger(name).setLevel(logging.WARNING)
        self.client = openai.AsyncOpenAI(
            base_url=url, api_key=key(), timeout=timeout, max_retries=0
        )
        self.model = model
        # No thinking, as with a model of our own; not sent again where the server does not know it.
        self.extra_body = {"chat_template_kwargs": {"enable_thinking": False}}
        self.gate = asyncio.Semaphore(concurrency)
        self.tries = tries
        self.pause = pause
        self.retries = 0
        self.tokens = 0
        self.seconds = 0.0
        self.cpu_seconds = 0.0

    def render(self, messages: list[dict]) -> tuple:
        return tuple((message["role"], message["content"]) for message in messages)

    async def sample(self, prompt_ids, max_tokens, seed, temperature=1.0) -> Completion:
        """One completion of a conversation. Raises PromptTooLong, or EngineError."""
        import openai

        messages = [{"role": role, "content": content} for role, content in prompt_ids]
        problem = ""
        for attempt in range(self.tries):
            if attempt:
                self.retries += 1
                spread = random.uniform(0.75, 1.25)  # not all at the same moment
                await asyncio.sleep(self.pause * 2 ** (attempt - 1) * spread)
            started = time.monotonic()
            is_too_much = False
            sent = self.extra_body
            try:
                async with self.gate:
                    answer = await self.client.chat.completions.create(
                        model=self.model,
                        messages=messages,
                        max_tokens=max_tokens,
                        temperature=temperature,
                        top_p=1.0,
                        seed=seed % MAX_SEED,
                        extra_body=sent,
                    )
                return self.completion(answer)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if "context" in str(error).lower() or "maximum" in str(error).lower():
                    if max_tokens <= LEAST_ROOM:
                        raise PromptTooLong(str(error)[:200]) from None
                    is_too_much = True
                elif sent and "chat_template_kwargs" in str(error):
                    self.extra_body = {}
                    problem = str(error)[:200]
                    continue
                else:
                    refusal = str(error)[:200]
                    raise EngineError(f"the server refuses the request: {refusal}") from None
            except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
                problem = f"{str(error)[:200]} (OPENAI_API_KEY)"
                raise EngineError(f"the server refuses the key: {problem}") from None
            except (
                openai.APIError,
                json.JSONDecodeError,
                AttributeError,
                TypeError,
                IndexError,
                ValueError,
            ) as error:
                problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            finally:
                self.seconds += time.monotonic() - started
            if is_too_much:  # some servers refuse what the prompt and max_tokens are together
                return await self.sample(prompt_ids, max_tokens // 2, seed, temperature)
        raise EngineError(f"the server gave no answer in {self.tries} tries: {problem}")

    def completion(self, answer) -> Completion:
        choice = answer.choices[0]
        text = choice.message.content
        is_cut = choice.finish_reason in ("length", "content_filter")
        if text is None and is_cut:  # all of it went into thinking, or was filtered: unfinished
            text = ""
        if not isinstance(text, str):
            raise ValueError("an answer without a text")
        count = getattr(answer.usage, "completion_tokens", None)
        if type(count) is not int or count < 0:
            count = len(text) // 4 + 1  # the server does not count: a guess
        self.tokens += count
        return Completion((0,) * count, (), text, truncated=is_cut)

    async def sleep(self) -> None:
        raise NotImplementedError("a server's model is not trained")

    def update_weights(self, weights) -> None:
        raise NotImplementedError("a server's model is not trained")

    def close(self) -> None:
        """Nothing to shut down."""
