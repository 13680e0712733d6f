"""Hugging Face data sets and Parquet files with images, written by `datasets` and pyarrow themselves."""

import pickle

import pytest
import torch

from data.datasets import read_dataset
from tests.helpers.forms import data_set
from tests.helpers.images import class_folders
from tests.helpers.pipelines import build, equal_views, training_batches
from utils.errors import UserError

datasets = pytest.importorskip("datasets", reason="datasets is in requirements-datasets.txt")


@pytest.fixture
def folders(tmp_path):
    return class_folders(tmp_path / "folders", classes=2, each=6)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def read(path, train_dir=None, val_dir=None, **flags):
    return read_dataset("custom", str(path), train_dir, val_dir, **flags)


def write(form, data, root):
    splits = datasets.DatasetDict({"train": data, "validation": data.select(range(3, 9))})
    if form == "saved":
        splits.save_to_disk(root)
    else:
        (root / "data").mkdir(parents=True)
        for name, split in splits.items():
            split.to_parquet(root / "data" / f"{name}-00000-of-00001.parquet")
    return root


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_a_data_set_is_the_images_of_its_folders(folders, tmp_path, form):
    data, plain = read(write(form, data_set(folders), tmp_path / "x")), read(folders)
    assert data.train.classes == ["cat", "dog"]
    assert torch.equal(data.train.labels, plain.train.labels)
    assert [torch.equal(data.train.decode(i), plain.train.decode(i)) for i in range(12)] == [True] * 12
    assert data.train.lengths.tolist() == plain.train.lengths.tolist()
    assert torch.equal(data.val.decode(0), plain.train.decode(3))
    assert data.train.names[:2] == ["0", "1"]
    assert data.notes == []
    again = read(tmp_path / "x")
    assert again.train.fingerprint() == data.train.fingerprint() != data.val.fingerprint()
    copy = pickle.dumps(data.train)
    assert torch.equal(pickle.loads(copy).decode(11), plain.train.decode(11))
    assert len(copy) < 20_000, "it holds no images"


@pytest.mark.filterwarnings("ignore:.*worker processes in total")
@pytest.mark.parametrize("name", ["memory", "stream", "torchvision"])
def test_every_pipeline_makes_the_views_of_the_folders_from_a_data_set(folders, tmp_path, name):
    data, plain = read(write("saved", data_set(folders), tmp_path / "x")), read(folders)
    pairs = zip(
        training_batches(build(name, data, workers=1, batch_size=4), epoch=1),
        training_batches(build(name, plain, workers=0, batch_size=4), epoch=1),
        strict=True,
    )
    assert [equal_views(a, b) for a, b in pairs] == [True] * 3


def test_splits_are_named_by_flags(folders, tmp_path):
    root = write("saved", data_set(folders), tmp_path / "x")
    swapped = read(root, "validation", "train")
    assert (len(swapped.train), len(swapped.val)) == (6, 12)
    with pytest.raises(UserError, match="has no split dev; name one of train, validation with --val_dir"):
        read(root, None, "dev")
    data_set(folders).save_to_disk(tmp_path / "one")
    assert (len(read(tmp_path / "one").train), read(tmp_path / "one").val) == (12, None)
    with pytest.raises(UserError, match="has no splits, so train is none of them; remove --train_dir"):
        read(tmp_path / "one", "train")


def test_columns_are_named_by_flags_and_missing_ones_refused(folders, tmp_path):
    data = data_set(folders).add_column("fine", [str(i % 4) for i in range(12)]).rename_column("image", "scan")
    data.save_to_disk(tmp_path / "x")
    assert read(tmp_path / "x").train.classes == ["cat", "dog"]
    assert read(tmp_path / "x", label_column="fine").train.classes == ["0", "1", "2", "3"]
    assert read(tmp_path / "x", unlabelled=True).train.classes == []
    with pytest.raises(UserError, match="has no column scann .did you mean scan..; it has scan, label, other, fine"):
        read(tmp_path / "x", image_column="scann")
    with pytest.raises(UserError, match="column label of .* holds no images"):
        read(tmp_path / "x", image_column="label")


def test_labels_of_a_validation_split_are_matched_by_name(folders, tmp_path):
    data_set(folders).save_to_disk(tmp_path / "x" / "train")
    data_set(folders, ("dog", "cat")).save_to_disk(tmp_path / "x" / "val")
    data = read(tmp_path / "x")
    assert data.val.labels.tolist() == [1 - label for label in data.train.labels.tolist()]


def test_a_parquet_file_with_images_and_missing_labels(folders, tmp_path):
    data_set(folders, label=[None, -1, *[1] * 10]).to_parquet(tmp_path / "x.parquet")
    data = read(tmp_path / "x.parquet")
    assert data.train.labels.tolist() == [-1, -1, *[1] * 10]
    assert data.train.decode(0).shape == (3, 16, 20)


def test_bad_images_of_a_data_set_are_named_and_left_out(folders, tmp_path):
    content = [row["image"] for row in data_set(folders).cast_column("image", datasets.Image(decode=False))]
    content[2]["bytes"], content[5] = content[2]["bytes"][:200], None
    data_set(folders, image=content).save_to_disk(tmp_path / "x")
    with pytest.raises(UserError, match=r"2 of 12 images in .*x are not readable images \(2, 5\); repair or remove"):
        read(tmp_path / "x")
    data = read(tmp_path / "x", on_bad_image="skip")
    assert data.train.names == [str(i) for i in range(12) if i not in (2, 5)]
    assert list(data.bad.values())[1] == "zero bytes"
    assert torch.equal(data.train.decode(4), read(folders).train.decode(6))


def test_a_name_of_the_hub_without_a_network_is_one_line(monkeypatch):
    def no_network(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'somebody/images' on the Hub\n(offline)")

    monkeypatch.setattr("datasets.load_dataset", no_network)
    with pytest.raises(UserError, match="hf://datasets/somebody/images cannot be loaded .*; check the name and") as e:
        read("hf://datasets/somebody/images")
    assert len(str(e.value).splitlines()) == 1


def test_a_name_of_the_hub_is_asked_for_once_and_its_splits_found(folders, monkeypatch):
    asked = []
    splits = datasets.DatasetDict({"train": data_set(folders), "test": data_set(folders)})
    monkeypatch.setattr("datasets.load_dataset", lambda name: asked.append(name) or splits)
    data = read("hf://datasets/somebody/photos")
    assert (asked, len(data.train), len(data.val)) == (["somebody/photos"], 12, 12)


def test_a_damaged_data_set_is_one_line(folders, tmp_path):
    data_set(folders).save_to_disk(tmp_path / "x")
    (tmp_path / "x" / "data-00000-of-00001.arrow").write_bytes(b"ARROW1")
    with pytest.raises(UserError, match="x cannot be loaded by datasets .*; write or copy it again") as e:
        read(tmp_path / "x")
    assert len(str(e.value).splitlines()) == 1


def test_the_libraries_are_named_where_they_are_absent(folders, tmp_path, monkeypatch):
    data_set(folders).save_to_disk(tmp_path / "x")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match="needs the library datasets .*: pip install -r requirements-datasets.txt"):
        read(tmp_path / "x")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="Parquet files need pyarrow .*: pip install -r requirements-datasets.txt"):
        read(tmp_path / "x.parquet")


@pytest.mark.parametrize("form", ["torch", "numpy", "pandas"])
def test_the_output_format_of_a_saved_data_set_changes_nothing(folders, tmp_path, form):
    plain = data_set(folders).cast_column("label", datasets.Value("int64"))
    for number, labels in enumerate((plain, plain.cast_column("label", datasets.Value("string")))):
        expected = read(write("saved", labels, tmp_path / f"plain{number}"))
        formatted = read(write("saved", labels.with_format(form), tmp_path / f"formatted{number}"))
        assert datasets.load_from_disk(tmp_path / f"formatted{number}")["train"].format["type"] == form
        assert formatted.train.classes == expected.train.classes
        assert torch.equal(formatted.train.labels, expected.train.labels)
        assert torch.equal(formatted.val.labels, expected.val.labels)
        assert torch.equal(formatted.train.decode(3), expected.train.decode(3))


def test_columns_that_an_output_format_leaves_out_are_found(folders, tmp_path):
    plain = data_set(folders)
    found = read(write("saved", plain.with_format("torch", columns=["other"]), tmp_path / "x"))
    assert found.train.classes == ["cat", "dog"]
    assert found.train.labels.tolist() == plain["label"][:]
