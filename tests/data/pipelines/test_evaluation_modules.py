"""The data modules of an evaluation."""

import torch

from data.pipelines.evaluation_modules import CROP_SCALE, evaluation_modules
from tests.helpers.images import read

CPU = torch.device("cpu")


def test_evaluation_modules_give_two_views_and_one_cropped_view():
    pairs, crops = evaluation_modules("digits", read(), 16, "auto", 8, 0, 0, None, "cpu")
    assert len(next(iter(pairs.augmented_loader(range(8), CPU))).views) == 2
    (spec,) = crops.specs
    assert (spec.size, spec.scale, spec.flip) == (16, CROP_SCALE, 0.0), "mirrored digits are other digits"
    assert (spec.jitter, spec.gray, spec.blur, spec.solarize) == (0, 0, 0, 0)


def test_evaluation_modules_share_their_evaluation_views():
    pairs, crops = evaluation_modules("digits", read(), 16, "auto", 8, 0, 0, None, "cpu")
    a, b = (next(iter(module.eval_dataloader("val", CPU))) for module in (pairs, crops))
    assert torch.equal(a.views[0], b.views[0])
