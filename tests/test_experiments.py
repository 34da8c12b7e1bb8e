"""The claims' runner: what a run leaves, what the numbers mean, what is skipped, what is drawn."""
import concurrent.futures
import json
import pathlib
import re
import sys
import time

import pytest
import torch
from conftest import ROOT

import cli
import credit
import experiments
import runs
from claims import ARMS, CLAIMS, DERIVED, Comparison, choices, collapsed, final, interval, noise, oracle, own, page, scores, variances, verdict, weights


def row(arm, seed, curve, tokens=100):
    part = {"eval_families": {"a": {"accuracy": curve[-1], "designs": {"vote": 3}}, "b": {"accuracy": 0.5, "designs": {"single": 1}}},
            "eval_fixed": {"x": 0.4, "y": 0.6}, "eval_fixed_families": {"x": {"a": 0.2, "b": 1.0}, "y": {"a": 0.8, "b": 0.0}}}
    return {"arm": arm, "seed": seed, "flags": "", "evals": [[10 * i, tokens * i, accuracy] for i, accuracy in enumerate(curve)], "before": part, "after": part,
            "variance": {"between": 0.1, "within": 0.2}, "seconds": 1}


def test_the_numbers():
    one = row("x", 0, [0.0, 0.2, 0.8, 0.4, 0.3, 0.2])
    assert final(one) == pytest.approx(0.3) and final(one, 250) == pytest.approx((0.8 + 0.7 + 0.6) / 3) and collapsed(one) == 1.0 and collapsed(row("x", 0, [0.2, 0.4, 0.4])) == 0.0
    assert oracle(one["after"]) == pytest.approx(0.75 * 0.8 + 0.25 * 1.0) and own(one["after"]) == pytest.approx(0.75 * 0.2 + 0.25 * 0.5)
    from math import sqrt
    mean, low, high = interval([0.0, 0.1, 0.2, 0.3, 0.4])  # t of 4 degrees of freedom: 2.776
    assert mean == pytest.approx(0.2) and high - mean == pytest.approx(2.776 * sqrt(0.025) / sqrt(5)) and low == pytest.approx(2 * mean - high)
    other = row("y", 0, [0.0, 0.1])["after"] | {"eval_families": {"a": {"accuracy": 0.9, "designs": {}}, "b": {"accuracy": 0.1, "designs": {}}}}
    assert own(one["after"], other) == pytest.approx(0.75 * 0.9 + 0.25 * 0.5)
    assert [verdict(0.1, 0.2), verdict(-0.2, -0.1), verdict(-0.1, 0.1)] == ["holds", "does not", "can't be told"]


def test_pairs_are_of_one_seed_and_at_equal_tokens():
    results = {("stagewise", seed): row("stagewise", seed, [0.0, 0.8, 0.8, 0.9 + seed / 10]) for seed in range(3)}
    results |= {("designer", seed): row("designer", seed, [0.0, 0.25, 0.25, 0.25], tokens=50) for seed in (0, 2)}
    assert CLAIMS[1].comparisons[0].over_seeds(results, range(3)) == pytest.approx([0.8 - 0.25] * 2)  # both at 120 to 150 tokens, and no seed 1
    results |= {("coupled", seed): row("coupled", seed, [0.0, 0.8, 0.8, 0.9 + seed / 10], tokens=100.1) for seed in range(3)}  # a few tokens more are no handicap
    assert CLAIMS[3].comparisons[0].over_seeds(results, range(3)) == pytest.approx([0.0] * 3, abs=1e-3)


def test_every_arm_is_a_run_that_train_accepts():
    import train
    for arm, flags in ARMS.items():
        config = cli.flags(train.Config, f"{experiments.COMMON} {flags}".split(), "")
        runs.check(config, 1)
        assert config.designs * config.executions == (8 if arm == "8 x 1" else 16)
    assert {arm for claim in CLAIMS.values() for arm in claim.arms} == {*ARMS, *DERIVED}


def test_runs_are_skipped_or_gone_on_with(tmp_path, monkeypatch, caplog):
    """Two workers, real trainings of two steps; the second call has nothing left to do; a row's numbers are those of its metrics."""
    monkeypatch.setattr(experiments, "COMMON", "--eval-every 1 --threads 1 --steps 2 --questions 3 --designs 2 --executions 2 --eval-size 8")
    monkeypatch.setattr(experiments, "HERE", tmp_path)
    (tmp_path / "train.py").write_text(f"import runpy, sys\nsys.path.insert(0, {str(ROOT)!r})\nrunpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n")
    caplog.set_level("INFO", logger="metaagent")
    experiments.main(["--claim", "1", "--seeds", "1", "--results", str(tmp_path / "results"), "--workers", "2"])
    rows = experiments.read(tmp_path / "results" / "runs.jsonl")
    assert set(rows) == {("stagewise", 0), ("designer", 0), ("designer, frozen executor", 0)} and "3 runs to do" in caplog.text
    metrics = [json.loads(line) for line in (tmp_path / "runs" / "experiments" / "designer-0" / "metrics.jsonl").read_text().splitlines()]
    assert rows["designer", 0]["evals"] == [[0, 0, metrics[0]["eval_before"]], [2, metrics[0]["tokens"] + metrics[1]["tokens"], metrics[1]["eval_accuracy"]]]
    caplog.clear()
    experiments.main(["--claim", "1", "--seeds", "1", "--results", str(tmp_path / "results")])
    assert "0 runs to do, 3 done" in caplog.text and (tmp_path / "results" / "claim-1.svg").read_text().startswith("<?xml")


def test_the_noise_of_advantages_is_what_a_simulation_says():
    """Rewards of a known law, many trees: the share of luck in a design's mean, the variance of a gradient and of the baseline, counted and by `noise`."""
    generator, b, w, M, N = torch.Generator().manual_seed(0), 0.04, 0.16, 4, 4
    quality = 0.5 + b ** 0.5 * torch.randn(20_000, 16, 1, generator=generator)
    rewards = quality + w ** 0.5 * torch.randn(20_000, 16, 16, generator=generator)
    between, within = credit.variance_split(rewards)
    designer, update, executor = noise({"between": between, "within": within}, M, N)
    means = rewards[:, :M, :N].mean(2)
    assert designer == pytest.approx(((means - quality[:, :M, 0]).var() / means.var()).item(), rel=0.03) == pytest.approx((w / N) / (b + w / N), rel=0.03)
    assert executor == pytest.approx((means.mean(1).var() / (b + w)).item(), rel=0.05)
    independent = torch.randn(20_000, 16, generator=generator)  # where all of the variance is noise, and the mean is known: cov(quality, direction) (1 - 1/M)
    noisy = [(((r - r.mean(1, keepdim=True)) * independent[:, :m]).mean(1).var() / (1 - 1 / m) ** 2).item() for r, m in ((means, M), (rewards[:, :, 0], M * N))]
    assert update == pytest.approx(noisy[0] / noisy[1], rel=0.05) == pytest.approx((b + w / N) / (M - 1) * (M * N - 1) / (b + w), rel=0.05)


def test_tables_of_choices_and_noise():
    results = {("stagewise", seed): row("stagewise", seed, [0.2, 0.5, 0.8]) for seed in range(2)}
    results |= {("variance", seed): {"arm": "variance", "seed": seed, "steps": {step: {"between": 0.05, "within": 0.1} for step in ("0", "100")}} for seed in range(2)}
    assert "| a | vote 100% | 0.80 (0.80 to 0.80) | 0.80 (0.80 to 0.80), mostly y |" in choices(results) and choices({}) == variances({}) == ""
    line = next(line for line in variances(results).splitlines() if line.startswith("| designer"))
    *shares, last = [cell.split()[0] for cell in line.split("|")[2:-1]]
    shares = [float(share) for share in shares]
    assert variances(results).count("relative variance of its gradient, 16 x 1 being 1") == 2 and "being 1, after 0 steps | 1.00 " in variances(results)
    assert last == "-" and len(shares) == 4 and shares == sorted(shares, reverse=True)  # more executions of a design, less luck in its mean
    assert page(results).count("\n\n") == 3
    results["designer", 0] = row("designer", 0, [0.1, 0.9, 0.2, 0.1, 0.1])
    assert scores(results).splitlines()[2:] == ["| stagewise | `--keep-every 50` | 0 | 0.50 (0.50 to 0.50) | 0.80 (0.80 to 0.80) | 0 of 2 |",
                                                "| designer | `--stage designer` | 0 | 0.13 | 0.90 | 1 of 1 |"] and scores({}) == ""


def test_derived_arms_say_which_models_they_need(tmp_path):
    assert experiments.needs("voted", 3, tmp_path) == [("stagewise", 3), ("single agent", 3)] and experiments.needs("stagewise", 3, tmp_path) == []
    (tmp_path / "stagewise-3" / "steps" / "100").mkdir(parents=True)
    assert experiments.needs("voted", 3, tmp_path) == [("single agent", 3)] and experiments.needs("variance", 3, tmp_path) == []
    out = experiments.place("single agent", 3, tmp_path)
    assert not experiments.finished(out)
    out.mkdir()
    (out / "config.json").write_text('{"steps": 2}')
    (out / "metrics.jsonl").write_text("{}\n")
    assert not experiments.finished(out)
    (out / "metrics.jsonl").write_text("{}\n{}\n")
    assert experiments.finished(out)


def test_new_runs_are_compared_with_the_published(tmp_path, monkeypatch):
    published = {("coupled", seed): row("coupled", seed, [0.2, *[0.5 + seed / 100] * 3]) for seed in range(5)}  # mean 0.52, standard deviation 0.0158
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in published.values()))
    monkeypatch.setattr(experiments, "PUBLISHED", tmp_path / "runs.jsonl")
    new = {("coupled", 0): published["coupled", 0], ("coupled", 1): row("coupled", 1, [0.2, 0.56, 0.56, 0.56]), ("coupled", 2): row("coupled", 2, [0.2, 0.6, 0.6, 0.6])}
    first, second, third = experiments.compare(new).splitlines()
    assert "the same run as published" in first and "0.520 (0.500 to 0.540, 5 seeds)" in first
    assert ", as expected of another run, 0.472 to 0.568" in second and "NOT as expected" in third  # 0.52 -+ 2.776 * 0.0158 * sqrt(1 + 1/5)


def test_a_derived_arm_gets_the_models_that_it_lacks(tmp_path, monkeypatch):
    """Its trainings run first, each once; a finished one without the models is made again; rows that exist are not written twice."""
    ran = []

    def run(arm, seed, folder):
        ran.append(arm)
        return {"arm": arm, "seed": seed, "steps": {step: {"between": 0.1, "within": 0.1} for step in ("0", "100")}} if arm in DERIVED else row(arm, seed, [0.2, 0.5, 0.8])

    monkeypatch.setattr(experiments, "run", run)
    monkeypatch.setattr(experiments, "HERE", tmp_path)
    monkeypatch.setattr(experiments, "CLAIMS", {2: experiments.CLAIMS[4]})  # variance, of stagewise
    monkeypatch.setattr(experiments, "publish", lambda results, folder: None)
    out = tmp_path / "results"
    out.mkdir()
    (out / "runs.jsonl").write_text("".join(json.dumps(row(arm, 0, [0.1, 0.2])) + "\n" for arm in ("stagewise", "16 x 1", "4 x 4", "2 x 8", "1 x 16", "8 x 1")))
    place = experiments.place("stagewise", 0, tmp_path / "runs" / "experiments")
    place.mkdir(parents=True)
    (place / "config.json").write_text('{"steps": 1}')
    (place / "metrics.jsonl").write_text("{}\n")
    experiments.main(["--claim", "2", "--seeds", "1", "--results", str(out)])
    assert ran == ["stagewise", "variance"] and not place.exists()
    assert [json.loads(line)["arm"] for line in (out / "runs.jsonl").read_text().splitlines()][-2:] == ["8 x 1", "variance"]


def test_what_is_started_is_stopped(monkeypatch):
    """One command fails while another runs: the other is ended at once, and no third begins."""
    experiments.STOPPED.clear()
    threads = concurrent.futures.ThreadPoolExecutor(1)
    slow = threads.submit(experiments.execute, [sys.executable, "-c", "import time; time.sleep(60)"])
    while not experiments.RUNNING and not slow.done():
        time.sleep(0.01)
    began = time.monotonic()
    experiments.stop()
    with pytest.raises(experiments.BadInput, match="killed"):
        slow.result()
    with pytest.raises(experiments.BadInput, match="stopped"):
        experiments.execute([sys.executable, "-c", ""])
    assert time.monotonic() - began < 20 and not experiments.RUNNING
    experiments.STOPPED.clear()


def test_derived_arms_ask_for_what_they_measure(tmp_path, monkeypatch):
    """With programs that answer at once: each command's flags are ones that the program takes, each number lands in its place."""
    import eval as evaluation
    import train
    commands, spoiled = [], 0

    def program(command):
        name, config = pathlib.Path(command[1]).name, None
        out = pathlib.Path(command[command.index("--out") + 1])
        out.mkdir(parents=True)
        if name == "train.py":
            config = cli.flags(train.Config, command[2:], "")
            runs.check(config, 1)
            (out / "metrics.jsonl").write_text(json.dumps(
                {"variance_between_designs": 0.1 + config.seed, "variance_within_designs": 0.2, "infrastructure": spoiled, "statuses": {"answered": 512}}) + "\n")
        else:
            config = cli.flags(evaluation.Config, command[2:], "")
            score = sum(int(digit) for digit in re.findall(r"steps/(\d+)", f"{config.designer} {config.model}")) / 1000
            rows = [{"mode": "metaagent", "accuracy": score, "tokens": 40.0, "infrastructure": 0},
                    {"mode": "self-consistency (k=3)", "accuracy": score / 2, "tokens": 39.0, "infrastructure": spoiled}]
            (out / "results.json").write_text(json.dumps({"results": rows}))
        commands.append((name, config))

    monkeypatch.setattr(experiments, "execute", program)
    crossed, variance, voted = (experiments.run(arm, 3, tmp_path) for arm in DERIVED)
    assert crossed["matrix"]["100"]["50"] == 0.15 and crossed["matrix"]["0"]["0"] == 0.0 and [len(part) for part in crossed["matrix"].values()] == [3, 3, 3]
    assert variance["steps"]["100"] == {"between": 3.1, "within": 0.2} and commands[10][1].model.endswith("stagewise-3/steps/100")
    assert (voted["metaagent"], voted["self_consistency"], voted["single_self_consistency"]) == (0.1, 0.05, 0.25) and commands[-1][1].vote_tokens == 40.0
    assert all(config.seed == 3 and config.threads == 1 for _, config in commands) and crossed["arm"] == "crossed" and crossed["seed"] == 3
    spoiled = 1
    with pytest.raises(experiments.BadInput, match="1 executions failed"):
        experiments.run("variance", 3, tmp_path)
    with pytest.raises(experiments.BadInput, match="1 answers failed"):
        experiments.evaluate("", tmp_path / "spoiled")


@pytest.mark.skipif(not experiments.PUBLISHED.exists(), reason="no results are published yet")
def test_the_readme_and_figures_are_drawn_from_the_published_runs(tmp_path):
    results = experiments.read(experiments.PUBLISHED)
    table = re.search(r"<!-- claims -->\n(.*?)\n<!-- /claims -->", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert table == page(results) == (ROOT / "results" / "table.md").read_text().strip()
    experiments.draw(results, tmp_path)
    drawn = {path.name: path for path in tmp_path.glob("*.svg")}
    assert set(drawn) == {path.name for path in (ROOT / "results").glob("*.svg")} and drawn

    def shapes(path):  # paths and texts, without what differs between releases of matplotlib
        return re.findall(r' d="([^"]+)"', path.read_text())

    assert all(shapes(path) == shapes(ROOT / "results" / name) for name, path in drawn.items())


@pytest.mark.skipif(not experiments.PUBLISHED.exists(), reason="no results are published yet")
def test_the_oracle_owes_nothing_to_hindsight():
    """Of the published runs: each family's best design, chosen by the other seeds' answers, scores what the best on the seed's own does."""
    rows = [row for (arm, _), row in experiments.read(experiments.PUBLISHED).items() if arm == "stagewise"]
    for when in ("before", "after"):
        for row in rows:
            score = {family: {name: sum(other[when]["eval_fixed_families"][name][family] for other in rows if other is not row) for name in row[when]["eval_fixed"]}
                     for family in row[when]["eval_families"]}
            chosen = {family: row[when]["eval_fixed_families"][max(names, key=names.get)][family] for family, names in score.items()}
            assert oracle(row[when]) == pytest.approx(sum(share * chosen[family] for family, share in weights(row[when]).items()))


def test_bad_flags(capsys):
    for flags in (["--claim", "9"], ["--seeds", "0"], ["--seeds", "99"]):
        with pytest.raises(experiments.BadInput, match="--claim"):
            experiments.main(flags)
    assert isinstance(CLAIMS[6].comparisons[0], Comparison)
