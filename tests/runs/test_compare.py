"""Runs beside each other."""

import json

import pytest

from runs.compare import as_text, compare, main_results
from tests.helpers.comparisons import write_run
from utils.errors import UserError


def comparison(*folders):
    return compare([str(folder) for folder in folders])


def test_runs_that_differ_only_in_their_seed_are_one_group(tmp_path):
    runs = [write_run(tmp_path / f"a{seed}", seed, num_workers=seed) for seed in (0, 1, 2)]
    found = comparison(*runs, write_run(tmp_path / "b", lr=0.1))
    assert [(group.label, len(group.runs)) for group in found.groups] == [("simclr, lr 0.3", 3), ("simclr, lr 0.1", 1)]
    assert found.differences == {"lr": ["0.3", "0.1"]}
    assert [group.cell("knn_20") for group in found.groups] == ["62 ± 2 (3 runs)", "60"]
    assert found.groups[0].cell("loss") == "1.11 ± 0.01 (3 runs)"
    assert found.groups[1].cell("probe_acc") == "-"
    assert found.columns == ["loss", "knn_20", "queue_age"]
    assert main_results(found.columns) == ["loss", "knn_20"]
    assert found.notes == []
    names = [run.name for group in found.groups for run in group.runs]
    assert names == ["simclr, seed 0, a0", "simclr, seed 1, a1", "simclr, seed 2, a2", "simclr, seed 0, b"]


def test_text_has_differences_groups_and_runs(tmp_path):
    text = as_text(comparison(write_run(tmp_path / "a"), write_run(tmp_path / "b", method="nnclr", queue_size=40)))
    assert "note: the losses of different methods do not compare" in text
    assert any(line.split() == ["queue_size", "-", "40"] for line in text.splitlines())
    assert any(line.split() == ["nnclr", "1.1", "60"] for line in text.splitlines())
    assert any(line.startswith("nnclr, seed 0, b") for line in text.splitlines())


def test_groups_that_settings_do_not_name_are_numbered(tmp_path):
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b", only_here=1)
    assert [group.label for group in comparison(first, second).groups] == ["simclr (1)", "simclr (2)"]


def test_notes_name_what_makes_numbers_hard_to_compare(tmp_path):
    other = write_run(tmp_path / "other")
    recorded = json.loads((other / "args.json").read_text())
    recorded["plan"]["training_set"] |= {"name": "cifar10", "fingerprint": "f" * 16}
    (other / "args.json").write_text(json.dumps(recorded))
    found = comparison(write_run(tmp_path / "a", steps=20), write_run(tmp_path / "b"), other)
    notes = " | ".join(found.notes)
    assert "different training images, cifar10 (ffffffffffffffff), digits (" in notes
    assert "simclr, seed 0, a is not finished: its last row is of step 20 of 40" in notes
    assert "several runs have one seed" in notes


def test_bad_input_is_one_line(tmp_path):
    good, empty = write_run(tmp_path / "good"), write_run(tmp_path / "empty")
    (empty / "metrics.csv").write_text("step,loss\n")
    missing = write_run(tmp_path / "missing")
    (missing / "metrics.csv").unlink()
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    (evaluation / "args.json").write_text('{"argv": []}')
    damaged = write_run(tmp_path / "damaged")
    (damaged / "args.json").write_text('{"plan": {"method": 3}, "flags": {}}')
    for folder, phrase in (
        (tmp_path / "nothing", "is no run: it has no args.json"),
        (tmp_path, "is no run: it has no args.json"),
        (empty, "has no metrics yet"),
        (missing, "has no metrics yet"),
        (evaluation, "is no pretraining run: its args.json has no plan"),
        (damaged, "plan.method is int, not str"),
        (good, "is named twice"),
    ):
        with pytest.raises(UserError, match=phrase) as e:
            comparison(good, folder)
        assert "\n" not in str(e.value)


def test_values_that_are_not_finite_are_left_out(tmp_path):
    run = write_run(tmp_path / "a")
    with (run / "metrics.csv").open("a") as file:
        file.write("39,1,nan,,inf\n")
    (group,) = comparison(run).groups
    assert group.runs[0].last("loss") == pytest.approx(1.1)
    assert len(group.runs[0].points("loss")) == 4
