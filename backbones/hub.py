"""Export of a backbone as a folder in the form of the Hugging Face Hub, which timm opens by itself."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from backbones.build import first_line
from backbones.library_models import library_tensors, timm_arguments
from backbones.model_card import model_card
from utils.batch import LOW_RES
from utils.errors import UserError
from utils.files import created_together, disk_errors_named

FILES = ("model.safetensors", "config.json", "README.md")
TOLERANCE = 1e-5  # largest difference between the features of timm's network and ours, relative to the largest feature
SMALL_STEM = (
    "no timm model has the 3x3 stem without max-pool of --stem small, so timm could not load these weights from a "
    'folder; export to onnx, or load the run by torch.hub.load(CHECKOUT, "backbone", RUN, source="local")'
)


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds something, and a file, before any work is done."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not overwritten; move it away, or choose another path")


def export_hub(folder: Path, network: nn.Module, card: Mapping[str, str], size: int) -> list[Path]:
    """Write FILES into a new folder that `timm.create_model("local-dir:<folder>", pretrained=True)` opens.

    network: on the CPU; it is left in evaluation mode. card, size: as of `export_backbone`. Before the files appear,
    timm opens them and its features are compared with the network's on random images. Raises UserError for a folder
    that is not empty, for a network that timm does not have, for other features, and for a failed write, which leaves
    no file behind.
    """
    check_folder(folder)
    if card["stem"] == "small":
        raise UserError(SMALL_STEM)
    tensors, _ = library_tensors("timm", network, card, size)
    facts = {key: value for key, value in card.items() if value not in ("", "None")}
    with _new_folder(folder), created_together(folder / FILES[0]) as file:
        file.write_bytes(safetensors.torch.save(tensors, facts | {"format": "pt"}))
        config = json.dumps(timm_config(network, card, size), indent=2) + "\n"
        (file.parent / FILES[1]).write_text(config, encoding="utf-8")
        note = _compare(file.parent, network, size)
        readme = {**card, "size": str(size), "load": _code(folder.name), "note": note}
        (file.parent / FILES[2]).write_text(_front_matter(card) + model_card(readme), encoding="utf-8")
    return [folder / name for name in FILES]


def timm_config(network: nn.Module, card: Mapping[str, str], size: int) -> dict[str, Any]:
    """The content of config.json: timm's name of the network, its arguments, and the images that it expects.

    mean and std of the card are texts like "(0.1, 0.2, 0.3)"; without them those of ImageNet hold.
    """
    import timm

    _, options = timm_arguments(card, size)
    if card.get("pool", "None") != "None":
        # The network was built with its own pooling, which decides where timm puts the last norm.
        fc_norm = not isinstance(getattr(network, "fc_norm", nn.Identity()), nn.Identity)
        options |= {"global_pool": card["pool"], "fc_norm": fc_norm}
    own = timm.get_pretrained_cfg(card["backbone"])
    names = {} if own is None else {"first_conv": own.first_conv, "classifier": own.classifier}
    statistics = {key: json.loads(f"[{card[key].strip('()')}]") for key in ("mean", "std") if key in card}
    images = {"input_size": [3, size, size], "interpolation": "bilinear",
              "crop_pct": 1.0 if size <= LOW_RES else 0.875}  # fmt: skip  # as evaluation images are resized
    return {
        "architecture": card["backbone"].split(".")[0],
        "num_classes": 0,
        "model_args": options,
        "pretrained_cfg": {**images, **statistics, "num_classes": 0, **names},
    }


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[None]:
    """Make a folder, which goes again where writing into it fails."""
    with disk_errors_named(folder):
        folder.mkdir(exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise


@torch.no_grad()
def _compare(folder: Path, network: nn.Module, size: int) -> str:
    """Compare the features of timm's network from the folder with the network's; return the note for the card."""
    import timm

    try:
        other = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except (RuntimeError, ValueError, TypeError, KeyError) as e:
        raise UserError(f"timm {timm.__version__} does not open this network ({first_line(e)}); export to onnx") from e
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected = network.eval()(images)
    difference, largest = (other(images) - expected).abs().max().item(), expected.abs().max().item()
    measured = f"{difference:.1e} where the largest is {largest:.1e}"
    if not difference <= TOLERANCE * largest:  # not `>`, which NaN would pass
        raise UserError(f"timm's features differ by {measured}; nothing was written, export to onnx")
    return f"Compared on random images (timm {timm.__version__}): features differ by {measured}."


def _code(name: str) -> str:
    return (
        f'import timm\nnetwork = timm.create_model("local-dir:{name}", pretrained=True).eval()\n'
        f"transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))"
    )


def _front_matter(card: Mapping[str, str]) -> str:
    """The lines by which the Hub sorts models. The license of weights depends on their images: it is left to the owner.

    https://huggingface.co/docs/hub/model-cards
    """
    tags = ["image-feature-extraction", "timm", "self-supervised-learning", card.get("method", "")]
    facts = {"library_name": "timm", "pipeline_tag": "image-feature-extraction", "tags": [tag for tag in tags if tag]}
    lines = [f"{key}: {json.dumps(value)}\n" for key, value in facts.items()]  # JSON is YAML
    return f"---\n{''.join(lines)}---\n\n"
