"""Entry points of torch.hub: a backbone as a module with its transform, and the features of a folder of images.

network = torch.hub.load(CHECKOUT, "backbone", "trained_models/RUN", source="local")
names, vectors = torch.hub.load(CHECKOUT, "embed", "trained_models/RUN", "photos", source="local")
"""

import concurrent.futures  # modules, not functions: torch.hub.list shows every function here

import torch
from torchvision.transforms import v2

from backbones import build, load
from data import datasets, images, scan
from data.pipelines import evaluation_views
from utils import errors, files
from utils.names import shown as _shown

dependencies = ["numba", "numpy", "safetensors", "simplejpeg", "timm", "torch", "torchvision"]


def backbone(weights: str, name: str | None = None, size: int | None = None) -> torch.nn.Module:
    """The backbone of a run folder or of any file of weights, in evaluation mode: (N, 3, size, size) -> (N, D).

    name: of the backbone, for weights of other tools. size: side of an image in pixels, by default that of the
    training. Its attribute `transform` makes the normalized input (3, size, size) of a PIL image, or of a uint8 tensor
    (3, H, W): the view that evaluations use.
    """
    opened = load.open_weights(str(weights))
    name = name or opened.metadata.get("backbone")
    if not name:
        raise errors.UserError(f"{_shown(weights)} does not name its backbone; give it as name=, such as 'resnet50'")
    side = load.choose_size(size, [opened], 224)
    network, _ = build.build_backbone(load.initial_config("auto", name, opened, side), side)
    load.load_backbone(opened, network, remedy="give the backbone of the weights as name=")
    facts = datasets.DATASETS.get(opened.metadata.get("dataset", ""), datasets.DATASETS["custom"])
    network.transform = _transform(side, facts.mean, facts.std)  # type: ignore[assignment]
    return network.eval()


def embed(
    weights: str, folder: str, name: str | None = None, size: int | None = None, batch_size: int = 64,
    device: str = "cpu",
) -> tuple[list[str], torch.Tensor]:  # fmt: skip
    """The sorted paths, relative to the folder, and the features (N, D) on CPU of all images in a folder and below it.

    weights, name, size: as of `backbone`. A file that is not a readable image is an error that names it.
    """
    root = files.typed_path(folder)
    if not root.is_dir():
        raise errors.UserError(f"{_shown(root)} is not a folder; name a folder of images")
    network = backbone(weights, name, size).to(device)
    names = [file.name for file in scan.find_images(root, "").files]
    if not names:
        raise errors.UserError(f"{_shown(root)} has no images; name a folder of images")

    def view(name: str) -> torch.Tensor:
        result: torch.Tensor = network.transform(images.decode_file(str(root / name)))  # type: ignore[operator]
        return result

    vectors = []
    with concurrent.futures.ThreadPoolExecutor() as pool, torch.no_grad():
        for first in range(0, len(names), batch_size):
            views = torch.stack(list(pool.map(view, names[first : first + batch_size])))
            vectors.append(network(views.to(device)).float().cpu())
    return names, torch.cat(vectors)


def _transform(size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> v2.Compose:
    """Resize of the short side, centre crop and normalization, in the order and the types of `evaluation_view`."""
    crop = [v2.Resize(evaluation_views.short_side(size), antialias=True), v2.CenterCrop(size)]
    return v2.Compose(
        [v2.ToImage(), v2.RGB(), *crop, v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor(),
         v2.Normalize(mean, std)]
    )  # fmt: skip
