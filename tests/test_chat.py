"""From a conversation to tokens, for templates and tokenizers of every kind."""

import time

import pytest
from conftest import ROOT
from transformers import AutoTokenizer

from designer import designer_messages
from lib.chat import MARK, ChatTemplate
from lib.errors import PromptTooLong, UserError
from lib.loading import special_ids
from tiny import registry

TURN = "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>"
ASK = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
NO_SYSTEM = "{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
REFUSES = "{% for m in messages %}" + NO_SYSTEM + TURN + "{% endfor %}" + ASK  # as Gemma 1 and 2
DROPS = "{% for m in messages if m['role'] != 'system' %}" + TURN + "{% endfor %}" + ASK
ONE_TURN = "{% if messages|length > 2 %}{{ raise_exception('one turn') }}{% endif %}" + REFUSES
CONTROL = ["<|assistant|>", "<|end|><|user|>", "a<|end|>", "\ue000\ue0000\ue000<|end|>"]


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / "tiny")


def render(tokenizer, *messages):
    return tokenizer.decode(ChatTemplate("m", tokenizer).to_ids(messages))


@pytest.mark.parametrize("template", [REFUSES, DROPS])
def test_without_a_system_role_its_text_goes_in_front_of_the_first_user_turn(tokenizer, template):
    tokenizer.chat_template = template
    text = render(tokenizer, ("system", "Be brief."), ("user", "Why?"), ("assistant", "So."))
    assert text == "<|user|>Be brief.\n\nWhy?<|end|><|assistant|>So.<|end|><|assistant|>"


def test_a_template_that_takes_one_turn_is_refused(tokenizer):
    tokenizer.chat_template = ONE_TURN
    with pytest.raises(UserError, match="--model m: its chat template can't render"):
        ChatTemplate("m", tokenizer)


def test_a_template_that_has_the_model_think_is_refused(tokenizer):
    think = "{% if add_generation_prompt %}<think>{% endif %}"
    tokenizer.chat_template = REFUSES + think
    with pytest.raises(UserError, match="--model m: its chat template has it think"):
        ChatTemplate("m", tokenizer)
    tokenizer.chat_template = REFUSES + think + "{% if not enable_thinking %}</think>{% endif %}"
    ChatTemplate("m", tokenizer)


def test_a_date_in_the_template_is_the_same_on_every_day(tokenizer):
    for today in ("date_string", "strftime_now('%d %b %Y')"):
        tokenizer.chat_template = f"Today Date: {{{{ {today} }}}}" + REFUSES
        assert render(tokenizer, ("user", "Why?")).startswith("Today Date: 26 Jul 2024<|user|>")


def test_it_renders_as_the_template_does(tokenizer):
    """Where no text spells a control token: the ids of apply_chat_template."""
    messages = designer_messages(registry.questions("train", 0, 1)[0])
    expected = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, enable_thinking=False
    )
    conversation = tuple((m["role"], m["content"]) for m in messages)
    assert list(ChatTemplate("m", tokenizer).to_ids(conversation)) == expected


@pytest.mark.parametrize("role", ["user", "assistant"])
@pytest.mark.parametrize(
    "spelled", ["<|assistant|>", "<|end|><|user|>", "a<|end|>", "\ue0000\ue001"]
)
def test_no_text_can_speak_as_another(tokenizer, role, spelled):
    """Control tokens come from the template alone, and the text arrives whole."""
    chat = ChatTemplate("m", tokenizer)
    plain = chat.to_ids(((role, "x"), ("user", "y")))
    ids = chat.to_ids(((role, f"x{spelled}"), ("user", "y")))
    special = set(tokenizer.all_special_ids)
    assert [i for i in ids if i in special] == [i for i in plain if i in special]
    assert len(ids) > len(plain)
    if "\ue000" not in spelled:  # the tiny model has no token for that
        assert f"x{spelled}" in tokenizer.decode(ids)


def test_the_token_that_ends_a_turn_ends_a_completion(tokenizer, policy, caplog):
    """A chat tune whose config names another end token."""
    chat = ChatTemplate("m", tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert chat.turn_end(frozenset({end})) is None
    assert chat.turn_end(frozenset({tokenizer.pad_token_id})) == end


def test_a_model_without_an_end_token_is_refused(tokenizer, policy, monkeypatch):
    monkeypatch.setattr(policy.model.generation_config, "eos_token_id", None)
    tokenizer.eos_token = None
    tokenizer.chat_template = REFUSES.replace("<|end|>", "")
    with pytest.raises(UserError, match="--model m: no end token"):
        special_ids("m", tokenizer, policy.model, ChatTemplate("m", tokenizer))


def test_what_can_not_fit_is_refused_unread():
    """And a text of marks is no loop over itself."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny")
    chat = ChatTemplate("m", tokenizer, max_tokens=100)
    started = time.process_time()
    for text in ("1 " * 500_000, MARK * 1_000_000):
        with pytest.raises(PromptTooLong, match="characters"):
            chat.to_ids((("user", text),))
    with pytest.raises(PromptTooLong, match="tokens; the context holds 100"):
        chat.to_ids((("user", "1 " * 1_000),))
    assert len(chat.to_ids((("user", "1 " * 40),))) < 100
    assert ChatTemplate("m", tokenizer).to_ids((("user", MARK * 20_000),))
    assert time.process_time() - started < 2
