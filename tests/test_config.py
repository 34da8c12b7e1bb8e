"""The flags: few, each explained, presets that pass their own checks."""

import dataclasses
import re

import pytest
from conftest import ROOT
from test_cli import resolve

import eval as evaluation
import sft
from config import PRESETS, Config
from lib import launch


def test_there_are_at_most_44_flags():
    """36, and --skip-check."""
    assert len(dataclasses.fields(Config)) <= 44


@pytest.mark.parametrize(
    "config, file", [(Config, "config"), (evaluation.Config, "eval"), (sft.Config, "sft")]
)
def test_every_flag_is_explained_and_begins_with_no_verb(config, file):
    """By a comment on its line, or a docstring below it."""
    source = (ROOT / f"{file}.py").read_text()
    for field in dataclasses.fields(config):
        explained = rf'^    {field.name}: .*(  # \w.*|\n    """\w)'
        assert re.search(explained, source, re.MULTILINE), field.name
        assert not re.search(rf"^    {field.name}: .*(Of |At most )", source, re.MULTILINE)


def test_a_preset_gives_defaults_and_a_flag_wins_over_it():
    paper = resolve("--preset", "paper", "--lr", "1e-6")
    assert (paper.model, paper.designs, paper.executions) == ("Qwen/Qwen3-8B", 4, 4)
    assert (paper.phase_steps, paper.lr, paper.shard) == (30, 1e-6, True)
    assert resolve().model == "tiny"


def test_the_cap_of_the_importance_weights_goes_with_the_engine():
    assert PRESETS["paper"].importance_cap == 2.0 and Config().importance_cap == 0.0
    assert Config(engine="vllm", tis=0.0).importance_cap == 0.0


@pytest.mark.parametrize("name", PRESETS)
def test_presets_pass_their_own_checks(name):
    assert PRESETS[name].preset == name
    launch.check(PRESETS[name], world=1 if name == "tiny" else 8)
