"""Images in memory and image files decoded to RGB."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from data.images import _decode_jpeg, _decode_with_pillow, decode_file
from tests.helpers.images import write_image
from utils.errors import UserError


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "RGBA", "1"])
def test_decode_file_converts_every_mode_to_rgb(tmp_path, mode):
    path = write_image(tmp_path / "x.png", mode)
    image = decode_file(str(path))
    assert image.shape == (3, 16, 20)
    assert image.dtype == torch.uint8
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(Image.open(path).convert("RGB")))


def test_decode_file_converts_cmyk(tmp_path):
    image = decode_file(str(write_image(tmp_path / "x.jpg", "CMYK")))
    assert image.shape == (3, 16, 20)
    assert image.float().std() > 10


def test_decode_file_scales_16_bit_gray(tmp_path):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    image = decode_file(str(tmp_path / "x.png"))
    assert image[0].flatten().tolist() == list(range(256))
    assert torch.equal(image[0], image[2])


def test_decode_file_names_a_truncated_image(tmp_path):
    path = write_image(tmp_path / "x.jpg", size=(200, 200))
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UserError, match=r"x.jpg is not a readable image"):
        decode_file(str(path))


@pytest.mark.parametrize("how", ["420", "444", "gray", "progressive", "rotated", "CMYK", "RGB", "odd", "truncated"])
def test_fast_jpeg_decoder_gives_pillows_pixels_to_the_bit(tmp_path, how):
    small = torch.randint(0, 256, (3, 6, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    image = TF.to_pil_image(TF.resize(small, [60, 80], antialias=True))
    options = {"444": {"subsampling": 0}, "progressive": {"progressive": True}, "RGB": {"keep_rgb": True}}.get(how, {})
    if how == "rotated":
        exif = image.getexif()
        exif[0x0112] = 6
        options = {"exif": exif}
    image = image.convert({"gray": "L", "CMYK": "CMYK"}.get(how, "RGB"))
    image = image.crop((0, 0, 33, 7)) if how == "odd" else image
    path = tmp_path / "x.jpg"
    image.save(path, **options)
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-30])
    found = _decode_jpeg(str(path))
    if how in ("CMYK", "RGB", "truncated"):
        assert found is None, "left to Pillow"
    else:
        assert torch.equal(found, _decode_with_pillow(str(path)))
