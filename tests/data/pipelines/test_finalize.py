"""The last step of every pipeline: nothing, normalization, or the rest of the colours and normalization."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from data.augment_torch import apply_color_augmentations, standardize_images
from data.datasets import IMAGENET_MEAN, IMAGENET_STD
from data.pipelines.finalize import finalize_batch
from data.pipelines.loaders import UnfinishedBatch, without_flip
from data.sampler import sample
from data.views import ViewSpec

N = 12
SPEC = ViewSpec(24, blur=0.5)


def views_of(seed=0):
    return torch.randint(0, 256, (N, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def finalized(views, params=()):
    batch = UnfinishedBatch(torch.arange(N), views, torch.ones(N).long(), list(params))
    return finalize_batch(batch, [SPEC] * len(views), IMAGENET_MEAN, IMAGENET_STD)


def test_finalize_batch_leaves_finished_views_alone():
    view = torch.randn(N, 3, 24, 24)
    batch = finalized([view])
    assert batch.views[0] is view
    assert batch.index.tolist() == list(range(N))
    assert batch.labels.tolist() == [1] * N


def test_finalize_batch_normalizes_bytes():
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    assert_close(finalized([views_of()]).views[0], (views_of().float() / 255 - mean) / std)


@pytest.mark.parametrize("solarize", [0.0, 0.5])
def test_finalize_batch_applies_the_colours_that_are_left(solarize):
    spec = ViewSpec(24, blur=0.5, solarize=solarize)
    params = [without_flip(sample(spec, 0, 0, np.arange(N), view, np.full((N, 2), 24))) for view in range(2)]
    views = [views_of(0), views_of(1)]
    for found, view, p in zip(finalized(views, params).views, views, params, strict=True):
        x = apply_color_augmentations(view.float() / 255, p, spec.blur_taps)
        expected = standardize_images(x, IMAGENET_MEAN, IMAGENET_STD)
        near = (found - expected).abs() < 5e-4
        assert near.float().mean() > (0.99 if solarize else 0.999999)  # solarize may jump


class OnCuda(torch.Tensor):
    """A tensor that says it is on a CUDA device."""

    is_cuda = True


def test_finalize_batch_on_a_gpu_gives_views_of_the_type_of_the_training_by_the_executor_of_the_device():
    specs = [SPEC, ViewSpec(24, solarize=0.5)]
    params = [
        without_flip(sample(spec, 0, 0, np.arange(N), view, np.full((N, 2), 24))) for view, spec in enumerate(specs)
    ]
    views = [views_of(0), views_of(1)]
    batch = UnfinishedBatch(torch.arange(N), [v.as_subclass(OnCuda) for v in views], torch.ones(N).long(), params)
    found = finalize_batch(batch, specs, IMAGENET_MEAN, IMAGENET_STD, torch.bfloat16)
    for made, view, p, spec in zip(found.views, views, params, specs, strict=True):
        x = apply_color_augmentations(view.float() / 255, p, spec.blur_taps)
        expected = standardize_images(x, IMAGENET_MEAN, IMAGENET_STD)
        assert torch.equal(made.as_subclass(torch.Tensor), expected.bfloat16())
        assert made.is_contiguous(memory_format=torch.channels_last)
    plain = finalize_batch(batch._replace(color_params=[]), specs, IMAGENET_MEAN, IMAGENET_STD, torch.bfloat16)
    assert plain.views[0].dtype == torch.float32, "evaluation views stay in full precision"
