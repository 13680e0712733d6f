"""RotNet (Gidaris et al., 2018, arXiv:1803.07728)."""

from argparse import Namespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Method
from utils.batch import Batch
from utils.optim import FlagGroup
from utils.plan import Plan
from utils.precision import at_least_float32, full_precision
from utils.view_features import ViewFeatures

ROTATIONS = 4  # 0, 90, 180 and 270 degrees: quarter turns leave no resampling artefacts (sec. 2.2)


def rotate(view: Tensor) -> Tensor:
    """Stack all four rotations of a square view: (N, 3, S, S) -> (4 N, 3, S, S), first 0, then 90, 180, 270 degrees."""
    return torch.cat([torch.rot90(view, turns, dims=(2, 3)) for turns in range(ROTATIONS)])


@full_precision
def rotation_loss(logits: Tensor) -> dict[str, Tensor]:
    """Eq. 2 and 3:  -1/4 sum_y log F^y(g(X|y)), mean over the batch.

    logits: (4 n, 4) of this rank's images in the order of `rotate`. rotation_acc: accuracy in per cent.
    """
    logits = at_least_float32(logits)
    turns = torch.arange(ROTATIONS, device=logits.device).repeat_interleave(len(logits) // ROTATIONS)  # (4 n,)
    accuracy = 100 * (logits.argmax(dim=1) == turns).float().mean()
    return {"loss": F.cross_entropy(logits, turns), "rotation_acc": accuracy}


class RotNet(Method):
    """RotNet: predict by how many quarter turns an image was rotated."""

    large_views = 1
    num_choices = ROTATIONS
    supports_small_views = False
    no_small_views_reason = "RotNet classifies the rotation of whole images and compares no views"

    @staticmethod
    def add_args(parser: FlagGroup) -> None:
        # The schedule of the RotNet in ClusterFit (arXiv:1912.03330); views are cropped and flipped only.
        parser.set_defaults(
            optimizer="sgd", lr=0.1, weight_decay=1e-4, scheduler="step", lr_decay_steps=[30, 60, 90, 100], epochs=105,
            crop_scale=[0.08, 1.0], jitter=[0.0], gray=[0.0], blur=[0.0], solarize=[0.0],
        )  # fmt: skip

    def __init__(self, args: Namespace, plan: Plan, backbone: nn.Module, dim: int):
        super().__init__(args, plan, backbone, dim)
        self.head = nn.Linear(dim, ROTATIONS)

    def transform_batch(self, batch: Batch) -> Batch:
        """All four rotations of each image in one batch (sec. 3.1); the upright images, for the probe, come first."""
        return batch._replace(views=[rotate(view) for view in batch.views])

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        return rotation_loss(self.head(feats.large[0]))
