"""The report of whole commands: its parts, and names that would run."""

import json

import pytest

import main_contrastive
import main_linear
import main_report
from tests.helpers.commands import TINY, words
from tests.helpers.report import Page, nasty_images, run_folder
from utils.errors import UserError


def page_of(folder):
    return Page((folder / "report.html").read_text())


@pytest.mark.usefixtures("no_embedding")
def test_commands_leave_a_report(tmp_path, capsys):
    """Pretraining, evaluation and main_report.py on class folders whose names are HTML."""
    nasty_images(tmp_path / "images" / "train")
    nasty_images(tmp_path / "images" / "val")
    few = ["--data_folder", str(tmp_path / "images"), "--large_size", "16", "--batch_size", "20", "--knn_k", "5"]
    main_contrastive.main(["custom", *words("simclr", tmp_path, *few)[1:], "--run_id", "r"])
    page, folder = page_of(tmp_path / "r"), tmp_path / "r"
    assert len(page.of("script")) == 2
    assert not page.of("img")
    assert "finished" in page.text("span")
    assert page.text("h2").startswith("Curves Nearest neighbours Training views Alarms")
    cells = [a for a in page.of("span") if "data-name" in a]
    assert {a["data-label"] for a in cells} >= {"<img src=x onerror=alert(1)>", '"><script>alert(2)<'}
    settings = (folder / "report.html").read_text().split('id="settings"')[1].split("<details>")[0]
    assert all(f"<code>{flag}</code>" in settings for flag in ("--epochs", "--knn_every", "--large_size"))
    assert "<code>--seed</code>" not in settings, "it is at its default"
    assert "warning" not in capsys.readouterr().out
    before = (folder / "report.html").read_text()
    for name in ("views.json", "summary.json", "report.html"):
        (folder / name).unlink()
    main_report.main([str(folder)])
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert "Training views" in before
    assert "Training views" not in page_of(folder).text()
    main_linear.main(["custom", TINY[1], *few[:2], "--pretrained_feature_extractor", str(folder), "--evaluation",
                      "knn", "pictures", "--knn_k", "5", "--baselines", "--output", str(tmp_path),
                      "--run_id", "e"])  # fmt: skip
    page = page_of(tmp_path / "e")
    assert "raw pixels" in page.text("th")
    assert "kNN 5" in page.text("th")
    assert page.text("h2").count("Nearest neighbours: ") == 3
    assert len(page.of("img")) == 3, "the confusion matrices"
    assert "--baselines" in page.text("code")


def test_report_of_a_command_that_no_version_knows_any_more(tmp_path, capsys):
    folder = run_folder(tmp_path)
    args = json.loads((folder / "args.json").read_text())
    args["argv"] += ["--no_such_flag"]
    (folder / "args.json").write_text(json.dumps(args))
    main_report.main([str(folder)])
    assert "no_such_flag" in capsys.readouterr().out
    assert "--no_such_flag" in page_of(folder).text("code")
    with pytest.raises(UserError, match="nowhere is no run: it has no args.json"):
        main_report.main([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="metrics.csv is no run: it has no args.json"):
        main_report.main([str(folder / "metrics.csv")])
    with pytest.raises(UserError, match="unknown argument|unrecognized"):
        main_report.main([str(folder), "--fast"])
