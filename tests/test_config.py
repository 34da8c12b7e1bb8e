"""The flags: few, each explained, presets that pass their own checks."""

import dataclasses
import re
from dataclasses import replace

import pytest
from conftest import ROOT
from test_cli import resolve

import eval as evaluation
import sft
from config import PRESETS, Config
from lib import cli, launch
from lib.errors import UserError


def test_there_are_at_most_45_flags():
    assert len(dataclasses.fields(Config)) <= 45


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


def test_the_group_of_an_execution_has_two_names():
    assert resolve("--executor-group", "design").executor_group == "design"
    assert resolve("--executor-credit", "replay").executor_group == "question"


def test_a_preset_gives_defaults_and_a_flag_wins_over_it():
    paper = resolve("--preset", "paper", "--lr", "1e-6")
    assert (paper.designs, paper.executions) == (4, 4)
    assert (paper.phase_steps, paper.lr, paper.shard) == (30, 1e-6, True)
    assert resolve().model == "tiny"


def test_the_cap_of_the_importance_weights_goes_with_the_engine():
    assert PRESETS["paper"].importance_cap == 2.0 and Config().importance_cap == 0.0
    assert Config(engine="vllm", tis=0.0).importance_cap == 0.0


@pytest.mark.parametrize("name", PRESETS)
def test_presets_pass_their_own_checks(name):
    assert PRESETS[name].preset == name
    config = replace(PRESETS[name], model=PRESETS[name].model or "cold")
    launch.check(config, world=1 if name == "tiny" else 8)


def test_the_paper_preset_says_how_to_make_its_cold_start():
    """With commands whose flags there are."""
    with pytest.raises(UserError, match="--model is missing.*cold-started") as error:
        launch.check(PRESETS["paper"], world=8)
    commands = re.findall(r"python sft.py (.+?)(?:, then|$)", str(error.value))
    assert len(commands) == 2
    for command in commands:
        cli.flags(sft.Config, command.split(), "")
