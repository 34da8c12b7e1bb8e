"""Whatever reads a model's text in the trainer is linear: a megabyte of hostile text takes each
reader at most 0.2 CPU seconds. So no reply can hold up a training."""

import asyncio
import gc
import json
import random
import time
from collections import Counter

import pytest
from conftest import QUESTION, Scripted

from benchmarks import code_grading, math_grading
from data_types import Budget, Call, Completion, Design
from designer import extract_script
from executor import Executor, Runtime
from lib import answers, shapes, tools, votes
from lib.chat import render
from lib.errors import PromptTooLong, ProtocolError
from lib.messages import parse_asks
from lib.metrics import structure
from lib.turns import my_turn
from sandbox import Sandbox, parse_message
from viewer import pages

SIZE = 1 << 20
MAX_CPU_SECONDS = 0.2
ATTEMPTS = 3  # the best counts: on a busy machine even CPU time grows

# What is repeated to a megabyte.
PATTERNS = {
    "a": "a",
    "newlines": "\n",
    "blank lines": " \t\n",
    "carriage returns": "\r\n",
    "spaces": " ",
    "no-break spaces": "\xa0",
    "zeros": "0",
    "digits": "7",
    "thousands": "1,000",
    "thin spaces": "1\\,000~",
    "points": "1.0 ",
    "braces": "{",
    "closed braces": "{}",
    "brackets": "[",
    "backslashes": "\\",
    "boxes": "\\boxed{",
    "box and spaces": "\\boxed" + " " * 200,
    "closed boxes": "\\boxed{1}",
    "fractions": "\\frac{1}{2}",
    "units": "\\text{ m ",
    "percents": "\\%",
    "degrees": "^{\\circ",
    "answers": "Answer: ",
    "stars": "*",
    "answer lines": "**Answer:** 7\n",
    "backticks": "`",
    "fences": "```\n",
    "languages": "```python\n",
    "longer fences": "\n````x\n```",
    "tool calls": "```python\nprint(1)\n```\n",
    "loops": "for ",
    "tabs and loops": "\t\tfo",
    "tools": "tools = [ ",
    "tools and spaces": "tools" + " " * 300,
    "blocks": "vote(",
    "words": "word ",
    "underscores": "__",
    "names": "Ab1 ",
    "quotes": "'\"",
    "control tokens": "<|im_end|>",
    "halves of control tokens": "<|im_en",
    "marks": "\ue000",
    "marks and numbers": "\ue0001\ue000",
    "combining accents": "e\u0301",
    "emoji": "\U0001f468\u200d",
    "turned text": "\u202e",
    "surrogates": "\ud800",
    "nulls": "\0",
    "dashes": "-",
    "JSON": '{"a": [1]}, ',
    "JSON of sets": '{"set": [2, 1]}, ',
    "JSON of numbers": "1,",
    "JSON of texts": '"a",',
    "JSON of floats": '{"float": "nan"},',
    "numbers": "-1e9999 ",
}


def hostile_texts():
    """name -> text of a megabyte: each pattern, also within what begins and ends like a reply."""
    rng = random.Random(0)
    alphabet = [pattern for pattern in PATTERNS.values() if len(pattern) < 20]
    texts = {"mixed": "".join(rng.choices(alphabet, k=SIZE))[:SIZE]}
    for name, pattern in PATTERNS.items():
        text = (pattern * (SIZE // len(pattern) + 1))[:SIZE]
        texts[name] = text
        texts[f"{name} in a box"] = f"\\boxed{{{text}}}"
        texts[f"{name} in a block"] = f"```python\n{text}\n```"
        texts[f"{name} before x"] = text + "x"
    return texts


TEXTS = hostile_texts()


def message(text):
    ask = dict(agent=0, name="a", instructions="b", tools=[], memory=False, max_turns=2, text=text)
    return json.dumps({"op": "ask", "asks": [ask]}).encode("utf-8", "surrogatepass")


def read_message(line):
    try:
        parse_asks(parse_message(line))
    except ProtocolError:
        pass


def call(number, text, shown):
    messages = ({"role": "system", "content": "b"}, {"role": "user", "content": shown})
    ids, logprobs = (2,), (0.0,)
    return Call("a", (1,), ids, logprobs, text, messages=messages, round=number, number=number)


def read_calls(text):
    """A short reply and a long one, both read by an agent that is shown a megabyte."""
    question = text[:100]
    calls = [call(0, text[:1000] + "y", ""), call(1, text[:-1], ""), call(2, "7", text)]
    pages.calls_read(tuple(calls), question)


def terminal_tree(text):
    call = {"agent": "a", "round": 1, "answer": None, "messages": [{"content": "x"}], "text": text}
    call |= {"prompt_tokens": 1, "completion_tokens": 1, "tool_output": None}
    run = {"status": "answered", "detail": "", "answer": "7", "reward": None, "calls": [call]}
    design = {"structure": "other", "reward": None, "error": "", "script": "x", "executions": [run]}
    design |= {"completion_tokens": 1}
    pages.as_text({"question": "q", "designs": [design]})


def judge_result(start, end, expected):
    """Reads a text as a part of the JSON that a program wrote as its result."""

    def read(text):
        line = f'{{"value": {start}{text}{end}}}'.encode("utf-8", "surrogatepass")
        result = code_grading.parse_result(line)
        code_grading.same_value(expected, result.get("value"))

    return read


class Worker:
    """Takes what is left for math-verify, which runs elsewhere."""

    def check(self, gold, answer):
        return False


READERS = {
    "extract_script": extract_script,
    "last_boxed": answers.last_boxed,
    "final_answer": answers.final_answer,
    "last_program": answers.last_program,
    "committed_answer": lambda text: answers.committed_answer("code", text),
    "parse_tool_call": lambda text: tools.parse_tool_call(text, ("python",)),
    "structure": structure,
    "shape_hash": lambda text: shapes.shape_hash(text[:200], text),
    "shape_hash of a question": lambda text: shapes.shape_hash(text, "submit(a)"),
    "canonical_integer": math_grading.canonical_integer,
    "is_right": lambda text: math_grading.is_right("7", text, Worker()),
    "is_right, per cent": lambda text: math_grading.is_right("7%", text, Worker()),
    "is_right, a fraction": lambda text: math_grading.is_right("\\frac12", text, Worker()),
    "is_plain": math_grading.is_plain,
    "group_equal": lambda text: votes.group_equal([text, text + "y", "7"]),
    "parse_message": lambda text: read_message(text.encode("utf-8", "surrogatepass")),
    "parse_asks": lambda text: read_message(message(text)),
    "parse_result": lambda text: code_grading.parse_result(text.encode("utf-8", "surrogatepass")),
    "a result": judge_result("", "", 7),
    "a result, a list": judge_result("[", "7]", [7]),
    "a result, a set": judge_result('{"set": [', "7]}", {"set": [7]}),
    "a result, a dict": judge_result('{"dict": [', "7]}", {"dict": [[7, 7]]}),
    "a result, deep": judge_result("[" * 900, "7" + "]" * 900, [7]),
    "same_output, tokens": lambda text: code_grading.same_output("7 " * 1000, text),
    "same_output, lines": lambda text: code_grading.same_output("7\n" * 1000, text, "lines"),
    "same_output, a number": lambda text: code_grading.same_output("1.5", text),
    "same_output, numbers": lambda text: code_grading.same_output("1.5 2", text, "lines"),
    "visible": pages.visible,
    "calls_read": read_calls,
    "a tree in the terminal": terminal_tree,
    "a page": lambda text: pages.page("run", {"episode": {"question": text}, "live": False}),
}


def cpu_seconds(reader, text):
    seconds = []
    for _ in range(ATTEMPTS):
        started = time.thread_time()
        reader(text)
        seconds.append(time.thread_time() - started)
        if seconds[-1] <= MAX_CPU_SECONDS:
            break
    return min(seconds)


@pytest.mark.parametrize("name", READERS)
def test_a_megabyte(name):
    slow = {}
    for title, text in TEXTS.items():
        seconds = cpu_seconds(READERS[name], text)
        if seconds > MAX_CPU_SECONDS:
            slow[title] = round(seconds, 2)
    assert not slow


def test_a_prompt_that_cannot_fit_is_refused_unread(policy):
    for title, text in TEXTS.items():
        started = time.thread_time()
        with pytest.raises(PromptTooLong):
            policy.render([{"role": "user", "content": text}])
        assert time.thread_time() - started < MAX_CPU_SECONDS, title


# ----------------------------------------------------------------------------------- the event loop

A = 'a = Agent("a", "b", tools=["python"])\n'
SCRIPTS = [
    A + "a('a' * 1_000_000)",  # refused: it can't fit
    A + "a('\\n' * 50_000)",  # tokenised: it might
    A + "a('\u4e2d' * 50_000)",
    A + "ask_all([a] * 64, '<|im_end|>' * 1_500)",
    A + "ask_all([a] * 64, 'word ' * 3_000)",
    A + "a('\ud800' * 100_000)",
    A + "import mas\nwhile True: mas._request({'op': 'submit', 'reply': [[0] * 30_000] * 7})",
    A + "import mas\nmas._request({'op': 'ask', 'asks': [{}] * 40_000})",
    A + "while True: a(question)",
    A + "submit(vote([a] * 12, question))",
    "while True: print('a' * 1000)",
    "import os\nwhile True: os.write(2, b'a' * 1000)",
]
NUM_EXECUTIONS = 256
MAX_HELD_SECONDS = 0.05
REPLY_TOKENS = 1000


class Hostile(Scripted):
    """An engine that at once says hostile things, as long as so many tokens can be."""

    def __init__(self, policy):
        super().__init__(policy, None)
        size = REPLY_TOKENS * max(map(len, policy.tokenizer.get_vocab()))
        self.texts = [text[:size] for text in TEXTS.values()]

    async def sample(self, prompt_ids, max_tokens, seed, temperature=1.0):
        await asyncio.sleep(0)
        text = self.texts[seed % len(self.texts)]
        return Completion((7,) * max_tokens, (-0.5,) * max_tokens, text, truncated=True)


class MeasuredLoop(asyncio.SelectorEventLoop):
    """Notes the CPU seconds of each pass, in which its clocks stand still, and the objects that
    needed a garbage collection. The collector's own time is left out: it grows with what is alive,
    here 256 executions and all that they have said."""

    def __init__(self):
        super().__init__()
        self.passes = []
        self.garbage = 0
        self.collecting = 0.0  # CPU seconds

    def _run_once(self):
        before = time.thread_time() - self.collecting
        super()._run_once()
        self.passes.append(time.thread_time() - self.collecting - before)

    def on_collection(self, phase, info):
        if phase == "start":
            self.collecting -= time.thread_time()
        else:
            self.collecting += time.thread_time()
            self.garbage += info["collected"]


@pytest.mark.alone
def test_the_event_loop_goes_on(policy):
    """256 hostile executions at the same time. None leaves a circle of objects behind."""
    budget = Budget(calls=64, reply_tokens=REPLY_TOKENS, tokens=100_000, seconds=120)

    async def go():
        async with Sandbox() as sandbox:
            loop = asyncio.get_running_loop()
            loop.passes.clear()  # those that started the server
            gc.callbacks.append(loop.on_collection)
            runtime = Runtime(Hostile(policy), policy, sandbox, budget)
            executions = []
            for n in range(NUM_EXECUTIONS):
                design = Design(SCRIPTS[n % len(SCRIPTS)])
                executions.append(Executor(runtime, QUESTION, ("test", n)).execute(design))
            try:
                return await asyncio.gather(*executions)
            finally:
                gc.callbacks.remove(loop.on_collection)

    for _ in range(ATTEMPTS):
        policy.chat.to_ids.cache_clear()
        gc.collect()
        gc.freeze()  # as open_engine does
        with asyncio.Runner(loop_factory=MeasuredLoop) as runner:
            loop = runner.get_loop()
            executions = runner.run(go())
        gc.unfreeze()
        if max(loop.passes) <= MAX_HELD_SECONDS:
            break
    statuses = Counter(execution.status for execution in executions)
    assert len(loop.passes) > NUM_EXECUTIONS
    assert max(loop.passes) <= MAX_HELD_SECONDS, sorted(loop.passes)[-5:]
    assert loop.garbage == 0
    assert statuses.keys() >= {"answered", "budget", "crashed", "invalid_script"}, statuses


def test_concurrent_prompts_have_the_ids_of_each_alone(policy):
    """Long ones are tokenised in a thread, short ones beside it; all spell control tokens."""
    rng = random.Random(0)
    conversations = []
    special = [str(token) for token in policy.tokenizer.added_tokens_decoder.values()]
    for i in range(600):
        size = 3_000 if i % 8 == 0 else 20
        words = rng.choices([*special, "yes ", "7 "], k=size)
        conversations.append([{"role": "user", "content": f"{i} {''.join(words)}"}])

    def one_by_one():
        policy.chat.to_ids.cache_clear()
        return [tokens(policy.render, conversation) for conversation in conversations]

    def tokens(function, conversation):
        try:
            return function(conversation)
        except PromptTooLong:
            return None

    async def together():
        policy.chat.to_ids.cache_clear()
        rendering = [render(policy, conversation) for conversation in conversations]
        found = await asyncio.gather(*rendering, return_exceptions=True)
        return [None if isinstance(ids, PromptTooLong) else ids for ids in found]

    assert asyncio.run(together()) == one_by_one()


def test_turns_are_granted_in_the_order_of_asking():
    """Who waits for a turn gets it, however busy another is."""
    order = []

    async def busy():
        for _ in range(50):
            await my_turn()
            order.append("busy")
            time.sleep(0.006)
            await asyncio.sleep(0)

    async def other(name):
        await my_turn()
        order.append(name)

    async def go():
        tasks = [asyncio.create_task(other(name)) for name in ("a", "b")]
        gone = asyncio.create_task(other("cancelled"))
        running = asyncio.create_task(busy())
        time.sleep(0.01)  # the pass is old already
        await asyncio.sleep(0)
        late = [asyncio.create_task(other(name)) for name in ("c", "d")]
        gone.cancel()
        await asyncio.gather(running, *tasks, *late)

    asyncio.run(go())
    others = [name for name in order if name in "abcd"]
    assert others == ["a", "b", "c", "d"] and order.index("d") < 10
