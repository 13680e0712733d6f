"""NVIDIA DALI: the pixels of the reference, every image once, and nothing stale or left behind."""

import gc
import time
import weakref
from pathlib import Path

import pytest
import torch

from data.datasets import read_dataset
from data.pipelines import dali
from data.pipelines.dali import DaliPipeline
from data.views import ViewSpec
from tests.helpers.dali import with_dali
from tests.helpers.images import class_folders, write_image
from tests.helpers.pipelines import (
    CPU,
    as_rank,
    build,
    differences,
    equal_views,
    photograph_folder,
    smooth_image,
    training_batches,
)
from utils.errors import UserError

SPECS = [ViewSpec(48, blur=0.5, solarize=0.3, count=2), ViewSpec(24, scale=(0.05, 0.3), count=2)]
CROPS = [ViewSpec(size, scale=scale, jitter=0, gray=0) for size, scale in ((96, (0.02, 1)), (24, (0.2, 1)))]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return photograph_folder(tmp_path_factory.mktemp("photographs"))


def dali_module(data, workers=2, specs=SPECS, batch_size=8):
    return build("dali", data, specs, workers, batch_size)


def ring(x):
    """The outermost pixels of each view."""
    inside = torch.zeros(x.shape[2:], dtype=torch.bool)
    inside[1:-1, 1:-1] = True
    return x[:, :, ~inside]


@with_dali
def test_train_loader_crops_as_torchvision_does(photographs):
    """Within one step of 255, but for the outermost pixels of a view that is smaller than its box."""
    a, b = (list(training_batches(build(n, photographs, CROPS, 0, 8), epoch=1)) for n in ("dali", "torchvision"))
    assert len(a) == len(b) == 5
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.index, y.index)
        assert torch.equal(x.labels, y.labels)
        for difference in differences(x, y):
            assert difference[:, :, 1:-1, 1:-1].max() < 1.01
            assert difference[:, :, 1:-1, 1:-1].mean() < 0.25
            assert ring(difference).max() < 20
            assert ring(difference).mean() < 2


@with_dali
def test_train_loader_makes_torchvisions_views(photographs):
    """Colours turn a step of 255 into a few; solarize may jump."""
    a, b = (list(training_batches(build(n, photographs, SPECS, 0, 8), epoch=1)) for n in ("dali", "torchvision"))
    for x, y in zip(a, b, strict=True):
        for number, difference in enumerate(differences(x, y)):
            assert difference.mean() < 0.6
            inner = difference[:, :, 1:-1, 1:-1]
            assert (inner < 4).float().mean() > 0.999
            if number > 1:
                assert inner.max() < 7


KINDS = {  # ending -> ways to write one
    "jpg": ["444", "420", "gray", "progressive", "rotated", "CMYK", "keep_rgb", "MPO"],
    "png": ["RGB", "L", "1", "P", "LA", "RGBA", "transparent", "I;16", "rotated"],
    "webp": ["lossy", "lossless", "RGBA", "rotated"],
    "gif": ["P", "animated"],
    "bmp": ["RGB", "L", "P"],
    "tif": ["RGB", "L", "P", "1", "CMYK", "LAB", "RGBA", "I;16", "lzw", "rotated"],
    "ppm": ["RGB"],
    "pgm": ["L", "of 15"],
}


def write_kind(path, how):
    """40 x 40 pixels."""
    image = smooth_image((40, 40), 3)
    exif = image.getexif()
    exif[0x0112] = 6
    options = {
        "444": {"subsampling": 0}, "progressive": {"progressive": True}, "rotated": {"exif": exif},
        "keep_rgb": {"keep_rgb": True}, "MPO": {"format": "MPO", "save_all": True, "append_images": [image]},
        "transparent": {"transparency": (1, 2, 3)}, "lossless": {"lossless": True}, "lzw": {"compression": "tiff_lzw"},
        "animated": {"save_all": True, "append_images": [image.convert("L").convert("P")]},
    }.get(how, {})  # fmt: skip
    mode = {"gray": "L", "animated": "P"}.get(
        how, how if how in ("L", "1", "P", "LA", "RGBA", "CMYK", "LAB") else "RGB"
    )
    if how == "I;16":
        write_image(path, "I;16", (40, 40))
    elif how == "of 15":
        path.write_bytes(b"P5 40 40 15\n" + bytes(i % 16 for i in range(1600)))
    elif how == "RGBA":
        image = image.convert("RGBA")
        image.putalpha(smooth_image((40, 40), 4, "L"))
        image.save(path)
    else:
        image.convert(mode).save(path, **options)


@with_dali
@pytest.mark.parametrize(("ending", "how"), [(ending, how) for ending in KINDS for how in KINDS[ending]])
def test_train_loader_reads_every_kind_of_file_as_decode_file_does(tmp_path, ending, how):
    """To the bit: the view is the whole image, not resized."""
    write_kind(tmp_path / f"x.{ending}", how)
    write_image(tmp_path / "y.png", size=(70, 50))  # an image beside it that DALI decodes
    data = read_dataset("custom", str(tmp_path), None, None)
    spec = ViewSpec(40, scale=(1.0, 1.0), jitter=0, gray=0)
    batches = [next(build(n, data, [spec]).augmented_loader([0, 1], CPU)) for n in ("dali", "stream")]
    (difference,) = differences(*batches)
    assert difference[0].max() < 1e-4
    assert difference[1, :, 1:-1, 1:-1].max() < 1.01


@with_dali
def test_train_loader_crops_a_tiff_file_that_pillow_rotates(tmp_path):
    for i in range(4):
        image = smooth_image((30, 70), i)
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(tmp_path / f"{i}.tif", exif=exif)
    data = read_dataset("custom", str(tmp_path), None, None)
    a, b = (next(training_batches(build(n, data, CROPS, 0, 4))) for n in ("dali", "torchvision"))
    assert all(difference[:, :, 1:-1, 1:-1].max() < 1.01 for difference in differences(a, b))


@with_dali
def test_train_loader_gives_every_image_once_and_other_views_each_epoch(photographs):
    module = dali_module(photographs)
    first, second = (list(training_batches(module, epoch)) for epoch in (0, 1))
    for batches in (first, second):
        assert sorted(torch.cat([b.index for b in batches]).tolist()) == list(range(40))
    assert not torch.equal(first[0].index, second[0].index)
    assert equal_views(first[0], next(training_batches(dali_module(photographs)))), "deterministic"


@with_dali
def test_train_loader_does_not_depend_on_the_number_of_threads(photographs):
    a, b = (list(training_batches(dali_module(photographs, n))) for n in (0, 3))
    assert all(map(equal_views, a, b))


@with_dali
@pytest.mark.parametrize("world", [2, 3])
def test_train_loader_shares_every_image_among_ranks(photographs, monkeypatch, world):
    def share(batch_size):
        loader = dali_module(photographs, batch_size=batch_size).train_dataloader()
        return [batch.index.tolist() for batch in loader]

    alone, parts = share(12), []
    for rank in range(world):
        as_rank(monkeypatch, rank, world)
        parts.append(share(12 // world))
    assert [sum(step, []) for step in zip(*parts, strict=True)] == alone


@with_dali
def test_train_loader_builds_its_pipeline_once_for_all_epochs(photographs, monkeypatch):
    built = []
    monkeypatch.setattr(dali, "build_graph", lambda *args, f=dali.build_graph: built.append(1) or f(*args))
    loader = dali_module(photographs).train_dataloader()
    assert [len(list(loader)) for _ in range(3)] == [5] * 3
    assert len(built) == 1


@with_dali
@pytest.mark.parametrize("used", [False, True])
def test_train_loader_resumes_without_what_it_had_prefetched(photographs, used):
    whole = list(training_batches(dali_module(photographs), epoch=3))
    module = dali_module(photographs)
    loader = module.train_dataloader()
    if used:
        batches = iter(loader)
        next(batches)
        assert loader.state_dict() == {"taken": 1}, "what was handed out, not what is in the queue"
    module.order.set_epoch(3)
    loader.load_state_dict({"taken": 2})
    rest = [module.finalize_batch(batch) for batch in loader]
    assert len(rest) == 3
    assert all(map(equal_views, rest, whole[2:]))


def threads():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Threads"))


def back_to(n):
    """The system may count a thread that was joined for a moment more."""
    for _ in range(200):
        if threads() <= n:
            return True
        time.sleep(0.01)
    return False


@with_dali
def test_dali_pipeline_does_not_outlive_an_iteration_that_ends_early(photographs, monkeypatch):
    pipelines, init = [], DaliPipeline.__init__
    monkeypatch.setattr(
        DaliPipeline, "__init__", lambda self, *args: pipelines.append(weakref.ref(self)) or init(self, *args)
    )
    gc.collect()  # what failed tests have left
    module = dali_module(photographs, workers=3)
    loader = module.train_dataloader()
    before = threads()
    batches = iter(loader)
    next(batches)
    assert threads() > before + 2
    batches.close()  # as when a run stops early, and when it is dropped
    assert pipelines[0]() is None
    assert back_to(before)
    assert sum(1 for _ in loader) == 5, "and it can begin again"
    assert threads() > before
    del loader
    assert back_to(before)


@with_dali
def test_train_loader_may_have_no_batch(photographs):
    loader = dali_module(photographs).train_loader([], CPU)
    assert list(loader) == list(loader) == []


@with_dali
def test_train_loader_does_not_reuse_the_memory_of_its_batches(photographs):
    loader = dali_module(photographs).train_dataloader()
    kept = [(batch, [view.clone() for view in batch.views]) for batch in loader]
    assert all(torch.equal(v, w) for batch, views in kept for v, w in zip(batch.views, views, strict=True))


@with_dali
def test_headers_of_a_very_large_folder_are_read_when_their_images_come(photographs, tmp_path, monkeypatch):
    whole = list(training_batches(dali_module(photographs), at_most=2))
    monkeypatch.setattr(dali, "CHECKED", 0)
    module = dali_module(photographs)
    assert not module.headers.sizes.any()
    assert all(map(equal_views, training_batches(module, at_most=2), whole))
    assert 16 <= (module.headers.sizes[:, 0] > 0).sum() <= 32
    root = class_folders(tmp_path / "x")
    (root / "c1" / "3.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"1 of 12 files in .* are not readable images \(c1/3\.png\)"):
        list(training_batches(dali_module(read_dataset("custom", str(tmp_path), "x", None), batch_size=4)))
