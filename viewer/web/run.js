// One question: its designs, their executions, and every call. The page shows one design and one execution at a time; `chosen` says which.

let run = data.episode;
const chosen = { design: 0, execution: 0 };
const toggled = new Map(); // which calls a reader has opened or closed
const SHADED = 4000, PART = 20000; // tokens of a text that are shaded one by one, a longer one is shown plain; characters that are laid out at once

// ------------------------------------------------------------------------------------------------------------------ texts

function pre(kind, text) { // a very long text in parts, of which the browser lays out those in view
  if (text.length <= PART) return el("pre", { class: kind }, text);
  const parts = Array.from({ length: Math.ceil(text.length / PART) }, (_, i) => text.slice(i * PART, (i + 1) * PART));
  return el("pre", { class: kind }, parts.map((part) => el("span", { class: "part" }, part)));
}

function code(text) {
  if (text.length > PART) return pre("code", text);
  const pattern = /("""[^]*?"""|'''[^]*?'''|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|(#[^\n]*)|\b(for|while|if|elif|else|def|return|in|not|and|or|import|from|lambda|break|continue|None|True|False)\b|\b(Agent|ask_all|vote|judge|reflect|debate|route|submit)(?=\s*\()/g;
  const kinds = ["string", "comment", "keyword", "block"];
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(pattern)) {
    parts.push(text.slice(end, match.index), el("span", { class: kinds[match.slice(1).findIndex((group) => group !== undefined)] }, match[0]));
    end = match.index + match[0].length;
  }
  return el("pre", { class: "code" }, ...parts, text.slice(end));
}

function shaded(tokens, logprobs, text) {
  if (!tokens || tokens.length === 0 || tokens.length > SHADED || text.length > PART) return pre("tokens", text);
  return el("pre", { class: "tokens" }, tokens.map((token, i) => {
    const span = el("span", { title: `probability ${Math.exp(logprobs[i]).toFixed(3)}` }, token);
    span.style.backgroundColor = `rgba(var(--shade), ${Math.min(0.45, -logprobs[i] * 0.12).toFixed(3)})`;
    return span;
  }));
}

// ------------------------------------------------------------------------------------------------------------------ the tree

const mark = (execution) => (execution.status === null ? "…" : execution.reward === null ? "" : execution.reward === 1 ? "✓" : execution.reward === 0 ? "✗" : show(execution.reward));
const tone = (execution) => (execution.reward === null ? "quiet" : execution.reward > 0 ? "good" : "bad");

function choose(design, execution) {
  chosen.design = Math.max(0, Math.min(design, run.designs.length - 1));
  chosen.execution = Math.max(0, Math.min(execution, run.designs[chosen.design].executions.length - 1));
  render();
}

function arrows(event) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!step) return;
  event.preventDefault();
  choose(chosen.design + step[0], chosen.execution + step[1]);
  document.getElementById(`leaf-${chosen.design}-${chosen.execution}`).focus();
}

function tree() {
  const rows = run.designs.map((design, d) => el("tr", {},
    el("th", { scope: "row" }, `${d + 1}`), el("td", {}, design.structure), el("td", {}, show(design.reward)), el("td", {}, signed(design.advantage)),
    el("td", {}, el("div", { class: "leaves" }, design.executions.map((execution, e) => el("button", {
      id: `leaf-${d}-${e}`, type: "button", class: tone(execution), "aria-pressed": String(d === chosen.design && e === chosen.execution),
      "aria-label": `design ${d + 1}, execution ${e + 1}: ${execution.status || "running"}, reward ${show(execution.reward)}, advantage ${signed(execution.advantage)}`,
      onclick: () => choose(d, e), onkeydown: arrows,
    }, `${e + 1} ${mark(execution)} ${execution.advantage === null ? "" : signed(execution.advantage)}`))))));
  return [el("h2", {}, "The tree"), el("div", { class: "scroll" }, el("table", { id: "tree" },
    el("caption", {}, "Reward and advantage of both roles: of each design, the mean over its executions; of each execution, its own. Arrow keys move between them."),
    el("thead", {}, el("tr", {}, ["design", "kind", "reward", "advantage", "executions: right or wrong, advantage"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, rows)))];
}

// ------------------------------------------------------------------------------------------------------------------ the graph

const WIDTH = 132, HEIGHT = 46, GAP_X = 30, GAP_Y = 16;
const cut = (text, length) => (text.length > length ? text.slice(0, length - 1) + "…" : text);

function asks(calls) { // the turns of one agent in one round are one node
  const nodes = [];
  calls.forEach((call, i) => {
    if (call.turn === 0 || nodes.length === 0) nodes.push({ agent: call.agent, round: call.round, first: i, reads: call.reads, tools: 0 });
    const node = nodes[nodes.length - 1];
    node.last = i;
    node.answer = call.answer;
    node.text = call.text;
    node.tools += call.tool_output === null ? 0 : 1;
  });
  return nodes;
}

function box(x, y, title, line, options) {
  return svg("g", { class: `node ${options.class || ""}`, transform: `translate(${x} ${y})`, ...options.attributes },
    svg("title", {}, options.title || title), svg("rect", { width: WIDTH, height: HEIGHT, rx: 6 }),
    svg("text", { x: 9, y: 19 }, cut(title, 17)), svg("text", { x: 9, y: 37, class: "small" }, cut(line, 19)));
}

function path(from, to, kind) { // over more than one round it goes below the agents in between
  const bow = to.x - from.x > WIDTH + GAP_X ? 44 : 0;
  const [x1, y1, x2, y2] = [from.x + WIDTH, from.y + HEIGHT / 2, to.x - 3, to.y + HEIGHT / 2], bend = Math.max(20, (x2 - x1) / 2);
  return svg("path", { class: `edge ${kind}`, d: `M${x1} ${y1} C${x1 + bend} ${y1 + bow} ${x2 - bend} ${y2 + bow} ${x2} ${y2}`, "marker-end": "url(#arrow)" });
}

function graph(execution, e) {
  const nodes = asks(execution.calls), rounds = [...new Set(nodes.map((node) => node.round))], width = Math.max(1, ...rounds.map((r) => nodes.filter((n) => n.round === r).length));
  const total = width * (HEIGHT + GAP_Y) - GAP_Y + 48, middle = 24 + (width * (HEIGHT + GAP_Y) - GAP_Y - HEIGHT) / 2;
  const question = { x: 4, y: middle }, answer = { x: 4 + (rounds.length + 1) * (WIDTH + GAP_X), y: middle };
  nodes.forEach((node) => {
    const row = nodes.filter((other) => other.round === node.round), space = (width - row.length) * (HEIGHT + GAP_Y) / 2;
    node.x = 4 + (rounds.indexOf(node.round) + 1) * (WIDTH + GAP_X);
    node.y = 24 + space + row.indexOf(node) * (HEIGHT + GAP_Y);
  });
  const submitted = nodes.find((node) => execution.submitted !== null && node.first <= execution.submitted && execution.submitted <= node.last);
  const voters = submitted ? nodes.filter((node) => node.round === submitted.round) : [], agree = voters.filter((node) => node.answer !== null && node.answer === submitted.answer);
  const edges = nodes.flatMap((node) => {
    const sources = node.reads.filter((i) => i >= 0).map((i) => nodes.find((other) => other.first <= i && i <= other.last));
    return sources.length ? sources.map((source) => path(source, node, "")) : node.reads.includes(-1) ? [path(question, node, "")] : [];
  });
  if (submitted) edges.push(...voters.filter((node) => node !== submitted).map((node) => path(node, answer, agree.includes(node) ? "" : "vote")), path(submitted, answer, "answer"));
  const ended = execution.status === null ? "…" : execution.answer !== null ? execution.answer : execution.status;
  const open = (node) => { choose(chosen.design, e); openCall(node.last); };
  const wide = answer.x + WIDTH + 6, picture = svg("svg", {
    viewBox: `0 0 ${wide} ${total}`, role: "group", "aria-label": `${plural(nodes.length, "ask")} in ${plural(rounds.length, "round")}`,
  }, svg("defs", {}, svg("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 8, markerHeight: 8, markerUnits: "userSpaceOnUse", orient: "auto" }, svg("path", { d: "M0 0L8 4L0 8z" }))),
  rounds.map((round, i) => svg("text", { class: "small", x: 4 + (i + 1) * (WIDTH + GAP_X), y: 14 }, `round ${i + 1}`)), edges,
  box(question.x, question.y, "question", run.question, {}),
  nodes.map((node) => box(node.x, node.y, node.agent + (node.tools ? `  ⚙${node.tools}` : ""), node.answer !== null ? `→ ${node.answer}` : node.text, {
    class: node === submitted ? "submitted" : "", title: `${node.agent}: ${cut(node.text, 300)}`,
    attributes: { id: `node-${e}-${node.first}`, role: "button", tabindex: 0, "aria-label": `${node.agent}, round ${rounds.indexOf(node.round) + 1}` +
      (node.answer !== null ? `, answers ${cut(node.answer, 60)}` : "") + (node.tools ? `, ${plural(node.tools, "tool run")}` : ""),
      onclick: () => open(node), onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(node); } } },
  })), box(answer.x, answer.y, voters.length > 1 ? `answer: ${agree.length || 1} of ${voters.length}` : "answer", ended, { class: "submitted" }));
  Object.assign(picture.style, { width: "100%", maxWidth: `${wide}px`, minWidth: `${0.72 * wide}px` }); // shrinks a little before it has to be scrolled
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `graph of execution ${e + 1}` }, picture);
}

// ------------------------------------------------------------------------------------------------------------------ calls

const nameOf = (i) => `call-${chosen.design}-${chosen.execution}-${i}`;

function openCall(i) {
  const item = document.getElementById(nameOf(i));
  item.open = true;
  item.scrollIntoView({ block: "nearest" });
  item.querySelector("summary").focus();
}

function callItem(call, i) {
  const name = nameOf(i), item = el("details", { id: name, class: "call", open: toggled.has(name) ? toggled.get(name) : Boolean(data.live) });
  const unsure = call.logprobs.length ? -call.logprobs.reduce((sum, p) => sum + p, 0) / call.logprobs.length : null;
  item.append(el("summary", { id: `${name}-summary` }, `${i + 1}. ${call.agent}`, el("span", { class: "quiet" },
    `, round ${call.round}${call.turn ? `, turn ${call.turn + 1}` : ""}${call.answer !== null ? ` → ${cut(call.answer, 80)}` : ""}${call.tool_output !== null ? ", ran a tool" : ""}`)));
  const body = () => [
    el("dl", {}, el("dt", {}, "tokens"), el("dd", {}, `${call.prompt_tokens} in, ${call.completion_tokens} out` + (unsure === null ? "" : `; mean −log p ${show(unsure)}`)),
      el("dt", {}, "read"), el("dd", {}, call.reads.map((j) => (j < 0 ? "the question" : `call ${j + 1}`)).join(", ") || "nothing that was said before")),
    el("h3", {}, "Prompt"), call.messages.map((message) => [el("p", { class: "quiet" }, message.role), pre("prompt", message.content)]),
    el("h3", {}, "Reply"), shaded(call.tokens, call.logprobs, call.text),
    call.tool_output === null ? null : [el("h3", {}, "The tool's output"), pre("tool", call.tool_output)]];
  const filled = () => { if (item.open && item.childElementCount === 1) item.append(...body().flat(Infinity).filter((node) => node !== null)); };
  item.addEventListener("toggle", () => { toggled.set(name, item.open); filled(); });
  filled();
  return item;
}

function toggleAll(open) {
  document.querySelectorAll("details.call").forEach((item) => { item.open = open; });
}

// ------------------------------------------------------------------------------------------------------------------ the page

function outcome(design, execution) {
  const tokens = design.completion_tokens + execution.calls.reduce((sum, call) => sum + call.completion_tokens, 0);
  const facts = [["outcome", (execution.status || "running") + (execution.detail ? `: ${cut(execution.detail, 2000)}` : "")], ["answer", execution.answer === null ? "–" : cut(execution.answer, 2000)],
    ["right answer", cut(run.gold, 2000) || "not known"], ["reward", show(execution.reward)], ["cost", `${plural(execution.calls.length, "call")}, ${plural(tokens, "token")} with the design`]];
  return el("dl", { class: "outcome" }, facts.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

function card(design, execution, e) {
  const now = e === chosen.execution;
  return el("section", { class: now ? "card chosen" : "card", "aria-label": `execution ${e + 1}` }, el("h3", {}, el("button", {
    id: `card-${e}`, type: "button", "aria-pressed": String(now), onclick: () => choose(chosen.design, e),
  }, `Execution ${e + 1} ${mark(execution)}`)), graph(execution, e), outcome(design, execution));
}

function parts() {
  if (!run) return [];
  const head = [el("h2", {}, "The question"), fill(pre("question", run.question), { id: "asked" }, []),
    el("p", { class: "quiet" }, [run.step === null ? "" : `step ${run.step}`, run.family || "", run.gold ? `right answer: ${cut(run.gold, 2000)}` : ""].filter(Boolean).join(", "))];
  if (!run.designs.length) return head;
  const design = run.designs[chosen.design], execution = design.executions[chosen.execution];
  const many = run.designs.length > 1 || design.executions.length > 1;
  const designed = [el("h2", {}, `Design ${chosen.design + 1}: ${design.structure}`), design.error ? el("p", { class: "bad" }, cut(design.error, 2000)) : null, code(design.script),
    design.text ? el("details", { id: "written" }, el("summary", {}, `What the designer wrote, ${plural(design.completion_tokens, "token")}, shaded where it was unsure`),
      shaded(design.tokens, design.logprobs, design.text)) : null];
  return [...head, many ? tree() : [], designed, execution ? [
    el("h2", {}, design.executions.length > 1 ? `The ${design.executions.length} executions of design ${chosen.design + 1}` : "The execution"),
    el("div", { class: "cards" }, design.executions.map((one, e) => card(design, one, e))),
    el("h2", {}, `Calls of execution ${chosen.execution + 1}`), execution.calls.length ? el("p", {}, el("button", { type: "button", onclick: () => toggleAll(true) }, "Expand all"), " ",
      el("button", { type: "button", onclick: () => toggleAll(false) }, "Collapse all")) : el("p", { class: "quiet" }, "none"),
    el("div", { id: "calls" }, execution.calls.map(callItem))] : []].flat(Infinity).filter((node) => node !== null);
}

function render() {
  const focus = document.activeElement && document.activeElement.id;
  document.getElementById("run").replaceChildren(...parts());
  if (focus && document.getElementById(focus)) document.getElementById(focus).focus({ preventScroll: true });
}

// ------------------------------------------------------------------------------------------------------------------ live

async function ask(question, signal) {
  const status = document.getElementById("status");
  status.textContent = "designing …";
  const response = await fetch("ask", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ question }), signal });
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
    Object.assign(chosen, { design: 0, execution: 0 });
    render();
    if (run.designs.length) status.textContent = run.designs[0].executions[0].status === null ? "the agents are answering …" : "done";
  }
}

if (data.live) {
  const form = document.getElementById("ask"), stop = document.getElementById("stop");
  form.hidden = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const controller = new AbortController(), [button] = form.querySelectorAll("button[type=submit]");
    stop.onclick = () => controller.abort();
    [button.disabled, stop.disabled, run] = [true, false, null];
    toggled.clear();
    render();
    try {
      await ask(document.getElementById("question").value, controller.signal);
    } catch (error) {
      document.getElementById("status").textContent = error.name === "AbortError" ? "stopped" : `failed: ${error.message}`;
    }
    [button.disabled, stop.disabled] = [false, true];
  });
}
render();
