"""A run's folder: checkpoint, metrics, episodes, curves.

    config.json      the flags, all of them
    metrics.jsonl    one line a step
    episodes.jsonl   whole runs: designs, calls, tools, answers, rewards and advantages of one question a step
    curves.png       reward by role, held-out accuracy, designs, outcomes, with the stages as bands
    report.html      the same and more as a page (pages.py), written anew while the run goes on; episodes/ has the pages that it links
    steps/N/         with --keep-every: the model after N steps, a Hugging Face folder
    checkpoint/      a Hugging Face folder plus trainer.pt: optimiser, random state, step, config; with --policies two the executor's, and checkpoint/designer

A checkpoint is written beside the old one and swapped in by renames: a kill at any moment leaves a whole one, the new or the
old. On --resume, lines of steps after the checkpoint are dropped, so that the files read as if nothing had happened.
Test: `pytest tests/test_train.py`.
"""
import json
import math
import os
import pathlib
import shutil
import time
from collections import Counter
from dataclasses import asdict, fields, replace

import torch
from safetensors import SafetensorError

from cli import atomic_write, flags, log
from designer import FIXED, structure
from learner import all_reduce
from pages import whole_lines
from scores import score
from tasks import BadInput


# ------------------------------------------------------------------------------------------------------------- the folder

def resolve(config_class, argv, description: str, presets: dict):
    """The flags: those that are given, else the preset's; a resumed run starts from those that it was started with. Raises BadInput."""
    config = flags(config_class, argv, description)
    if not config.resume:
        config = flags(config_class, argv, description, default=presets[config.preset])
        return config if config.out else replace(config, out=f"runs/{time.strftime('%Y%m%d-%H%M%S')}")
    if config.out is None:
        raise BadInput("--resume needs --out, the folder of the run to go on with")
    saved = read_config(pathlib.Path(config.out), config_class)
    config = flags(config_class, argv, description, default=saved)
    free = {"steps", "eval_every", "eval_fixed", "save_every", "keep_every", "threads", "tracker", "out", "resume", "data_dir", "batch_tokens", "checkpointing", "gpu_memory"}
    changed = [field.name for field in fields(config_class)
               if field.name not in free and getattr(config, field.name) != getattr(saved, field.name)]
    if changed:
        raise BadInput(f"--resume: {', '.join('--' + name.replace('_', '-') for name in changed)} can't change within a run")
    return config


def check(config, world: int) -> None:
    """Refuse what can't work, before anything is loaded. Raises BadInput."""
    for name in "steps questions designs executions phase_steps design_tokens reply_tokens max_calls batch_tokens execution_tokens train_size eval_size".split():
        if getattr(config, name) < 1:
            raise BadInput(f"--{name.replace('_', '-')} {getattr(config, name)}: must be at least 1")
    for name in ("eval_every", "save_every", "keep_every", "threads", "kl", "anchor", "weight_decay", "max_length", "gpus"):
        if not getattr(config, name) >= 0:
            raise BadInput(f"--{name.replace('_', '-')} {getattr(config, name)}: must be 0 or more")
    for name in ("lr", "grad_clip", "clip_low", "clip_high", "execution_seconds", "gpu_gb"):
        if not 0 < getattr(config, name) < math.inf:
            raise BadInput(f"--{name.replace('_', '-')} {getattr(config, name)}: must be a positive number")
    if config.dual_clip is not None and not config.dual_clip > 1:
        raise BadInput(f"--dual-clip {config.dual_clip}: must be above 1")
    if not config.importance_cap >= 0:
        raise BadInput(f"--tis {config.tis}: a cap of importance weights, or 0 for none")
    if not 0 < config.gpu_memory < 1:
        raise BadInput(f"--gpu-memory {config.gpu_memory}: a share, between 0 and 1")
    if config.fixed_design is not None and (config.fixed_design not in FIXED or config.stage != "executor"):
        raise BadInput(f"--fixed-design {config.fixed_design}: one of {', '.join(FIXED)}, and with --stage executor: nobody designs")
    if config.policies == "two" and (config.engine != "hf" or config.shard):
        raise BadInput("--policies two: works with --engine hf and without --shard")
    if config.questions % world:
        raise BadInput(f"--questions {config.questions} does not divide by the {world} ranks; try {-(-config.questions // world) * world}")


def open_folder(config, rank: int) -> pathlib.Path:
    """The run's folder; a new run never writes over an old one."""
    out = pathlib.Path(config.out)
    if rank == 0 and not config.resume and (out / "metrics.jsonl").exists():
        raise BadInput(f"--out {out}: holds a run already; add --resume to go on with it, or name another folder")
    if rank == 0 and (out / "config.json").exists() and "phase_steps" not in (out / "config.json").read_text():
        raise BadInput(f"--out {out}: its config.json is not a run's; name another folder")
    if rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        atomic_write(out / "config.json", json.dumps(asdict(config), indent=1) + "\n")
    return out


def report(out: pathlib.Path) -> None:
    """The last lines of a run: held-out accuracy before and after, and what each role became."""
    rows = [json.loads(line) for line in whole_lines(out / "metrics.jsonl")]
    first, last = rows[0], rows[-1]
    if "eval_accuracy" not in last:
        return
    if "eval_fixed" in last:
        log.info("held-out accuracy by fixed design: " + ", ".join(f"{name} {score:.2f}" for name, score in last["eval_fixed"].items()))
    for family, part in last["eval_families"].items():
        log.info(f"designs for {family}: " + ", ".join(f"{kind} {count}" for kind, count in part["designs"].items()) + f"; accuracy {part['accuracy']:.2f}")
    log.info(f"held-out accuracy before {first.get('eval_before', first['eval_accuracy']):.3f}, after {last['eval_accuracy']:.3f}   ({out})")


# ----------------------------------------------------------------------------------------------------------- checkpoints

def save(out: pathlib.Path, parts: list, step: int) -> None:
    """Write `out`/checkpoint: `step` updates are done. parts: (learner.Learner, its state()) of the shared model, or of the executor's and the designer's, which
    goes into checkpoint/designer. Raises BadInput (disk full) and then leaves the old one in place."""
    new, current, old = (out / name for name in ("checkpoint.new", "checkpoint", "checkpoint.old"))
    shutil.rmtree(new, ignore_errors=True)
    try:
        for folder, (learner, state) in zip((new, new / "designer"), parts):
            learner.policy.save(folder, state["weights"])
            torch.save({"optimizer": state["optimizer"], "phase": state["phase"], "rng": torch.get_rng_state(), "step": step,
                        "config": asdict(learner.config)}, folder / "trainer.pt")
            _sync(folder)
    except (RuntimeError, OSError, SafetensorError) as error:  # a full disk has three names
        shutil.rmtree(new, ignore_errors=True)
        raise BadInput(f"{out}: the checkpoint of step {step} could not be written ({str(error)[:120]})") from error
    if current.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(current, old)  # a kill here leaves `old`, which `find` knows
    os.rename(new, current)
    shutil.rmtree(old, ignore_errors=True)


def keep(out: pathlib.Path, step: int) -> None:
    """Keep the model of the checkpoint just written as `out`/steps/`step`. Raises BadInput (disk full) and then leaves what was there."""
    folder = out / "steps" / str(step)
    new = folder.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        shutil.copytree(find(out), new, ignore=shutil.ignore_patterns("trainer.pt"))
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        raise BadInput(f"{folder}: could not be written ({str(error)[:120]})") from error
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(new, folder)


def _sync(folder):
    for path in (path for path in folder.iterdir() if path.is_file()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def find(out: pathlib.Path) -> pathlib.Path | None:
    """The newest whole checkpoint of a run; None if it was stopped before its first."""
    folders = [folder for folder in (out / "checkpoint", out / "checkpoint.old") if (folder / "trainer.pt").is_file()]
    return folders[0] if folders else None


def read_config(out: pathlib.Path, config_class):
    """The flags that a run was started with. Raises BadInput."""
    try:
        return config_class(**json.loads((out / "config.json").read_text()))
    except (OSError, ValueError, TypeError):
        raise BadInput(f"--resume: no run in {out} (it has no readable config.json)") from None


def read(folder: pathlib.Path) -> dict:
    """The trainer's state in a checkpoint. Raises BadInput if it can't be read."""
    try:
        state = torch.load(folder / "trainer.pt", map_location="cpu", weights_only=True)
        if not {"optimizer", "rng", "step", "config", "phase"} <= set(state):
            raise ValueError("parts are missing")
        return state
    except Exception as error:  # the boundary to pickle and zip, whose errors have no other common base
        raise BadInput(f"{folder / 'trainer.pt'}: a corrupt checkpoint ({type(error).__name__})") from None


def restore(state: dict, learner) -> int:
    """Load all but the weights (they are the checkpoint's model) into learner.Learner; returns the number of steps done."""
    learner.restore(state)
    torch.set_rng_state(state["rng"])
    return state["step"]


# --------------------------------------------------------------------------------------------------------------- records

class Records:
    """The two JSONL files of a run, appended to line by line. A resumed run first drops what came after its checkpoint."""

    def __init__(self, out: pathlib.Path, step: int, tracker: str = "none"):
        self.out, self.files, self.send = out, {}, open_tracker(tracker, out)
        for name in ("metrics", "episodes"):
            path = out / f"{name}.jsonl"
            kept = [line for line in whole_lines(path) if json.loads(line)["step"] < step] if path.exists() else []
            atomic_write(path, "".join(line + "\n" for line in kept))
            self.files[name] = open(path, "a", encoding="utf-8")
        for page in (out / "episodes").glob("*.html"):
            if int(page.stem) >= step:
                page.unlink()

    def write(self, name: str, row: dict) -> None:
        self.files[name].write(json.dumps(row) + "\n")
        self.files[name].flush()
        if name == "metrics":
            self.send({key: value for key, value in row.items() if isinstance(value, (int, float))}, row["step"])

    def amend(self, found: dict) -> None:
        """Add an evaluation to the last line of the metrics. The first line keeps the one from before the training, if it is also the last."""
        *earlier, last = whole_lines(self.out / "metrics.jsonl")
        row = json.loads(last)
        if row["step"] == 0:
            found = {"eval_before": row.get("eval_before", row["eval_accuracy"]), **found}
        self.files["metrics"].close()
        atomic_write(self.out / "metrics.jsonl", "".join(line + "\n" for line in (*earlier, json.dumps(row | found))))
        self.files["metrics"] = open(self.out / "metrics.jsonl", "a", encoding="utf-8")
        self.send({"eval_accuracy": found["eval_accuracy"]}, row["step"])

    def close(self) -> None:
        for file in self.files.values():
            file.close()


def open_tracker(name: str, out: pathlib.Path):
    """A function (metrics, step) that sends numbers to TensorBoard or Weights & Biases. Raises BadInput if it is not installed."""
    if name == "none":
        return lambda metrics, step: None
    try:
        if name == "wandb":
            import wandb
            return wandb.init(project="metaagent-x", name=out.name, dir=out).log
        from torch.utils.tensorboard import SummaryWriter
        writer = SummaryWriter(out / "tensorboard")
        return lambda metrics, step: [writer.add_scalar(key, value, step) for key, value in metrics.items()]
    except ImportError:
        raise BadInput(f"--tracker {name}: it is not installed; pip install {name}") from None


# --------------------------------------------------------------------------------------------------------------- metrics

def facts(trees) -> list[dict]:
    """One small row per execution, enough for every metric: what travels between ranks."""
    return [{"question": f"{tree.question.family}:{tree.question.id}", "family": tree.question.family, "m": m, "structure": structure(design.script),
             "status": execution.status, "runs": execution.status not in ("invalid_script", "crashed"),
             "reward": tree.rewards_M_N[m, n].item(), "score": score(tree.question, tree.rewards_M_N[m, n].item()),  # score: what it counts in an evaluation
             "calls": len(execution.calls), "agents": len({call.agent for call in execution.calls}),
             "design_entropy": -mean(design.logprobs), "call_entropy": -mean(p for call in execution.calls for p in call.logprobs)}
            for tree in trees for m, design in enumerate(tree.designs) for n, execution in enumerate(tree.executions[m])]


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def by_family(rows: list[dict]) -> dict:
    """Of each family of questions: the accuracy, and how often each kind of design was chosen."""
    parts = {family: [row for row in rows if row["family"] == family] for family in sorted({row["family"] for row in rows})}
    return {family: {"accuracy": mean(row["reward"] for row in part), "designs": dict(Counter(row["structure"] for row in part).most_common())}
            for family, part in parts.items()}


def measure(rows: list[dict]) -> dict:
    """The metrics of a step, from the facts of all its executions; the README explains each."""
    valid = [row for row in rows if row["status"] != "infrastructure"]
    designs, questions = {}, {}
    for row in valid:
        designs.setdefault((row["question"], row["m"]), []).append(row["reward"])
        questions.setdefault(row["question"], []).append(row["reward"])
    means = [mean(rewards) for rewards in designs.values()]
    return {"reward": mean(row["reward"] for row in valid), "designer_reward": mean(means),
            "executor_reward": mean(row["reward"] for row in valid if row["calls"]),
            "valid_designs": mean(row["runs"] for row in valid), "calls": mean(row["calls"] for row in valid), "agents": mean(row["agents"] for row in valid),
            "design_entropy": mean(row["design_entropy"] for row in valid),
            "call_entropy": mean(row["call_entropy"] for row in valid if row["calls"]),
            "equal_groups": mean(len(set(rewards)) == 1 for rewards in questions.values()),
            "infrastructure": len(rows) - len(valid), "statuses": dict(Counter(row["status"] for row in rows)),
            "structures": dict(Counter(row["structure"] for row in rows))}


def joined(parts: list[dict]) -> dict:
    """The metrics of one update of each model as one row: sums and maxima of what is counted, means over the models that learned something."""
    learned = [part for part in parts if part["trained_tokens"]] or parts[:1]
    how = {"trained_tokens": sum, "skipped": max, "mismatch_max": max}
    return {key: how.get(key, mean)([part[key] for part in learned]) for key in parts[0]}


class Clock:
    """Where a step's time goes: seconds of the rollout and of the update; of the rollout's, those in the engines and those in which
    this process had nothing to do but wait for scripts, tools and graders; and the tokens sampled."""

    def __init__(self, engines):
        self.engines, self.started, self.cpu, self.laps = engines, time.monotonic(), time.thread_time(), {}
        self.tokens, self.sampling, self.sampling_cpu = self.totals()

    def totals(self):
        return [sum(getattr(engine, name) for engine in self.engines) for name in ("tokens", "seconds", "cpu_seconds")]

    def lap(self, name):
        self.laps[f"seconds_{name}"] = time.monotonic() - self.started - sum(self.laps.values())
        if name == "rollout":
            _, sampling, sampling_cpu = self.totals()
            self.sampling = sampling - self.sampling
            busy = time.thread_time() - self.cpu - (sampling_cpu - self.sampling_cpu)
            self.waiting = max(0.0, self.laps["seconds_rollout"] - self.sampling - busy)  # with vLLM, busy and sampling overlap

    def row(self) -> dict:
        return {"seconds": time.monotonic() - self.started, **self.laps, "seconds_sampling": self.sampling, "seconds_waiting": self.waiting,
                "tokens": int(all_reduce(self.totals()[0] - self.tokens))}


# ---------------------------------------------------------------------------------------------------------------- curves

COLOURS = {"executor": "#d9822b", "designer": "#2b6cd9", "both": "#888888"}


def draw(out: pathlib.Path) -> None:
    """curves.png from metrics.jsonl: rewards and held-out accuracy, designs, outcomes; stages as bands."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    rows = [json.loads(line) for line in whole_lines(out / "metrics.jsonl")]
    if not rows:
        return
    steps = [row["step"] for row in rows]
    figure, (top, middle, bottom) = plt.subplots(3, 1, figsize=(9, 9), sharex=True, constrained_layout=True)
    for axis in (top, middle, bottom):
        for row in rows:
            role = row["trained_roles"][0] if len(row["trained_roles"]) == 1 else "both"
            axis.axvspan(row["step"] - 0.5, row["step"] + 0.5, color=COLOURS[role], alpha=0.08, linewidth=0)
        axis.set_ylim(0, 1.02)
    for role in ("designer", "executor"):
        top.plot(steps, [row[f"{role}_reward"] for row in rows], color=COLOURS[role], linewidth=1, label=f"{role} reward (training questions)")
    held_out = [(row["step"], row["eval_accuracy"]) for row in rows if "eval_accuracy" in row]
    top.plot(*zip(*held_out), "ko-", label="held-out accuracy") if held_out else None
    top.set_ylabel("reward")
    for axis, key, label in ((middle, "structures", "designs"), (bottom, "statuses", "outcomes")):
        names = sorted({name for row in rows for name in row[key]})
        shares = [[row[key].get(name, 0) / max(1, sum(row[key].values())) for row in rows] for name in names]
        axis.stackplot(steps, shares, labels=names, alpha=0.85, colors=plt.get_cmap("tab20").colors)
        axis.set_ylabel(f"share of {label}")
    bottom.set_xlabel("step (bands: orange the executor learns, blue the designer)")
    for axis in (top, middle, bottom):
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    figure.savefig(out / "curves.tmp.png", dpi=110)
    plt.close(figure)
    os.replace(out / "curves.tmp.png", out / "curves.png")
