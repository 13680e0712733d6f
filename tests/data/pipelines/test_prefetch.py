"""Threads that make batches ahead: nothing left behind, errors where they belong."""

import threading

import pytest
import torch

from data.datasets import read_dataset
from data.pipelines.prefetch import PREFETCH, thread_pool
from data.views import ViewSpec
from tests.helpers.images import class_folders
from tests.helpers.pipelines import build, equal_views, training_batches
from utils.errors import UserError

SPECS = [ViewSpec(16, blur=0.5)]


@pytest.fixture
def images(tmp_path):
    return read_dataset("custom", str(tmp_path), class_folders(tmp_path / "x", each=20, size=(200, 200)).name, None)


def streaming(data, workers):
    return build("stream", data, SPECS, workers, batch_size=10)


def view_threads():
    return [t for t in threading.enumerate() if t.name.startswith("views")]


def test_thread_prefetch_loader_does_not_depend_on_the_number_of_threads(images):
    alone, many = (list(training_batches(streaming(images, n))) for n in (0, 2))
    assert len(alone) == 4
    assert all(map(equal_views, alone, many))
    a, b = (streaming(images, n).eval_dataloader("train", torch.device("cpu")) for n in (0, 2))
    assert all(map(equal_views, a, b))


def test_thread_prefetch_loader_counts_what_was_handed_out_and_not_what_is_ahead(images):
    loader = streaming(images, 2).train_dataloader()
    batches = iter(loader)
    next(batches)
    assert PREFETCH > 0
    assert loader.state_dict() == {"taken": 1}
    batches.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_thread_prefetch_loader_names_an_unreadable_file_and_ends_its_threads(images, workers):
    module = streaming(images, workers)
    path = images.train.root / "c1" / "3.png"
    path.write_bytes(path.read_bytes()[:2000])  # after the headers were read
    with pytest.raises(UserError, match=r"3\.png is not a readable image"):
        list(training_batches(module))
    assert not view_threads()


def test_thread_prefetch_loader_leaves_no_thread_behind(images):
    batches = iter(streaming(images, 2).train_dataloader())
    next(batches)
    assert len(view_threads()) == 2
    number = torch.get_num_threads()
    batches.close()  # as when a run stops early, and when it is dropped
    assert not view_threads()
    list(streaming(images, 2).train_dataloader())
    assert not view_threads()
    assert torch.get_num_threads() == number


def test_thread_pool_gives_each_thread_one_core_and_leaves_the_caller_its_own():
    """Threads of threads on the same cores would wait for each other, sixty times as long as they compute."""
    number = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with thread_pool(2) as submit:
            assert [submit(torch.get_num_threads).result() for _ in range(4)] == [1] * 4
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(number)


def test_thread_pool_without_threads_computes_in_the_caller_on_one_core():
    number = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with thread_pool(0) as submit:
            assert submit(torch.get_num_threads).result() == 1
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(number)


def test_thread_that_cannot_start_is_an_error_and_not_a_hang(monkeypatch):
    """The threads that have started wait for the one that has not."""
    start, started = threading.Thread.start, []

    def fail_at_the_third(thread):
        if thread.name.startswith("views"):
            started.append(thread)
            if len(started) == 3:
                raise RuntimeError("can't start new thread")
        start(thread)

    def use():
        with thread_pool(4):
            pytest.fail("a thread is missing")

    found = []

    def catch():
        try:
            use()
        except RuntimeError as e:
            found.append(e)

    monkeypatch.setattr(threading.Thread, "start", fail_at_the_third)
    watched = threading.Thread(target=catch, daemon=True)
    watched.start()
    watched.join(10)
    assert [str(e) for e in found] == ["can't start new thread"]
    assert not any(thread.is_alive() for thread in started)
