"""Pages: one question's runs and a whole training, as data, as text, and as pages.

    python eval.py --ask "What is 37 * 52 + 418?" --html run.html   one run, as a page
    python train.py --out runs/x                    runs/x/report.html while it trains
    python -m viewer.pages runs/x                   again, with a page for every episode

An *episode* is one question with its M designs and their N executions: a line of episodes.jsonl,
and what a page shows. A page is one file of web/ with its style, its script and the episode as JSON
inside: it needs no network, no server, no other file.

What a model wrote is data here. In the page's source it is JSON in which no tag can end; the
scripts of web/ hand it to the document as text, never as markup; and the page's own policy lets
nothing run but those scripts, by their hash. Characters that are not seen, or that turn text
around, are shown as what they are (but for the joiners that emoji and some scripts need).

Test: `pytest tests/test_pages.py`. Read next: serve.py.
"""

import base64
import hashlib
import json
import pathlib
import re

from credit import design_rewards
from data_types import Call, Design, Execution, Question, Tree
from lib.answers import committed_answer
from lib.cli import command, flags
from lib.errors import UserError
from lib.files import atomic_write, complete_lines
from lib.metrics import KINDS, kind_of, structure
from lib.prices import net_rewards
from lib.replay import call_differences
from rollout import stack_rewards

WEB = pathlib.Path(__file__).resolve().parent / "web"
# Characters that are not seen, or that turn text around: code points, ranges with both ends.
HIDDEN = (
    "0-8 b-1f 7f-9f ad 34f 61c 115f 1160 17b4 17b5 180b-180e 200b 200e 200f 2028-202e 2060-206f "
    "2800 3164 d800-dfff fe00-fe0e feff ffa0 fff9-fffb e0000-e007f e0100-e01ef"
)
TOKENS_PER_CHARACTER = 4  # most tokens that make up one character


# ----------------------------------------------------------------------------------------- episodes


def episode(
    step: int | None,
    tree: Tree,
    designer_adv_M,
    executor_adv_M_N,
    policy,
    designer_policy=None,
    replays_M_N: dict = {},
    without_agents_M: list[dict] = [],
) -> dict:
    """A tree as plain data: what was designed, who said what, who read it, where credit went.

    Args:
        designer_adv_M, executor_adv_M_N: advantages, or None where nothing is known of rewards.
            `reward` and `advantage` are None there, and where the infrastructure failed.
        designer_policy: the policy of the designer role, if it is another.
        replays_M_N: (m, n) -> [lib.replay.Replay]: calls have a credit, and what else they said.
        without_agents_M: of each design, agent -> mean reward without it.
    """
    question = tree.question
    rewards_M_N = net_rewards(tree)
    means, has_valid = design_rewards(*stack_rewards([tree]))
    designs = []
    for m, design in enumerate(tree.designs):
        shown = design_data(design, designer_policy or policy)
        if designer_adv_M is not None and has_valid[0, m]:
            shown |= credit_data(means[0, m], designer_adv_M[m])
        if without_agents_M:
            shown["without"] = without_agents_M[m]
        for n, execution in enumerate(tree.executions[m]):
            run = execution_data(execution, question, policy)
            if executor_adv_M_N is not None and execution.valid:
                run |= credit_data(rewards_M_N[m][n], executor_adv_M_N[m, n])
                run["grade"] = execution.reward  # before paying for its tokens
                add_replays(run["calls"], execution, run["reward"], replays_M_N.get((m, n), []))
            shown["executions"].append(run)
        designs.append(shown)
    return {
        "step": step,
        "question": question.prompt,
        "family": question.family,
        "gold": question.answer,
        "price": question.price,
        "designs": designs,
    }


def add_replays(calls: list[dict], execution: Execution, reward: float, replays: list) -> None:
    """To each call that was drawn again: its credit, and what else it said and where that led."""
    for call, credit in call_differences(reward, replays).items():
        others = [replay for replay in replays if replay.call == call]
        calls[call]["credit"] = credit
        calls[call]["replays"] = [
            {"text": replay.said(execution), "reward": replay.reward} for replay in others
        ]


def credit_data(reward, advantage) -> dict:
    return {"reward": float(reward), "advantage": float(advantage)}


def design_data(design: Design, policy) -> dict:
    return {
        "script": design.script,
        "error": design.error,
        "structure": structure(design.script),
        "text": design.text,
        "completion_tokens": len(design.completion_ids),
        **token_data(design, policy),
        "reward": None,
        "advantage": None,
        "executions": [],
    }


def execution_data(execution: Execution, question: Question, policy) -> dict:
    answer = execution.answer
    if answer is not None:
        answer = committed_answer(question.kind, answer) or answer
    reads = calls_read(execution.calls, question.prompt)
    calls = []
    for call, reads_of_call in zip(execution.calls, reads):
        calls.append(
            {
                "agent": call.agent,
                "round": call.round,
                "turn": call.turn,
                "reads": reads_of_call,
                "messages": list(call.messages),
                "text": call.text,
                "answer": committed_answer(question.kind, call.text),
                "tool_output": call.tool_output,
                "prompt_tokens": len(call.prompt_ids),
                "completion_tokens": len(call.completion_ids),
                **token_data(call, policy),
            }
        )
    return {
        "status": execution.status,
        "detail": execution.detail,
        "submitted": execution.submitted,
        "reward": None,
        "advantage": None,
        "answer": answer,
        "calls": calls,
    }


def token_data(completion: Design | Call, policy) -> dict:
    """The tokens to shade, with their log-probabilities.

    No tokens where an engine tells none, or where they don't make up the text.
    """
    tokens = []
    if completion.logprobs and hasattr(policy, "tokenizer"):
        tokens = token_pieces(policy.tokenizer, completion.completion_ids)
    if not "".join(tokens).startswith(completion.text):
        tokens = []
    return {"tokens": tokens, "logprobs": [round(p, 4) for p in completion.logprobs]}


def token_pieces(tokenizer, ids) -> list[str]:
    """The text of each token, special ones too.

    Of tokens that make up one character together, the last has it.
    """
    pieces = []
    start = 0  # of the tokens that have no piece yet
    for end in range(1, len(ids) + 1):
        context = max(0, start - 1)  # one token more: some decoders drop a text's first space
        before = tokenizer.decode(ids[context:start])
        piece = tokenizer.decode(ids[context:end])[len(before) :]
        is_partial = piece.endswith("\N{REPLACEMENT CHARACTER}")
        if is_partial and end - start < TOKENS_PER_CHARACTER and end < len(ids):
            pieces.append("")
            continue
        pieces.append(piece)
        start = end
    return pieces


def calls_read(calls: tuple[Call, ...], question: str) -> list[list[int]]:
    """For each call, the earlier calls that it read; -1 is the question.

    It read those whose final reply stands, as whole words, in what it was shown. A turn after a
    tool call reads the turn before. Scripts hand over plain text: two agents that say the same
    can't be told apart.
    """
    reads = []
    for i, call in enumerate(calls):
        if call.turn > 0:
            reads.append([i - 1])
            continue
        shown = "\n".join(message["content"] for message in call.messages[1:])
        sees_question = bool(question) and question in shown
        rest = shown.replace(question, "\n") if question else shown
        reads_of_call = [-1] if sees_question else []
        for j in range(i):
            is_final = calls[j].round < call.round and not calls[j + 1].turn
            text = calls[j].text.strip()
            if is_final and text and stands_in(text, rest):
                reads_of_call.append(j)
        reads.append(reads_of_call)
    return reads


def stands_in(text: str, shown: str) -> bool:
    """Whether `text` stands in `shown` as whole words.

    >>> stands_in("12", "It is 12."), stands_in("12", "It is 123.")
    (True, False)
    """
    # Linear, which a regular expression is not. One that overlaps the one before is not seen.
    start = shown.find(text)
    while start >= 0:
        end = start + len(text)
        if not re.search(r"\w", shown[max(0, start - 1) : start] + shown[end : end + 1]):
            return True
        start = shown.find(text, end)
    return False


# ------------------------------------------------------------------------------------------ as text


def visible_characters() -> dict[int, str]:
    """Hidden character -> what is shown in its place."""
    shown = {}
    for part in HIDDEN.split():
        first, _, last = part.partition("-")
        for code in range(int(first, 16), int(last or first, 16) + 1):
            shown[code] = chr(0x2400 + code) if code < 0x20 else f"⟨{code:04X}⟩"
    return shown


VISIBLE = visible_characters()


def visible(value):
    """Text, or data of text, in which every hidden character is to be seen.

    >>> visible("a\\x1b[31m\\u202eb")
    'a␛[31m⟨202E⟩b'
    """
    if isinstance(value, str):
        return value.translate(VISIBLE)
    if isinstance(value, dict):
        return {visible(key): visible(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [visible(item) for item in value]
    return value


class TextTree:
    """Draws an episode as a tree; lines: with branches (not into a pipe)."""

    def __init__(self, lines: bool):
        self.lines = lines

    def branch(self, label: str, children: list[str] = ()) -> str:
        """A label, which may have several lines, over its children."""
        parts = [label.removesuffix("\n")]
        for number, child in enumerate(children, 1):
            first, rest = "├─ ", "│  "
            if number == len(children):
                first, rest = "└─ ", "   "
            if not self.lines:
                first, rest = "  ", "  "
            parts.append(first + child.replace("\n", "\n" + rest))
        return "\n".join(parts)

    def episode(self, episode: dict) -> str:
        designs = [self.design(m, design) for m, design in enumerate(episode["designs"], 1)]
        label = f"question: {episode['question']}"
        if price := episode.get("price"):
            label += f"\na thousand tokens cost {price:g}"
        return self.branch(label, designs)

    def design(self, number: int, design: dict) -> str:
        label = f"design {number}: {design['structure']}{credit_text(design)}"
        label += f"   ({design['completion_tokens']} tokens)"
        for agent, reward in design.get("without", {}).items():
            label += f"\nwithout {agent}: reward {reward:.2f}"
        if design["error"]:
            label += f"\n{design['error']}"
        children = [self.branch(design["script"])]
        for n, execution in enumerate(design["executions"], 1):
            children.append(self.execution(n, execution, design))
        return self.branch(label, children)

    def execution(self, number: int, execution: dict, design: dict) -> str:
        calls = execution["calls"]
        children = []
        for round in sorted({call["round"] for call in calls}):
            members = [self.call(call) for call in calls if call["round"] == round]
            children.append(self.branch(f"round {round}", members))

        cost = design["completion_tokens"] + sum(call["completion_tokens"] for call in calls)
        outcome = f"outcome: {execution['status']}"
        if execution["detail"]:
            outcome += f" ({execution['detail']})"
        end = [
            outcome,
            f"answer: {execution['answer']}",
            f"cost: {len(calls)} calls, {cost} tokens",
        ]
        if execution["reward"] is not None:
            advantage = f"advantage {execution['advantage']:+.2f}"
            end.append(f"reward: {execution['reward']:g}, {advantage}")
        children.append(self.branch("\n".join(end)))
        return self.branch(f"execution {number}", children)

    def call(self, call: dict) -> str:
        label = call["agent"]
        if call["answer"] is not None:
            label += f" → {call['answer']}"
        label += f"   ({call['prompt_tokens']} tokens in, {call['completion_tokens']} out)"
        children = [
            self.branch(f"asked: {call['messages'][-1]['content']}"),
            self.branch(f"said: {call['text']}"),
        ]
        if call["tool_output"] is not None:
            children.append(self.branch(f"tool printed: {call['tool_output']}"))
        if "credit" in call:
            others = [f"{other['text']} (reward {other['reward']:g})" for other in call["replays"]]
            label += f", credit {call['credit']:+.2f}"
            children.append(self.branch("drawn again:", [self.branch(text) for text in others]))
        return self.branch(label, children)


def credit_text(design: dict) -> str:
    if design["reward"] is None:
        return ""
    return f", reward {design['reward']:.2f}, advantage {design['advantage']:+.2f}"


def as_text(episode: dict, lines: bool = True) -> str:
    """An episode as a tree for a terminal: designs, executions, rounds, calls, how each ended."""
    return TextTree(lines).episode(visible(episode))


# -------------------------------------------------------------------------------------------- pages


def page(name: str, data: dict, connect: str = "'none'") -> str:
    """web/NAME.html with its style, its scripts and `data` inside.

    connect: where its script may ask; for a server's page 'self'.
    """
    style = (WEB / "style.css").read_text()
    script = (WEB / "common.js").read_text() + (WEB / f"{name}.js").read_text()
    rules = [
        "default-src 'none'",
        f"script-src {hash_source(script)}",
        f"style-src {hash_source(style)}",
        "img-src data:",
        f"connect-src {connect}",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    source = json.dumps(visible(data), separators=(",", ":"))
    source = source.replace("<", "\\u003c")  # so that nothing in it looks like a tag
    html = (WEB / f"{name}.html").read_text()
    # The data last: nothing in it is replaced.
    contents = {"policy": "; ".join(rules), "style": style, "script": script, "data": source}
    for key, text in contents.items():
        html = html.replace("{{" + key + "}}", text)
    return html


def hash_source(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def run_page(episode: dict | None, live: bool = False) -> str:
    """The page of an episode. live: the one that asks a server."""
    connect = "'self'" if live else "'none'"
    return page("run", {"episode": episode, "live": live}, connect)


def report_page(config: dict, rows: list[dict], episodes: list[dict]) -> str:
    """The page of a training run.

    Args:
        rows: of metrics.jsonl.
        episodes: step, place, reward and page of those that are linked.
    """
    shown = []
    for row in rows:
        kinds = dict.fromkeys(KINDS, 0)
        for name, count in row["structures"].items():
            kinds[kind_of(name)] += count
        shown.append(row | {"kinds": kinds})
    # The last evaluation comes after the last step.
    is_running = len(rows) < config["steps"] or "eval_accuracy" not in rows[-1]
    data = {"config": config, "rows": shown, "episodes": episodes, "running": is_running}
    return page("report", data)


def episodes_to_link(rows: list[dict]) -> dict[int, str]:
    """Steps whose episodes are worth a look: of the start, the middle and the end of the run, the
    one with the worst reward and the one with the best."""
    places = {}
    third = max(1, -(-len(rows) // 3))
    for number, name in enumerate(("start", "middle", "end")):
        members = rows[number * third : (number + 1) * third]
        if members:
            ordered = sorted(members, key=lambda row: (row["episode_reward"], row["step"]))
            places[ordered[0]["step"]] = f"{name}, worst"
            places[ordered[-1]["step"]] = f"{name}, best"
    return places


def write_report(out: pathlib.Path, every: bool = False) -> None:
    """Write report.html of a run's folder, and the pages of the episodes that it links.

    every: pages of all episodes. Each file is written whole or not at all. Raises UserError.
    """
    try:
        rows = [json.loads(line) for line in complete_lines(out / "metrics.jsonl")]
        config = json.loads((out / "config.json").read_text())
        episodes = complete_lines(out / "episodes.jsonl") if rows else ()
    except (OSError, ValueError) as error:
        raise UserError(f"{out}: no run to report on ({error})") from None
    places = episodes_to_link(rows)
    (out / "episodes").mkdir(exist_ok=True)
    links = []
    for row, line in zip(rows, episodes):  # a line a step in both
        step = row["step"]
        if not every and step not in places:
            continue
        path = out / "episodes" / f"{step:05d}.html"
        if every or not path.exists():
            atomic_write(path, run_page(json.loads(line)))
        links.append(
            {
                "step": step,
                "place": places.get(step, ""),
                "reward": row["episode_reward"],
                "page": f"episodes/{path.name}",
            }
        )
    atomic_write(out / "report.html", report_page(config, rows, links))


def main(argv: list[str]) -> None:
    from dataclasses import make_dataclass

    import tyro

    config_class = make_dataclass("Config", [("run", tyro.conf.Positional[str])])
    config = flags(config_class, argv, "Write a run's report.html, and a page for every episode.")
    write_report(pathlib.Path(config.run), every=True)


if __name__ == "__main__":
    command(main)
