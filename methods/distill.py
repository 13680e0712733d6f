"""SEED (Fang et al., 2021, arXiv:2101.04731): distillation of a network that was pretrained without labels."""

from argparse import Namespace

import torch
from torch import Tensor, nn

from methods.base import Method
from utils.arg_types import positive_float, positive_int
from utils.batch import Batch
from utils.frozen import FrozenNetwork
from utils.heads import mlp
from utils.nearest_neighbours import build_queue
from utils.optim import FlagGroup
from utils.plan import Plan
from utils.precision import full_precision, l2_normalize
from utils.queue import FeatureQueue
from utils.row_chunks import map_row_chunks
from utils.view_features import ViewFeatures


@full_precision
def seed_loss(
    student: Tensor, teacher: Tensor, rows: Tensor, temperature: float, teacher_temperature: float
) -> dict[str, Tensor]:
    """Sec. 3.2:  -sum_k p_k(t, T_t) log p_k(s, T_s),  p_k(z, T) = exp(z . q_k / T) / sum_l exp(z . q_l / T)

    student, teacher: (n, D) unit embeddings s, t of one view of this rank's images. rows: (K, D) unit rows q_1 ... q_K
    of the queue; q_0 is t itself. Mean over images. temperature, teacher_temperature: T_s, T_t. target_entropy: of
    p(t), which the loss cannot go below.
    """

    def log_p(z: Tensor, t: Tensor, temperature: float) -> Tensor:
        similarities = torch.cat([(z * t).sum(dim=1, keepdim=True), z @ rows.T], dim=1)  # (m, 1 + K)
        return (similarities / temperature).log_softmax(dim=1)

    def terms(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        target = log_p(t, t, teacher_temperature)
        p = target.exp()
        return -(p * log_p(s, t, temperature)).sum(dim=1), -(p * target).sum(dim=1)

    loss, entropy = map_row_chunks(terms, 2 * (1 + len(rows)), student, teacher.detach())
    return {"loss": loss.mean(), "target_entropy": entropy.mean()}


@full_precision
def regression_loss(student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """|s - t|^2, mean over images; student, teacher: (n, D) unit embeddings s, t of one view of this rank's images.

    Unit vectors and not standardized coordinates: the error then needs no statistic of a batch, and an image counts as
    much as another whatever the length of its features.
    """
    return {"loss": (student - teacher.detach()).square().sum(dim=1).mean()}


class Distill(Method):
    """Distillation (SEED): give an image the similarities to earlier images that a frozen, larger network gives it.

    Deviation: the temperature of the targets is 0.01; at 1e-4 of the official code a target is one-hot on the image.
    Deviation: an embedding of the teacher is its normalized features; the paper's is the output of its projector.
    Deviation: the losses of large and small views are averaged; the paper adds them.
    """

    large_views = 1
    flag_rules = ((("queue_size", "temperature", "teacher_temperature"), "similarities to a queue, which a regression "
                   "does not compute", lambda a: not a.regress),)  # fmt: skip
    queue: FeatureQueue
    small_queue: FeatureQueue

    @staticmethod
    def add_args(parser: FlagGroup) -> None:
        parser.set_defaults(optimizer="sgd", lr=0.03, weight_decay=1e-4)  # official code
        # Views: official code, those of MoCo v2.
        parser.set_defaults(crop_scale=[0.2, 1.0], jitter=[0.8], jitter_strengths=[0.4, 0.4, 0.4, 0.1], gray=[0.2],
                            blur=[0.5], solarize=[0.0])  # fmt: skip
        parser.add_argument("--teacher", required=True, metavar="BACKBONE",
                            help="frozen network to learn from: a torchvision ResNet or any timm model")  # fmt: skip
        parser.add_argument("--teacher_weights", required=True, metavar="WEIGHTS",
                            help="its weights: a run folder, a checkpoint or a .safetensors file")  # fmt: skip
        parser.add_argument("--temperature", type=positive_float, default=0.2,
                            help="temperature of the network's softmax (official code)")  # fmt: skip
        parser.add_argument("--teacher_temperature", type=positive_float, default=0.01,
                            help="temperature of the target's softmax")  # fmt: skip
        parser.add_argument(
            "--queue_size", type=positive_int, default=65536, help="embeddings in a queue (official code)"
        )
        parser.add_argument("--regress", action="store_true",
                            help="predict the teacher's normalized features instead of its similarities")  # fmt: skip

    def __init__(self, args: Namespace, plan: Plan, backbone: nn.Module, dim: int, teacher: FrozenNetwork):
        super().__init__(args, plan, backbone, dim)
        self.projector = mlp(dim, dim, teacher.dim, last_norm=False, norm=False)  # official code
        self.teacher = teacher
        if args.regress:
            return
        self.queue = build_queue(args, plan, teacher.dim)
        if plan.views.small_views:
            self.small_queue = build_queue(args, plan, teacher.dim, number=1)
        self.num_choices = 1 + args.queue_size

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        student = [l2_normalize(self.projector(f)) for f in feats.all]
        teacher = [l2_normalize(self.teacher(view)) for view in batch.views]
        pairs = list(zip(student, teacher, strict=True))
        if self.args.regress:
            outs = [regression_loss(s, t) for s, t in pairs]
        else:
            queues = [self.queue, *(self.small_queue for _ in feats.small)]
            temperatures = self.args.temperature, self.args.teacher_temperature
            outs = [seed_loss(s, t, queue.rows, *temperatures) for (s, t), queue in zip(pairs, queues, strict=True)]
            for t, queue in list(zip(teacher, queues, strict=True))[:2]:  # of the small views, the first
                queue.push(t, batch.labels)  # after the losses: no image is compared with itself
        cosines = torch.cat([(s * t).sum(dim=1) for s, t in pairs])
        mean = {name: torch.stack([out[name] for out in outs]).mean() for name in outs[0]}
        metrics = {} if self.args.regress else self.queue.metrics()
        return mean | {"teacher_similarity": cosines.mean()} | metrics
