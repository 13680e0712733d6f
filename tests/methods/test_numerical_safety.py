"""No NaN or overflow in any method: half precision, identical views, zero vectors, huge values, a batch of two."""

import itertools

import pytest
import torch

from methods.barlow_twins import barlow_twins_loss
from methods.byol import byol_loss
from methods.ijepa import ijepa_loss
from methods.lejepa import lejepa_loss
from methods.mae import mae_loss
from methods.mocov2 import mocov2_loss
from methods.mocov3 import mocov3_loss
from methods.nnclr import nnclr_loss
from methods.rotnet import rotation_loss
from methods.simclr import nt_xent, supcon
from methods.simsiam import simsiam_loss
from methods.vicreg import vicreg_loss
from tests.helpers.commands import build_method
from tests.helpers.method_cases import SMALL_VIEWS, backbone_of, every_case
from tests.helpers.networks import Flat
from utils.batch import Batch
from utils.nt_xent import decoupled_nt_xent
from utils.precision import l2_normalize


def nnclr_of(a, b):
    """NNCLR's loss where the first view's embeddings are the neighbours of both."""
    index = [torch.arange(len(a))] * 2
    return nnclr_loss(l2_normalize(a).detach(), index, [l2_normalize(a), l2_normalize(b)], 0.05)


def mocov2_of(a, b):
    """MoCo v2's loss of queries and keys, which are the rows of the queue too."""
    return mocov2_loss([(l2_normalize(a), l2_normalize(b), l2_normalize(b).detach())], 0.05)["loss"]


LOSSES = {
    "barlow_twins": lambda a, b: barlow_twins_loss(a, b, 5e-3)["loss"],
    "byol": lambda a, b: byol_loss([a, b], [b, a])["loss"],
    "mocov2": mocov2_of,
    "mocov3": lambda a, b: mocov3_loss([l2_normalize(a), l2_normalize(b)], [l2_normalize(b)] * 2, 0.05)["loss"],
    "dclw": lambda a, b: decoupled_nt_xent([a, b], 0.05, 0.5)["loss"],
    "lejepa": lambda a, b: lejepa_loss([a, b], 2, torch.eye(6)[:, :4], 0.05)["loss"],
    "ijepa": lambda a, b: ijepa_loss(a[:, None, None], b[:, None, None], torch.ones(len(a), 1, 1))["loss"],
    "mae": lambda a, b: mae_loss(a[:, None], b[:, None], norm_pixels=True),
    "nnclr": nnclr_of,
    "rotnet": lambda a, b: rotation_loss(torch.cat([a, b, b, a])[:, :4])["loss"],
    "simclr": lambda a, b: nt_xent([a, b], 0.05)["loss"],
    "simsiam": lambda a, b: simsiam_loss([a, b], [b, a])["loss"],
    "supcon": lambda a, b: supcon([a, b], torch.arange(len(a)) % 2, 0.05)["loss"],
    "vicreg": lambda a, b: vicreg_loss([a, b], 2, 25.0, 25.0, 1.0)["loss"],
}
INPUTS = {
    "identical": lambda n: (torch.ones(n, 6), torch.ones(n, 6)),
    "equal views": lambda n: (torch.randn(n, 6),) * 2,
    "zero": lambda n: (torch.zeros(n, 6), torch.zeros(n, 6)),
    "huge": lambda n: (6e4 * torch.eye(6)[:n], -6e4 * torch.eye(6)[:n]),
    "tiny": lambda n: (1e-7 * torch.randn(n, 6), 1e-7 * torch.randn(n, 6)),
    "far": lambda n: (6e4 + torch.randn(n, 6), -6e4 + torch.randn(n, 6)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "values"), itertools.product(LOSSES, INPUTS))
def test_losses_and_gradients_stay_finite(name, values, dtype):
    torch.manual_seed(0)
    for n in (2, 5):
        views = [v.to(dtype).requires_grad_() for v in INPUTS[values](n)]
        with torch.autocast("cpu", dtype=torch.bfloat16 if dtype == torch.float32 else dtype):
            loss = LOSSES[name](*views)
        assert loss.dtype == torch.float32, "a cosine in half precision is wrong in its second digit"
        assert torch.isfinite(loss)
        loss.backward()
        assert all(v.grad is None or not v.grad.isnan().any() for v in views)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("values", ["noise", "equal views", "identical", "zero", "bright"])
@pytest.mark.parametrize("case", [case for case in every_case() if SMALL_VIEWS not in case])
def test_training_step_of_two_images_stays_finite(case, values, dtype):
    """Backbone, heads, loss and probe under autocast; every gradient finite."""
    torch.manual_seed(0)
    name, *words = case.split()
    backbone = backbone_of(name, lambda: Flat(12, 8), size=2, patch=1, dim=8)
    method = build_method(name, backbone, 8, "--batch_size", "2", *words)
    view = {
        "noise": lambda: torch.randn(2, 3, 2, 2),
        "equal views": lambda: torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0)),
        "identical": lambda: torch.ones(2, 3, 2, 2),
        "zero": lambda: torch.zeros(2, 3, 2, 2),
        "bright": lambda: 1e3 * torch.randn(2, 3, 2, 2),
    }[values]
    batch = Batch(torch.arange(2), [view() for _ in range(method.large_views)], torch.arange(2))
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        out = method.compute_losses(batch)
    assert all(torch.isfinite(v) for v in out.values()), out
    (out["loss"] + out["probe_loss"]).backward()
    for key, p in method.named_parameters():
        assert p.grad is None or torch.isfinite(p.grad).all(), key
