"""I-JEPA against its equation, written as loops, and what its two encoders may see."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from methods.ijepa import ijepa_loss
from tests.helpers.commands import build_method
from tests.helpers.networks import Flat
from tests.helpers.transformers import tiny_transformer
from utils.batch import Batch
from utils.errors import UserError

FLAGS = ("--large_size", "8", "--batch_size", "4", "--predictor_dim", "8", "--predictor_layers", "1",
         "--predictor_heads", "2")  # fmt: skip


def naive_ijepa(prediction, target, distinct):
    """One value of one patch at a time; smooth L1 is d^2 / 2 up to 1, then d - 1/2."""
    images, blocks = [], []
    for i in range(len(target)):
        for b in range(target.shape[1]):
            patches = []
            for k in range(target.shape[2]):
                if not distinct[i, b, k]:
                    continue
                values = [float(v) for v in target[i, b, k]]
                mean = sum(values) / len(values)
                std = (sum((v - mean) ** 2 for v in values) / len(values) + 1e-5) ** 0.5
                gaps = [abs(float(p) - (v - mean) / std) for p, v in zip(prediction[i, b, k], values, strict=True)]
                patches.append(sum(g * g / 2 if g < 1 else g - 0.5 for g in gaps) / len(gaps))
            blocks.append(sum(patches) / len(patches))
        images.append(sum(blocks[-target.shape[1] :]) / target.shape[1])
    return torch.tensor(sum(images) / len(images), dtype=torch.double)


def example(seed=0, n=3, b=2, k=4, d=5):
    """Predictions, targets, and blocks of 1 to 4 distinct patches."""
    generator = torch.Generator().manual_seed(seed)
    prediction, target = 2 * torch.randn(2, n, b, k, d, dtype=torch.double, generator=generator)
    size = torch.randint(1, k + 1, (n, b, 1), generator=generator)
    return prediction, target, torch.arange(k) < size


@pytest.mark.parametrize("seed", [0, 1])
def test_ijepa_loss_agrees_with_the_formula(seed):
    assert_close(ijepa_loss(*example(seed))["loss"], naive_ijepa(*example(seed)), rtol=0, atol=1e-12)


def test_ijepa_loss_of_known_predictions():
    _, target, distinct = example()
    h = torch.nn.functional.layer_norm(target, (5,))
    for offset, expected in ((0.0, 0.0), (0.5, 0.125), (3.0, 2.5)):
        assert ijepa_loss(h + offset, target, distinct)["loss"].item() == pytest.approx(expected, abs=1e-9)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_ijepa_loss_ignores_order_repetitions_and_the_scale_of_targets(seed):
    prediction, target, distinct = example(seed)
    value = ijepa_loss(prediction, target, distinct)["loss"]
    order = torch.randperm(3, generator=torch.Generator().manual_seed(seed))
    assert_close(ijepa_loss(prediction[order], target[order], distinct[order])["loss"], value)
    assert_close(ijepa_loss(prediction.flip(1, 2), target.flip(1, 2), distinct.flip(1, 2))["loss"], value)
    repeated = ~distinct[..., None] * torch.ones_like(prediction)
    assert_close(ijepa_loss(prediction + repeated, target - 3 * repeated, distinct)["loss"], value)
    assert_close(ijepa_loss(prediction, 3 * target + 1, distinct)["loss"], value, rtol=1e-3, atol=0)
    assert (ijepa_loss(prediction + 1, target, distinct)["loss"] - value).abs() > 1e-6


def test_ijepa_loss_of_equal_blocks_and_gradient_agree_with_lightly(lightly):
    """Its example takes torch's smooth L1 loss of all elements, of targets after a layer norm."""
    prediction, target, _ = (x.requires_grad_() if x.is_floating_point() else x for x in example())
    expected = torch.nn.SmoothL1Loss()(prediction, torch.nn.functional.layer_norm(target, (5,)).detach())
    (gradient,) = torch.autograd.grad(expected, prediction)
    loss = ijepa_loss(prediction, target, torch.ones(3, 2, 4, dtype=torch.bool))["loss"]
    assert_close(loss, expected, rtol=0, atol=1e-6)
    loss.backward()
    assert_close(prediction.grad, gradient, rtol=0, atol=1e-6)
    assert target.grad is None


def test_target_std_shows_collapse():
    prediction, target, distinct = example(n=200, d=16)
    assert ijepa_loss(prediction, target, distinct)["target_std"].item() == pytest.approx(1, rel=0.05)
    collapsed = target[:1, :1, :1].expand_as(target)
    assert ijepa_loss(prediction, collapsed, distinct)["target_std"] < 1e-6


def build(*words, **options):
    torch.manual_seed(0)
    return build_method("ijepa", tiny_transformer(**options), 12, *FLAGS, *words)


def batch(n=4, seed=0, dtype=torch.float32):
    view = torch.randn(n, 3, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return Batch(torch.arange(n), [view], torch.arange(n))


def test_method_predicts_the_targets_of_the_moving_average():
    """One image and one block at a time."""
    method, b = build(depth=2).double(), batch(dtype=torch.double)
    student, teacher = method.backbone, method.target.teacher
    for p in teacher.parameters():
        p.data += 0.1 * torch.randn_like(p)
    feats = method.forward_views(b)
    assert_close(feats.evaluated[0], teacher(b.views[0]))
    values = []
    for i, view in enumerate(b.views[0]):
        context, targets = feats.blocks.context[i], feats.blocks.targets[i]
        patches = student.patch_embed(view[None])[0] + student.pos_embed[0, 1:]
        known = student.norm(student.blocks(torch.cat([student.cls_token[0], patches[context]])[None]))
        h = teacher.forward_features(view[None])[0, 1:]
        blocks = [method.predictor(known, context[None], places[None, None])[0, 0] for places in targets]
        values.append(
            naive_ijepa(torch.stack(blocks)[None].detach(), h[targets][None], feats.blocks.distinct[i : i + 1])
        )
    out = method.training_loss(feats, b)
    assert_close(out["loss"].detach(), torch.stack(values).mean(), rtol=0, atol=1e-10)
    out["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in method.target.parameters())


def test_context_encoder_sees_the_context_alone_and_the_target_encoder_the_whole_image():
    method, b = build(), batch()
    feats = method.forward_views(b)
    for i in range(4):
        context = set(feats.blocks.context[i].tolist())
        for place in range(16):
            view = b.views[0].clone()
            row, column = 2 * (place // 4), 2 * (place % 4)
            view[i, :, row : row + 2, column : column + 2] += 1.0
            changed = method.forward_views(b._replace(views=[view]))
            assert torch.equal(changed.tokens, feats.tokens) == (place not in context)
            assert (changed.targets[i] != feats.targets[i]).any(dim=1).all(), "attention reaches every patch"


def test_blocks_change_with_the_epoch():
    method, b = build(), batch(50)
    first = method.forward_views(b).blocks.targets
    method.epoch_number.update(0.9, 0.1)
    assert torch.equal(method.forward_views(b).blocks.targets, first)
    method.epoch_number.update(1.0, 0.2)
    assert (method.forward_views(b).blocks.targets != first).any(dim=(1, 2)).float().mean() > 0.8


def test_teacher_is_evaluated_and_its_tau_rises_linearly():
    method = build("--tau", "0.9")
    assert method.eval_backbone() is method.target.teacher
    for progress, tau in ((0.0, 0.9), (0.5, 0.95), (1.0, 1.0)):
        method.target.after_optimizer_step(progress)
        assert method.target.tau.item() == pytest.approx(tau)


def test_teacher_has_no_drop_path():
    method, b = build(depth=3, drop_path_rate=0.5), batch()
    method.train()
    first, second = (method.forward_views(b) for _ in range(2))
    assert torch.equal(first.targets, second.targets)
    assert not torch.equal(first.tokens, second.tokens)


@pytest.mark.parametrize("options", [{}, {"global_pool": "avg"}, {"class_token": False, "global_pool": "avg"}])
def test_every_parameter_gets_a_gradient(options):
    method = build(**options)
    out = method.compute_losses(batch())
    (out["loss"] + out["probe_loss"]).backward()
    for name, p in method.named_parameters():
        assert (p.grad is not None) == (not name.startswith("target.") and name != "backbone.pos_embed"), name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--target_scale", "0.3", "0.2"), "target blocks of 0.3 to 0.2"),
        (("--target_blocks", "9"), "9 target blocks"),
        (("--predictor_heads", "3"), "--predictor_dim 8 .* --predictor_heads 3"),
    ],
)
def test_impossible_settings_are_an_error(words, message):
    with pytest.raises(UserError, match=message):
        build(*words)


def test_backbone_without_tokens_is_an_error():
    with pytest.raises(UserError, match="I-JEPA .* vision transformer"):
        build_method("ijepa", Flat(12), 6, *FLAGS)


@pytest.fixture(scope="module")
def lightly():
    """Its package, imported before a test begins: that changes the environment."""
    return pytest.importorskip("lightly.models.modules", reason="compares with lightly")
