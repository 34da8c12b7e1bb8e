"""Bad input: one clear line, exit code 2, no traceback, nothing half-written."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

import eval as evaluation
import sandbox
import sft
import train
from config import PRESETS, Config
from experiments import run as experiments
from lib import cli, launch
from lib.errors import UserError
from viewer import pages


@pytest.fixture
def files(tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n{"question": \n')
    (tmp_path / "columns.jsonl").write_text('{"text": "1+1?", "label": "2"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "list.jsonl").write_text("[1, 2]\n")
    (tmp_path / "wrong.yaml").write_text("stepps: 3\n")
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "caf\xe9"}\n')
    (tmp_path / "few.jsonl").write_text(
        "".join(json.dumps({"question": f"{i}?", "answer": i}) + "\n" for i in range(5))
    )
    (tmp_path / "samples.jsonl").write_text(
        '{"role": "judge", "messages": [], "completion": "x"}\n'
    )
    (tmp_path / "emptymodel").mkdir()
    (tmp_path / "few.gguf").write_bytes(b"GGUF but nothing else")
    bare = tmp_path / "notemplate"
    bare.mkdir()
    for path in (ROOT / "tiny").iterdir():
        if path.is_file() and path.name != "chat_template.jinja":
            (bare / path.name).write_bytes(path.read_bytes())
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    for name, content in (
        ("corrupt", b"not a checkpoint"),
        ("cut", (ROOT / "tiny" / "model.safetensors").read_bytes()[:1000]),
    ):
        (tmp_path / name / "checkpoint").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text(json.dumps(dataclasses.asdict(Config())))
        (tmp_path / name / "checkpoint" / "trainer.pt").write_bytes(content)
    return tmp_path


BAD = [  # program, arguments ({} is the folder of files), what the line must name
    (train, "--tasks nonsense", "nonsense"),
    (train, "--tasks rg:no_such_generator", "no_such_generator"),
    (train, "--tasks ,", "empty"),
    (train, "--tasks arithmetic:-1", "weight"),
    (train, "--task arithmetic", "--task"),
    (train, "--steps many", "many"),
    (train, "--steps 0", "--steps"),
    (train, "--stage sometimes", "sometimes"),
    (train, "--lr -1", "--lr"),
    (train, "--lr nan", "--lr"),
    (train, "--questions 50000", "--questions"),
    (train, "--model {}/nowhere", "nowhere"),
    (train, "--model {}/emptymodel", "emptymodel"),
    (train, "--model {}/notemplate", "chat template"),
    (train, "--tasks {}/missing.jsonl", "missing.jsonl"),
    (train, "--tasks {}/broken.jsonl", "line 2"),
    (train, "--tasks {}/columns.jsonl", "question"),
    (train, "--tasks {}/empty.jsonl", "no rows"),
    (train, "--tasks {}/list.jsonl", "object"),
    (train, "--tasks {}/latin.jsonl", "UTF-8"),
    (train, "--tasks {}/few.jsonl", "few.jsonl"),
    (train, "--resume", "--out"),
    (train, "--resume --out {}/nothing", "no run"),
    (train, "--resume --out {}/corrupt", "corrupt"),
    (train, "--resume --out {}/cut", "corrupt"),
    (train, "--out {}/few.jsonl", "few.jsonl"),
    (train, "--config {}/missing.yaml", "missing.yaml"),
    (train, "--config {}/list.jsonl", "name: value"),
    (train, "--config {}/wrong.yaml", "stepps"),
    (evaluation, "--config", "which file"),
    (train, "--preset huge", "huge"),
    (train, "--designer hand:coder", "--stage executor"),
    (train, "--designer hand:nothing --stage executor", "coder"),
    (train, "--designer hand:conditional --stage executor --tasks gsm8k", "coder"),
    (train, "--designer tiny --engine vllm", "--designer"),
    (evaluation, "--executor tiny --engine vllm", "--executor"),
    (train, "--model http://127.0.0.1:1/v1", "--executor"),
    (train, "--executor http://127.0.0.1:1/v1", "--stage designer"),
    (train, "--executor http://127.0.0.1:1/v1 --stage designer", "127.0.0.1:1"),
    (train, "--designer {}/nowhere", "nowhere"),
    (train, "--designs 1 --executions 1", "--executions 1"),
    (train, "--designs 1", "--stage stagewise"),
    (train, "--executor-group design --executions 1", "--executions 1"),
    (train, "--gpu-memory 1.5", "--gpu-memory"),
    (train, "--tis -1", "--tis"),
    (train, "--clip 0 0.2", "--clip"),
    (train, "--clip 0.2 0.2 0.5", "dual clip"),
    (train, "--clip 0.2", "--clip"),
    (train, "--price 1 -1", "--price"),
    (train, "--price nan", "--price"),
    (train, "--minibatches 0", "--minibatches"),
    (train, "--warmup -1", "--warmup"),
    (train, "--dry-run 8", "--dry-run"),
    (train, "--dry-run 0x80", "--dry-run"),
    (train, "--sandbox seccomp", "seccomp"),
    (train, "--tasks arithmetic,-nonsense", "nonsense"),
    (train, "--out {}/notemplate", "not a run's"),
    (train, "--model {}/nowhere --dry-run 8x80", "nowhere"),
    (train, "--model {}/few.gguf", "few.gguf"),
    (evaluation, "--modes single,guess", "guess"),
    (evaluation, "--limit 0", "--limit"),
    (evaluation, "--tasks gsm8k --data-dir {}", "gsm8k*.jsonl"),
    (evaluation, "--ask ", "--ask"),
    (evaluation, "--ask \udcff", "UTF-8"),
    (evaluation, "--ask x --html .", "--html"),
    (evaluation, "--ask x --html {}/nowhere/run.html", "--html"),
    (evaluation, "--ask x --designs 0", "--designs"),
    (evaluation, "--ask x --replays 4", "--gold"),
    (evaluation, "--html run.html", "--ask"),
    (evaluation, "--serve --port 99999", "--port"),
    (evaluation, "--serve --ask x", "--serve"),
    (pages, "{}/nowhere", "no run to report on"),
    (experiments, "--claim 99", "--claim"),
    (evaluation, "--temperature -1", "--temperature"),
    (evaluation, "--prices 0,dear", "--prices"),
    (evaluation, "--prices 0,-1", "--prices"),
    (evaluation, "--prices 0,2 --modes single", "metaagent"),
    (evaluation, "--vote-tokens -1", "--vote-tokens"),
    (evaluation, "--model {}/nowhere --tasks arithmetic", "nowhere"),
    (sft, "--data {}/samples.jsonl --out {}/m", "role"),
    (sft, "--data {}/missing.jsonl --out {}/m", "missing.jsonl"),
    (sft, "--data {}/samples.jsonl --out {}/corrupt", "not a model's folder"),
    (sft, "--collect", "--out"),
    (sft, "--scripted --out {}/m", "--model"),
    (sft, "--model tiny --scripted --tasks {}/few.jsonl --out {}/m", "scripted"),
    (sft, "--model tiny", "--out"),
    (sft, "--batch 0 --out {}/m", "--batch"),
    (sandbox, "{}/missing.py", "missing.py"),
]


@pytest.mark.parametrize(
    "program, arguments, names",
    BAD,
    ids=[f"{program.__name__} {arguments}" for program, arguments, _ in BAD],
)
def test_bad_input_is_one_line_and_exit_2(program, arguments, names, files, monkeypatch, capsys):
    if program is train and "--out" not in arguments and "--resume" not in arguments:
        arguments += " --out {}/run"
    argv = [part.replace("{}", str(files)) for part in arguments.split(" ")]
    monkeypatch.setattr(sys, "argv", [f"{program.__name__}.py", *argv])
    monkeypatch.chdir(files)
    with pytest.raises(SystemExit) as stop:
        cli.command(program.main)
    said = capsys.readouterr().err.strip().splitlines()
    assert (
        stop.value.code == 2 and len(said) == 1 and names in said[0] and "Traceback" not in said[0]
    ), said
    assert (
        not list(files.glob("**/*.tmp"))
        and not (files / "run" / "checkpoint").exists()
        and not (files / "m").exists()
    )


def test_vllm_that_is_not_installed_is_one_line(files, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr(sys, "argv", ["train.py", "--engine", "vllm", "--out", str(files / "run")])
    with pytest.raises(SystemExit) as stop:
        cli.command(train.main)
    said = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and "pip install vllm" in said and len(said.splitlines()) == 1


def test_batch_sizes_must_divide():
    launch.check(Config(questions=12), world=4)
    with pytest.raises(UserError, match="--questions 12 does not divide by the 8 ranks; try 16"):
        launch.check(Config(questions=12), world=8)


@pytest.mark.parametrize(
    "failure, code, said",
    [
        ("RankError('bad')", 2, "rank 1: bad"),  # the first rank may not know of it
        ("UserError('bad')", 2, ""),
        ("KeyboardInterrupt", 130, ""),
        ("KeyError('bad')", 1, "Traceback"),
        ("SystemExit('bad')", 1, ""),
    ],
)
def test_a_rank_that_fails_ends_at_once(failure, code, said):
    """What ends a process may wait for other ranks: NCCL does, while they wait for this one."""
    program = (
        "import atexit, time\n"
        "from lib import cli\n"
        "from lib.errors import *\n"
        "atexit.register(time.sleep, 600)\n"
        "cli.SECONDS_TO_SPEAK = 0.1\n"
        f"def main(argv):\n    raise {failure}\n"
        "cli.command(main)"
    )
    process = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "WORLD_SIZE": "2", "RANK": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == code
    assert said in process.stderr if said else process.stderr == ""


def test_it_holds_for_the_real_process_too(tmp_path):
    for arguments in (["train.py", "--stepps", "3"], ["eval.py", "--tasks", "nonsense"]):
        process = subprocess.run(
            [sys.executable, str(ROOT / arguments[0]), *arguments[1:]],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert (
            process.returncode == 2
            and process.stdout == ""
            and len(process.stderr.strip().splitlines()) == 1
        ), process


def test_a_reader_of_the_output_may_leave(tmp_path):
    """`| head`: the program goes on to its end, and says nothing of it."""
    done = tmp_path / "done"
    program = (
        "import pathlib, sys; from lib import cli\n"
        "def main(argv):\n"
        "    for i in range(3):\n"
        "        cli.log.info('line')\n"
        "        sys.stdin.readline()\n"
        "    pathlib.Path(argv[0]).touch()\n"
        "cli.command(main)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, done],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "line\n"
    process.stdout.close()
    process.stdin.write("\n" * 3)
    process.stdin.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 0 and done.exists()


def test_an_unknown_flag_gets_a_suggestion(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--phase-step", "3"])
    with pytest.raises(SystemExit):
        cli.command(train.main)
    assert "--phase-steps" in capsys.readouterr().err


def test_help_shows_defaults(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.flags(Config, ["--help"], "x")
    text = capsys.readouterr().out
    assert not stop.value.code and "--phase-steps" in text and "default: 1" in text


def resolve(*argv):
    return launch.resolve(Config, [str(argument) for argument in argv], "", PRESETS)


def test_flags_of_a_resumed_run_can_not_change(tmp_path):
    config = Config(questions=3, lr_schedule="constant", out=str(tmp_path))
    launch.open_folder(config, 0)
    same = resolve("--out", tmp_path, "--resume", "--steps", 7)
    assert (same.questions, same.steps) == (3, 7)
    with pytest.raises(UserError, match="--questions"):
        resolve("--out", tmp_path, "--resume", "--questions", 4)
