"""Pictures of a run as PNG files, drawn by matplotlib's objects, which choose no backend and keep no figure."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from evaluation.features import FeatureSet, evaluation_mode
from evaluation.image_names import caption, display_name, has_file_names
from evaluation.interfaces import Data, EvaluationData, Images
from evaluation.knn import neighbours as nearest
from evaluation.report_data import Cell, Grid, cell, class_name, write_grid, write_points
from utils.errors import UserError
from utils.files import replaced_atomically
from utils.vision_transformer import class_token_attention

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

POINTS = 2000  # at most, in an embedding
THUMBNAILS, APART = 80, 0.085  # at most, in an embedding; least distance, as a share of the plot's sides
THUMBNAIL = 42  # points of their longer side
HEADS = 12  # at most, in a picture of attention
FEW = 25  # classes whose names and numbers fit a confusion matrix
CORRECT, WRONG = "#2a9d4e", "#c8352c"


def curves(path: Path, columns: dict[str, list[tuple[int, float]]]) -> None:
    """Draw the loss on the left and accuracies on the right, against the optimizer step.

    columns: name -> (step, value) points.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, points in columns.items():
        steps, values = zip(*points, strict=True)
        axes = left if name == "loss" else right
        axes.plot(steps, values, label=name, marker="o" if len(points) < 30 else "", markersize=3)
    left.set(title="loss", xlabel="step")
    right.set(title="accuracy (%)", xlabel="step")
    if right.lines:
        right.legend(frameon=False)
    else:
        right.text(0.5, 0.5, "no labels", ha="center", transform=right.transAxes)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def neighbour_grid(
    path: Path,
    queries: Sequence[NDArray],
    found: Sequence[Sequence[NDArray]],
    correct: NDArray | None,
    labels: list[str],
    captions: list[list[str]] | None = None,
) -> None:
    """Draw each query (H, W, 3) uint8 beside its nearest training images, nearest first.

    correct: (Q, k) whether a neighbour is of the query's class (green or red frame), or None without labels. captions:
    a line below each image of a row, the query first.
    """
    colors = {None: "black", True: CORRECT, False: WRONG}
    verdicts = [[None] * len(row) for row in found] if correct is None else correct.tolist()
    frames = [["black", *(colors[verdict] for verdict in row)] for row in verdicts]
    titles = {0: "query", len(found[0]): f"rank {len(found[0])}"} | {1: "nearest"}
    _grid(path, [[query, *row] for query, row in zip(queries, found, strict=True)], frames, labels, titles,
          captions=captions)  # fmt: skip


def montage(path: Path, ids: Tensor, distance: Tensor, images: Images, clusters: int = 12, each: int = 10) -> None:
    """Draw some clusters, from the largest to the smallest, a row each: the images nearest to the centroid.

    ids, distance: (N,) cluster and squared distance to its centroid, of all `images`.
    """
    size = torch.bincount(ids)
    filled = size.argsort(descending=True, stable=True)[: int((size > 0).sum())]
    some = filled[torch.linspace(0, len(filled) - 1, min(clusters, len(filled))).long()]
    rows = []
    for one in some:
        members = (ids == one).nonzero().flatten()
        rows.append([cell(images, int(i)) for i in members[distance[members].argsort(stable=True)[:each]]])
    labels = [f"cluster {int(one)}\n{int(size[one]):,} images" for one in some]
    write_grid(path.with_suffix(".json"), Grid(rows, labels, {0: "nearest"}))
    _grid(path, [[c.pixels for c in row] for row in rows], [["black"] * len(row) for row in rows], labels,
          {0: "nearest"})  # fmt: skip


def attention_maps(path: Path, images: Tensor, attention: Tensor, labels: list[str]) -> None:
    """Draw images beside the attention of their class tokens: the mean over the heads, laid over the image, then heads.

    images: (N, 3, H, W) in [0, 1]. attention: (N, heads, rows, columns), whose maps are scaled to their largest value.
    labels: of the images, or none. At most HEADS heads are drawn.
    """
    heads = attention.shape[1]
    rows = []
    for image, maps in zip(images.cpu(), attention.cpu(), strict=True):
        shown = (255 * image.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()
        mean = torch.nn.functional.interpolate(maps.mean(dim=0)[None, None], size=image.shape[1:], mode="nearest")[0, 0]
        overlay = (0.45 * shown + 0.55 * _heat(mean)).astype(np.uint8)
        rows.append([shown, overlay, *(_heat(head) for head in maps[:HEADS])])
    titles = {0: "image", 1: "mean"} | {2 + head: f"head {head + 1}" for head in range(min(heads, HEADS))}
    note = "attention of the class token to the patches in the last block; each map from 0 (black) to its maximum"
    note += f"; {HEADS} of {heads} heads" if heads > HEADS else ""
    cells = [[Cell(pixels, titles.get(column, "")) for column, pixels in enumerate(row)] for row in rows]
    write_grid(path.with_suffix(".json"), Grid(cells, labels, titles, note))
    _grid(path, rows, [["black"] * len(row) for row in rows], labels, titles, note)


def _heat(values: Tensor) -> NDArray:
    """(rows, columns), not negative -> (rows, columns, 3) uint8, black at 0 and bright at the largest value."""
    scaled = (values / values.max().clamp(min=1e-12)).numpy()
    heat: NDArray = (255 * matplotlib.colormaps["inferno"](scaled)[..., :3]).astype(np.uint8)
    return heat


def attention(path: Path, network: VisionTransformer, data: EvaluationData, device: torch.device, seed: int) -> None:
    """Draw the class token's attention in six validation images (else training images), spread over the classes."""
    split = "val" if data.data.val is not None else "train"
    images = data.data.splits()[split]
    chosen = spread_rows(images.labels, 6, seed)
    batch = data.evaluation_views(split, chosen.tolist(), device)
    with evaluation_mode(network), torch.no_grad():
        maps = class_token_attention(network, batch.views[0])
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (data.data.mean, data.data.std))
    labels = images.labels[chosen].tolist()
    names = [class_name(data.data.train, label) for label in labels]
    attention_maps(path, batch.views[0] * std + mean, maps, names)


def _grid(
    path: Path,
    rows: list[list[NDArray]],
    frames: list[list[str]],
    labels: list[str],
    titles: dict[int, str],
    note: str = "",
    captions: list[list[str]] | None = None,
) -> None:
    """Draw rows of images (H, W, 3) uint8 in coloured frames; a label before a row, a title above a column.

    note: a line below all. captions: a line below each image.
    """
    columns = max(len(row) for row in rows)
    pitch = 1.16 if captions else 1.0  # of rows, in inches
    figure = Figure(
        figsize=(columns, pitch * len(rows))
    )  # an inch for an image; labels and titles enlarge it when it is saved
    axes = figure.add_axes((0, 0, 1, 1))  # one for all images: as many axes as images take seconds
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    for r, row in enumerate(rows):
        for c, (image, color) in enumerate(zip(row, frames[r], strict=True)):
            height, width = (0.46 * side / max(image.shape[:2]) for side in image.shape[:2])
            y = pitch * r
            axes.imshow(image, extent=(c - width, c + width, y + height, y - height), interpolation="nearest")
            axes.add_patch(Rectangle((c - width, y - height), 2 * width, 2 * height, fill=False, edgecolor=color,
                                     linewidth=1.5 if color == "black" else 2.5))  # fmt: skip
            if captions:
                axes.text(c, y + 0.5, captions[r][c], fontsize=4.5, ha="center", va="top", parse_math=False)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(pitch * (len(rows) - 0.5), -0.5))
    axes.set_xticks(list(titles), list(titles.values()), fontsize=9)
    axes.set_yticks([pitch * r for r in range(len(labels))], labels, fontsize=8)
    if note:
        axes.set_xlabel("\n".join(textwrap.wrap(note, 15 * columns)), fontsize=8)
    _save(figure, path, enlarge=True)


def neighbours(path: Path, bank: FeatureSet, queries: FeatureSet | None, data: Data, seed: int) -> None:
    """Draw the rows of `neighbour_cells`, and write them for the report."""
    grid = neighbour_cells(bank, queries, data, seed)
    write_grid(path.with_suffix(".json"), grid)
    pixels = [[c.pixels for c in row] for row in grid.rows]
    correct = np.array([[c.matches for c in row[1:]] for row in grid.rows]) if grid.labels else None
    captions = [[caption(c.name) for c in row] for row in grid.rows] if has_file_names(data.train) else None
    neighbour_grid(path, [row[0] for row in pixels], [row[1:] for row in pixels], correct, list(grid.labels), captions)


def neighbour_cells(bank: FeatureSet, queries: FeatureSet | None, data: Data, seed: int) -> Grid:
    """Choose ten validation images, spread over the classes, and find their eight nearest training images.

    bank, queries: features of `data.train` and of `data.val`. Without validation images the queries are the first
    hundred training images, and the bank is the others.
    """
    first, query_images = 0, data.val
    if queries is None:
        first, query_images = min(100, len(bank.x) // 2), data.train
        queries, bank = FeatureSet(bank.x[:first], bank.y[:first]), FeatureSet(bank.x[first:], bank.y[first:])
    assert query_images is not None
    chosen, found = nearest_rows(bank, queries, k=8, count=10, seed=seed)
    labelled = bool((bank.y >= 0).any())
    right = (
        (bank.y[found] == queries.y[chosen][:, None]).tolist() if labelled else [[None] * found.shape[1]] * len(found)
    )
    names = [class_name(data.train, int(y)) for y in queries.y[chosen]]
    rows = [
        [cell(query_images, q, name), *(cell(data.train, i + first, None, m) for i, m in zip(row, match, strict=True))]
        for q, name, row, match in zip(chosen.tolist(), names, found.tolist(), right, strict=True)
    ]
    titles = {0: "query", 1: "nearest", found.shape[1]: f"{found.shape[1]}th"}
    return Grid(rows, names if labelled else [], titles)


def confusion(path: Path, labels: Tensor, predicted: Tensor, names: Sequence[str]) -> None:
    """Draw the confusion matrix: predicted classes (columns) of each class (row), in per cent of the row.

    labels, predicted: (N,).
    """
    classes = int(max(labels.max(), predicted.max())) + 1
    counts = torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes).float()
    share = (100 * counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).numpy()
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axes.set(xlabel="predicted", ylabel="class", title=f"accuracy {100 * (labels == predicted).float().mean():.1f} %")
    if classes <= FEW:
        ticks = list(names) or [str(c) for c in range(classes)]
        axes.set_xticks(range(classes), ticks[:classes], rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(classes), ticks[:classes], fontsize=8)
        for r, c in np.argwhere(share >= 0.5):
            axes.text(c, r, f"{share[r, c]:.0f}", ha="center", va="center", fontsize=7,
                      color="white" if share[r, c] > 50 else "black")  # fmt: skip
    figure.colorbar(shown, ax=axes, label="per cent of the class", shrink=0.8)
    _save(figure, path)


def _tsne(x: NDArray, seed: int) -> NDArray:
    """t-SNE, (N, D) -> (N, 2): van der Maaten and Hinton, 2008."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(x) - 1) / 3)
    projected: NDArray = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(x)
    return projected


def _pca(x: NDArray, seed: int) -> NDArray:
    """PCA, (N, D) -> (N, 2): the two directions of largest variance."""
    from sklearn.decomposition import PCA

    projected: NDArray = PCA(n_components=2, random_state=seed).fit_transform(x)
    return projected


def _umap(x: NDArray, seed: int) -> NDArray:
    """UMAP, (N, D) -> (N, 2): McInnes et al., 2018, arXiv:1802.03426."""
    try:
        from umap import UMAP
    except ImportError as e:
        raise UserError(f"--embedding umap needs umap-learn ({e}): pip install -r requirements-umap.txt") from e
    # One job: with several a seed does not give the same picture again.
    projected: NDArray = UMAP(n_neighbors=min(15, len(x) - 1), random_state=seed, n_jobs=1).fit_transform(x)
    return projected


PROJECTIONS: dict[str, tuple[str, Callable[[NDArray, int], NDArray]]] = {
    "pca": ("PCA", _pca),
    "tsne": ("t-SNE", _tsne),
    "umap": ("UMAP", _umap),
}
FEWEST_POINTS = {"pca": 2, "tsne": 2, "umap": 4}  # with fewer the projection fails


def embedding(
    path: Path,
    features: FeatureSet,
    names: Sequence[str],
    seed: int,
    projection: str = "tsne",
    images: Images | None = None,
) -> None:
    """Draw features projected to 2-D, coloured by class where labels exist. projection: a key of PROJECTIONS.

    images: those of the features; some are drawn at their points, with their names, and all are written for the report.
    """
    order = torch.randperm(len(features.x), generator=torch.Generator().manual_seed(seed))[:POINTS]
    x, y = torch.nn.functional.normalize(features.x[order], dim=1).numpy(), features.y[order].numpy()
    name, project = PROJECTIONS[projection]
    flat = project(x, seed)
    title = f"{name} of the features of {len(x):,} images"
    if images is not None:
        write_points(path.with_suffix(".json"), flat, features.y[order], images, order.tolist(), names, title)
    figure = Figure(figsize=(10, 9) if images is not None else (7, 6), layout="constrained")
    axes = figure.subplots()
    if (y >= 0).any():
        named = np.unique(y[y >= 0])[:20]  # more colours than that cannot be told apart
        rest = ~np.isin(y, named)
        axes.scatter(flat[rest, 0], flat[rest, 1], s=6, color="#dddddd", label="others" if rest.any() else None)
        for label in named:
            at = y == label
            color = matplotlib.colormaps["tab10" if y.max() < 10 else "tab20"](int(label) % 20)
            axes.scatter(flat[at, 0], flat[at, 1], s=12, color=color, label=names[label] if names else str(label))
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, markerscale=2)
    else:
        axes.scatter(flat[:, 0], flat[:, 1], s=12, color="#336699")
    if images is not None:
        _draw_thumbnails(axes, flat, order.tolist(), images)
    axes.set(xticks=[], yticks=[], title=title)
    _save(figure, path)


def _draw_thumbnails(axes: Axes, flat: NDArray, rows: list[int], images: Images) -> None:
    """Draw images at their points (M, 2), each with its file name below; points too near to a drawn one are passed."""
    scaled = (flat - flat.min(axis=0)) / np.ptp(flat, axis=0).clip(min=1e-12)
    drawn: list[int] = []
    for i in range(len(flat)):
        if len(drawn) < THUMBNAILS and all(abs(scaled[i] - scaled[j]).max() > APART for j in drawn):
            drawn.append(i)
    for i in drawn:
        pixels = _shrunk(images.decode(rows[i]))
        axes.add_artist(AnnotationBbox(OffsetImage(pixels, zoom=0.5), flat[i], frameon=False))
        if has_file_names(images):
            below = (0, -len(pixels) / 4 - 1)
            text = caption(display_name(images, rows[i]))
            axes.annotate(text, flat[i], below, textcoords="offset points", ha="center", va="top", fontsize=5,
                          parse_math=False)  # fmt: skip


def _shrunk(pixels: Tensor) -> NDArray:
    """(3, H, W) uint8 -> (h, w, 3) uint8 with two pixels per point of THUMBNAIL on the longer side."""
    scale = 2 * THUMBNAIL / max(pixels.shape[1:])
    size = [max(1, round(side * scale)) for side in pixels.shape[1:]]
    small: NDArray = TF.resize(pixels, size, antialias=True).permute(1, 2, 0).numpy()
    return small


def nearest_rows(bank: FeatureSet, queries: FeatureSet, k: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Choose queries (Q,), spread over the classes where labels exist, and find the nearest rows of the bank (Q, k)."""
    chosen = spread_rows(queries.y, count, seed)
    return chosen, nearest(bank.x, queries.x[chosen], min(k, len(bank.x)))[1]


def spread_rows(y: Tensor, count: int, seed: int) -> Tensor:
    """Choose rows at random, spread over the labels y (N,): (min(count, N),)."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    turn = torch.zeros(len(order), dtype=torch.long)  # how many of its class came before
    seen: dict[int, int] = {}
    for i, row in enumerate(order.tolist()):
        label = int(y[row])
        turn[i] = seen.get(label, 0)
        seen[label] = int(turn[i]) + 1
    return order[turn.argsort(stable=True)[:count]]


def _save(figure: Figure, path: Path, enlarge: bool = False) -> None:
    """Write the PNG file. enlarge: for what lies outside the figure."""
    with replaced_atomically(path) as part:
        figure.savefig(part, dpi=110, format="png", bbox_inches="tight" if enlarge else None)
