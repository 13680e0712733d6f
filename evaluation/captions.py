"""A line on top of pictures that names the network they are of."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from utils.errors import UserError
from utils.files import replaced_atomically
from utils.names import shown

SIZE = 15  # of the letters, in pixels


def add_captions(paths: Iterable[Path], text: str) -> None:
    """Write the text above each PNG file that exists; where the disk is full the picture stays as it is."""
    font = ImageFont.truetype(findfont("DejaVu Sans"), SIZE)
    for path in paths:
        if path.exists():
            with contextlib.suppress(UserError):
                _add_caption(path, shown(text), font)


def _add_caption(path: Path, text: str, font: ImageFont.FreeTypeFont) -> None:
    with Image.open(path) as file:
        picture = file.convert("RGB")
    width = max(picture.width, int(font.getlength(text)) + 2 * SIZE)
    canvas = Image.new("RGB", (width, picture.height + 2 * SIZE), "white")
    canvas.paste(picture, ((width - picture.width) // 2, 2 * SIZE))
    ImageDraw.Draw(canvas).text((SIZE, SIZE // 2), text, fill="#444444", font=font)
    with replaced_atomically(path) as part:
        canvas.save(part, format="PNG")
