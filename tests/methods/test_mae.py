"""MAE against its equation, written as loops, and what its encoder may see."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from methods.mae import MAE, mae_loss
from tests.helpers.commands import build_method
from tests.helpers.networks import Flat, random_views
from tests.helpers.transformers import tiny_transformer
from utils.batch import Batch
from utils.errors import UserError
from utils.vision_transformer import sincos_position_embedding

FLAGS = (
    "--large_size",
    "8",
    "--batch_size",
    "4",
    "--decoder_dim",
    "8",
    "--decoder_layers",
    "1",
    "--decoder_heads",
    "2",
)


def naive_mae(prediction, patches, norm_pixels):
    """One value of one patch at a time."""
    total = 0.0
    n, m, p = patches.shape
    for i in range(n):
        for j in range(m):
            values = [float(v) for v in patches[i, j]]
            mean = sum(values) / p
            variance = sum((v - mean) ** 2 for v in values) / (p - 1)
            for k, v in enumerate(values):
                target = (v - mean) / (variance + 1e-6) ** 0.5 if norm_pixels else v
                total += (float(prediction[i, j, k]) - target) ** 2
    return torch.tensor(total / (n * m * p), dtype=torch.double)


def pair(seed=0, n=3, m=4, p=6):
    prediction, patches = random_views(2, n * m, p, seed)
    return prediction.view(n, m, p), patches.view(n, m, p)


@pytest.mark.parametrize("norm_pixels", [True, False])
def test_mae_loss_agrees_with_the_formula(norm_pixels):
    assert_close(mae_loss(*pair(), norm_pixels), naive_mae(*pair(), norm_pixels), rtol=0, atol=1e-12)


def test_mae_loss_of_known_predictions():
    _, patches = pair()
    assert mae_loss(patches, patches, norm_pixels=False) == 0
    assert_close(mae_loss(patches + 2, patches, norm_pixels=False).item(), 4.0)
    black = torch.zeros_like(patches)
    assert mae_loss(black, patches, norm_pixels=True).item() == pytest.approx(5 / 6, abs=1e-5), "unbiased variance"
    assert mae_loss(black, torch.ones_like(patches), norm_pixels=True) == 0, "a patch of one colour"


@given(seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_mae_loss_ignores_order_and_with_normalized_pixels_brightness_and_contrast(seed):
    prediction, patches = pair(seed)
    generator = torch.Generator().manual_seed(seed)
    scale, shift = (1 + torch.rand(2, 3, 4, 1, dtype=torch.double, generator=generator)).unbind()
    order, columns = (torch.randperm(k, generator=generator) for k in (3, 4))
    for norm_pixels in (True, False):
        value = mae_loss(prediction, patches, norm_pixels)
        assert_close(mae_loss(prediction[order][:, columns], patches[order][:, columns], norm_pixels), value)
        changed = mae_loss(prediction, scale * patches + shift, norm_pixels)
        assert (abs(changed / value - 1) < 1e-4) == norm_pixels


@pytest.mark.parametrize("norm_pixels", [True, False])
def test_mae_loss_and_gradient_agree_with_lightly(lightly, norm_pixels):
    """Its benchmark takes the mean squared error of the patches at the masked places."""
    prediction, patches = (x.requires_grad_() for x in pair())
    target = lightly.normalize_mean_var(patches) if norm_pixels else patches
    expected = torch.nn.MSELoss()(prediction, target)
    (gradient,) = torch.autograd.grad(expected, prediction)
    loss = mae_loss(prediction, patches, norm_pixels)
    assert_close(loss, expected, rtol=0, atol=1e-6)
    assert_close(torch.autograd.grad(loss, prediction)[0], gradient, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def lightly():
    """Its functions, imported before a test begins: that changes the environment."""
    return pytest.importorskip("lightly.models.utils", reason="compares with lightly")


def build(*words, **options):
    torch.manual_seed(0)
    return build_method("mae", tiny_transformer(**options), 12, *FLAGS, *words)


def batch(n=4, seed=0, dtype=torch.float32):
    view = torch.randn(n, 3, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return Batch(torch.arange(n), [view], torch.arange(n))


def test_method_computes_the_loss_of_a_decoder_that_sees_the_whole_grid():
    """Each image by itself, its patches cut by hand, tokens at their places: as the official code is written."""
    method, b = build(depth=2).double(), batch(dtype=torch.double)
    feats = method.forward_views(b)
    backbone, decoder = method.backbone, method.decoder
    positions = sincos_position_embedding(12, 4, 4)[0].double()
    values = []
    for i, view in enumerate(b.views[0]):
        squares = [view[:, r : r + 2, c : c + 2] for r in range(0, 8, 2) for c in range(0, 8, 2)]
        embedded = torch.stack([backbone.patch_embed.proj(s[None])[0, :, 0, 0] for s in squares]) + positions
        visible = feats.visible[i].sort().values
        tokens = torch.cat([backbone.cls_token[0], embedded[visible]])[None]
        tokens = backbone.norm(backbone.blocks(tokens))
        grid = decoder.mask_token[0].repeat(16, 1)
        grid[visible] = decoder.embed(tokens[0, 1:])
        sequence = torch.cat([decoder.embed(tokens[:, 0]), grid + decoder.positions])
        out = decoder.head(decoder.norm(decoder.blocks(sequence[None])))[0, 1:]
        pixels = torch.stack([s.permute(1, 2, 0).flatten() for s in squares])
        masked = [p for p in range(16) if p not in visible]
        values.append(naive_mae(out[None, masked].detach(), pixels[None, masked], norm_pixels=True))
    assert_close(method.training_loss(feats, b)["loss"].detach(), torch.stack(values).mean(), rtol=0, atol=1e-10)


def test_mask_hides_its_share_of_every_place_and_depends_on_seed_epoch_and_image():
    method = build()
    b = Batch(torch.arange(400), [torch.zeros(400, 3, 8, 8)], torch.zeros(400))
    feats = method.forward_views(b)
    assert feats.visible.shape == (400, 4)
    assert feats.masked.shape == (400, 12)
    assert torch.equal(
        torch.cat([feats.visible, feats.masked], dim=1).sort(dim=1).values, torch.arange(16).repeat(400, 1)
    )
    share = torch.bincount(feats.masked.flatten(), minlength=16) / 400
    assert (share - 0.75).abs().max() < 0.1, "4.6 standard deviations"
    part = method.forward_views(Batch(b.index[[30, 7]], [b.views[0][:2]], b.labels[:2]))
    assert torch.equal(part.masked, feats.masked[[30, 7]]), "the rest of the batch plays no part"
    method.epoch_number.update(1.5, 0.1)
    others = [method.forward_views(b).masked, build("--seed", "1").forward_views(b).masked]
    assert all((other != feats.masked).any(dim=1).float().mean() > 0.95 for other in others)
    method.epoch_number.update(1.9, 0.2)
    assert torch.equal(method.forward_views(b).masked, others[0]), "one mask in an epoch"


def test_encoder_does_not_see_masked_patches():
    method, b = build(), batch()
    feats = method.forward_views(b)
    for places, seen in ((feats.masked, False), (feats.visible, True)):
        view = b.views[0].clone()
        for i, patches in enumerate(places.tolist()):
            for place in patches:
                row, column = 2 * (place // 4), 2 * (place % 4)
                view[i, :, row : row + 2, column : column + 2] += 1.0
        changed = method.forward_views(b._replace(views=[view]))
        assert torch.equal(changed.tokens, feats.tokens) != seen
        assert torch.equal(changed.large[0], feats.large[0]) != seen


@pytest.mark.parametrize("options", [{}, {"global_pool": "avg"}, {"class_token": False, "global_pool": "avg"}])
def test_every_parameter_gets_a_gradient(options):
    method = build(**options)
    out = method.compute_losses(batch())
    (out["loss"] + out["probe_loss"]).backward()
    for name, p in method.named_parameters():
        assert p.grad is not None or name == "backbone.pos_embed", name


def test_evaluation_sees_the_whole_image():
    method, b = build(), batch()
    assert method.eval_backbone() is method.backbone
    assert torch.equal(method(b.views[0]), method.backbone(b.views[0]))


@pytest.mark.parametrize(("ratio", "visible"), [("1", 0), ("0", 16), ("0.98", 0)])
def test_mask_ratio_that_leaves_no_or_all_patches_is_an_error(ratio, visible):
    with pytest.raises(UserError, match=f"--mask_ratio {ratio} leaves {visible} of 16 patches"):
        build("--mask_ratio", ratio)


def test_backbone_without_tokens_is_an_error():
    with pytest.raises(UserError, match="MAE .* vision transformer"):
        build_method("mae", Flat(12), 6, *FLAGS)


def test_long_runs_have_the_papers_warm_up():
    assert MAE.length_defaults(100) == {}
    assert MAE.length_defaults(800) == {"warmup_epochs": 40}
