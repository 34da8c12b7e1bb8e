"""Designs: what the designer is shown, and what is made of its completion."""

import asyncio

import pytest
from conftest import QUESTION, Scripted

import designer
import mas


def test_the_prompt_documents_every_block(policy):
    """Its first line names them all, and the tools: that line reaches the tiny designer, too."""
    system, user = designer.designer_messages(QUESTION)
    first_line = system["content"].splitlines()[0]
    assert first_line.startswith(designer.ROLE) and user["content"] == QUESTION.prompt
    assert all(name in first_line for name in (*mas.__all__, *QUESTION.tools))
    rendered = policy.tokenizer.decode(policy.render([system, user]))
    assert first_line in rendered
    for name in mas.__all__:
        assert name in system["content"]
        first_line = getattr(mas, name).__doc__.splitlines()[0]
        assert first_line in system["content"]
    assert "python" in system["content"]


@pytest.mark.parametrize(
    "text, script",
    [
        ("submit(a)", "submit(a)"),
        ("```python\nsubmit(a)\n```", "submit(a)"),
        ("First\n```python\nx\n```\nthen\n```py\nsubmit(b)\n```\nDone.", "submit(b)"),
        ("```\nsubmit(c)\n```", "submit(c)"),
        ("```python\nsubmit(d)", "submit(d)"),
        ("```json\n{}\n```\n```python\nsubmit(e)\n```", "submit(e)"),
    ],
)
def test_the_script_of_a_completion(text, script):
    assert designer.extract_script(text) == script


@pytest.mark.parametrize("text, error", [("", "empty"), ("word " * 400, "cut off")])
def test_a_completion_without_a_script_is_a_design_with_an_error(policy, text, error):
    engine = Scripted(policy, lambda prompt: text)
    sampling = designer.sample_design(engine, policy, QUESTION, ("s",), max_tokens=50)
    design = asyncio.run(sampling)
    assert error in design.error and design.completion_ids
