"""The shape of the code: what a training step makes one read, which file imports which, layout."""

import ast
import asyncio
import pathlib
import re
import subprocess
import sys
import threading

import pytest
from conftest import ROOT, Config

import train
from sandbox import Sandbox

# Bottom to top. A file imports only files of the lines above its own, also inside functions.
LAYERS = """
data_types credit mas config lib/answers lib/attention lib/errors lib/turns
lib/lora lib/prices lib/split lib/ways jail/syscalls
lib/chat lib/cli lib/distributed lib/files lib/messages jail/isolation
designer jail/seccomp lib/loading tiny/registry
lib/shapes lib/trained_on tiny/namesakes tiny/arithmetic/world
lib/checkpoint lib/metrics lib/selection lib/trackers
engines/hf engines/openai_api engines/vllm benchmarks/math_worker
engines/__init__ benchmarks/math_grading lib/card policy lib/plots lib/statistics jail/child
sandbox lib/memory lib/prefix_sharing jail/server
lib/model_check
benchmarks/code_grading
benchmarks/datasets lib/tools lib/votes
executor tasks
rollout lib/plugins lib/replay tiny/teacher tiny/arithmetic/teacher
lib/launch lib/minibatches lib/resampling sft viewer/pages
lib/heldout lib/records viewer/serve viewer/screenshots tiny/build
train eval
experiments/claims experiments/gates experiments/shapley experiments/smollm2
experiments/arithmetic experiments/registry experiments/trained
experiments/run experiments/bench/grade experiments/bench/pages experiments/bench/rollout
experiments/bench/sandbox experiments/bench/scale experiments/bench/step
experiments/gpu_check
"""
EMPTY = (
    *("lib", "jail", "benchmarks", "tiny", "tiny/arithmetic", "viewer", "experiments"),
    "experiments/bench",
)

# What one training step goes through, in the order of the data; test_a_step_goes_through_these
# watches a step. Its budget is that of one sitting.
STEP = (
    "data_types.py",
    "designer.py",
    "executor.py",
    "rollout.py",
    "credit.py",
    "train.py",
    "policy.py",
)
MAX_FILES, MAX_CHARACTERS = 8, 55_000
# What a reader may take at its word, as each is behind one call: a program is run, an answer is
# graded, a flag is read. So are the engines (`sample`) and lib/.
BEHIND_ONE_CALL = {"sandbox.py", "tasks.py", "config.py"}


def python_files():
    """Our own: what git would know, without environments and runs."""
    folders = ("", "engines", "lib", "jail", "benchmarks", "viewer", "tiny", "experiments", "tests")
    files = [path for folder in folders for path in (ROOT / folder).glob("*.py")]
    deeper = ("experiments/bench", "tiny/arithmetic")
    return files + [path for folder in deeper for path in (ROOT / folder).glob("*.py")]


def name_of(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT).with_suffix(""))


def import_graph(only_top: bool = False) -> dict[str, set[str]]:
    """file -> the files that it imports; only_top: at its top, not inside functions."""
    files = {name_of(path): path for path in python_files() if path.parent.name != "tests"}
    graph = {}
    for name, path in files.items():
        tree = ast.parse(path.read_text())
        modules = set()
        for node in tree.body if only_top else ast.walk(tree):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
        paths = {module.replace(".", "/") for module in modules}
        paths |= {f"{path}/__init__" for path in paths}
        graph[name] = (paths & set(files)) - {name}
    return graph


def test_the_root_has_the_files_asked_for_and_six_more():
    asked = {"designer", "executor", "sandbox", "rollout", "credit", "train", "eval"}
    at_root = {path.stem for path in ROOT.glob("*.py")}
    assert asked <= at_root and len(at_root - asked) <= 6


def test_imports_point_down():
    layers = [line.split() for line in LAYERS.strip().splitlines()]
    level = {f"{folder}/__init__": -1 for folder in EMPTY}
    for number, names in enumerate(layers):
        level |= dict.fromkeys(names, number)
    graph = import_graph()
    assert set(graph) == set(level)
    upwards = [(a, b) for a, imported in graph.items() for b in imported if level[a] <= level[b]]
    assert upwards == []


def test_nothing_imports_in_a_circle():
    graph = import_graph()
    while graph:
        bottom = {name for name, imported in graph.items() if not imported & set(graph)}
        assert bottom, f"a circle among {sorted(graph)}"
        graph = {name: imported for name, imported in graph.items() if name not in bottom}


def test_the_method_does_not_import_pages_or_experiments_at_the_top():
    for name, imported in import_graph(only_top=True).items():
        if "/" not in name:
            assert not [other for other in imported if other.startswith(("viewer", "experiments"))]


def test_a_step_is_read_in_one_sitting():
    sizes = {name: len((ROOT / name).read_text()) for name in STEP}
    assert len(sizes) <= MAX_FILES and sum(sizes.values()) <= MAX_CHARACTERS, sizes


def test_a_step_goes_through_these(tmp_path):
    """Watch every function that a step calls, in any thread: their files at the root."""
    files = set()

    def watch(frame, event, argument):
        path = pathlib.Path(frame.f_code.co_filename)
        if path.parent == ROOT:
            files.add(path.name)

    async def one_step():
        async with Sandbox() as sandbox:
            await trainer.train(sandbox)  # no steps: it only gets ready
            for module in (sys, threading):
                module.setprofile(watch)
            try:
                await trainer.train_step(0)
            finally:
                for module in (sys, threading):
                    module.setprofile(None)

    config = Config(questions=3, designs=2, steps=0, eval_size=1, out=str(tmp_path))
    trainer = train.Trainer(config, tmp_path, rank=0, device="cpu")
    asyncio.run(one_step())
    trainer.records.close()
    assert files - BEHIND_ONE_CALL == set(STEP)


def test_no_line_is_wider_than_100_columns():
    web = [path for path in (ROOT / "viewer" / "web").iterdir() if path.suffix != ".png"]
    for path in [*python_files(), *web, ROOT / ".ci" / "run"]:
        lines = path.read_text().splitlines()
        assert [n for n, line in enumerate(lines, 1) if len(line) > 100] == [], path


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check")], ids=" ".join)
def test_the_layout_is_that_of_ruff(arguments):
    command = [sys.executable, "-m", "ruff", *arguments, ROOT]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_broad_except_names_its_boundary():
    for path in python_files():
        if path.parent.name == "tests":
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(r"except( \(?(Base)?Exception\b.*)?:", line):
                assert "boundary" in line, f"{path}:{number}"
