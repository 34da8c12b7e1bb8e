// A training run: curves over its steps, with the stages as bands, and episodes to look at.

const rows = data.rows;
const steps = rows.map((row) => row.step);
const last = rows.length - 1;

const W = 640;
const H = 230;
const LEFT = 52;
const RIGHT = 10;
const TOP = 10;
const BOTTOM = 24;
const INNER_WIDTH = W - LEFT - RIGHT;
const INNER_HEIGHT = H - TOP - BOTTOM;
const COLOURS = [
  "#2f6fd0",
  "#c56a00",
  "#2a8a4a",
  "#a03aa8",
  "#8a6d1f",
  "#c03a3a",
  "#3a8f9c",
  "#6b7280",
  "#7a52c7",
  "#4d7a1f",
  "#d0749f",
  "#1f5f5f",
  "#b08d57",
  "#40405c",
];

const of = (key) => rows.map((row) => (row[key] === undefined ? null : row[key]));
const x = (i) => LEFT + (rows.length < 2 ? 0.5 : i / last) * INNER_WIDTH;
const nearestStep = (i) => Math.max(0, Math.min(last, i));
const colourOf = (n) => COLOURS[n % COLOURS.length];

function short(value) {
  if (Math.abs(value) >= 1000) return `${+(value / 1000).toPrecision(3)}k`;
  return `${+value.toPrecision(2)}`;
}

function paint(node, property, colour) {
  node.style[property] = colour;
  return node;
}

// ----------------------------------------------------------------------------------------- a chart

// Four or so round numbers from 0 to the top.
function ticks(top) {
  const rough = top / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const unit = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  return Array.from({ length: Math.floor(top / unit + 1e-9) + 1 }, (_, i) => i * unit);
}

// The ground of a step, in the colour of the role that learned.
function band(row, i) {
  const role = row.trained_roles.length === 1 ? row.trained_roles[0] : "both";
  const width = INNER_WIDTH / Math.max(1, last);
  const left = Math.max(LEFT, x(i) - width / 2);
  const right = Math.min(W - RIGHT, x(i) + width / 2);
  const area = svg("rect", { x: left, y: TOP, width: right - left, height: INNER_HEIGHT });
  paint(area, "fill", `var(--${role})`);
  area.style.opacity = 0.09;
  return area;
}

// A line across the chart, and its value on the left.
function tick(value, height) {
  return [
    svg("line", { class: "axis", x1: LEFT, x2: W - RIGHT, y1: height, y2: height }),
    svg("text", { class: "small", x: LEFT - 6, y: height + 4, "text-anchor": "end" }, short(value)),
  ];
}

// The number of a step, below the chart.
function stepLabel(i) {
  let anchor = "middle";
  if (i === last) anchor = "end";
  if (i === 0) anchor = "start";
  return svg("text", { class: "small", x: x(i), y: H - 6, "text-anchor": anchor }, `${steps[i]}`);
}

function frame(title, top, legend, marks, values) {
  const y = (value) => H - BOTTOM - (value / top) * INNER_HEIGHT;
  const label = (i) => `step ${steps[i]} (${rows[i].trained_roles.join(" and ")}): ${values(i)}`;
  const cursor = svg("line", { class: "axis", y1: TOP, y2: H - BOTTOM, visibility: "hidden" });
  const output = el("p", { class: "quiet readout" }, label(last));
  let at = last;

  function say(i) {
    at = i;
    cursor.setAttribute("x1", x(i));
    cursor.setAttribute("x2", x(i));
    cursor.setAttribute("visibility", "visible");
    output.textContent = label(i);
  }

  function followMouse(event) {
    const place = picture.getBoundingClientRect();
    const pointed = ((event.clientX - place.left) / place.width) * W;
    say(nearestStep(Math.round(((pointed - LEFT) / INNER_WIDTH) * last)));
  }

  function followKeys(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    say(nearestStep(at + move));
  }

  const labelled = new Set([0, Math.floor(last / 2), last]);
  const picture = svg(
    "svg",
    {
      viewBox: `0 0 ${W} ${H}`,
      role: "img",
      tabindex: 0,
      "aria-label": `${title}. At the start, ${label(0)}. Now, ${label(last)}`,
      onmousemove: followMouse,
      onkeydown: followKeys,
    },
    rows.map(band),
    ticks(top).map((value) => tick(value, y(value))),
    [...labelled].map(stepLabel),
    marks(y),
    cursor,
  );
  const entries = legend.map(([name, colour]) =>
    el("li", {}, paint(el("span"), "backgroundColor", colour), name),
  );
  return el(
    "section",
    { class: "card" },
    el("h2", {}, title),
    picture,
    el("ul", { class: "legend" }, entries),
    output,
  );
}

// series: [name, colour, a value or null for each step, drawn as dots?]
function lines(title, series, top = 0) {
  const numbers = series.flatMap(([, , values]) => values.filter(Number.isFinite));
  const highest = top || Math.max(1e-9, ...numbers) * 1.05;

  function drawn([, colour, values, dots], y) {
    const points = values
      .map((value, i) => (Number.isFinite(value) ? [x(i), y(Math.min(value, highest))] : null))
      .filter((point) => point);
    const places = points.map((point) => point.join(",")).join(" ");
    const line = svg("polyline", { points: places, "stroke-width": 1.6 });
    paint(line, "stroke", colour);
    paint(line, "fill", "none");
    if (!dots && points.length >= 2) return [line];
    const circles = points.map(([cx, cy]) =>
      paint(svg("circle", { cx, cy, r: 4 }), "fill", colour),
    );
    return [line, ...circles];
  }

  function valuesAt(i) {
    const known = series.filter(([, , values]) => values[i] !== null);
    return known.map(([name, , values]) => `${name} ${short(values[i])}`).join(", ");
  }

  const legend = series.map(([name, colour]) => [name, colour]);
  const marks = (y) => series.flatMap((one) => drawn(one, y));
  return frame(title, highest, legend, marks, valuesAt);
}

// Of each step what row[key] counts, by name, one over the other.
function areas(title, key, names, relative = true) {
  const count = (row, name) => row[key][name] || 0;
  const total = (row) => names.reduce((sum, name) => sum + count(row, name), 0);
  const scale = (row) => (relative ? total(row) || 1 : 1);
  const value = (row, name) => count(row, name) / scale(row);
  const top = relative ? 1 : Math.max(1e-9, ...rows.map(total)) * 1.05;

  function marks(y) {
    const floor = rows.map(() => 0);
    const edge = () => rows.map((row, i) => `${x(i)},${y(floor[i])}`);
    return names.map((name, n) => {
      const lower = edge().reverse();
      rows.forEach((row, i) => {
        floor[i] += value(row, name);
      });
      const upper = edge();
      const area = svg("polygon", { points: [...upper, ...lower].join(" ") });
      paint(area, "fill", colourOf(n));
      area.style.opacity = 0.85;
      return area;
    });
  }

  function valueText(row, name) {
    if (relative) return `${name} ${(100 * value(row, name)).toFixed(0)} %`;
    return `${name} ${short(value(row, name))}`;
  }

  function valuesAt(i) {
    const present = names.filter((name) => rows[i][key][name]);
    return present.map((name) => valueText(rows[i], name)).join(", ");
  }

  const legend = names.map((name, n) => [name, colourOf(n)]);
  return frame(title, top, legend, marks, valuesAt);
}

// ---------------------------------------------------------------------------------------- the page

const namesOf = (key) => [...new Set(rows.flatMap((row) => Object.keys(row[key])))].sort();

function timeOf(row) {
  const rest = row.seconds - row.seconds_sampling - row.seconds_waiting - row.seconds_update;
  return {
    sampling: row.seconds_sampling,
    "waiting for scripts and tools": row.seconds_waiting,
    update: row.seconds_update,
    "the rest": Math.max(0, rest),
  };
}

function charts() {
  rows.forEach((row) => {
    row.time = timeOf(row);
  });
  const rewards = [
    ["designer", "var(--designer)", of("designer_reward")],
    ["executor", "var(--executor)", of("executor_reward")],
    ["held out", "var(--text)", of("eval_accuracy"), true],
    ["held out, temperature 0", COLOURS[4], of("eval_greedy"), true],
  ];
  const news = [
    ["of designs", COLOURS[5], of("new_designs")],
    ["of right answers", COLOURS[0], of("new_among_right")],
  ];
  const knowsNews = rows.some((row) => "new_designs" in row);
  const sizes = [
    ["calls", COLOURS[0], of("calls")],
    ["agents", COLOURS[1], of("agents")],
  ];
  const entropies = [
    ["designs", "var(--designer)", of("design_entropy")],
    ["replies", "var(--executor)", of("call_entropy")],
  ];
  const clipped = [["clipped", COLOURS[3], of("clip_frac")]];
  const mostClipped = Math.max(0.01, ...of("clip_frac"));
  const norms = [["norm", COLOURS[2], of("grad_norm")]];
  const speeds = [["tokens per second", COLOURS[6], rows.map((row) => row.tokens / row.seconds)]];
  const times = Object.keys(rows[0].time);
  return el(
    "div",
    { class: "cards" },
    lines("Reward by role, and held-out accuracy", rewards, 1.02),
    areas("What was designed", "kinds", Object.keys(rows[0].kinds)),
    areas("Designs by structure", "structures", namesOf("structures")),
    ...(knowsNews ? [lines("Share of shapes that the cold start did not show", news, 1.02)] : []),
    areas("Outcomes of executions", "statuses", namesOf("statuses")),
    lines("Agents and calls of an execution", sizes),
    lines("Entropy: mean −log p of sampled tokens", entropies),
    lines("Share of tokens that were clipped", clipped, mostClipped),
    lines("Norm of the gradient, before clipping", norms),
    lines("Tokens sampled per second of a step", speeds),
    areas("Where the time of a step goes, in seconds", "time", times, false),
  );
}

function episodeRow(one) {
  return el(
    "tr",
    {},
    el("th", { scope: "row" }, `${one.step}`),
    el("td", {}, one.place || "–"),
    el("td", {}, show(one.reward)),
    el("td", {}, el("a", { href: one.page }, `the episode of step ${one.step}`)),
  );
}

function episodes() {
  const columns = ["step", "picked as", "mean reward", "page"];
  const head = columns.map((name) => el("th", { scope: "col" }, name));
  const table = el(
    "table",
    {},
    el("thead", {}, el("tr", {}, head)),
    el("tbody", {}, data.episodes.map(episodeRow)),
  );
  return [
    el("h2", {}, "Episodes: whole runs of one question"),
    el("div", { class: "scroll" }, table),
  ];
}

function flagsUsed() {
  const flags = Object.entries(data.config).map(([name, value]) => [
    el("dt", {}, name),
    el("dd", {}, String(value)),
  ]);
  return el("details", {}, el("summary", {}, "The flags of this run"), el("dl", {}, flags));
}

function statusText() {
  const name = data.config.out.split("/").pop();
  const done = rows.length ? steps[last] + 1 : 0;
  const bands = "Bands: blue the designer learns, orange the executor, grey both.";
  return `${name}: ${done} of ${data.config.steps} steps. ${bands}`;
}

function reloadIfWanted() {
  if (document.getElementById("reload").checked) location.reload();
}

const report = document.getElementById("report");
document.getElementById("status").textContent = statusText();
if (rows.length) {
  report.append(charts(), ...episodes(), flagsUsed());
} else {
  report.append(el("p", {}, "No step is done yet."));
}
if (data.running) {
  document.getElementById("watch").hidden = false;
  setInterval(reloadIfWanted, 20000);
}
