"""Memory settings for large, short-lived batches."""

import sys

import pytest
import torch

from data.allocator import in_large_pages, keep_freed_memory
from data.datasets import read_dataset
from data.views import ViewSpec
from tests.helpers.images import class_folders
from tests.helpers.pipelines import build, training_batches


def test_in_large_pages_keeps_a_batch_whole(tmp_path):
    """A batch of 20 MB: its ends lie beyond the pages of 2 MiB inside of it."""
    class_folders(tmp_path / "train", each=20, size=(90, 70))
    data = read_dataset("custom", str(tmp_path), None, None)
    (batch,) = training_batches(build("stream", data, [ViewSpec(224)], 2, 40))
    assert batch.views[0].nbytes > 2**24
    assert (batch.views[0].flatten(1).std(dim=1) > 0.05).all()


def test_in_large_pages_returns_its_tensor():
    for n in (1, 2**21, 2**22 + 5):
        x = torch.empty(n, dtype=torch.uint8)
        assert in_large_pages(x) is x


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_keep_freed_memory_may_be_called_again():
    keep_freed_memory()
    keep_freed_memory()
