"""Tar shards: written by WebDataset and tar itself, read from their offsets; the index; damaged shards."""

import errno
import io
import json
import os
import pickle
import signal
import subprocess
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import data.shards
from data.datasets import read_dataset
from data.shards import INDEX, MemberReader
from tests.helpers.forms import write_shards
from tests.helpers.images import class_folders
from tests.helpers.pipelines import build, equal_views, training_batches
from utils.errors import UserError


@pytest.fixture
def folders(tmp_path):
    return class_folders(tmp_path / "folders", classes=2, each=8)


def read(path, **flags):
    return read_dataset("custom", str(path), None, None, **flags)


def test_shards_of_webdataset_are_the_images_of_the_folders(folders, tmp_path):
    shards, plain = read(write_shards(folders, tmp_path / "shards")), read(folders)
    assert torch.equal(shards.train.labels, plain.train.labels)
    assert shards.train.classes == ["0", "1"]
    assert shards.train.names[:2] == ["000.tar/0000.png", "000.tar/0001.png"]
    assert [torch.equal(shards.train.decode(i), plain.train.decode(i)) for i in range(16)] == [True] * 16
    assert (tmp_path / "shards" / INDEX).is_file()
    named = read(tmp_path / "shards", label_column="kind").train
    assert named.classes == ["k0", "k1"]
    with pytest.raises(UserError, match="no sample in .* has the label kinds; correct --label_column"):
        read(tmp_path / "shards", label_column="kinds")
    assert read(tmp_path / "shards", unlabelled=True).train.labels.tolist() == [-1] * 16


@pytest.mark.filterwarnings("ignore:.*worker processes in total")
@pytest.mark.parametrize("name", ["memory", "stream", "torchvision"])
def test_every_pipeline_makes_the_views_of_the_folders_from_shards(folders, tmp_path, name):
    shards, plain = read(write_shards(folders, tmp_path / "shards")), read(folders)
    pairs = zip(
        training_batches(build(name, shards, workers=1, batch_size=4), epoch=1),
        training_batches(build(name, plain, workers=0, batch_size=4), epoch=1),
        strict=True,
    )
    assert [equal_views(a, b) for a, b in pairs] == [True] * 4


def decode_all(images):
    return [int(images.decode(i).sum()) for i in range(len(images))]


def test_shards_are_read_by_threads_and_by_processes_that_get_a_copy(folders, tmp_path):
    images = read(write_shards(folders, tmp_path / "shards")).train
    expected = decode_all(read(folders).train)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(decode_all, [images] * 4)) == [expected] * 4
    copy = pickle.dumps(images)
    assert len(copy) < 6000, "it holds no image"
    assert decode_all(pickle.loads(copy)) == expected


def test_the_index_is_made_once_and_again_when_a_shard_changes(folders, tmp_path, monkeypatch):
    made, make = [], data.shards._make
    monkeypatch.setattr(data.shards, "_make", lambda *args: made.append(1) or make(*args))
    shards = write_shards(folders, tmp_path / "shards")
    first = read(shards).train
    second = read(shards).train
    assert (len(made), first.fingerprint(), first.state()) == (1, second.fingerprint(), second.state())
    (shards / "002.tar").unlink()
    assert (len(read(shards).train), len(made)) == (12, 2)
    os.utime(shards / "001.tar", ns=(1, 1))
    assert (read(shards).train.state() != first.state(), len(made)) == (True, 3)
    (shards / INDEX).write_bytes(b"PK damaged")
    assert (len(read(shards).train), len(made)) == (12, 4)


def test_a_folder_that_cannot_be_written_to_keeps_the_index_in_memory(folders, tmp_path, monkeypatch):
    shards = write_shards(folders, tmp_path / "shards")

    def refused(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(data.shards, "FileLock", refused)
    found = read(shards)
    assert len(found.train) == 16
    assert any("cannot be kept beside them (Permission denied)" in note for note in found.notes)
    assert not (shards / INDEX).exists()


@pytest.mark.parametrize(("name", "number"), [("savez", errno.ENOSPC), ("touch", errno.EROFS)])
def test_an_index_that_cannot_be_written_is_kept_in_memory(folders, tmp_path, monkeypatch, name, number):
    """A full disk, or a folder that takes the lock and no other file, costs a note and not the run."""
    shards = write_shards(folders, tmp_path / "shards")

    def refused(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(np if name == "savez" else data.shards.Path, name, refused)
    found = read(shards)
    assert len(found.train) == 16
    assert any(f"cannot be kept beside them ({os.strerror(number)})" in note for note in found.notes)
    assert not list(shards.glob("*lookalike*"))


@pytest.mark.parametrize("killed", [False, True])
def test_a_second_process_waits_for_the_index_and_makes_it_where_the_first_is_killed(
    folders, tmp_path, monkeypatch, killed
):
    shards, make, (started, starts) = write_shards(folders, tmp_path / "shards"), data.shards._make, os.pipe()
    if (child := os.fork()) == 0:

        def slow(*args):
            os.write(starts, b"x")
            time.sleep(60 if killed else 0.5)
            return make(*args)

        status = 1
        try:
            data.shards._make = slow
            status = len(read(shards).train) != 16
        finally:
            os._exit(status)
    os.read(started, 1)
    if killed:
        os.kill(child, signal.SIGKILL)
    made = []
    monkeypatch.setattr(data.shards, "_make", lambda *args: made.append(1) or make(*args))
    found = read(shards)
    status = os.waitpid(child, 0)[1]
    assert (len(found.train), len(made), status) == (16, killed, signal.SIGKILL if killed else 0)
    assert [path.name for path in shards.glob("*lookalike*")] == [INDEX]


def test_shards_of_tar_itself_have_the_classes_of_their_folders(folders, tmp_path):
    (tmp_path / "shards").mkdir()
    names = sorted(str(path.relative_to(folders)) for path in folders.rglob("*.png"))
    subprocess.run(["tar", "-cf", tmp_path / "shards" / "all.tar", "-C", folders, *names], check=True)
    images = read(tmp_path / "shards" / "all.tar").train
    assert images.classes == ["c0", "c1"]
    assert images.names[0] == "all.tar/c0/0.png"
    assert decode_all(images) == decode_all(read(folders).train)


def test_train_and_validation_shards_lie_in_two_folders(folders, tmp_path):
    write_shards(folders, tmp_path / "train")
    write_shards(folders, tmp_path / "val")
    both = read(tmp_path)
    assert (len(both.train), len(both.val), both.val.classes) == (16, 16, ["0", "1"])


def test_a_tar_file_among_class_folders_changes_nothing(folders, tmp_path):
    (folders / "archive.tar").write_bytes(b"whatever")
    assert len(read(folders).train) == 16


@pytest.mark.parametrize("cut", [0.5, 1500, "end"])
def test_a_shard_that_was_cut_off_is_one_line(folders, tmp_path, cut):
    shards = write_shards(folders, tmp_path / "shards")
    path = shards / "001.tar"
    with tarfile.open(path) as tar:
        end = max(info.offset_data + info.size for info in tar) + 511 & ~511
    whole = path.read_bytes()
    path.write_bytes(whole[: {0.5: len(whole) // 2, 1500: 1500, "end": end}[cut]])
    with pytest.raises(
        UserError, match=r"001.tar (is cut off or damaged at byte|cannot be read as a tar archive).*"
    ) as e:
        read(shards)
    assert str(e.value).endswith("copy or write it again")
    assert len(str(e.value).splitlines()) == 1


def test_a_shard_that_is_damaged_in_a_header_is_one_line(folders, tmp_path):
    path = write_shards(folders, tmp_path / "shards", per_shard=100) / "000.tar"
    with tarfile.open(path) as tar:
        middle = list(tar)[20].offset
    content = bytearray(path.read_bytes())
    content[middle : middle + 300] = b"x" * 300
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"000.tar is cut off or damaged at byte {middle:,}; copy"):
        read(path)


def tar_of(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_strange_shards_are_one_line_each(folders, tmp_path):
    png = next(folders.rglob("*.png")).read_bytes()
    cases = {
        r"member outside of the archive, ../../x.png; pack": [("../../x.png", png)],
        r"member outside of the archive, /x.png": [("/x.png", png)],
        r"sample 1 in .* several images \(a.png, b.png\); name one of": [("1.a.png", png), ("1.b.png", png)],
        r"two images of one name, 1.png": [("1.png", png), ("2.png", png), ("1.png", png)],
        r"has no images": [("1.txt", b"text")],
        r"the label of .*x.tar/1 cannot be read": [("1.png", png), ("1.cls", b"\xff")],
    }
    for message, members in cases.items():
        with pytest.raises(UserError, match=message) as e:
            read(tar_of(tmp_path / "x.tar", members))
        assert len(str(e.value).splitlines()) == 1
    several = tar_of(tmp_path / "y.tar", [("1.a.png", png), ("1.b.png", png)])
    assert read(several, image_column="b.png").train.names == ["y.tar/1.b.png"]
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "1.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match="1.tar.gz is compressed, so no image can be read from its offset; unpack it"):
        read(tmp_path / "packed")


def test_bad_images_in_shards_are_named_and_left_out(folders, tmp_path):
    png = next(folders.rglob("*.png")).read_bytes()
    path = tar_of(tmp_path / "x.tar", [("1.png", png), ("2.png", png[:200]), ("3.png", b""), ("4.png", png)])
    with pytest.raises(UserError, match=r"2 of 4 images in .* are not readable images \(x.tar/2.png, x.tar/3.png\)"):
        read(path)
    found = read(path, on_bad_image="skip")
    assert found.train.names == ["x.tar/1.png", "x.tar/4.png"]
    assert torch.equal(found.train.decode(1), found.train.decode(0))
    assert found.bad == {str(tmp_path / "x.tar/2.png"): found.bad[str(tmp_path / "x.tar/2.png")],
                         str(tmp_path / "x.tar/3.png"): "zero bytes"}  # fmt: skip


def test_a_shard_that_changes_while_the_run_goes_on_is_named(folders, tmp_path):
    images = read(write_shards(folders, tmp_path / "shards")).train
    with open(tmp_path / "shards" / "000.tar", "ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="000.tar changed while the run went on"):
        images.decode(0)


def test_member_reader_reads_like_a_file(tmp_path):
    content = bytes(range(256))
    (tmp_path / "x").write_bytes(b"before" + content + b"after")
    with io.BufferedReader(MemberReader(str(tmp_path / "x"), 6, 256)) as file:
        assert file.read(3) == content[:3]
        file.seek(-2, os.SEEK_END)
        assert file.read() == content[-2:]
        file.seek(100)
        assert file.read(1000) == content[100:]


def test_json_is_no_image_and_names_keep_their_folders(tmp_path, folders):
    png = next(folders.rglob("*.png")).read_bytes()
    path = tar_of(
        tmp_path / "x.tar", [("a/1.json", json.dumps({"label": 4}).encode()), ("a/1.PNG", png), ("b/2.png", png)]
    )
    images = read(path, label_column="label").train
    assert (images.names[:], images.labels.tolist()) == (["x.tar/a/1.PNG", "x.tar/b/2.png"], [0, -1])
    assert np.array_equal(images.sizes(), [[16, 20]] * 2)


def test_names_that_begin_with_the_present_folder_have_their_classes(folders, tmp_path):
    (tmp_path / "shards").mkdir()
    subprocess.run(["tar", "-cf", tmp_path / "shards" / "all.tar", "--sort=name", "-C", folders, "."], check=True)
    images = read(tmp_path / "shards").train
    assert images.classes == ["c0", "c1"]
    assert images.names[0] == "all.tar/c0/0.png"
    assert decode_all(images) == decode_all(read(folders).train)
    png = next(folders.rglob("*.png")).read_bytes()
    with pytest.raises(UserError, match="two images of one name, a/1.png"):
        read(tar_of(tmp_path / "x.tar", [("a/1.png", png), ("b/1.png", png), ("././a/1.png", png)]))


def test_an_index_of_an_earlier_version_is_made_again(folders, tmp_path, monkeypatch):
    shards = write_shards(folders, tmp_path / "shards")
    monkeypatch.setattr(data.shards, "VERSION", 1)
    read(shards)
    monkeypatch.undo()
    made, make = [], data.shards._make
    monkeypatch.setattr(data.shards, "_make", lambda *args: made.append(1) or make(*args))
    read(shards)
    assert made == [1]


def test_a_link_to_a_shard_that_does_not_exist_is_refused(folders, tmp_path):
    shards = write_shards(folders, tmp_path / "shards")
    (shards / "003.tar").symlink_to(tmp_path / "gone.tar")
    with pytest.raises(UserError, match=r"003.tar is a link to .*gone.tar, which does not exist; put that back, or"):
        read(shards)
