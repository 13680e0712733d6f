"""What all tests share."""

import os
import signal
import threading

import pytest
import torch

if not torch.cuda.is_available():  # then Triton's kernels run in its interpreter; Triton asks when it is imported
    os.environ["TRITON_INTERPRET"] = "1"

from tests.helpers.images import class_folders
from tests.helpers.processes import Ranks

torch.set_num_threads(1)  # small tensors: one thread is faster than two that wait for each other


LEARNED = pytest.StashKey[list]()  # rows of the table of tests/test_learning.py


def pytest_configure(config):
    config.stash[LEARNED] = []


def pytest_terminal_summary(terminalreporter, config):
    """What the slow proofs measured, one row per method."""
    if rows := config.stash[LEARNED]:
        head = ("kNN 20 on 2,000 images, seeds 0 1 2", "untrained", "trained", "least gain", "seconds")
        for row in (head, *rows):
            terminalreporter.write_line(f"{row[0]:<38}{row[1]:<20}{row[2]:<20}{row[3]:>10}{row[4]:>9}")


@pytest.fixture(autouse=True)
def default_signals():
    """Each test, and the processes that it starts, has Python's own signal handlers, also under nohup or in the
    background, where the shell lets SIGHUP and SIGINT be ignored."""

    def reset():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for name in ("SIGTERM", "SIGHUP", "SIGUSR1"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_DFL)

    if threading.current_thread() is not threading.main_thread():  # only there can handlers be set
        yield
        return
    reset()
    yield
    reset()


@pytest.fixture(autouse=True)
def environment_stays():
    """A test leaves no variable of the environment behind: a later test would start processes with it.

    What Lightning's seed_everything, OpenMP and Inductor set is taken back here; a client of Weights & Biases is ended.
    """
    before = dict(os.environ)
    yield
    if "WANDB_SERVICE" in os.environ.keys() - before.keys():
        import wandb

        wandb.teardown()
    left = {name for name in before.keys() | os.environ.keys() if before.get(name) != os.environ.get(name)}
    os.environ.update(before)
    for name in left - before.keys():
        del os.environ[name]
    left -= {"PYTEST_CURRENT_TEST", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"}
    left = {name for name in left if not name.startswith(("KMP_", "_TORCHINDUCTOR_"))}
    assert not left, f"the test left these variables of the environment changed: {sorted(left)}"


@pytest.fixture
def few(tmp_path):
    """Words that read 60 small images in class folders, 5 steps of 12 an epoch."""
    class_folders(tmp_path / "images" / "train", classes=3, each=20)
    class_folders(tmp_path / "images" / "val", classes=3, each=8, seed=50)
    return ["--data_folder", str(tmp_path / "images"), "--large_size", "16", "--batch_size", "12", "--knn_k", "5"]


@pytest.fixture
def no_embedding(request, monkeypatch):
    """Pictures take longer than these runs; the tests that look at them keep them."""
    if "pictures" not in request.keywords:
        monkeypatch.setattr("evaluation.pictures.embedding", lambda *args: None)
        monkeypatch.setattr("evaluation.pictures.curves", lambda *args: None)
        monkeypatch.setattr("evaluation.callbacks.Pictures._of_features", lambda *args: [])


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """world size -> that many gloo processes, kept for the session."""
    folder, pools = tmp_path_factory.mktemp("ranks"), {}

    def pool(world: int) -> Ranks:
        if world not in pools:
            pools[world] = Ranks(world, str(folder))
        return pools[world]

    yield pool
    for each in pools.values():
        each.close()
