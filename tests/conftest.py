"""What all tests share."""

import pytest
import torch

from tests.helpers import Ranks

torch.set_num_threads(1)  # small tensors: one thread is faster than two that wait for each other


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
