"""Numbers without labels: known answers, loops in float64, what must not change them, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.helpers.networks import Largest
from utils.errors import UserError
from utils.feature_quality import (
    _squared_singular_values,
    alignment,
    alpha_req,
    embedding_std,
    quality_numbers,
    rankme,
    uniformity,
)

ALONE = [rankme, alpha_req, uniformity, embedding_std]
SHAPES = [(2, 3), (7, 7), (6, 15), (40, 6)]


def draw(n, d, seed=0):
    return torch.randn(n, d, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def orthonormal(n, k, seed=0, centred=False):
    """(n, k) orthonormal columns; centred: each has mean 0."""
    x = draw(n, k, seed)
    return torch.linalg.qr(x - x.mean(dim=0) if centred else x).Q


def with_eigenvalues(eigenvalues, n, d, seed=0):
    """(n, d) features whose covariance has these eigenvalues (up to a constant), around a mean that is not 0."""
    k = len(eigenvalues)
    return (orthonormal(n, k, seed, centred=True) * eigenvalues.sqrt()) @ orthonormal(d, k, seed + 1).T + draw(1, d)


def power_law(alpha, k):
    return torch.arange(1, k + 1, dtype=torch.double) ** -alpha


# RankMe


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("times", [1, 8], ids=["fewer rows than columns", "more"])
def test_rankme_of_k_equal_orthogonal_directions_is_k(k, times):
    x = 3 * torch.eye(k, 7).repeat(2 * times, 1)
    assert rankme(x @ orthonormal(7, 7).float()) == pytest.approx(k, rel=2e-5)


def test_rankme_worked_out_by_hand():
    """Singular values 3 and 1: shares 3/4 and 1/4."""
    expected = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert rankme(torch.tensor([[0.0, 3.0], [1.0, 0.0]])) == pytest.approx(expected, rel=1e-5)
    assert rankme(torch.tensor([[0.0, 3.0], [1.0, 0.0], [0.0, 0.0]])) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_rankme_agrees_with_a_loop_over_the_singular_values(n, d):
    x = draw(n, d) * power_law(1, d) + 1
    s = np.linalg.svd(x.numpy(), compute_uv=False)
    shares = [value / sum(s) + 1e-7 for value in s]
    assert rankme(x) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-9)


@pytest.mark.parametrize("n", [3, 2000])
@pytest.mark.parametrize("value", [0.0, 0.3, -1e30, 1e-30])
def test_constant_features_have_rank_one(n, value):
    assert rankme(torch.full((n, 64), value)) == pytest.approx(1, rel=2e-4)


def test_the_gram_matrix_is_exact_enough_to_see_a_collapse():
    x = draw(1000, 1) @ draw(1, 200) + 1e-6 * draw(1000, 200, seed=1)
    s = torch.linalg.svdvals(x)
    p = s / s.sum() + 1e-7
    assert rankme(x) == pytest.approx(float((-p * p.log()).sum().exp()), rel=1e-4)


# alpha-ReQ


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.5, 3.0])
@pytest.mark.parametrize(("n", "d"), [(60, 20), (21, 20), (12, 30)])
def test_alpha_of_a_power_law(alpha, n, d):
    x = with_eigenvalues(power_law(alpha, min(n - 1, d)), n, d)
    assert alpha_req(x) == pytest.approx(alpha, abs=1e-8)
    assert alpha_req(x.float()) == pytest.approx(alpha, abs=1e-3)


def test_alpha_worked_out_by_hand():
    """Logarithms of ranks 0, a, of eigenvalues 0, -2a (1 and 1/4): the line through both falls by 2."""
    assert alpha_req(with_eigenvalues(torch.tensor([1.0, 0.25]).double(), 9, 4)) == pytest.approx(2)


@pytest.mark.parametrize(("n", "d"), [(7, 5), (6, 15), (40, 6)])
def test_alpha_agrees_with_numpy(n, d):
    x = draw(n, d) * power_law(0.7, d) + 3
    r = min(n - 1, d)
    eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(x.numpy().T)))[::-1][:r]
    assert alpha_req(x) == pytest.approx(-np.polyfit(np.log(np.arange(1, r + 1)), np.log(eigenvalues), 1)[0], rel=1e-8)


def test_alpha_leaves_out_directions_that_only_rounding_fills():
    """Eight directions, turned into forty columns in float32, around a large mean."""
    low = with_eigenvalues(power_law(1.5, 8), 500, 8) * 20
    turned = low.float() @ orthonormal(40, 8).float().T + 5
    assert alpha_req(turned) == pytest.approx(1.5, abs=1e-3)
    assert alpha_req(F.pad(low, (0, 30))) == pytest.approx(1.5, abs=1e-8), "dead columns"


@pytest.mark.parametrize(
    "x",
    [
        torch.full((50, 8), 0.3),
        torch.zeros(3, 8),
        draw(50, 8) * 1e-7 + 5,
        draw(9, 1),
        draw(2, 8),
        draw(9, 1).repeat(1, 4),
    ],
)
def test_alpha_needs_two_eigenvalues(x):
    assert math.isnan(alpha_req(x))
    assert math.isnan(alpha_req(x.float()))


# Alignment


def test_alignment_by_hand():
    a = torch.tensor([[2.0, 0.0], [0.0, 5.0], [1.0, 0.0], [3.0, 4.0]])
    b = torch.tensor([[7.0, 0.0], [3.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    assert alignment(a, b) == pytest.approx((0 + 2 + 4 + (0.36 + 0.04)) / 4)
    assert alignment(a, torch.zeros_like(a)) == pytest.approx(1), "zeros stay where they are"


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_alignment_agrees_with_a_loop(n, d):
    a, b = draw(n, d), draw(n, d, seed=1)
    total = 0.0
    for i in range(n):
        total += sum(float(a[i, k] / a[i].norm() - b[i, k] / b[i].norm()) ** 2 for k in range(d))
    assert alignment(a, b) == pytest.approx(total / n, rel=1e-12)


# Uniformity


def naive_uniformity(x):
    total, pairs = 0.0, 0
    for i in range(len(x)):
        for j in range(len(x)):
            if i != j:
                total += math.exp(-2 * float((x[i] / x[i].norm() - x[j] / x[j].norm()).square().sum()))
                pairs += 1
    return math.log(total / pairs)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1, 1], [2, 2], [5, 5]], 0),
        ([[0, 2], [0, -1]], -8),
        ([[3, 0], [0, 1]], -4),
        ([[1, 0], [0, 1], [-1, 0], [0, -1]], math.log((4 * math.exp(-4) + 2 * math.exp(-8)) / 6)),
        ([[0, 0], [0, 0]], 0),
        ([[0, 0], [0, 9]], -2),
    ],
    ids=["one direction", "opposite", "orthogonal", "a square", "zeros", "a zero and another"],
)
def test_uniformity_by_hand(rows, expected):
    assert uniformity(torch.tensor(rows, dtype=torch.float)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_uniformity_agrees_with_a_loop_over_pairs(n, d):
    assert uniformity(draw(n, d) + 0.5) == pytest.approx(naive_uniformity(draw(n, d) + 0.5), rel=1e-12)


def test_uniformity_of_uniform_directions():
    """log E exp(4 cos - 4), and 4 cos is near normal with variance 16 / D."""
    assert uniformity(draw(1500, 400)) == pytest.approx(-4 + 8 / 400, abs=2e-3)


@pytest.mark.parametrize("at_once", [1, 38, 100, 37 * 37, 10**6])
def test_the_size_of_the_pieces_does_not_matter(at_once):
    x = draw(37, 5) + 0.5
    assert uniformity(x, at_once) == pytest.approx(uniformity(x), rel=1e-12)
    pieces = _squared_singular_values(x, x.mean(dim=0), at_once)
    torch.testing.assert_close(pieces, torch.linalg.svdvals(x - x.mean(dim=0)).square())


def test_the_matrix_of_all_pairs_is_never_made():
    x = draw(300, 4)
    with Largest() as largest:
        quality_numbers(x)
    assert largest.size == 300**2, "it fits into one piece"
    with Largest() as largest:
        uniformity(x, at_once=2000)
    assert largest.size <= 2000


# Standard deviation


def test_standard_deviation_of_a_coordinate():
    assert embedding_std(torch.cat([torch.eye(9), -2 * torch.eye(9)])) == pytest.approx(1 / 3, rel=1e-12)
    assert embedding_std(draw(2000, 64)) == pytest.approx(1 / 8, rel=0.01)
    assert embedding_std(torch.tensor([[0.0, 1.0], [0.0, -1.0]])) == pytest.approx(0.5)
    assert embedding_std(draw(1, 9).repeat(50, 1) * torch.arange(1, 51)[:, None]) == pytest.approx(0, abs=1e-15)
    assert embedding_std(torch.zeros(3, 4)) == 0


# All of them


@given(seed=st.integers(0, 2**31), n=st.integers(3, 12), d=st.integers(2, 12), scale=st.floats(1e-3, 1e3))
@settings(max_examples=40, deadline=None)
def test_order_rotation_and_scale_do_not_matter(seed, n, d, scale):
    x, y = draw(n, d, seed) + 1, draw(n, d, seed + 1) + 1
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    turn, lengths = orthonormal(d, d, seed), draw(n, 1, seed).abs() + 0.1
    before = quality_numbers(x, (x, y))

    def same(after, *names):
        assert {k: after[k] for k in names} == pytest.approx(
            {k: before[k] for k in names}, rel=1e-6, abs=1e-9, nan_ok=True
        )

    same(quality_numbers(x[order], (x[order], y[order])), *before)
    same(quality_numbers(scale * x, (scale * x, y)), *before)
    same(quality_numbers(x @ turn, (x @ turn, y @ turn)), "rankme", "alpha_req", "uniformity", "alignment")
    same(quality_numbers(lengths * x, (lengths * x, y)), "uniformity", "std", "alignment")
    same(quality_numbers(x + min(scale, 10)), "alpha_req")  # far away, small eigenvalues count as rounding
    assert alignment(y, x) == pytest.approx(before["alignment"])


@given(seed=st.integers(0, 2**31), n=st.integers(2, 12), d=st.integers(1, 12), zeros=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_numbers_stay_in_their_range(seed, n, d, zeros):
    x = torch.cat([draw(n, d, seed), torch.zeros(zeros, d)]).float()
    numbers = quality_numbers(x, (x, x.flip(0)))
    assert 1 - 1e-6 <= numbers["rankme"] <= min(len(x), d) * (1 + 1e-4), "up to the epsilon"
    assert -8 - 1e-9 <= numbers["uniformity"] <= 1e-9
    assert 0 <= numbers["std"] <= 1 / math.sqrt(d) + 1e-9
    assert 0 <= numbers["alignment"] <= 4 + 1e-9


def test_quality_collects_the_numbers_by_name_and_changes_nothing():
    x, a, b = draw(30, 5).float(), draw(4, 5, seed=1), draw(4, 5, seed=2)
    kept = x.clone()
    alone = {"rankme": rankme(x), "alpha_req": alpha_req(x), "uniformity": uniformity(x), "std": embedding_std(x)}
    assert quality_numbers(x) == alone
    assert quality_numbers(x, (a, b)) == {**alone, "alignment": alignment(a, b)}
    assert all(type(v) is float for v in quality_numbers(x, (a, b)).values())
    assert torch.equal(x, kept)


@pytest.mark.parametrize(
    "function", [*ALONE, quality_numbers, lambda x: alignment(x, x), lambda x: quality_numbers(draw(9, 4), (x, x))]
)
def test_too_few_or_broken_features_are_refused_in_one_line(function):
    for rows in (0, 1):
        with pytest.raises(UserError, match=f"^{rows} rows of features came, at least 2 are needed.*$"):
            function(torch.ones(rows, 4))
    x = torch.ones(5, 4)
    x[1, 2], x[3] = math.nan, -math.inf
    with pytest.raises(
        UserError, match=r"^2 of 5 rows of features are not finite, all must be; did training diverge\?$"
    ):
        function(x)


def test_views_of_different_images_are_refused():
    with pytest.raises(ValueError, match=r"one shape, not \(2, 3\) and \(4, 3\)"):
        alignment(draw(2, 3), draw(4, 3))
