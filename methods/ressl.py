"""ReSSL (Zheng et al., 2021, arXiv:2107.09282)."""

from argparse import Namespace

import torch
from torch import Tensor, nn

from methods.base import Method
from utils.arg_types import positive_float, positive_int, probability
from utils.batch import Batch
from utils.ema import EMA
from utils.heads import add_projector_flags, projector
from utils.nearest_neighbours import build_queue
from utils.optim import FlagGroup
from utils.plan import Plan
from utils.precision import full_precision, l2_normalize
from utils.row_chunks import map_row_chunks
from utils.view_features import ViewFeatures


@full_precision
def ressl_loss(
    strong: list[Tensor], weak: Tensor, rows: Tensor, temperature: float, teacher_temperature: float
) -> dict[str, Tensor]:
    """Sec. 3.2:  -sum_k p_k(z_weak, T_t) log p_k(z_strong, T_s),  p_k(z, T) = exp(z . q_k / T) / sum_l exp(z . q_l / T)

    strong: (n, D) unit embeddings of the strong views of this rank's images by the student. weak: (n, D) those of the
    weak view by the teacher. rows: (K, D) unit rows q of the queue, with no row of these images among them. Mean over
    images and strong views. temperature, teacher_temperature: T_s, T_t. target_entropy: of p(z_weak), which the loss
    cannot go below.
    """
    targets = [weak.detach()] * len(strong)

    def terms(strong: Tensor, weak: Tensor) -> tuple[Tensor, Tensor]:
        target = (weak @ rows.T / teacher_temperature).log_softmax(dim=1)  # (m, K)
        prediction = (strong @ rows.T / temperature).log_softmax(dim=1)
        p = target.exp()
        return -(p * prediction).sum(dim=1), -(p * target).sum(dim=1)

    loss, entropy = map_row_chunks(terms, 2 * len(rows), torch.cat(strong), torch.cat(targets))
    return {"loss": loss.mean(), "target_entropy": entropy.mean()}


class ReSSL(Method):
    """ReSSL: give a strong view the similarities to earlier images that a moving average gives a weak view.

    The first large view is the strong one, which the network sees; the second is the weak one of the moving average.
    Deviation: the batch norms of the moving average see the images of all processes; the paper shuffles them instead.
    Deviation: the paper's several strong views have five sizes; small views, each one more strong view, have one size.
    """

    @staticmethod
    def add_args(parser: FlagGroup) -> None:
        parser.set_defaults(optimizer="sgd", lr=0.05, weight_decay=1e-4)  # official code
        # Views, strong, weak and small: official code. Strong ones as in MoCo v2, the weak one cropped and flipped.
        parser.set_defaults(crop_scale=[0.2, 1.0], jitter=[0.8, 0.0, 0.8], jitter_strengths=[0.4, 0.4, 0.4, 0.1],
                            gray=[0.2, 0.0, 0.2], blur=[0.5, 0.0, 0.5], solarize=[0.0])  # fmt: skip
        add_projector_flags(parser, hidden=4096, dim=512, layers=2, source="official code")
        parser.add_argument("--temperature", type=positive_float, default=0.1,
                            help="temperature of the network's softmax (sec. 4.1)")  # fmt: skip
        parser.add_argument("--teacher_temperature", type=positive_float, default=0.04,
                            help="temperature of the target's softmax, below --temperature, so that targets are "
                            "sharper (sec. 4.1)")  # fmt: skip
        parser.add_argument(
            "--tau", type=probability, default=0.999, help="decay of the moving average, constant (sec. 4.1)"
        )
        parser.add_argument(
            "--queue_size", type=positive_int, default=131072, help="embeddings in the queue (official code)"
        )

    def __init__(self, args: Namespace, plan: Plan, backbone: nn.Module, dim: int):
        super().__init__(args, plan, backbone, dim)
        self.projector = projector(args, dim, last_norm=False, norm=False)
        self.target = EMA(nn.Sequential(backbone, self.projector), args.tau, final_tau=args.tau)
        self.queue = build_queue(args, plan, args.proj_dim)

    def forward_views(self, batch: Batch) -> ViewFeatures:
        """Features of the strong views; the network does not see the weak one."""
        strong, _, *small = batch.views
        return ViewFeatures([self.backbone(strong)], [self.backbone(view) for view in small])

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        strong = [l2_normalize(self.projector(f)) for f in feats.all]
        weak = l2_normalize(self.target(batch.views[1]))
        out = ressl_loss(strong, weak, self.queue.rows, self.args.temperature, self.args.teacher_temperature)
        self.queue.push(weak, batch.labels)  # after the loss: no image is compared with itself
        return out | self.queue.metrics()
