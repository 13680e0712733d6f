"""Tests of the dali pipeline, which are skipped where NVIDIA DALI is absent."""

import importlib.util

import pytest


def _has_dali() -> bool:
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # not even another of NVIDIA's packages
        return False


NO_DALI = "needs NVIDIA DALI: pip install -r requirements-dali.txt"


WITH_DALI = [pytest.mark.dali, pytest.mark.skipif(not _has_dali(), reason=NO_DALI)]


def with_dali(test):
    """A test of the dali pipeline: skipped where that is absent."""
    for mark in WITH_DALI:
        test = mark(test)
    return test
