"use strict";
// Names come from files: they reach the page by textContent and dataset alone, never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const make = (tag, attributes = {}, text = "") => {
  const svg = ["svg", "g", "path", "circle", "line", "rect", "text"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text) node.textContent = text;
  return node;
};
const color = (n, count) => `--color: oklch(var(--lightness) var(--chroma) ${Math.round(255 + (360 * n) / Math.max(count, 4)) % 360})`;
const short = (v) => (v === 0 ? "0" : Math.abs(v) >= 1e5 || Math.abs(v) < 1e-4 ? v.toExponential(1) : String(+v.toPrecision(4)));
const clamp = (v, low, high) => Math.min(Math.max(v, low), high);

// ---- the image under the pointer or the focus, with its name ----
const tip = document.getElementById("tip");
let tipOf = null;
const showTip = (node, name, label, sheet, x, y) => {
  const [tile, title, kind] = tip.children;
  tile.className = `tile ${sheet}`;
  tile.style = `--x: ${x}; --y: ${y}`;
  title.textContent = name;
  kind.textContent = label;
  tip.hidden = false;
  tipOf = node;
  placeTip();
};
const placeTip = () => {
  if (tip.hidden) return;
  const box = tipOf.getBoundingClientRect();
  const { width, height } = tip.getBoundingClientRect();
  const right = box.right + 10 + width < innerWidth;
  tip.style.left = `${clamp(right ? box.right + 10 : box.left - 10 - width, 6, Math.max(6, innerWidth - width - 6))}px`;
  const beside = right || box.left - 16 - width > 0;
  const top = beside ? box.top - 20 : box.bottom + 8 + height < innerHeight ? box.bottom + 8 : box.top - 8 - height;
  tip.style.top = `${clamp(top, 6, Math.max(6, innerHeight - height - 6))}px`;
};
const hideTip = () => { tip.hidden = true; };
addEventListener("scroll", placeTip, { passive: true });

// ---- grids of images: one stop of the tab key each, arrow keys inside ----
for (const grid of document.querySelectorAll(".grid")) {
  const sheet = [...grid.classList].find((c) => c.startsWith("picture-"));
  const rows = [...grid.querySelectorAll(".row")].map((row) => [...row.querySelectorAll(".tile")]);
  const show = ({ target }) => {
    if (!target.classList.contains("tile")) return;
    const place = target.style;
    showTip(target, target.dataset.name, target.dataset.label, sheet,
      place.getPropertyValue("--x"), place.getPropertyValue("--y"));
  };
  for (const event of ["pointerover", "focusin"]) grid.addEventListener(event, show);
  for (const event of ["pointerleave", "focusout"]) grid.addEventListener(event, hideTip);
  grid.addEventListener("keydown", (event) => {
    const r = rows.findIndex((row) => row.includes(event.target));
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (event.key === "Escape") hideTip();
    if (r < 0 || !(event.key in moves)) return;
    event.preventDefault();
    const [down, across] = moves[event.key];
    const row = rows[clamp(r + down, 0, rows.length - 1)];
    const next = row[clamp(rows[r].indexOf(event.target) + across, 0, row.length - 1)];
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}

// ---- curves: one range of steps and one cursor for all charts ----
const charts = [...document.querySelectorAll("[data-chart]")].map((figure) => ({ figure, panel: data.curves[figure.dataset.chart] }));
const steps = [...new Set(data.curves.flatMap((p) => p.series.flatMap((s) => s.points.map((q) => q[0]))))].sort((a, b) => a - b);
const whole = [steps[0] ?? 0, Math.max(steps.at(-1) ?? 1, (steps[0] ?? 0) + 1)];
let range = whole, cursor = null;
const MARGIN = { left: 52, right: 10, top: 8, bottom: 24 }, HEIGHT = 220;

const niceTicks = (low, high, count) => {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((m) => m * power >= rough * 0.999) * power;
  const ticks = [];
  for (let t = Math.ceil(low / step); t * step <= high + step * 1e-9; t++) ticks.push(t * step);
  return ticks;
};
const nearest = (points, step) => points.reduce((best, p) => (best === null || Math.abs(p[0] - step) < Math.abs(best[0] - step) ? p : best), null);

const draw = (chart) => {
  const { svg, legend, panel } = chart;
  const width = Math.max(220, chart.figure.clientWidth), right = width - MARGIN.right, bottom = HEIGHT - MARGIN.bottom;
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.replaceChildren();
  const visible = panel.series.map((s) => s.points.filter((p) => p[0] >= range[0] && p[0] <= range[1]));
  const values = visible.flat().map((p) => p[1]);
  let [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  const pad = (high - low) * 0.06;
  const floor = low >= 0 ? Math.max(0, low - pad) : low - pad, ceiling = high + pad;
  const x = (step) => MARGIN.left + ((step - range[0]) / (range[1] - range[0])) * (right - MARGIN.left);
  const y = (value) => bottom - ((value - floor) / (ceiling - floor)) * (bottom - MARGIN.top);
  chart.stepAt = (px) => range[0] + ((px - MARGIN.left) / (right - MARGIN.left)) * (range[1] - range[0]);
  for (const t of niceTicks(floor, ceiling, 5)) {
    svg.append(make("line", { class: "tick", x1: MARGIN.left, x2: right, y1: y(t), y2: y(t) }),
      make("text", { x: MARGIN.left - 7, y: y(t) + 4, "text-anchor": "end" }, short(t)));
  }
  for (const t of niceTicks(range[0], range[1], width / 110).filter(Number.isInteger)) {
    svg.append(make("text", { x: x(t), y: HEIGHT - 6, "text-anchor": x(t) > right - 14 ? "end" : "middle" }, t.toLocaleString("en")));
  }
  panel.series.forEach((series, n) => {
    const group = make("g", { style: color(n, panel.series.length) });
    const points = visible[n];
    group.append(make("path", { class: "line", d: points.map((p, i) => `${i ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`).join("") }));
    const at = cursor === null ? null : nearest(points, cursor);
    for (const p of points.length <= 40 ? points : at ? [at] : []) {
      group.append(make("circle", { class: "dot", cx: x(p[0]), cy: y(p[1]), r: p === at ? 5 : 2.5 }));
    }
    svg.append(group);
    const shown = at ?? points.at(-1);
    legend.children[n].lastChild.textContent = shown ? short(shown[1]) : "-";
  });
  if (cursor !== null && cursor >= range[0] && cursor <= range[1]) {
    svg.append(make("line", { class: "cursor", x1: x(cursor), x2: x(cursor), y1: MARGIN.top, y2: bottom }));
  }
  legend.lastChild.textContent = cursor === null ? "" : `step ${Math.round(cursor).toLocaleString("en")}`;
};
const drawAll = () => charts.forEach(draw);
const reset = make("button", { class: "reset", type: "button", hidden: "" }, "Show all steps");
const setRange = (low, high) => {
  const width = clamp(high - low, Math.max(1, (whole[1] - whole[0]) / 200), whole[1] - whole[0]);
  const first = clamp((low + high - width) / 2, whole[0], whole[1] - width);
  range = [first, first + width];
  reset.hidden = width >= whole[1] - whole[0];
  drawAll();
};
const showAll = () => { cursor = null; setRange(...whole); };
reset.addEventListener("click", showAll);
document.querySelector(".charts")?.before(reset);

for (const chart of charts) {
  const { figure, panel } = chart;
  chart.legend = make("div", { class: "legend" });
  panel.series.forEach((series, n) => {
    const entry = make("span", { style: color(n, panel.series.length) });
    const several = panel.series.length > 1; // else the title is its name
    entry.append(...(several ? [make("i"), document.createTextNode(`${series.name} `)] : []), make("b"));
    chart.legend.append(entry);
  });
  chart.legend.append(make("span", { class: "at", "aria-live": "polite" }));
  const keys = "arrow keys move along the steps, plus and minus zoom, Escape shows all steps";
  chart.svg = make("svg", { tabindex: "0", role: "img", "aria-label": `${panel.title} against the optimizer step; ${keys}` });
  figure.append(chart.legend, chart.svg);
  const local = (event) => chart.stepAt(event.clientX - chart.svg.getBoundingClientRect().left);
  let start = null, area = null;
  chart.svg.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    start = { px: event.clientX, step: local(event) };
    chart.svg.setPointerCapture(event.pointerId);
  });
  chart.svg.addEventListener("pointermove", (event) => {
    cursor = nearest(steps.map((s) => [s]), clamp(local(event), ...range))?.[0] ?? null;
    drawAll();
    if (start === null) return;
    const left = chart.svg.getBoundingClientRect().left;
    area = make("rect", { class: "zoom", x: Math.min(start.px, event.clientX) - left, y: MARGIN.top,
      width: Math.abs(event.clientX - start.px), height: HEIGHT - MARGIN.top - MARGIN.bottom });
    chart.svg.append(area);
  });
  const end = (event) => {
    if (start !== null && event.type === "pointerup" && Math.abs(event.clientX - start.px) > 8) {
      const [a, b] = [start.step, local(event)].sort((p, q) => p - q);
      setRange(Math.max(a, range[0]), Math.min(b, range[1]));
    }
    start = null;
    area?.remove();
  };
  for (const event of ["pointerup", "pointercancel"]) chart.svg.addEventListener(event, end);
  chart.svg.addEventListener("pointerleave", () => { if (start === null) { cursor = null; drawAll(); } });
  chart.svg.addEventListener("dblclick", showAll);
  chart.svg.addEventListener("keydown", (event) => {
    const own = [...new Set(panel.series.flatMap((s) => s.points.map((p) => p[0])))].sort((a, b) => a - b).filter((s) => s >= range[0] && s <= range[1]);
    const here = cursor === null ? -1 : own.findIndex((s) => s >= cursor);
    const middle = cursor ?? (range[0] + range[1]) / 2, half = (range[1] - range[0]) / 2;
    const actions = {
      ArrowRight: () => { cursor = own[clamp(here + 1, 0, own.length - 1)] ?? null; },
      ArrowLeft: () => { cursor = own[here < 0 ? own.length - 1 : Math.max(0, here - 1)] ?? null; },
      Home: () => { cursor = own[0] ?? null; },
      End: () => { cursor = own.at(-1) ?? null; },
      "+": () => setRange(middle - half / 2, middle + half / 2),
      "=": () => setRange(middle - half / 2, middle + half / 2),
      "-": () => setRange(middle - half * 2, middle + half * 2),
      Escape: showAll,
    };
    if (!(event.key in actions) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    actions[event.key]();
    drawAll();
  });
}
if (charts.length) new ResizeObserver(drawAll).observe(document.querySelector(".charts"));

// ---- points: the nearest one to the pointer, arrow keys to the next one in a direction ----
const MOST_NAMED = 20; // more colours cannot be told apart
for (const box of document.querySelectorAll("[data-points]")) {
  const id = box.dataset.points, points = data.points[id], SIZE = 1000, EDGE = 20;
  const place = points.x.map((x, i) => [EDGE + x * (SIZE - 2 * EDGE), EDGE + (1 - points.y[i]) * (SIZE - 2 * EDGE)]);
  const labels = [...new Set(points.label.filter((l) => l >= 0))].sort((a, b) => a - b);
  const nameOf = (label) => (label < 0 ? "" : points.classes[label] ?? String(label));
  const named = labels.slice(0, MOST_NAMED), chosen = new Set();
  const svg = make("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, tabindex: "0", role: "img",
    "aria-label": `${points.title}; arrow keys move from point to point` });
  const circles = place.map(([x, y], i) => {
    const n = named.indexOf(points.label[i]);
    const style = n >= 0 ? color(n, named.length) : labels.length ? "--color: var(--line)" : "--color: var(--accent)";
    return make("circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: 7, style });
  });
  const mark = make("circle", { class: "mark", r: 13, visibility: "hidden" });
  svg.append(...circles, mark);
  box.append(svg);
  const on = (i) => !chosen.size || chosen.has(points.label[i]);
  let current = null;
  const columns = Number(getComputedStyle(box).getPropertyValue("--columns"));
  const select = (i) => {
    current = i;
    mark.setAttribute("cx", place[i][0]);
    mark.setAttribute("cy", place[i][1]);
    mark.setAttribute("visibility", "visible");
    showTip(mark, points.name[i], nameOf(points.label[i]), id, i % columns, Math.floor(i / columns));
  };
  const leave = () => { mark.setAttribute("visibility", "hidden"); hideTip(); };
  const best = (score) => {
    let found = null, least = Infinity;
    place.forEach((p, i) => { const s = on(i) ? score(p, i) : Infinity; if (s < least) [found, least] = [i, s]; });
    return found;
  };
  const point = (event) => {
    const { left, top, width } = svg.getBoundingClientRect(), scale = SIZE / width;
    const [x, y] = [(event.clientX - left) * scale, (event.clientY - top) * scale];
    const i = best((p) => Math.hypot(p[0] - x, p[1] - y));
    if (i !== null && Math.hypot(place[i][0] - x, place[i][1] - y) < 30 * Math.max(1, scale)) select(i); else leave();
  };
  for (const event of ["pointermove", "pointerdown"]) svg.addEventListener(event, point);
  for (const event of ["pointerleave", "blur"]) svg.addEventListener(event, leave);
  svg.addEventListener("keydown", (event) => {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key === "Escape") leave();
    if (!(event.key in ways)) return;
    event.preventDefault();
    const [wx, wy] = ways[event.key], from = current === null || !on(current) ? null : place[current];
    const next = from === null ? best((p) => Math.hypot(p[0] - SIZE / 2, p[1] - SIZE / 2)) : best((p, i) => {
      const along = (p[0] - from[0]) * wx + (p[1] - from[1]) * wy, across = Math.abs((p[0] - from[0]) * wy) + Math.abs((p[1] - from[1]) * wx);
      return i === current || along <= 0 || across > 2 * along ? Infinity : along + 2 * across;
    });
    if (next !== null) select(next);
  });
  if (!labels.length) continue;
  const legend = make("div", { class: "classes", role: "group", "aria-label": "Classes" });
  named.forEach((label, n) => {
    const button = make("button", { type: "button", "aria-pressed": "false", style: color(n, named.length) });
    button.append(make("i"), document.createTextNode(nameOf(label)));
    button.addEventListener("click", () => {
      if (!chosen.delete(label)) chosen.add(label);
      button.setAttribute("aria-pressed", chosen.has(label));
      circles.forEach((circle, i) => circle.classList.toggle("off", !on(i)));
      svg.append(...circles.filter((_, i) => on(i)), mark);
    });
    legend.append(button);
  });
  if (labels.length > named.length) legend.append(make("span", { class: "muted" }, `and ${labels.length - named.length} more classes`));
  box.append(legend);
}
