"""The page of a large episode: how many bytes it has, and how long a browser takes to open it.

    python -m experiments.bench.pages [DESIGNS EXECUTIONS]

The tiny model samples one question's tree, by default 10 designs with 20 executions each: 200
executions on one page. Chromium opens the page seven times.

It prints the size of the file, and the seconds from the start of the navigation until the page is
loaded and has been drawn (the median, and the range). The goal is less than 5 MB and 2 s.
Test: by hand, the command above. Read next: scale.py.
"""

import asyncio
import pathlib
import statistics
import sys
import tempfile

from playwright.sync_api import sync_playwright

from data_types import Budget, Tree
from engines.hf import HFEngine
from executor import Runtime
from lib.cli import ROOT
from policy import Policy
from rollout import Rollout
from sandbox import Sandbox
from tiny import registry
from viewer.pages import episode, run_page
from viewer.screenshots import CHROMIUM, CHROMIUM_FLAGS

NUM_VISITS = 7
BUDGET = Budget(calls=8, reply_tokens=48)
DESIGN_TOKENS = 96
# Milliseconds from the start of the navigation to the first task after the next frame.
MILLISECONDS_UNTIL_DRAWN = """
new Promise((resolve) => {
    requestAnimationFrame(() => setTimeout(() => resolve(performance.now()), 0));
})
"""


async def sample_tree(policy: Policy, num_designs: int, num_executions: int) -> Tree:
    async with Sandbox() as sandbox:
        runtime = Runtime(HFEngine(policy), policy, sandbox, BUDGET)
        rollout = Rollout(runtime, design_tokens=DESIGN_TOKENS)
        questions = registry.questions("train", 0, 1)
        trees = await rollout.rollout(questions, num_designs, num_executions, seed=("bench",))
    return trees[0]


def time_visits(path: pathlib.Path) -> list[float]:
    """Seconds that the browser takes to open the page, each time in a new tab."""
    seconds = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        for _ in range(NUM_VISITS):
            page = browser.new_page()
            page.goto(path.as_uri())
            seconds.append(page.evaluate(MILLISECONDS_UNTIL_DRAWN) / 1000)
            page.close()
        browser.close()
    return seconds


def main(num_designs: int = 10, num_executions: int = 20) -> None:
    policy = Policy(str(ROOT / "tiny"))
    tree = asyncio.run(sample_tree(policy, num_designs, num_executions))
    num_calls = sum(len(execution.calls) for _, execution in tree.pairs())
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "run.html"
        path.write_text(run_page(episode(None, tree, None, None, policy)))
        megabytes = path.stat().st_size / 1e6
        seconds = time_visits(path)
    print(
        f"{num_designs} x {num_executions} executions, {num_calls} calls: {megabytes:.2f} MB, "
        f"open in {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
