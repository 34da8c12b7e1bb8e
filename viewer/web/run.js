// One question: its designs, their executions, and every call. The page shows one design and one
// execution at a time; `chosen` says which.

let run = data.episode;
const chosen = { design: 0, execution: 0 };
const toggled = new Map(); // which calls a reader has opened or closed
const SHADED = 4000; // tokens of a text that are shaded one by one; a longer one is shown plain
const PART = 20000; // characters that are laid out at once

const cut = (text, length) => (text.length > length ? text.slice(0, length - 1) + "…" : text);
const chosenDesign = () => run.designs[chosen.design];
const statusOf = (execution) => execution.status || "running";

// ------------------------------------------------------------------------------------------- texts

// A very long text is shown in parts. The browser lays out those in view.
function pre(kind, text) {
  if (text.length <= PART) return el("pre", { class: kind }, text);
  const parts = [];
  for (let start = 0; start < text.length; start += PART) {
    parts.push(el("span", { class: "part" }, text.slice(start, start + PART)));
  }
  return el("pre", { class: kind }, parts);
}

const STRING = /"""[^]*?"""|'''[^]*?'''|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'/.source;
const COMMENT = /#[^\n]*/.source;
const KEYWORD =
  "for|while|if|elif|else|def|return|in|not|and|or|import|from|lambda|break|continue|" +
  "None|True|False";
const BLOCK = "Agent|ask_all|vote|judge|reflect|debate|route|submit";
const CODE_PARTS = new RegExp(
  `(${STRING})|(${COMMENT})|\\b(${KEYWORD})\\b|\\b(${BLOCK})(?=\\s*\\()`,
  "g",
);
const CODE_KINDS = ["string", "comment", "keyword", "block"]; // the groups of CODE_PARTS

function code(text) {
  if (text.length > PART) return pre("code", text);
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(CODE_PARTS)) {
    const group = match.slice(1).findIndex((found) => found !== undefined);
    parts.push(text.slice(end, match.index));
    parts.push(el("span", { class: CODE_KINDS[group] }, match[0]));
    end = match.index + match[0].length;
  }
  return el("pre", { class: "code" }, ...parts, text.slice(end));
}

function shadedToken(token, logprob) {
  const span = el("span", { title: `probability ${Math.exp(logprob).toFixed(3)}` }, token);
  const opacity = Math.min(0.45, -logprob * 0.12).toFixed(3);
  span.style.backgroundColor = `rgba(var(--shade), ${opacity})`;
  return span;
}

function shaded(tokens, logprobs, text) {
  if (!tokens || tokens.length === 0) return pre("tokens", text);
  if (tokens.length > SHADED || text.length > PART) return pre("tokens", text);
  const spans = tokens.map((token, i) => shadedToken(token, logprobs[i]));
  return el("pre", { class: "tokens" }, spans);
}

// ---------------------------------------------------------------------------------------- the tree

// The reward before tokens were paid for.
function gradeOf(execution) {
  return missing(execution.grade) ? execution.reward : execution.grade;
}

function mark(execution) {
  const grade = gradeOf(execution);
  if (execution.status === null) return "…";
  if (grade === null) return "";
  if (grade === 1) return "✓";
  if (grade === 0) return "✗";
  return show(grade);
}

function tone(execution) {
  const grade = gradeOf(execution);
  if (grade === null) return "quiet";
  return grade > 0 ? "good" : "bad";
}

function choose(design, execution) {
  chosen.design = Math.max(0, Math.min(design, run.designs.length - 1));
  const count = chosenDesign().executions.length;
  chosen.execution = Math.max(0, Math.min(execution, count - 1));
  render();
}

const ARROWS = {
  ArrowLeft: [0, -1],
  ArrowRight: [0, 1],
  ArrowUp: [-1, 0],
  ArrowDown: [1, 0],
};

function followArrows(event) {
  const move = ARROWS[event.key];
  if (!move) return;
  event.preventDefault();
  choose(chosen.design + move[0], chosen.execution + move[1]);
  document.getElementById(`leaf-${chosen.design}-${chosen.execution}`).focus();
}

function leaf(execution, d, e) {
  const advantage = execution.advantage === null ? "" : signed(execution.advantage);
  const name = `design ${d + 1}, execution ${e + 1}`;
  const credit = `reward ${show(execution.reward)}, advantage ${signed(execution.advantage)}`;
  const attributes = {
    id: `leaf-${d}-${e}`,
    type: "button",
    class: tone(execution),
    "aria-pressed": String(d === chosen.design && e === chosen.execution),
    "aria-label": `${name}: ${statusOf(execution)}, ${credit}`,
    onclick: () => choose(d, e),
    onkeydown: followArrows,
  };
  return el("button", attributes, `${e + 1} ${mark(execution)} ${advantage}`);
}

function designRow(design, d) {
  const leaves = design.executions.map((execution, e) => leaf(execution, d, e));
  return el(
    "tr",
    {},
    el("th", { scope: "row" }, `${d + 1}`),
    el("td", {}, design.structure),
    el("td", {}, show(design.reward)),
    el("td", {}, signed(design.advantage)),
    el("td", {}, el("div", { class: "leaves" }, leaves)),
  );
}

function tree() {
  const caption =
    "Reward and advantage of both roles: of each design, the mean over its executions; " +
    "of each execution, its own. Arrow keys move between them.";
  const columns = [
    "design",
    "kind",
    "reward",
    "advantage",
    "executions: right or wrong, advantage",
  ];
  const head = columns.map((name) => el("th", { scope: "col" }, name));
  const table = el(
    "table",
    { id: "tree" },
    el("caption", {}, caption),
    el("thead", {}, el("tr", {}, head)),
    el("tbody", {}, run.designs.map(designRow)),
  );
  return [el("h2", {}, "The tree"), el("div", { class: "scroll" }, table)];
}

// --------------------------------------------------------------------------------------- the graph

const WIDTH = 132;
const HEIGHT = 46;
const GAP_X = 30;
const GAP_Y = 16;
const LEFT = 4;
const TOP = 24;
const columnX = (i) => LEFT + i * (WIDTH + GAP_X);

// The turns of one agent in one round are one node.
function asks(calls) {
  const nodes = [];
  calls.forEach((call, i) => {
    if (call.turn === 0 || nodes.length === 0) {
      nodes.push({ agent: call.agent, round: call.round, first: i, reads: call.reads, tools: 0 });
    }
    const node = nodes[nodes.length - 1];
    node.last = i;
    node.answer = call.answer;
    node.text = call.text;
    node.tools += call.tool_output === null ? 0 : 1;
  });
  return nodes;
}

// Give every node its place, a column for each round. Returns the height of the highest column.
function placeNodes(nodes, rounds) {
  const columns = rounds.map((round) => nodes.filter((node) => node.round === round));
  const most = Math.max(1, ...columns.map((column) => column.length));
  columns.forEach((column, i) => {
    const space = ((most - column.length) * (HEIGHT + GAP_Y)) / 2;
    column.forEach((node, row) => {
      node.x = columnX(i + 1);
      node.y = TOP + space + row * (HEIGHT + GAP_Y);
    });
  });
  return most * (HEIGHT + GAP_Y) - GAP_Y;
}

// The node whose reply was submitted, the nodes of its round, and those that say the same.
function vote(nodes, execution) {
  const holds = (node, i) => node.first <= i && i <= node.last;
  const submitted = nodes.find(
    (node) => execution.submitted !== null && holds(node, execution.submitted),
  );
  if (!submitted) return { submitted, voters: [], agree: [] };
  const voters = nodes.filter((node) => node.round === submitted.round);
  const agree = voters.filter((node) => node.answer !== null && node.answer === submitted.answer);
  return { submitted, voters, agree };
}

function box(x, y, title, line, options) {
  const attributes = {
    class: `node ${options.class || ""}`,
    transform: `translate(${x} ${y})`,
    ...options.attributes,
  };
  return svg(
    "g",
    attributes,
    svg("title", {}, options.title || title),
    svg("rect", { width: WIDTH, height: HEIGHT, rx: 6 }),
    svg("text", { x: 9, y: 19 }, cut(title, 17)),
    svg("text", { x: 9, y: 37, class: "small" }, cut(line, 19)),
  );
}

function nodeLabel(node, rounds) {
  const parts = [`${node.agent}, round ${rounds.indexOf(node.round) + 1}`];
  if (node.answer !== null) parts.push(`answers ${cut(node.answer, 60)}`);
  if (node.tools) parts.push(plural(node.tools, "tool run"));
  return parts.join(", ");
}

function nodeBox(node, e, rounds, submitted) {
  function open() {
    choose(chosen.design, e);
    openCall(node.last);
  }

  function openByKey(event) {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    open();
  }

  const title = node.agent + (node.tools ? `  ⚙${node.tools}` : "");
  const line = node.answer !== null ? `→ ${node.answer}` : node.text;
  return box(node.x, node.y, title, line, {
    class: node === submitted ? "submitted" : "",
    title: `${node.agent}: ${cut(node.text, 300)}`,
    attributes: {
      id: `node-${e}-${node.first}`,
      role: "button",
      tabindex: 0,
      "aria-label": nodeLabel(node, rounds),
      onclick: open,
      onkeydown: openByKey,
    },
  });
}

// An edge over more than one round goes below the agents in between.
function path(from, to, kind) {
  const bow = to.x - from.x > WIDTH + GAP_X ? 44 : 0;
  const x1 = from.x + WIDTH;
  const y1 = from.y + HEIGHT / 2;
  const x2 = to.x - 3;
  const y2 = to.y + HEIGHT / 2;
  const bend = Math.max(20, (x2 - x1) / 2);
  const curve = `C${x1 + bend} ${y1 + bow} ${x2 - bend} ${y2 + bow} ${x2} ${y2}`;
  return svg("path", {
    class: `edge ${kind}`,
    d: `M${x1} ${y1} ${curve}`,
    "marker-end": "url(#arrow)",
  });
}

// The edges from what a node reads.
function edgesTo(node, nodes, question) {
  const said = node.reads.filter((i) => i >= 0);
  if (said.length) {
    const sources = said.map((i) => nodes.find((other) => other.first <= i && i <= other.last));
    return sources.map((source) => path(source, node, ""));
  }
  return node.reads.includes(-1) ? [path(question, node, "")] : [];
}

function edgesToAnswer(answer, { submitted, voters, agree }) {
  if (!submitted) return [];
  const others = voters.filter((node) => node !== submitted);
  const votes = others.map((node) => path(node, answer, agree.includes(node) ? "" : "vote"));
  return [...votes, path(submitted, answer, "answer")];
}

function arrowHead() {
  const attributes = {
    id: "arrow",
    viewBox: "0 0 8 8",
    refX: 7,
    refY: 4,
    markerWidth: 8,
    markerHeight: 8,
    markerUnits: "userSpaceOnUse",
    orient: "auto",
  };
  const marker = svg("marker", attributes, svg("path", { d: "M0 0L8 4L0 8z" }));
  return svg("defs", {}, marker);
}

function ending(execution) {
  if (execution.status === null) return "…";
  return execution.answer !== null ? execution.answer : execution.status;
}

function graph(execution, e) {
  const nodes = asks(execution.calls);
  const rounds = [...new Set(nodes.map((node) => node.round))];
  const height = placeNodes(nodes, rounds);
  const middle = TOP + (height - HEIGHT) / 2;
  const question = { x: columnX(0), y: middle };
  const answer = { x: columnX(rounds.length + 1), y: middle };
  const votes = vote(nodes, execution);
  const { submitted, voters, agree } = votes;

  const wide = answer.x + WIDTH + 6;
  const roundNames = rounds.map((round, i) =>
    svg("text", { class: "small", x: columnX(i + 1), y: 14 }, `round ${i + 1}`),
  );
  let answerTitle = "answer";
  if (voters.length > 1) answerTitle = `answer: ${agree.length || 1} of ${voters.length}`;
  const picture = svg(
    "svg",
    {
      viewBox: `0 0 ${wide} ${height + 48}`,
      role: "group",
      "aria-label": `${plural(nodes.length, "ask")} in ${plural(rounds.length, "round")}`,
    },
    arrowHead(),
    roundNames,
    nodes.map((node) => edgesTo(node, nodes, question)),
    edgesToAnswer(answer, votes),
    box(question.x, question.y, "question", run.question, {}),
    nodes.map((node) => nodeBox(node, e, rounds, submitted)),
    box(answer.x, answer.y, answerTitle, ending(execution), { class: "submitted" }),
  );
  // It shrinks a little before it has to be scrolled.
  picture.style.width = "100%";
  picture.style.maxWidth = `${wide}px`;
  picture.style.minWidth = `${0.72 * wide}px`;
  const label = `graph of execution ${e + 1}`;
  const attributes = { class: "scroll", tabindex: 0, role: "region", "aria-label": label };
  return el("div", attributes, picture);
}

// ------------------------------------------------------------------------------------------- calls

const nameOf = (i) => `call-${chosen.design}-${chosen.execution}-${i}`;

function openCall(i) {
  const item = document.getElementById(nameOf(i));
  item.open = true;
  item.scrollIntoView({ block: "nearest" });
  item.querySelector("summary").focus();
}

function callSummary(call) {
  let text = `, round ${call.round}`;
  if (call.turn) text += `, turn ${call.turn + 1}`;
  if (call.answer !== null) text += ` → ${cut(call.answer, 80)}`;
  if (call.tool_output !== null) text += ", ran a tool";
  return text;
}

function tokenCounts(call) {
  const counts = `${call.prompt_tokens} in, ${call.completion_tokens} out`;
  if (!call.logprobs.length) return counts;
  const sum = call.logprobs.reduce((total, p) => total + p, 0);
  return `${counts}; mean −log p ${show(-sum / call.logprobs.length)}`;
}

function callBody(call) {
  const sources = call.reads.map((j) => (j < 0 ? "the question" : `call ${j + 1}`));
  const prompt = call.messages.flatMap((message) => [
    el("p", { class: "quiet" }, message.role),
    pre("prompt", message.content),
  ]);
  const body = [
    el(
      "dl",
      {},
      el("dt", {}, "tokens"),
      el("dd", {}, tokenCounts(call)),
      el("dt", {}, "read"),
      el("dd", {}, sources.join(", ") || "nothing that was said before"),
    ),
    el("h3", {}, "Prompt"),
    ...prompt,
    el("h3", {}, "Reply"),
    shaded(call.tokens, call.logprobs, call.text),
  ];
  if (call.tool_output !== null) {
    body.push(el("h3", {}, "The tool's output"));
    body.push(pre("tool", call.tool_output));
  }
  if (call.replays) {
    body.push(el("h3", {}, "What if it had said something else?"));
    body.push(otherReplies(call));
  }
  return body;
}

// The replies that were drawn in the place of this one, and where they led.
function otherReplies(call) {
  const rows = call.replays.map((other) =>
    el("tr", {}, el("td", {}, cut(other.text, 300)), el("td", {}, show(other.reward))),
  );
  const head = ["reply", "reward of the execution"].map((name) => el("th", { scope: "col" }, name));
  return el(
    "table",
    { class: "replies" },
    el("thead", {}, el("tr", {}, head)),
    el("tbody", {}, rows),
  );
}

// The reward of the execution minus that of its replays: to the right a gain, to the left a loss.
function creditBar(call) {
  const half = 30;
  const length = half * Math.min(1, Math.abs(call.credit));
  const label = `credit ${signed(call.credit)}`;
  return [
    svg(
      "svg",
      { class: "credit", viewBox: `0 0 ${2 * half} 12`, role: "img", "aria-label": label },
      svg("rect", {
        class: call.credit < 0 ? "loss" : "gain",
        x: call.credit < 0 ? half - length : half,
        y: 2,
        width: length,
        height: 8,
      }),
      svg("line", { x1: half, x2: half, y1: 0, y2: 12 }),
    ),
    el("span", { class: "quiet" }, ` ${label}`),
  ];
}

function callItem(call, i) {
  const name = nameOf(i);
  const open = toggled.has(name) ? toggled.get(name) : Boolean(data.live);
  const item = el("details", { id: name, class: "call", open });
  const facts = el("span", { class: "quiet" }, callSummary(call));
  const bar = missing(call.credit) ? [] : creditBar(call);
  item.append(el("summary", { id: `${name}-summary` }, `${i + 1}. ${call.agent}`, facts, bar));

  // The body is made when the call is opened for the first time.
  function fillOnce() {
    if (item.open && item.childElementCount === 1) item.append(...callBody(call));
  }

  item.addEventListener("toggle", () => {
    toggled.set(name, item.open);
    fillOnce();
  });
  fillOnce();
  return item;
}

function toggleAll(open) {
  document.querySelectorAll("details.call").forEach((item) => {
    item.open = open;
  });
}

// ---------------------------------------------------------------------------------------- the page

function outcome(design, execution) {
  const said = execution.calls.reduce((sum, call) => sum + call.completion_tokens, 0);
  const tokens = plural(design.completion_tokens + said, "token");
  const detail = execution.detail ? `: ${cut(execution.detail, 2000)}` : "";
  const facts = [
    ["outcome", statusOf(execution) + detail],
    ["answer", execution.answer === null ? "–" : cut(execution.answer, 2000)],
    ["right answer", cut(run.gold, 2000) || "not known"],
    ["reward", show(execution.reward)],
    ["cost", `${plural(execution.calls.length, "call")}, ${tokens} with the design`],
  ];
  const entries = facts.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]);
  return el("dl", { class: "outcome" }, entries);
}

function card(design, execution, e) {
  const now = e === chosen.execution;
  const attributes = {
    id: `card-${e}`,
    type: "button",
    "aria-pressed": String(now),
    onclick: () => choose(chosen.design, e),
  };
  const button = el("button", attributes, `Execution ${e + 1} ${mark(execution)}`);
  return el(
    "section",
    { class: now ? "card chosen" : "card", "aria-label": `execution ${e + 1}` },
    el("h3", {}, button),
    graph(execution, e),
    outcome(design, execution),
  );
}

function questionParts() {
  const facts = [];
  if (run.step !== null) facts.push(`step ${run.step}`);
  if (run.family) facts.push(run.family);
  if (run.price) facts.push(`a thousand tokens cost ${run.price}`);
  if (run.gold) facts.push(`right answer: ${cut(run.gold, 2000)}`);
  return [
    el("h2", {}, "The question"),
    fill(pre("question", run.question), { id: "asked" }, []),
    el("p", { class: "quiet" }, facts.join(", ")),
  ];
}

function designerText(design) {
  const tokens = plural(design.completion_tokens, "token");
  const summary = `What the designer wrote, ${tokens}, shaded where it was unsure`;
  return el(
    "details",
    { id: "written" },
    el("summary", {}, summary),
    shaded(design.tokens, design.logprobs, design.text),
  );
}

function designParts(design) {
  const found = [el("h2", {}, `Design ${chosen.design + 1}: ${design.structure}`)];
  if (design.error) found.push(el("p", { class: "bad" }, cut(design.error, 2000)));
  found.push(code(design.script));
  for (const [agent, reward] of Object.entries(design.without || {})) {
    found.push(el("p", { class: "quiet" }, `without ${cut(agent, 80)}: reward ${show(reward)}`));
  }
  if (design.text) found.push(designerText(design));
  return found;
}

function callButtons() {
  return el(
    "p",
    {},
    el("button", { type: "button", onclick: () => toggleAll(true) }, "Expand all"),
    " ",
    el("button", { type: "button", onclick: () => toggleAll(false) }, "Collapse all"),
  );
}

function executionParts(design, execution) {
  const count = design.executions.length;
  let title = "The execution";
  if (count > 1) title = `The ${count} executions of design ${chosen.design + 1}`;
  const cards = design.executions.map((one, e) => card(design, one, e));
  return [
    el("h2", {}, title),
    el("div", { class: "cards" }, cards),
    el("h2", {}, `Calls of execution ${chosen.execution + 1}`),
    execution.calls.length ? callButtons() : el("p", { class: "quiet" }, "none"),
    el("div", { id: "calls" }, execution.calls.map(callItem)),
  ];
}

function parts() {
  if (!run) return [];
  if (!run.designs.length) return questionParts();
  const design = chosenDesign();
  const execution = design.executions[chosen.execution];
  const many = run.designs.length > 1 || design.executions.length > 1;
  return [
    ...questionParts(),
    ...(many ? tree() : []),
    ...designParts(design),
    ...(execution ? executionParts(design, execution) : []),
  ];
}

function render() {
  const focus = document.activeElement && document.activeElement.id;
  document.getElementById("run").replaceChildren(...parts());
  const again = focus && document.getElementById(focus);
  if (again) again.focus({ preventScroll: true });
}

// -------------------------------------------------------------------------------------------- live

async function ask(question, signal) {
  const status = document.getElementById("status");
  status.textContent = "designing …";
  const response = await fetch("ask", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ question }),
    signal,
  });
  if (!response.ok) throw new Error(await response.text());
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    if (!lines.length) continue;
    const message = JSON.parse(lines[lines.length - 1]); // each line is the whole run so far
    if (message.error) throw new Error(message.error);
    run = message;
    chosen.design = 0;
    chosen.execution = 0;
    render();
    if (run.designs.length) {
      const running = run.designs[0].executions[0].status === null;
      status.textContent = running ? "the agents are answering …" : "done";
    }
  }
}

function listen() {
  const form = document.getElementById("ask");
  const stop = document.getElementById("stop");
  const button = form.querySelector("button[type=submit]");
  form.hidden = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const controller = new AbortController();
    stop.onclick = () => controller.abort();
    button.disabled = true;
    stop.disabled = false;
    run = null;
    toggled.clear();
    render();
    try {
      await ask(document.getElementById("question").value, controller.signal);
    } catch (error) {
      const text = error.name === "AbortError" ? "stopped" : `failed: ${error.message}`;
      document.getElementById("status").textContent = text;
    }
    button.disabled = false;
    stop.disabled = true;
  });
}

if (data.live) listen();
render();
