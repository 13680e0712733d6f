"""The streaming pipeline: the reference's views, whichever executor makes them."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from data.datasets import IMAGENET_STD, read_dataset
from data.pipelines.loaders import EpochBatchSampler
from data.pipelines.prefetch import ThreadPrefetchLoader
from data.pipelines.stream import StreamedViews, resized_crop
from data.sampler import sample
from data.views import ViewSpec, expand
from tests.helpers.images import write_image
from tests.helpers.pipelines import CPU, build, smooth_image, training_batches

SPECS = [ViewSpec(48, blur=0.5, solarize=0.3, count=2), ViewSpec(24, scale=(0.05, 0.3), count=2)]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """40 files of 90 x 70, smooth where photographs are, in every mode that a folder may hold."""
    root = tmp_path_factory.mktemp("photographs")
    for i in range(40):
        path = root / f"c{i % 2}" / f"{i}.png"
        if i % 4:
            write_image(path, ("RGB", "L", "P", "RGBA")[i % 4], (90, 70), i)
        else:
            path.parent.mkdir(exist_ok=True)
            smooth_image((90, 70), i).save(path.with_suffix(".jpg"))
    return read_dataset("custom", str(root), ".", None)


def test_train_loader_makes_torchvisions_views(photographs):
    """Half a step of 255 is the reference's rounding; the blur leaves out its ends; solarize may jump."""
    a, b = (list(training_batches(build(n, photographs, SPECS, 0, 10), epoch=1)) for n in ("stream", "torchvision"))
    assert len(a) == len(b) == 4
    assert sorted(torch.cat([batch.index for batch in a]).tolist()) == list(range(40))
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.index, y.index)
        assert torch.equal(x.labels, y.labels)
        for number, (v, w) in enumerate(zip(x.views, y.views, strict=True)):
            apart = (v - w).abs() * torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255
            assert apart.mean() < 0.3
            if number > 1:
                assert apart.max() < 0.53
            assert (apart < 0.53).float().mean() > 0.999


@pytest.mark.parametrize("size", [8, 40, 96])
def test_resized_crop_is_torchvisions_to_the_bit(size):
    spec = ViewSpec(size, scale=(0.02, 1.0))
    image = torch.randint(0, 256, (3, 61, 83), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    params = sample(spec, 1, 2, np.arange(20), 0, np.tile((61, 83), (20, 1)))
    for i in range(20):
        expected = TF.resized_crop(image, *params.box[i].tolist(), [size, size], antialias=True)
        found = torch.from_numpy(resized_crop(image, params.box[i].tolist(), size)).permute(2, 0, 1)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("threads", [0, 2])
def test_views_that_a_gpu_finishes_are_those_that_the_threads_finish(photographs, threads):
    """The parameters are drawn once, in parts of a batch, and travel with the bytes to `finalize_batch`."""
    module = build("stream", photographs, SPECS, threads, 20)
    batches = []
    for finished in (True, False):
        dataset = StreamedViews(photographs, expand(SPECS), module.seed, finished)
        order = EpochBatchSampler(40, 20, module.seed)
        batches.append(list(ThreadPrefetchLoader(dataset, order, threads, CPU)))
    for whole, left in zip(*batches, strict=True):
        assert whole.color_params == []
        assert all(view.dtype == torch.uint8 for view in left.views)
        assert [len(params.box) for params in left.color_params] == [20] * 4
        for number, (v, w) in enumerate(zip(whole.views, module.finalize_batch(left).views, strict=True)):
            assert ((v - w).abs() < 5e-4).float().mean() > (0.99 if number < 2 else 0.999999)


def test_sample_is_called_once_per_view_and_part(photographs, monkeypatch):
    calls = []
    monkeypatch.setattr("data.pipelines.stream.sample", lambda *args: calls.append(args) or sample(*args))
    monkeypatch.setattr("data.sampler.sample", lambda *args: pytest.fail("parameters were drawn a second time"))
    dataset = StreamedViews(photographs, expand(SPECS), 0, finished=False)
    module = build("stream", photographs, SPECS, 0, 8)
    for batch in ThreadPrefetchLoader(dataset, [(0, list(range(8)))], 0, CPU):
        module.finalize_batch(batch)
    assert len(calls) == len(expand(SPECS))
