"""NumPy files: shapes, labels, mapping, and arrays that hold no images."""

import pickle

import numpy as np
import pytest
import torch

from data.datasets import read_dataset
from tests.helpers.pipelines import build, equal_views, training_batches
from utils.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 16, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3


def read(path, **flags):
    return read_dataset("custom", str(path), None, None, **flags)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW", "NHW1", "N1HW"])
def test_an_array_is_mapped_in_every_layout(tmp_path, layout):
    gray = PIXELS[..., :1]
    array = {"NHWC": PIXELS, "NCHW": PIXELS.transpose(0, 3, 1, 2), "NHW": gray[..., 0], "NHW1": gray,
             "N1HW": gray.transpose(0, 3, 1, 2)}[layout]  # fmt: skip
    np.save(tmp_path / "x.npy", array)
    images = read(tmp_path / "x.npy").train
    expected = PIXELS if "NC" in layout or layout.endswith("C") else gray.repeat(3, axis=3)
    assert torch.equal(images.decode(5), torch.from_numpy(expected[5]).permute(2, 0, 1))
    assert images.sizes().tolist() == [[20, 16]] * 12
    assert images.labels.tolist() == [-1] * 12
    assert images.names[11] == "11"
    copy = pickle.dumps(images)
    assert len(copy) < 3000, "it holds no pixels"
    assert torch.equal(pickle.loads(copy).decode(5), images.decode(5))


def test_labels_lie_beside_an_array_and_validation_arrays_refer_to_them(tmp_path):
    np.save(tmp_path / "train.npy", PIXELS)
    np.save(tmp_path / "train_labels.npy", LABELS)
    np.save(tmp_path / "val_images.npy", PIXELS[:3])
    np.save(tmp_path / "val_labels.npy", LABELS[:3, None])
    data = read_dataset("custom", str(tmp_path), None, "val_images.npy")
    assert (data.train.labels.tolist(), data.train.classes) == (LABELS.tolist(), ["0", "1", "2"])
    assert data.val.labels.tolist() == LABELS[:3].tolist()
    assert read(tmp_path, unlabelled=True).train.labels.tolist() == [-1] * 12


def test_fingerprint_of_an_array_changes_with_pixels_and_labels(tmp_path):
    def fingerprint(pixels, labels):
        np.save(tmp_path / "x.npy", pixels)
        np.save(tmp_path / "x_labels.npy", labels)
        return read(tmp_path / "x.npy").train.fingerprint()

    first = fingerprint(PIXELS, LABELS)
    assert first == fingerprint(PIXELS, LABELS)
    assert len({first, fingerprint(PIXELS ^ 1, LABELS), fingerprint(PIXELS, LABELS[::-1])}) == 3


@pytest.mark.parametrize(
    "name", ["train_images images train_labels labels val_images val_labels", "x_train y_train x_test y_test"]
)
def test_an_npz_file_holds_both_splits(tmp_path, name):
    arrays = dict.fromkeys(name.split(), LABELS) | {n: PIXELS for n in name.split() if "images" in n or n[0] == "x"}
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    data = read(tmp_path / "x.npz")
    assert (len(data.train), len(data.val), data.classes) == (12, 12, 3)
    assert torch.equal(data.val.decode(7), torch.from_numpy(PIXELS[7]).permute(2, 0, 1))


def test_arrays_in_an_npz_file_are_named_by_flags(tmp_path):
    np.savez(tmp_path / "x.npz", a=PIXELS, b=LABELS, floats=PIXELS / 255)
    data = read(tmp_path / "x.npz", image_column="a", label_column="b")
    assert (data.classes, data.val) == (3, None)
    with pytest.raises(UserError, match="--image_column names the one array of .*; remove --val_dir"):
        read_dataset("custom", str(tmp_path / "x.npz"), None, "b", image_column="a", label_column="b")
    with pytest.raises(UserError, match="has no array of images; it has a, b, floats: name one with --image_column"):
        read(tmp_path / "x.npz")
    with pytest.raises(UserError, match="array floats has numbers of type float64; convert its pixels to uint8"):
        read(tmp_path / "x.npz", image_column="floats")


@pytest.mark.filterwarnings("ignore:.*worker processes in total")
@pytest.mark.parametrize("name", ["memory", "stream", "torchvision"])
def test_every_pipeline_reads_a_mapped_array(tmp_path, name):
    np.save(tmp_path / "x.npy", PIXELS)
    np.savez(tmp_path / "x.npz", images=PIXELS)
    mapped, in_memory = (read(tmp_path / f"x.{ending}") for ending in ("npy", "npz"))
    pairs = zip(
        training_batches(build(name, mapped, workers=1, batch_size=4)),
        training_batches(build(name, in_memory, workers=0, batch_size=4)),
        strict=True,
    )
    assert [equal_views(a, b) for a, b in pairs] == [True] * 3


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (PIXELS.astype(np.uint16), "has numbers of type uint16; convert its pixels to uint8"),
        (
            np.zeros((4, 8, 8, 13), np.uint8),
            r"has the shape \(4, 8, 8, 13\); images have .*: choose or merge",
        ),
        (np.zeros((4, 8), np.uint8), r"has the shape \(4, 8\)"),
        (np.zeros((0, 8, 8), np.uint8), r"has the shape \(0, 8, 8\)"),
        (np.array([{}]), "cannot be read as an array"),
    ],
)
def test_an_array_that_holds_no_images_is_one_line(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(UserError, match=message) as e:
        read(tmp_path / "x.npy")
    assert len(str(e.value).splitlines()) == 1


def test_damaged_files_and_flags_without_effect_are_one_line(tmp_path):
    np.save(tmp_path / "x.npy", PIXELS)
    for flags, message in (
        ({"on_bad_image": "skip"}, "--on_bad_image skip has no effect on arrays"),
        ({"label_column": "a"}, "--label_column has no effect on .*x.npy, which is one array"),
    ):
        with pytest.raises(UserError, match=message):
            read(tmp_path / "x.npy", **flags)
    np.save(tmp_path / "x_labels.npy", np.zeros((12, 5)))
    with pytest.raises(UserError, match=r"x_labels.npy has the shape \(12, 5\); 12 images have \(12,\) labels"):
        read(tmp_path / "x.npy")
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(whole[:-100])
    with pytest.raises(UserError, match="x.npy cannot be read as an array"):
        read(tmp_path / "x.npy")
    (tmp_path / "x.npz").write_bytes(b"PK cut off")
    with pytest.raises(UserError, match="x.npz cannot be read as arrays"):
        read(tmp_path / "x.npz")
