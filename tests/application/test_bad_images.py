"""Corrupt images: excluded, listed, or the end of a run."""

import re

import pytest

import main_contrastive
from runs.callbacks import ProgressBar
from tests.helpers.commands import words
from tests.helpers.images import BAD, spoil
from tests.helpers.runs import assert_same_run, refused

pytestmark = pytest.mark.usefixtures("no_embedding")


def test_run_without_the_bad_images_equals_that_of_a_clean_folder(tmp_path, few, capsys):
    """The same run to the bit; listed; and a resumed run needs the images that it began with."""
    argv = ["custom", *words("simclr", tmp_path, *few)[1:]]
    main_contrastive.main([*argv, "--run_id", "clean"])
    root = tmp_path / "images"
    bad = [*spoil(root / "train" / "c1"), *spoil(root / "val" / "c0")]
    message = refused([*argv, "--run_id", "r"])
    assert f"{len(BAD)} of {60 + len(BAD)} files in {root / 'train'} are not readable images (c1/cut.jpg, " in message
    assert message.endswith("or pass --on_bad_image skip")
    assert not (tmp_path / "r").exists()
    capsys.readouterr()
    argv += ["--on_bad_image", "skip"]
    main_contrastive.main([*argv, "--run_id", "r"])
    assert_same_run(tmp_path / "clean", tmp_path / "r")
    printed = capsys.readouterr().out
    assert "simclr on custom: 60 images, 3 classes" in printed
    assert printed.count("are not readable images and are left out (c") == 2, "one note of each split"
    lines = (tmp_path / "r" / "bad_images.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(path) for path in bad]
    assert all(line.split("\t")[1] for line in lines)
    assert not (tmp_path / "clean" / "bad_images.txt").exists()

    run = tmp_path / "r"
    bad[0].unlink()
    main_contrastive.main(["--resume", str(run)])  # bad files may go
    image = root / "train" / "c2" / "3.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:-200])
    assert "training set changed" in refused(["--resume", str(run)])
    image.write_bytes(whole)
    main_contrastive.main(["--resume", str(run)])
    stop = ["--resume", str(run), "--on_bad_image", "stop"]
    assert "or pass --on_bad_image skip" in refused(stop)
    for path in bad[1:]:
        path.unlink()
    assert "--on_bad_image stop differs from the run's skip" in refused(stop)


@pytest.mark.parametrize("pipeline", ["stream", "torchvision"])
def test_image_damaged_during_a_run_stops_it_until_restored(tmp_path, few, monkeypatch, pipeline):
    more = ["--on_bad_image", "skip", "--pipeline", pipeline]
    argv = ["custom", *words("simclr", tmp_path, *few, *more)[1:]]
    main_contrastive.main([*argv, "--run_id", "whole"])
    image = tmp_path / "images" / "train" / "c2" / "3.png"
    content = image.read_bytes()
    original = ProgressBar.on_train_batch_end

    def damage(self, trainer, *args):
        original(self, trainer, *args)
        if trainer.global_step == 6:  # of 5 steps per epoch
            image.write_bytes(content[:-500])

    with monkeypatch.context() as m:
        m.setattr(ProgressBar, "on_train_batch_end", damage)
        message = refused([*argv, "--run_id", "r"])
    assert re.search(r"c2/3\.png is not a readable image \(.*\); .*resum", message)
    assert "training set changed" in refused(["--resume", str(tmp_path / "r")])
    image.write_bytes(content)
    main_contrastive.main(["--resume", str(tmp_path / "r")])
    assert_same_run(tmp_path / "whole", tmp_path / "r")
