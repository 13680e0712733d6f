"""Training, views, evaluations and whole runs on the pretended CUDA device: values, waits, launches and bytes."""

import copy
import functools
import itertools

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import main_contrastive
import main_linear
from data.augment_torch import Views, augment_views
from data.pipelines.choose import build_pipeline
from data.views import ViewSpec, expand
from methods import METHODS
from runs.alarms import embedding_statistics
from runs.background import copy_to_cpu
from tests import test_gpu
from tests.helpers.commands import ROOT, TINY, words
from tests.helpers.images import read
from tests.helpers.method_cases import SMALL_VIEWS
from tests.helpers.pretended_cuda import CUDA, on_host, pretended_cuda
from tests.helpers.runs import assert_same_run, checkpoint, interrupt_at
from tests.helpers.short_training import VARIANTS, largest_difference, moved_by_step, random_batches, to_device, train
from utils.errors import Interrupted
from utils.files import read_json

CUDA1 = torch.device("cuda", 1)
# Where a training step may wait for the device, with the reason.
GRAD_SCALER = {
    "runs/precision.py": "16-mixed: whether the step was skipped decides if teacher, queue and learning rate move",
}
# Launches and kilobytes of a step in float32, of a batch of 8 views of 16 pixels and two convolutions, and launches in
# bf16: bounds of what was counted. More is a finding, and less should lower the bound.
BOUNDS = {
    "barlow_twins": (263, 1130, 281), "byol": (310, 1500, 349), "clusterfit": (99, 500, 114),
    "nnclr": (402, 1230, 428), "rotnet": (101, 2220, 116), "simclr": (241, 1110, 257), "simsiam": (280, 1130, 307),
    "byol --small_views 2": (486, 1880, 527), "clusterfit --small_views 2": (183, 800, 200),
    "nnclr --small_views 2": (680, 1680, 708), "simclr --small_views 2": (371, 1520, 389),
    "simsiam --small_views 2": (482, 1540, 511), "simclr --supervised": (246, 1120, 262),
    "nnclr --no_predictor": (347, 1160, 367), "byol --clip_grad 1": (330, 1510, 369),
    "simclr --optimizer adamw": (221, 1060, 237), "nnclr --optimizer sgd": (379, 1160, 405),
    "byol --neighbours": (364, 1500, 403), "byol --neighbours --small_views 2": (544, 1880, 585),
    "deepclusterv2": (232, 1270, 250), "deepclusterv2 --small_views 2": (372, 1610, 392), "dino": (336, 1490, 380),
    "dino --small_views 2": (550, 1890, 596), "dino --head_norm": (358, 1510, 394),
    "dino --head_norm --small_views 2": (584, 1920, 622), "distill": (235, 3820, 271),
    "distill --small_views 2": (548, 8720, 620), "distill --regress": (179, 3670, 215),
    "distill --regress --small_views 2": (425, 8330, 497), "ibot": (732, 5580, 877),
    "ibot --small_views 2": (1048, 6520, 1235), "ibot --untied_head --koleo 0.1": (828, 5640, 985),
    "ibot --untied_head --koleo 0.1 --small_views 2": (1144, 6580, 1343), "ijepa": (526, 2870, 634),
    "lejepa": (330, 1740, 354), "lejepa --small_views 2": (444, 2670, 474), "mae": (302, 2240, 391),
    "mae --no_norm_pixels": (297, 2140, 386), "mocov2": (205, 790, 232), "mocov2 --small_views 2": (393, 1170, 422),
    "mocov2 --symmetric": (339, 1440, 375), "mocov2 --symmetric --small_views 2": (599, 1870, 637),
    "mocov3": (317, 1490, 349), "mocov3 --small_views 2": (539, 1880, 573),
    "nnclr --no_predictor --small_views 2": (593, 1570, 615), "nnclr --top_k 3 --push_views 2": (487, 1270, 513),
    "nnclr --same_class_neighbours": (393, 1230, 419),
    "nnclr --same_class_neighbours --small_views 2": (673, 1680, 701),
    "nnclr --top_k 3 --push_views 2 --small_views 2": (955, 1810, 983), "ressl": (185, 810, 212),
    "ressl --small_views 2": (303, 1210, 332), "simclr --supervised --small_views 2": (376, 1540, 394),
    "simclr --decoupled --decoupled_weights": (260, 1120, 276),
    "simclr --decoupled --decoupled_weights --small_views 2": (390, 1560, 408),
    "simsiam --neighbours": (331, 1130, 358), "simsiam --neighbours --small_views 2": (535, 1540, 564),
    "swav": (300, 1100, 318), "swav --small_views 2": (504, 1460, 524),
    "swav --queue_size 12 --queue_start_epoch 0": (359, 1130, 377),
    "swav --queue_size 12 --queue_start_epoch 0 --small_views 2": (563, 1480, 583), "vicreg": (295, 1130, 313),
    "vicreg --small_views 2": (509, 1520, 529),
}  # fmt: skip


UNCOUNTED = (2000, 10_000, 2000)  # where nobody has counted yet


def fast(variants, is_fast):
    """The variants as parameters; those that are not fast are slow tests."""
    return [v if is_fast(v) else pytest.param(v, marks=pytest.mark.slow) for v in variants]


def assert_waits_only_in(run, *allowed):
    """No wait of the stream that trains, but for those places; the message has file and line of the project's code."""
    unexpected = [wait for wait in run.waits_of_training if not wait.startswith(tuple(k for a in allowed for k in a))]
    assert not unexpected, "a training step waits for the device:\n" + "\n".join(unexpected)


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    """variant -> its training on the CPU, in float32."""
    folder = tmp_path_factory.mktemp("cpu")

    @functools.cache
    def training(variant):
        name, words = VARIANTS[variant]
        return train(folder, name, *words)

    return training


def test_bounds_are_of_variants():
    assert BOUNDS.keys() <= VARIANTS.keys()


@pytest.mark.parametrize("variant", fast(VARIANTS, lambda variant: SMALL_VIEWS not in variant))
def test_float32_steps_equal_those_of_the_cpu_without_a_wait(tmp_path, on_cpu, variant):
    name, words = VARIANTS[variant]
    cpu = on_cpu(variant)
    with pretended_cuda() as device:
        run = train(tmp_path, name, *words, device=device)
    assert run.losses == pytest.approx(cpu.losses, rel=1e-4)
    assert largest_difference(cpu, run) < 1e-3
    assert_waits_only_in(run)
    launches, kilobytes, _ = BOUNDS.get(variant, UNCOUNTED)
    assert run.launches <= launches
    assert run.bytes / 1e3 <= kilobytes


@pytest.mark.parametrize("variant", fast(VARIANTS, lambda variant: variant in METHODS))
def test_bf16_steps_are_near_those_of_float32_without_a_wait(tmp_path, on_cpu, variant):
    name, words = VARIANTS[variant]
    cpu = on_cpu(variant)
    with pretended_cuda() as device:
        run = train(tmp_path, name, *words, "--precision", "bf16-mixed", device=device)
    assert run.losses[0] == pytest.approx(cpu.losses[0], rel=0.1)
    assert all(torch.isfinite(v).all() for v in run.states[-1].values())
    assert_waits_only_in(run)
    assert run.launches <= BOUNDS.get(variant, UNCOUNTED)[2]


@pytest.mark.parametrize("variant", fast(VARIANTS, lambda variant: variant in METHODS))
def test_skipped_steps_of_fp16_move_nothing_and_the_others_are_as_if_alone(tmp_path, variant):
    """Gradients overflow in the first and in the third of five steps; the fourth is counted."""
    name, words = VARIANTS[variant]
    words = (*words, "--precision", "16-mixed", "--scheduler", "cosine")
    with pretended_cuda() as device:
        run = train(tmp_path, name, *words, device=device, batches=range(5), overflow=(0, 2))
        alone = train(tmp_path, name, *words, device=device, batches=(1, 3, 4))
    assert moved_by_step(run, 0) == moved_by_step(run, 2) == []
    assert {"weights", "schedule"} <= set(moved_by_step(run, 1))
    assert [run.rates[step] for step in (1, 3, 4)] == alone.rates
    for key, value in alone.states[-1].items():
        if not key.endswith(("running_mean", "running_var", "num_batches_tracked")):  # a skipped step saw a batch too
            assert_close(run.states[-1][key], value, rtol=1e-3, atol=1e-5)  # the loss has another scale
    assert_waits_only_in(run, GRAD_SCALER)
    assert sum(run.waits_of_training.values()) <= 2  # one for optimizers that are not fused, one for the scale


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("pipeline", ["memory", "stream", "torchvision"])
@pytest.mark.parametrize("method", ["byol", "nnclr"])
def test_step_with_a_pipeline_does_not_wait(tmp_path, method, pipeline, precision):
    with pretended_cuda() as device:
        run = train(tmp_path, method, "--precision", precision, device=device, pipeline=pipeline)
    assert_waits_only_in(run, *([GRAD_SCALER] if precision == "16-mixed" else []))


@pytest.mark.parametrize(
    ("method", "pipeline"), [("nnclr", "memory"), pytest.param("byol", "stream", marks=pytest.mark.slow)]
)
def test_run_on_the_second_gpu_asks_nothing_of_the_first(tmp_path, method, pipeline):
    with pretended_cuda(index=1) as device:
        run = train(tmp_path, method, "--precision", "bf16-mixed", device=device, pipeline=pipeline)
    assert device.current == 1, "torch.cuda.set_device was told"
    assert len(run.losses) == 4
    assert_waits_only_in(run)


def test_the_second_device_refuses_what_belongs_to_the_first():
    with pretended_cuda(index=1) as device:
        for place in ("cuda", "cuda:0", 0):
            with pytest.raises(RuntimeError, match="cuda:0 is asked for by a process that computes on cuda:1"):
                torch.ones(2).to(place)
        with pytest.raises(RuntimeError, match="cuda:0 is asked for"):
            torch.cuda.Stream(torch.device("cuda", 0))
        torch.cuda.set_device(device.cuda)
        assert torch.cuda.current_device() == 1
        made = torch.ones(2, device=CUDA1), torch.ones(2).cuda(1), torch.zeros(2).to(CUDA1)
        assert {x.device for x in (*made, made[0].new_ones(3), made[1] + made[2])} == {CUDA1}


SPECS = [ViewSpec(32, count=2, blur=0.5, solarize=0.3), ViewSpec(20, blur=0.1)]


KEYS = [(0, list(range(8))), (3, list(range(8, 16)))]  # epoch, images


def test_views_of_the_memory_pipeline_equal_those_of_the_batched_executor_on_the_cpu():
    on_cpu = build_pipeline("memory", read(), SPECS, 8, 0, 0, None, "cpu")
    with pretended_cuda() as device:
        module = build_pipeline("memory", read(), SPECS, 8, 0, 0, None, "cuda")
        batches = list(module.train_loader(KEYS, CUDA))
    for key, batch in zip(KEYS, batches, strict=True):
        views = on_cpu.train_dataset().views_to_make(key, torch.device("cpu"))
        expected = augment_views(views, on_cpu.data.mean, on_cpu.data.std, torch.float32)
        assert on_host(batch.index).tolist() == key[1]
        assert all(v.is_cuda and torch.equal(u, on_host(v)) for u, v in zip(expected, batch.views, strict=True))
    assert not [wait for wait in device.waits if wait[0] == "training"]


def test_views_of_the_stream_pipeline_equal_those_of_the_batched_executor_on_the_cpu():
    with pretended_cuda():
        module = build_pipeline("stream", read(), SPECS, 8, 0, 0, None, "cuda")
        batches = list(module.train_loader(KEYS, CUDA))
        for batch in batches:
            made = module.finalize_batch(batch.to(CUDA)).views
            left = zip(batch.views, batch.color_params, expand(SPECS), strict=True)
            rows = np.arange(8)
            views = [Views(x, rows, params, None, None, spec.size, spec.blur_taps) for x, params, spec in left]
            expected = augment_views(views, module.data.mean, module.data.std, torch.float32)
            assert all(torch.equal(u, on_host(v)) for u, v in zip(expected, made, strict=True))
    assert len(batches) == 2


def test_evaluation_views_that_threads_make_equal_those_on_the_cpu():
    def views(device):
        module = build_pipeline("memory", read(), SPECS, 8, 0, 2, None, device.type)
        batches = itertools.islice(module.eval_dataloader("val", device), 4)
        return torch.cat([on_host(batch.views[0]) for batch in batches])

    with pretended_cuda() as device:
        made = views(CUDA)
    assert torch.equal(made, views(torch.device("cpu")))
    assert not device.waits


def test_pinned_memory_stays_where_it_is():
    with pretended_cuda():
        pinned, ordinary = torch.empty(3, pin_memory=True), torch.ones(3)
        assert pinned.isnan().all()
        assert pinned.pin_memory() is pinned
        assert pinned[:2].pin_memory().data_ptr() == pinned.data_ptr()
        copied = ordinary.pin_memory()
        assert copied.is_pinned()
        assert not ordinary.is_pinned()
        assert copied.data_ptr() != ordinary.data_ptr()


def test_gpu_weights_are_channels_last_and_checkpoints_contiguous(tmp_path):
    seen = []

    def look(trainer, method):
        weights, optimizer = [p for p in method.parameters() if p.dim() == 4], trainer.optimizers[0]
        moments = [optimizer.state[p]["momentum_buffer"] for p in weights if p.requires_grad]
        assert [len(weights), len(moments)] == [4, 2], "two convolutions of the student, two of the teacher"
        for x in (*weights, *moments):
            assert x.is_contiguous(memory_format=torch.channels_last)
            assert not x.is_contiguous()
        saved = copy_to_cpu({"weights": method.state_dict(), "optimizer": optimizer.state_dict()})
        optimizer.load_state_dict(saved["optimizer"])
        optimizer.step()  # a fused step refuses moments of another layout
        seen.append(saved)

    with pretended_cuda() as device:
        run = train(tmp_path, "byol", "--optimizer", "sgd", device=device, at_end=look)
    (saved,) = seen
    assert all(v.is_contiguous() for v in saved["weights"].values())
    assert all(v.is_contiguous() for state in saved["optimizer"]["state"].values() for v in state.values())
    assert all(torch.equal(v, saved["weights"][k]) for k, v in run.states[-1].items())


def test_autocast_casts_each_weight_once_per_step_and_gives_the_same_loss(tmp_path):
    """The views' gradients of a weight are added in half precision where its cast is shared."""
    ends = []

    def compare(trainer, method):
        batch = to_device(random_batches(method, [0])[0], CUDA)
        for cached in (False, True):
            copied = copy.deepcopy(method)
            device.reset()
            with torch.autocast("cuda", torch.bfloat16, cache_enabled=cached):
                loss = copied.compute_losses(batch)["loss"]
            casts = device.launches["training", "aten::_to_copy"]
            loss.backward()
            gradients = {k: on_host(p.grad) for k, p in copied.named_parameters() if p.grad is not None}
            ends.append((on_host(loss), gradients, casts))
        with trainer.precision_plugin.autocast_context_manager():
            assert torch.is_autocast_cache_enabled()

    words = ("--small_views", "2", "--precision", "bf16-mixed")
    with pretended_cuda() as device:
        train(tmp_path, "simsiam", *words, device=device, batches=[0], at_end=compare)
    (loss, gradients, casts), (cached_loss, cached_gradients, fewer) = ends
    assert torch.equal(loss, cached_loss)
    assert fewer <= casts - 3 * 6, "six weights and four views"
    largest = max(g.abs().max() for g in gradients.values())
    for key, gradient in gradients.items():
        assert_close(gradient, cached_gradients[key], rtol=2**-5, atol=2**-7 * float(largest))


def test_validation_step_waits_for_nothing(tmp_path):
    waits = []

    def validate(trainer, method):
        batch = to_device(random_batches(method, [0])[0], CUDA)
        device.reset()
        method.validation_step(batch, 0)
        waits.append(dict(device.waits))

    with pretended_cuda() as device:
        train(tmp_path, "simclr", device=device, batches=[0], at_end=validate)
    assert not waits[0]


def test_a_wait_is_reported_with_file_and_line_of_the_project():
    with pretended_cuda() as device:
        embedding_statistics(torch.ones(4, 3, device="cuda"))
    (_, what, place), *_ = device.waits
    assert what == "copy to cpu that blocks"
    file, line = place.split(":")
    assert file == "runs/alarms.py"
    assert ".cpu()" in (ROOT / file).read_text().splitlines()[int(line) - 1]


def test_the_device_refuses_what_cuda_refuses():
    with pretended_cuda():
        x = torch.ones(3, device="cuda")
        assert x.is_cuda
        assert (x + torch.tensor(1.0)).is_cuda, "a number from the host is no tensor"
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        with pytest.raises((RuntimeError, TypeError)):
            x.numpy()
        with pytest.raises(RuntimeError, match="indices should be"):
            torch.ones(3)[torch.zeros(1, dtype=torch.long, device="cuda")]
        assert on_host(torch.empty(2, device="cuda")).isnan().all()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["byol", "nnclr", "simsiam"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_whole_run_is_saved_and_goes_on(tmp_path, monkeypatch, method, precision):
    """Three epochs with validation, kNN and checkpoints; a run that is interrupted ends as one that is not."""

    def command(run):
        return [*words(method, tmp_path), "--precision", precision, "--gpus", "0", "--run_id", run]

    with pretended_cuda():
        main_contrastive.main(command("whole"))
        with monkeypatch.context() as patches:
            interrupt_at(patches, 7)
            with pytest.raises(Interrupted):
                main_contrastive.main(command("broken"))
        main_contrastive.main(["--resume", str(tmp_path / "broken")])
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    state = checkpoint(tmp_path / "whole")["state_dict"]
    backbone = load_file(tmp_path / "whole" / "backbone.safetensors")
    assert all(torch.equal(v, state[f"backbone.{k}"]) for k, v in backbone.items())
    assert all(v.is_contiguous() for v in (*state.values(), *backbone.values()))


@pytest.mark.slow
def test_evaluations_on_the_device_give_the_scores_of_the_cpu(tmp_path, monkeypatch):
    main_contrastive.main([*words("simclr", tmp_path), "--accelerator", "cpu", "--run_id", "run", "--epochs", "1"])
    evaluate = ["digits", TINY[1], "--pretrained_feature_extractor", str(tmp_path / "run"), "--output", str(tmp_path),
                "--evaluation", "logistic", "knn", "fewshot", "quality", "linear", "finetune", "pictures", "--shots",
                "5", "--epochs", "2", "--num_workers", "0"]  # fmt: skip
    main_linear.main([*evaluate, "--accelerator", "cpu", "--run_id", "cpu"])
    with pretended_cuda():
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_, **__: False)  # else the classifiers train in it
        main_linear.main([*evaluate, "--gpus", "0", "--run_id", "cuda"])
    cpu, cuda = (next(iter(read_json(tmp_path / run / "summary.json").values()))["scores"] for run in ("cpu", "cuda"))
    assert {"logistic", "knn_20", "fewshot_5/mean", "quality/rankme", "linear_sgd", "finetune"} <= cpu.keys()
    assert cuda == pytest.approx(cpu, rel=0.01, abs=1.0)


@pytest.fixture
def small_network(monkeypatch):
    """The runs of the GPU tests have a small network: a ResNet-18 takes minutes of a CPU and shows no more here."""
    monkeypatch.setattr(test_gpu, "NETWORK", TINY[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [[], ["--pipeline", "torchvision"], ["--pipeline", "stream"], ["--precision", "16-mixed"]]
)
@pytest.mark.parametrize("method", METHODS)
def test_run_of_the_gpu_tests_learns(tmp_path, small_network, method, more):
    with pretended_cuda():
        test_gpu.test_run_learns(tmp_path, method, more)


@pytest.mark.slow
def test_gpu_tests_of_views_and_memory_pass():
    with pretended_cuda():
        for size in (32, 96, 224):
            test_gpu.test_views_on_cuda_equal_those_on_the_cpu(size)
        test_gpu.test_memory_pipeline_keeps_decoded_images_on_the_device()
        test_gpu.test_state_is_copied_into_pinned_memory_before_the_next_step_changes_it()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_deterministic_run_of_the_gpu_tests_can_be_repeated(tmp_path, small_network, method):
    with pretended_cuda():
        test_gpu.test_deterministic_run_can_be_repeated_to_the_bit(tmp_path, method)
