"""NVIDIA DALI: the pixels of the reference, every image once, nothing stale, errors that name the file."""

import builtins
import gc
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torchvision.transforms.v2 import functional as TF

import main_contrastive
import main_linear
from data.datasets import IMAGENET_STD, read_dataset
from data.pipelines import dali
from data.pipelines.dali import DaliPipeline, check_dali
from data.views import ViewSpec
from tests.data.test_pipelines import build, training_batches
from tests.data.test_stream import equal
from tests.helpers.commands import TINY, evaluate_run, small
from tests.helpers.dali import with_dali
from tests.helpers.images import class_folders, read, write_image
from utils.errors import UserError

SPECS = [ViewSpec(48, blur=0.5, solarize=0.3, count=2), ViewSpec(24, scale=(0.05, 0.3), count=2)]
CROPS = [ViewSpec(size, scale=scale, jitter=0, gray=0) for size, scale in ((96, (0.02, 1)), (24, (0.2, 1)))]
CPU = torch.device("cpu")


def smooth(size, seed, mode="RGB"):
    """An image as smooth as a photograph."""
    rng = np.random.default_rng(seed)
    rough = torch.from_numpy(rng.integers(0, 256, (3, size[1] // 9 + 2, size[0] // 9 + 2), dtype=np.uint8))
    return TF.to_pil_image(TF.resize(rough, [size[1], size[0]], antialias=True)).convert(mode)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """50 JPEG files between 60 and 260 pixels, 10 of them for validation, some gray."""
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for i in range(50):
        path = root / ("val" if i % 5 == 4 else "train") / f"c{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        smooth(rng.integers(60, 260, 2).tolist(), i, "L" if i % 9 == 8 else "RGB").save(path, quality=90)
    return read_dataset("custom", str(root), None, None)


def using(data, workers=2, specs=SPECS, batch_size=8):
    return build("dali", data, specs, workers, batch_size)


def apart(a, b):
    """Differences of two batches' views, of 255."""
    scale = torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255
    return [(v - w).abs() * scale for v, w in zip(a.views, b.views, strict=True)]


def ring(x):
    """The outermost pixels of each view."""
    inside = torch.zeros(x.shape[2:], dtype=torch.bool)
    inside[1:-1, 1:-1] = True
    return x[:, :, ~inside]


@with_dali
def test_crops_are_torchvisions(photographs):
    """Within one step of 255, but for the outermost pixels of a view that is smaller than its box."""
    a, b = (list(training_batches(build(n, photographs, CROPS, 0, 8), epoch=1)) for n in ("dali", "torchvision"))
    assert len(a) == len(b) == 5
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.index, y.index)
        assert torch.equal(x.labels, y.labels)
        for difference in apart(x, y):
            assert difference[:, :, 1:-1, 1:-1].max() < 1.01
            assert difference[:, :, 1:-1, 1:-1].mean() < 0.25
            assert ring(difference).max() < 20
            assert ring(difference).mean() < 2


@with_dali
def test_views_are_torchvisions(photographs):
    """Colours turn a step of 255 into a few; solarize may jump."""
    a, b = (list(training_batches(build(n, photographs, SPECS, 0, 8), epoch=1)) for n in ("dali", "torchvision"))
    for x, y in zip(a, b, strict=True):
        for number, difference in enumerate(apart(x, y)):
            assert difference.mean() < 0.6
            inner = difference[:, :, 1:-1, 1:-1]
            assert (inner < 4).float().mean() > 0.999
            if number > 1:
                assert inner.max() < 7


@with_dali
@pytest.mark.parametrize("size", [32, 96])
def test_clean_views_are_torchvisions(photographs, size):
    """Boxes of odd margins too: they are cut out where torchvision cuts them."""
    for split in ("train", "val"):
        modules = (build(n, photographs, [ViewSpec(size)], 0, 8) for n in ("dali", "torchvision"))
        a, b = (list(m.eval_dataloader(split, CPU)) for m in modules)
        for x, y in zip(a, b, strict=True):
            (difference,) = apart(x, y)
            assert difference[:, :, 1:-1, 1:-1].max() < 1.01
            assert difference.mean() < 0.25


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
    image = smooth((40, 40), 3)
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
        image.putalpha(smooth((40, 40), 4, "L"))
        image.save(path)
    else:
        image.convert(mode).save(path, **options)


@with_dali
@pytest.mark.parametrize(("ending", "how"), [(ending, how) for ending in KINDS for how in KINDS[ending]])
def test_every_kind_of_file_is_what_decode_file_makes_of_it(tmp_path, ending, how):
    """To the bit: the evaluation view of an image of its own size is the image."""
    write_kind(tmp_path / f"x.{ending}", how)
    write_image(tmp_path / "y.png", size=(70, 50))  # one beside it that DALI decodes
    data = read_dataset("custom", str(tmp_path), None, None)
    batches = [next(iter(build(n, data, [ViewSpec(40)]).eval_dataloader("train", CPU))) for n in ("dali", "stream")]
    (difference,) = apart(*batches)
    assert difference[0].max() < 1e-4
    assert difference[1, :, 1:-1, 1:-1].max() < 1.01


@with_dali
def test_a_tiff_file_that_pillow_turns_is_cut_as_it_lies_then(tmp_path):
    for i in range(4):
        image = smooth((30, 70), i)
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(tmp_path / f"{i}.tif", exif=exif)
    data = read_dataset("custom", str(tmp_path), None, None)
    a, b = (next(training_batches(build(n, data, CROPS, 0, 4))) for n in ("dali", "torchvision"))
    assert all(difference[:, :, 1:-1, 1:-1].max() < 1.01 for difference in apart(a, b))


@with_dali
def test_every_image_once_and_other_views_each_epoch(photographs):
    module = using(photographs)
    first, second = (list(training_batches(module, epoch)) for epoch in (0, 1))
    for batches in (first, second):
        assert sorted(torch.cat([b.index for b in batches]).tolist()) == list(range(40))
    assert not torch.equal(first[0].index, second[0].index)
    assert equal(first[0], next(training_batches(using(photographs)))), "deterministic"


@with_dali
def test_threads_change_nothing(photographs):
    a, b = (list(training_batches(using(photographs, n))) for n in (0, 3))
    assert all(map(equal, a, b))


def share(rank, world, root):
    """What this rank sees of an epoch, of the validation set and of the plain images."""
    module = using(read_dataset("custom", root, None, None), batch_size=12 // world)
    loaders = (module.train_dataloader(), module.val_dataloader(), module.eval_dataloader("train", CPU))
    return [[batch.index.tolist() for batch in loader] for loader in loaders]


@with_dali
def test_ranks_share_every_image(photographs, ranks):
    root = str(photographs.train.root.parent)
    alone = share(0, 1, root)
    for world in (2, 3):
        parts = ranks(world).run(share, root)
        epochs, val, plain = zip(*parts, strict=True)
        assert [sum(step, []) for step in zip(*epochs, strict=True)] == alone[0]
        assert sorted(i for part in val for batch in part for i in batch) == list(range(10))
        assert sorted(i for part in plain for batch in part for i in batch) == list(range(40))


class Watcher(LightningModule):
    """Notes what the Trainer hands over."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen = {"train": [[]], "val": [[]]}

    def training_step(self, batch, _):
        assert all(abs(v.mean()) < 3 for v in batch.views)
        self.seen["train"][-1] += batch.index.tolist()
        return self.weight * batch.views[0].mean()

    def validation_step(self, batch, _):
        assert len(batch.views) == 1
        self.seen["val"][-1] += batch.index.tolist()

    def on_train_epoch_end(self):
        for part in self.seen.values():
            part.append([])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@with_dali
def test_under_a_trainer_every_epoch_is_whole(photographs, monkeypatch):
    built = []
    monkeypatch.setattr(dali, "build_graph", lambda *args, f=dali.build_graph: built.append(1) or f(*args))
    watcher = Watcher()
    trainer = Trainer(accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False, num_sanity_val_steps=0,
                      enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False)  # fmt: skip
    trainer.fit(watcher, datamodule=using(photographs))
    assert trainer.global_step == 15
    for part, n in (("train", 40), ("val", 10)):
        epochs = watcher.seen[part]
        assert [sorted(e) for e in epochs] == [list(range(n))] * 3 + [[]], part
    assert watcher.seen["train"][0] != watcher.seen["train"][1]
    assert len(built) == 2, "DALI's pipelines are built once for all epochs"


@with_dali
@pytest.mark.parametrize("used", [False, True])
def test_views_after_a_restart_are_those_of_a_run_that_did_not_stop(photographs, used):
    """A loader that was stopped before, and is told to go on elsewhere, does not hand out what it had prefetched."""
    whole = list(training_batches(using(photographs), epoch=3))
    module = using(photographs)
    loader = module.train_dataloader()
    if used:
        batches = iter(loader)
        next(batches)
        assert loader.state_dict() == {"taken": 1}, "what was handed out, not what is in the queue"
    module.order.set_epoch(3)
    loader.load_state_dict({"taken": 2})
    rest = [module.finalize_batch(batch, 3) for batch in loader]
    assert len(rest) == 3
    assert all(map(equal, rest, whole[2:]))


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
def test_nothing_outlives_an_iteration_that_ends_early(photographs, monkeypatch):
    runners, init = [], DaliPipeline.__init__
    monkeypatch.setattr(
        DaliPipeline, "__init__", lambda self, *args: runners.append(weakref.ref(self)) or init(self, *args)
    )
    gc.collect()  # what failed tests have left
    module = using(photographs, workers=3)
    loader = module.train_dataloader()
    before = threads()
    batches = iter(loader)
    next(batches)
    assert threads() > before + 2
    batches.close()  # as when a run stops early, and when it is dropped
    assert runners[0]() is None
    assert back_to(before)
    assert sum(1 for _ in loader) == 5, "and it can begin again"
    assert threads() > before
    del loader
    assert back_to(before)


@with_dali
def test_a_rank_may_have_nothing_to_do(photographs):
    module = using(photographs)
    loader = module._loader(module.eval_dataset(photographs.val), [], CPU)
    assert list(loader) == list(loader) == []


@with_dali
def test_batches_that_were_kept_do_not_change(photographs):
    loader = using(photographs).train_dataloader()
    kept = [(batch, [view.clone() for view in batch.views]) for batch in loader]
    assert all(torch.equal(v, w) for batch, views in kept for v, w in zip(batch.views, views, strict=True))


@with_dali
def test_headers_of_a_very_large_folder_are_read_when_their_images_come(photographs, tmp_path, monkeypatch):
    whole = list(training_batches(using(photographs), at_most=2))
    monkeypatch.setattr(dali, "CHECKED", 0)
    module = using(photographs)
    assert not module.headers["train"].sizes.any()
    assert all(map(equal, training_batches(module, at_most=2), whole))
    assert 16 <= (module.headers["train"].sizes[:, 0] > 0).sum() <= 32
    root = class_folders(tmp_path / "x")
    (root / "c1" / "3.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"1 of 12 files in .* are not readable images \(c1/3\.png\)"):
        list(training_batches(using(read_dataset("custom", str(tmp_path), "x", None), batch_size=4)))


# What it refuses


@with_dali
@pytest.mark.parametrize(
    ("ending", "harm", "told"),
    [
        ("jpg", lambda b: b[: len(b) // 2], r"x\.jpg is not a readable image \(image file is truncated"),
        ("png", lambda b: b[: len(b) // 2], r"x\.png is not a readable image \(image file is truncated"),
        ("png", lambda b: b[:-12], r"DALI cannot read \S+x\.png \(.+\); save it anew, or choose another --pipeline"),
        ("tif", lambda b: b[: len(b) // 2], r"x\.tif is not a readable image"),
        ("jpg", None, r"x\.jpg is not a readable image \(.*No such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, ending, harm, told):
    root = class_folders(tmp_path / "x", each=10)
    path = root / "c1" / f"x.{ending}"
    smooth((60, 60), 1).save(path)
    module = using(read_dataset("custom", str(tmp_path), "x", None), batch_size=5)
    whole = path.read_bytes()  # the headers were read
    if harm:
        path.write_bytes(harm(whole))
    else:
        path.unlink()
    loader = module.train_dataloader()
    with pytest.raises(UserError, match=told) as e:
        list(loader)
    assert "\n" not in str(e.value)
    path.write_bytes(whole)
    assert len(list(loader)) == 4, "it can begin again"


@with_dali
def test_what_is_no_fault_of_a_file_is_told_too(photographs, monkeypatch):
    class Full:
        def run(self, *args):
            raise RuntimeError("Critical error in pipeline:\nError in operator `x`\n\nencountered:\n\nOut of memory: ")

    monkeypatch.setattr(dali, "build_graph", lambda *args: Full())
    with pytest.raises(UserError, match=r"^DALI failed \(Out of memory\); choose another --pipeline$"):
        list(training_batches(using(photographs)))


@with_dali
def test_images_in_memory_are_refused():
    with pytest.raises(UserError, match=r"reads image files and this data set is in memory; choose --pipeline device"):
        build("dali", read())


def test_absence_is_told_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(UserError, match=r"needs NVIDIA DALI .*: pip install -r requirements-dali\.txt"):
        build("dali", read())


def test_a_library_that_does_not_load_is_told(monkeypatch):
    def failing(name, *args, f=builtins.__import__, **kwargs):
        if name.startswith("nvidia.dali"):
            raise ImportError("libcudart.so.13: cannot open shared object file")
        return f(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", failing)
    with pytest.raises(UserError, match=r"does not load \(libcudart.so.13.*\); pip install"):
        check_dali()


@with_dali
def test_another_cuda_than_torchs_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.version.cuda", "12.8")
    with pytest.raises(UserError, match=r"built for CUDA 13 and torch for CUDA 12; install the nvidia-dali-cuda120"):
        check_dali()


@with_dali
def test_a_driver_that_is_too_old_is_told(photographs, monkeypatch):
    def failing(*args):
        raise RuntimeError("Critical error:\nencountered:\n\nCUDA driver version is insufficient")

    monkeypatch.setattr(dali, "build_graph", failing)
    with pytest.raises(UserError, match=r"cannot run on cpu \(CUDA driver version is insufficient\); choose another"):
        list(training_batches(using(photographs)))


@with_dali
def test_a_run_and_its_evaluation(few, tmp_path, no_embedding):
    out = ["--pipeline", "dali", "--output", str(tmp_path)]
    main_contrastive.main(["custom", TINY[1], *few, "--method", "simclr", *small("simclr"), "--epochs", "2",
                           "--precision", "32", "--small_views", "2", "--small_size", "8", "--run_id", "r",
                           *out])  # fmt: skip
    evaluate_run(tmp_path, "r", few, *out[:2])
    main_linear.main(["custom", TINY[1], *few[:2], "--pretrained_feature_extractor", str(tmp_path / "r"), "--epochs",
                      "2", "--evaluation", "linear", "--batch_size", "12", "--run_id", "l", *out])  # fmt: skip
    assert (tmp_path / "l" / "summary.json").exists()
