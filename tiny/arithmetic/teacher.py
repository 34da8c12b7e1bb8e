"""The scripted teacher: plays every role, with errors, for a cold start of mixed quality.

It speaks through the real blocks of mas.py and the real messages of designer.py and executor.py, so
the cold start can't drift from what the rollout shows. It knows the set `arithmetic`, and of other
sets the questions that state an expression (`rg:chain_sum`, `rg:basic_arithmetic`). It picks every
kind of design, leaning towards the right one, and gets each small thing right with probability
RIGHT. The errors are independent, so the most likely reply of a model that learned from it is
right. All its questions are from the training side of the split.

Test: `pytest tests/test_sft.py`. Read next: ../../docs/tour.md.
"""

import random
import re

import designer
import mas
import tasks
from data_types import Ask, Question
from designer import FIXED_DESIGNS
from executor import agent_messages, tool_messages
from lib.answers import final_answer
from lib.errors import UserError
from lib.tools import parse_tool_call
from tiny.arithmetic import world

# How often the teacher picks a design for a question: it leans towards the right kind, weakly.
DESIGN_WEIGHTS = {
    "compute": dict(
        coder=3.0, coders=2.0, single=1.0, vote=1.0, relay=1.0, reflect=1.0, debate=1.0
    ),
    "recall": dict(vote=2.0, single=1.0, reflect=1.0, debate=1.0, coder=1.0, coders=1.0, relay=1.0),
    "relay": dict(relay=5.0, single=1.0, vote=1.0, reflect=1.0, debate=1.0, coder=1.0, coders=1.0),
}
# How often it plays the agents of a design. (Vote and coders ask the agents of single and coder.)
PLAY_WEIGHTS = {
    "compute": dict(coder=5.0, single=1.0, reflect=1.0, debate=1.0, relay=0.5),
    "recall": dict(single=3.0, reflect=1.5, debate=1.5, relay=0.2),
    "relay": dict(relay=6.0, single=0.7, reflect=0.7, debate=0.7),
}
RIGHT = 0.8  # how often it gets one small thing right: a fact, a name, an expression
EXPRESSION = re.compile(r"[(-]*\d[\d\s+*/().-]*[\d)]")
MAX_CALLS = 3  # calls of a played design that become samples


def words_of(rng: random.Random, text: str, known: dict) -> list[str]:
    """The first two words of `text` that are in `known`, each sometimes mistaken for another."""
    words = []
    for word in re.findall(r"\w+", text):
        if word in known and len(words) < 2:
            words.append(word)
    return [word if rng.random() < RIGHT else rng.choice(list(known)) for word in words]


def codes_of(rng: random.Random, words: list[str]) -> str:
    codes = []
    for word in words:
        if rng.random() < RIGHT:
            codes.append(str(world.CODES[word]))
        else:
            codes.append(str(rng.choice(list(world.CODES.values()))))
    return "".join(codes)


def guess(rng: random.Random, question: Question) -> str:
    """An answer without a tool: it recalls codes; products and second-hand facts are beyond it."""
    if question.family == "recall":
        words = [word for word in re.findall(r"\w+", question.prompt) if word in world.CODES]
        return codes_of(rng, words)
    if question.family == "relay":
        return codes_of(rng, rng.sample(world.THINGS, 2))
    return str(rng.randint(200, 9999))


def states_its_answer(question: Question) -> bool:
    """Whether the value of the first expression in a question is its answer."""
    expression = EXPRESSION.search(question.prompt)
    if not expression or "**" in expression[0]:
        return False
    try:
        return str(eval(expression[0], {})) == question.answer  # digits and + - * / ( ) alone
    except (SyntaxError, ArithmeticError, TypeError):
        return False


def copy_expression(rng: random.Random, question: Question) -> str:
    expression = EXPRESSION.search(question.prompt)[0]
    if rng.random() < RIGHT:
        return expression
    digits = [i for i, character in enumerate(expression) if character.isdigit()]
    at = rng.choice(digits)
    return expression[:at] + str(rng.randint(1, 9)) + expression[at + 1 :]


def reply_of(rng: random.Random, question: Question, ask: Ask, messages: list[dict]) -> str:
    """What the teacher says as this agent, at this point of its conversation."""
    if "python" in ask.tools:
        if len(messages) == 2:
            return f"```python\nprint({copy_expression(rng, question)})\n```"
        output = re.search(r"Output: (.*)", messages[-1]["content"])[1]
        return f"\\boxed{{{output}}}"
    if ask.instructions.startswith("Check"):
        is_right = tasks.grade(question, ask.text) > 0
        approves = rng.random() < (RIGHT if is_right else 1 - RIGHT)
        return "APPROVED" if approves else "It is wrong."
    if ask.instructions.startswith("Name"):  # the finder of a relay
        if question.family != "relay":
            return guess(rng, question)
        return " and ".join(world.KEEPS[name] for name in words_of(rng, ask.text, world.KEEPS))
    if ask.instructions.startswith("Give"):  # the reader of a relay sees only what the finder said
        words = words_of(rng, ask.text, world.CODES)
        answer = codes_of(rng, words) if len(words) == 2 else rng.randint(1000, 9999)
        return f"\\boxed{{{answer}}}"
    return f"\\boxed{{{guess(rng, question)}}}"


class Submitted(Exception):
    pass


def play(rng: random.Random, question: Question, script: str) -> list[tuple]:
    """Run a hand-written design in this process, the teacher speaking for its agents.

    Returns its calls: (messages as pairs of role and content, completion).
    """
    calls = []

    def speak(ask: Ask, messages: list[dict]) -> str:
        text = reply_of(rng, question, ask, messages)
        pairs = tuple((message["role"], message["content"]) for message in messages)
        calls.append((pairs, text))
        return text

    def request(message: dict) -> dict:
        if message["op"] == "submit":
            raise Submitted
        replies = []
        for raw in message["asks"]:
            ask = Ask(**raw)
            messages = agent_messages(ask, [])
            text = speak(ask, messages)
            if tool_call := parse_tool_call(text, ("python",)):
                expression = tool_call[1].removeprefix("print(").removesuffix(")")
                output = str(eval(expression, {}))  # the teacher's own expression
                text = speak(ask, messages + tool_messages(text, output, is_last=False))
            replies.append({"id": 0, "text": text, "answer": final_answer(text)})
        return {"replies": replies}

    scope = {name: getattr(mas, name) for name in mas.__all__} | {"question": question.prompt}
    real_request, mas._request = mas._request, request
    try:
        exec(script, scope)
    except Submitted:
        pass
    finally:
        mas._request = real_request
    return calls


def draw_design(rng: random.Random, weights: dict[str, float]) -> str:
    name = rng.choices(list(weights), list(weights.values()))[0]
    return FIXED_DESIGNS[name]


def training_questions(rng: random.Random, spec: str, data_dir: str | None):
    """Training questions without end that the teacher can play. Raises UserError."""
    while True:
        seed = rng.randint(0, 1 << 30)
        if spec == "arithmetic":
            yield from world.questions("train", seed, 600, tuple(world.FAMILIES))
            continue
        questions = tasks.load(spec, "train", seed, 600, data_dir)
        playable = [question for question in questions if states_its_answer(question)]
        if not playable:
            raise UserError(
                f"--tasks {spec}: the scripted teacher plays arithmetic, and sets whose questions "
                "state an expression"
            )
        yield from playable


def cold_start(
    count: int, seed: int = 0, spec: str = "arithmetic", data_dir: str | None = None
) -> list[tuple[str, list[dict], str]]:
    """`count` samples (role, messages, completion) of mixed quality. Raises UserError."""
    rng = random.Random(f"cold start {seed}")
    samples = []
    for question in training_questions(rng, spec, data_dir):
        family = question.family if question.family in DESIGN_WEIGHTS else "compute"
        design = draw_design(rng, DESIGN_WEIGHTS[family])
        samples.append(("designer", designer.designer_messages(question), design))
        calls = play(rng, question, draw_design(rng, PLAY_WEIGHTS[family]))
        for pairs, text in sorted(set(calls))[:MAX_CALLS]:
            messages = [{"role": role, "content": content} for role, content in pairs]
            samples.append(("executor", messages, text))
        if len(samples) >= count:
            return samples[:count]
