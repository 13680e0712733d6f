"""Views of decoded images: by threads with compiled loops, and one batch ahead with the batched executor."""

import threading

import numpy as np
import pytest
import torch

from data.datasets import read_dataset
from data.pipelines.choose import build_pipeline
from data.pipelines.memory import CudaStreamLoader, DecodedImages, bytes_needed, rendering_stream, stored_side
from data.views import ViewSpec
from tests.helpers.images import class_folders, read
from tests.helpers.pipelines import CPU, build, equal_views, training_batches

SPECS = [ViewSpec(32, blur=0.5, solarize=0.2), ViewSpec(16, scale=(0.05, 0.3), count=2)]


def memory(on_host=True, workers=0, precision="32"):
    """A module whose batches threads make, or the loader for a GPU, here on the CPU."""
    accelerator = "cpu" if on_host else "cuda"
    module = build_pipeline("memory", read(), SPECS, 16, 0, workers, None, accelerator, precision)
    if not on_host:
        module.train_loader = lambda keys, device: CudaStreamLoader(module.train_dataset(), keys, device)
    return module


def view_threads():
    return [t for t in threading.enumerate() if t.name.startswith("views")]


def test_both_executors_make_the_same_batches():
    pairs = list(zip(training_batches(memory(), 2), training_batches(memory(on_host=False), 2), strict=True))
    assert len(pairs) == 1438 // 16
    for a, b in pairs:
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.labels, b.labels)
        for number, (v, w) in enumerate(zip(a.views, b.views, strict=True)):
            assert ((v - w).abs() < 1e-3).float().mean() > (0.995 if number == 0 else 0.99999)  # solarize may jump


def test_train_loader_does_not_depend_on_the_number_of_threads():
    alone, many = (list(training_batches(memory(workers=n), at_most=5)) for n in (0, 3))
    assert all(map(equal_views, alone, many))


def test_cuda_stream_loader_makes_the_next_batch_while_one_is_out(monkeypatch):
    module = memory(on_host=False)
    loader = module.train_dataloader()
    assert isinstance(loader, CudaStreamLoader)
    second, made = threading.Event(), []
    on_device = loader.views.on_device

    def counted(*args):
        made.append(args)
        if len(made) == 2:
            second.set()
        return on_device(*args)

    monkeypatch.setattr(loader.views, "on_device", counted)
    batches = iter(loader)
    next(batches)
    assert second.wait(10), "the thread makes the second batch without being asked"
    assert loader.state_dict() == {"taken": 1}
    assert len(view_threads()) == 1
    batches.close()
    assert not view_threads()
    assert len(made) == 2


@pytest.mark.parametrize("on_host", [True, False])
def test_train_loader_raises_an_error_where_its_batch_is_asked_for(on_host, monkeypatch):
    loader = memory(on_host, workers=1).train_dataloader()

    def broken(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(loader.views, "render_into" if on_host else "on_device", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        next(iter(loader))
    assert not view_threads()


def test_cuda_stream_loader_resumes_in_the_middle_of_an_epoch():
    whole = list(training_batches(memory(on_host=False), 1))
    module = memory(on_host=False)
    loader = module.train_dataloader()
    module.order.set_epoch(1)
    loader.load_state_dict({"taken": 80})
    rest = list(loader)
    assert len(rest) == len(whole) - 80
    assert all(torch.equal(x.views[0], y.views[0]) for x, y in zip(rest, whole[80:], strict=True))


def test_train_dataloader_alone_makes_views_in_the_precision_of_the_training():
    module = memory(on_host=False, precision="bf16-mixed")
    batch = next(iter(module.train_dataloader()))
    assert [view.dtype for view in batch.views] == [torch.bfloat16] * 3
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in batch.views)
    again = next(module.augmented_loader(batch.index.tolist(), CPU))  # for evaluations, which have no autocast
    assert [view.dtype for view in again.views] == [torch.float32] * 3
    assert all(torch.equal(v, w.bfloat16()) for v, w in zip(batch.views, again.views, strict=True))


def test_rendering_stream_is_one_for_all_loaders_of_a_device(monkeypatch):
    made = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(device) or object())
    rendering_stream.cache_clear()
    first = [rendering_stream(torch.device("cuda", number)) for number in (0, 1, 0, 0, 1)]
    rendering_stream.cache_clear()
    assert len(made) == 2
    assert len({id(stream) for stream in first}) == 2
    assert rendering_stream(CPU) is None


def test_decoded_images_ask_a_gpu_for_room_once_and_are_then_taken_from_the_host(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: asked.append(device) or (1000, 1000))
    decoded = DecodedImages(read().train, 32).load()
    for _ in range(3):
        assert not decoded.to(torch.device("cuda", 0)).pixels.is_cuda
    assert len(asked) == 1
    pixels, rows = decoded.take(np.array([7, 3]), torch.device("meta"))
    assert pixels.shape == (2, 3, 8, 8)
    assert rows.tolist() == [0, 1]
    pixels, rows = decoded.take(np.array([7, 3]), CPU)
    assert pixels is decoded.pixels
    assert rows.tolist() == [7, 3]


def test_decoded_images_keep_small_images_and_squeeze_large_ones(tmp_path):
    assert DecodedImages(read().train, 32).load().pixels.shape == (1438, 3, 8, 8)
    data = read_dataset("custom", str(class_folders(tmp_path / "x", size=(100, 50))), None, None)
    decoded = DecodedImages(data.train, 32).load()
    assert decoded.pixels.shape == (12, 3, 64, 64)
    assert np.array_equal(decoded.sizes, np.tile((50, 100), (12, 1)))
    assert np.allclose(decoded.ratio, (64 / 50, 64 / 100))


def test_stored_side_is_twice_the_view_and_at_most_256_up_to_224():
    assert [stored_side(size) for size in (32, 96, 128, 224, 384)] == [64, 192, 256, 256, 439]


def test_decoded_images_are_decoded_once_and_only_for_training(tmp_path, monkeypatch):
    data = read_dataset("custom", str(class_folders(tmp_path / "x", size=(100, 50))), None, None)
    decoded = []
    monkeypatch.setattr(data.train, "decode", lambda i, decode=data.train.decode: decoded.append(i) or decode(i))
    module = build("memory", data, [ViewSpec(32)], batch_size=4)
    assert decoded == [], "an evaluation needs no squeezed images"
    for _ in range(2):
        list(training_batches(module.with_views([ViewSpec(24)])))
        list(training_batches(module))
    assert sorted(decoded) == list(range(12))


def test_bytes_needed_counts_training_images_and_kept_evaluation_views(tmp_path):
    data = read_dataset("custom", str(class_folders(tmp_path / "x", size=(100, 50))), None, None)
    assert bytes_needed(data, 32) == 12 * 3 * 64 * 64 + 12 * 3 * 32 * 32
    assert bytes_needed(read(), 32) == 1438 * 3 * 64 * 64
