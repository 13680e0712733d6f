"""Tests of the ledger: what a record holds, and a directory that cannot be made."""

import json

import pytest

from tests.helpers.images import read
from utils.errors import UserError
from utils.ledger import check_ledger, data_facts, with_definitions, write_record


def test_record_holds_scores_with_definitions_data_and_provenance(tmp_path):
    data = read()
    record = {"kind": "x", "data": data_facts("digits", data.splits()), "scores": with_definitions({"knn_20": 50.5})}
    write_record(tmp_path, "run", record)
    written = json.loads((tmp_path / "run.json").read_text())
    assert written["scores"]["knn_20"]["value"] == 50.5
    assert "20 nearest" in written["scores"]["knn_20"]["definition"]
    assert written["data"]["train"] == {"images": 1438, "fingerprint": data.train.fingerprint()}
    assert {"commit", "machine", "packages"} <= written.keys()


def test_ledger_that_cannot_be_made_is_refused_before_a_run(tmp_path):
    check_ledger(None)
    check_ledger(str(tmp_path / "new" / "ledger"))
    assert (tmp_path / "new" / "ledger").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot create the ledger .*file.* choose another --record"):
        check_ledger(str(tmp_path / "file"))
