"""k-means: a naive twin with loops in float64, known answers, what must not change it, and what it refuses."""

import contextlib
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch.nn import functional as F

from bench import sizes
from tests.helpers.mixtures import draw, mixture
from tests.helpers.networks import Largest
from utils import kmeans as module
from utils import shares
from utils.distributed import sum_over_ranks
from utils.errors import UserError
from utils.kmeans import (
    CPU,
    KMeans,
    _assign_and_sum,
    _candidates,
    _checked,
    _reassign_empty,
    _run,
    _start,
    assign,
    kmeans,
    lloyd,
    spherical_lloyd,
)


@pytest.fixture(scope="module")
def digits():
    return torch.from_numpy(load_digits().data).float()


def facts_of(x, k=2):
    return _checked(x, k, 1, CPU)


def run_from(begin, x, iterations, iterate=lloyd):
    return _run(begin, x, facts_of(x), iterations, iterate)


def first_rows(x, k, start, seed=0):
    return _start(x, k, start, facts_of(x), torch.Generator().manual_seed(seed), CPU)


def naive_assign(x, centroids):
    ids, distances = [], []
    for row in x.tolist():
        far = [sum((a - b) ** 2 for a, b in zip(row, c, strict=True)) for c in centroids.tolist()]
        distances.append(min(far))
        ids.append(far.index(distances[-1]))
    return torch.tensor(ids), torch.tensor(distances, dtype=torch.double)


def naive_lloyd(x, centroids, iterations):
    """Centroids and objective after so many iterations, by loops; no cluster may become empty."""
    for _ in range(iterations):
        ids, _ = naive_assign(x, centroids)
        assert len(ids.unique()) == len(centroids), "an empty cluster"
        centroids = torch.stack(
            [sum(x[i] for i in range(len(x)) if ids[i] == j) / (ids == j).sum() for j in ids.unique()]
        )
    return centroids, naive_assign(x, centroids)[1].mean().item()


# Lloyd


@pytest.mark.parametrize("far", [0.0, 1000.0], ids=["around zero", "far from zero"])
@pytest.mark.parametrize(("n", "d", "k"), [(60, 3, 5), (90, 8, 7), (40, 1, 3)])
def test_every_iteration_agrees_with_loops(n, d, k, far):
    x = draw(n, d) + far
    for iterations in range(1, 5):
        centroids, objective = naive_lloyd(x.double(), x[:k].double(), iterations)
        ours = run_from(x[:k], x, iterations)
        torch.testing.assert_close(ours.centroids.double(), centroids, atol=1e-6, rtol=2e-7)
        assert ours.objective[-1] == pytest.approx(objective, rel=1e-4 if far else 1e-6)
        assert torch.equal(assign(x, ours.centroids)[0], naive_assign(x.double(), centroids)[0])
        assert ours.reseeded == 0


def test_objective_has_the_start_and_each_iteration():
    x = draw(200, 4)
    ours = run_from(x[:6], x, 5)
    expected = [naive_lloyd(x.double(), x[:6].double(), i)[1] for i in range(6)]
    assert ours.objective == pytest.approx(expected, rel=1e-6)


@given(seed=st.integers(0, 2**31), n=st.integers(8, 60), d=st.integers(1, 6), k=st.integers(2, 8), start=st.booleans())
@settings(max_examples=40, deadline=None)
def test_objective_never_rises_and_no_cluster_is_empty(seed, n, d, k, start):
    x = draw(n, d, seed)
    ours = kmeans(x, k, iterations=30, seed=seed, start="subset" if start else "kmeans++")
    assert all(b <= a + 1e-6 for a, b in itertools.pairwise(ours.objective))
    ids, distance = assign(x, ours.centroids)
    assert len(ids.unique()) == k
    assert ours.objective[-1] == pytest.approx(distance.double().mean().item(), rel=1e-6)
    assert ours.objective[-1] < ours.objective[0] or len(ours.objective) == 2 or k == n


def test_it_stops_where_no_row_changes_its_cluster():
    x = mixture(300, 4, 5, apart=20)
    ours = kmeans(x, 5, iterations=50)
    assert len(ours.objective) < 10
    assert len(kmeans(draw(500, 4), 20, iterations=3).objective) == 4, "the start and three iterations"
    on = run_from(ours.centroids, x, 1)
    torch.testing.assert_close(on.centroids, ours.centroids, atol=1e-5, rtol=0)


# Spherical k-means


def naive_spherical(x, centroids, iterations):
    """Unit centroids after so many iterations, by loops; no cluster may become empty."""
    for _ in range(iterations):
        cosines = [[sum(a * b for a, b in zip(row, c, strict=True)) for c in centroids.tolist()] for row in x.tolist()]
        ids = torch.tensor([row.index(max(row)) for row in cosines])
        assert len(ids.unique()) == len(centroids), "an empty cluster"
        sums = [sum(x[i] for i in range(len(x)) if ids[i] == j) for j in range(len(centroids))]
        centroids = torch.stack([total / total.square().sum().sqrt() for total in sums])
    return centroids


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_every_spherical_iteration_agrees_with_loops(iterations):
    x = F.normalize(draw(80, 5), dim=1)
    ours = run_from(x[:6], x, iterations, iterate=spherical_lloyd)
    torch.testing.assert_close(
        ours.centroids.double(), naive_spherical(x.double(), x[:6].double(), iterations), atol=1e-6, rtol=0
    )
    assert ours.objective[-1] <= ours.objective[0]
    assert not torch.allclose(ours.centroids, run_from(x[:6], x, iterations).centroids, atol=1e-3), "means are shorter"


def test_spherical_clusters_of_directions_are_their_mean_directions():
    """Rows at +-10 degrees of two axes: the centroids are the axes."""
    angle = torch.tensor([-10.0, 10.0, 80.0, 100.0]).deg2rad()
    x = torch.stack([angle.cos(), angle.sin()], dim=1)
    found = kmeans(x, 2, start="kmeans++", iterate=spherical_lloyd).centroids
    torch.testing.assert_close(found[found[:, 1].argsort()], torch.eye(2), atol=1e-6, rtol=0)


# The same result


@pytest.mark.parametrize("start", ["kmeans++", "subset"])
def test_a_seed_gives_one_result(digits, start):
    first = kmeans(digits, 30, iterations=8, seed=3, start=start)
    torch.manual_seed(9)
    torch.rand(7)
    kept, again = digits.clone(), kmeans(digits, 30, iterations=8, seed=3, start=start)
    assert torch.equal(again.centroids, first.centroids)
    assert again.objective == first.objective
    assert torch.equal(digits, kept)
    assert not torch.equal(kmeans(digits, 30, iterations=8, seed=4, start=start).centroids, first.centroids)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    kmeans(digits, 30, iterations=1, seed=3, start=start)
    assert torch.equal(torch.rand(3), expected), "the global generator was drawn from"


@pytest.mark.parametrize(
    ("at_once", "rows", "part"), [(1, 10**6, 10**6), (100, 5, 999), (4096, 37, 64), (10**9, 10**9, 1)]
)
def test_the_size_of_the_chunks_does_not_matter(monkeypatch, at_once, rows, part):
    x = mixture(300, 8, 10, apart=1)
    first = kmeans(x, 15, iterations=10)
    for name, value in {"AT_ONCE": {"cpu": at_once}, "ROWS": {"cpu": rows}, "SMALL": part}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(shares, "PART", part)
    again = kmeans(x, 15, iterations=10)
    torch.testing.assert_close(again.centroids, first.centroids, atol=1e-5, rtol=1e-5)
    assert again.objective == pytest.approx(first.objective, rel=1e-6)
    assert torch.equal(assign(x, again.centroids)[0], assign(x, first.centroids, at_once=77)[0])


def test_the_matrix_of_rows_and_centroids_is_never_made(monkeypatch):
    x = draw(3000, 2)
    with Largest() as largest:
        assign(x, x[:500], at_once=10_000)
    assert 9_500 <= largest.size <= 10_000
    monkeypatch.setattr(module, "AT_ONCE", {"cpu": 50_000})
    with Largest() as largest:
        kmeans(x, 500, iterations=2, start="subset")
    assert 49_500 <= largest.size <= 50_000


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_features_of_another_type_are_taken_as_float32(dtype):
    x = draw(100, 4).to(dtype)
    ours, same = kmeans(x, 5), kmeans(x.float(), 5)
    assert torch.equal(ours.centroids, same.centroids)
    assert ours.centroids.dtype == torch.float32


def test_many_rows_do_not_wear_the_means_away():
    """One float32 sum of 200,000 values would be off by 1e-5 of it."""
    x = 1 + 0.01 * draw(400_000, 1)
    x[::2] += 5
    ours = kmeans(x, 2)
    expected = torch.stack([x[1::2].double().mean(), x[::2].double().mean()])
    torch.testing.assert_close(ours.centroids[:, 0].double().sort().values, expected, atol=2e-7, rtol=0)
    variance = (x[1::2].double().var(correction=0) + x[::2].double().var(correction=0)).item() / 2
    assert ours.objective == pytest.approx([*ours.objective[:-1], variance], rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(digits):
    gpu = torch.device("cuda", 0)
    one = kmeans(digits, 30, iterations=8, device=gpu)
    assert torch.equal(kmeans(digits.to(gpu), 30, iterations=8, device=gpu).centroids, one.centroids)
    assert torch.equal(kmeans(digits.to(gpu), 30, iterations=8).centroids, kmeans(digits, 30, iterations=8).centroids)
    assert one.objective[-1] == pytest.approx(kmeans(digits, 30, iterations=8).objective[-1], rel=0.02)
    assert torch.equal(assign(digits, one.centroids, gpu)[0], assign(digits, one.centroids)[0])


# Any number of ranks


def bits(result):
    """Centroids, objectives and counts of a result, to compare to the bit."""
    return result.centroids.view(torch.int32).tolist(), [value.hex() for value in result.objective], result.reseeded


@contextlib.contextmanager
def small_parts(coordinates):
    """Parts of so few coordinates that every rank has several of a small problem."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shares, "PART", coordinates)
        patch.setattr(module, "SMALL", coordinates // 3)
        yield


def cluster_on_a_rank(rank, world, x, k, options, coordinates, in_memory=False):
    """Bits of k-means and of an assignment of all rows."""
    with small_parts(coordinates):
        rows = shares.RowsInMemory(x, CPU) if in_memory else x
        result = kmeans(rows, k, iterations=6, **options)
        ids, distance = assign(rows, result.centroids)
        return *bits(result), ids.tolist(), distance.view(torch.int32).tolist()


def equal_rows(n):
    """Rows of which many are equal and many are as far from one centroid as from another."""
    x = torch.arange(n)[:, None].remainder(torch.tensor([7, 3])).float()
    return torch.cat([x, -x, x - 3])


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("x", "k", "options", "coordinates"),
    [
        (mixture(500, 8, 5, apart=2) + 10, 12, {"seed": 3}, 200),
        (mixture(500, 8, 5, apart=2) * draw(1, 8, 9).exp() ** 9, 12, {"start": "subset"}, 200),
        (equal_rows(90), 10, {"seed": 1}, 50),
        (mixture(40, 4, 5, apart=50), 9, {}, 2**24),
        (F.normalize(mixture(500, 8, 5, apart=2), dim=1), 12, {"iterate": spherical_lloyd}, 200),
    ],
    ids=["far from zero", "coordinates of all sizes", "ties", "one part for all", "spherical"],
)
def test_centroids_and_ids_are_equal_to_the_bit_on_any_number_of_ranks(ranks, world, x, k, options, coordinates):
    one = cluster_on_a_rank(0, 1, x, k, options, coordinates)
    for in_memory in (False, True):
        for found in ranks(world).run(cluster_on_a_rank, x, k, options, coordinates, in_memory):
            assert found == one


def sums_on_a_rank(rank, world, x, centroids):
    """Bits of the sums of the rows of each cluster, and of their score."""
    with small_parts(40):
        _, sums, size, score = _assign_and_sum(x, centroids, centroids.mean(dim=0), facts_of(x))
    return sums.view(torch.int64).tolist(), size.tolist(), score.hex()


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_sums_are_equal_to_the_bit_where_floats_added_in_another_order_would_not_be(ranks, world):
    x = draw(400, 4) * 10.0 ** -torch.linspace(0, 16, 400)[:, None]
    parts = x.double().view(40, 10, 4).sum(dim=1)
    one, two = parts.cumsum(dim=0)[-1], parts.view(2, 20, 4).cumsum(dim=1)[:, -1].sum(dim=0)
    assert not torch.equal(one, two), "sums of floats depend on the number of ranks"
    centroids = torch.tensor([[9.0] * 4, [0.0] * 4])
    one = sums_on_a_rank(0, 1, x, centroids)
    assert all(found == one for found in ranks(world).run(sums_on_a_rank, x, centroids))
    ids = assign(x, centroids)[0]
    expected = torch.stack([x[ids == j].double().sum(dim=0) for j in range(2)])
    torch.testing.assert_close(torch.tensor(one[0]).view(torch.float64), expected, atol=1e-6, rtol=1e-6)


def bytes_sent_on_a_rank(rank, world, x, centroids):
    """Bytes of the tensors of which an iteration sums up ranks."""
    sent = []
    with small_parts(40), pytest.MonkeyPatch.context() as patch:
        facts = facts_of(x)
        patch.setattr(shares, "sum_over_ranks", lambda total: sent.append(total.nbytes) or sum_over_ranks(total))
        _assign_and_sum(x, centroids, centroids.mean(dim=0), facts)
    return sent


def test_an_iteration_sums_over_ranks_once_and_sends_what_the_table_of_sizes_says(ranks, monkeypatch):
    monkeypatch.setattr(sizes, "PART", 40)
    x = draw(95, 4)
    assert ranks(2).run(bytes_sent_on_a_rank, x, x[:7]) == [[sizes.sent_per_iteration(95, 4, 7)]] * 2


def reseed_on_a_rank(rank, world, x, begin):
    with small_parts(12):
        return bits(run_from(begin, x, 20))


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_empty_clusters_are_put_on_the_same_rows_on_any_number_of_ranks(ranks, world):
    x = torch.cat([mixture(100, 4, 8, apart=20), -torch.zeros(3, 4), equal_rows(20).repeat(1, 2)])
    begin = x[100:101].repeat(8, 1)
    one = reseed_on_a_rank(0, 1, x, begin)
    assert one[2] >= 7, "re-seeded"
    assert all(found == one for found in ranks(world).run(reseed_on_a_rank, x, begin))


def read_rows_on_a_rank(rank, world, x):
    """The rows that this rank has read of x."""
    read = []

    class Counted:
        shape, ndim = x.shape, 2

        def __len__(self):
            return len(x)

        def __getitem__(self, at):
            read.extend(range(len(x))[at] if isinstance(at, slice) else at.tolist())
            return x[at]

    with small_parts(60):
        kmeans(Counted(), 5, iterations=2)
    return sorted(set(read))


def test_a_rank_reads_its_share_of_the_rows_alone(ranks):
    read = ranks(3).run(read_rows_on_a_rank, mixture(200, 4, 5, apart=2))
    assert sorted(sum(read, [])) == list(range(200)), "each row by one rank"
    assert max(map(len, read)) <= 75, "15 rows of a part; 14 parts for 3 ranks"


def refused_on_a_rank(rank, world, x):
    try:
        with small_parts(30):
            kmeans(x, 4)
    except UserError as e:
        return str(e)


def test_every_rank_refuses_rows_that_one_of_them_has(ranks):
    x = draw(20, 3)
    x[19, 1] = math.nan
    assert {message[:35] for message in ranks(2).run(refused_on_a_rank, x)} == {"1 of 20 rows of features are not fi"}


# Empty clusters


def test_an_empty_cluster_is_put_on_the_farthest_row():
    """Two centroids among the rows near 0, one where no row is: it goes to 9, which is alone."""
    x = torch.tensor([[0.0], [1.0], [2.0], [3.0], [9.0]])
    ids = naive_assign(x.double(), torch.tensor([[0.5], [2.5], [100.0]]).double())[0]
    assert ids.tolist() == [0, 0, 1, 1, 1], "the third is empty"
    c, ids, means, _, reseeded = _reassign_empty(torch.tensor([[0.5], [2.5], [100.0]]), x, torch.zeros(1), facts_of(x))
    assert c.tolist() == [[0.5], [2.5], [9.0]]
    assert ids.tolist() == [0, 0, 1, 1, 2]
    assert means.tolist() == [[0.5], [2.5], [9.0]]
    assert reseeded == 1
    ours = run_from(torch.tensor([[0.5], [2.5], [100.0]]), x, 10)
    assert ours.reseeded == 1
    assert ours.objective[-1] == pytest.approx(4 * 0.25 / 5)


def test_empty_clusters_go_to_rows_that_differ():
    """The two farthest rows are equal: the second empty cluster takes the next."""
    x = torch.tensor([[0.0], [0.5], [-1.0], [7.0], [7.0], [6.0], [0.0]])
    c, ids, _, _, reseeded = _reassign_empty(torch.tensor([[0.0], [50.0], [60.0]]), x, torch.zeros(1), facts_of(x))
    assert c.tolist() == [[0.0], [7.0], [6.0]]
    assert ids.tolist() == [0, 0, 0, 1, 1, 2, 0]
    assert reseeded == 2


def test_the_last_assignment_reseeds_too():
    x = torch.tensor([[0.0], [1.0], [2.0], [3.0], [9.0]])
    begin = torch.tensor([[0.5], [2.5], [100.0]])
    ours = run_from(begin, x, 1, iterate=lambda begin, *_: KMeans(begin, [7.0], 2))
    assert ours.centroids.tolist() == [[0.5], [2.5], [9.0]]
    assert ours.objective == pytest.approx([7, 4 * 0.25 / 5])
    assert ours.reseeded == 3


def test_a_cluster_that_reseeding_robs_is_reseeded_too():
    """The third centroid takes the only row of the second, which then takes the farthest of the first."""
    x = torch.tensor([[0.0], [4.0], [10.0]])
    c, ids, _, _, reseeded = _reassign_empty(torch.tensor([[0.0], [15.0], [99.0]]), x, torch.zeros(1), facts_of(x))
    assert c.tolist() == [[0.0], [4.0], [10.0]]
    assert ids.tolist() == [0, 1, 2]
    assert reseeded == 2


def test_rows_that_only_rounding_tells_apart_do_not_keep_it():
    x = 1 + torch.arange(50)[:, None].repeat(1, 3) * 2**-23
    assert len(facts_of(x).hashes.unique()) == 50
    ours = kmeans(x, 40, iterations=5)
    assert ours.objective[-1] <= 1e-10
    assert (ours.centroids - 1).abs().max() < 1e-5
    tiny = kmeans(1e-30 * draw(50, 3), 40, iterations=5)
    assert tiny.objective[-1] == 0


# The start


@pytest.mark.parametrize("start", ["kmeans++", "subset"])
def test_a_start_is_k_rows_that_differ(start):
    x = draw(30, 3)[torch.arange(3000) % 30]
    for seed in range(5):
        begin = x[first_rows(x, 30, start, seed)]
        assert len(begin.unique(dim=0)) == 30


def test_kmeans_plus_plus_takes_a_row_of_each_of_the_clusters_that_lie_apart():
    x, labels = mixture(2000, 16, 40, apart=1000), torch.arange(2000) % 40
    for seed in range(3):
        assert len(labels[first_rows(x, 40, "kmeans++", seed)].unique()) == 40
    assert len(labels[first_rows(x, 40, "subset")].unique()) < 35


def test_a_candidate_has_the_probability_of_the_paper():
    """Three of the rows 0, 1, 3, 7 by k-means++: how often each set is drawn, beside sums over all orders.

    Row 0 first: 1, 3, 7 follow with 1, 9, 49 of 59; after that distances to the nearest count.
    """
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    expected = {}
    for a, b, c in itertools.permutations(range(4), 3):
        one = [(x[i] - x[a]).square().item() for i in range(4)]
        two = [min(one[i], (x[i] - x[b]).square().item()) for i in range(4)]
        share = one[b] / sum(one) * two[c] / sum(two) / 4
        expected[frozenset((a, b, c))] = expected.get(frozenset((a, b, c)), 0) + share
    facts, n = facts_of(x), 3000
    counts = dict.fromkeys(expected, 0)
    for seed in range(n):
        counts[frozenset(_start(x, 3, "kmeans++", facts, torch.Generator().manual_seed(seed), CPU).tolist())] += 1
    assert sum(expected.values()) == pytest.approx(1)
    for rows, share in expected.items():
        assert counts[rows] / n == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / n))


def test_candidates_drawn_together_are_as_if_drawn_one_by_one():
    """Rows 0 (chosen), 10, 10.1 and 20: two draws may keep 20 and one of the others, hardly ever both of those."""
    x = torch.tensor([[0.0], [10.0], [10.1], [20.0]])
    distance, g = x[:, 0].square(), torch.Generator().manual_seed(0)
    pairs = [sorted(_candidates(x, distance, 2, g).tolist()) for _ in range(2000)]
    assert not any(0 in rows for rows in pairs)
    assert all(1 <= len(rows) == len(set(rows)) <= 2 for rows in pairs)
    one, both = sum(p in ([1, 3], [2, 3]) for p in pairs) / 2000, sum(p == [1, 2] for p in pairs) / 2000
    # first 10 or 10.1 (202 of 602), then 20 drawn (400 of 602) and kept with 9.95^2 / 20^2; or the other way round,
    # 20 first and 10 or 10.1 drawn and kept with 10^2 / 10^2
    total = 100 + 10.1**2 + 400
    near = 200 + 2.01
    assert one == pytest.approx(
        near / total * 400 / total * (9.95**2 / 400) + 400 / total * (near - 4.02) / total, abs=0.04
    )
    assert both < 0.001


# Assignment


def test_assignment_agrees_with_loops_and_is_never_negative():
    x, centroids = draw(200, 6) + 30, draw(9, 6, seed=1) + 30
    ids, distance = assign(x, centroids)
    expected = naive_assign(x.double(), centroids.double())
    assert torch.equal(ids, expected[0])
    torch.testing.assert_close(distance.double(), expected[1], rtol=1e-5, atol=0)
    assert assign(x, x)[1].max() == 0
    assert torch.equal(assign(x, x)[0], torch.arange(200))
    assert (ids.dtype, distance.dtype) == (torch.int64, torch.float32)


def test_ties_go_to_the_lowest():
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    centroids = torch.tensor([[9.0, 9.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert assign(x, centroids)[0].tolist() == [1, 1, 1]
    assert assign(x, torch.tensor([[2.0, 0.0], [0.0, 0.0]]))[0].tolist() == [1, 0, 0]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_memory_map_is_assigned_as_a_tensor_is(tmp_path, monkeypatch, dtype):
    x = mixture(500, 8, 5, apart=3).numpy().astype(dtype)
    np.save(tmp_path / "x.npy", x)
    centroids = draw(5, 8)
    expected = assign(torch.from_numpy(x), centroids)
    monkeypatch.setattr(shares, "PART", 300)
    for mode in ("r", "r+", "c"):
        ids, distance = assign(np.load(tmp_path / "x.npy", mmap_mode=mode), centroids)
        assert torch.equal(ids, expected[0])
        assert torch.equal(distance, expected[1])


def test_no_rows_are_assigned_to_nothing():
    ids, distance = assign(torch.zeros(0, 3), torch.ones(2, 3))
    assert (len(ids), len(distance)) == (0, 0)


# Refusals


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (1, r"^k=1 clusters of 20 rows: a cluster of everything teaches nothing; choose k from 2 to 20$"),
        (0, r"^k=0 clusters of 20 rows: a cluster of everything"),
        (21, r"^k=21 clusters of 20 rows: some would be empty; choose k from 2 to 20$"),
    ],
)
def test_a_number_of_clusters_that_cannot_be_is_refused(k, message):
    with pytest.raises(UserError, match=message):
        kmeans(draw(20, 3), k)


def test_rows_that_are_not_finite_are_counted():
    x = draw(20, 3)
    x[1, 2], x[3], x[7, 0] = math.nan, -math.inf, 3e30
    with pytest.raises(
        UserError, match=r"^3 of 20 rows of features are not finite, all must be; did training diverge\?$"
    ):
        kmeans(x, 4)
    with pytest.raises(
        UserError, match=r"^3 of 20 rows of features are not finite, all must be; did training diverge\?$"
    ):
        assign(x, draw(4, 3))


def test_too_few_distinct_rows_are_refused_with_their_number():
    x = draw(6, 3).repeat(5, 1)
    x[3, 1] = -0.0
    x[9, 1] = 0.0
    x[9, [0, 2]] = x[3, [0, 2]]
    with pytest.raises(
        UserError, match=r"^30 rows of features hold 7 distinct ones, k=8 needs 8 of them; lower k to 7 or"
    ):
        kmeans(x, 8)
    assert kmeans(x, 7).objective[-1] < 1e-12
    with pytest.raises(UserError, match=r"^9 rows of features hold 1 distinct ones, .*; did training collapse\?$"):
        kmeans(torch.full((9, 4), 0.3), 2)


def test_other_mistakes_are_refused():
    x = draw(20, 3)
    with pytest.raises(UserError, match=r"^unknown choice 'random'; choose one of kmeans\+\+, subset$"):
        kmeans(x, 3, start="random")
    with pytest.raises(UserError, match=r"1 iteration or more are needed, not \(20, 3\) and 0$"):
        kmeans(x, 3, iterations=0)
    with pytest.raises(UserError, match=r"^\(N, D\) features .* not \(20, 3, 1\) and 50$"):
        kmeans(x[..., None], 3)
    with pytest.raises(
        UserError, match=r"^features of shape \(20, 3\) came for centroids of shape \(2, 4\), the widths"
    ):
        assign(x, draw(2, 4))
