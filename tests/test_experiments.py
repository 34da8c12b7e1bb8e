"""The claims' runner: what a run leaves, what the numbers mean, what is skipped, what is drawn."""

import concurrent.futures
import json
import pathlib
import re
import shutil
import time
from dataclasses import replace
from math import sqrt

import pytest
import torch
from conftest import ROOT, Config

import eval as evaluation
from experiments import arithmetic, registry, trained
from experiments import run as experiments
from experiments.arithmetic import choices, noise, oracle, own, variances, weights
from experiments.claims import (
    Claim,
    Comparison,
    collapsed,
    decide,
    final,
    holm,
    interval,
    p_value,
    page,
    scores,
    short_table,
    table,
    verdict,
)
from experiments.registry import ARMS, CLAIMS, DERIVED, DEVELOPMENT, DEVELOPMENT_SEEDS
from lib import cli, launch
from lib.errors import UserError
from lib.metrics import variance_split
from lib.prices import name_at


def row(arm, seed, curve, tokens=100):
    evaluation = {
        "eval_accuracy": curve[-1],
        "eval_greedy": curve[-1],
        "eval_families": {
            "a": {"accuracy": curve[-1], "designs": {"vote": 3}},
            "b": {"accuracy": 0.5, "designs": {"single": 1}},
            "new shape": {"accuracy": 0.25, "designs": {}},
        },
        "eval_greedy_families": {"new shape": 0.125},
        "eval_fixed": {"x": 0.4, "y": 0.6, "oracle": 0.5, "conditional": 0.1},
        "eval_fixed_greedy": {"x": 0.4, "y": 0.6, "oracle": 0.55, "conditional": 0.15},
        "eval_fixed_families": {
            "x": {"a": 0.2, "b": 1.0, "new shape": 0.0},
            "y": {"a": 0.8, "b": 0.0, "new shape": 0.0},
            "oracle": {"a": 0.0, "b": 0.0, "new shape": 0.5},
        },
        "eval_fixed_greedy_families": {"oracle": {"new shape": 0.75}},
        "eval_new_designs": 0.3,
        "eval_new_among_right": 0.4,
        "eval_new_examples": [
            {"count": seed + 1, "shape": "s(_)", "question": "Who?", "design": "s(Feki)"}
        ],
    }
    return {
        "arm": arm,
        "seed": seed,
        "flags": "",
        "evals": [[10 * i, tokens * i, accuracy, accuracy] for i, accuracy in enumerate(curve)],
        "before": evaluation,
        "after": evaluation,
        "variance": {"between": 0.1, "within": 0.2},
        "seconds": 1,
    }


def rows(arm, seeds, curve, tokens=100):
    return {(arm, seed): row(arm, seed, curve(seed), tokens) for seed in seeds}


def write_rows(path, items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))


# -------------------------------------------------------------------------------------- the numbers


def test_scores_of_a_run():
    falling = row("x", 0, [0.0, 0.2, 0.8, 0.4, 0.3, 0.2])
    assert final(falling) == pytest.approx(0.3) and collapsed(falling) == 1.0
    assert final(falling, 250) == pytest.approx((0.8 + 0.7 + 0.6) / 3)
    assert collapsed(row("x", 0, [0.2, 0.4, 0.4])) == 0.0
    assert oracle(falling["after"]) == pytest.approx(0.75 * 0.8 + 0.25 * 1.0)
    assert own(falling["after"]) == pytest.approx(0.75 * 0.2 + 0.25 * 0.5)
    families = {"a": {"accuracy": 0.9, "designs": {}}, "b": {"accuracy": 0.1, "designs": {}}}
    other = row("y", 0, [0.0, 0.1])["after"] | {"eval_families": families}
    del falling["after"]["eval_families"]["new shape"]
    assert own(falling["after"], other) == pytest.approx(0.75 * 0.9 + 0.25 * 0.5)


def test_intervals_and_verdicts_by_hand():
    mean, low, high = interval([0.0, 0.1, 0.2, 0.3, 0.4])  # t of 4 degrees of freedom: 2.776
    assert mean == pytest.approx(0.2) and low == pytest.approx(2 * mean - high)
    assert high - mean == pytest.approx(2.776 * sqrt(0.025) / sqrt(5), rel=1e-3)
    assert verdict(0.1, 0.2) == "holds" and verdict(-0.2, -0.1) == "does not"
    assert verdict(-0.1, 0.1) == "can't be told"
    assert verdict(0.1, 0.2, is_significant=False) == "not after correction"


def test_holms_correction_by_hand():
    """The smallest p against 0.05 / 4, the next against 0.05 / 3 ...; after the first that fails,
    none."""
    assert holm([0.012, 0.5, 0.016, 0.024]) == [True, False, True, True]
    assert holm([0.013, 0.001, 0.02, 0.02]) == [True, True, True, True]
    assert holm([0.013, 0.013, 0.013, 0.013]) == [False] * 4
    # A mean of 0.2 with a standard error of 0.0707: t = 2.828, two-sided p of 4 degrees 0.0474.
    assert p_value([0.0, 0.1, 0.2, 0.3, 0.4]) == pytest.approx(0.0474, abs=2e-4)
    assert p_value([0.5, 0.5]) == 0 and p_value([0.0, 0.0]) == 1


@pytest.mark.parametrize("added_later, judged", [(True, "holds"), (False, "not after correction")])
def test_what_was_added_later_changes_no_verdict(added_later, judged):
    """Three more comparisons that show nothing: of the planned ones they cost the first its
    verdict."""
    firm, nothing = [0.1, 0.3, 0.2, 0.5], [0.1, -0.1, 0.1, -0.1]
    assert 0.05 / 4 < p_value(firm) < 0.05
    results = {("a", seed): {"firm": firm[seed], "nothing": nothing[seed]} for seed in range(4)}
    first = Comparison("first", ("a",), lambda row: row["firm"])
    other = Comparison("other", ("a",), lambda row: row["nothing"], added_later=added_later)
    study = replace(registry.STUDY, claims={1: Claim("t", "p", (first, other, other, other))})
    decided = [said for *_, said in decide(study, results)]
    assert decided == [judged] + ["added later" if added_later else "can't be told"] * 3
    counts = "|  | can't be told (3) |" if added_later else "| can't be told (3) |  |"
    assert short_table(study, results).endswith(counts)


def test_a_control_has_no_verdict_and_is_not_counted():
    results = {("a", seed): {"x": x} for seed, x in enumerate([0.4, 0.5, 0.6])}
    first = Comparison("first", ("a",), lambda row: row["x"])
    study = replace(
        registry.STUDY, claims={1: Claim("t", "p", (first, replace(first, is_control=True)))}
    )
    assert [said for *_, said in decide(study, results)] == ["holds", "control"]
    assert short_table(study, results).endswith("first +0.50, holds |  |  |")


def test_pairs_are_of_one_seed_and_at_equal_tokens():
    def rising(seed):
        return [0.0, 0.8, 0.8, 0.9 + seed / 10]

    results = rows("stagewise", range(3), rising)
    arm = "designer, frozen executor"
    results |= rows(arm, (0, 2), lambda seed: [0.0, 0.25, 0.25, 0.25], tokens=50)
    # Both at 120 to 150 tokens, and no seed 1.
    differences = CLAIMS[1].comparisons[0].over_seeds(results, range(3))
    assert differences == pytest.approx([0.8 - 0.25] * 2)
    # A few tokens more are no handicap.
    results |= rows("coupled", range(3), rising, tokens=100.1)
    differences = CLAIMS[3].comparisons[0].over_seeds(results, range(3))
    assert differences == pytest.approx([0.0] * 3, abs=1e-3)


def test_the_noise_of_advantages_is_what_a_simulation_says():
    """Rewards of a known law, many trees: the share of luck in a design's mean, the variance of a
    gradient and of the baseline, counted and by `noise`."""
    b, w, M, N = 0.04, 0.16, 4, 4
    generator = torch.Generator().manual_seed(0)
    quality = 0.5 + b**0.5 * torch.randn(20_000, 16, 1, generator=generator)
    rewards = quality + w**0.5 * torch.randn(20_000, 16, 16, generator=generator)
    between, within = variance_split(rewards)
    designer, update, executor = noise({"between": between, "within": within}, M, N)

    means = rewards[:, :M, :N].mean(2)
    luck = ((means - quality[:, :M, 0]).var() / means.var()).item()
    assert designer == pytest.approx(luck, rel=0.03)
    assert designer == pytest.approx((w / N) / (b + w / N), rel=0.03)
    assert executor == pytest.approx((means.mean(1).var() / (b + w)).item(), rel=0.05)

    # The gradient's direction has nothing to do with quality here: all of its variance is noise,
    # and its mean is known to be cov(quality, direction) (1 - 1/M).
    direction = torch.randn(20_000, 16, generator=generator)

    def gradient_variance(values, m):
        centred = values - values.mean(1, keepdim=True)
        gradient = (centred * direction[:, :m]).mean(1)
        return (gradient.var() / (1 - 1 / m) ** 2).item()

    ratio = gradient_variance(means, M) / gradient_variance(rewards[:, :, 0], M * N)
    assert update == pytest.approx(ratio, rel=0.05)
    assert update == pytest.approx((b + w / N) / (M - 1) * (M * N - 1) / (b + w), rel=0.05)


def test_tables():
    results = rows("stagewise", range(2), lambda seed: [0.2, 0.5, 0.8])
    for seed in range(2):
        steps = {step: {"between": 0.05, "within": 0.1} for step in ("0", "100")}
        results["variance", seed] = {"arm": "variance", "seed": seed, "steps": steps}
    line = "| a | vote 100% | 0.80 (0.80 to 0.80) | 0.80 (0.80 to 0.80), mostly y |"
    assert line in choices(results) and choices({}) == variances({}) == ""
    assert scores(arithmetic.STUDY, {}) == ""

    table = variances(results)
    assert table.count("relative variance of its gradient, 16 x 1 being 1") == 2
    assert "being 1, after 0 steps | 1.00 " in table
    luck = next(line for line in table.splitlines() if line.startswith("| designer"))
    *shares, last = [cell.split()[0] for cell in luck.split("|")[2:-1]]
    shares = [float(share) for share in shares]
    # More executions of a design, less luck in its mean.
    assert last == "-" and len(shares) == 4 and shares == sorted(shares, reverse=True)
    results["designer", 0] = row("designer", 0, [0.1, 0.9, 0.2, 0.1, 0.1])
    assert scores(arithmetic.STUDY, results).splitlines()[2:] == [
        "| stagewise |  | 0 | 0.50 (0.50 to 0.50) | 0.80 (0.80 to 0.80) | 0.80 (0.80 to 0.80) "
        "| 0, 0 of 2 |",
        "| designer | `--stage designer` | 0 | 0.13 | 0.10 | 0.90 | 1, 0 of 1 |",
    ]


def measured(seed):
    """A row of what trained.py says."""
    groups = {
        group: {"own": 0.6, "conditional": 0.2, "oracle": 0.8 + seed / 100, "regret": 0.2}
        for group in ("3 steps", "all")
    }
    groups["all"]["best unconditional"] = 0.1
    cells = {
        f"designer of the {designer}, executor of the {executor}": score
        for designer, executor, score in (
            ("start", "start", 0.3),
            ("start", "end", 0.4 + seed / 100),
            ("end", "start", 0.5),
            ("end", "end", 0.6),
        )
    }
    part = {
        "crossed": cells,
        "start": groups,
        "end": groups,
        "swapped": {"own": 0.6, "the design of another question": 0.0, "its shape, filled in": 0.1},
        "best of 64 random": 0.15,
    }
    return {"arm": "trained", "seed": seed, "temperature 0": part, "temperature 1": part}


def test_tables_of_the_registry():
    """Temperature 0 decides, 1 stands beside it; what was never shown, regret, collapses."""
    results = rows("stagewise", range(2), lambda seed: [0.2, 0.5, 0.8 + seed / 10])
    results |= rows("coupled", range(2), lambda seed: [0.2, 0.9, 0.1, 0.1, 0.1])
    results |= rows("coupled, 50 steps", range(2), lambda seed: [0.2, 0.9, 0.1])
    for seed in range(2):
        results["trained", seed] = measured(seed)
    said = page(registry.STUDY, results)
    for line in (
        "|  |  | executor's gain, designer of the start: +0.105 (+0.041 to +0.169, 2, p 0.03) |",
        "| the best designs (oracle) | 0.55 -> 0.55 (0.55 to 0.55) |",
        "| the best designs, new shapes | 0.75 -> 0.75 (0.75 to 0.75) | 0.50 -> 0.50",
        "| its own designs, new shapes | 0.12 -> 0.12 (0.12 to 0.12) | 0.25 -> 0.25 (0.25 ",
        "| right answers by scripts of unshown shape | | 0.40 -> 0.40 (0.40 to 0.40) |",
        "| 3 steps | 0.20 (0.20 to 0.20) |",
        "| collapsed | stagewise: 0 of 2 | coupled: 2 of 2 | 0.33 |",
        "| ended below their start | stagewise: 0 of 2 | coupled: 2 of 2 | 0.33 |",
    ):
        assert line in said, line
    waiting = said.split("Planned, with fewer than two seeds so far: ")[1].splitlines()[0]
    assert "3: stagewise - executor;" in waiting and "stagewise - coupled;" not in waiting
    (row_of_regret,) = [line for line in said.splitlines() if "(minus regret)" in line]
    assert "-0.205" in row_of_regret
    ((example),) = registry.new_shapes(results)
    # Turns at the end, 0.8 and 0.9; both at once in half of the steps, 0.1.
    (row_of_updates,) = [line for line in said.splitlines() if "at equal updates" in line]
    assert "+0.750" in row_of_updates and "| added later |" in row_of_updates
    assert example["count"] == 3 and example["design"] == "s(Feki)"
    assert registry.new_designs(results) == "- Who?\n  `s(Feki)`"
    assert table(registry.STUDY, {}).count("\n") == 1


# ----------------------------------------------------------------------------------------- the runs


def test_every_arm_is_a_run_that_train_accepts():
    for flags in experiments.FLAGS.values():
        config = cli.flags(Config, f"{experiments.COMMON} {flags}".split(), "")
        launch.check(config, 1)
        assert config.designs * config.executions == 16
    assert {arm for claim in CLAIMS.values() for arm in claim.arms} <= {*ARMS, *DERIVED}
    assert {arm for needed in DERIVED.values() for arm in needed} <= set(ARMS)


def test_learning_rates_are_tried_on_seeds_that_no_comparison_has():
    assert min(DEVELOPMENT_SEEDS) > 10  # --seeds is at most 10
    assert not {*DEVELOPMENT} & {*ARMS}
    rows = {}
    for rate, seed, score in ((0, 100, 0.5), (0, 101, 0.25), (2, 100, 0.75)):
        arm = f"coupled, lr {registry.RATES[rate]}"
        rows[arm, seed] = {"arm": arm, "seed": seed, "evals": [[0, 0, 0.1, score]]}
    assert registry.rates(rows).splitlines()[2:] == ["| coupled | 0.50, 0.25 |  | 0.75 |"]
    assert registry.rates({}) == ""


def test_the_table_of_two_worlds_by_hand():
    arms = "stagewise", "executor", "script with conditions"
    names = [*arms, "designer, frozen executor"]
    names += [f"namesakes, {arm}" for arm in (*arms, "frozen executor")]
    results = {(arm, 0): row(arm, 0, [0.1 * n]) for n, arm in enumerate(names)}
    assert registry.two_worlds(results).splitlines()[2:] == [
        "| own designs, both roles trained in turns | 0.00 | 0.00 | 0.40 | 0.40 |",
        "| own designs, only the designer trained | 0.30 | 0.30 | 0.70 | 0.70 |",
        "| own designs, only the executor trained | 0.10 | 0.10 | 0.50 | 0.50 |",
        "| the script with conditions, with that executor | 0.15 | 0.10 | 0.15 | 0.10 |",
        "| the same, executor trained under it | 0.20 | 0.20 | 0.60 | 0.60 |",
        "| the best designs, only the executor trained | 0.55 | 0.50 | 0.55 | 0.50 |",
    ]
    del results["namesakes, executor", 0]
    assert registry.two_worlds(results) == ""


def test_runs_are_skipped_or_gone_on_with(tmp_path, monkeypatch, caplog):
    """Two workers, real trainings of two steps; the second call has nothing left to do; a row's
    numbers are those of its metrics. The second cold start, here a copy, is built once."""
    small = "--questions 3 --designs 2 --executions 2 --eval-size 2"
    monkeypatch.setattr(experiments, "COMMON", f"--steps 2 --eval-every 1 {small}")
    monkeypatch.setattr(experiments, "ROOT", tmp_path)
    (tmp_path / "train.py").write_text(
        f"import runpy, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
    )
    shutil.copytree(ROOT / "tiny", tmp_path / "tiny")
    (tmp_path / "tiny" / "build.py").write_text(
        f"import shutil, sys\nshutil.copytree({str(ROOT / 'tiny')!r}, sys.argv[-1])\n"
    )
    caplog.set_level("INFO", logger="metaagent")
    arm = "second cold start, stagewise"
    flags = ["--arm", arm, "--seeds", "2", "--results", str(tmp_path / "results")]
    experiments.main([*flags, "--workers", "2"])
    results = experiments.read(tmp_path / "results" / "runs.jsonl")
    assert set(results) == {(arm, 0), (arm, 1)} and "2 runs to do" in caplog.text
    runs = tmp_path / "runs" / "experiments"
    lines = (runs / "second-cold-start-stagewise-0" / "metrics.jsonl").read_text().splitlines()
    first, second = [json.loads(line) for line in lines]
    assert results[arm, 0]["evals"] == [
        [0, 0, first["eval_accuracy"], first["eval_greedy"]],
        [
            2,
            first["tokens"] + second["tokens"],
            second["eval_accuracy"],
            second["eval_greedy"],
        ],
    ]
    caplog.clear()
    experiments.main(flags)
    assert "0 runs to do" in caplog.text
    assert f"| {arm} |" in (tmp_path / "results" / "table.md").read_text()


def test_derived_arms_say_which_models_they_need(tmp_path):
    both = [("stagewise", 3), ("coder agent", 3)]
    assert experiments.needs("voted", 3, tmp_path) == both
    assert experiments.needs("stagewise", 3, tmp_path) == []
    (tmp_path / "stagewise-3").mkdir(parents=True)
    unfinished = [{"step": 0, "eval_fixed": {}}, {"step": 1}]
    write_rows(tmp_path / "stagewise-3" / "metrics.jsonl", unfinished)
    assert experiments.needs("voted", 3, tmp_path) == both
    write_rows(tmp_path / "stagewise-3" / "metrics.jsonl", unfinished[::-1])
    assert experiments.needs("voted", 3, tmp_path) == both[1:]
    assert experiments.needs("trained", 3, tmp_path) == []


def test_new_runs_are_compared_with_the_published(tmp_path, monkeypatch):
    """Published finals have mean 0.52 and standard deviation 0.0158: a run is expected within
    2.776 * 0.0158 * sqrt(1 + 1/5) of it."""
    published = []
    for seed in range(5):
        published.append(row("coupled", seed, [0.2, *[0.5 + seed / 100] * 3]))
    write_rows(tmp_path / "runs.jsonl", published)
    monkeypatch.setattr(experiments, "PUBLISHED", tmp_path / "runs.jsonl")
    new = {
        ("coupled", 1): row("coupled", 1, [0.2, 0.56, 0.56, 0.56]),
        ("coupled", 2): row("coupled", 2, [0.2, 0.6, 0.6, 0.6]),
        ("executor", 0): row("executor", 0, [0.2, 0.5, 0.5, 0.5]),
    }
    near, far = experiments.compare(new).splitlines()
    assert ", as expected (0.472 to 0.568" in near and "NOT as expected" in far
    assert "by 5 published seeds, mean 0.520" in near


def test_a_derived_arm_gets_the_models_that_it_lacks(tmp_path, monkeypatch):
    """Its trainings run first, each once; rows that exist are not written twice."""
    ran = []

    def run(arm, seed, folder):
        ran.append(arm)
        return measured(seed) if arm in DERIVED else row(arm, seed, [0.2, 0.5, 0.8])

    monkeypatch.setattr(experiments, "run", run)
    monkeypatch.setattr(experiments, "ROOT", tmp_path)
    monkeypatch.setattr(experiments, "publish", lambda study, results, folder: None)
    out = tmp_path / "results"
    out.mkdir()
    write_rows(out / "runs.jsonl", [row("stagewise", 0, [0.1, 0.2])])
    flags = ["--seeds", "1", "--results", str(out)]
    experiments.main(["--claim", "2", *flags])
    assert ran == ["stagewise", "trained"]
    written = [json.loads(line)["arm"] for line in (out / "runs.jsonl").read_text().splitlines()]
    assert written == ["stagewise", "trained"]
    experiments.main(["--arm", "coupled", *flags])
    assert ran[2:] == ["coupled"]


def test_what_is_started_is_stopped(tmp_path, monkeypatch):
    """One command fails while another runs: the other is ended at once, and no third begins."""
    monkeypatch.setattr(experiments, "ROOT", tmp_path)
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\n")
    experiments.STOPPED.clear()
    threads = concurrent.futures.ThreadPoolExecutor(1)
    slow = threads.submit(experiments.execute, ["slow.py"])
    while not experiments.RUNNING and not slow.done():
        time.sleep(0.01)
    began = time.monotonic()
    experiments.stop()
    with pytest.raises(UserError, match="killed"):
        slow.result()
    with pytest.raises(UserError, match="stopped"):
        experiments.execute(["slow.py"])
    assert time.monotonic() - began < 20 and not experiments.RUNNING
    experiments.STOPPED.clear()


class Programs:
    """train.py, eval.py and trained.py that answer at once; flags are checked as the real ones'."""

    def __init__(self):
        self.configs = []
        self.infra_errors = 0

    def execute(self, command, *_):
        program, *arguments = [str(word) for word in command]
        if program == "-m":
            assert arguments.pop(0) == "experiments.trained"
        out = pathlib.Path(arguments[arguments.index("--out") + 1])
        config_class = {
            "eval.py": evaluation.Config,
            "-m": trained.Config,
            "train.py": Config,
        }[program]
        config = cli.flags(config_class, arguments, "")
        self.configs.append(config)
        out.parent.mkdir(parents=True, exist_ok=True)
        if program == "-m":
            out.write_text(json.dumps(measured(config.seed)))
        elif program == "train.py":
            launch.check(config, world=1)
            out.mkdir()
            row = {"infra_errors": 0, "statuses": {}, "eval_fixed": {}}
            write_rows(out / "metrics.jsonl", [row, row])
        else:
            out.mkdir()
            self.evaluate(config, out)

    def evaluate(self, config, out):
        results = []
        prices = evaluation.parse_prices(config.prices)
        modes = []
        for mode in config.modes.split(","):
            modes += map(name_at, prices) if mode == "metaagent" else [mode]
        for number, mode in enumerate(modes):
            evaluation.check(config)
            evaluation.load_sets(config)
            results.append(
                {
                    "mode": mode if mode.startswith("metaagent") else f"{mode} (k=3)",
                    "accuracy": number / 10 + ("coder" in config.model) / 100,
                    "calls": 2.0,
                    "tokens": 40.0 + number,
                    "prompt_tokens": 90.0,
                    "infra_errors": self.infra_errors,
                }
            )
        (out / "results.json").write_text(json.dumps({"results": results}))


def test_derived_arms_ask_for_what_they_measure(tmp_path, monkeypatch):
    """Each command's flags are ones that the program takes, each number lands in its place."""
    programs = Programs()
    monkeypatch.setattr(experiments, "execute", programs.execute)
    said = experiments.run("trained", 3, tmp_path)
    assert said["arm"] == "trained" and said["seed"] == 3 and "temperature 0" in said
    voted = experiments.run("voted", 3, tmp_path)
    assert (voted["own"], voted["votes"], voted["votes with the tool"]) == (0.0, 0.1, 0.2)
    assert voted["votes of the agent"] == 0.01
    assert voted["tokens"]["votes with the tool"] == 42.0
    measured_model, own_model, agent = (config.model for config in programs.configs)
    assert measured_model == own_model and own_model.endswith("stagewise-3/checkpoint")
    assert agent.endswith("coder-agent-3/checkpoint")
    assert programs.configs[-1].vote_tokens == 40.0
    assert all(config.seed == 3 for config in programs.configs)
    priced = experiments.run("priced", 3, tmp_path)
    assert [priced["temperature 0"][price]["tokens"] for price in ("0", "10", "20")] == [40, 41, 42]
    training, *fronts = programs.configs[-3:]
    assert training.model == own_model and training.price == (0, 0, 10, 20)
    assert [config.temperature for config in fronts] == [0, 1]
    assert all(config.model.endswith("priced-3/checkpoint") for config in fronts)
    programs.infra_errors = 1
    with pytest.raises(UserError, match="1 answers failed"):
        experiments.evaluate(tmp_path / "spoiled", "--modes", "metaagent")


# ---------------------------------------------------------------------------- the published results


@pytest.mark.parametrize("study", experiments.STUDIES, ids=lambda study: study.folder.name)
def test_tables_and_figures_are_drawn_from_the_published_runs(study, tmp_path):
    results = experiments.read(study.folder / "runs.jsonl")
    assert page(study, results) == (study.folder / "table.md").read_text().strip()
    if study is registry.STUDY:
        readme = experiments.README.read_text()
        claims = re.search(r"<!-- claims -->\n(.*?)\n<!-- /claims -->", readme, re.DOTALL)[1]
        assert claims == page(study, results)
    experiments.draw(study, results, tmp_path)
    drawn = {path.name: path for path in tmp_path.glob("*.svg")}
    assert drawn and set(drawn) == {path.name for path in study.folder.glob("*.svg")}

    def shapes(path):  # paths and texts, without what differs between releases of matplotlib
        return re.findall(r' d="([^"]+)"', path.read_text())

    for name, path in drawn.items():
        assert shapes(path) == shapes(study.folder / name), name


def test_the_oracle_owes_nothing_to_hindsight():
    """Each family's best design, chosen by the other seeds' answers, scores what the best on the
    seed's own does."""
    published = experiments.read(arithmetic.STUDY.folder / "runs.jsonl")
    stagewise = [row for (arm, _), row in published.items() if arm == "stagewise"]
    for when in ("before", "after"):
        for row in stagewise:
            own_scores = row[when]["eval_fixed_families"]
            others = [other[when]["eval_fixed_families"] for other in stagewise if other is not row]
            accuracy = 0.0
            for family, share in weights(row[when]).items():

                def total(name, family=family):
                    return sum(scores[name][family] for scores in others)

                chosen = max(own_scores, key=total)
                accuracy += share * own_scores[chosen][family]
            assert oracle(row[when]) == pytest.approx(accuracy)


def test_what_the_page_says_of_its_verdicts():
    """Of every comparison with a verdict all seeds have one sign; with five seeds verdicts are the
    same; what was added later would cost claim 3 its two."""
    results = experiments.read(registry.STUDY.folder / "runs.jsonl")

    def verdicts(results, later=False):
        claims = {}
        for number, claim in CLAIMS.items():
            comparisons = [c if later else replace(c, added_later=False) for c in claim.comparisons]
            claims[number] = replace(claim, comparisons=tuple(comparisons))
        study = replace(registry.STUDY, claims=claims)
        return {c.what: (judged, d) for _, c, d, judged in decide(study, results)}

    found = verdicts(results, later=True)
    for what, (judged, differences) in found.items():
        if judged in ("holds", "does not"):
            assert len({difference > 0 for difference in differences}) == 1, what
    five = verdicts({place: row for place, row in results.items() if place[1] < 5}, later=True)
    assert {what: judged for what, (judged, _) in five.items()} == {
        what: judged for what, (judged, _) in found.items()
    }
    lost = {what for what, (judged, _) in verdicts(results).items() if found[what][0] != judged}
    assert {what for what in lost if found[what][0] in ("holds", "does not")} == {
        "stagewise - coupled",
        "stagewise - coupled, KL",
    }


@pytest.mark.parametrize("flags", [["--claim", "99"], ["--seeds", "0"], ["--arm", "none"]])
def test_bad_flags(flags):
    with pytest.raises(UserError, match="--(claim|seeds|arm)"):
        experiments.main(flags)
