"""Names of images for other people."""

from evaluation.image_names import caption, display_name, has_file_names, image_names
from tests.helpers.images import class_folders, read, write_image


def test_image_names_are_relative_to_the_folder_of_the_split(tmp_path):
    class_folders(tmp_path / "train", classes=2, each=1)
    images = read(str(tmp_path)).train
    assert image_names(images, "train") == ["c0/0.png", "c1/0.png"]
    assert has_file_names(images)


def test_image_names_without_files_are_numbers():
    images = read().val
    assert image_names(images, "val")[:2] == ["val/0", "val/1"]
    assert not has_file_names(images)
    assert display_name(images, 7) == "image 7"


def test_image_names_have_one_line(tmp_path):
    write_image(tmp_path / "a\nb.png")
    write_image(tmp_path / "c.png")
    images = read(str(tmp_path)).train
    assert image_names(images, "train") == ["a\\nb.png", "c.png"]
    assert display_name(images, 0) == "a\\nb.png"


def test_caption_is_the_file_name_without_its_middle():
    assert caption("holiday/2020/IMG_1.jpg") == "IMG_1.jpg"
    assert caption("x/" + "a" * 30 + "b" * 30 + ".jpg") == "aaaaaaaaaaa..bbbbbbb.jpg"
