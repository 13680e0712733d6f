"""The streaming pipeline: the reference's views, whoever makes them, and nothing left behind."""

import threading

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from data.datasets import IMAGENET_STD, read_dataset
from data.images import _by_pillow, _plain_jpeg
from data.pipelines.prefetch import AHEAD, _pool
from data.pipelines.stream import StreamedViews, cropped
from data.sampler import sample
from data.views import ViewSpec
from tests.data.test_pipelines import build, training_batches
from tests.helpers.images import class_folders, write_image
from utils.errors import UserError

SPECS = [ViewSpec(48, blur=0.5, solarize=0.3, count=2), ViewSpec(24, scale=(0.05, 0.3), count=2)]


@pytest.fixture
def photographs(tmp_path):
    """40 files of 90 x 70, smooth where photographs are, in every mode that a folder may hold."""
    rng = np.random.default_rng(0)
    for i in range(40):
        path = write_image(tmp_path / f"c{i % 2}" / f"{i}.png", ("RGB", "L", "P", "RGBA")[i % 4], (90, 70), i)
        if i % 4 == 0:
            small = torch.from_numpy(rng.integers(0, 256, (3, 7, 9), dtype=np.uint8))
            TF.to_pil_image(TF.resize(small, [70, 90], antialias=True)).save(path.with_suffix(".jpg"))
            path.unlink()
    return read_dataset("custom", str(tmp_path.parent), tmp_path.name, None)


def streaming(data, workers, batch_size=10):
    return build("stream", data, SPECS, workers, batch_size)


def alive():
    return [t for t in threading.enumerate() if t.name.startswith("views")]


def equal(a, b):
    return torch.equal(a.index, b.index) and all(torch.equal(v, w) for v, w in zip(a.views, b.views, strict=True))


def test_views_are_torchvisions(photographs):
    """Half a step of 255 is the reference's rounding; the blur leaves out its ends; solarize may jump."""
    a = list(training_batches(streaming(photographs, 2), epoch=1))
    b = list(training_batches(build("torchvision", photographs, SPECS, 0, 10), epoch=1))
    assert len(a) == len(b) == 4
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.index, y.index)
        assert torch.equal(x.labels, y.labels)
        for number, (v, w) in enumerate(zip(x.views, y.views, strict=True)):
            apart = (v - w).abs() * torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255
            assert apart.mean() < 0.3
            if number > 1:
                assert apart.max() < 0.53
            assert (apart < 0.53).float().mean() > 0.999


def test_every_index_once_and_other_views_each_epoch(photographs):
    module = streaming(photographs, 2)
    first, second = (list(training_batches(module, epoch)) for epoch in (0, 1))
    for batches in (first, second):
        assert sorted(torch.cat([b.index for b in batches]).tolist()) == list(range(40))
    assert not torch.equal(first[0].index, second[0].index)


def test_threads_change_nothing(photographs):
    alone, many = (list(training_batches(streaming(photographs, n))) for n in (0, 2))
    assert all(map(equal, alone, many))
    a, b = (streaming(photographs, n).eval_dataloader("train", torch.device("cpu")) for n in (0, 2))
    assert all(map(equal, a, b))


def test_views_after_a_restart_are_those_of_a_run_that_did_not_stop(photographs):
    whole = list(training_batches(streaming(photographs, 2), epoch=3))
    module = streaming(photographs, 2)
    loader = module.train_dataloader()
    module.order.set_epoch(3)
    loader.load_state_dict({"taken": 2})
    assert all(map(equal, loader, whole[2:]))


def test_taken_counts_what_was_handed_out_and_not_what_is_ahead(photographs):
    loader = streaming(photographs, 2).train_dataloader()
    batches = iter(loader)
    next(batches)
    assert AHEAD > 0
    assert loader.state_dict() == {"taken": 1}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_file_is_named_and_the_threads_end(tmp_path, workers):
    root = class_folders(tmp_path / "x", each=20, size=(200, 200))
    data = read_dataset("custom", str(root), None, None) if (root / "train").is_dir() else None
    data = data or read_dataset("custom", str(tmp_path), "x", None)
    module = streaming(data, workers)
    path = root / "c1" / "3.png"
    path.write_bytes(path.read_bytes()[:2000])  # after the headers were read
    with pytest.raises(UserError, match=r"3\.png is not a readable image"):
        list(training_batches(module))
    assert not alive()


def test_no_thread_outlives_an_iteration(photographs):
    batches = iter(streaming(photographs, 2).train_dataloader())
    next(batches)
    assert len(alive()) == 2
    inner = torch.get_num_threads()
    batches.close()  # as when a run stops early, and when it is dropped
    assert not alive()
    list(streaming(photographs, 2).train_dataloader())
    assert not alive()
    assert torch.get_num_threads() == inner


def test_every_thread_computes_by_itself_and_the_others_do_not():
    """Threads of threads on the same cores would wait for each other, sixty times as long as they compute."""
    inner = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with _pool(2) as submit:
            assert [submit(torch.get_num_threads).result() for _ in range(4)] == [1] * 4
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(inner)


@pytest.mark.parametrize("size", [8, 40, 96])
def test_crops_are_torchvisions_to_the_bit(size):
    spec = ViewSpec(size, scale=(0.02, 1.0))
    image = torch.randint(0, 256, (3, 61, 83), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    params = sample(spec, 1, 2, np.arange(20), 0, np.tile((61, 83), (20, 1)))
    for i in range(20):
        theirs = TF.resized_crop(image, *params.box[i].tolist(), [size, size], antialias=True)
        assert torch.equal(torch.from_numpy(cropped(image, params.box[i].tolist(), size)).permute(2, 0, 1), theirs)


@pytest.mark.parametrize("finished", [False, True])
def test_on_a_gpu_the_threads_leave_bytes_to_be_coloured(photographs, finished):
    """What `finish` makes of the bytes on the device is what the threads make of them on CPU."""
    module = streaming(photographs, 0)
    module.on_host = finished
    work = StreamedViews(photographs, module.specs, module.seed, finished, pinned=False)
    batch = work.start((2, list(range(12))), lambda f, *args: f(*args))[0]
    assert batch.views[0].dtype == (torch.float32 if finished else torch.uint8)
    module.on_host = True
    other = StreamedViews(photographs, module.specs, module.seed, True, pinned=False)
    theirs = other.start((2, list(range(12))), lambda f, *args: f(*args))[0]
    module.on_host = finished
    for number, (v, w) in enumerate(zip(module.finalize_batch(batch, 2).views, theirs.views, strict=True)):
        apart = (v - w).abs()
        assert (apart < 5e-4).float().mean() > (0.99 if number < 2 else 0.999999)


@pytest.mark.parametrize("how", ["420", "444", "gray", "progressive", "rotated", "CMYK", "RGB", "odd", "truncated"])
def test_fast_jpegs_are_pillows_to_the_bit(tmp_path, how):
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
    ours = _plain_jpeg(str(path))
    if how in ("CMYK", "RGB", "truncated"):
        assert ours is None, "left to Pillow"
    else:
        assert torch.equal(ours, _by_pillow(str(path)))


def test_a_batch_in_large_pages_is_whole(photographs):
    """A batch of 20 MB: its ends lie beyond the pages of 2 MiB inside of it."""
    module = build("stream", photographs, [ViewSpec(224)], 2, 40)
    (batch,) = training_batches(module)
    assert batch.views[0].nbytes > 2**24
    assert (batch.views[0].flatten(1).std(dim=1) > 0.05).all()
