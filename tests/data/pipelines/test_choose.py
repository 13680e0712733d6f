"""The choice of a pipeline and what building one does to the process."""

import pytest

from data.datasets import read_dataset
from data.pipelines import choose
from data.pipelines.choose import build_pipeline, choose_pipeline, worker_notes
from data.pipelines.memory import MemoryDataModule
from data.views import ViewSpec
from tests.helpers.images import class_folders, read
from utils.errors import UserError
from utils.plan import HardwareConfig


def test_choose_pipeline_takes_what_fits_in_memory_and_says_why(monkeypatch):
    assert choose_pipeline("auto", read(), 32, None, "cpu")[0] == "memory"
    monkeypatch.setattr(choose, "host_memory", lambda: 1_000_000)
    name, reason = choose_pipeline("auto", read(), 32, None, "cpu")
    assert name == "stream"
    assert "GiB" in reason


def test_choose_pipeline_takes_the_flag():
    assert choose_pipeline("memory", read(), 32, None, "cpu") == ("memory", "from the flag")


@pytest.mark.parametrize(("accelerator", "expected"), [("cpu", "stream"), ("mps", "stream"), ("cuda", "memory")])
def test_choose_pipeline_streams_large_views_without_cuda(accelerator, expected):
    """The accelerator that is passed in decides, not the machine."""
    assert choose_pipeline("auto", read(), 224, None, accelerator)[0] == expected


def test_choose_pipeline_takes_memory_with_a_cache(tmp_path):
    class_folders(tmp_path / "train")
    data = read_dataset("custom", str(tmp_path), None, None)
    name, reason = choose_pipeline("auto", data, 224, "somewhere", "cpu")
    assert name == "memory"
    assert "cached in somewhere" in reason
    assert "256x256" in reason
    with pytest.raises(UserError, match=r"--cache .* --pipeline stream"):
        choose_pipeline("stream", data, 224, "somewhere", "cpu")


def test_worker_notes_name_workers_and_cores(monkeypatch):
    monkeypatch.setattr(choose, "usable_cores", lambda: 2)
    (note,) = worker_notes("stream", 4, HardwareConfig("cuda", 4, 2, 8))
    assert "16 workers share 2 cores" in note
    assert worker_notes("stream", 4, HardwareConfig("cpu", 1, 1, 1)) == []
    assert worker_notes("memory", 16, HardwareConfig("cpu", 1, 1, 1)) == []


def test_build_pipeline_alone_sets_the_allocator(monkeypatch):
    calls = []
    monkeypatch.setattr(choose, "keep_freed_memory", lambda: calls.append(1))
    MemoryDataModule(read(), [ViewSpec(8)], 4, 0, 0, "cpu")
    assert calls == []
    build_pipeline("memory", read(), [ViewSpec(8)], 4, 0, 0, None, "cpu")
    assert calls == [1]
