"""iBOT and DINOv2: their equations on the method's own networks, an image, a view and a patch at a time."""

import pytest
import timm
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from methods.ibot import patch_loss
from tests.helpers.commands import build_method
from tests.helpers.networks import Flat, random_views
from utils import row_chunks
from utils.batch import Batch
from utils.errors import UserError
from utils.files import EVAL_BACKBONE
from utils.koleo import koleo_loss

SMALL = ["--batch_size", "6", "--num_prototypes", "12", "--large_size", "16"]
VARIANTS = {"": [], "untied, KoLeo": ["--untied_head", "--koleo", "0.1"], "random": ["--mask_shape", "random"]}


def backbone(**options):
    return timm.create_model("test_vit", num_classes=0, img_size=16, patch_size=4, depth=1, dynamic_img_size=True,
                             **options)  # fmt: skip


def build(*words, **options):
    """A method whose teacher, centres and mask token are not those of the start."""
    torch.manual_seed(0)
    method = build_method("ibot", backbone(), 64, *SMALL, *words, **options).double()
    with torch.no_grad():
        for p in method.teacher_backbone.parameters():
            p += 0.1 * torch.randn_like(p)
        for x in (method.center.value, method.patch_center.value, method.mask_token):
            x += 0.1 * torch.randn_like(x)
    return method


def batch(small=0, n=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    views = [torch.randn(n, 3, s, s, generator=g, dtype=torch.double) for s in [16, 16] + [8] * small]
    return Batch(torch.arange(n), views, torch.arange(n))


def naive_cross_entropy(s, t, c, teacher_t):
    return -(F.softmax((t - c) / teacher_t, dim=0) * F.log_softmax(s / 0.1, dim=0)).sum()


def naive_ibot(method, b):
    """{"class_loss", "patch_loss"}, with the masks that the method draws."""
    feats = method.forward_views(b)
    untied = method.args.untied_head
    patch_head = method.patch_head if untied else method.head
    teacher_patch_head = (method.teacher_patch_head if untied else method.teacher_head).teacher
    temperature = float(method.teacher_temperature.value)
    teacher = [method.teacher_head.teacher(f) for f in feats.evaluated]
    student = [method.head(f) for f in feats.all]
    class_terms = [
        naive_cross_entropy(student[v][i], teacher[g][i], method.center.value, temperature)
        for g in range(2) for v in range(len(student)) if v != g for i in range(6)
    ]  # fmt: skip
    images = []
    for patches, targets, mask in zip(feats.patches, feats.targets, feats.mask.mask, strict=True):
        terms = [
            naive_cross_entropy(patch_head(s[None])[0], teacher_patch_head(t[None])[0], method.patch_center.value,
                                temperature)
            for s, t, hidden in zip(patches, targets, mask, strict=True) if hidden
        ]  # fmt: skip
        images.append(sum(terms) / len(terms) if terms else torch.tensor(0.0, dtype=torch.double))
    return {"class_loss": torch.stack(class_terms).mean(), "patch_loss": torch.stack(images).mean()}, feats


@pytest.mark.parametrize("small", [0, 1])
@pytest.mark.parametrize("variant", VARIANTS)
def test_training_loss_agrees_with_the_formula_and_trains_the_student_only(variant, small):
    method, b = build(*VARIANTS[variant], *["--small_views", "1", "--small_size", "8"] * small), batch(small)
    expected, feats = naive_ibot(method, b)
    assert 0 < feats.mask.mask.any(dim=1).float().mean() < 1, "some views are masked, and some are not"
    out = method.compute_losses(b)
    for name, value in expected.items():
        assert_close(out[name], value, rtol=0, atol=1e-6)  # the weights are float32
    koleo = sum(koleo_loss(f) for f in feats.large)
    weight = method.args.koleo
    assert_close(out["loss"], out["class_loss"] + out["patch_loss"] + weight * koleo)
    out["loss"].backward()
    heads = {"head", "patch_head"} if method.args.untied_head else {"head"}
    trained = {name.split(".")[0] for name, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {"backbone", "mask_token"} | heads


def test_patch_loss_in_chunks_of_images_is_that_of_the_whole_batch(monkeypatch):
    results = []
    for entries in (row_chunks.MAX_ENTRIES, 12 * 8 * 5):
        monkeypatch.setattr(row_chunks, "MAX_ENTRIES", entries)
        method = build()
        loss = method.compute_losses(batch())["loss"]
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in method.parameters() if p.grad is not None)])
    for a, b in zip(*results, strict=True):
        assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_patch_loss_and_gradient_agree_with_lightly(lightly_loss):
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.bool)
    weights = mask / mask.sum(dim=1, keepdim=True).clamp(min=1)
    student, teacher = (torch.stack(random_views(3, 4, 9, seed)) for seed in (1, 2))
    c = random_views(1, 1, 9, 3)[0]
    theirs = lightly_loss.IBOTPatchLoss(9, teacher_temp=0.07, student_temp=0.1)
    theirs.center.center = c.clone()
    a, b = student.clone().requires_grad_(), student.clone().requires_grad_()
    expected = theirs(teacher[mask], a[mask], mask.view(3, 2, 2))
    value = patch_loss(b, teacher, weights, c[0], 0.1, torch.tensor(0.07)).mean()
    expected.backward()
    value.backward()
    assert_close(value, expected, rtol=1e-6, atol=0)
    assert_close(b.grad, a.grad, rtol=1e-6, atol=1e-9)


@pytest.fixture(scope="module")
def lightly_loss():
    return pytest.importorskip("lightly.loss", reason="compares with lightly")


def test_patch_loss_of_uniform_outputs_is_the_log_of_their_number_where_an_image_is_masked():
    one, weights = torch.ones(2, 4, 8), torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0, 0]])
    assert_close(patch_loss(one, one, weights, torch.zeros(8), 0.1, 0.04), torch.tensor([8.0, 1.0]).log())


def test_centers_move_once_per_step_to_the_means_of_all_class_tokens_and_all_patches():
    method, b = build("--untied_head"), batch()
    before = method.center.value.clone(), method.patch_center.value.clone()
    feats = method.forward_views(b)
    classes = torch.cat([method.teacher_head.teacher(f) for f in feats.evaluated]).mean(dim=0)
    patches = method.teacher_patch_head.teacher(feats.targets).mean(dim=(0, 1))
    method.compute_losses(b)
    for center, start, mean in zip((method.center, method.patch_center), before, (classes, patches), strict=True):
        assert torch.equal(center.value, start), "the loss must not move the centre"
        center.after_optimizer_step(0.0)
        assert_close(center.value, 0.9 * start + 0.1 * mean.detach())


def test_probe_and_evaluation_take_the_teacher_of_the_whole_views():
    method, b = build(), batch()
    for ours, view in zip(method.forward_views(b).evaluated, b.views, strict=True):
        assert_close(ours, method.eval_backbone()(view))
        assert not ours.requires_grad


def test_masks_change_with_the_epoch_and_not_within_it():
    method, b = build("--mask_probability", "1"), batch()
    masks = []
    for epoch in (0.0, 0.7, 1.0):
        method.whole_epochs.update(epoch, 0.0)
        masks.append(method.forward_views(b).mask.mask)
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[1], masks[2])


def test_prototypes_of_each_head_are_frozen_at_first():
    for words, heads in (([], {"head"}), (["--untied_head"], {"head", "patch_head"})):
        method = build(*words)
        names = {name for name, _ in method.named_parameters()}
        assert {f"{prefix}.weight" for prefix in method.param_group_rules()} <= names
        assert set(method.param_group_rules()) == {f"{head}.prototypes" for head in heads}


def test_what_cannot_be_masked_is_an_error():
    with pytest.raises(UserError, match="ibot .*vision transformer"):
        build_method("ibot", Flat(12), 6, *SMALL)
    with pytest.raises(UserError, match=r"^--mask_ratios 0.5 0.1: .* swap them$"):
        build_method("ibot", backbone(), 64, *SMALL, "--mask_ratios", "0.5", "0.1")


def test_exported_backbone_is_the_teacher():
    method, checkpoint = build(), {}
    method.on_save_checkpoint(checkpoint)
    prefix = checkpoint[EVAL_BACKBONE]
    names = {name.removeprefix(prefix) for name in method.state_dict() if name.startswith(prefix)}
    assert prefix == "teacher_backbone.teacher."
    assert names == set(backbone().state_dict()), "the mask token is no part of the backbone"
