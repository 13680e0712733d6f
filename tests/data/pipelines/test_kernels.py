"""The choice of the executor of a device, and that every pipeline uses it."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from data import augment_torch
from data.augment_torch import Views, crop_axes
from data.datasets import IMAGENET_MEAN, IMAGENET_STD
from data.pipelines import kernels
from data.pipelines.choose import build_pipeline
from data.pipelines.kernels import augment_views, triton_kernels
from data.views import ViewSpec
from tests.helpers.executors import images, params
from tests.helpers.images import read
from tests.helpers.networks import batched
from tests.helpers.pipelines import CPU, build, equal_views

CUDA = torch.device("cuda", 0)
STATISTICS = (IMAGENET_MEAN, IMAGENET_STD)


@pytest.fixture
def compiling(monkeypatch):
    """Triton as on a machine with a GPU, where it is not told to interpret."""
    pytest.importorskip("triton", reason="Triton is not installed; torch brings it on Linux")
    monkeypatch.setattr("data.augment_triton.compiles", lambda: True)


def test_triton_kernels_are_for_cuda_where_triton_compiles(compiling, monkeypatch):
    from data import augment_triton

    assert triton_kernels(CUDA) is augment_triton
    assert triton_kernels(CPU) is None
    monkeypatch.setattr("data.augment_triton.compiles", lambda: False)
    assert triton_kernels(CUDA) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the kernels are compiled")
def test_triton_kernels_are_not_chosen_where_they_are_interpreted():
    pytest.importorskip("triton", reason="Triton is not installed; torch brings it on Linux")
    assert triton_kernels(CUDA) is None


def test_triton_kernels_are_not_chosen_without_triton_or_on_rocm(compiling, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert triton_kernels(CUDA) is None
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    assert triton_kernels(CUDA) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_augment_views_by_the_batched_executor_are_of_the_type_asked_for_and_channels_last(dtype):
    spec, index = ViewSpec(16, blur=0.5), np.array([3, 0])
    x, p = images(6), params(spec, 2)
    (found,) = augment_views([Views(x, index, p, *crop_axes(p.box, 16), 16, spec.blur_taps)], *STATISTICS, dtype)
    expected = augment_torch.standardize_images(batched(x[index], p, spec), *STATISTICS)
    assert torch.equal(found, expected.to(dtype))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_views_that_are_cropped_already_are_the_same_by_both_executors():
    pytest.importorskip("triton", reason="Triton is not installed; torch brings it on Linux")
    from data import augment_triton

    device = CUDA if torch.cuda.is_available() else CPU
    spec = ViewSpec(14, blur=0.5, hue=0.3)
    x, p = images(5, 14, 14).to(device), params(spec, 5, flip=False)
    view = Views(x, np.arange(5), p, None, None, 14, spec.blur_taps)
    (a,), (b,) = (e.augment_views([view], *STATISTICS, torch.float32) for e in (augment_triton, augment_torch))
    assert_close(a, b, rtol=0, atol=3e-5)


@pytest.mark.parametrize("name", ["memory", "stream"])
def test_loaders_for_the_cpu_make_their_views_there_on_a_machine_with_cuda(name):
    """The executor is that of the loader's device: an evaluation may run on the CPU beside a GPU."""
    specs, rows = [ViewSpec(16, blur=0.5)], [5, 2, 9]
    with_cuda = build_pipeline(name, read(), specs, 2, 0, 0, None, "cuda", "bf16-mixed")
    found, expected = (list(m.augmented_loader(rows, CPU)) for m in (with_cuda, build(name, specs=specs, batch_size=2)))
    assert len(found) == 2
    assert all(map(equal_views, found, expected))
    assert equal_views(
        *(next(iter(m.eval_dataloader("val", CPU))) for m in (with_cuda, build(name, specs=specs, batch_size=2)))
    )


@pytest.mark.parametrize("precision", kernels.DTYPES)
def test_every_precision_of_the_plan_has_a_type_of_views(precision):
    module = build_pipeline("memory", read(), [ViewSpec(8)], 4, 0, 0, None, "cuda", precision)
    assert module.dtype.itemsize == (4 if precision == "32" else 2)
    assert build_pipeline("memory", read(), [ViewSpec(8)], 4, 0, 0, None, "cpu", precision).dtype == torch.float32
