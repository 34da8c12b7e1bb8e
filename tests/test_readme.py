"""What the README and docs/ say is true: files, flags, examples, metrics, the order of reading."""

import dataclasses
import doctest
import importlib
import json
import re
import shlex

import pytest
from conftest import ROOT, Config
from runs import train_run
from test_structure import name_of, python_files

import eval as evaluation
import sft
from lib import cli

README = (ROOT / "README.md").read_text()
DOCS = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
FILES = {name_of(path): path for path in python_files() if path.parent.name != "tests"}
PACKAGES = [name for name in FILES if name.endswith("__init__")]
METHOD = sorted(name for name in FILES if "/" not in name)


def docstring(name: str) -> str:
    match = re.match(r'r?"""(.*?)"""', FILES[name].read_text(), re.DOTALL)
    assert match, f"{name} begins with a docstring"
    return match[1]


# ---------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize("name", [name for name in FILES if ">>> " in FILES[name].read_text()])
def test_doctests(name):
    module = importlib.import_module(name.removesuffix("/__init__").replace("/", "."))
    results = doctest.testmod(module)
    assert results.attempted and not results.failed


def test_the_tour_runs(monkeypatch):
    """Every block, in one session, from top to bottom."""
    monkeypatch.chdir(ROOT)
    tour = DOCS["tour.md"]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", tour, re.DOTALL | re.MULTILINE)
    assert blocks and all(kind == "python" and code[:4] == ">>> " for kind, code in blocks)
    examples = re.sub(r"^```.*$", "", tour, flags=re.MULTILINE)
    test = doctest.DocTestParser().get_doctest(examples, {}, "tour.md", "docs/tour.md", 0)
    assert len(test.examples) >= 40
    assert doctest.DocTestRunner().run(test).failed == 0


# ----------------------------------------------------------------------------------------- reading


def test_the_readme_is_short():
    assert len(README) <= 12_000


def test_the_readme_names_every_file_of_the_method_in_the_order_of_reading():
    """The chain "Read next" visits each file once, in the order of the README's table."""
    order = re.findall(r"^\| \[(\w+)\.py\]", README, re.MULTILINE)
    assert sorted(order) == METHOD
    following = [re.search(r"Read next: ([\w.]+)\.(py|md)", docstring(name))[1] for name in order]
    assert following == [*order[1:], "README"]


@pytest.mark.parametrize("name", sorted(set(FILES) - set(PACKAGES)))
def test_a_file_names_its_test_and_what_to_read_next(name):
    text = docstring(name)
    tests = re.findall(r"tests/\w+\.py", text)
    assert all((ROOT / test).is_file() for test in tests)
    following = re.search(r"Read next: ([\w./]+\.(py|md))\.$", text.strip())
    assert following, name
    folder = FILES[name].parent
    assert (folder / following[1]).is_file() or (ROOT / following[1]).is_file(), following[1]


@pytest.mark.parametrize("name", ["README.md", *DOCS])
def test_links_lead_somewhere(name):
    text, folder = (README, ROOT) if name == "README.md" else (DOCS[name], ROOT / "docs")
    for link in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", text):
        assert link.startswith("https://") or (folder / link).exists(), link


def test_names_in_the_seven_steps_exist():
    steps = README.split("## The method in seven steps")[1].split("\n## ")[0]
    names = re.findall(r"`(\w+)\.(\w+)(?:\.(\w+))?`", steps)
    assert len(names) >= 8
    for module, attribute, method in names:
        found = getattr(importlib.import_module(module), attribute)
        assert not method or hasattr(found, method)


# ------------------------------------------------------------------------------ commands and flags


def commands():
    text = "\n".join([README, *DOCS.values(), (ROOT / "experiments" / "README.md").read_text()])
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.search(r"\b(train|eval|sft)\.py", line)]


@pytest.mark.parametrize("line", commands())
def test_every_flag_in_the_documents_exists(line):
    command = shlex.split(line.split("&&")[-1])
    start = next(i for i, word in enumerate(command) if word.endswith(".py"))
    configs = {"train": Config, "eval": evaluation.Config, "sft": sft.Config}
    name = command[start].rsplit("/")[-1].removesuffix(".py")
    cli.flags(configs[name], command[start + 1 :], "")


def test_flags_that_the_readme_mentions_exist():
    flags = set()
    for config in (Config, evaluation.Config, sft.Config):
        flags |= {cli.flag_name(field.name) for field in dataclasses.fields(config)}
    mentioned = set(re.findall(r"`(--[a-z-]+)", README + "".join(DOCS.values())))
    assert mentioned - flags <= {"--extra-index-url", "--check"}


# ----------------------------------------------------------------------------------------- metrics


def test_every_metric_is_explained(tmp_path):
    """Those of a step and its evaluations, as a run writes them."""
    train_run("--steps", 1, "--out", tmp_path)
    metrics = json.loads((tmp_path / "metrics.jsonl").read_text())
    explained = set(re.findall(r"`(\w+)`", DOCS["run_folder.md"].split("## The metrics")[1]))
    assert set(metrics) - explained == set()
