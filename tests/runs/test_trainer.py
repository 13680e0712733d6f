"""The Trainer's surroundings."""

import logging
import warnings

from runs.trainer import expected_messages_hidden


def test_expected_messages_are_hidden_and_everything_is_put_back():
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    logger.setLevel(logging.INFO)
    filters = list(warnings.filters)
    with expected_messages_hidden():
        assert logger.level == logging.WARNING
        with warnings.catch_warnings(record=True) as caught:
            warnings.warn("The dataloader does not have many workers which may be a bottleneck.", stacklevel=1)
        assert not caught
    assert logger.level == logging.INFO
    assert warnings.filters == filters
