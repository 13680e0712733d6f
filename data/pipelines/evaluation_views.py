"""The evaluation view: torchvision's Resize and CenterCrop of the decoded image, alike in every pipeline."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from data.images import ArrayImages, Images
from data.pipelines.prefetch import ThreadedDataset
from data.sampler import ViewParams
from utils.batch import LOW_RES

KEEP_BYTES = 2**30  # evaluation views of a split that need no more than this are kept once they are decoded


def short_side(size: int) -> int:
    """Side to which an evaluation image is resized before the centre crop: 256 for 224, natural size when small."""
    return size if size <= LOW_RES else round(size * 8 / 7)


def evaluation_view(image: Tensor, size: int) -> Tensor:
    """(..., 3, H, W) uint8 -> (..., 3, size, size) uint8: Resize of the short side, then CenterCrop."""
    view: Tensor = TF.center_crop(TF.resize(image, [short_side(size)], antialias=True), [size, size])
    return view


def kept_bytes(images: Images, size: int) -> int:
    """Bytes of the evaluation views that are kept in memory: of image files, where KEEP_BYTES is enough for all."""
    need = len(images) * 3 * size * size
    return 0 if isinstance(images, ArrayImages) or need > KEEP_BYTES else need


class EvaluationViews(ThreadedDataset):
    """The evaluation view of every image of a split, in uint8.

    Views of image files are kept after they were first decoded where `kept_bytes` says so: evaluations repeat.
    """

    def __init__(self, images: Images, size: int):
        super().__init__(images)
        self.size = size
        keep = kept_bytes(images, size) > 0
        self.kept = torch.empty(len(images), 3, size, size, dtype=torch.uint8) if keep else None
        self.known = np.zeros(len(images), bool)

    def shapes(self) -> list[tuple[int, torch.dtype]]:
        return [(self.size, torch.uint8)]

    def render_into(self, views: list[Tensor], epoch: int, index: NDArray) -> list[ViewParams]:
        (out,) = views
        if isinstance(self.images, ArrayImages):
            out.copy_(evaluation_view(self.images.pixels[torch.from_numpy(index)], self.size))
            return []
        for i, row in enumerate(index.tolist()):
            if self.kept is not None and self.known[row]:
                out[i] = self.kept[row]
                continue
            out[i] = evaluation_view(self.images.decode(row), self.size)
            if self.kept is not None:
                self.kept[row] = out[i]
                self.known[row] = True
        return []
