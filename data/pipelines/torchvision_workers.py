"""--pipeline torchvision: worker processes and torchvision's own operations, image by image; the reference."""

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from data.images import Images
from data.pipelines.base import DataModule
from data.pipelines.loaders import BatchDataset, BatchKeys, ResumableLoader
from data.sampler import ViewParams, sample
from data.views import ViewSpec

COLOR = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)


def augment_image(image: Tensor, params: ViewParams, i: int, spec: ViewSpec) -> Tensor:
    """(3, H, W) uint8 -> (3, size, size) float32 in [0, 1]: row i of the parameters, applied by torchvision."""
    x: Tensor = TF.resized_crop(image, *params.box[i].tolist(), [spec.size, spec.size], antialias=True)
    x = TF.to_dtype(x, torch.float32, scale=True)
    if params.flip[i]:
        x = TF.horizontal_flip(x)
    if params.jitter[i]:
        for op in params.order[i]:
            x = COLOR[op](x, params.factors[i, op].item())
    if params.gray[i]:
        x = TF.rgb_to_grayscale(x, num_output_channels=3)
    if params.sigma[i] > 0:
        # One axis at a time: the same blur, and 23 times cheaper than torchvision's two-dimensional kernel at 224.
        for taps in ([spec.blur_taps, 1], [1, spec.blur_taps]):
            x = TF.gaussian_blur(x, taps, [params.sigma[i].item()] * 2)
    if params.solarize[i]:
        x = TF.solarize(x, 128 / 255)
    return x


class AugmentedViews(BatchDataset):
    """Augmented views in uint8, a quarter of the bytes of float32 to move between processes and to the device."""

    def __init__(self, images: Images, specs: list[ViewSpec], seed: int):
        super().__init__(images, seed)
        self.specs = specs

    def views(self, epoch: int, index: list[int]) -> list[Tensor]:
        images = [self.images.decode(i) for i in index]
        sizes = np.array([image.shape[1:] for image in images])
        out = []
        for number, spec in enumerate(self.specs):
            params = sample(spec, self.seed, epoch, np.array(index), number, sizes)
            views = torch.stack([augment_image(image, params, i, spec) for i, image in enumerate(images)])
            out.append(views.mul_(255).round_().byte())
        return out


class TorchvisionDataModule(DataModule):
    """Worker processes decode and augment; the device only normalizes. num_workers counts processes for training."""

    def train_loader(self, keys: BatchKeys, device: torch.device) -> ResumableLoader:
        images = AugmentedViews(self.data.train, self.specs, self.seed)
        return ResumableLoader(images, keys, self.num_workers, pin_memory=device.type == "cuda")
