"""MoCo v3 (Chen et al., 2021, arXiv:2104.02057)."""

from argparse import Namespace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Method
from utils.arg_types import positive_float, positive_int
from utils.batch import Batch
from utils.distributed import gather, rank
from utils.ema import EMA, add_tau_flags
from utils.errors import UserError
from utils.heads import add_predictor_flags, mlp, predictor
from utils.optim import FlagGroup
from utils.plan import Plan
from utils.precision import full_precision, l2_normalize
from utils.row_chunks import map_row_chunks
from utils.view_features import ViewFeatures, view_pairs


@full_precision
def mocov3_loss(q: list[Tensor], k: list[Tensor], temperature: float) -> dict[str, Tensor]:
    """Eq. 1 and alg. 1:  -2 T log  e(q_i . k_i) / sum_j e(q_i . k_j),  e(s) = exp(s / T), mean over images i, of
    (q1, k2) and of (q2, k1), summed.

    q: (n, D) unit predictions of all views of this rank's images, large ones first. k: (n, D) unit keys of the large
    views, without gradient. j runs over the N images of the global batch. key_acc: per cent of predictions that are
    more similar to their own key than to any other.
    Deviation: the paper has two views; with more, twice the mean over all pairs of a view and another, large one.
    """
    all_k = gather(torch.stack(k, dim=1).detach()).unbind(dim=1)  # (N, D) of each large view
    index = torch.arange(len(q[0]), device=q[0].device) + rank() * len(q[0])  # (n,) columns of this rank's images
    pairs = view_pairs(q, all_k)
    columns = len(pairs) * len(all_k[0])  # of the similarities of all pairs together
    terms = [map_row_chunks(partial(_contrast, keys, temperature), columns, x, index) for x, keys in pairs]
    loss, positive, found = (torch.stack([x.mean() for x in term]).mean() for term in zip(*terms, strict=True))
    return {"loss": 2 * 2 * temperature * loss, "positive_similarity": positive, "key_acc": 100 * found}


def _contrast(keys: Tensor, temperature: float, q: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy, similarity to the key keys[index], and whether it is found, of each of (m, D) rows: (m,) each."""
    similarity = q @ keys.T  # (m, N)
    positive = similarity.gather(1, index[:, None])[:, 0]
    found = (similarity.argmax(dim=1) == index).to(q.dtype)
    return F.cross_entropy(similarity / temperature, index, reduction="none"), positive, found


class MoCoV3(Method):
    """MoCo v3: find the embedding that a moving average of the network gives another view, in the whole batch.

    The defaults are those of a ResNet. As in the official code, the last norm of each residual block starts at zero
    (--zero_init_residual). A vision transformer gets the paper's deeper heads and a frozen patch embedding by itself;
    its other settings in the paper are --optimizer adamw --lr 1.5e-4 --weight_decay 0.1 --warmup_epochs 40
    --temperature 0.2 --tau 0.99 --crop_scale 0.08 1.
    Deviation: a vision transformer keeps the initial weights and the trained position embeddings of timm; those of the
    official code are Xavier's and fixed sines and cosines.
    """

    @staticmethod
    def add_args(parser: FlagGroup) -> None:
        short = MoCoV3.length_defaults(100)
        parser.set_defaults(optimizer="lars", lr=short["lr"], weight_decay=short["weight_decay"])
        parser.set_defaults(zero_init_residual=True)
        # Views: those of BYOL, with crops from 20 % of the image, as in the official code.
        parser.set_defaults(crop_scale=[0.2, 1.0], jitter=[0.8], jitter_strengths=[0.4, 0.4, 0.2, 0.1], gray=[0.2],
                            blur=[1.0, 0.1], solarize=[0.0, 0.2])  # fmt: skip
        parser.add_argument("--temperature", type=positive_float, default=1.0,
                            help="temperature of the softmax (official code); 0.2 for vision transformers")  # fmt: skip
        parser.add_argument(
            "--hidden_mlp", type=positive_int, default=4096, help="hidden width of the projector (sec. 5)"
        )
        parser.add_argument("--proj_dim", type=positive_int, default=256, help="width of the embedding (sec. 5)")
        add_predictor_flags(parser, hidden=4096, source="sec. 5")
        add_tau_flags(parser, short["tau"], "official code", note="; 0.996 for more than 300 epochs")
        parser.add_argument("--no_freeze_patch_embedding", dest="freeze_patch_embedding", action="store_false",
                            help="train the patch embedding of a vision transformer (sec. 4.2)")  # fmt: skip

    @staticmethod
    def length_defaults(epochs: int) -> dict[str, Any]:
        if epochs <= 300:  # official code, ResNet-50: 0.6 for 100 epochs and 0.3 for 300
            return {"tau": 0.99, "lr": 0.6 if epochs <= 100 else 0.3, "weight_decay": 1e-6}
        return {"tau": 0.996, "lr": 0.3, "weight_decay": 1.5e-6}

    def __init__(self, args: Namespace, plan: Plan, backbone: nn.Module, dim: int):
        super().__init__(args, plan, backbone, dim)
        transformer = hasattr(backbone, "patch_embed")
        if transformer and args.freeze_patch_embedding:
            backbone.patch_embed.requires_grad_(False)  # sec. 4.2: at its random start, for stable training
        elif not transformer and not args.freeze_patch_embedding:
            raise UserError(
                f"--no_freeze_patch_embedding needs a vision transformer, but {plan.backbone.name} has no patch "
                f"embedding; remove it"
            )
        widths = (dim, *[args.hidden_mlp] * (2 if transformer else 1), args.proj_dim)
        self.projector = mlp(*widths, last_norm=True, last_affine=False)
        self.predictor = predictor(args, last_norm=transformer, last_affine=False, last_bias=False)
        self.target = EMA(nn.Sequential(backbone, self.projector), args.tau, args.final_tau)

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        q = [l2_normalize(self.predictor(self.projector(f))) for f in feats.all]
        k = [l2_normalize(self.target(view)) for view in batch.views[: len(feats.large)]]
        return mocov3_loss(q, k, self.args.temperature) | {"tau": self.target.tau}
