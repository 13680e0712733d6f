"""The Trainer's surroundings."""

import logging
import warnings

from runs.trainer import expected_messages_hidden, slurm_without_requeueing
from tests.helpers.runs import slurm_job


def test_slurm_job_requeues_nothing_by_itself_and_torchrun_comes_first(monkeypatch):
    assert slurm_without_requeueing() == []
    slurm_job(monkeypatch)
    assert [e.auto_requeue for e in slurm_without_requeueing()] == [False]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert slurm_without_requeueing() == []


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
