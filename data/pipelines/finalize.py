"""The last step of every pipeline, on the device that trains: what is left of the colours, and normalization."""

from collections.abc import Sequence

import torch
from torch import Tensor

from data.augment_numba import augment_crops
from data.augment_torch import apply_color_augmentations, standardize_images
from data.pipelines.loaders import UnfinishedBatch
from data.sampler import ViewParams
from data.views import ViewSpec
from utils.batch import Batch

Statistic = tuple[float, ...]  # one number per channel


def finalize_batch(batch: UnfinishedBatch, specs: Sequence[ViewSpec], mean: Statistic, std: Statistic) -> Batch:
    """The batch with every view finished: float32, normalized, on the device where the view is.

    specs: those of the views that have colour operations left. mean, std: of the data set, per channel.
    """
    if batch.color_params:
        pairs = zip(batch.views, batch.color_params, specs, strict=True)
        views = [color_and_standardize(view, params, spec.blur_taps, mean, std) for view, params, spec in pairs]
    else:
        views = [v if v.is_floating_point() else standardize_images(v, mean, std) for v in batch.views]
    return Batch(batch.index, views, batch.labels)


def color_and_standardize(view: Tensor, params: ViewParams, taps: int, mean: Statistic, std: Statistic) -> Tensor:
    """(N, 3, S, S) uint8, cropped and flipped, -> float32 with jitter, gray, blur, solarize and normalization.

    A GPU computes it for the whole batch, the CPU with the compiled loops. params: without flips. taps: of the blur.
    """
    if view.is_cuda:
        x = apply_color_augmentations(view.float().div_(255), params, taps)
        return standardize_images(x, mean, std)
    out = torch.empty(view.shape)
    crops = list(view.permute(0, 2, 3, 1).contiguous().numpy())
    augment_crops(crops, params, taps, mean, std, out.numpy())
    return out
