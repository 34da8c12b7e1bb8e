"""The scripted teacher: plays every role, with errors, so that a cold start has samples of deliberately mixed quality.

It speaks through the real blocks of mas.py and the real messages of designer.py and executor.py, so the cold start can't drift from what
the rollout shows. It knows the set `arithmetic`, and of other sets the questions that state an expression (`rg:chain_sum`, `rg:basic_arithmetic`):
it picks every kind of design, leaning towards the right one, and gets each small thing right with probability RIGHT. All its
questions are from the training side of the split.
Test: `pytest tests/test_sft.py`. Read next: sft.py.
"""
import random
import re

import designer
import mas
import tasks
from executor import agent_messages, tool_call, tool_messages

# How likely the teacher picks a design for a question: it leans towards the right kind, weakly, as a real teacher would.
DESIGNS = {
    "compute": {"coder": 3.0, "coders": 2.0, "single": 1.0, "vote": 1.0, "relay": 1.0, "reflect": 1.0, "debate": 1.0},
    "recall": {"vote": 2.0, "single": 1.0, "reflect": 1.0, "debate": 1.0, "coder": 1.0, "coders": 1.0, "relay": 1.0},
    "relay": {"relay": 5.0, "single": 1.0, "vote": 1.0, "reflect": 1.0, "debate": 1.0, "coder": 1.0, "coders": 1.0},
}
# How often it plays each design's agents, where that teaches something (vote and coders ask the agents of single and coder).
PLAYED = {
    "compute": {"coder": 5.0, "single": 1.0, "reflect": 1.0, "debate": 1.0, "relay": 0.5},
    "recall": {"single": 3.0, "reflect": 1.5, "debate": 1.5, "relay": 0.2},
    "relay": {"relay": 6.0, "single": 0.7, "reflect": 0.7, "debate": 0.7},
}
RIGHT = 0.8  # how often the teacher gets one small thing right (a fact, a name, an expression)


def _two_words(rng, text, known):
    """The two words of `text` that are in `known`, each sometimes mistaken for another."""
    words = [word for word in re.findall(r"\w+", text) if word in known][:2]
    return [word if rng.random() < RIGHT else rng.choice(list(known)) for word in words]


def _codes(rng, words):
    return "".join(str(tasks.CODES[word] if rng.random() < RIGHT else rng.choice(list(tasks.CODES.values()))) for word in words)


def _guess(rng, question):
    """An answer without a tool: recalls codes (with errors); products and second-hand facts are beyond it."""
    if question.family not in ("recall", "relay"):
        return str(rng.randint(200, 9999))
    if question.family == "recall":
        return _codes(rng, [word for word in re.findall(r"\w+", question.prompt) if word in tasks.CODES])
    return _codes(rng, rng.sample(tasks.THINGS, 2))


EXPRESSION = re.compile(r"[(-]*\d[\d\s+*/().-]*[\d)]")


def _states_its_answer(question) -> bool:
    """Whether the value of the first expression in a question is its answer."""
    found = EXPRESSION.search(question.prompt)
    try:
        return bool(found) and "**" not in found[0] and str(eval(found[0], {})) == question.answer  # digits and + - * / ( ) alone
    except (SyntaxError, ArithmeticError, TypeError):
        return False


def _expression(rng, question):
    expression = EXPRESSION.search(question.prompt)[0]
    if rng.random() < RIGHT:
        return expression
    digits = [i for i, char in enumerate(expression) if char.isdigit()]
    at = rng.choice(digits)
    return expression[:at] + str(rng.randint(1, 9)) + expression[at + 1:]


def teach(rng, question, ask, messages) -> str:
    """What the scripted teacher says as the agent `ask` at this point of its conversation."""
    text, instructions = ask["text"], ask["instructions"]
    if "python" in ask["tools"]:
        if len(messages) == 2:
            return f"```python\nprint({_expression(rng, question)})\n```"
        return f"\\boxed{{{re.search(r'Output: (.*)', messages[-1]['content'])[1]}}}"
    if instructions.startswith("Check"):
        right = tasks.grade_math(question.answer, text) > 0
        return "APPROVED" if rng.random() < (RIGHT if right else 1 - RIGHT) else "It is wrong."
    if instructions.startswith("Name"):  # the finder of a relay
        if question.family == "relay":
            return " and ".join(tasks.KEEPS[name] for name in _two_words(rng, text, tasks.KEEPS))
        return _guess(rng, question)
    if instructions.startswith("Give"):  # the reader of a relay: sees only what the finder named
        words = _two_words(rng, text, tasks.CODES)
        return f"\\boxed{{{_codes(rng, words) if len(words) == 2 else rng.randint(1000, 9999)}}}"
    return f"\\boxed{{{_guess(rng, question)}}}"


class _Submitted(Exception):
    pass


def play(rng, question, script, record) -> None:
    """Run one of our own hand-written designs in this process, the teacher speaking; `record(messages, text)` every call."""
    def request(message):
        if message["op"] == "submit":
            raise _Submitted
        replies = []
        for ask in message["asks"]:
            messages = agent_messages(ask["instructions"], ask["tools"], ask["text"])
            text = teach(rng, question, ask, messages)
            record(messages, text)
            if call := tool_call(text, ["python"]):
                messages = messages + tool_messages(text, str(eval(call[1][6:-1], {})), last=False)  # our own expression
                text = teach(rng, question, ask, messages)
                record(messages, text)
            replies.append({"id": 0, "text": text, "answer": tasks.final_answer(text)})
        return {"replies": replies}

    real, mas._request = mas._request, request
    try:
        exec(script, {name: getattr(mas, name) for name in mas.__all__} | {"question": question.prompt})
    except _Submitted:
        pass
    finally:
        mas._request = real


def _draw(rng, weights):
    return designer.FIXED[rng.choices(list(weights), list(weights.values()))[0]]


def _questions(rng, spec: str, data_dir: str | None):
    """Training questions without end that the teacher can play. Raises BadInput."""
    while True:
        if spec == "arithmetic":
            yield from tasks.arithmetic("train", rng.randint(0, 1 << 30), 600, tuple(tasks.FAMILIES))
            continue
        known = [question for question in tasks.load(spec, "train", rng.randint(0, 1 << 30), 600, data_dir) if _states_its_answer(question)]
        if not known:
            raise tasks.BadInput(f"--tasks {spec}: the scripted teacher plays arithmetic, and sets whose questions state an expression")
        yield from known


def cold_start(count: int, seed: int = 0, spec: str = "arithmetic", data_dir: str | None = None) -> list[tuple[str, list[dict], str]]:
    """`count` samples (role, messages, completion) of mixed quality, from training questions of `spec` only. Raises BadInput."""
    rng, found = random.Random(f"cold start {seed}"), []
    for question in _questions(rng, spec, data_dir):
        family = question.family if question.family in DESIGNS else "compute"
        found.append(("designer", designer.messages(question), _draw(rng, DESIGNS[family])))
        seen = set()
        play(rng, question, _draw(rng, PLAYED[family]), lambda messages, text: seen.add(
            ("executor", tuple((m["role"], m["content"]) for m in messages), text)))
        for role, messages, text in sorted(seen)[:3]:
            found.append((role, [{"role": r, "content": c} for r, c in messages], text))
        if len(found) >= count:
            return found[:count]
