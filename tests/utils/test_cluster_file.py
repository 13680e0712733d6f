"""Tests of clusters files: read as written, refused when truncated, edited, or of other images."""

import io
import json
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from tests.helpers.disk import full_disk
from tests.helpers.mutations import apply, mutations
from utils.cluster_file import ARRAYS, Clusters, _digest, check_same_images, read_clusters, write_clusters
from utils.errors import UserError


def some(ids=(0, 1, 2, 1), k=3):
    about = {"dataset": "digits", "images": 4, "fingerprint": "abc", "pca": None}
    mean, axes = np.arange(5, dtype="f4"), np.ones((5, 2), "f4")
    return Clusters(np.array(ids), np.array([2, 0]), np.eye(k, 2, dtype="f4"), mean, axes, about)


def test_read_clusters_gives_what_was_written(tmp_path):
    write_clusters(tmp_path / "deep" / "c.npz", some())
    found = read_clusters(tmp_path / "deep" / "c.npz")
    for a, b in zip(found[:-1], some()[:-1], strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    assert found.about == some().about
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["c.npz"], "nothing half-written stays"


def edited(path, name, change):
    """The same .npz with one array changed."""
    with np.load(path) as file:
        content = {key: file[key] for key in file.files}
    content[name] = change(content[name])
    np.savez(path, **{key: value for key, value in content.items() if value is not None})


def about_other(array):
    return np.array(json.dumps(json.loads(str(array)) | {"dataset": "cifar10"}))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ids", lambda x: np.where(x == 2, 0, x), "was changed after it was written"),
        ("ids", lambda x: x[:-1], "was changed after it was written"),
        ("val_ids", lambda x: x[::-1], "was changed after it was written"),
        ("centroids", lambda x: x + 1, "was changed after it was written"),
        ("about", about_other, "was changed after it was written"),
        ("pca_axes", lambda x: None, "was changed after it was written"),
        ("version", lambda x: x + 1, "has format version 2, this program reads 1; make a new file"),
        ("digest", lambda x: None, "is not a clusters file"),
    ],
)
def test_read_clusters_refuses_an_edited_file(tmp_path, name, change, message):
    path = tmp_path / "c.npz"
    write_clusters(path, some())
    edited(path, name, change)
    with pytest.raises(UserError, match=message):
        read_clusters(path)


def test_read_clusters_refuses_ids_beyond_the_clusters(tmp_path):
    write_clusters(tmp_path / "c.npz", some(ids=(0, 3, 1, 1)))
    with pytest.raises(UserError, match="has ids from 0 to 3, needs 0 to 2"):
        read_clusters(tmp_path / "c.npz")
    write_clusters(tmp_path / "c.npz", some(ids=(0, -1, 1, 1)))
    with pytest.raises(UserError, match="has ids from -1 to 1, needs 0 to 2"):
        read_clusters(tmp_path / "c.npz")


@pytest.mark.parametrize("keep", [0, 10, 400, -30])
def test_read_clusters_refuses_a_truncated_file(tmp_path, keep):
    path = tmp_path / "c.npz"
    write_clusters(path, some())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="is not a readable clusters file .* perhaps truncated"):
        read_clusters(path)


def test_read_clusters_runs_no_pickled_code(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.array([print], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as file:
        file.writestr("ids.npy", buffer.getvalue())
    with pytest.raises(UserError, match="is not a readable clusters file"):
        read_clusters(tmp_path / "c.npz")


def test_write_clusters_refuses_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*; name another file"):
        write_clusters(tmp_path / "file" / "c.npz", some())


@pytest.mark.parametrize(
    ("dataset", "images", "fingerprint", "message"),
    [
        ("cifar10", 4, "abc", "has the clusters of digits, not of cifar10; make a new file, see docs/clusterfit.md"),
        ("digits", 5, "abc", "has the clusters of 4 images, digits has 5 here"),
        ("digits", 4, "xyz", "has the clusters of other images of digits"),
    ],
)
def test_check_same_images_refuses_clusters_of_other_images(dataset, images, fingerprint, message):
    check_same_images("c.npz", some().about, "digits", 4, "abc")
    with pytest.raises(UserError, match=message):
        check_same_images("c.npz", some().about, dataset, images, fingerprint)


def forged(path, **arrays):
    """A clusters file with other arrays and the digest that fits them."""
    content = {name: getattr(some(), name) for name in ARRAYS} | {"about": np.array(json.dumps(some().about))} | arrays
    np.savez(path, version=1, digest=np.array(_digest(content)), **content)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"about": np.array("no JSON")}, "does not say whose clusters it holds"),
        ({"about": np.array("[1, 2]")}, "does not say whose clusters it holds"),
        ({"about": np.array("[" * 10**5)}, "does not say whose clusters it holds"),
        ({"about": np.array('{"dataset": "digits"}')}, "does not say whose clusters it holds"),
        ({"ids": np.array([0.5, 1])}, "has no list of cluster ids"),
        ({"ids": np.array(1)}, "has no list of cluster ids"),
        ({"val_ids": np.ones((2, 2), int)}, "has no list of cluster ids"),
        ({"centroids": np.array(1.0)}, "has no list of cluster ids"),
    ],
)
def test_read_clusters_refuses_a_forged_file(tmp_path, arrays, message):
    forged(tmp_path / "c.npz")
    assert read_clusters(tmp_path / "c.npz").about == some().about
    forged(tmp_path / "c.npz", **arrays)
    with pytest.raises(UserError, match=message):
        read_clusters(tmp_path / "c.npz")


@pytest.mark.parametrize("version", [[1, 2], "x", 1.5, [[]]])
def test_read_clusters_refuses_a_strange_version(tmp_path, version):
    write_clusters(tmp_path / "c.npz", some())
    edited(tmp_path / "c.npz", "version", lambda _: np.array(version))
    with pytest.raises(UserError, match="has format version"):
        read_clusters(tmp_path / "c.npz")


def test_check_same_images_refuses_facts_of_other_types():
    with pytest.raises(UserError, match=r"has the clusters of \[\] images, digits has 4 here"):
        check_same_images("c.npz", {"dataset": "digits", "images": [], "fingerprint": 3}, "digits", 4, "abc")


def mutated_clusters_are_refused_or_equal(changes):
    """Read a clusters file of which bytes were changed, removed or added: an error of one line, or the same content."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.npz"
        write_clusters(path, some())
        path.write_bytes(apply(changes, path.read_bytes()))
        found, message = None, ""
        try:
            found = read_clusters(path)
        except UserError as e:
            message = str(e)
    assert len(message.splitlines()) == (found is None)
    if found is not None:
        assert found.about == some().about
        for a, b in zip(found[:-1], some()[:-1], strict=True):
            np.testing.assert_array_equal(a, b)


@settings(max_examples=300, deadline=5000, derandomize=True)
@given(mutations())
def test_read_clusters_refuses_mutated_bytes_or_reads_the_same(changes):
    mutated_clusters_are_refused_or_equal(changes)


@pytest.mark.slow
@settings(max_examples=5000, deadline=5000)
@given(mutations())
def test_read_clusters_refuses_thousands_of_mutations_or_reads_the_same(changes):
    mutated_clusters_are_refused_or_equal(changes)


@pytest.mark.parametrize("broken", ["os.replace", "os.fsync", "numpy.savez_compressed"])
def test_write_clusters_on_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, broken):
    write_clusters(tmp_path / "c.npz", some())
    monkeypatch.setattr(broken, full_disk)
    with pytest.raises(UserError, match=r"cannot write .*c.npz \(No space left on device\); free some space"):
        write_clusters(tmp_path / "c.npz", some(ids=(0, 0, 0, 0)))
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]
    assert read_clusters(tmp_path / "c.npz").ids.tolist() == [0, 1, 2, 1]


def bomb(path, shape, zeros):
    """A clusters file whose ids claim a shape, with that many zero bytes behind the claim, compressed to little."""
    write_clusters(path, some())
    with zipfile.ZipFile(path) as old:
        content = {name: old.read(name) for name in old.namelist()}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in content.items():
            file.writestr(name, header.getvalue() + bytes(zeros) if name == "ids.npy" else data)


@pytest.mark.parametrize(
    ("shape", "zeros", "message"),
    [
        ((2**22,), 2**25, "claims to hold more than"),
        ((2**40,), 80, "claims 8796093022208 bytes and has 80"),
        ((2**19,), 80, "claims 4194304 bytes and has 80"),
        ((-1,), 80, "is not a readable clusters file"),
    ],
)
def test_read_clusters_refuses_a_bomb_before_it_takes_memory(tmp_path, monkeypatch, shape, zeros, message):
    bomb(tmp_path / "c.npz", shape, zeros)
    assert (tmp_path / "c.npz").stat().st_size < 2**17
    monkeypatch.setattr("utils.cluster_file.LARGEST", 2**24)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message):
            read_clusters(tmp_path / "c.npz")
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


def test_read_clusters_refuses_long_facts_and_arrays_of_another_name(tmp_path):
    forged(tmp_path / "c.npz", about=np.array("x" * 2**19))
    with pytest.raises(UserError, match="about.npy has .* bytes, more than"):
        read_clusters(tmp_path / "c.npz")
    np.savez(tmp_path / "c.npz", other=np.zeros(3))
    with pytest.raises(UserError, match="is not a clusters file"):
        read_clusters(tmp_path / "c.npz")
