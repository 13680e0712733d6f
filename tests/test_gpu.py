"""What only a CUDA device can show."""

import numpy as np
import pytest
import torch
from PIL import Image

import main_contrastive
from data import augment_torch
from data.augment_torch import Views, crop_axes
from data.datasets import IMAGENET_MEAN, IMAGENET_STD, read_dataset
from data.pipelines.choose import build_pipeline
from data.sampler import sample
from data.views import ViewSpec
from methods import METHODS
from runs.background import copy_to_cpu
from tests.helpers.commands import backbone_words, flags_of, small
from tests.helpers.dali import with_dali
from tests.helpers.images import class_folders, digit_files
from tests.helpers.networks import batched
from tests.helpers.runs import assert_same_run
from utils.files import read_metrics
from utils.hardware import usable_cores

NETWORK = "resnet18"  # of the runs; tests/test_pretended_gpu.py takes a smaller one
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def command(method):
    """The words of a run of a method on the digits, without those of its length and hardware."""
    short = {"--queue_size": "300", "--queue_start_epoch": "1"}  # for runs of two epochs and more
    queue = [word for flag in sorted(short.keys() & flags_of(method)) for word in (flag, short[flag])]
    return ["digits", *backbone_words(method, NETWORK), "--method", method, *small(method, *queue)]


@pytest.mark.parametrize("size", [32, 96, 224])
def test_views_on_cuda_equal_those_on_the_cpu(size):
    spec, n = ViewSpec(size, blur=0.5, solarize=0.3), 16
    x = torch.randint(0, 256, (n, 3, 64, 80), dtype=torch.uint8)
    p = sample(spec, 0, 0, np.arange(n), 0, np.tile((64, 80), (n, 1)))
    cpu = batched(x, p, spec)
    cuda = batched(x.cuda(), p, spec).cpu()
    assert (cpu - cuda).abs().mean() < 1e-4
    assert (cpu - cuda).abs().quantile(0.999) < 5e-3  # solarize turns a rounding at its threshold into a step


@pytest.mark.parametrize("size", [32, 96, 224])
def test_views_of_the_kernels_equal_those_of_the_batched_executor(size):
    augment_triton = pytest.importorskip("data.augment_triton", reason="Triton is not installed")
    if not augment_triton.compiles():
        pytest.skip("Triton cannot start kernels here")
    spec, n, cuda = ViewSpec(size, blur=0.5, solarize=0.3), 64, torch.device("cuda", 0)
    x = torch.randint(0, 256, (n, 3, 256, 256), dtype=torch.uint8, device=cuda)
    p = sample(spec, 0, 0, np.arange(n), 0, np.tile((256, 256), (n, 1)))
    views = [Views(x, np.arange(n), p, *crop_axes(p.box, size), size, spec.blur_taps)] * 2
    for dtype, near in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        (expected, _), (found, again) = (
            executor.augment_views(views, IMAGENET_MEAN, IMAGENET_STD, dtype)
            for executor in (augment_torch, augment_triton)
        )
        assert ((found - expected).abs() < near).float().mean() > 0.9999  # solarize may jump
        assert torch.equal(found, again)
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_epochs_of_views_need_no_more_memory_than_the_first():
    """Freed memory belongs to the stream that used it: a stream for each epoch would strand its share."""
    module = build_pipeline(
        "memory", read_dataset("digits", "none", None, None), [ViewSpec(64)], 64, 0, 0, None, "cuda"
    )
    loader, reserved = module.train_loader(module.order, torch.device("cuda", 0)), []
    for _ in range(4):
        assert len(list(loader)) == len(module.order)
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[3] < 1.5 * reserved[1]


def test_memory_pipeline_keeps_decoded_images_on_the_device():
    data = read_dataset("digits", "none", None, None)
    module = build_pipeline("memory", data, [ViewSpec(32, count=2)], 16, 0, 0, None, "cuda")
    cuda = torch.device("cuda", 0)
    for batch in (next(iter(module.eval_dataloader("train", cuda))), next(module.augmented_loader([0, 1], cuda))):
        assert batch.views[0].is_cuda
    assert module.decoded.pixels.is_cuda


@with_dali
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_dali_decodes_and_crops_on_the_device(tmp_path, suffix):
    """A GPU's JPEG decoder rounds in its own way; PNG files are decoded by the CPU."""
    root, cuda = class_folders(tmp_path / "x", each=16, size=(90, 70)), torch.device("cuda", 0)
    for path in root.rglob("*.png"):
        image = Image.open(path).resize((9, 7)).resize((90, 70), Image.Resampling.BICUBIC)  # smooth
        image.save(path.with_suffix(suffix))
        if suffix != ".png":
            path.unlink()
    data = read_dataset("custom", str(tmp_path), "x", None)
    specs = [ViewSpec(32, jitter=0, gray=0), ViewSpec(48, scale=(0.05, 0.3), jitter=0, gray=0)]
    a, b = (build_pipeline(name, data, specs, 8, 0, 2, None, "cuda") for name in ("dali", "torchvision"))
    batches = list(a.train_subset_loader(np.arange(32), cuda).epoch(1))
    assert len(batches) == 4
    for x, y in zip(batches, b.train_subset_loader(np.arange(32), cuda).epoch(1), strict=True):
        assert torch.equal(x.index, y.index)
        for v, w in zip(x.views, y.views, strict=True):
            assert v.is_cuda
            assert (v - w)[:, :, 1:-1, 1:-1].abs().max() * 0.23 * 255 < (2 if suffix == ".png" else 12)
    first = list(a.eval_dataloader("train", cuda))
    again = list(a.eval_dataloader("train", cuda))
    assert all(torch.equal(x.views[0], y.views[0]) for x, y in zip(first, again, strict=True)), "a buffer was reused"


@with_dali
def test_run_with_dali_learns(tmp_path):
    folder = str(digit_files().train.root.parent)
    main_contrastive.main(["custom", "resnet18", "--data_folder", folder, "--large_size", "32", "--method", "simclr",
                           *small("simclr"), "--batch_size", "128", "--epochs", "3", "--optimizer", "sgd", "--lr",
                           "0.1", "--log_every", "1", "--gpus", "0", "--pipeline", "dali", "--output", str(tmp_path),
                           "--run_id", "r"])  # fmt: skip
    rows = read_metrics(tmp_path / "r" / "metrics.csv")
    assert all(np.isfinite(float(row["loss"])) for row in rows if row["loss"])
    assert [float(row["knn_20"]) for row in rows if row.get("knn_20")][-1] > 50


@pytest.mark.parametrize(
    "more",
    [[], ["--compile"], ["--pipeline", "torchvision"], ["--pipeline", "stream"], ["--precision", "16-mixed"]],
    ids=["default", "compile", "torchvision", "stream", "16-mixed"],
)
@pytest.mark.parametrize("method", METHODS)
def test_run_learns(tmp_path, method, more):
    if METHODS[method].supports_small_views and "--compile" in more:
        more = [*more, "--small_views", "2"]
    main_contrastive.main([*command(method), "--batch_size", "128",
                           "--epochs", "3", "--optimizer", "sgd", "--lr", "0.1", "--log_every", "1", "--gpus", "0",
                           "--num_workers", str(min(4, usable_cores())), "--output", str(tmp_path), "--run_id", "r",
                           *more])  # fmt: skip
    rows = read_metrics(tmp_path / "r" / "metrics.csv")
    knn = [float(row["knn_20"]) for row in rows if row.get("knn_20")]
    # Chance is 10. The small transformer of these runs has 39 to 50, trained for 3 epochs or for 10.
    assert knn[-1] > (30 if METHODS[method].transformer_name else 50)
    assert all(np.isfinite(float(row["loss"])) for row in rows if row["loss"])


def test_state_is_copied_into_pinned_memory_before_the_next_step_changes_it():
    weights = [torch.full((1000, 1000), float(i), device="cuda") for i in range(5)]
    copies = copy_to_cpu({"state": weights})["state"]
    for weight in weights:
        weight.zero_()
    assert all(copied.is_pinned() and bool((copied == i).all()) for i, copied in enumerate(copies))


@pytest.mark.parametrize("method", METHODS)
def test_deterministic_run_can_be_repeated_to_the_bit(tmp_path, method):
    for run in ("once", "again"):
        main_contrastive.main([*command(method), "--batch_size", "128",
                               "--epochs", "2", "--optimizer", "sgd", "--gpus", "0", "--deterministic",
                               "--output", str(tmp_path), "--run_id", run])  # fmt: skip
    assert_same_run(tmp_path / "once", tmp_path / "again")
