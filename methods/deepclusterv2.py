"""DeepCluster v2 (Caron et al., 2020, arXiv:2006.09882)."""

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Method
from utils.arg_types import number, positive_float, positive_int
from utils.batch import Batch
from utils.distributed import rank, world_size
from utils.errors import UserError
from utils.heads import add_projector_flags, projector
from utils.kmeans import assign, kmeans, spherical_lloyd
from utils.memory_bank import MemoryBank
from utils.optim import FlagGroup
from utils.plan import Plan
from utils.precision import full_precision, l2_normalize
from utils.view_features import ViewFeatures


@full_precision
def deepclusterv2_loss(
    z: list[Tensor], centroids: list[Tensor], assignments: Tensor, temperature: float
) -> dict[str, Tensor]:
    """-log exp(z . c_a / T) / sum_k exp(z . c_k / T),  mean over images, over all views and over the clusterings.

    z: unit embeddings (n, D) of all views of this rank's images. centroids: (K, D) unit centroids c of each of H
    clusterings. assignments: (H, n) the cluster a of each image. cluster_acc: per cent of first views that are nearest
    to the centroid of their image, in the first clustering.
    """
    logits = [[x @ c.T / temperature for x in z] for c in centroids]  # (n, K) each
    losses = [F.cross_entropy(x, ids) for views, ids in zip(logits, assignments, strict=True) for x in views]
    accuracy = 100 * (logits[0][0].argmax(dim=1) == assignments[0]).float().mean()
    return {"loss": torch.stack(losses).mean(), "cluster_acc": accuracy}


class DeepClusterV2(Method):
    """DeepCluster v2: predict the cluster of the image, from a k-means of the last epoch's embeddings.

    Before the first epoch, all images pass through the network once without training, as in the official code.
    Deviation: an image that an epoch leaves out keeps its embedding and is clustered; the official code ignores it. A
    centroid without images is put on the farthest one; in the official code it stays where it is.
    """

    centroids: Tensor
    assignments: Tensor
    clusterings: Tensor

    @staticmethod
    def add_args(parser: FlagGroup) -> None:
        # Official code (facebookresearch/swav) for 4096 images: 4.8 and 0.0048, which is 0.3 and 0.0003 per 256.
        parser.set_defaults(optimizer="lars", lr=0.3, final_lr=0.0003, weight_decay=1e-6)
        # Views: official code, those of SimCLR.
        parser.set_defaults(crop_scale=[0.08, 1.0], jitter=[0.8], jitter_strengths=[0.8, 0.8, 0.8, 0.2], gray=[0.2],
                            blur=[0.5], solarize=[0.0])  # fmt: skip
        parser.add_argument("--temperature", type=positive_float, default=0.1,
                            help="temperature of the softmax (official code)")  # fmt: skip
        parser.add_argument("--num_centroids", type=number(int, 2), nargs="+", default=[3000, 3000, 3000],
                            metavar="K", help="number of clusters of each clustering (official code)")  # fmt: skip
        parser.add_argument("--kmeans_iterations", type=positive_int, default=10,
                            help="iterations of k-means before each epoch (official code)")  # fmt: skip
        add_projector_flags(parser, hidden=2048, dim=128, layers=2, source="official code")

    def __init__(self, args: Namespace, plan: Plan, backbone: nn.Module, dim: int):
        super().__init__(args, plan, backbone, dim)
        images, sizes = plan.training_set.images, args.num_centroids
        if max(sizes) > images:
            raise UserError(f"--num_centroids {max(sizes)} are more than the {images} training images; lower it")
        self.num_choices = max(sizes)
        self.projector = projector(args, dim, last_norm=False)
        self.bank = MemoryBank(images, self.large_views, args.proj_dim)
        # Replaced before the first epoch. Buffers, as the centroids are not trained: a run resumes with them.
        start = torch.randn(sum(sizes), args.proj_dim, generator=torch.Generator().manual_seed(plan.seed))
        self.register_buffer("centroids", F.normalize(start, dim=1))
        self.register_buffer("assignments", torch.stack([torch.arange(images) % k for k in sizes]))
        self.register_buffer("clusterings", torch.zeros((), dtype=torch.long))  # how often k-means ran

    def on_train_epoch_start(self) -> None:
        """Cluster the embeddings of the epoch before; not called where a run resumes within an epoch."""
        if not self.clusterings:
            self._fill_bank()
        seed = self.plan.seed * 2**32 + int(self.clusterings) * 2**8
        for i, centroids in enumerate(self.centroids.split(self.args.num_centroids)):
            rows = self.bank.rows[i % self.large_views]
            found = kmeans(rows, len(centroids), self.args.kmeans_iterations, (seed + i) % 2**63, self.device,
                           "subset", iterate=spherical_lloyd).centroids  # fmt: skip
            centroids.copy_(found)
            self.assignments[i].copy_(assign(rows, found, self.device)[0])
        self.clusterings += 1

    @torch.no_grad()
    def _fill_bank(self) -> None:
        """Embed every image once, with batch norm over whole batches of random images: the last one is filled up."""
        images, batch = self.plan.training_set.images, self.plan.batch.batch_size * world_size()
        order = torch.randperm(images, generator=torch.Generator().manual_seed(self.plan.seed))
        order = order[torch.arange(-(-images // batch) * batch) % images]
        rows = order.view(-1, world_size(), self.plan.batch.batch_size)[:, rank()].flatten()
        trainer: Any = self.trainer
        with trainer.precision_plugin.forward_context():
            for part in trainer.datamodule.augmented_loader(rows.tolist(), self.device):
                large = [l2_normalize(self.projector(self(view))) for view in part.views[: self.large_views]]
                self.bank.push(part.index, large)
                self.bank.after_optimizer_step()

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        z = [l2_normalize(self.projector(f)) for f in feats.all]
        self.bank.push(batch.index, z[: len(feats.large)])
        centroids = self.centroids.split(self.args.num_centroids)
        return deepclusterv2_loss(z, list(centroids), self.assignments[:, batch.index], self.args.temperature)
