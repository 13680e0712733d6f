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
:root { color-scheme: light dark; --back: #ffffff; --ink: #1c2026; --soft: #5b6470; --line: #d7dce2; --fill: #f4f6f8;
  --warn: #9a5b00; --c0: #0b6fb8; --c1: #c25100; --c2: #00805d; --c3: #a03a83; --c4: #7a6200; --c5: #4b55c4;
  --c6: #b3203a; --c7: #5d6670; }
@media (prefers-color-scheme: dark) { :root { --back: #14171b; --ink: #e6e9ed; --soft: #9aa4b0; --line: #333a43;
  --fill: #1d2127; --warn: #f0b25b; --c0: #5cb3f2; --c1: #ff9a4d; --c2: #43c79d; --c3: #e88acb; --c4: #d9bb3f;
  --c5: #9aa3ff; --c6: #ff7a8e; --c7: #a9b2bc; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0.5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1rem 0 0.25rem; }
p, li { max-width: 70ch; overflow-wrap: anywhere; }
.soft, figcaption, caption { color: var(--soft); font-size: 0.85rem; }
nav a { margin-right: 1rem; } a { color: var(--c0); }
:focus-visible { outline: 3px solid var(--c0); outline-offset: 2px; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.75rem 0.25rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; overflow-wrap: anywhere; min-width: 5rem; } caption { text-align: left; caption-side: top; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); gap: 0.5rem;
  max-width: 60rem; margin-bottom: 0.75rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(21rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; } figcaption { overflow-wrap: anywhere; } img { width: 100%; display: block; }
.exact { image-rendering: pixelated; } .own { outline: 2px solid var(--c1); outline-offset: -2px; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.bar { fill: var(--c0); } .warn li { color: var(--warn); }
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


def table(rows: Iterable[Sequence[object]], head: Sequence[object] = (), caption: str = "") -> Html:
    """A table that scrolls by itself where the screen is narrow; the first cell of a row is its heading."""
    parts = [element("caption", caption)] if caption else []
    if head:
        parts.append(element("thead", element("tr", *(element("th", cell, scope="col") for cell in head))))
    lines = [element("tr", element("th", row[0], scope="row"), *(element("td", c) for c in row[1:])) for row in rows]
    whole = element("table", *parts, element("tbody", *lines))
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
    """Vertical bars as SVG; each tells its label and value to a pointer, the first and the last also below."""
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
    return element("figure", picture, element("figcaption", caption))


def page(title: str, sections: Sequence[tuple[str, Html]], script: str = "", style: str = "") -> str:
    """A whole page with links to its sections; nothing in it is loaded from elsewhere. style: beside the common one."""
    links = element("nav", *(element("a", name, href=f"#s{i}") for i, (name, _) in enumerate(sections)))
    body = [element("section", element("h2", name), part, id=f"s{i}") for i, (name, part) in enumerate(sections)]
    run = f"<script>{script}</script>" if script else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}{style}</style></head>'
        f"<body>{element('h1', title)}{links}{element('main', *body)}{run}</body></html>\n"
    )
