"""The interface of a data module, held by every pipeline, and each pipeline beside the reference, sample by sample."""

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer

from data.datasets import DATASETS, read_dataset
from data.pipelines.base import DataModule
from data.views import ViewSpec, expand
from tests.helpers.dali import WITH_DALI
from tests.helpers.images import class_folders, spoil, write_image
from tests.helpers.pipelines import (
    CPU,
    EVERY_FAST_PIPELINE,
    EVERY_PIPELINE,
    SPECS,
    build,
    digits_for,
    equal_views,
    training_batches,
)
from utils.batch import Batch
from utils.errors import UserError

BATCH = 16


@pytest.mark.parametrize("name", EVERY_PIPELINE)
def test_train_dataloader_keeps_the_contract_of_a_batch(name):
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


@pytest.mark.parametrize("name", EVERY_FAST_PIPELINE)
def test_train_dataloader_agrees_with_the_reference_sample_by_sample(name):
    """Equal images, order and parameters; only rounding to 8 bits lies between two pipelines."""
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


@pytest.mark.parametrize("name", EVERY_PIPELINE)
def test_train_dataloader_repeats_an_epoch_and_changes_with_it(name):
    module = build(name)
    first, again, other = (next(training_batches(module, epoch)) for epoch in (0, 0, 1))
    assert equal_views(first, again)
    assert not torch.equal(first.index, other.index)


@pytest.mark.parametrize("name", EVERY_PIPELINE)
def test_train_dataloader_reads_images_of_every_size_and_mode(name, tmp_path):
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
    for batch in [*batches, *module.eval_dataloader("val", CPU)]:
        for view in batch.views:
            assert view.shape[1:] == (3, 32, 32)
            assert torch.isfinite(view).all()
            assert view.std() > 0.1


@pytest.mark.parametrize("name", EVERY_PIPELINE)
def test_train_dataloader_of_an_unlabelled_folder_has_labels_of_minus_one(name, tmp_path):
    for i in range(9):
        write_image(tmp_path / f"{i}.png", seed=i)
    data = read_dataset("custom", str(tmp_path), None, None)
    assert data.val is None
    assert data.classes == 0
    batch = next(training_batches(build(name, data, [ViewSpec(16, count=2)], batch_size=4)))
    assert (batch.labels == -1).all()


@pytest.mark.parametrize("workers", [0, 9])
@pytest.mark.parametrize("name", EVERY_PIPELINE)
@pytest.mark.filterwarnings("ignore:.*worker processes in total")
def test_train_dataloader_skips_bad_images_alike_in_every_pipeline(tmp_path, name, workers):
    """Whatever the number of workers: none, or more than a machine of tests has cores."""
    root = class_folders(tmp_path / "train", each=10)
    spoil(root / "c0")
    images = read_dataset("custom", str(tmp_path), None, None, "skip")
    batches = list(training_batches(build(name, images, [ViewSpec(16, count=2)], workers, batch_size=5)))
    index = torch.cat([b.index for b in batches])
    assert sorted(index.tolist()) == list(range(20))
    labels = torch.cat([b.labels for b in batches])
    assert torch.equal(labels, (index >= 10).long()), "c0 comes first, and lost none of its ten"
    expected = next(iter(build("stream", images, batch_size=20).train_dataloader())).index
    assert torch.equal(index, expected), "one order for all"


@pytest.mark.parametrize("name", EVERY_PIPELINE)
def test_augmented_loader_draws_the_views_of_epoch_0(name):
    data = digits_for(name)
    module = build(name, data)
    first = next(training_batches(module, epoch=0))
    rows = first.index.tolist()
    (batch,) = module.augmented_loader(rows, CPU)
    assert equal_views(batch, first)
    assert [len(b.index) for b in module.augmented_loader(rows[:3] * 6, CPU)] == [16, 2]


@pytest.mark.parametrize("name", EVERY_PIPELINE)
def test_train_subset_loader_gives_each_row_once_an_epoch(name):
    rows = np.arange(100, 140)
    loader = build(name).train_subset_loader(rows, CPU)
    assert (len(loader), loader.batch_size) == (2, 16)
    first, second = (list(loader.epoch(epoch)) for epoch in (0, 1))
    for batches in (first, second):
        index = torch.cat([b.index for b in batches]).tolist()
        assert len(set(index)) == 32
        assert set(index) <= set(rows.tolist())
    assert not torch.equal(first[0].index, second[0].index)
    assert all(map(equal_views, first, loader.epoch(0)))


def test_train_subset_loader_shrinks_its_batch_to_few_rows():
    loader = build("memory").train_subset_loader(np.arange(5), CPU)
    assert (loader.batch_size, len(loader)) == (5, 1)


@pytest.mark.parametrize("name", EVERY_PIPELINE)
def test_with_views_changes_the_views_and_shares_the_images(name):
    module = build(name)
    other = module.with_views([ViewSpec(24)])
    (batch,) = other.augmented_loader([1, 2], CPU)
    assert [view.shape[-1] for view in batch.views] == [24]
    assert len(module.specs) == 4
    assert other.data is module.data
    if name == "memory":
        assert other.decoded is module.decoded


class EpochRecorder(LightningModule):
    """A module that records the images that the Trainer hands over in each epoch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen = {"train": [[]], "val": [[]]}

    def training_step(self, batch, _):
        assert all(view.dtype == torch.float32 and abs(view.mean()) < 3 for view in batch.views)
        self.seen["train"][-1] += batch.index.tolist()
        return self.weight * batch.views[0].mean()

    def validation_step(self, batch, _):
        assert len(batch.views) == 1
        assert batch.views[0].dtype == torch.float32
        self.seen["val"][-1] += batch.index.tolist()

    def on_train_epoch_end(self):
        for part in self.seen.values():
            part.append([])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer_of(folder, **kwargs):
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, num_sanity_val_steps=0,
                   enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
                   default_root_dir=folder, **kwargs)  # fmt: skip


@pytest.mark.parametrize("name", [p for p in EVERY_PIPELINE if p.values != ("torchvision",)])
def test_trainer_sees_every_image_once_an_epoch_in_another_order(name, tmp_path):
    """Lightning finds `set_epoch` of the batch sampler by its attribute `sampler`."""
    class_folders(tmp_path / "train", each=20)
    class_folders(tmp_path / "val", each=5)
    recorder, trainer = EpochRecorder(), trainer_of(tmp_path, max_epochs=3)
    module = build(name, read_dataset("custom", str(tmp_path), None, None), [ViewSpec(16, blur=0.5)], 1, 8)
    trainer.fit(recorder, datamodule=module)
    assert trainer.global_step == 15
    for part, n in (("train", 40), ("val", 10)):
        epochs = recorder.seen[part]
        assert [sorted(e) for e in epochs] == [list(range(n))] * 3 + [[]], part
    assert len({tuple(epoch) for epoch in recorder.seen["train"]}) == 4, "each epoch has its order"


def test_trainer_saves_and_restores_the_position_of_the_loader(tmp_path):
    """Lightning calls `state_dict` and `load_state_dict` of a loader that has them."""
    class_folders(tmp_path / "train", each=20)
    data = read_dataset("custom", str(tmp_path), None, None)
    whole, resumed, path = EpochRecorder(), EpochRecorder(), tmp_path / "x.ckpt"
    whole.on_train_batch_end = lambda *_: (
        whole.trainer.save_checkpoint(path) if whole.trainer.global_step == 3 else None
    )
    for recorder in (whole, resumed):
        module = build("stream", data, [ViewSpec(16)], batch_size=8)
        checkpoint = path if recorder is resumed else None
        trainer_of(tmp_path, max_steps=5, limit_val_batches=0).fit(recorder, None, None, module, checkpoint, True)
    assert len(whole.seen["train"][0]) == 40
    assert resumed.seen["train"][0] == whole.seen["train"][0][24:]


@pytest.mark.parametrize(
    ("name", "workers"), [("torchvision", 0), ("memory", 0), ("stream", 2), pytest.param("dali", 2, marks=WITH_DALI)]
)
def test_resumed_loader_continues_where_it_stopped(tmp_path, name, workers):
    data = read_dataset("custom", str(class_folders(tmp_path / "x", each=40)), None, None)
    whole = list(training_batches(build(name, data, batch_size=8, workers=workers), epoch=1))
    module = build(name, data, batch_size=8, workers=workers)
    loader = module.train_dataloader()
    module.order.set_epoch(1)
    batches = iter(loader)
    taken = [next(batches).index for _ in range(3)]
    assert loader.state_dict() == {"taken": 3}, "batches that were handed out, not those that are prefetched"
    rest = [b.index for b in batches]
    assert len(taken) + len(rest) == len(loader)
    again = module.train_dataloader()
    module.order.set_epoch(1)
    again.load_state_dict({"taken": 3})
    assert all(map(equal_views, map(module.finalize_batch, again), whole[3:]))
    assert len(list(again)) == len(loader), "only the first epoch after a restart is short"


def read_as_rank(rank, world, roots):
    images = read_dataset("custom", roots[rank], None, None, "skip")
    try:
        DataModule(images, [ViewSpec(16)], 4, 0, 0, "cpu").setup("fit")
    except UserError as e:
        return str(e)
    return ""


def test_setup_refuses_processes_that_read_different_images(tmp_path, ranks):
    for name in ("a", "b"):
        spoil(class_folders(tmp_path / name / "train") / "c0")
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert ranks(2).run(read_as_rank, [a, b]) == ["", ""], "equal images under another path"
    (tmp_path / "b" / "train" / "c0" / "1.png").write_bytes(b"text")
    for message in ranks(2).run(read_as_rank, [a, b]):
        assert "have read different images" in message
