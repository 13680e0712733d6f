"""Versions, commit and machine behind a result."""

import platform
import subprocess

import torch

from tests.helpers.commands import ROOT
from utils.provenance import _commit, provenance


def test_provenance_names_versions_and_commit():
    facts = provenance()
    assert facts["packages"]["torch"] == torch.__version__.split("+")[0]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert facts["commit"].startswith(head.stdout.strip()) or facts["commit"] == "unknown"
    assert facts["threads"] == torch.get_num_threads()


def test_provenance_names_the_processor_and_the_gpus_that_were_used(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(
        "pathlib.Path.read_text", lambda self, **_: "processor : 0\nmodel name\t: A B 7\nmodel name : C\n"
    )
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda i: f"GPU {i}")
    facts = provenance()
    assert facts["machine"].startswith("A B 7, x86_64, ")
    assert facts["gpus"] == ["GPU 0", "GPU 1"]


def test_provenance_without_a_file_of_the_processor(monkeypatch):
    def absent(self, **_):
        raise FileNotFoundError(self)

    monkeypatch.setattr("pathlib.Path.read_text", absent)
    facts = provenance()
    assert facts["machine"].endswith("CPUs, " + platform.system())
    assert facts["gpus"] == []


def test_commit_says_when_a_file_of_any_folder_was_changed(tmp_path):
    def git(*words):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=b", *words], check=True)

    assert _commit(tmp_path) == "unknown"
    git("init", "-q")
    (tmp_path / "results").mkdir()
    files = {name: tmp_path / name for name in ("main.py", "README.md", "results/run.json")}
    for file in files.values():
        file.write_text("1")
    git("add", ".")
    git("commit", "-qm", "first")
    (tmp_path / "new.txt").touch()
    files["README.md"].write_text("2")
    files["results/run.json"].write_text("2")
    clean = _commit(tmp_path)
    assert len(clean) == 40, "prose, records and untracked files change no result"
    files["main.py"].write_text("2")
    assert _commit(tmp_path) == f"{clean}+changes"
