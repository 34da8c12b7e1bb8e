"""The questions and the scripted teacher of the study of a real model."""

import math
import random
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from data_types import Question
from experiments import smollm2
from lib.errors import UserError
from lib.split import held_out


def test_held_out_countries_are_in_no_training_question_and_no_sample():
    """Neither asked about nor answered with."""
    held_out_names = {name for name in smollm2.CAPITALS if held_out(name)}
    assert 25 <= len(held_out_names) <= 40
    rows = smollm2.cold_start(1600, seed=0)
    texts = [row["messages"][-1]["content"] + row["completion"] for row in rows]
    texts += [question.prompt for question in smollm2.capitals("train", 0, 300)]
    for name in held_out_names:
        assert not [text for text in texts if re.search(rf"\b{name}\b", text)]


def test_the_families_come_in_turn_and_both_sides_are_the_same_every_time():
    for split in ("train", "heldout"):
        questions = smollm2.capitals(split, 0, 90)
        assert [q.family for q in questions[:6]] == [*smollm2.FAMILIES] * 2
        assert questions == smollm2.capitals(split, 0, 90)
        assert len({q.prompt for q in questions}) == 90


def test_a_chain_of_the_teachers_agents_is_right_and_one_coder_alone_is_not():
    """The namer, then the coder, count the letters of a capital; of a phrase the coder alone."""
    rng = random.Random(0)
    prompt, answer = smollm2.draw(rng, "phrase", "train")
    assert str(eval(smollm2.computed(rng, prompt))) == answer  # the teacher's own program
    assert smollm2.with_names(rng, prompt) != prompt
    right = {"coder": 0, "namer, then coder": 0}
    for _ in range(50):
        prompt, answer = smollm2.draw(rng, "letters", "train")
        for name, text in (
            ("coder", prompt),
            ("namer, then coder", smollm2.with_names(rng, prompt)),
        ):
            right[name] += str(eval(smollm2.computed(rng, text))) == answer
    assert right["namer, then coder"] == 50 and right["coder"] < 20


def test_the_teacher_gives_the_choice_of_the_design_to_nobody():
    """What fits a family is drawn less often for it than if designs were equally frequent."""
    fits = {
        "capital of": "chain to the solver",
        "letters has the capital": "chain",
        '"the': "coder",
    }
    designs = {words: [] for words in fits}
    for row in smollm2.cold_start(8000, seed=1):
        if row["role"] == "designer":
            prompt = row["messages"][-1]["content"]
            found = [words for words in fits if words in prompt]
            if found:
                designs[found[-1]].append(row["completion"])
    for words, name in fits.items():
        texts = designs[words]
        share = sum(smollm2.DESIGNS[name] in text for text in texts) / len(texts)
        assert share < 1 / len(smollm2.DESIGNS), (name, share)


def test_how_likely_designs_are_is_what_is_sampled(policy):
    """The product over the tokens of a design and its end, whatever else is in the batch."""
    question = smollm2.capitals("heldout", 0, 1)[0]
    names = list(smollm2.DESIGNS)
    likely = dict(zip(names, smollm2.design_probabilities(policy, question)))
    text = f"```python\n{smollm2.DESIGNS['chain']}\n```"
    ids = [*policy.tokenizer.encode(text, add_special_tokens=False), policy.tokenizer.eos_token_id]
    prompt_ids = policy.render(smollm2.designer_messages(question))
    with torch.no_grad():
        logits_T_V = policy.model(torch.tensor([[*prompt_ids, *ids]])).logits[0]
    logprobs = logits_T_V.log_softmax(-1)[len(prompt_ids) - 1 : -1]
    expected = sum(logprobs[place, token].item() for place, token in enumerate(ids))
    assert math.log(likely["chain"]) == pytest.approx(expected, abs=1e-3)
    assert len(likely) == len(names) and likely["chain"] < likely["single"]


@pytest.mark.parametrize("said, score", [("\\boxed{Lima}", 1), ("\\boxed{Mali}", 0), ("Lima", 0)])
def test_an_anagram_is_no_answer(said, score):
    assert smollm2.reward(Question("", "", "Lima"), said) == score


def test_an_evaluation_with_it_as_a_plugin(tmp_path):
    """Of the tiny model, which knows no capital; the names of its records are by family."""
    flags = ["--plugin", ROOT / "experiments" / "smollm2.py", "--tasks", "capitals", "--limit", "3"]
    flags += ["--modes", "single", "--reply-tokens", "4", "--out", tmp_path / "results"]
    command = [sys.executable, ROOT / "eval.py", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    where = f"{tmp_path}/results:single"
    assert smollm2.compare(where, where).count("1 questions") == 3


def test_two_evaluations_are_paired_by_question(tmp_path):
    for name, scores in (("a", (1, 1, 0)), ("b", (0, 1, 0))):
        (tmp_path / name).mkdir()
        rows = [
            f'{{"mode": "coder", "question": "phrase-{i} x", "scores": [{score}]}}\n'
            for i, score in enumerate(scores)
        ]
        (tmp_path / name / "answers.jsonl").write_text("".join(rows))
    text = smollm2.compare(f"{tmp_path}/a:coder", f"{tmp_path}/b:coder")
    assert text.startswith("phrase: 0.67 and 0.33, 3 questions\nall: 0.67")
    assert "difference: +0.33 (-0.32 to +0.99)" in text
    with pytest.raises(UserError, match="fewer than two"):
        smollm2.compare(f"{tmp_path}/a:coder", f"{tmp_path}/b:metaagent")
    with pytest.raises(UserError, match="DIR:MODE"):
        smollm2.compare(f"{tmp_path}/a:coder", f"{tmp_path}/nowhere:coder")
