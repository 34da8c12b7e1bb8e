"""The pictures of docs/, from the pages of a real run: run.png, tree.png, report.png, curves.png.

    python -m viewer.screenshots runs/x    (needs chromium, and what tests/requirements.txt names)

Test: by eye. Read next: pages.py.
"""

import json
import pathlib
import shutil
import sys

from PIL import Image
from playwright.sync_api import sync_playwright

from lib.cli import ROOT
from lib.files import complete_lines

DOCS = ROOT / "docs"
WIDTH = 1180
CHROMIUM = shutil.which("chromium")
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def episode_path(out: pathlib.Path, step: int) -> pathlib.Path:
    return out / "episodes" / f"{step:05d}.html"


def most_interesting(out: pathlib.Path) -> tuple[int, int, int]:
    """(step, design, execution) with the most rounds, then the most calls, among those that ended
    right, of the steps that have a page."""
    candidates = []
    for line in complete_lines(out / "episodes.jsonl"):
        episode = json.loads(line)
        step = episode["step"]
        if not episode_path(out, step).exists():
            continue
        for m, design in enumerate(episode["designs"]):
            for n, execution in enumerate(design["executions"]):
                if execution["reward"] == 1:
                    num_rounds = len({call["round"] for call in execution["calls"]})
                    candidates.append((num_rounds, len(execution["calls"]), step, m, n))
    return max(candidates)[2:]


def main(out: pathlib.Path) -> None:
    step, m, n = most_interesting(out)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        page.goto(episode_path(out, step).resolve().as_uri())
        page.locator(f"#leaf-{m}-{n}").click()
        bottom = page.locator("#tree").evaluate(
            "(node) => node.getBoundingClientRect().bottom + scrollY"
        )
        page.screenshot(
            path=DOCS / "tree.png",
            full_page=True,
            clip={"x": 0, "y": 0, "width": WIDTH, "height": bottom + 10},
        )
        page.locator("#written summary").click()
        page.locator("details.call summary").last.click()
        page.locator("details.call h3").first.wait_for()
        top = page.locator("h2", has_text="Design ").first.evaluate(
            "(node) => node.getBoundingClientRect().top + scrollY"
        )
        height = page.evaluate("document.documentElement.scrollHeight")
        page.screenshot(
            path=DOCS / "run.png",
            full_page=True,
            clip={"x": 0, "y": top - 8, "width": WIDTH, "height": height - top + 8},
        )
        page.goto((out / "report.html").resolve().as_uri())
        page.screenshot(path=DOCS / "report.png", full_page=True)
        browser.close()
    shutil.copy(out / "curves.png", DOCS)
    for name in ("run", "tree", "report"):
        Image.open(DOCS / f"{name}.png").convert("RGB").quantize(128).save(
            DOCS / f"{name}.png", optimize=True
        )
        print(f"docs/{name}.png: {(DOCS / f'{name}.png').stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
