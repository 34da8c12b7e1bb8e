"""The records of a run: metrics.jsonl, episodes.jsonl, report.html, curves.png.

    metrics.jsonl    one line a step
    episodes.jsonl   one question a step: its designs, calls, tools, answers, rewards, advantages

Both are appended to line by line. A resumed run first drops the lines of steps after its
checkpoint, so that the files read as if nothing had happened.

Test: `pytest tests/test_train.py`. Read next: plots.py.
"""

import contextlib
import json
import pathlib
import sys
import time
from dataclasses import asdict

from lib.card import write_cards
from lib.cli import log
from lib.errors import UserError
from lib.files import atomic_write, complete_lines
from lib.metrics import mean
from lib.plots import draw_curves
from lib.trackers import open_tracker
from rollout import stack_rewards

REPORT_SECONDS = 20.0  # how often report.html is written anew
LINE_EVERY = 10  # steps between lines where there is no bar


class Records:
    """What a run leaves behind. Ranks that are not the writer do nothing."""

    def __init__(self, out: pathlib.Path, config, step: int, is_writer: bool):
        """step: updates done, where a resumed run goes on."""
        self.out = out
        self.config = config
        self.is_writer = is_writer
        self.files = {}
        self.episode = {}
        self.first_evaluation = {}  # the one before step 0, which goes into its line
        self.reported = 0.0
        if not is_writer:
            return
        self.tracker = open_tracker(config.tracker, out, asdict(config))
        for name in ("metrics", "episodes"):
            path = out / f"{name}.jsonl"
            lines = complete_lines(path) if path.exists() else []
            kept = [line for line in lines if json.loads(line)["step"] < step]
            atomic_write(path, "".join(line + "\n" for line in kept))
            self.files[name] = open(path, "a", encoding="utf-8")
        for page in (out / "episodes").glob("*.html"):
            if int(page.stem) >= step:
                page.unlink()

    def keep_episode(
        self, step, trees, designer_adv_Q_M, executor_adv_Q_M_N, replays, trainer
    ) -> None:
        """One question's tree of this step: each place of the batch in turn."""
        if self.is_writer:
            from viewer.pages import episode

            q = step % len(trees)
            rollout = trainer.rollout
            policies = rollout.runtime.policy, rollout.designer[1]
            advantages = designer_adv_Q_M[q], executor_adv_Q_M_N[q]
            replays_M_N = {place[1:]: others for place, others in replays.items() if place[0] == q}
            self.episode = episode(step, trees[q], *advantages, *policies, replays_M_N)
            rewards_Q_M_N, valid_Q_M_N = stack_rewards([trees[q]])
            self.episode_reward = mean(rewards_Q_M_N[valid_Q_M_N].tolist())

    def add_step(self, metrics: dict, bar) -> None:
        """A line of metrics, and one of the episode."""
        roles = "+".join(metrics["trained_roles"])
        bar.set_postfix(learns=roles, reward=f"{metrics['reward']:.2f}")
        if not self.is_writer:
            return
        line = {**metrics, "episode_reward": self.episode_reward, **self.first_evaluation}
        self.first_evaluation = {}
        self.write("metrics", line)
        self.write("episodes", self.episode)
        self.tracker.numbers(line, metrics["step"])
        done = metrics["step"] + 1
        if bar.disable and done % LINE_EVERY == 0:  # no bar: a line now and then
            reward = f"reward {metrics['reward']:.2f}"
            log.info(f"step {done}/{self.config.steps}: {roles} learned, {reward}")
        if time.monotonic() - self.reported >= REPORT_SECONDS:
            self.report()

    def add_evaluation(self, evaluation: dict) -> None:
        """Add an evaluation to the last line; one before the first step waits for the first line.

        If the first step is evaluated as well, its line keeps the start's as `eval_start`.
        """
        if not self.is_writer:
            return
        path = self.out / "metrics.jsonl"
        lines = list(complete_lines(path))
        if not lines:
            self.first_evaluation = evaluation
            return
        last = json.loads(lines[-1])
        if last["step"] == 0:
            start = {key: last[key] for key in ("eval_accuracy", "eval_greedy", "eval_cost")}
            evaluation = {"eval_start": last.get("eval_start", start), **evaluation}
        lines[-1] = json.dumps(last | evaluation)
        self.files["metrics"].close()
        atomic_write(path, "".join(line + "\n" for line in lines))
        self.files["metrics"] = open(path, "a", encoding="utf-8")
        self.tracker.numbers(evaluation, last["step"])
        if self.episode:
            self.tracker.designs(self.episode, last["step"])

    def write(self, name: str, line: dict) -> None:
        try:
            self.files[name].write(json.dumps(line) + "\n")
            self.files[name].flush()
        except OSError as error:
            problem = f"{name}.jsonl could not be written ({error.strerror})"
            raise UserError(f"{self.out}: {problem}; go on with --resume") from error

    def report(self) -> None:
        from viewer.pages import write_report

        write_report(self.out)
        self.reported = time.monotonic()

    def draw(self) -> None:
        """Curves, report and model cards, as the run is now."""
        if self.is_writer:
            draw_curves(self.out)
            write_cards(self.out)
            self.report()

    def close(self) -> None:
        if self.is_writer:
            try:
                self.tracker.close(has_failed=sys.exception() is not None)
            except Exception as error:  # boundary: it must not hide why the run ends
                problem = " ".join(str(error).split())[:200]
                log.error(f"--tracker {self.config.tracker}: {problem}")
        for file in self.files.values():
            with contextlib.suppress(OSError):  # what could not be written has been said
                file.close()
