"""The designer: question -> prompt -> completion -> Design, a script that sets up a MAS.

    design = await sample_design(engine, policy, question, seed)

The prompt documents the blocks with the docstrings of mas.py. The question is a variable of the
script: the designer never has to copy it, and LaTeX can't break it (trap 10). The first line of the
system message says who speaks, with which tools and blocks; the chat template of a small model may
keep that line alone.

Test: `pytest tests/test_designer.py`. Read next: executor.py.
"""

import inspect

import mas
from data_types import Design, Question, seed_of
from lib.answers import code_blocks
from lib.chat import render
from lib.errors import PromptTooLong

ROLE = "Design a multi-agent system."

PROMPT = """\
Write a short Python script that sets up agents, lets them work on the question, and submits one
reply. The question is in the variable `question`. No import is needed; loops, conditions and
functions of your own are welcome. Building blocks:

{reference}

Each agent sees only the text it is called with, so pass on what it needs. Agents cost calls and
tokens: use as many as the question deserves. Reply with the script alone, in a ```python block. An
example:

```python
{example}
```"""

_SOLVER = 'Agent("solver", "Solve the question.")'
_CODER = 'Agent("coder", "Solve it with Python.", tools=["python"])'

# Baselines of eval.py, by hand.
FIXED_DESIGNS = {
    "single": f"submit({_SOLVER}(question))",
    "coder": f"submit({_CODER}(question))",
    "vote": f"submit(vote([{_SOLVER}] * 3, question))",
    "coders": f"submit(vote([{_CODER}] * 3, question))",
    "relay": 'finder = Agent("finder", "Name what is asked about.")\n'
    'reader = Agent("reader", "Give the number.")\n'
    "submit(reader(finder(question)))",
    "reflect": 'critic = Agent("critic", "Check the attempt. If it is right, reply APPROVED.")\n'
    f"submit(reflect({_SOLVER}, critic, question))",
    "debate": f"submit(debate([{_SOLVER}] * 2, question))",
}


def block_reference() -> str:
    """The building blocks as the designer is told them: the docstrings of mas.py."""
    entries = []
    for name in mas.__all__:
        text = inspect.getdoc(getattr(mas, name))
        entries.append("- " + text.replace("\n\n", "\n").replace("\n", "\n  "))
    return "\n".join(entries)


def designer_messages(question: Question) -> list[dict]:
    """The conversation shown to the designer."""
    tools = ", ".join(question.tools) or "none"
    blocks = ", ".join(mas.__all__)
    documentation = PROMPT.format(reference=block_reference(), example=FIXED_DESIGNS["reflect"])
    price = ""
    if question.price:
        price = f"Price: {question.price:g}. "
        documentation += "\nThe price is that of a thousand tokens, where a right answer earns 1."
    first_line = f"{ROLE} {price}Tools of the agents: {tools}. Blocks: {blocks}."
    return [
        {"role": "system", "content": f"{first_line}\n{documentation}"},
        {"role": "user", "content": question.prompt},
    ]


def extract_script(text: str) -> str:
    """The script in a completion: its last block, Python or unmarked, else all of it.

    >>> extract_script("Here it is:\\n```python\\nsubmit(a)\\n```")
    'submit(a)'
    """
    blocks = code_blocks(text, unclosed=True)
    scripts = [code for language, code in blocks if language in ("", "python")]
    return (scripts[-1] if scripts else text).strip()


async def sample_design(
    engine, policy, question: Question, seed: tuple, max_tokens=1024, temperature=1.0
) -> Design:
    """Sample one design. A prompt that is too long gives a design with an error.

    Raises EngineError.
    """
    try:
        prompt_ids = await render(policy, designer_messages(question))
        completion = await engine.sample(
            prompt_ids, max_tokens, seed_of(*seed, "design"), temperature
        )
    except PromptTooLong as error:
        return Design("", error=str(error))

    script = extract_script(completion.text)
    error = ""
    if completion.truncated:
        error = "the design was cut off"
    elif not script:
        error = "the design is empty"
    return Design(
        script=script,
        prompt_ids=prompt_ids,
        completion_ids=completion.ids,
        logprobs=completion.logprobs,
        error=error,
        text=completion.text,
    )
