"""The preview of a run, as a whole command."""

import re
import shutil

import pytest

import main_contrastive
from runs.preview import FILE
from tests.helpers.commands import words
from tests.helpers.runs import refused

EVIL = "<script>alert(1)<|script>"


@pytest.fixture
def evil(few, tmp_path):
    """The 60 images of `few`, with a class whose name is a script, a leak and a text file."""
    train = tmp_path / "images" / "train"
    (train / "c0").rename(train / EVIL)
    (tmp_path / "images" / "val" / "c0").rename(tmp_path / "images" / "val" / EVIL)
    shutil.copy(train / "c1" / "0.png", tmp_path / "images" / "val" / "c1" / "leak.png")
    (train / "c1" / "notes.txt").write_text("x")
    return ["--data_folder", few[1], "--large_size", "16", "--batch_size", "12"]


@pytest.mark.parametrize("method", ["nnclr", "rotnet"])
def test_preview_writes_a_page_and_leaves_no_run(tmp_path, evil, capsys, method):
    argv = words(method, tmp_path / "out", *evil, "--run_id", "r")
    argv = ["custom", *argv[1:], "--preview"]
    main_contrastive.main(argv)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [FILE]
    out, page = capsys.readouterr().out, (tmp_path / "out" / FILE).read_text()
    assert f"done: {tmp_path / 'out' / FILE}" in out
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;|script&gt;" in page
    assert not re.search(r"https?:|@import|url\(|<link(?! rel=\"icon\" href=\"data:,\")|src=\"(?!data:)", page)
    views = 2 if method == "nnclr" else 4  # RotNet: the rotations of one view
    assert page.count("<figcaption>view ") == 8 * views
    assert page.count('class="exact own"') == 8
    assert re.search(r"<figcaption>c1/\d+\.png, class c1</figcaption>", page), "images have the names of their files"
    assert "1 equal to a training image, 0 nearly equal" in page
    assert "1 .txt" in page
    for name in ("time", "step", "waiting for data", "host memory", "disk", "learning rate", "schedule"):
        assert f'<th scope="row">{name}</th>' in page, name
    assert ("queue of 300 rows is larger than the 60 images" in page) == (method == "nnclr")
    assert re.search(r"  time +under 1 min for 15 steps, without evaluation\n", out)


def test_preview_is_for_one_process(tmp_path, evil, monkeypatch):
    argv = words("simclr", tmp_path / "out", *evil)
    monkeypatch.setattr("runs.preview.launched_size", lambda: 2)
    assert "--preview is for one process, got 2" in refused(["custom", *argv[1:], "--preview"])
    assert not (tmp_path / "out").exists()
