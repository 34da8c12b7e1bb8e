"""The chat template: the only way from a conversation to tokens.

A template may refuse or drop a system message (Gemma 1 and 2): then its text goes in front of the
first user turn. Text that spells a control token, such as <|im_end|>, is tokenised as text, so that
no question and no agent can speak as another.

Test: `pytest tests/test_chat.py`. Read next: ways.py.
"""

import asyncio
import datetime
import re
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from jinja2 import TemplateError

from lib.errors import PromptTooLong, UserError
from lib.turns import my_turn

MARK = "\ue000"  # a private character: marks where a text spells a control token
DATE = datetime.date(2024, 7, 26)  # where a template says it: the same in every run, on every day
LONG = 10_000  # characters: to tokenise as many may take 30 ms
# One thread: who asks for a prompt that is being tokenised then finds it in the cache.
TOKENIZING = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizing")
PROBE = {"system": "Be brief.", "user": "Which number?", "assistant": "It is seven."}


async def render(policy, messages: list[dict]) -> tuple[int, ...]:
    """`policy.render` for the event loop: in its turn, and in a thread where it may take long."""
    await my_turn()
    if sum(len(message["content"]) for message in messages) <= LONG:
        return policy.render(messages)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(TOKENIZING, policy.render, messages)


class ChatTemplate:
    """Renders conversations for one tokenizer."""

    def __init__(self, path: str, tokenizer, max_tokens: int = 1 << 20):
        """Raises UserError if the template can't render what agents say to each other.

        max_tokens: of a conversation and its completion. What has more characters than so many of
        the longest token is refused unread: tokenising a million takes seconds.
        """
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.max_characters = max_tokens * max(map(len, tokenizer.get_vocab()))
        special = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
        spellings = sorted(filter(None, special), key=len, reverse=True)
        self.control = re.compile("|".join(map(re.escape, spellings)) or "(?!)")
        # What text that spells a control token is as text. Looked up: to tell the tokenizer how to
        # read each piece would change it under the feet of another thread.
        self.spelled_ids = {}
        if spellings:
            options = {"add_special_tokens": False, "split_special_tokens": True}
            self.spelled_ids = dict(zip(spellings, tokenizer(spellings, **options)["input_ids"]))
        self.merges_system = False  # whether system text goes into the first user turn
        if not self.shows("system", "user"):
            self.merges_system = True
        if not self.shows("system", "user", "assistant", "user"):
            raise UserError(
                f"--model {path}: its chat template can't render a conversation of system, user, "
                "assistant, user"
            )
        asked = self.to_text([("user", PROBE["user"])])
        if asked.rfind("<think>") > asked.rfind("</think>"):
            raise UserError(
                f"--model {path}: its chat template has it think before every reply, and what "
                "agents say to each other would be thoughts; take a model that can do without"
            )

    def shows(self, *roles: str) -> bool:
        """Whether every message of such a conversation is in what it renders to."""
        conversation = [(role, PROBE[role]) for role in roles]
        try:
            text = self.to_text(conversation)
        except (TemplateError, ValueError, TypeError):
            return False
        return all(content in text for _, content in conversation)

    def to_text(self, conversation, add_generation_prompt: bool = True) -> str:
        messages = [{"role": role, "content": content} for role, content in conversation]
        if self.merges_system and len(messages) > 1 and messages[0]["role"] == "system":
            system = messages.pop(0)["content"]
            messages[0] = {"role": "user", "content": f"{system}\n\n{messages[0]['content']}"}
        return self.tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            enable_thinking=False,
            date_string=DATE.strftime("%d %b %Y"),  # Llama 3.2
            strftime_now=DATE.strftime,  # SmolLM3
        )

    @lru_cache(maxsize=4096)  # the designs of a question, and the agents of a vote, ask the same
    def to_ids(self, conversation: tuple) -> tuple[int, ...]:
        """Token ids of ((role, content), ...), up to where the assistant speaks next.

        Raises PromptTooLong.
        """
        num_characters = sum(len(content) for _, content in conversation)
        if num_characters > self.max_characters:
            raise PromptTooLong(f"a prompt of {num_characters} characters")
        spelled = []
        runs = [run for _, content in conversation for run in re.findall(f"{MARK}+", content)]
        mark = MARK * (1 + max(map(len, runs), default=0))  # so long that no content has it

        def hide(match) -> str:
            spelled.append(match[0])
            return f"{mark}{len(spelled) - 1}{mark}"

        hidden = [(role, self.control.sub(hide, content)) for role, content in conversation]
        pieces = re.split(rf"{mark}(\d+){mark}", self.to_text(hidden))
        ids = []
        for i, piece in enumerate(pieces):
            if i % 2 == 1:  # re.split puts the numbers between the texts
                ids += self.spelled_ids[spelled[int(piece)]]
            else:
                ids += self.tokenizer.encode(piece, add_special_tokens=False)
        if len(ids) >= self.max_tokens:
            context = f"the context holds {self.max_tokens}"
            raise PromptTooLong(f"a prompt of {len(ids)} tokens; {context}")
        return tuple(ids)

    def turn_end(self, end_ids: frozenset) -> int | None:
        """The control token that ends a turn, if the model's end tokens leave it out."""
        conversation = [(role, PROBE[role]) for role in ("user", "assistant")]
        text = self.to_text(conversation, add_generation_prompt=False)
        after = text.split(PROBE["assistant"])[-1]
        ids = self.tokenizer.encode(after, add_special_tokens=False)
        if not ids or end_ids & set(ids) or not self.control.match(after.strip()):
            return None
        return self.tokenizer.encode(after.strip(), add_special_tokens=False)[0]
