"""The Sinkhorn-Knopp algorithm: assignments of a batch to prototypes that use all prototypes alike."""

import torch
from torch import Tensor

from utils.distributed import gather
from utils.precision import at_least_float32, full_precision


@full_precision
@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Eq. 5 of SwAV (arXiv:2006.09882):  Q* = Diag(u) exp(scores / epsilon) Diag(v).

    scores: (n, K) similarities of this rank's rows to K prototypes; ranks may have unequally many rows. epsilon: of the
    entropy term; the smaller, the nearer Q to one-hot. Each iteration gives every prototype the same mass over the rows
    of all ranks, then every row the mass 1. Returns Q (n, K), which sums to 1 over K exactly, and over the N rows of
    all ranks to N / K nearly. It carries no gradient.

    It iterates on log Q, so that no score overflows and no row or prototype is divided by an underflown sum of 0.
    """
    log_q = at_least_float32(scores) / epsilon
    for _ in range(iterations):
        mass = gather(log_q.logsumexp(dim=0)[None]).logsumexp(dim=0)  # (K,) over the rows of all ranks
        log_q = (log_q - mass).log_softmax(dim=1)
    return log_q.exp()
