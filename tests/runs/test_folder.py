"""The run folder."""

import pytest

from runs.folder import create_run_folder, discard_unsaved, new_run_id, temporary_on_error, write_bad_images
from utils.errors import UserError


def test_new_run_id_is_requested_or_describes_the_run():
    assert new_run_id("mine", "nnclr", "digits", "resnet18") == "mine"
    assert new_run_id(None, "nnclr", "digits", "timm/resnet18").startswith("nnclr-digits-timm_resnet18-20")
    assert len(new_run_id(None, "nnclr", "digits", "resnet18", wandb=True)) == 8


def test_create_run_folder_refuses_one_that_holds_a_run(tmp_path):
    folder = create_run_folder(str(tmp_path), "mine")
    create_run_folder(str(tmp_path), "mine")  # an empty folder holds no run
    (folder / "args.json").write_text("{}")
    with pytest.raises(UserError, match="mine already holds a run; resume it with --resume .*mine"):
        create_run_folder(str(tmp_path), "mine")


def test_create_run_folder_names_the_output_that_cannot_hold_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot create the run folder .*choose another --output"):
        create_run_folder(str(tmp_path / "file"), "x")


def fail_in(output, content):
    with temporary_on_error(output, "r") as folder:
        if content:
            (folder / "result.txt").write_text("")
        raise RuntimeError


def test_temporary_on_error_removes_only_an_empty_folder(tmp_path):
    for content in (False, True):
        with pytest.raises(RuntimeError):
            fail_in(str(tmp_path), content)
        assert (tmp_path / "r").exists() == content


def test_write_bad_images_lists_files_with_reasons(tmp_path):
    write_bad_images(tmp_path, {})
    assert not (tmp_path / "bad_images.txt").exists()
    write_bad_images(tmp_path, {"a.png": "truncated"})
    assert (tmp_path / "bad_images.txt").read_text() == "a.png\ttruncated\n"


def test_folder_of_a_run_that_saved_nothing_can_be_taken_again_or_removed(tmp_path):
    folder = tmp_path / "r"
    folder.mkdir()
    for name in ("args.json", "metrics.csv", ".metrics.csv.part"):
        (folder / name).touch()
    assert create_run_folder(str(tmp_path), "r", again=True) == folder
    with pytest.raises(UserError, match="already holds a run"):
        create_run_folder(str(tmp_path), "r")
    (folder / "last.ckpt").touch()
    discard_unsaved(folder)
    assert (folder / "args.json").exists()
    with pytest.raises(UserError, match="already holds a run"):
        create_run_folder(str(tmp_path), "r", again=True)
    (folder / "last.ckpt").unlink()
    (folder / ".metrics.csv.part").unlink()
    discard_unsaved(folder)
    assert not folder.exists()
