"""What the README says is true: its files, its flags, its examples, its metrics."""

import dataclasses
import doctest
import importlib
import re
import shlex

import cli
import pytest
import runs
from conftest import ROOT

import eval as evaluation
import sft
import train

README = (ROOT / "README.md").read_text()
MODULES = [path.stem for path in sorted(ROOT.glob("*.py"))]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    module = importlib.import_module(name)
    assert module.__doc__ and doctest.testmod(module).failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_every_file_is_in_the_readme_and_short(name):
    text = (ROOT / f"{name}.py").read_text()
    assert f"{name}.py" in README and len(text.splitlines()) <= 400


@pytest.mark.parametrize("name", MODULES)
def test_what_a_file_names_is_there(name):
    """Its tests, and the file to read next."""
    paths = re.findall(
        r"tests/\w+\.py|(?<=Read next: )\w+\.py", importlib.import_module(name).__doc__
    )
    assert paths and all((ROOT / path).is_file() for path in paths), paths


def test_functions_are_short_and_excepts_are_narrow():
    import ast

    for name in MODULES:
        for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno < 60, (name, node.name)
            if isinstance(node, ast.ExceptHandler) and getattr(node.type, "id", None) in (
                None,
                "BaseException",
                "Exception",
            ):
                if not isinstance(node.type, (ast.Tuple, ast.Attribute)):
                    line = (ROOT / f"{name}.py").read_text().splitlines()[node.lineno - 1]
                    assert "boundary" in line, (
                        name,
                        node.lineno,
                        "a broad except says which boundary it guards",
                    )


def commands():
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.search(r"(train|eval|sft|sandbox|credit)\.py", line)]


@pytest.mark.parametrize("line", commands())
def test_every_flag_in_the_readme_exists(line):
    command = shlex.split(line.split("&&")[-1])
    at = next(i for i, word in enumerate(command) if word.endswith(".py"))
    configs = {"train": train.Config, "eval": evaluation.Config, "sft": sft.Config}
    name = command[at].rsplit("/")[-1][:-3]
    if name in configs:
        cli.flags(configs[name], command[at + 1 :], "")


def test_every_metric_is_explained(policy):
    names = {
        "step",
        "trained_roles",
        "loss",
        "grad_norm",
        "trained_tokens",
        "skipped",
        "ratio",
        "clip_frac",
        "approx_kl",
        "entropy",
        "seconds",
        "seconds_rollout",
        "seconds_sampling",
        "seconds_update",
        "tokens",
        "eval_accuracy",
        "eval_valid_designs",
        "eval_families",
        "eval_fixed",
        "variance_between_designs",
        "variance_within_designs",
    } | set(runs.measure([]))
    missing = [name for name in sorted(names) if f"`{name}`" not in README]
    assert not missing


def test_every_flag_is_documented():
    for config in (train.Config, evaluation.Config, sft.Config):
        source = (ROOT / f"{config.__module__}.py").read_text()
        for field in dataclasses.fields(config):
            assert re.search(rf'^    {field.name}: .*\n    """.+"""', source, re.MULTILINE), (
                config,
                field.name,
            )
