"""SimCLR (Chen et al., 2020, arXiv:2002.05709)."""

from argparse import ArgumentParser, Namespace

import torch
from einops import rearrange
from torch import Tensor, nn

from methods.base import Features, Method
from utils.args import positive_float, positive_int
from utils.batch import Batch
from utils.distributed import gather, rank
from utils.heads import mlp
from utils.precision import full_precision, normalize


@full_precision
def nt_xent(views: list[Tensor], temperature: float) -> dict[str, Tensor]:
    """Eq. 1:  -log  e(z_i . z_j) / sum_{k != i} e(z_i . z_k),  e(s) = exp(s / T), mean over positive pairs (i, j).

    views: V tensors (n, D), embeddings of V views of this rank's n images. i, k run over all views of all N images of
    the global batch, and j over the other views of the image of i: with two views the loss of the paper.
    Deviation: the paper has two views; the mean over several positives stands outside the logarithm.
    """
    v, n = len(views), len(views[0])
    z = torch.stack([normalize(x) for x in views], dim=1)  # (n, V, D)
    everyone = rearrange(gather(z), "N V D -> (N V) D")
    own = torch.arange(n * v, device=z.device)
    logits = rearrange(z, "n V D -> (n V) D") @ everyone.T / temperature  # (nV, NV)
    mine = logits[:, rank() * n * v :][:, : n * v]  # (nV, nV) against this rank's images
    same_image = own[:, None] // v == own // v
    itself = torch.eye(n * v, dtype=torch.bool, device=z.device)
    positive = mine[same_image & ~itself].view(n * v, v - 1)  # (nV, V - 1)
    logits = logits.index_put((own, own + rank() * n * v), logits.new_tensor(-torch.inf))
    loss = logits.logsumexp(dim=1) - positive.mean(dim=1)  # (nV,)
    return {"loss": loss.mean(), "positive_similarity": positive.mean() * temperature}  # fmt: skip


class SimCLR(Method):
    """Views of one image attract, all others repel."""

    @staticmethod
    def add_args(parser: ArgumentParser) -> None:
        parser.set_defaults(optimizer="lars", lr=0.3, weight_decay=1e-6)  # sec. 2.2 and app. B.6
        parser.add_argument("--temperature", type=positive_float, default=0.1, help="of the softmax (sec. 5.1)")
        parser.add_argument("--hidden_mlp", type=positive_int, default=2048, help="hidden width of the projector")
        parser.add_argument("--proj_dim", type=positive_int, default=128, help="width of the embedding (sec. 4.2)")

    def __init__(self, args: Namespace, backbone: nn.Module, dim: int):
        super().__init__(args, backbone, dim)
        self.projector = mlp(dim, args.hidden_mlp, args.proj_dim, last_norm=True)

    def training_loss(self, feats: Features, batch: Batch) -> dict[str, Tensor]:
        return nt_xent([self.projector(f) for f in feats.all], self.args.temperature)
