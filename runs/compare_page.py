"""The page of a comparison of runs: results, settings that differ, and curves over one another."""

import json
import math
from collections.abc import Sequence

from runs.compare import Comparison, Group, as_number, main_results
from utils.html import Html, element, items, page, table

WIDTH, HEIGHT, LEFT, BOTTOM = 400, 230, 56, 26  # of a chart, with room for the numbers of its axes
POINTS = 400  # of a curve
COLOURS = 8  # of utils.html
STYLE = """
button { font: inherit; color: inherit; background: var(--page); border: 1px solid var(--line); border-radius: 0.3rem;
  padding: 0.3rem 0.7rem; margin: 0 0.4rem 0.4rem 0; text-align: left; cursor: pointer; }
button { max-width: 100%; overflow-wrap: anywhere; }
button[aria-pressed=false] { color: var(--muted); text-decoration: line-through; }
path { fill: none; stroke-width: 1.6; }
.grid { stroke: var(--line); stroke-width: 1; } .cursor { stroke: var(--muted); }
output { display: block; font-size: 0.85rem; min-height: 1.3em; overflow-wrap: anywhere; white-space: pre-line; }
"""
SCRIPT = """
document.querySelectorAll('button[data-group]').forEach(b => b.addEventListener('click', () => {
  const on = b.getAttribute('aria-pressed') !== 'true';
  b.setAttribute('aria-pressed', on);
  document.querySelectorAll('path.g' + b.dataset.group).forEach(p => p.style.display = on ? '' : 'none');
}));
document.querySelectorAll('svg[data-last]').forEach(svg => {
  const cursor = svg.querySelector('.cursor'), out = svg.parentNode.querySelector('output');
  const [left, right] = JSON.parse(svg.dataset.area), last = +svg.dataset.last;
  let step = last;
  const show = () => {
    const x = left + (right - left) * step / last;
    cursor.setAttribute('d', `M${x} 0V${svg.dataset.bottom}`);
    const lines = [...svg.querySelectorAll('path[data-points]')].filter(p => p.style.display !== 'none').map(p => {
      const near = JSON.parse(p.dataset.points).reduce((a, b) => Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a);
      return `${p.dataset.name}: ${+near[1].toPrecision(4)} at step ${near[0]}`;
    });
    out.textContent = lines.join('\\n');
  };
  const move = to => { step = Math.min(last, Math.max(0, Math.round(to))); show(); };
  svg.addEventListener('pointermove', e => {
    const box = svg.getBoundingClientRect(), x = (e.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    move((x - left) / (right - left) * last);
  });
  svg.addEventListener('keydown', e => {
    const by = Math.max(1, last / 50), to = { ArrowLeft: step - by, ArrowRight: step + by, Home: 0, End: last }[e.key];
    if (to !== undefined && !e.ctrlKey && !e.metaKey && !e.altKey) { move(to); e.preventDefault(); }
  });
});
"""


def comparison_page(comparison: Comparison) -> str:
    """The whole page as text."""
    groups, columns = comparison.groups, comparison.columns
    main = main_results(columns)
    results = table([[group.label, *(group.cell(name) for name in main)] for group in groups], ["runs", *main],
                    "last values; of several runs their mean ± standard deviation", "numbers")  # fmt: skip
    single = [
        [run.name, f"{run.steps:,} of {run.total_steps:,}", *(as_number(run.last(name)) for name in main)]
        for group in groups
        for run in group.runs
    ]
    runs = table(single, ["run", "steps", *main], "last values of each run", "numbers")
    rows = [[name, *values] for name, values in comparison.differences.items()]
    settings = table(rows, ["setting", *(group.label for group in groups)]) if rows else element("p", "None.")
    others = [name for name in columns if name not in main]
    curves = Html(_legend(groups) + _charts(groups, main))
    sections = [("Results", Html(results + runs)), ("Settings that differ", settings), ("Curves", curves)]
    if others:
        sections.append(("Other curves", Html(element("details", element("summary", "show"), _charts(groups, others)))))
    if comparison.notes:
        sections.insert(0, ("Notes", items(comparison.notes, "warn")))
    count = sum(len(group.runs) for group in groups)
    return page(f"Comparison of {count} runs", sections, SCRIPT, STYLE)


def _legend(groups: Sequence[Group]) -> Html:
    """A button for each group, which shows and hides its curves."""
    buttons = [
        element(
            "button",
            element("span", "━ ", style=f"color:var(--c{i % COLOURS})"),
            f"{group.label}{f' ({len(group.runs)} runs)' if len(group.runs) > 1 else ''}",
            type="button", **{"aria-pressed": "true", "data-group": i},
        )
        for i, group in enumerate(groups)
    ]  # fmt: skip
    about = "Press a name to hide or show its curves. Point at a chart, or focus it and press ← and →, to read values."
    return Html(element("div", *buttons) + element("p", about, css="soft"))


def _charts(groups: Sequence[Group], names: Sequence[str]) -> Html:
    return element("div", *(_chart(groups, name) for name in names), css="charts")


def _chart(groups: Sequence[Group], name: str) -> Html:
    """The curves of one metric in all runs, with axes."""
    curves = [
        (i, run.name, points) for i, group in enumerate(groups) for run in group.runs if (points := run.points(name))
    ]
    last = max(1, *(step for _, _, points in curves for step, _ in points))
    values = [value for _, _, points in curves for _, value in points]
    ticks = _ticks(min(values), max(values))
    low, high = min(ticks[0], *values), max(ticks[-1], *values)
    right, bottom = WIDTH - 8, HEIGHT - BOTTOM

    def x(step: float) -> float:
        return LEFT + (right - LEFT) * step / last

    def y(value: float) -> float:
        return 8 + (bottom - 8) * (high - value) / (high - low)

    parts = []
    for tick in ticks:
        parts.append(element("path", css="grid", d=f"M{LEFT} {y(tick):.1f}H{right}"))
        parts.append(element("text", f"{tick:.4g}", x=LEFT - 5, y=f"{y(tick) + 4:.1f}", **{"text-anchor": "end"}))
    for step, anchor in ((0, "start"), (last // 2, "middle"), (last, "end")):
        parts.append(element("text", f"{step:,}", x=f"{x(step):.1f}", y=HEIGHT - 7, **{"text-anchor": anchor}))
    for i, run, points in curves:
        some = _thinned(points)
        line = "M" + "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in some)
        style = f"stroke:var(--c{i % COLOURS})" + ("" if len(some) > 1 else ";stroke-width:6;stroke-linecap:round")
        line += "" if len(some) > 1 else "h0.01"
        own = {"data-points": json.dumps(some), "data-name": run}
        parts.append(element("path", element("title", run), css=f"g{i}", d=line, style=style, **own))
    parts.append(element("path", css="cursor", d=""))
    area = {"data-last": last, "data-area": json.dumps([LEFT, right]), "data-bottom": bottom}
    about = {"aria-label": f"{name} against the optimizer step; arrow keys read values"}
    picture = element("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", tabindex=0, role="img", **area, **about)
    return element("figure", element("h3", name), picture, element("output", ""), css="chart")


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most POINTS + 1 of the points, evenly spaced, the last one among them."""
    every = -(-len(points) // POINTS)
    return [*points[:-1:every], points[-1]]


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that cover a range."""
    span = (high - low) or abs(high) or 1.0
    raw = span / 4
    size = 10 ** math.floor(math.log10(raw))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= raw)
    first = math.floor(low / step)
    return [number * step for number in range(first, max(first + 1, math.ceil(high / step)) + 1)]
