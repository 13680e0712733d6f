"""One conformance test for every pipeline, and each compared with the reference sample by sample."""

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer

from data.datasets import DATASETS, read_dataset
from data.pipelines.base import EpochBatchSampler
from data.pipelines.choose import PIPELINES, build_pipeline, choose_pipeline
from data.pipelines.memory import stored_side
from data.views import ViewSpec, expand
from tests.helpers.commands import plan_of
from tests.helpers.dali import WITH_DALI
from tests.helpers.images import class_folders, digit_files, read, write_image
from utils.batch import Batch

SPECS = [ViewSpec(32, blur=0.5), ViewSpec(32, solarize=0.5), ViewSpec(16, scale=(0.05, 0.3), count=2)]
BATCH = 16
SUBJECTS = [pytest.param(name, marks=WITH_DALI if name == "dali" else []) for name in PIPELINES]
OTHERS = [subject for subject in SUBJECTS if subject.values != ("torchvision",)]  # than the reference


def digits_for(name):
    return digit_files() if name == "dali" else read()


def build(name, data=None, specs=SPECS, workers=0, batch_size=BATCH):
    data = data or digits_for(name)
    args = plan_of("simclr", "--batch_size", str(batch_size), "--num_workers", str(workers))
    return build_pipeline(name, data, specs, args)


def training_batches(module, epoch=0, at_most=None):
    """What the Trainer would hand to the method."""
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    module.trainer.training = True
    loader = module.train_dataloader()
    module.order.set_epoch(epoch)
    for i, batch in enumerate(loader):
        if i == at_most:
            return
        yield module.on_after_batch_transfer(batch, 0)


@pytest.mark.parametrize("name", SUBJECTS)
def test_conformance(name):
    module = build(name)
    labels = module.data.train.labels
    seen, means = [], []
    for batch in training_batches(module):
        assert isinstance(batch, Batch)
        assert [tuple(v.shape) for v in batch.views] == [(BATCH, 3, s.size, s.size) for s in expand(SPECS)]
        for view in batch.views:
            assert view.dtype == torch.float32
            assert torch.isfinite(view).all()
        assert torch.equal(labels[batch.index], batch.labels)
        assert not torch.equal(batch.views[0], batch.views[1]), "two views of one image are alike"
        assert len({v.numpy().tobytes() for v in batch.views[0]}) == BATCH, "two images of one batch are alike"
        seen += batch.index.tolist()
        means.append(torch.stack([v.mean() for v in batch.views[:2]]))
    assert len(seen) == len(set(seen)) == len(labels) // BATCH * BATCH, "each image once, but for the last part"
    assert torch.stack(means).mean().abs() < 0.35, "normalized"


@pytest.mark.parametrize("name", OTHERS)
def test_pipelines_agree_sample_by_sample(name):
    """The same images in the same order with the same parameters; only rounding to 8 bits lies between them."""
    data = digits_for(name)
    a, b = (list(training_batches(build(n, data), epoch=3, at_most=3)) for n in (name, "torchvision"))
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.index, y.index)
        std = DATASETS["digits"].std[0]
        for number, (v, w) in enumerate(zip(x.views, y.views, strict=True)):
            difference = (v - w).abs() * std * 255
            assert difference.mean() < 1.5
            if number != 1:  # solarize turns a rounding at its threshold into a step
                assert difference.quantile(0.999) < 6


@pytest.mark.parametrize("name", SUBJECTS)
def test_epochs_differ_and_repeat(name):
    first, again, other = (next(training_batches(build(name), epoch)) for epoch in (0, 0, 1))
    assert torch.equal(first.index, again.index)
    assert all(torch.equal(v, w) for v, w in zip(first.views, again.views, strict=True))
    assert not torch.equal(first.index, other.index)


def test_workers_change_nothing():
    alone, many = (list(training_batches(build("torchvision", workers=w), at_most=4)) for w in (0, 2))
    for x, y in zip(alone, many, strict=True):
        assert torch.equal(x.index, y.index)
        assert all(torch.equal(v, w) for v, w in zip(x.views, y.views, strict=True))


@pytest.mark.parametrize("name", SUBJECTS)
def test_plain_images_come_once_in_order(name):
    module = build(name)
    for split, images in (("train", module.data.train), ("val", module.data.val)):
        loader = module.eval_dataloader(split, torch.device("cpu"))
        batches = list(loader)
        assert len(batches) == len(loader)
        assert loader.images == len(images)
        assert torch.cat([b.index for b in batches]).tolist() == list(range(len(images)))
        assert torch.equal(torch.cat([b.labels for b in batches]), images.labels)
        assert all(len(b.views) == 1 for b in batches)
        assert batches[0].views[0].shape[1:] == (3, 32, 32)


@pytest.mark.parametrize("name", OTHERS)
def test_plain_images_of_all_pipelines_agree(name):
    modules = (build(n, digits_for(name)) for n in (name, "torchvision"))
    a, b = (next(iter(m.eval_dataloader("train", torch.device("cpu")))).views[0] for m in modules)
    assert (a - b).abs().max() * DATASETS["digits"].std[0] * 255 < 1.01, "more than one rounding"


@pytest.mark.parametrize("name", SUBJECTS)
def test_folders_of_unlike_images(name, tmp_path):
    """Sizes from 5 x 3 to 300 x 40, gray, CMYK, palette and 16 bits, in class folders."""
    shapes = [(5, 3), (300, 40), (64, 64), (40, 90)]
    for c, folder in enumerate(("train/a", "train/b", "val/a", "val/b")):
        for i, mode in enumerate(("RGB", "L", "CMYK", "P", "I;16", "RGBA")):
            suffix = {"CMYK": ".jpg", "RGBA": ".png"}.get(mode, ".png")
            write_image(tmp_path / folder / f"{i}{suffix}", mode, shapes[(i + c) % 4], seed=10 * c + i)
    data = read_dataset("custom", str(tmp_path), None, None)
    assert data.classes == 2
    module = build(name, data, [ViewSpec(32, count=2)], batch_size=6)
    batches = list(training_batches(module))
    assert len(batches) == 2
    for batch in [*batches, *module.eval_dataloader("val", torch.device("cpu"))]:
        for view in batch.views:
            assert view.shape[1:] == (3, 32, 32)
            assert torch.isfinite(view).all()
            assert view.std() > 0.1


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_pile_without_labels(name, tmp_path):
    for i in range(9):
        write_image(tmp_path / f"{i}.png", seed=i)
    data = read_dataset("custom", str(tmp_path), None, None)
    assert data.val is None
    assert data.classes == 0
    batch = next(training_batches(build(name, data, [ViewSpec(16, count=2)], batch_size=4)))
    assert (batch.labels == -1).all()


def order_of(rank, world, batch_size):
    order = EpochBatchSampler(50, batch_size, seed=5)
    order.set_epoch(2)
    return [index for _, index in order]


def test_ranks_share_the_steps_of_one_process(ranks):
    alone = order_of(0, 1, 12)
    for world in (2, 3):
        parts = ranks(world).run(order_of, 12 // world)
        assert [sum(step, []) for step in zip(*parts, strict=True)] == alone


@pytest.mark.parametrize(
    ("name", "workers"), [("torchvision", 0), ("stream", 0), ("stream", 2), pytest.param("dali", 2, marks=WITH_DALI)]
)
def test_a_resumed_loader_goes_on_where_it_stopped(tmp_path, name, workers):
    data = read_dataset("custom", str(class_folders(tmp_path / "x", each=40)), None, None)
    module = build(name, data, batch_size=8, workers=workers)
    loader = module.train_dataloader()
    module.order.set_epoch(1)
    batches = iter(loader)
    taken = [next(batches).index for _ in range(3)]
    assert loader.state_dict() == {"taken": 3}
    rest = [b.index for b in batches]
    again = module.train_dataloader()
    module.order.set_epoch(1)
    again.load_state_dict({"taken": 3})
    assert torch.equal(torch.cat([b.index for b in again]), torch.cat(rest))
    assert len(taken) + len(rest) == len(loader)
    assert len(list(again)) == len(loader), "only the first epoch after a restart is short"


def test_auto_takes_what_fits_and_says_why(monkeypatch):
    data = read_dataset("digits", "none", None, None)
    assert choose_pipeline("auto", data, 32)[0] == "memory"
    monkeypatch.setattr("data.pipelines.choose.host_memory", lambda: 1_000_000)
    name, reason = choose_pipeline("auto", data, 32)
    assert name == "stream"
    assert "GiB" in reason
    assert choose_pipeline("memory", data, 32) == ("memory", "as given")


@pytest.mark.parametrize(("cuda", "wanted"), [(False, "stream"), (True, "memory")])
def test_auto_makes_large_views_one_at_a_time_on_cpu(monkeypatch, cuda, wanted):
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    assert choose_pipeline("auto", read_dataset("digits", "none", None, None), 224)[0] == wanted


def test_device_pipeline_stores_small_images_as_they_are_and_squeezes_large_ones(tmp_path):
    assert build("memory").stores["train"].pixels.shape == (1438, 3, 8, 8)
    data = read_dataset("custom", str(class_folders(tmp_path / "x", size=(100, 50))), None, None)
    store = build("memory", data, [ViewSpec(32, count=2)], batch_size=4).stores["train"]
    assert store.pixels.shape == (12, 3, 64, 64)
    assert np.array_equal(store.sizes, np.tile((50, 100), (12, 1)))
    assert np.allclose(store.ratio, (64 / 50, 64 / 100))
    assert [stored_side(size) for size in (32, 96, 128, 224, 384)] == [64, 192, 256, 256, 439]
