"""ClusterFit (Yan et al., 2020, arXiv:1912.03330), step 2: training on cluster ids."""

from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Method
from utils.batch import Batch
from utils.cluster_file import check_same_images, read_clusters
from utils.optim import FlagGroup
from utils.plan import Plan
from utils.precision import at_least_float32, full_precision
from utils.view_features import ViewFeatures


@full_precision
def cluster_loss(logits: list[Tensor], ids: Tensor) -> dict[str, Tensor]:
    """Sec. 3, step 2:  -log p(cluster of the image | view), mean over the batch.

    logits: (n, K), one tensor per view. ids: (n,) clusters of the images. cluster_acc: accuracy on the first view, in
    per cent.
    Deviation: the paper has one view; with more, the mean over them.
    """
    losses = [F.cross_entropy(at_least_float32(view), ids) for view in logits]
    return {"loss": torch.stack(losses).mean(), "cluster_acc": 100 * (logits[0].argmax(dim=1) == ids).float().mean()}


class ClusterFit(Method):
    """ClusterFit: train from scratch to predict the cluster of each image in the features of another network."""

    large_views = 1
    ids: Tensor

    @staticmethod
    def add_args(parser: FlagGroup) -> None:
        # Sec. 4 and app. A: 105 epochs, SGD, a tenth of the rate after epochs 30, 60, 90 and 100; crop, flip, jitter.
        # The strengths of the jitter, applied to every view, are those of VISSL, the authors' library.
        parser.set_defaults(
            optimizer="sgd", lr=0.1, weight_decay=1e-4, scheduler="step", lr_decay_steps=[30, 60, 90, 100], epochs=105,
            crop_scale=[0.08, 1.0], jitter=[1.0], jitter_strengths=[0.4, 0.4, 0.4, 0.2], gray=[0.0], blur=[0.0],
            solarize=[0.0],
        )  # fmt: skip
        parser.add_argument("--cluster_file", required=True, metavar="FILE",
                            help="cluster ids of the training images (.npz); see docs/clusterfit.md")  # fmt: skip
        parser.add_argument("--shuffle_clusters", action="store_true", help="control: randomly permute the cluster ids")

    def __init__(self, args: Namespace, plan: Plan, backbone: nn.Module, dim: int):
        super().__init__(args, plan, backbone, dim)
        clusters, images = read_clusters(Path(args.cluster_file)), plan.training_set
        check_same_images(args.cluster_file, clusters.about, images.name, images.images, images.fingerprint)
        ids = torch.from_numpy(clusters.ids).int()
        if args.shuffle_clusters:
            ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(plan.seed))]
        self.register_buffer("ids", ids)  # in the checkpoint: a resumed run continues with the ids that it began with
        self.num_choices = len(clusters.centroids)
        self.head = nn.Linear(dim, self.num_choices)

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        return cluster_loss([self.head(f) for f in feats.all], self.ids[batch.index].long())
