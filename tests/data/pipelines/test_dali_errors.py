"""NVIDIA DALI: errors name the file or the library, and the remedy."""

import builtins
import sys

import pytest

from data.datasets import read_dataset
from data.folder import FolderImages
from data.pipelines import dali
from data.pipelines.dali import check_dali
from data.views import ViewSpec
from tests.helpers.dali import with_dali
from tests.helpers.images import class_folders, read
from tests.helpers.pipelines import build, photograph_folder, smooth_image, training_batches
from utils.errors import UserError

SPECS = [ViewSpec(48, blur=0.5, solarize=0.3, count=2), ViewSpec(24, scale=(0.05, 0.3), count=2)]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return photograph_folder(tmp_path_factory.mktemp("photographs"))


def dali_module(data, workers=2, specs=SPECS, batch_size=8):
    return build("dali", data, specs, workers, batch_size)


@with_dali
@pytest.mark.parametrize(
    ("ending", "damage", "message"),
    [
        ("jpg", lambda b: b[: len(b) // 2], r"x\.jpg is not a readable image \(image file is truncated"),
        ("png", lambda b: b[: len(b) // 2], r"x\.png is not a readable image \(image file is truncated"),
        ("png", lambda b: b[:-12], r"DALI cannot read \S+x\.png \(.+\); save it anew, or choose another --pipeline"),
        ("tif", lambda b: b[: len(b) // 2], r"x\.tif is not a readable image"),
        ("jpg", None, r"x\.jpg is not a readable image \(.*No such file"),
    ],
)
def test_train_loader_names_a_file_that_cannot_be_read(tmp_path, monkeypatch, ending, damage, message):
    """The file was damaged before the folder was read; one that changes later is refused for that."""
    monkeypatch.setattr(FolderImages, "check_unchanged", lambda self, i: None)
    root = class_folders(tmp_path / "x", each=10)
    path = root / "c1" / f"x.{ending}"
    smooth_image((60, 60), 1).save(path)
    module = dali_module(read_dataset("custom", str(tmp_path), "x", None), batch_size=5)
    whole = path.read_bytes()  # the headers were read
    if damage:
        path.write_bytes(damage(whole))
    else:
        path.unlink()
    loader = module.train_dataloader()
    with pytest.raises(UserError, match=message) as e:
        list(loader)
    assert "\n" not in str(e.value)
    path.write_bytes(whole)
    assert len(list(loader)) == 4, "it can begin again"


@with_dali
def test_train_loader_reports_an_error_that_no_file_causes(photographs, monkeypatch):
    class Full:
        def run(self, *args):
            raise RuntimeError("Critical error in pipeline:\nError in operator `x`\n\nencountered:\n\nOut of memory: ")

    monkeypatch.setattr(dali, "build_graph", lambda *args: Full())
    with pytest.raises(UserError, match=r"^DALI failed \(Out of memory\); choose another --pipeline$"):
        list(training_batches(dali_module(photographs)))


@with_dali
def test_data_module_refuses_images_in_memory():
    with pytest.raises(
        UserError, match=r"reads image files, and these images are in memory .*; choose --pipeline memory"
    ):
        build("dali", read())


def test_data_module_names_the_remedy_without_dali(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(UserError, match=r"needs NVIDIA DALI .*: pip install -r requirements-dali\.txt"):
        build("dali", read())


def test_check_dali_reports_a_library_that_does_not_load(monkeypatch):
    def failing(name, *args, f=builtins.__import__, **kwargs):
        if name.startswith("nvidia.dali"):
            raise ImportError("libcudart.so.13: cannot open shared object file")
        return f(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", failing)
    with pytest.raises(UserError, match=r"does not load \(libcudart.so.13.*\); pip install"):
        check_dali("cpu")


@with_dali
def test_check_dali_refuses_another_cuda_than_torchs_for_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.version.cuda", "12.8")
    check_dali("cpu")
    with pytest.raises(UserError, match=r"built for CUDA 13 and torch for CUDA 12; install the nvidia-dali-cuda120"):
        check_dali("cuda")


@with_dali
def test_train_loader_reports_a_driver_that_is_too_old(photographs, monkeypatch):
    def failing(*args):
        raise RuntimeError("Critical error:\nencountered:\n\nCUDA driver version is insufficient")

    monkeypatch.setattr(dali, "build_graph", failing)
    with pytest.raises(UserError, match=r"cannot run on cpu \(CUDA driver version is insufficient\); choose another"):
        list(training_batches(dali_module(photographs)))
