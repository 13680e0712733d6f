"""What only a CUDA device can show."""

import numpy as np
import pytest
import torch

import main_contrastive
from data.datasets import read_dataset
from data.pipelines import build_pipeline
from data.sampler import sample
from data.views import ViewSpec
from methods import METHODS
from tests.helpers import arguments, batched, small
from utils.run import read_metrics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("size", [32, 96, 224])
def test_views_are_those_of_the_cpu(size):
    spec, n = ViewSpec(size, blur=0.5, solarize=0.3), 16
    x = torch.randint(0, 256, (n, 3, 64, 80), dtype=torch.uint8)
    p = sample(spec, 0, 0, np.arange(n), 0, np.tile((64, 80), (n, 1)))
    cpu = batched(x, p, spec)
    cuda = batched(x.cuda(), p, spec).cpu()
    assert (cpu - cuda).abs().mean() < 1e-4
    assert (cpu - cuda).abs().quantile(0.999) < 5e-3  # solarize turns a rounding at its threshold into a step


def test_decoded_images_live_on_the_device():
    args = arguments("simclr", "--batch_size", "16")
    module = build_pipeline("device", read_dataset("digits", "none", None, None), [ViewSpec(32, count=2)], args)
    batch = next(iter(module.plain_dataloader("train", torch.device("cuda", 0))))
    assert batch.views[0].is_cuda
    assert module.stores["train"].pixels.is_cuda


@pytest.mark.parametrize(
    "more", [[], ["--compile"], ["--pipeline", "torchvision"], ["--pipeline", "stream"], ["--precision", "16-mixed"]]
)
@pytest.mark.parametrize("method", METHODS)
def test_a_run(tmp_path, method, more):
    queue = ["--queue_size", "300"] if method == "nnclr" else []
    if not METHODS[method].no_small_views and "--compile" in more:
        more = [*more, "--small_views", "2"]
    main_contrastive.main(["digits", "resnet18", "--method", method, *small(method, *queue), "--batch_size", "128",
                           "--epochs", "3", "--optimizer", "sgd", "--lr", "0.1", "--log_every", "1", "--gpus", "0",
                           "--output", str(tmp_path), "--run_id", "r", *more])  # fmt: skip
    rows = read_metrics(tmp_path / "r" / "metrics.csv")
    knn = [float(row["knn_20"]) for row in rows if row.get("knn_20")]
    assert knn[-1] > 50
    assert all(np.isfinite(float(row["loss"])) for row in rows if row["loss"])
