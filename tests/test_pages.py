"""The pages, in a real browser: complete, safe with any text, usable by keyboard, readable at any
width, light and dark."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import (
    CHROMIUM,
    CHROMIUM_FLAGS,
    QUESTION,
    ROOT,
    SMALL_RUN,
    Scripted,
    execute,
    grow,
    needs_chromium,
)

import credit
from data_types import Budget, Design, Tree
from designer import FIXED_DESIGNS
from engines.hf import HFEngine
from lib.errors import UserError
from lib.replay import Replay
from rollout import stack_rewards
from tiny import registry
from viewer import pages


@pytest.fixture(scope="module")
def shown(policy):
    """An episode of three designs by hand, two executions each, played by the tiny model."""

    designs, executions = [], []
    for name, rewards in (("debate", (0.0, 1.0)), ("coder", (1.0, 1.0)), ("vote", (0.0, 0.0))):
        script = FIXED_DESIGNS[name]
        engine, budget = HFEngine(policy), Budget(calls=8, reply_tokens=48)
        (tree,) = grow(policy, engine, [QUESTION], 1, 2, ("pages",), script, budget)
        runs = zip(tree.executions[0], rewards)
        executions.append(tuple(replace(execution, reward=reward) for execution, reward in runs))
        ids = tuple(policy.tokenizer.encode(script, add_special_tokens=False))
        logprobs = tuple(-0.01 if i % 3 else -4.0 for i in range(len(ids)))
        designs.append(Design(script, (1,), ids, logprobs, "", script))  # as if it were sampled
    return credited(7, Tree(QUESTION, tuple(designs), tuple(executions)), policy)


def credited(step, tree, policy):
    """The episode of a tree, with its advantages."""
    rewards, valid = stack_rewards([tree])
    designer_adv = credit.designer_advantages(rewards, valid)[0]
    executor_adv = credit.executor_advantages(rewards, valid)[0]
    return pages.episode(step, tree, designer_adv, executor_adv, policy)


@pytest.fixture(scope="module")
def replayed(policy):
    """An episode with replays: one call that mattered, one that did not."""
    script = 'x = Agent("first", "one")(question)\nsubmit(Agent("second", "two")(x))'
    answers = iter(["6 times 7", r"\boxed{42}"])
    engine = Scripted(policy, lambda prompt: next(answers))
    (tree,) = grow(policy, engine, [QUESTION], 1, 1, ("t",), script)
    others = []
    for call, text, reward in ((0, "7 times 6", 1.0), (1, r"\boxed{41}", 0.0)):
        calls = list(tree.executions[0][0].calls)
        calls[call] = replace(calls[call], text=text)
        other = replace(tree.executions[0][0], calls=tuple(calls), reward=reward)
        others.append(Replay(call, other, reward))
    advantages = torch.zeros(1), torch.zeros(1, 1)
    return pages.episode(
        1, tree, *advantages, policy, None, {(0, 0): others}, [{"first": 1.0, "second": 0.0}]
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short training run."""
    out = tmp_path_factory.mktemp("pages") / "run"
    command = [sys.executable, str(ROOT / "train.py"), *SMALL_RUN, "--steps", "3"]
    process = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return out


# ------------------------------------------------------------------------------ without a browser


def test_who_read_what(policy):
    """A critic reads the attempt, the solver the review; agents of one round don't read each
    other; a judge reads all."""
    answers = iter(["first 7", "second 8", "third 8", "judged 9"])
    script = """
team = [Agent(f"s{i}", "go") for i in range(3)]
submit(judge(Agent("j", "judge"), question, ask_all(team, question)))
"""
    execution, _ = execute(policy, script, lambda prompt: next(answers))
    assert pages.calls_read(execution.calls, QUESTION.prompt) == [[-1], [-1], [-1], [-1, 0, 1, 2]]
    assert [call.round for call in execution.calls] == [1, 1, 1, 2] and execution.submitted == 3
    answers = iter(["```python\nprint(6 * 7)\n```", r"\boxed{42}", "APPROVED"])
    script = 'submit(reflect(Agent("s", "go", tools=["python"]), Agent("c", "check"), question))'
    execution, _ = execute(policy, script, lambda prompt: next(answers))
    assert pages.calls_read(execution.calls, QUESTION.prompt) == [[-1], [0], [-1, 1]]
    places = [(call.round, call.turn) for call in execution.calls]
    assert places == [(1, 0), (1, 1), (2, 0)] and execution.submitted == 1
    answers = iter(["4", "it is 42"])  # a reply that is a part of a word is not read
    execution, _ = execute(
        policy,
        'a = Agent("a", "b")\na(question)\nsubmit(a("not 42 at all"))',
        lambda prompt: next(answers),
    )
    assert pages.calls_read(execution.calls, QUESTION.prompt) == [[-1], []]


def test_tokens_are_the_text(shown, policy):
    executions = [execution for design in shown["designs"] for execution in design["executions"]]
    for call in [call for execution in executions for call in execution["calls"]]:
        assert len(call["tokens"]) == len(call["logprobs"]) == call["completion_tokens"]
        assert "".join(call["tokens"]).startswith(call["text"])
    ids = policy.tokenizer.encode("é 😀 漢字 x", add_special_tokens=False)
    pieces = pages.token_pieces(policy.tokenizer, ids)
    assert "".join(pieces) == "é 😀 漢字 x" and len(pieces) == len(ids)


def test_what_the_infrastructure_spoiled_has_no_reward(policy):
    """One execution right, one lost with the sandbox: the design's reward is 1, as in training,
    and the lost one's is not known."""
    execution, _ = execute(policy, FIXED_DESIGNS["single"], r"\boxed{42}")
    right = replace(execution, reward=1.0)
    lost = replace(execution, status="infra_error", answer=None, submitted=None)
    tree = Tree(QUESTION, (Design(FIXED_DESIGNS["single"]),), ((right, lost),))
    shown = credited(0, tree, policy)
    (design,) = shown["designs"]
    rewards = [execution["reward"] for execution in design["executions"]]
    assert design["reward"] == 1.0 and rewards == [1.0, None]
    assert pages.as_text(shown).count("reward: ") == 1


def test_the_tree_in_a_terminal(shown):
    drawn, plain = pages.as_text(shown), pages.as_text(shown, lines=False)
    assert "├─ design 1: debate, reward 0.50" in drawn and "│  └─ execution 2" in drawn
    assert re.search(r"round 2\n.*solver", drawn) and not set("├└│─") & set(plain)
    plain_lines = [line.strip() for line in plain.splitlines()]
    assert plain_lines == [line.lstrip("├└│─ ").rstrip() for line in drawn.splitlines()]
    hostile = json.loads(json.dumps(shown).replace("debate", "\\u001b]0;x\\u0007\\u202e"))
    assert "\x1b" not in pages.as_text(hostile) and "\u202e" not in pages.as_text(hostile)


HOSTILE = [
    "</script><script>window.hit = 1</script>",
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    "<svg onload='window.hit = 1'>",
    "<svg><script>window.hit = 1</script></svg>",
    "<svg><animate onbegin='window.hit = 1' attributeName=x dur=1s>",
    "<iframe srcdoc='<script>parent.hit = 1</script>'></iframe>",
    "<body onload='window.hit = 1'>",
    '"><script>window.hit = 1</script>',
    "' onmouseover='window.hit = 1",
    '" autofocus onfocus="window.hit = 1',
    "javascript:window.hit = 1",
    "<a href='javascript:window.hit = 1'>x</a>",
    "<!--<script>",
    "--><script>window.hit = 1</script>",
    "<![CDATA[<script>window.hit = 1</script>]]>",
    "]]>",
    "<style>body{display:none}</style>",
    "</style><script>window.hit = 1</script>",
    "<link rel=stylesheet href=http://127.0.0.1:9/x.css>",
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>",
    "<base href=http://127.0.0.1:9/>",
    "<form action=http://127.0.0.1:9/><input autofocus onfocus='window.hit = 1'>",
    "<math><mi xlink:href='data:x,<script>window.hit = 1</script>'>",
    "</textarea><script>window.hit = 1</script>",
    "</title><script>window.hit = 1</script>",
    "<template><script>window.hit = 1</script></template>",
    "<object data='data:text/html,<script>window.hit = 1</script>'>",
    "{{data}}{{script}}{{policy}}",
    "${window.hit = 1}",
    "`;window.hit = 1;`",
    "\\u003cscript\\u003ewindow.hit = 1\\u003c/script\\u003e",
    "&lt;script&gt;window.hit = 1&lt;/script&gt;",
    "\u202eevil \u2066rtl\u2069 marks\u200f",
    "nul \x00 bell \x07 escape \x1b[31m delete \x7f c1 \x9b",
    "line\u2028separator\u2029s",
    "lone \ud800 surrogate",
    "zero\u200bwidth\ufeff\u2060",
    "__proto__ constructor toString",
    "a\tb\nc  d   e",
    "é 漢字 😀 עברית",
    "x" * (1 << 20),
]


def test_the_terminal_shows_what_else_was_said(replayed):
    text = pages.as_text(replayed, lines=False)
    assert "without first: reward 1.00" in text and "without second: reward 0.00" in text
    assert ", credit +0.00" in text and ", credit +1.00" in text
    assert "7 times 6 (reward 1)" in text and "\\boxed{41} (reward 0)" in text


def test_an_agents_name_hides_nothing(replayed):
    name = "a\x1b[31m\u202eb"
    design = replayed["designs"][0] | {"without": {name: 1.0}}
    text = pages.as_text(replayed | {"designs": [design]})
    assert "without a␛[31m⟨202E⟩b: reward 1.00" in text and name not in text


def test_there_are_forty_hostile_texts_and_none_leaves_the_data():
    assert len(HOSTILE) >= 40
    source = pages.run_page({"question": HOSTILE})
    before, data, after = re.split(
        r'<script type="application/json" id="data">|</script>\n<script>"use strict"', source
    )
    assert "<" not in data and json.loads(data)["episode"]["question"] == pages.visible(HOSTILE)
    assert source.count("</script>") == 2 and all(
        text not in before + after for text in HOSTILE[:25]
    )


def hostile_episode():
    def call(text, **changes):
        return {
            "agent": text[:2000],
            "round": 1,
            "turn": 0,
            "reads": [-1],
            "messages": [{"role": text[:200], "content": text}],
            "text": text,
            "answer": text,
            "tool_output": text,
            "prompt_tokens": 1,
            "completion_tokens": 1,
            "tokens": [text],
            "logprobs": [-1.0],
            **changes,
        }

    def execution(text):
        return {
            "status": "answered",
            "detail": text,
            "submitted": 0,
            "answer": text,
            "reward": 0.0,
            "advantage": 0.0,
            "calls": [call(text), call(text, round=2, reads=[0], tokens=[], logprobs=[])],
        }

    return {
        "step": 0,
        "question": HOSTILE[0] + HOSTILE[2],
        "family": HOSTILE[1],
        "gold": HOSTILE[3],
        "designs": [
            {
                "script": text,
                "error": text,
                "structure": text[:2000],
                "text": text,
                "completion_tokens": 1,
                "tokens": [text],
                "logprobs": [-1.0],
                "reward": 0.0,
                "advantage": 0.0,
                "executions": [execution(text)],
            }
            for text in HOSTILE
        ],
    }


def test_the_report_of_a_run(run):
    report = (run / "report.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', report, re.DOTALL)[1])
    assert (
        len(data["rows"]) == 3
        and not data["running"]
        and all((run / one["page"]).is_file() for one in data["episodes"])
    )
    assert all(
        sum(row["kinds"].values()) == sum(row["structures"].values()) for row in data["rows"]
    ) and not list(run.glob("**/*.tmp"))


@pytest.mark.parametrize("episodes", [0, 1])
def test_a_report_that_can_be_watched(run, tmp_path, episodes):
    """In the middle of a run: what there is, marked as running; a line that is being written is
    left out."""
    for name in ("config.json", "metrics.jsonl", "episodes.jsonl"):
        text = (run / name).read_text()
        num_lines = {"config.json": None, "metrics.jsonl": 1, "episodes.jsonl": episodes}[name]
        if num_lines is not None:
            lines = text.split("\n")
            text = "".join(line + "\n" for line in lines[:num_lines]) + lines[num_lines][:50]
        (tmp_path / name).write_text(text)
    pages.write_report(tmp_path)
    html = (tmp_path / "report.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])
    assert data["running"] and [row["step"] for row in data["rows"]] == [0]
    links = [episode["page"] for episode in data["episodes"]]
    assert links == ["episodes/00000.html"] * episodes


def test_no_run_no_report(tmp_path):
    with pytest.raises(UserError, match="no run to report on"):
        pages.write_report(tmp_path)


# ----------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def large(policy):
    """Ten sampled designs of twenty executions each."""
    (tree,) = grow(policy, HFEngine(policy), registry.questions("train", 0, 1), 10, 20)
    return pages.episode(None, tree, None, None, policy)


@pytest.fixture(scope="module")
def browser(
    shown, large, replayed
):  # made before: the browser's driver has an event loop of its own in this thread
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, tmp_path):
    """A function that opens a file in the browser. At the end: no error was logged, nothing but
    files was asked for, nothing hostile has run."""
    problems, opened = [], []

    def open_it(file, **options):
        page = browser.new_page(**({"viewport": {"width": 1200, "height": 900}} | options))
        page.on(
            "console",
            lambda message: (
                problems.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message) or dialog.dismiss())
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith(("file://", "data:,"))
                else problems.append(request.url)
            ),
        )
        page.goto(f"file://{file}")
        opened.append(page)
        return page

    yield open_it
    assert not problems and not any(page.evaluate("window.hit") for page in opened)
    for page in opened:
        page.close()


def written(tmp_path, episode):
    path = tmp_path / "run.html"
    path.write_text(pages.run_page(episode), encoding="utf-8")
    return path


@needs_chromium
def test_every_call_is_in_the_page(run, open_page):
    command = [sys.executable, "-m", "viewer.pages", str(run)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    rows = [json.loads(line) for line in (run / "episodes.jsonl").read_text().splitlines()]
    count = 0
    for row in rows:
        page = open_page(run / "episodes" / f"{row['step']:05d}.html")
        assert page.locator("#asked").text_content() == row["question"]
        for m, design in enumerate(row["designs"]):
            for n, execution in enumerate(design["executions"]):
                page.locator(f"#leaf-{m}-{n}").click()
                assert page.locator("pre.code").text_content() == design["script"]
                if execution["calls"]:
                    page.get_by_role("button", name="Expand all").click()
                items = page.locator("details.call").all()
                assert len(items) == len(execution["calls"])
                for item, call in zip(items, execution["calls"]):
                    item.locator("h3").first.wait_for()
                    assert [text for text in item.locator("pre.prompt").all_text_contents()] == [
                        message["content"] for message in call["messages"]
                    ]
                    assert item.locator("pre.tokens").text_content() == "".join(
                        call["tokens"]
                    ) and item.locator("pre.tokens span").count() == len(call["logprobs"])
                    assert item.locator("pre.tool").all_text_contents() == (
                        [] if call["tool_output"] is None else [call["tool_output"]]
                    )
                    count += 1
    assert count > 20


@needs_chromium
def test_hostile_texts_are_texts(open_page, tmp_path):
    page = open_page(written(tmp_path, hostile_episode()))
    page.wait_for_timeout(200)
    shown = page.evaluate(
        """async (texts) => {
        const found = [];
        for (const [d, text] of texts.entries()) {
            document.getElementById(`leaf-${d}-0`).click();
            document.querySelectorAll("details").forEach((item) => { item.open = true; });
            await new Promise((resume) => setTimeout(resume, 20));
            const shown = document.querySelectorAll("pre.code, #written pre, details.call pre");
            found.push([...shown].map((pre) => pre.textContent === text));
        }
        return found; }""",
        pages.visible(HOSTILE),
    )
    assert shown == [[True] * 8] * len(
        HOSTILE
    )  # the script, the designer's text, and three texts of each of two calls
    assert (
        page.locator(
            "main :is(script, img, iframe, style, link, meta, base, object, form:not(#ask), math)"
        ).count()
        == 0
    )
    assert "\u202e" not in page.content() and page.locator("main a").count() == 0


@needs_chromium
def test_by_keyboard_and_by_mouse(shown, open_page, tmp_path):
    page = open_page(written(tmp_path, shown))
    heading = page.locator("h2", has_text=re.compile("^Design "))
    page.locator("#leaf-0-0").focus()
    for key, leaf, name in (
        ("ArrowRight", "leaf-0-1", "Design 1: debate"),
        ("ArrowDown", "leaf-1-1", "Design 2: single+python"),
        ("ArrowLeft", "leaf-1-0", "Design 2"),
        ("ArrowUp", "leaf-0-0", "Design 1"),
    ):
        page.keyboard.press(key)
        assert (
            page.evaluate("document.activeElement.id") == leaf
            and name in heading.text_content()
            and page.locator(f"#{leaf}").get_attribute("aria-pressed") == "true"
        )
    page.locator("#leaf-1-1").focus()
    page.keyboard.press("Enter")
    assert (
        "Design 2" in heading.text_content()
        and page.evaluate("document.activeElement.id") == "leaf-1-1"
    )
    page.locator("#node-1-0").focus()  # the agent in the picture: its last turn opens
    page.keyboard.press("Enter")
    calls = shown["designs"][1]["executions"][1]["calls"]
    last = len(calls) - 1
    assert (
        page.evaluate("document.activeElement.id") == f"call-1-1-{last}-summary"
        and page.locator(f"#call-1-1-{last}").get_attribute("open") is not None
    )
    page.keyboard.press("Space")
    assert page.locator(f"#call-1-1-{last}").get_attribute("open") is None
    page.locator("#card-0").click()
    assert (
        page.locator("#leaf-1-0").get_attribute("aria-pressed") == "true"
        and page.locator("section.chosen").get_attribute("aria-label") == "execution 1"
    )
    page.locator("#node-0-0").click()
    assert (
        page.locator(
            f"#call-1-0-{len(shown['designs'][1]['executions'][0]['calls']) - 1}"
        ).get_attribute("open")
        is not None
    )


@needs_chromium
def test_votes_and_rounds_are_in_the_picture(shown, open_page, tmp_path):
    page = open_page(written(tmp_path, shown))
    calls = shown["designs"][0]["executions"][0]["calls"]
    assert page.locator("section.card").first.locator(
        "svg text", has_text=re.compile("^round")
    ).all_text_contents() == ["round 1", "round 2"]
    assert (
        page.locator("section.card").first.locator("path.edge").count() == 2 + 4 + 2
    )  # to round 1, from all of it to all of round 2, to the answer
    agree = (
        sum(
            call["answer"] is not None and call["answer"] == calls[2]["answer"]
            for call in calls[2:]
        )
        or 1
    )
    assert (
        page.locator("section.card").first.locator("svg text", has_text="answer:").text_content()
        == f"answer: {agree} of 2"
    )
    page.locator("#leaf-2-0").click()
    assert page.locator("section.card").first.locator(".node[role=button]").count() == 3


@needs_chromium
def test_the_page_shows_what_else_was_said(replayed, open_page, tmp_path):
    page = open_page(written(tmp_path, replayed))
    labels = [bar.get_attribute("aria-label") for bar in page.locator("svg.credit").all()]
    assert labels == ["credit 0.00", "credit +1.00"]
    widths = [float(r.get_attribute("width")) for r in page.locator("svg.credit rect").all()]
    assert widths == [0, 30]
    page.locator("#call-0-0-1-summary").click()
    replies = page.locator("#call-0-0-1 table.replies").inner_text()
    assert "\\boxed{41}" in replies and "0.00" in replies
    assert "without second: reward 0.00" in page.locator("#run").inner_text()


@needs_chromium
@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable_at_any_width_light_and_dark(shown, run, open_page, tmp_path, width, scheme):
    import axe_playwright_python.base

    axe = axe_playwright_python.base.AXE_FILE_PATH.read_text()
    for file in (written(tmp_path, shown), run / "report.html"):
        page = open_page(file, viewport={"width": width, "height": 900}, color_scheme=scheme)
        if page.locator("#leaf-1-0").count():
            page.locator("#leaf-1-0").click()
            page.get_by_role("button", name="Expand all").click()
            page.locator("#written summary").click()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        fits = "(node) => node.scrollWidth <= node.clientWidth + 1"
        assert page.evaluate(f"[...document.querySelectorAll('pre, dd')].every({fits})")
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == (scheme == "dark")
        found = page.evaluate(axe + "; axe.run()")
        assert found["passes"] and not [
            (one["id"], [node["html"][:200] for node in one["nodes"]])
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
        ]


@needs_chromium
def test_the_report_in_a_browser(run, open_page):
    page = open_page(run / "report.html")
    assert page.locator("section.card svg").count() == 11 and page.locator("#watch").is_hidden()
    chart = page.locator("section.card").first
    chart.locator("svg").focus()
    page.keyboard.press("ArrowLeft")
    assert chart.locator(".readout").text_content().startswith("step 1 (executor): designer ")
    page.locator("a").first.click()
    assert page.locator("#asked").text_content().strip() and "/episodes/" in page.url


@needs_chromium
def test_two_hundred_executions(large, open_page, tmp_path):
    """Ten designs of twenty executions: under 5 MB, and all of it there. How long it takes to
    open: experiments/bench/pages.py."""
    path = written(tmp_path, large)
    assert path.stat().st_size < 5e6
    page = open_page(path)
    assert (
        page.locator(".leaves button").count() == 200 and page.locator("section.card").count() == 20
    )


def test_a_design_without_executions_or_script(policy, tmp_path):
    design = Design("", error="the design is empty")
    tree = Tree(replace(QUESTION, answer=""), (design,), ((),))
    shown = pages.episode(None, tree, None, None, policy)
    assert shown["designs"][0]["executions"] == [] and "the design is empty" in pages.as_text(shown)
