"""Who plays a role: the shared model, a model of its own, a frozen one, a server."""

import pytest
from conftest import SMALL_RUN, lines
from runs import same, tiny_weights, weights

import eval as evaluation
import tasks
import train
from config import Config
from designer import FIXED_DESIGNS

ARITHMETIC = ("--tasks", "arithmetic", "--model", "tiny/arithmetic")


def start(out, *flags) -> list[dict]:
    train.main([*SMALL_RUN, "--steps", "2", "--eval-every", "0", "--out", str(out), *flags])
    return lines(out)


def test_who_plays_what():
    assert Config().models == {("executor", "designer"): "tiny"}
    two = Config(designer="a", stage="designer")
    assert two.models == {("executor",): "tiny", ("designer",): "a"}
    assert two.learns(("designer",)) and not two.learns(("executor",))
    assert Config(stage="executor").learns(("executor", "designer"))


@pytest.mark.parametrize("learns, frozen", [("designer", "executor"), ("executor", "designer")])
def test_one_role_learns_beside_a_frozen_one(tmp_path, learns, frozen):
    """Its checkpoint is the run's; evaluated with the other model, it scores as in the run."""
    flags = ("--stage", learns, f"--{frozen}", "tiny/arithmetic", "--eval-size", "4")
    rows = start(tmp_path / "run", *ARITHMETIC, *flags)
    assert all(row["trained_tokens"] > 0 for row in rows)
    assert not same(weights(tmp_path / "run"), tiny_weights("tiny/arithmetic"))
    assert not (tmp_path / "run" / "checkpoint" / "designer").exists()


def test_the_designer_learns_over_a_server(server, tmp_path):
    """Its tokens are counted, what it runs is not touched, and the run goes on after a stop."""
    gold = {q.prompt: q.answer for q in tasks.load("arithmetic", "train", 0, 1000)}

    def behave(messages, number):  # right now and then
        answer = gold.get(messages[-1]["content"], "0") if number % 2 else "0"
        return f"\\boxed{{{answer}}}"

    server["behave"] = behave
    roles = ("--designer", "tiny/arithmetic", "--executor", server["url"], "--stage", "designer")
    out = tmp_path / "run"
    rows = start(out, *ARITHMETIC, *roles)
    train.main(["--out", str(out), "--resume", "--steps", "3"])
    assert [row["step"] for row in lines(out)] == [0, 1, 2]
    assert all(request["model"] == "m" for request in server["seen"])
    assert sum(row["trained_tokens"] for row in rows) > 0
    assert not same(weights(out), tiny_weights("tiny/arithmetic"))

    before = len(server["seen"])
    flags = ("--tasks", "arithmetic", "--limit", "12", "--modes", "metaagent", "--temperature", "0")
    evaluation.main([*roles[:1], str(out / "checkpoint"), *roles[2:4], *flags])
    assert len(server["seen"]) > before


def test_a_server_designs_for_an_executor_that_learns(server, tmp_path):
    designs = [FIXED_DESIGNS["single"], FIXED_DESIGNS["coder"]]
    server["behave"] = lambda messages, number: designs[number % 2]
    roles = ("--designer", f"{server['url']}#m", "--stage", "executor", "--designs", "4")
    rows = start(tmp_path / "run", *ARITHMETIC, *roles)
    assert all(set(row["structures"]) == {"single", "single+python"} for row in rows)
    assert not same(weights(tmp_path / "run"), tiny_weights("tiny/arithmetic"))
