"""Versions, commit and machine behind a result."""

import subprocess

import torch

from tests.helpers.commands import ROOT
from utils.provenance import provenance


def test_provenance_names_versions_and_commit():
    facts = provenance()
    assert facts["packages"]["torch"] == torch.__version__.split("+")[0]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert facts["commit"].startswith(head.stdout.strip()) or facts["commit"] == "unknown"
    assert facts["threads"] == torch.get_num_threads()
