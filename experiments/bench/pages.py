"""How large a page of 200 executions is, and how long a browser takes to open it: `python
tests/bench_pages.py [DESIGNS EXECUTIONS]`

Sampled by the tiny model, ten designs of twenty executions; from the start of the navigation to the end of its load event, and to the next picture.
Asked for: below 5 MB, and under 2 s.
"""

import pathlib
import statistics
import sys
import tempfile

import pages
from conftest import CHROMIUM, CHROMIUM_FLAGS, ROOT, grow
from playwright.sync_api import sync_playwright

from policy import HFEngine, Policy
from tasks import arithmetic

if __name__ == "__main__":
    designs, executions = map(int, sys.argv[1:] or (10, 20))
    policy = Policy(str(ROOT / "tiny"))
    (tree,) = grow(policy, HFEngine(policy), arithmetic("train", 0, 1), designs, executions)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path, times = pathlib.Path(folder) / "run.html", []
        path.write_text(pages.run_page(pages.episode(None, tree, None, None, policy)))
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        for _ in range(7):
            page = browser.new_page()
            page.goto(path.as_uri())
            times.append(
                page.evaluate(
                    "new Promise((resume) => requestAnimationFrame(() => setTimeout(() => resume(performance.now()), 0)))"
                )
                / 1000
            )
            page.close()
        print(
            f"{designs} x {executions} executions, {sum(len(e.calls) for row in tree.executions for e in row)} calls: {path.stat().st_size / 1e6:.2f} MB, "
            f"open in {statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})"
        )
        browser.close()
