"""What a run will take."""

from pathlib import Path

import pytest

from runs.estimate import disk_needed, free_disk
from tests.helpers.commands import plan_of


@pytest.mark.parametrize(("words", "checkpoints"), [([], 3), (["--keep_every", "2"], 3 + 5)])
def test_disk_needed_counts_kept_checkpoints(words, checkpoints):
    plan = plan_of("simclr", "--epochs", "10", *words)[1]
    assert disk_needed(plan, 1000, 70) == checkpoints * 1000 + 70


def test_free_disk_of_a_folder_that_does_not_exist_yet(tmp_path):
    assert free_disk(tmp_path / "a" / "b") == pytest.approx(free_disk(tmp_path), rel=0.2)
    assert free_disk(Path("new")) > 0
