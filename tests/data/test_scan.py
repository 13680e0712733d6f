"""The search for image files: links without an end, what may not be read, and formats that are not read."""

import errno
import os

import pytest

from data import scan
from data.datasets import read_dataset
from data.folder import read_folder
from data.scan import find_images
from tests.helpers.images import class_folders, write_image
from utils.errors import UserError


@pytest.fixture(autouse=True)
def no_library(monkeypatch):
    """As where neither AVIF nor HEIF can be read."""
    monkeypatch.setattr(scan, "read_endings", lambda: scan.ENDINGS)
    monkeypatch.setattr(scan, "unread_endings", lambda: {".avif", ".heic", ".heif"})


def refused(root):
    """The message, of one line, with which a folder is refused."""
    with pytest.raises(UserError) as e:
        read_folder(root)
    assert len(str(e.value).splitlines()) == 1
    return str(e.value)


def test_find_images_gives_names_lengths_and_times_in_order(tmp_path):
    write_image(tmp_path / "c" / "b.png")
    write_image(tmp_path / "c" / "a" / "z.PNG")
    (tmp_path / "c" / "x.txt").write_text("")
    (tmp_path / "c" / "x.HEIC").write_bytes(b"")
    found = find_images(tmp_path, "c")
    assert [file.name for file in found.files] == ["c/a/z.PNG", "c/b.png"]
    facts = (tmp_path / "c" / "b.png").stat()
    assert found.files[1][1:] == (facts.st_size, facts.st_mtime_ns)
    assert found.unread == ["c/x.HEIC"]


@pytest.mark.parametrize("target", [".", "..", "../..", "/"])
def test_read_folder_refuses_a_link_without_an_end(tmp_path, target, monkeypatch):
    root = class_folders(tmp_path / "x" / "train")
    (root / "c1" / "again").symlink_to(target)
    searched, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: searched.append(folder) or scandir(folder))
    assert "c1/again is a link to a folder that holds it, so there is no end to it; remove it" in refused(root)
    assert len(searched) <= 4, "nothing outside of the folder is searched"


def test_read_folder_refuses_an_unlabelled_folder_that_links_to_itself(tmp_path):
    write_image(tmp_path / "0.png")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "up").symlink_to(tmp_path)
    assert "up is a link to a folder that holds it" in refused(tmp_path)


def test_read_folder_refuses_a_link_to_itself(tmp_path):
    root = class_folders(tmp_path / "x")
    (root / "c0" / "a.png").symlink_to("a.png")
    assert "a.png cannot be read (Too many levels of symbolic links); remove it" in refused(root)


@pytest.mark.parametrize("name", ["c0/a.png", "c2", "c0/deep", "a.jpg", "c1/a.heic"])
def test_read_folder_names_a_link_to_what_does_not_exist(tmp_path, name):
    root = class_folders(tmp_path / "x")
    target = tmp_path / "gone" / name
    (root / name).symlink_to(target)
    assert f"{root / name} is a link to {target}, which does not exist; put that back, or remove" in refused(root)
    target.parent.mkdir(parents=True)
    write_image(target) if name.endswith("png") else class_folders(target) if name == "c2" else target.write_text("")
    if name in ("c0/a.png", "c2"):
        assert len(read_folder(root)) == (13 if name == "c0/a.png" else 24)


def test_read_folder_does_not_look_at_hidden_links(tmp_path):
    root = class_folders(tmp_path / "x")
    (root / "c0" / ".a.png").symlink_to("gone.png")
    assert len(read_folder(root)) == 12


def test_read_folder_follows_two_links_to_one_folder(tmp_path):
    class_folders(tmp_path / "there", classes=1)
    for name in ("a", "b"):
        (tmp_path / "x" / name).mkdir(parents=True)
        (tmp_path / "x" / name / "link").symlink_to(tmp_path / "there" / "c0")
    assert len(read_folder(tmp_path / "x")) == 12


@pytest.mark.parametrize("which", ["train", "c1"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ENAMETOOLONG])
def test_read_folder_names_a_folder_that_cannot_be_read(tmp_path, monkeypatch, which, code):
    root, scandir = class_folders(tmp_path / "train"), os.scandir

    def fails(folder):
        if str(folder).endswith(which):
            raise OSError(code, os.strerror(code), str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", fails)
    assert f"{which} cannot be read ({os.strerror(code)}); allow reading it, or remove it" in refused(root)


def test_read_folder_names_a_file_that_vanishes_while_it_is_searched(tmp_path, monkeypatch):
    root = class_folders(tmp_path / "train")
    entries = scan.entries

    class Gone:
        """An entry whose file is removed after it was listed."""

        def __init__(self, entry):
            self.name, self.path, self.is_dir, self.is_file = entry.name, entry.path, entry.is_dir, entry.is_file
            self.is_symlink = entry.is_symlink

        def stat(self):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", self.path)

    monkeypatch.setattr(scan, "entries", lambda folder: [Gone(entry) for entry in entries(folder)])
    assert ".png cannot be read (No such file or directory); do not change a folder while a run starts" in refused(root)


def test_read_dataset_counts_the_images_that_are_not_read_in_one_note(tmp_path):
    for split in ("train", "val"):
        class_folders(tmp_path / split)
    for name in ("train/c0/1.heic", "train/c0/2.HEIF", "train/3.avif", "val/c1/deep/4.avif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    data = read_dataset("custom", str(tmp_path), None, None)
    assert len(data.train) == 12
    (note,) = data.notes
    assert note.startswith(f"4 .avif, .heic, .heif files are not read here (the first is {tmp_path}/train/3.avif); pip")


def test_read_folder_of_nothing_but_unread_images_says_so(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "1.heic").write_bytes(b"")
    assert "has no images and no class folders with images (1 .heic files are not read here" in refused(tmp_path / "x")
    class_folders(tmp_path / "y")
    (tmp_path / "y" / "c2").mkdir()
    (tmp_path / "y" / "c2" / "1.avif").write_bytes(b"")
    assert "class folder" in (message := refused(tmp_path / "y"))
    assert "c2 has no images (1 .avif files are not read here" in message
    assert "convert them to JPEG); fill or remove it" in message
