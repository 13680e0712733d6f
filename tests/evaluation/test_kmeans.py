"""Backends of k-means, and what clusters are worth."""

import importlib.util
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from evaluation.kmeans import BACKENDS as ITERATIONS
from evaluation.kmeans import cluster_report, kmeans, nmi, purity
from tests.helpers.mixtures import draw, mixture
from utils.errors import UserError
from utils.kmeans import CPU, _checked, _run, assign

BACKENDS = [
    "torch",
    pytest.param(
        "faiss",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("faiss") is None, reason="needs faiss: pip install -r requirements-faiss.txt"
        ),
    ),
]


@pytest.fixture(scope="module")
def digits():
    return torch.from_numpy(load_digits().data).float()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_planted_clusters_are_found(backend, seed):
    x, labels = mixture(600, 16, 12, apart=200, seed=seed), torch.arange(600) % 12
    ours = kmeans(x, 12, seed=seed, backend=backend)
    ids, _ = assign(x, ours.centroids)
    assert nmi(ids, labels) == pytest.approx(1)
    assert purity(ids, labels) == 1
    means = torch.stack([x[labels == j].mean(dim=0) for j in range(12)])
    torch.testing.assert_close(ours.centroids[ids[:12]], means, atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("start", ["kmeans++", "subset"])
def test_as_many_clusters_as_rows(backend, start):
    x = draw(30, 5)
    ours = kmeans(x, 30, backend=backend, start=start)
    assert ours.objective[-1] == 0
    assert torch.equal(ours.centroids[assign(x, ours.centroids)[0]], x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_centroids_part(backend):
    x = mixture(400, 4, 8, apart=20)
    ours = _run(x[:1].repeat(8, 1), x, _checked(x, 8, 1, CPU), 20, ITERATIONS[backend])
    assert ours.reseeded >= 7
    assert cluster_report(assign(x, ours.centroids)[0], 8)["empty"] == 0
    assert ours.objective[-1] < 0.5 * x.var(dim=0, correction=0).sum()


@pytest.mark.skipif(
    importlib.util.find_spec("faiss") is None, reason="needs faiss: pip install -r requirements-faiss.txt"
)
def test_faiss_gives_every_rank_what_it_gives_one_process(ranks):
    x = mixture(200, 4, 5, apart=2)
    one = kmeans(x, 5, iterations=4, backend="faiss").centroids
    for found in ranks(2).run(faiss_on_a_rank, x):
        assert torch.equal(found, one)


def faiss_on_a_rank(rank, world, x):
    return kmeans(x, 5, iterations=4, backend="faiss").centroids


def test_an_unknown_backend_is_refused():
    with pytest.raises(
        UserError, match=r"^unknown choice 'fais'; choose one of torch, faiss \(did you mean faiss\?\)$"
    ):
        kmeans(draw(20, 3), 3, backend="fais")


# faiss


@pytest.mark.skipif(
    importlib.util.find_spec("faiss") is None, reason="needs faiss: pip install -r requirements-faiss.txt"
)
@pytest.mark.parametrize(("name", "k"), [("digits", 10), ("digits", 100), ("mixture", 40)])
def test_faiss_and_torch_agree(digits, name, k, capfd):
    x = digits if name == "digits" else mixture(2000, 64, 30, apart=0.3)
    ours, faiss = (kmeans(x, k, iterations=20, seed=1, backend=backend) for backend in ("torch", "faiss"))
    assert faiss.objective[0] == pytest.approx(ours.objective[0], rel=1e-5), "the same start"
    assert faiss.objective[1] == pytest.approx(ours.objective[1], rel=1e-3), "the same iteration"
    assert faiss.objective[-1] == pytest.approx(ours.objective[-1], rel=0.01)
    assert len(faiss.objective) <= 21
    assert faiss.objective[-1] == pytest.approx(assign(x, faiss.centroids)[1].double().mean().item(), rel=1e-6)
    assert faiss.centroids.dtype == torch.float32
    assert torch.equal(kmeans(x, k, iterations=20, seed=1, backend="faiss").centroids, faiss.centroids)
    assert "".join(capfd.readouterr()) == "", "no warnings"


def test_without_faiss_the_error_names_the_remedy(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(UserError, match=r"^backend faiss needs faiss: pip install -r requirements-faiss\.txt$"):
        kmeans(draw(20, 3), 3, backend="faiss")


# What clusters are worth


def test_report_of_the_sizes():
    assert cluster_report(torch.tensor([0, 0, 0, 1, 3]), 5) == {"smallest": 0, "median": 1, "largest": 3, "empty": 2}
    assert cluster_report(torch.tensor([0, 1, 1, 0, 0]), 2) == {"smallest": 2, "median": 2.5, "largest": 3, "empty": 0}


def entropy(*counts):
    return -sum(c / sum(counts) * math.log(c / sum(counts)) for c in counts if c)


def test_nmi_and_purity_worked_out_by_hand():
    """Clusters of 3 and 3, one label wrong; the last two rows have no label and count for nothing."""
    ids, labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 0]), torch.tensor([4, 4, 4, 4, 7, 7, -1, -1])
    mutual = entropy(3, 3) + entropy(4, 2) - entropy(3, 1, 2)
    assert nmi(ids, labels) == pytest.approx(mutual / ((entropy(3, 3) + entropy(4, 2)) / 2))
    assert purity(ids, labels) == pytest.approx((3 + 2) / 6)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_names_of_clusters_and_classes_do_not_matter(seed):
    g = torch.Generator().manual_seed(seed)
    ids, labels = torch.randint(6, (50,), generator=g), torch.randint(-1, 4, (50,), generator=g)
    renamed = torch.randperm(6, generator=g)[ids]
    classes = torch.where(labels < 0, labels, torch.randperm(4, generator=g)[labels.clamp(min=0)] + 2)
    assert nmi(renamed, classes) == pytest.approx(nmi(ids, labels), abs=1e-9)
    assert purity(renamed, classes) == pytest.approx(purity(ids, labels))
    share = max((labels == c).sum().item() for c in range(4)) / (labels >= 0).sum().item()
    assert share - 1e-9 <= purity(ids, labels) <= 1
    assert nmi(labels.clamp(min=0), labels) == pytest.approx(1)
    assert purity(torch.zeros_like(ids), labels) == pytest.approx(share)
    assert nmi(torch.zeros_like(ids), labels) == pytest.approx(0, abs=1e-9)


def test_no_labels_no_numbers():
    for measure in (nmi, purity):
        with pytest.raises(UserError, match=r"^none of 2 rows has a label, NMI and purity need some; leave them out$"):
            measure(torch.tensor([0, 1]), torch.tensor([-1, -1]))
