"""The pictures of docs/, from the pages of a real run: run.png, tree.png, report.png, curves.png.

    python -m viewer.screenshots runs/x    (needs chromium, and what tests/requirements.txt names)
    python -m viewer.screenshots run.html    replay.png, of a page with replays

Test: by eye. Read next: pages.py.
"""

import contextlib
import json
import pathlib
import shutil
import sys

from PIL import Image
from playwright.sync_api import sync_playwright

from lib.cli import ROOT
from lib.files import complete_lines
from viewer.pages import write_report

DOCS = ROOT / "docs"
WIDTH = 1180
CHROMIUM = shutil.which("chromium")
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def episode_path(out: pathlib.Path, step: int) -> pathlib.Path:
    return out / "episodes" / f"{step:05d}.html"


def most_interesting(out: pathlib.Path) -> tuple[int, int, int]:
    """(step, design, execution) of a design that was right and wrong, of a question where about
    half is right; then with the most calls in its right execution."""
    candidates = []
    for line in complete_lines(out / "episodes.jsonl"):
        episode = json.loads(line)
        rewards = [[e["reward"] for e in d["executions"]] for d in episode["designs"]]
        flat = [reward or 0 for row in rewards for reward in row]
        is_even = 0.3 <= sum(flat) / len(flat) <= 0.7
        for m, design in enumerate(episode["designs"]):
            for n, execution in enumerate(design["executions"]):
                if execution["reward"] == 1:
                    is_mixed = 0 in rewards[m]
                    num_calls = len(execution["calls"])
                    candidates.append((is_even, is_mixed, num_calls, episode["step"], m, n))
    return max(candidates)[3:]


@contextlib.contextmanager
def open_browser():
    """A page of a browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        browser.close()


def picture_of_replays(path: pathlib.Path) -> None:
    """The calls of the first execution, the one with the largest credit open."""
    with open_browser() as page:
        page.goto(path.resolve().as_uri())
        bars = page.locator("svg.credit rect")
        widths = [float(bar.get_attribute("width")) for bar in bars.all()]
        bars.nth(widths.index(max(widths))).click()
        page.locator("table.replies").wait_for()
        top = page.locator("h2", has_text="Calls of").evaluate(
            "(node) => node.getBoundingClientRect().top + scrollY"
        )
        height = page.evaluate("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": top - 8, "width": WIDTH, "height": height - top + 8}
        page.screenshot(path=DOCS / "replay.png", full_page=True, clip=clip)
    shrink("replay")


def shrink(name: str) -> None:
    path = DOCS / f"{name}.png"
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)
    print(f"docs/{name}.png: {path.stat().st_size / 1000:.0f} kB")


def pictures_of_run(out: pathlib.Path) -> None:
    step, m, n = most_interesting(out)
    write_report(out, every=True)
    with open_browser() as page:
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
        write_report(out)
        page.goto((out / "report.html").resolve().as_uri())
        page.screenshot(path=DOCS / "report.png", full_page=True)
    shutil.copy(out / "curves.png", DOCS)
    for name in ("run", "tree", "report"):
        shrink(name)


if __name__ == "__main__":
    place = pathlib.Path(sys.argv[1])
    picture_of_replays(place) if place.is_file() else pictures_of_run(place)
