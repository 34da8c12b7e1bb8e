"""The designer: question -> prompt -> completion -> Design, a script that sets up a multi-agent system.

The documented prompt is generated from mas.py's own docstrings, so that what the model is told and what runs can't drift
apart. The first line of the system message says who speaks; a small model's chat template may keep that line alone.
The question is a variable of the script: the designer never has to copy it (and LaTeX can't break it).
Test: `pytest tests/test_rollout.py tests/test_traps.py`. Read next: plain.py.
"""
import inspect
import re
from dataclasses import dataclass

import mas
from policy import PromptTooLong, seed_of
from tasks import Question

ROLE = "Design a multi-agent system."

RULES = """Write a short Python script that sets up agents, lets them work on the question, and submits one reply.
The question is in the variable `question`. No import is needed; loops, conditions and functions of your own are welcome.
Building blocks:

{reference}

Tools that the agents may use on this question: {tools}. Each agent sees only the text it is called with, so pass on what
it needs. Agents cost calls and tokens: use as many as the question deserves. Reply with the script alone, in a ```python
block. An example:

```python
{example}
```"""

_SOLVER = 'Agent("solver", "Solve the question.")'
_CODER = 'Agent("coder", "Solve it with Python.", tools=["python"])'

FIXED = {  # hand-written designs: the baselines of eval.py, and what the tiny model's cold start has seen
    "single": f"submit({_SOLVER}(question))",
    "coder": f"submit({_CODER}(question))",
    "vote": f"submit(vote([{_SOLVER}] * 3, question))",
    "coders": f"submit(vote([{_CODER}] * 3, question))",
    "relay": 'finder = Agent("finder", "Name what is asked about.")\nreader = Agent("reader", "Give the number.")\n'
             "submit(reader(finder(question)))",
    "reflect": f'critic = Agent("critic", "Check the attempt. If it is right, reply APPROVED.")\n'
               f"submit(reflect({_SOLVER}, critic, question))",
    "debate": f"submit(debate([{_SOLVER}] * 2, question))",
}


@dataclass(frozen=True)
class Design:
    """One sampled design. `error` says why there is no script to run ("" if there is one)."""
    script: str
    prompt_ids: tuple[int, ...] = ()
    completion_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    error: str = ""
    text: str = ""  # the whole completion


def reference() -> str:
    """The building blocks as the designer is told them: the docstrings of mas.py."""
    return "\n".join(f"- {inspect.getdoc(getattr(mas, name))}".replace("\n", "\n  ") for name in mas.__all__)


def messages(question: Question) -> list[dict]:
    rules = RULES.format(reference=reference(), tools=", ".join(question.tools) or "none", example=FIXED["reflect"])
    return [{"role": "system", "content": f"{ROLE}\n{rules}"}, {"role": "user", "content": question.prompt}]


def extract_script(text: str) -> str:
    """The script in a completion: its last ```python block, else the whole text.

    >>> extract_script("Here it is:\\n```python\\nsubmit(a)\\n```")
    'submit(a)'
    """
    blocks = [code for language, code in re.findall(r"```(\w*)[ \t]*\n(.*?)(?:```|\Z)", text, re.DOTALL) if language in ("", "python", "py")]
    return (blocks[-1] if blocks else text).strip()


def structure(script: str) -> str:
    """Which kind of system a script sets up, by the blocks that it names; with none of them, by its own loops and agents.

    >>> structure(FIXED["coders"]), structure(FIXED["relay"])
    ('vote+python', 'sequence')
    >>> structure("for n in range(3):\\n    reply = Agent('a', 'b')(question)")
    'loop'
    """
    blocks = [block for block in ("debate", "reflect", "route", "vote", "judge", "ask_all") if re.search(rf"\b{block}\(", script)]
    own = "loop" if re.search(r"^\s*(for|while)\b", script, re.MULTILINE) else "sequence" if script.count("Agent(") > 1 else "single"
    kind = blocks[0] if blocks else own if "Agent(" in script else "none"
    return kind + ("+python" if re.search(r"tools\s*=\s*[\[(]\s*[\"']python", script) else "")


KIND_OF = {"single": "single", "vote": "ensemble", "judge": "ensemble", "ask_all": "ensemble", "reflect": "reflection", "debate": "debate", "loop": "own loop"}
KINDS = (*dict.fromkeys(KIND_OF.values()), "other")


def kind_of(structure_name: str) -> str:
    """The kinds of design that the paper counts, and the script's own loops.

    >>> kind_of("vote+python"), kind_of("single"), kind_of("judge"), kind_of("sequence")
    ('ensemble', 'single', 'ensemble', 'other')
    """
    return KIND_OF.get(structure_name.split("+")[0], "other")


async def design(engine, policy, question: Question, seed: tuple, max_tokens: int = 1024, temperature: float = 1.0) -> Design:
    """Sample one design. A prompt that is too long is a design with an error, not an exception; EngineError propagates."""
    prompt_ids = policy.render(messages(question))
    try:
        completion = await engine.sample(prompt_ids, max_tokens, seed_of(*seed, "design"), temperature)
    except PromptTooLong as error:
        return Design("", error=str(error))
    script = extract_script(completion.text)
    error = "the design was cut off" if completion.truncated else "" if script else "the design is empty"
    return Design(script, prompt_ids, completion.ids, completion.logprobs, error, completion.text)
