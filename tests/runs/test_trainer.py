"""The Trainer's surroundings."""

import logging
import os
import warnings

import pytest
import torch

from runs.trainer import deterministic_algorithms, expected_messages_hidden, slurm_without_requeueing
from tests.helpers.runs import slurm_job
from utils.errors import UserError


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


def settings():
    cudnn, mode = torch.backends.cudnn, torch.are_deterministic_algorithms_enabled()
    return mode, cudnn.deterministic, cudnn.benchmark, os.environ.get("CUBLAS_WORKSPACE_CONFIG")


@pytest.mark.parametrize(("variable", "during"), [(None, ":4096:8"), (":16:8", ":16:8"), (":4096:2:16:8", ":4096:8")])
def test_deterministic_algorithms_are_on_inside_and_every_setting_is_put_back(monkeypatch, variable, during):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if variable:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", variable)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = settings()
    with deterministic_algorithms(False):
        assert settings() == before
    with deterministic_algorithms(True):
        assert settings() == (True, True, False, during)
    assert settings() == before
    with pytest.raises(KeyError), deterministic_algorithms(True):
        raise KeyError
    assert settings() == before


def test_deterministic_algorithms_turn_torchs_refusal_alone_into_an_error_of_one_line():
    message = "no deterministic algorithm for put_ on this device; choose"
    with pytest.raises(UserError, match=message) as e, deterministic_algorithms(True):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    assert len(str(e.value).splitlines()) == 1
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), deterministic_algorithms(True):
        torch.ones(2, 3) @ torch.ones(2, 3)
    torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
