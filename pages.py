"""See it: one question's runs and a whole training, as plain data, as text for a terminal, and as pages that open from a file.

    python eval.py --ask "What is 37 * 52 + 418?" --html run.html        one run, as a page
    python train.py --out runs/x                                         runs/x/report.html, written anew while it trains
    python pages.py runs/x                                               the report again, and a page for every episode

An *episode* is one question with its M designs and their N executions: a line of episodes.jsonl, and what a page shows. A page is one file of web/
with its style, its script and the episode as JSON inside: it needs no network, no server, no other file.

What a model wrote is data here. In the page's source it is JSON in which no tag can end; the scripts of web/ hand it to the document as text,
never as markup; and the page's own policy lets nothing run but those scripts, by their hash. Characters that are not seen, or that
turn text around, are shown as what they are (but for the joiners that emoji and some scripts need).
Test: `pytest tests/test_pages.py`. Read next: serve.py.
"""
import base64
import hashlib
import json
import pathlib
import re

from cli import HERE, atomic_write, command, flags
from credit import design_rewards
from designer import KINDS, kind_of, structure
from programs import last_program
from tasks import BadInput, final_answer

WEB = HERE / "web"
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164"
                    "\ud800-\udfff\ufe00-\ufe0e\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e007f\U000e0100-\U000e01ef]")


# ---------------------------------------------------------------------------------------------------------------- episodes

def episode(step: int | None, tree, designer_M, executor_M_N, policy, designer=None) -> dict:
    """A tree (rollout.Tree) as plain data: what was designed, who said what, who read it, where credit went.

    designer_M, executor_M_N: advantages, or None where nothing is known of rewards. `reward` and `advantage` are None there, and where the
    infrastructure failed. designer: the policy of the designer role, if it is another."""
    question, (means, some) = tree.question, design_rewards(tree.rewards_M_N[None], tree.valid_M_N[None])

    def credit(known, reward, advantage):
        return {"reward": reward.item(), "advantage": advantage.item()} if known else {"reward": None, "advantage": None}

    def executions(m):
        return [execution_row(execution, question, policy)
                | (credit(tree.valid_M_N[m, n], tree.rewards_M_N[m, n], executor_M_N[m, n]) if executor_M_N is not None else {}) for n, execution in enumerate(tree.executions[m])]

    return {"step": step, "question": question.prompt, "family": question.family, "gold": question.answer, "designs": [
        design_row(design, question, designer or policy) | {"executions": executions(m)}
        | (credit(some[0, m], means[0, m], designer_M[m]) if designer_M is not None else {}) for m, design in enumerate(tree.designs)]}


def design_row(design, question, policy) -> dict:
    return {"script": design.script, "error": design.error, "structure": structure(design.script), "text": design.text,
            "completion_tokens": len(design.completion_ids), **tokens_of(design, policy), "reward": None, "advantage": None, "executions": []}


def tokens_of(completion, policy) -> dict:
    """The tokens to shade; none where an engine tells none, or where they don't make up the text."""
    tokens = policy.pieces(completion.completion_ids) if completion.logprobs else []
    return {"tokens": tokens if "".join(tokens).startswith(completion.text) else [], "logprobs": [round(p, 4) for p in completion.logprobs]}


def execution_row(execution, question, policy) -> dict:
    return {"status": execution.status, "detail": execution.detail, "submitted": execution.submitted, "reward": None, "advantage": None,
            "answer": None if execution.answer is None else said(question, execution.answer) or execution.answer,
            "calls": [{"agent": call.agent, "round": call.round, "turn": call.turn, "reads": read, "messages": list(call.messages), "text": call.text,
                       "answer": said(question, call.text), "tool_output": call.tool_output, "prompt_tokens": len(call.prompt_ids),
                       "completion_tokens": len(call.completion_ids), **tokens_of(call, policy)}
                      for call, read in zip(execution.calls, reads(execution.calls, question.prompt))]}


def said(question, text: str) -> str | None:
    """What a reply commits to: its boxed answer, or its program."""
    return last_program(text) if question.kind == "code" else final_answer(text)


def reads(calls, question: str) -> list[list[int]]:
    """Of each call, which earlier ones it read (-1: the question): those whose final reply stands, as whole words, in what it was shown; a turn
    after a tool run reads the turn before. Scripts hand over plain text, so two agents that say the same can't be told apart."""
    found = []
    for i, call in enumerate(calls):
        if call.turn > 0:
            found.append([i - 1])
            continue
        shown = "\n".join(message["content"] for message in call.messages[1:])
        rest = shown.replace(question, "\n") if question else shown
        final = [j for j in range(i) if calls[j].round < call.round and not calls[j + 1].turn]
        found.append([-1] * (bool(question) and question in shown)
                     + [j for j in final if calls[j].text.strip() and re.search(rf"(?<!\w){re.escape(calls[j].text.strip())}(?!\w)", rest)])
    return found


# ------------------------------------------------------------------------------------------------------------------ as text

def visible(value):
    """Text, or data of text, in which every hidden character is to be seen: control characters, and those that turn or hide text.

    >>> visible("a\\x1b[31m\\u202eb")
    'a␛[31m⟨202E⟩b'
    """
    if isinstance(value, str):
        return HIDDEN.sub(lambda match: chr(0x2400 + ord(match[0])) if match[0] < " " else f"⟨{ord(match[0]):04X}⟩", value)
    if isinstance(value, dict):
        return {key: visible(item) for key, item in value.items()}
    return [visible(item) for item in value] if isinstance(value, (list, tuple)) else value


def text_tree(label: str, children=(), lines: bool = True) -> list[str]:
    """The lines of a tree: a label, which may have several, over children, which are such lists. lines: drawn, or indented only."""
    found = label.splitlines() or [""]
    for number, child in enumerate(children, 1):
        first, rest = ("  ", "  ") if not lines else ("└─ ", "   ") if number == len(children) else ("├─ ", "│  ")
        found += [first + child[0], *(rest + line for line in child[1:])]
    return found


def as_text(shown: dict, lines: bool = True) -> str:
    """An episode as a tree for a terminal: designs, their executions, rounds, calls, and how it ended. lines: draw the branches (not into a pipe)."""
    shown = visible(shown)

    def branch(label, children=()):
        return text_tree(label, children, lines)

    def call(row):
        answer = f" → {row['answer']}" if row["answer"] is not None else ""
        parts = [branch(f"{name}: {value}") for name, value in (("asked", row["messages"][-1]["content"]), ("said", row["text"]), ("tool printed", row["tool_output"])) if value is not None]
        return branch(f"{row['agent']}{answer}   ({row['prompt_tokens']} tokens in, {row['completion_tokens']} out)", parts)

    def execution(number, row, design):
        rounds = sorted({one["round"] for one in row["calls"]})
        cost = design["completion_tokens"] + sum(one["completion_tokens"] for one in row["calls"])
        end = [f"outcome: {row['status']}" + (f" ({row['detail']})" if row["detail"] else ""), f"answer: {row['answer']}",
               f"cost: {len(row['calls'])} calls, {cost} tokens"] + ([f"reward: {row['reward']:g}, advantage {row['advantage']:+.2f}"] if row["reward"] is not None else [])
        return branch(f"execution {number}", [branch(f"round {place}", [call(one) for one in row["calls"] if one["round"] == place]) for place in rounds] + [branch("\n".join(end))])

    def design(number, row):
        credit = f", reward {row['reward']:.2f}, advantage {row['advantage']:+.2f}" if row["reward"] is not None else ""
        head = f"design {number}: {row['structure']}{credit}   ({row['completion_tokens']} tokens)" + (f"\n{row['error']}" if row["error"] else "")
        return branch(head, [branch(row["script"])] + [execution(n, one, row) for n, one in enumerate(row["executions"], 1)])

    return "\n".join(branch(f"question: {shown['question']}", [design(m, row) for m, row in enumerate(shown["designs"], 1)]))


# ------------------------------------------------------------------------------------------------------------------- pages

def page(name: str, data: dict, connect: str = "'none'") -> str:
    """web/NAME.html with its style, its scripts and `data` inside. connect: where its script may ask (a server's page: 'self')."""
    style, script = (WEB / "style.css").read_text(), (WEB / "common.js").read_text() + (WEB / f"{name}.js").read_text()

    def allowed(text):
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    policy = (f"default-src 'none'; script-src {allowed(script)}; style-src {allowed(style)}; img-src data:; connect-src {connect}; "
              "base-uri 'none'; form-action 'none'")
    source = json.dumps(visible(data), separators=(",", ":")).replace("<", "\\u003c")  # so that nothing in it looks like a tag
    html = (WEB / f"{name}.html").read_text()
    for key, text in (("policy", policy), ("style", style), ("script", script), ("data", source)):  # the data last: nothing in it is replaced
        html = html.replace("{{" + key + "}}", text)
    return html


def run_page(shown: dict | None, live: bool = False) -> str:
    """The page of an episode; `live`: the one that asks a server."""
    return page("run", {"episode": shown, "live": live}, "'self'" if live else "'none'")


def report_page(config: dict, rows: list[dict], episodes: list[dict]) -> str:
    """The page of a training run. rows: of metrics.jsonl. episodes: step, place, reward and page of those that are linked."""
    shares = [{kind: sum(count for name, count in row["structures"].items() if kind_of(name) == kind) for kind in KINDS} for row in rows]
    return page("report", {"config": config, "rows": [row | {"kinds": share} for row, share in zip(rows, shares)], "episodes": episodes,
                           "running": len(rows) < config["steps"] or "eval_accuracy" not in rows[-1]})  # the last evaluation comes after the last step


def picked(rows: list[dict]) -> dict[int, str]:
    """Steps whose episodes are worth a look: of the start, the middle and the end, the one with the best and the one with the worst reward."""
    found, third = {}, max(1, -(-len(rows) // 3))
    for name, part in zip(("start", "middle", "end"), (rows[i:i + third] for i in range(0, len(rows), third))):
        ordered = sorted(part, key=lambda row: (row["episode_reward"], row["step"]))
        found[ordered[0]["step"]] = f"{name}, worst"
        found[ordered[-1]["step"]] = f"{name}, best"
    return found


def write_report(out: pathlib.Path, every: bool = False) -> None:
    """Write report.html of a run's folder, and the pages of the episodes that it links; `every`: of all. Each file whole or not at all."""
    try:
        rows = [json.loads(line) for line in whole_lines(out / "metrics.jsonl")]
        config, episodes = json.loads((out / "config.json").read_text()), whole_lines(out / "episodes.jsonl") if rows else ()
    except (OSError, ValueError) as error:
        raise BadInput(f"{out}: no run to report on ({error})") from None
    places = picked(rows)
    (out / "episodes").mkdir(exist_ok=True)
    for row, line in zip(rows, episodes):  # a line a step in both
        if every or row["step"] in places and not episode_path(out, row["step"]).exists():
            atomic_write(episode_path(out, row["step"]), run_page(json.loads(line)))
    links = [{"step": row["step"], "place": places.get(row["step"], ""), "reward": row["episode_reward"], "page": f"episodes/{episode_path(out, row['step']).name}"}
             for row in rows if (every or row["step"] in places) and episode_path(out, row["step"]).exists()]
    atomic_write(out / "report.html", report_page(config, rows, links))


def episode_path(out: pathlib.Path, step: int) -> pathlib.Path:
    return out / "episodes" / f"{step:05d}.html"


def whole_lines(path: pathlib.Path):
    """The lines of a file, one at a time, but for a last one that a kill cut off. Raises OSError at once if there is none."""
    file = open(path, encoding="utf-8")

    def lines():
        with file:
            for line in file:
                if line.endswith("\n"):
                    yield line[:-1]

    return lines()


def main(argv) -> None:
    from dataclasses import make_dataclass

    import tyro
    config = flags(make_dataclass("Config", [("run", tyro.conf.Positional[str])]), argv, "Write a run's report.html, and a page for every episode.")
    write_report(pathlib.Path(config.run), every=True)


if __name__ == "__main__":
    command(main)
