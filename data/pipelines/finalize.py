"""The last step of every pipeline, on the device that trains: what is left of the colours, and normalization."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data.augment_numba import augment_crops
from data.augment_torch import Statistic, Views, standardize_images
from data.pipelines.kernels import augment_views
from data.pipelines.loaders import UnfinishedBatch
from data.sampler import ViewParams
from data.views import ViewSpec
from utils.batch import Batch


def finalize_batch(
    batch: UnfinishedBatch, specs: Sequence[ViewSpec], mean: Statistic, std: Statistic,
    dtype: torch.dtype = torch.float32,
) -> Batch:  # fmt: skip
    """The batch with every view finished and normalized, on the device where the view is.

    specs: those of the views that have colour operations left. mean, std: of the data set, per channel. dtype: of views
    whose colour operations a GPU applies; all others are float32.
    """
    if not batch.color_params:
        views = [v if v.is_floating_point() else standardize_images(v, mean, std) for v in batch.views]
        return Batch(batch.index, views, batch.labels)
    triples = zip(batch.views, batch.color_params, specs, strict=True)
    if batch.views[0].is_cuda:
        rows = np.arange(len(batch.index))
        left = [Views(view, rows, params, None, None, spec.size, spec.blur_taps) for view, params, spec in triples]
        return Batch(batch.index, augment_views(left, mean, std, dtype), batch.labels)
    views = [by_compiled_loops(view, params, spec.blur_taps, mean, std) for view, params, spec in triples]
    return Batch(batch.index, views, batch.labels)


def by_compiled_loops(view: Tensor, params: ViewParams, taps: int, mean: Statistic, std: Statistic) -> Tensor:
    """(N, 3, S, S) uint8 in memory, cropped and flipped, -> float32 with the colour operations and normalization.

    params: without flips. taps: of the blur.
    """
    out = torch.empty(view.shape)
    crops = list(view.permute(0, 2, 3, 1).contiguous().numpy())
    augment_crops(crops, params, taps, mean, std, out.numpy())
    return out
