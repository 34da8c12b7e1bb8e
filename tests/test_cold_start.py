"""The way of docs/cold_start.md, small, over a real server; the filters of the selection."""

import json
import socket
import subprocess
import sys
import time

import pytest
from conftest import ROOT, lines
from runs import largest_difference, weights

import eval as evaluation
import sft
import train
from lib import selection


def row(role, question, completion, family="a", instructions="i"):
    messages = [
        {"role": "system", "content": instructions},
        {"role": "user", "content": question},
    ]
    return {
        "role": role,
        "messages": messages,
        "completion": completion,
        "question": question,
        "family": family,
    }


def test_the_filters_and_their_counts():
    rows = [
        row("designer", "What is 1 + 2?", "submit(a('1 + 2'))"),
        row("designer", "What is 1 + 2?", "submit(a('2 + 1'))"),  # the same shape
        row("designer", "What is 1 + 2?", "submit(b(question))"),  # one too many
        row("designer", "What is 3 + 4?", "x" * 100),  # too long
        *(row("designer", f"What is {i} + 4?", f"submit(a({i} + 4))", "a") for i in range(5, 9)),
        row("designer", "Who?", "submit(a(question))", "b"),
        *(row("executor", "Who?", f"said {i}", "b") for i in range(6)),  # two too many
        row("executor", "Who?", "said 0", "b"),  # twice
    ]
    kept, dropped = selection.select(
        rows, lambda r: len(r["completion"]), 50, 1, {"designer": 3, "executor": 10}
    )
    assert dropped == {"too long": 1, "duplicates": 2, "per question": 3, "balance": 3}
    assert len(kept) == len(rows) - sum(dropped.values())
    designs = [r for r in kept if r["role"] == "designer"]
    assert {r["family"] for r in designs} == {"a", "b"} and len(designs) == 3


def test_the_balance_is_over_families_and_shapes():
    many = [row("designer", f"What is {i}?", f"submit(a({i}))") for i in range(20)]
    few = [row("designer", f"What is {i}?", f"submit(b({i}))") for i in range(20, 22)]
    other = [row("designer", "Who?", "submit(a(question))", "b")]
    kept, _ = selection.select([*many, *few, *other], lambda r: 0, 1, 9, {"designer": 5})
    shapes = [selection.design_shape(r) for r in kept]
    assert sum("b(" in name for name in shapes) == 2 and sum(r["family"] == "b" for r in kept) == 1


@pytest.fixture(scope="module")
def server():
    """The tiny model behind HTTP, in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "chat_server.py", "tiny", str(port)]
    )
    for _ in range(600):
        time.sleep(0.2)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
    yield f"http://127.0.0.1:{port}/v1"
    process.kill()
    process.wait()


def run(main, command: str) -> None:
    main(command.split())


def test_from_a_teacher_to_training(server, tmp_path, caplog):
    """Every command of docs/cold_start.md, small: collect over a server, select, fine-tune on one
    rank and on two, evaluate, train."""
    caplog.set_level("INFO", "metaagent")
    limits = "--design-tokens 96 --reply-tokens 24"
    kept, cold, adapter = tmp_path / "kept.jsonl", tmp_path / "cold.jsonl", tmp_path / "adapter"
    run(
        sft.main,
        f"--collect --teacher {server} --tasks registry --questions 24 "
        f"--designs 3 {limits} --out {kept}",
    )
    run(
        sft.main,
        f"--select {kept} --model tiny --designer-samples 20 --executor-samples 60 --out {cold}",
    )
    rows = [json.loads(line) for line in cold.read_text().splitlines()]
    assert {r["role"] for r in rows} == {"designer", "executor"}
    assert f"of {len(kept.read_text().splitlines())} samples; dropped: " in caplog.text

    steps = f"--model tiny --data {cold} --steps 3 --batch 8 --lr 1e-3"
    run(sft.main, f"{steps} --lora 4 --checkpointing --out {adapter}")
    run(sft.main, f"--model {adapter} --out {tmp_path / 'whole'}")
    run(sft.main, f"{steps} --dtype float64 --out {tmp_path / 'one'}")
    torchrun = "-m torch.distributed.run --standalone --nproc_per_node 2 sft.py"
    command = f"{torchrun} {steps} --dtype float64 --out {tmp_path / 'two'}".split()
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    one, two = weights(tmp_path, "one"), weights(tmp_path, "two")
    assert largest_difference(one, two) < 1e-6

    run(evaluation.main, f"--model {tmp_path / 'whole'} --limit 4 --modes metaagent {limits}")
    flags = "--steps 1 --questions 2 --designs 2 --eval-size 1 --eval-every 0"
    run(train.main, f"--model {tmp_path / 'one'} {flags} --out {tmp_path / 'run'}")
    assert len(lines(tmp_path / "run")) == 1
