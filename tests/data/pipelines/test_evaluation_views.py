"""The evaluation view: torchvision's Resize and CenterCrop in every pipeline, decoded once where the views are few."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torchvision.transforms import v2

from data.datasets import IMAGENET_MEAN, IMAGENET_STD, read_dataset
from data.images import ArrayImages
from data.pipelines import evaluation_views
from data.pipelines.evaluation_views import EvaluationViews, evaluation_view, kept_bytes
from data.pipelines.prefetch import ThreadPrefetchLoader
from data.views import ViewSpec
from tests.helpers.images import read
from tests.helpers.pipelines import CPU, EVERY_PIPELINE, as_rank, build, digits_for, smooth_image

SIZES = [(300, 200), (640, 480), (90, 70), (70, 90), (101, 257), (33, 32), (20, 16), (500, 375)]
SHORT_SIDES = {32: 32, 96: 110, 224: 256}  # size of the view -> side to which the image is resized first


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Photographs that are not square: smooth areas, sharp edges and lines."""
    root = tmp_path_factory.mktemp("photographs")
    for i, size in enumerate(SIZES * 2):
        image = smooth_image(size, i)
        draw = ImageDraw.Draw(image)
        draw.ellipse((size[0] // 5, size[1] // 5, size[0] // 2, size[1] // 2), outline=(255, 255, 255), width=3)
        for x in range(0, size[0], 7):
            draw.line((x, 0, size[0] - x, size[1]), fill=(0, 40, 90))
        path = root / ("train" if i % 2 else "val") / "c0" / f"{i}.{'jpg' if i % 4 < 2 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return read_dataset("custom", str(root), None, None)


def reference(path, size):
    """(3, size, size) uint8 by torchvision's transforms, on what Pillow decodes."""
    decoded = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
    return v2.Compose([v2.Resize(SHORT_SIDES[size], antialias=True), v2.CenterCrop(size)])(decoded)


def as_bytes(view):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return 255 * (view * std + mean)


@pytest.mark.parametrize("size", SHORT_SIDES)
@pytest.mark.parametrize("name", EVERY_PIPELINE)
def test_evaluation_views_are_torchvisions_in_every_pipeline(photographs, name, size):
    module = build(name, photographs, [ViewSpec(size, count=2)], workers=2, batch_size=3)
    for split, images in photographs.splits().items():
        for _ in range(2):  # the second time they are kept
            found = torch.cat([batch.views[0] for batch in module.eval_dataloader(split, CPU)])
            expected = torch.stack([reference(images.path(i), size) for i in range(len(images))])
            assert (as_bytes(found) - expected).abs().max() < 1e-3


@pytest.mark.parametrize("size", SHORT_SIDES)
@pytest.mark.parametrize("shape", [(8, 8), (32, 32), (40, 90)])
def test_evaluation_views_of_images_in_memory_are_torchvisions(shape, size):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (5, 3, *shape), dtype=torch.uint8, generator=generator)
    transform = v2.Compose([v2.Resize(SHORT_SIDES[size], antialias=True), v2.CenterCrop(size)])
    dataset = EvaluationViews(ArrayImages(pixels, torch.zeros(5).long()), size)
    found = torch.cat([batch.views[0] for batch in ThreadPrefetchLoader(dataset, [(-1, [3, 1]), (-1, [4])], 0, CPU)])
    assert torch.equal(found, torch.stack([transform(pixels[i]) for i in (3, 1, 4)]))


@pytest.mark.parametrize("name", EVERY_PIPELINE)
def test_evaluation_images_come_once_in_order(name):
    module = build(name)
    for split, images in module.data.splits().items():
        loader = module.eval_dataloader(split, CPU)
        batches = list(loader)
        assert len(batches) == len(loader)
        assert loader.images == len(images)
        assert torch.cat([b.index for b in batches]).tolist() == list(range(len(images)))
        assert torch.equal(torch.cat([b.labels for b in batches]), images.labels)
        assert all(len(b.views) == 1 and b.views[0].dtype == torch.float32 for b in batches)
        assert batches[0].views[0].shape[1:] == (3, 32, 32)


def test_evaluation_view_of_a_small_image_is_the_image():
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    assert torch.equal(evaluation_view(image, 32), image)


def test_evaluation_views_of_files_are_decoded_once(photographs, monkeypatch):
    module = build("stream", photographs, [ViewSpec(32)], batch_size=3)
    first = list(module.eval_dataloader("val", CPU))
    monkeypatch.setattr(photographs.val, "decode", None)
    other = module.with_views([ViewSpec(32, jitter=0.0)])
    for batches in (list(module.eval_dataloader("val", CPU)), list(other.eval_dataloader("val", CPU))):
        assert all(torch.equal(a.views[0], b.views[0]) for a, b in zip(first, batches, strict=True))


def test_evaluation_views_that_need_too_much_memory_are_decoded_every_time(photographs, monkeypatch):
    images = photographs.val
    assert kept_bytes(images, 32) == len(images) * 3 * 32 * 32
    monkeypatch.setattr(evaluation_views, "KEEP_BYTES", 1000)
    assert kept_bytes(images, 32) == 0
    decoded = []
    monkeypatch.setattr(images, "decode", lambda i, decode=images.decode: decoded.append(i) or decode(i))
    module = build("stream", photographs, [ViewSpec(32)])
    for _ in range(2):
        list(module.eval_dataloader("val", CPU))
    assert decoded == 2 * list(range(len(images)))


def test_kept_bytes_of_images_in_memory_are_zero():
    assert kept_bytes(read().train, 32) == 0


def test_evaluation_images_are_shared_by_ranks_and_a_rank_may_have_none(monkeypatch):
    module, parts = build("stream", digits_for("stream"), [ViewSpec(8)], batch_size=200), []
    for rank in range(3):
        as_rank(monkeypatch, rank, 3)
        parts.append([batch.index.tolist() for batch in module.eval_dataloader("val", CPU)])
    assert [len(part) for part in parts] == [1, 1, 0], "359 images are two batches"
    assert sum(sum(parts, []), []) == list(range(359))
