"""Export of a trained backbone as a file that torchvision, timm or ONNX Runtime loads, with a model card."""

import contextlib
import copy
import functools
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from backbones.build import first_line
from backbones.hub import check_folder, export_hub
from backbones.library_models import library_tensors, timm_constructor
from backbones.load import Weights
from backbones.model_card import model_card, portable_command, scores_of
from utils.errors import UserError, did_you_mean
from utils.files import created_together, entry, read_json, refuse_existing

TENSOR_FILES = (".safetensors", ".pth", ".pt", ".ckpt")
ENDINGS = {"torchvision": TENSOR_FILES, "timm": TENSOR_FILES, "onnx": (".onnx",)}
HUB = "hub"  # a folder
EXPORTS = (*ENDINGS, HUB)
TOLERANCE = 1e-5  # largest difference between the features of ONNX and torch, relative to the largest feature
ONLINE_SCORES = ("knn_", "val_probe_acc")  # beginnings of the keys of scores in summary.json, in per cent
FC_NOTE = (
    "`network.fc` is an untrained (zero-initialized) classifier of 1000 classes, which torchvision's own model "
    "requires. Replace it by your own, or by `torch.nn.Identity()` to get the features."
)


def export_backbone(kind: str, path: Path, network: nn.Module, card: Mapping[str, str], size: int) -> list[Path]:
    """Write the network to `path` and a model card beside it, and return the paths of all files written.

    The card has the name of `path` with the ending .md; "hub" makes `path` a folder that has its own. kind: one of
    EXPORTS. card: "backbone" and "stem" at least, "patch_size" and "pool" where they are not the network's own;
    `model_card` lists its keys. size: side in pixels of the views that the network was built for. The network is not
    changed. Raises UserError for a target that exists, for a network that the library does not have, and for a failed
    write, which leaves no file behind.
    """
    check_target((kind, path))
    network = copy.deepcopy(network).cpu()  # features of a GPU, in TF32, would not be those of the other library
    if kind == HUB:
        return export_hub(path, network, card, size)
    card_text = {**card, "size": str(size)}
    with created_together(path) as file:
        if kind == "onnx":
            card_text["note"] = _write_onnx(file, network.eval(), card["backbone"], size)
            card_text["load"] = _onnx_code(path.name, size)
        else:
            tensors, constructor = library_tensors(kind, network, card, size)
            _write_tensors(file, tensors, card)
            card_text["note"] = FC_NOTE if kind == "torchvision" else ""
            card_text["load"] = _library_code(path.name, kind, constructor, card.get("pool", "None"))
        file.with_suffix(".md").write_text(model_card(card_text), encoding="utf-8")
        written = sorted(file.parent.iterdir(), key=lambda part: (part != file, part.name))
    return [path.with_name(part.name) for part in written]


def run_card(
    weights: Weights, backbone: str, stem: str, scores: Mapping[str, float], program: str = ""
) -> dict[str, str]:
    """Collect what is known about the weights: their metadata, their run folder, and the scores measured now.

    scores: snake_case key -> value. The scores that the pretraining logged stand beside them, labelled online.
    program: text before the arguments of the pretraining, such as "python3 train.py".
    """
    card = weights.metadata | {"backbone": backbone, "stem": stem}
    folder = weights.path.parent
    if weights.in_run_folder and (folder / "args.json").is_file():
        path = folder / "args.json"
        args = read_json(path)
        argv = entry(path, args, "argv", list) if "argv" in args else []
        card |= _epochs(path, args, card)
        card["command"] = f"{program} {portable_command([str(word) for word in argv])}".strip()
        card["commit"] = str(args.get("commit", ""))
        card["images"] = str(entry(path, args, "plan.training_set.images", int)) if "plan" in args else ""
    if weights.in_run_folder and (folder / "summary.json").is_file():
        summary = read_json(folder / "summary.json")
        card["seconds"] = str(summary.get("seconds", ""))
        online = {
            key: entry(folder / "summary.json", summary, key, float) for key in summary if key.startswith(ONLINE_SCORES)
        }
        card |= scores_of(online, "online, top-1 in %")
    return card | scores_of(scores)


@functools.cache
def loading_code(file: str, backbone: str, stem: str, patch_size: str, pool: str, size: int) -> str:
    """Python code that loads the backbone of a run from its `file`: with timm where timm has this network.

    patch_size, pool: as in a run's metadata, "None" for the network's own. size: side of its views in pixels.
    """
    with contextlib.suppress(UserError):
        if stem != "small":
            _, constructor = timm_constructor({"backbone": backbone, "patch_size": patch_size}, size)
            return _library_code(file, "timm", constructor, pool)
    options = "" if pool == "None" else f", pool={pool!r}"
    options += "" if patch_size == "None" else f", patch_size={patch_size}"
    return (
        f"from backbones.build import build_backbone\n"
        f"from backbones.load import load_backbone, open_weights\n"
        f"from utils.plan import BackboneConfig\n\n"
        f"network, width = build_backbone(BackboneConfig({backbone!r}, {stem!r}{options}), {size})\n"
        f"load_backbone(open_weights({file!r}), network)"
    )


def _epochs(path: Path, args: Mapping[str, Any], card: Mapping[str, str]) -> dict[str, str]:
    """The epochs that the steps of the card make up, with the fraction that the file of weights leaves out."""
    if not card.get("steps", "").isdecimal() or "schedule" not in args.get("plan", {}):
        return {}
    per_epoch = entry(path, args, "plan.schedule.steps_per_epoch", int)
    return {"epochs": f"{int(card['steps']) / per_epoch:.3g}"}


def _library_code(file: str, library: str, constructor: str, pool: str) -> str:
    safe = file.endswith(".safetensors")
    tensors = f"safetensors.torch.load_file({file!r})" if safe else f"torch.load({file!r}, weights_only=True)"
    return (
        f"import {'safetensors.torch' if safe else 'torch'}, {library}\n"
        f"network = {constructor}.eval()\n"
        + (f"network.reset_classifier(0, {pool!r})\n" if pool != "None" else "")
        + f"network.load_state_dict({tensors}, strict=True)"
    )


def _onnx_code(file: str, size: int) -> str:
    return (
        f"import numpy, onnxruntime\n"
        f"images = numpy.zeros((1, 3, {size}, {size}), numpy.float32)  # your images\n"
        f"(features,) = onnxruntime.InferenceSession({file!r}).run(['features'], {{'images': images}})"
    )


def check_target(target: tuple[str, Path] | None) -> None:
    """Refuse an unknown kind of export, a wrong file ending and an existing file, before any work is done.

    target: kind and file, None for no export.
    """
    if target is None:
        return
    kind, path = target
    if kind not in EXPORTS:
        raise UserError(f"unknown export {kind!r}{did_you_mean(kind, EXPORTS)}; choose one of {', '.join(EXPORTS)}")
    if kind == HUB:
        check_folder(path)
        return
    if path.suffix not in ENDINGS[kind]:
        ends = " or ".join(ENDINGS[kind])
        raise UserError(
            f"{path} ends in {path.suffix or 'nothing'}, but {kind} needs a file name that ends in {ends}; rename it"
        )
    refuse_existing([path, path.with_suffix(".md")])


def _write_tensors(file: Path, tensors: dict[str, Tensor], card: Mapping[str, str]) -> None:
    """Write a plain dictionary of tensors; a .safetensors file carries the card as metadata too."""
    if file.suffix == ".safetensors":
        file.write_bytes(safetensors.torch.save(tensors, dict(card)))
    else:
        with file.open("wb") as f:
            torch.save(tensors, f)


def _write_onnx(file: Path, network: nn.Module, name: str, size: int) -> str:
    """Write an ONNX graph from images (N, 3, size, size), any N, to features (N, D); return the note for the card.

    network: on the CPU, in evaluation mode. Weights above torch's limit of 1.5 GB for one file are written to
    `<file>.data` beside it.
    """
    missing = [library for library in ("onnx", "onnxscript") if importlib.util.find_spec(library) is None]
    if missing:
        raise UserError(f"onnx needs {' and '.join(missing)}: pip install -r requirements-onnx.txt")
    with _silence(), torch.no_grad():
        try:
            program = torch.onnx.export(
                network,
                (torch.zeros(2, 3, size, size),),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes=({0: "batch"},),
            )
        except RuntimeError as e:
            reason = f"{name} cannot be exported to onnx at {size} pixels ({first_line(e.__cause__ or e)})"
            raise UserError(f"{reason}; use the run's backbone.safetensors") from e
        assert program is not None
        for node in program.model.graph:
            node.metadata_props.clear()  # stack traces, with folders of this machine
        program.save(file)
        return _check_onnx(file, network, name, size)


def _check_onnx(file: Path, network: nn.Module, name: str, size: int) -> str:
    """Compare the features of the file with the network's on random images; return the note for the card.

    Raises UserError for a difference above TOLERANCE.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return "Not compared with torch: onnxruntime was not installed."
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected = network(images)
    actual = torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0])
    difference, largest = (actual - expected).abs().max().item(), expected.abs().max().item()
    measured = f"{difference:.1e} where the largest is {largest:.1e}"
    if not difference <= TOLERANCE * largest:  # not `>`, which NaN would pass
        raise UserError(
            f"onnx features of {name} differ from torch's by {measured}, more than {TOLERANCE} of it; nothing was "
            f"written, use the run's backbone.safetensors"
        )
    return (
        f"Compared with torch on random images (onnxruntime {onnxruntime.__version__}): features differ by {measured}."
    )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress prints, warnings and log records of the exporter, which describe its internals."""
    level_before, nowhere = logging.root.manager.disable, io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level_before)
