"""Data modules of an evaluation: images as evaluation views, and as cropped views for training classifiers."""

from data.datasets import DATASETS, Data
from data.pipelines.base import DataModule
from data.pipelines.choose import build_pipeline, choose_pipeline
from data.views import ViewSpec

CROP_SCALE = (0.08, 1.0)  # torchvision's RandomResizedCrop


def evaluation_modules(
    dataset: str,
    data: Data,
    size: int,
    pipeline: str,
    batch_size: int,
    seed: int,
    num_workers: int,
    cache: str | None,
    accelerator: str,
) -> tuple[DataModule, DataModule]:
    """The data module with two augmented views of an image, and that with one cropped and perhaps flipped view.

    Both give the same evaluation views and share what is decoded. size: side of a view in pixels. pipeline: as
    requested, "auto" for the best one.
    """
    name, _ = choose_pipeline(pipeline, data, size, cache, accelerator)
    module = build_pipeline(name, data, [ViewSpec(size, count=2)], batch_size, seed, num_workers, cache, accelerator)
    flip = DATASETS[dataset].views.get("flip", 0.5)
    return module, module.with_views([ViewSpec(size, scale=CROP_SCALE, flip=flip, jitter=0.0, gray=0.0)])
