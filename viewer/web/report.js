// A training run: curves over its steps, with the stages as bands, and episodes to look at.

const rows = data.rows, steps = rows.map((row) => row.step);
const W = 640, H = 230, LEFT = 52, RIGHT = 10, TOP = 10, BOTTOM = 24;
const COLOURS = ["#2f6fd0", "#c56a00", "#2a8a4a", "#a03aa8", "#8a6d1f", "#c03a3a", "#3a8f9c", "#6b7280", "#7a52c7", "#4d7a1f", "#d0749f", "#1f5f5f", "#b08d57", "#40405c"];
const of = (key) => rows.map((row) => (row[key] === undefined ? null : row[key]));

const x = (i) => LEFT + (rows.length < 2 ? 0.5 : i / (rows.length - 1)) * (W - LEFT - RIGHT);
const short = (value) => (Math.abs(value) >= 1000 ? `${+(value / 1000).toPrecision(3)}k` : `${+value.toPrecision(2)}`);
const paint = (node, property, colour) => { node.style[property] = colour; return node; };

function ticks(top) { // four or so round numbers from 0 to the top
  const rough = top / 4, power = 10 ** Math.floor(Math.log10(rough)), unit = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  return Array.from({ length: Math.floor(top / unit + 1e-9) + 1 }, (_, i) => i * unit);
}

function frame(title, top, legend, marks, values) {
  const y = (value) => H - BOTTOM - value / top * (H - TOP - BOTTOM), width = (W - LEFT - RIGHT) / Math.max(1, rows.length - 1);
  const bands = rows.map((row, i) => {
    const role = row.trained_roles.length === 1 ? row.trained_roles[0] : "both";
    const band = svg("rect", { x: Math.max(LEFT, x(i) - width / 2), y: TOP, width: Math.min(W - RIGHT, x(i) + width / 2) - Math.max(LEFT, x(i) - width / 2), height: H - TOP - BOTTOM });
    paint(band, "fill", `var(--${role})`).style.opacity = 0.09;
    return band;
  });
  const cursor = svg("line", { class: "axis", y1: TOP, y2: H - BOTTOM, visibility: "hidden" }), output = el("p", { class: "quiet readout" });
  const label = (i) => `step ${steps[i]} (${rows[i].trained_roles.join(" and ")}): ${values(i)}`;
  const say = (i) => { cursor.setAttribute("x1", x(i)); cursor.setAttribute("x2", x(i)); cursor.setAttribute("visibility", "visible"); output.textContent = label(i); };
  let at = rows.length - 1;
  const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", tabindex: 0, "aria-label": `${title}. At the start, ${label(0)}. Now, ${label(rows.length - 1)}`,
    onmousemove: (event) => { const place = picture.getBoundingClientRect(); at = Math.max(0, Math.min(rows.length - 1, Math.round(((event.clientX - place.left) / place.width * W - LEFT) / (W - LEFT - RIGHT) * (rows.length - 1)))); say(at); },
    onkeydown: (event) => { const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key]; if (step) { event.preventDefault(); at = Math.max(0, Math.min(rows.length - 1, at + step)); say(at); } },
  }, bands, ticks(top).map((value) => [svg("line", { class: "axis", x1: LEFT, x2: W - RIGHT, y1: y(value), y2: y(value) }), svg("text", { class: "small", x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, short(value))]),
  [0, Math.floor((rows.length - 1) / 2), rows.length - 1].filter((i, n, all) => all.indexOf(i) === n).map((i) => svg("text", { class: "small", x: x(i), y: H - 6, "text-anchor": i === 0 ? "start" : i === rows.length - 1 ? "end" : "middle" }, `${steps[i]}`)),
  marks(y), cursor);
  output.textContent = label(rows.length - 1);
  return el("section", { class: "card" }, el("h2", {}, title), picture, el("ul", { class: "legend" }, legend.map(([name, colour]) => el("li", {}, paint(el("span"), "backgroundColor", colour), name))), output);
}

function lines(title, series, top = 0) { // series: [name, colour, a value or null for each step, drawn as dots?]
  const highest = top || Math.max(1e-9, ...series.flatMap(([, , values]) => values.filter((value) => Number.isFinite(value)))) * 1.05;
  const marks = (y) => series.flatMap(([, colour, values, dots]) => {
    const points = values.map((value, i) => (Number.isFinite(value) ? [x(i), y(Math.min(value, highest))] : null)).filter((point) => point);
    const line = paint(svg("polyline", { points: points.map((point) => point.join(",")).join(" "), "stroke-width": 1.6 }), "stroke", colour);
    return [paint(line, "fill", "none"), ...(dots || points.length < 2 ? points.map(([cx, cy]) => paint(svg("circle", { cx, cy, r: 4 }), "fill", colour)) : [])];
  });
  return frame(title, highest, series.map(([name, colour]) => [name, colour]), marks, (i) => series.filter(([, , values]) => values[i] !== null).map(([name, , values]) => `${name} ${short(values[i])}`).join(", "));
}

function areas(title, key, names, relative = true) { // of each step what row[key] counts, by name, one over the other
  const total = (row) => names.reduce((sum, name) => sum + (row[key][name] || 0), 0), scale = (row) => (relative ? total(row) || 1 : 1);
  const top = relative ? 1 : Math.max(1e-9, ...rows.map(total)) * 1.05;
  const marks = (y) => {
    const floor = rows.map(() => 0);
    return names.map((name, n) => {
      const lower = rows.map((row, i) => `${x(i)},${y(floor[i])}`).reverse(), upper = rows.map((row, i) => { floor[i] += (row[key][name] || 0) / scale(row); return `${x(i)},${y(floor[i])}`; });
      const area = paint(svg("polygon", { points: [...upper, ...lower].join(" ") }), "fill", COLOURS[n % COLOURS.length]);
      area.style.opacity = 0.85;
      return area;
    });
  };
  const value = (row, name) => (row[key][name] || 0) / scale(row);
  return frame(title, top, names.map((name, n) => [name, COLOURS[n % COLOURS.length]]), marks, (i) => names.filter((name) => rows[i][key][name]).map((name) => (relative ? `${name} ${(100 * value(rows[i], name)).toFixed(0)} %` : `${name} ${short(value(rows[i], name))}`)).join(", "));
}

const namesOf = (key) => [...new Set(rows.flatMap((row) => Object.keys(row[key])))].sort();

function charts() {
  rows.forEach((row) => {
    row.time = { sampling: row.seconds_sampling, "waiting for scripts and tools": row.seconds_waiting, update: row.seconds_update };
    row.time["the rest"] = Math.max(0, row.seconds - row.seconds_sampling - row.seconds_waiting - row.seconds_update);
  });
  return el("div", { class: "cards" },
    lines("Reward by role, and held-out accuracy", [["designer", "var(--designer)", of("designer_reward")], ["executor", "var(--executor)", of("executor_reward")], ["held out", "var(--text)", of("eval_accuracy"), true]], 1.02),
    areas("What was designed", "kinds", Object.keys(rows[0].kinds)),
    areas("Designs by structure", "structures", namesOf("structures")),
    areas("Outcomes of executions", "statuses", namesOf("statuses")),
    lines("Agents and calls of an execution", [["calls", COLOURS[0], of("calls")], ["agents", COLOURS[1], of("agents")]]),
    lines("Entropy: mean −log p of sampled tokens", [["designs", "var(--designer)", of("design_entropy")], ["replies", "var(--executor)", of("call_entropy")]]),
    lines("Share of tokens that were clipped", [["clipped", COLOURS[3], of("clip_frac")]], Math.max(0.01, ...of("clip_frac"))),
    lines("Norm of the gradient, before clipping", [["norm", COLOURS[2], of("grad_norm")]]),
    lines("Tokens sampled per second of a step", [["tokens per second", COLOURS[6], rows.map((row) => row.tokens / row.seconds)]]),
    areas("Where the time of a step goes, in seconds", "time", Object.keys(rows[0].time), false));
}

function episodes() {
  return [el("h2", {}, "Episodes: whole runs of one question"), el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, ["step", "picked as", "mean reward", "page"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, data.episodes.map((one) => el("tr", {}, el("th", { scope: "row" }, `${one.step}`), el("td", {}, one.place || "–"), el("td", {}, show(one.reward)),
      el("td", {}, el("a", { href: one.page }, `the episode of step ${one.step}`)))))))];
}

function flagsUsed() {
  return el("details", {}, el("summary", {}, "The flags of this run"), el("dl", {}, Object.entries(data.config).map(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))])));
}

const done = rows.length ? steps[steps.length - 1] + 1 : 0;
document.getElementById("status").textContent = `${data.config.out.split("/").pop()}: ${done} of ${data.config.steps} steps. Bands: blue the designer learns, orange the executor, grey both.`;
document.getElementById("report").append(...(rows.length ? [charts(), ...episodes(), flagsUsed()] : [el("p", {}, "No step is done yet.")]));
if (data.running) {
  document.getElementById("watch").hidden = false;
  setInterval(() => { if (document.getElementById("reload").checked) location.reload(); }, 20000);
}
