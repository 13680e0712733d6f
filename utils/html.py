"""Parts of a page in one file: escaped text, tables, bars, pictures as data; no network, light and dark."""

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PIXEL_ART = 64  # sides up to which pictures are kept to the pixel, and enlarged without smoothing
STYLE = """
:root { color-scheme: light dark; --page: #f6f7f8; --card: #ffffff; --ink: #1b1f24; --muted: #57606a; --line: #dfe3e8;
  --accent: #1a5fb4; --warn: #8a5a00; --c0: #1a5fb4; --c1: #b84d00; --c2: #00805d; --c3: #a03a83; --c4: #7a6200;
  --c5: #4b55c4; --c6: #b3203a; --c7: #5d6670; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1317; --card: #171c22; --ink: #e6eaef; --muted: #a1abb6;
  --line: #2d353e; --accent: #7db4ff; --warn: #e3b341; --c0: #7db4ff; --c1: #ff9a4d; --c2: #43c79d; --c3: #e88acb;
  --c4: #d9bb3f; --c5: #9aa3ff; --c6: #ff7a8e; --c7: #a9b2bc; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 0 1rem 2.5rem; max-width: 74rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; -webkit-text-size-adjust: 100%; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1.5rem 0 0.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 0.5rem; } h3 { font-size: 1rem; margin: 1.25rem 0 0.25rem; }
section { margin-top: 1rem; padding: 1.1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 0.75rem; }
p, li { max-width: 80ch; overflow-wrap: anywhere; } ul { padding-left: 1.2rem; margin: 0; }
.soft, figcaption, caption { color: var(--muted); font-size: 0.85rem; }
nav a { margin-right: 1rem; display: inline-block; padding: 0.2rem 0; } a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.75rem 0.25rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; } tbody th { min-width: 8rem; font-weight: 600; }
caption { text-align: left; caption-side: top; padding-top: 0.75rem; }
caption span { position: sticky; left: 0; display: inline-block; max-width: min(80ch, calc(100vw - 4.5rem)); }
.numbers td, .numbers thead th { white-space: nowrap; text-align: right; padding: 0.25rem 0 0.25rem 1rem; }
.numbers thead th:first-child { text-align: left; padding-left: 0; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(5.6rem, 1fr)); gap: 0.5rem;
  margin: 0.5rem 0; align-items: start; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: 1rem;
  margin-top: 0.75rem; }
figure { margin: 0; min-width: 0; } figcaption { overflow-wrap: anywhere; } img { width: 100%; display: block; }
.exact { image-rendering: pixelated; } .own { outline: 2px solid var(--c1); outline-offset: -2px; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--muted); font: 13px system-ui, sans-serif; }
.bar { fill: var(--accent); } summary { color: var(--accent); cursor: pointer; font-size: 0.85rem; }
figure .scroll { max-height: 18rem; overflow-y: auto; } .warn li { color: var(--warn); }
"""


class Html(str):
    """Text that is HTML already; any other text is escaped where it enters a page."""


def escape(text: object) -> Html:
    """Text as HTML; names of files and classes may hold anything, bytes that are no UTF-8 too."""
    if isinstance(text, Html):
        return text
    return Html(html.escape(str(text).encode("utf-8", "backslashreplace").decode()))


def element(tag: str, *content: object, **attributes: object) -> Html:
    """An element with escaped content; the attribute `css` is its class."""
    names = {"css": "class"}
    words = "".join(f' {names.get(name, name)}="{escape(value)}"' for name, value in attributes.items())
    return Html(f"<{tag}{words}>{''.join(map(escape, content))}</{tag}>")


def items(texts: Iterable[object], css: str = "") -> Html:
    """A list with a point per text."""
    return element("ul", *(element("li", text) for text in texts), css=css)


def table(rows: Iterable[Sequence[object]], head: Sequence[object] = (), caption: str = "", css: str = "") -> Html:
    """A table that scrolls by itself where the screen is narrow; the first cell of a row is its heading.

    css: "numbers" for cells that stay on one line and end at the same place.
    """
    parts = [element("caption", element("span", caption))] if caption else []
    if head:
        parts.append(element("thead", element("tr", *(element("th", cell, scope="col") for cell in head))))
    lines = [element("tr", element("th", row[0], scope="row"), *(element("td", c) for c in row[1:])) for row in rows]
    whole = element("table", *parts, element("tbody", *lines), css=css)
    return element("div", whole, css="scroll", tabindex=0, role="region", **{"aria-label": caption or "table"})


def picture(pixels: NDArray, caption: object, css: str = "") -> Html:
    """(H, W, 3) uint8 as a figure that holds its own file: PNG where it is small, else JPEG."""
    small, file = max(pixels.shape[:2]) <= PIXEL_ART, io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG" if small else "JPEG", quality=90)
    data = base64.b64encode(file.getvalue()).decode()
    kind, names = ("png", "exact") if small else ("jpeg", "")
    alt = escape(caption)
    image = Html(f'<img class="{names} {css}" alt="{alt}" src="data:image/{kind};base64,{data}">')
    return element("figure", image, element("figcaption", caption))


def bars(values: Sequence[float], labels: Sequence[str], caption: str) -> Html:
    """Vertical bars as SVG, the first and the last with their labels, and a closed table of all values below."""
    width, height, top = 400, 120, max([*values, 1e-12])
    step = width / max(1, len(values))
    parts = []
    for i, (value, label) in enumerate(zip(values, labels, strict=True)):
        tall = value / top * height
        title = element("title", f"{label}: {value:,.10g}")
        place = {"x": f"{i * step:.2f}", "y": f"{height - tall:.2f}", "height": f"{tall:.2f}"}
        parts.append(element("rect", title, css="bar", width=f"{step * 0.85:.2f}", **place))
    if labels:
        parts.append(element("text", labels[0][:24], x=0, y=height + 15))
        parts.append(element("text", labels[-1][:24], x=width, y=height + 15, **{"text-anchor": "end"}))
    picture = element("svg", *parts, viewBox=f"0 0 {width} {height + 20}", role="img", **{"aria-label": caption})
    numbers = table([(label, f"{value:,.10g}") for label, value in zip(labels, values, strict=True)], caption=caption)
    details = element("details", element("summary", "numbers"), numbers)
    return element("figure", picture, element("figcaption", caption), details)


def page(title: str, sections: Sequence[tuple[str, Html]], script: str = "", style: str = "") -> str:
    """A whole page with links to its sections; nothing in it is loaded from elsewhere. style: beside the common one."""
    links = element("nav", *(element("a", name, href=f"#s{i}") for i, (name, _) in enumerate(sections)))
    body = [element("section", element("h2", name), part, id=f"s{i}") for i, (name, part) in enumerate(sections)]
    run = f"<script>{script}</script>" if script else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{STYLE}{style}</style></head>"
        f"<body>{element('h1', title)}{links}{element('main', *body)}{run}</body></html>\n"
    )
