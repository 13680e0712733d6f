"""The report of a run: its structure, what a damaged or older folder gives, what names may do, how large it may be."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evaluation.report_data import write_points
from runs.folder import create_run_folder, release_folders
from runs.report import REPORT, RunReport, attempt_report, report_page, write_report
from tests.helpers.commands import ROOT, plan_of
from tests.helpers.disk import largest_file
from tests.helpers.images import read
from tests.helpers.report import NASTY, Page, run_folder
from utils.errors import UserError

PROGRAM = "python3 train.py"
CHANGED = {"--epochs": (10, 100), "--crop_scale": ([0.3, 1.0], [0.08, 1.0])}


def test_page_has_every_part_and_needs_no_network(tmp_path):
    folder = run_folder(tmp_path)
    (folder / "summary.json").write_text(json.dumps({"loss": 1.41, "seconds": 3725.0}))
    (folder / "backbone.safetensors").write_bytes(b"")
    (folder / "alarms.json").write_text(json.dumps({"alarms": [
        {"name": "collapse", "step": 7, "value": 0.1, "threshold": 0.3, "text": "the deviation is 0.1", "over": None}
    ]}))  # fmt: skip
    text = report_page(folder, PROGRAM, CHANGED)
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len({*ids})
    assert [a["href"] for a in page.of("a")] == [f"#{i}" for i in ids if i not in ("tip", "data")]
    assert page.text("h2").split("  ")[0].startswith("Curves Nearest neighbours Embedding Alarms Settings")
    for words in ("kNN 20", "55.9 %", "1 h 2 min", "the deviation is 0.1", "0.08 1", "1 of 2 neighbours"):
        assert words in page.text(), words
    assert "python3 train.py digits test_resnet.r160_in1k" in page.text("code")
    assert "trained_models/r/backbone.safetensors" in page.text("code")
    assert "http" not in text.replace("http://www.w3.org/2000/svg", ""), "nothing is loaded from elsewhere"
    addresses = [a[name] for _, a in page.elements for name in ("src", "href") if name in a]
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert page.data()["curves"][0]["series"][0]["points"][0] == [0, 2.0]
    assert len(page.data()["points"]["picture-2"]["name"]) == 30
    tiles = [a for a in page.of("span") if "tile" in a.get("class", "") and "tabindex" in a]
    assert [a["aria-label"] for a in tiles] == ["a.png, cat", "b.png, cat", "c.png, dog"]
    assert [a["tabindex"] for a in tiles] == ["0", "-1", "-1"], "one stop of the tab key"


def test_names_are_escaped_wherever_they_stand(tmp_path):
    """A name of a class, a file, a run, a flag or an alarm is text, and never an element or the end of one."""
    folder = run_folder(tmp_path, name="<b onclick=alert(3)>")
    for file in ("neighbours.json", "embedding.json"):
        text = (folder / file).read_text().replace('"a.png"', '"A"').replace('"x"', '"a.png"')
        (folder / file).write_text(text.replace('"a.png"', json.dumps(NASTY)).replace('"cat"', json.dumps(NASTY)))
    args = json.loads((folder / "args.json").read_text())
    args["argv"] += [NASTY]
    args["flags"]["name"] = args["machine"] = NASTY
    (folder / "args.json").write_text(json.dumps(args))
    alarm = {"name": NASTY, "step": 0, "text": NASTY, "over": None}
    (folder / "alarms.json").write_text(json.dumps({"alarms": [alarm]}))
    page = Page(report_page(folder, PROGRAM, {"--name": (NASTY, NASTY)}))
    assert len(page.of("script")) == 2, "the page's own"
    assert not page.of("b")[1:], "only that of the tooltip"
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.data()["points"]["picture-2"]["classes"][0] == NASTY, "shown as it is"
    assert page.text("code").count(NASTY) == 1


def test_sheet_that_is_no_picture_is_left_out(tmp_path):
    folder = run_folder(tmp_path)
    content = json.loads((folder / "neighbours.json").read_text())
    content["sheet"] = '"); } body { display: none } x { y: url("'
    (folder / "neighbours.json").write_text(json.dumps(content))
    text = report_page(folder, PROGRAM, {})
    assert "display: none }" not in text
    assert "Nearest neighbours" not in text


@pytest.mark.parametrize("damage", ["args.json", "metrics.csv", "embedding.json", "neighbours.json", "only args"])
def test_folder_without_some_files_or_with_damaged_ones_gives_a_page(tmp_path, damage):
    folder = run_folder(tmp_path)
    if damage == "only args":
        for path in folder.iterdir():
            if path.name != "args.json":
                path.unlink()
    elif damage == "metrics.csv":
        (folder / damage).write_text("a,b\n1,2\n")
    else:
        (folder / damage).write_text("{")
    write_report(folder, PROGRAM, {})
    page = Page((folder / REPORT).read_text())
    assert page.of("h1")
    assert ("cannot be read" in page.text("p")) is (damage == "metrics.csv")
    assert ("--epochs 10" in page.text("code")) is (damage != "args.json")


def test_pictures_of_an_earlier_version_are_shown_as_they_are(tmp_path):
    folder = run_folder(tmp_path)
    (folder / "embedding.json").unlink()
    for name in ("embedding", "neighbours", "curves", "confusion"):
        (folder / f"{name}.png").write_bytes(b"png")
    page = Page(report_page(folder, PROGRAM, {}))
    assert [a["alt"] for a in page.of("img")] == ["Embedding (embedding.png)", "Confusion matrix (confusion.png)"]


def test_state_of_a_run(tmp_path):
    folder = run_folder(tmp_path, steps=30)
    assert "step 30 of 500" in Page(report_page(folder, PROGRAM, {})).text("span")
    (folder / "post_mortem.json").write_text(json.dumps({"what": "the loss is not finite", "step": 28, "lr": 0.1,
        "noticed_at_step": 30, "last_finite": {"loss": 1.5}, "indices": list(range(50))}))  # fmt: skip
    page = Page(report_page(folder, PROGRAM, {}))
    assert "ended at step 28 of 500" in page.text("span")
    assert "the loss is not finite at step 28" in page.text("p")
    (folder / "summary.json").write_text('{"loss": 1}')
    assert "finished" not in Page(report_page(folder, PROGRAM, {})).text("span"), (
        "a run that was made longer has the summary of the shorter one"
    )
    (folder / "metrics.csv").write_text("step,loss\n499,1\n")
    assert "finished" in Page(report_page(folder, PROGRAM, {})).text("span")


def test_page_of_an_evaluation_has_the_table(tmp_path):
    rows = {NASTY: {"scores": {"knn_20": 81.25}}, "b": {"scores": {"logistic/mean": 1.0}}}
    (tmp_path / "summary.json").write_text(json.dumps(rows))
    (tmp_path / "args.json").write_text(json.dumps({"argv": ["digits"], "flags": {"dataset": "digits"}}))
    (tmp_path / "metrics.csv").write_text("step,a\n0,1\n")
    page = Page(report_page(tmp_path, PROGRAM, {}))
    assert page.text("th").split("flag")[0].split() == ["knn_20", "logistic/mean", *NASTY.split(), "b"]
    assert page.text("td").split() == ["81.25", "-", "-", "1"]
    (tmp_path / "table.json").write_text(json.dumps({"kind": "table", "lines": [["", "kNN 20"], ["net", "81.2"]]}))
    assert page.data()["curves"] == []
    assert "kNN 20" in Page(report_page(tmp_path, PROGRAM, {})).text("th")


def test_page_is_bounded(tmp_path, monkeypatch):
    """Long histories, many alarms, long names and large pictures end in a page of limited size, which says so."""
    folder = run_folder(tmp_path)
    columns = [f"c{i}" for i in range(100)]
    lines = [",".join([str(step), *["0.123456789"] * 100]) for step in range(1000)]
    (folder / "metrics.csv").write_text("\n".join([",".join(["step", *columns]), *lines]) + "\n")
    alarm = {"name": "a" * 100, "step": 1, "text": "b" * 200, "over": None}
    (folder / "alarms.json").write_text(json.dumps({"alarms": [alarm] * 10_000}))
    for i in range(10):
        (folder / f"net{i}_confusion.png").write_bytes(bytes(900_000))
    args = json.loads((folder / "args.json").read_text())
    args["argv"] = ["x" * 50] * 10_000
    (folder / "args.json").write_text(json.dumps(args))
    text = report_page(folder, PROGRAM, {})
    assert 7_000_000 < len(text) < 9_000_000
    assert "leaves out net6_confusion.png" in " ".join(text.split())


def test_report_that_fails_is_a_line_and_leaves_the_last_page(tmp_path, monkeypatch, capsys):
    folder = run_folder(tmp_path)
    attempt_report(folder, PROGRAM, {})
    before = (folder / REPORT).read_text()
    with largest_file(2000):
        attempt_report(folder, PROGRAM, {"--lr": (1, 2)})
    assert (folder / REPORT).read_text() == before
    assert not list(folder.glob(".*.part"))
    monkeypatch.setattr("runs.report.panels", lambda rows: 1 / 0)
    attempt_report(folder, PROGRAM, {})
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"  warning: {REPORT} was not written: cannot write")
    assert second == f"  warning: {REPORT} was not written: ZeroDivisionError: division by zero"
    with pytest.raises(ZeroDivisionError):
        write_report(folder, PROGRAM, {})


def test_page_names_no_folder_of_the_machine(tmp_path):
    folder = run_folder(tmp_path)
    args = json.loads((folder / "args.json").read_text())
    (folder / "backbone.safetensors").write_bytes(b"")
    text = report_page(folder, PROGRAM, {})
    assert str(tmp_path) not in text
    assert str(ROOT) not in text
    args["flags"]["output"] = str(tmp_path)  # as it was typed: the code to load the file leaves it out
    (folder / "args.json").write_text(json.dumps(args))
    assert "load_file('r/backbone.safetensors')" in Page(report_page(folder, PROGRAM, {})).text("code")


def test_report_of_a_run_is_written_after_the_epochs_that_are_evaluated(tmp_path):
    folder = run_folder(tmp_path)
    _, plan = plan_of("simclr", "--knn_every", "2")
    report, written = RunReport(folder, PROGRAM, {}, plan), []
    assert report.to_resume == f"{PROGRAM} --resume {folder}"
    for rank_zero in (False, True):
        for epoch in range(4):
            (folder / REPORT).unlink(missing_ok=True)
            trainer = SimpleNamespace(current_epoch=epoch, is_global_zero=rank_zero)
            report.on_train_epoch_start(trainer, None)
            written += [epoch] * (folder / REPORT).exists()
    assert written == [2], "the epochs are counted from 0: after two of them"
    (folder / REPORT).unlink(missing_ok=True)
    report.on_exception(SimpleNamespace(is_global_zero=True), None, UserError("x"))
    assert (folder / REPORT).exists()


def test_page_does_not_stand_in_the_way_of_a_run_that_starts_again(tmp_path):
    folder = run_folder(tmp_path)
    (folder / "embedding.json").unlink()
    write_report(folder, PROGRAM, {})
    assert create_run_folder(str(tmp_path), "r") == folder
    release_folders()
    assert not (folder / REPORT).exists()


def test_points_of_one_place_are_drawn(tmp_path):
    """Equal features have equal points; the page has numbers all the same."""
    folder = run_folder(tmp_path)
    write_points(folder / "embedding.json", np.zeros((4, 2)), torch.full((4,), -1), read().train, range(4), [], "PCA")
    assert Page(report_page(folder, PROGRAM, {})).data()["points"]["picture-2"]["x"] == [0.0] * 4
