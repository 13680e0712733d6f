"""The page of a comparison."""

import json
import re

from runs.compare import compare
from runs.compare_page import POINTS, _thinned, _ticks, comparison_page
from tests.helpers.comparisons import write_run

EVIL = "<script>alert(1)<|script>"


def test_page_has_a_curve_for_each_run_and_metric_and_escapes_names(tmp_path):
    runs = [write_run(tmp_path / EVIL), write_run(tmp_path / "b", 1), write_run(tmp_path / "c", lr=0.1, name=EVIL)]
    page = comparison_page(compare([str(run) for run in runs]))
    assert page.count("<script>") == 1, "the page's own"
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;|script&gt;" in page
    assert not re.search(r"https?:|@import|url\(|<link(?! rel=\"icon\" href=\"data:,\")|src=", page)
    assert len(re.findall(r'<path class="g0"', page)) == 2 * 3, "two seeds, three metrics"
    assert len(re.findall(r'<path class="g1"', page)) == 3
    assert len(re.findall(r'<button type="button" aria-pressed="true"', page)) == 2
    assert len(re.findall(r'<svg [^>]*tabindex="0"', page)) == 3
    assert "62 ± 1.4 (2 runs)" not in page
    assert "61 ± 1.4 (2 runs)" in page
    (points, *_) = re.findall(r'data-points="([^"]+)"', page)
    assert json.loads(points)[0] == [9, 4.1]


def test_thinned_curves_keep_their_ends():
    points = [(step, float(step)) for step in range(10_007)]
    some = _thinned(points)
    assert (some[0], some[-1]) == (points[0], points[-1])
    assert len(some) <= POINTS + 1
    assert _thinned(points[:3]) == points[:3]
    assert _thinned(points[:1]) == points[:1]


def test_ticks_are_round_and_cover_the_range():
    for low, high in ((0.0, 1.0), (59.2, 63.1), (3.0, 3.0), (0.0, 0.0), (-2.5e-5, 4e-5), (1e6, 2.5e6)):
        ticks = _ticks(low, high)
        assert ticks[0] <= low
        assert ticks[-1] >= high
        assert 2 <= len(ticks) <= 7
        assert ticks == sorted(set(ticks))
