"""KoLeo: entropy of features by distances of nearest neighbours (Sablayrolles et al., 2019, arXiv:1806.03198)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.distributed import gather, rank
from utils.precision import full_precision, l2_normalize

EPS = 1e-8  # added to each coordinate of a difference and to the distance, as in the official code of DINOv2


@full_precision
def koleo_loss(features: Tensor) -> Tensor:
    """DINOv2 sec. 4:  -mean over i of log(min over j != i of |x_i - x_j|),  x: features scaled to unit length.

    features: (n, D) of one view of this rank's images; j runs over the N images of the batch on all ranks. The gradient
    passes through both ends of the distance, and not through the choice of the neighbour.
    Deviation: the official code looks for neighbours among the images of one GPU only.
    """
    x = l2_normalize(features)
    everyone = gather(x)  # (N, D)
    own = torch.arange(len(x), device=x.device) + rank() * len(x)  # (n,) columns of this rank's images
    cosines = (x.detach() @ everyone.detach().T).scatter(1, own[:, None], -2.0)  # (n, N); no image is its own neighbour
    distance = F.pairwise_distance(x, everyone[cosines.argmax(dim=1)], eps=EPS)
    return -(distance + EPS).log().mean()
