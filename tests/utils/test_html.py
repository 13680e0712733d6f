"""Parts of pages."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from utils.html import Html, bars, element, escape, items, page, picture, table

EVIL = '<script>alert("1")</script>'


@pytest.mark.parametrize(
    "part",
    [
        items([EVIL]),
        table([[EVIL, EVIL]], [EVIL], EVIL),
        bars([1.0, 2.0], [EVIL, EVIL], EVIL),
        picture(np.zeros((4, 4, 3), np.uint8), EVIL),
        element("p", EVIL, title=EVIL),
    ],
    ids=["items", "table", "bars", "picture", "element"],
)
def test_text_is_escaped_in_every_part(part):
    whole = page(EVIL, [(EVIL, part)])
    assert "<script" not in whole
    assert 'alert("1")' not in whole
    assert "&lt;script&gt;" in part


def test_escape_leaves_html_and_writes_bytes_that_are_no_text_as_escapes():
    assert escape(Html("<b>")) == "<b>"
    assert escape("a\udcffb") == "a\\udcffb"


@pytest.mark.parametrize(("side", "kind"), [(32, "png"), (200, "jpeg")])
def test_picture_holds_its_own_file(side, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (side, side + 4, 3), dtype=np.uint8)
    figure = picture(pixels, "a view")
    (found,) = re.findall(rf'src="data:image/{kind};base64,([^"]+)"', figure)
    image = Image.open(io.BytesIO(base64.b64decode(found)))
    assert image.size == (side + 4, side)
    assert kind == "jpeg" or (np.asarray(image) == pixels).all()


def test_bars_have_their_values_as_a_table_too():
    """Keys and a finger cannot point at a bar."""
    figure = bars([1200.0, 2.5], ["cat", "dog"], "images")
    cells = re.findall(r"<t[hd][^>]*>([^<]+)<", figure.partition("<details>")[2])
    assert cells == ["cat", "1,200", "dog", "2.5"]


def test_page_loads_nothing_from_elsewhere():
    whole = page("t", [("one", Html("<p>1</p>")), ("two", Html("<p>2</p>"))], "let a = 1;", "b { margin: 0 }")
    assert not re.search(r"https?:|@import|url\(|<link(?! rel=\"icon\" href=\"data:,\")|src=", whole)
    assert re.findall(r'href="#(\w+)"', whole) == re.findall(r'<section id="(\w+)"', whole) == ["s0", "s1"]
    assert "<script>let a = 1;</script>" in whole
    assert "b { margin: 0 }</style>" in whole
