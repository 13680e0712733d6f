"""A trained backbone for others: a file that their library loads, and a model card beside it."""

import contextlib
import copy
import importlib.util
import io
import logging
import os
import shlex
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from backbones.build import TORCHVISION
from backbones.load import Weights
from utils.errors import UserError, did_you_mean
from utils.files import read_json

TENSOR_FILES = (".safetensors", ".pth", ".pt", ".ckpt")
ENDINGS = {"torchvision": TENSOR_FILES, "timm": TENSOR_FILES, "onnx": (".onnx",)}
EXPORTS = tuple(ENDINGS)
TOLERANCE = 1e-5  # how far ONNX features may be from torch's, as a share of the largest feature
FACTS = {  # card key -> words of the model card
    "method": "pretrained by",
    "dataset": "data set",
    "images": "training images",
    "stem": "stem",
    "large_size": "pixels of a training view",
    "epochs": "epochs",
    "steps": "steps",
    "seconds": "seconds of training",
    "seed": "seed",
    "commit": "commit",
}
FC_NOTE = (
    "`network.fc` is a classifier of 1000 classes that nobody trained, all zeros: torchvision's own model wants one. "
    "Replace it by yours, or by `torch.nn.Identity()` to get the features."
)


def export_backbone(kind: str, path: Path, backbone: nn.Module, card: Mapping[str, str], size: int) -> list[Path]:
    """Write the backbone as `path` and its model card as `<stem>.md` beside it; returns every file written.

    kind: one of EXPORTS. card: text about the run, "backbone" and "stem" at least; `model_card` names the rest.
    size: side in pixels of the views that the backbone was built for. The backbone itself is left as it is.
    """
    check_target(kind, path)
    told = {**card, "size": str(size)}
    try:
        # The files carry their last names from the start: an ONNX file names the one beside it that has its weights.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.part") as folder:
            file = Path(folder) / path.name
            if kind == "onnx":
                told["note"] = _write_onnx(file, backbone, card["backbone"], size)
                told["load"] = _onnx_code(path.name, size)
            else:
                tensors, constructor = _library_tensors(kind, backbone, card, size)
                _write_tensors(file, tensors, card)
                told["note"] = FC_NOTE if kind == "torchvision" else ""
                told["load"] = _library_code(path.name, kind, constructor)
            file.with_suffix(".md").write_text(model_card(told), encoding="utf-8")
            return _move_all(file, path)
    except OSError as e:
        raise UserError(f"cannot write {path} ({e.strerror or e}); choose another path") from e


def run_card(weights: Weights, backbone: str, stem: str, scores: Mapping[str, float]) -> dict[str, str]:
    """What is known of the weights: what their file says, the run folder around it, and the numbers just measured."""
    card = weights.metadata | {"backbone": backbone, "stem": stem}
    card |= {
        more: weights.metadata[key] for key, more in (("epoch", "epochs"), ("step", "steps")) if key in weights.metadata
    }
    folder = weights.path.parent
    if weights.metadata and (folder / "args.json").is_file():
        args = read_json(folder / "args.json")
        words = " ".join(shlex.quote(word) for word in args.get("argv", []))
        card |= {"command": f"python3 main_contrastive.py {words}", "commit": str(args.get("commit", ""))}
    if weights.metadata and (folder / "summary.json").is_file():
        summary = read_json(folder / "summary.json")
        card["seconds"] = str(summary.get("seconds", ""))
        online = {k: v for k, v in summary.items() if k.startswith(("knn_", "val_probe_acc"))}
        card |= {f"result: {k} (online, top-1 in per cent)": f"{v:.1f}" for k, v in online.items()}
    return card | {f"result: {name}": f"{number:.4g}" for name, number in scores.items()}


def model_card(card: Mapping[str, str]) -> str:
    """Markdown for whoever uses the weights; what the card does not say, or calls None or unknown, is left out.

    card: "backbone", the keys of FACTS, "result: <name>" for every number, "command", "mean", "std" and "size" of
    the inputs; `export_backbone` adds "load", the Python that reads the file, and "note", what to know about it.
    """
    known = {k: v.strip() for k, v in card.items() if v.strip() not in ("", "None", "unknown")}
    facts = [f"- {words}: {known[key]}" for key, words in FACTS.items() if key in known]
    results = [f"- {k.removeprefix('result: ')}: {v}" for k, v in known.items() if k.startswith("result: ")]
    sections = {
        f"# {known.get('backbone', 'backbone')}": "An image backbone without a classifier, pretrained with Lookalike.",
        "## Training": "\n".join(facts),
        "## Results": "\n".join(results),
        "## Inputs": _inputs(known),
        "## Load": "\n\n".join(filter(None, [_fenced("python", known.get("load")), known.get("note")])),
        "## Command": _fenced("bash", known.get("command")),
    }
    return "\n\n".join(f"{title}\n\n{text}" for title, text in sections.items() if text) + "\n"


def _inputs(card: Mapping[str, str]) -> str:
    """What the network wants to see."""
    side = card.get("size")
    text = f"RGB images, float32 (N, 3, {side}, {side}), in [0, 1]" if side else "RGB images, float32 in [0, 1]"
    if "mean" in card and "std" in card:
        text += f", then normalized per channel: minus mean {card['mean']}, divided by std {card['std']}"
    return text + "."


def _fenced(language: str, code: str | None) -> str:
    return f"```{language}\n{code}\n```" if code else ""


def _library_code(file: str, library: str, constructor: str) -> str:
    safe = file.endswith(".safetensors")
    tensors = f"safetensors.torch.load_file({file!r})" if safe else f"torch.load({file!r}, weights_only=True)"
    return (
        f"import {'safetensors.torch' if safe else 'torch'}, {library}\n"
        f"network = {constructor}.eval()\n"
        f"network.load_state_dict({tensors}, strict=True)"
    )


def _onnx_code(file: str, size: int) -> str:
    return (
        f"import numpy, onnxruntime\n"
        f"images = numpy.zeros((1, 3, {size}, {size}), numpy.float32)  # yours\n"
        f"(features,) = onnxruntime.InferenceSession({file!r}).run(['features'], {{'images': images}})"
    )


def check_target(kind: str, path: Path) -> None:
    """Refuse what can be refused before any work."""
    if kind not in EXPORTS:
        raise UserError(f"unknown export {kind!r}{did_you_mean(kind, EXPORTS)}; choose one of {', '.join(EXPORTS)}")
    if path.suffix not in ENDINGS[kind]:
        ends = " or ".join(ENDINGS[kind])
        raise UserError(f"{path} ends in {path.suffix or 'nothing'}, but {kind} needs a file name that ends in {ends}")
    _refuse_existing([path, path.with_suffix(".md")])


def _refuse_existing(paths: list[Path]) -> None:
    for path in paths:
        if path.exists():
            raise UserError(f"{path} exists and is not overwritten; move it away, or choose another path")


def _move_all(file: Path, path: Path) -> list[Path]:
    """Move all that lies beside `file` beside `path`, the file itself last: where it is, the others are too."""
    parts = sorted(file.parent.iterdir(), key=lambda part: (part == file, part.name))
    targets = [path.with_name(part.name) for part in parts]
    _refuse_existing(targets)
    for part, target in zip(parts, targets, strict=True):
        os.replace(part, target)
    return targets[::-1]


def _library_tensors(
    kind: str, backbone: nn.Module, card: Mapping[str, str], size: int
) -> tuple[dict[str, Tensor], str]:
    """(every tensor of the library's own model, the Python that builds that model)."""
    name = card["backbone"]
    if card["stem"] == "small":
        raise UserError(
            f"{kind}'s own {name} starts with a 7x7 convolution and a max-pool, which --stem small replaced: it has no "
            f"place for these weights; export to onnx, or use the run's backbone.safetensors"
        )
    reference, constructor = _torchvision_model(name) if kind == "torchvision" else _timm_model(name, size)
    tensors = {k: v.detach().cpu().clone() for k, v in backbone.state_dict().items()}
    if kind == "torchvision":
        tensors |= {k: torch.zeros(reference[k].shape) for k in ("fc.weight", "fc.bias")}
    wrong = [k for k in reference.keys() | tensors.keys() if _shape(reference, k) != _shape(tensors, k)]
    if wrong:
        raise UserError(
            f"the backbone is not {constructor}: {len(wrong)} tensors differ {sorted(wrong)[:3]}; name the backbone "
            f"and the size that it was built with, or export to onnx"
        )
    return tensors, constructor


def _shape(tensors: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None


def _torchvision_model(name: str) -> tuple[dict[str, Tensor], str]:
    """(shapes of torchvision's own model, on the meta device, the Python that builds it)."""
    import torchvision

    if name not in TORCHVISION:
        raise UserError(
            f"{name} is not one of torchvision's ResNets ({', '.join(TORCHVISION)}); export to timm or onnx"
        )
    with torch.device("meta"):
        reference = torchvision.models.get_model(name, weights=None, num_classes=1000).state_dict()
    return reference, f"torchvision.models.get_model({name!r}, weights=None, num_classes=1000)"


def _timm_model(name: str, size: int) -> tuple[dict[str, Tensor], str]:
    """As `_torchvision_model`; a transformer is built for views of `size` pixels, which shape its tensors."""
    import timm

    if not timm.is_model(name):
        raise UserError(f"timm has no {name}{did_you_mean(name, timm.list_models())}; export to onnx")
    with torch.device("meta"):
        with contextlib.suppress(TypeError):  # convolutional networks take any size and no such argument
            try:
                reference = timm.create_model(name, num_classes=0, img_size=size).state_dict()
            except (AssertionError, ValueError, RuntimeError) as e:
                reason = f"{name} cannot be built for views of {size} pixels ({_first_line(e)})"
                raise UserError(f"{reason}; name the size that it was trained with") from e
            return reference, f"timm.create_model({name!r}, num_classes=0, img_size={size})"
        return timm.create_model(name, num_classes=0).state_dict(), f"timm.create_model({name!r}, num_classes=0)"


def _write_tensors(file: Path, tensors: dict[str, Tensor], card: Mapping[str, str]) -> None:
    """A plain dictionary of tensors; .safetensors carries the card as metadata too."""
    if file.suffix == ".safetensors":
        file.write_bytes(safetensors.torch.save(tensors, dict(card)))
    else:
        with file.open("wb") as f:
            torch.save(tensors, f)


def _write_onnx(file: Path, backbone: nn.Module, name: str, size: int) -> str:
    """A graph from images (N, 3, size, size) to features (N, D), any N; returns how near to torch it is, in words.

    One file up to torch's limit of 1.5 GB of weights; beyond it they lie beside, in `<file>.data`.
    """
    missing = [library for library in ("onnx", "onnxscript") if importlib.util.find_spec(library) is None]
    if missing:
        raise UserError(f"onnx needs {' and '.join(missing)}: pip install -r requirements-onnx.txt")
    network = copy.deepcopy(backbone).cpu().eval()  # a copy, so that frozen layers and the device stay as they are
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
            reason = f"{name} cannot be exported to onnx at {size} pixels ({_first_line(e.__cause__ or e)})"
            raise UserError(f"{reason}; use the run's backbone.safetensors") from e
        assert program is not None
        for node in program.model.graph:
            node.metadata_props.clear()  # stack traces: the folders of this machine
        program.save(file)
        return _check_onnx(file, network, name, size)


def _check_onnx(file: Path, network: nn.Module, name: str, size: int) -> str:
    """How far the file's features are from the network's on random images, in words; too far is an error."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "Not compared with torch: onnxruntime was not installed."
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    wanted = network(images)
    got = torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0])
    difference, largest = (got - wanted).abs().max().item(), wanted.abs().max().item()
    told = f"{difference:.1e} where the largest is {largest:.1e}"
    if not difference <= TOLERANCE * largest:  # not > : NaN is wrong too
        raise UserError(
            f"onnx features of {name} differ from torch's by {told}, more than {TOLERANCE} of it; nothing was written, "
            f"use the run's backbone.safetensors"
        )
    return f"Compared with torch on random images (onnxruntime {onnxruntime.__version__}): features differ by {told}."


def _first_line(e: BaseException) -> str:
    return next(iter(str(e).splitlines()), type(e).__name__)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No prints, warnings or log records: exporters talk about their own inside."""
    before, nowhere = logging.root.manager.disable, io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)
