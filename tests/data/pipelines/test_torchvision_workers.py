"""Worker processes of the reference pipeline."""

import pytest

from tests.helpers.pipelines import build, equal_views, training_batches


@pytest.mark.filterwarnings("ignore:.*worker processes in total")
def test_train_loader_does_not_depend_on_the_number_of_workers():
    alone, many = (list(training_batches(build("torchvision", workers=w), at_most=4)) for w in (0, 2))
    assert len(alone) == 4
    assert all(map(equal_views, alone, many))
