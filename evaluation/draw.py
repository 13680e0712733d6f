"""The evaluation that draws pictures of a network's features."""

from argparse import Namespace
from dataclasses import dataclass

from evaluation import pictures
from evaluation.captions import add_captions
from evaluation.knn import knn_predictions
from evaluation.settings import Note, TrainingLabels
from evaluation.target import EvaluationTarget
from utils.distributed import run_on_first_rank
from utils.optim import FlagGroup
from utils.scores import Score
from utils.vision_transformer import has_class_attention, require_vision_transformer

MOST_NEIGHBOURS = 20  # that vote for the predictions of the confusion matrix


@dataclass(frozen=True)
class PictureSettings:
    """projection: a key of evaluation.pictures.PROJECTIONS. k: neighbours that vote for a prediction, 0 for none."""

    projection: str
    k: int


def add_picture_flags(group: FlagGroup) -> None:
    """Flags of the pictures."""
    group.add_argument("--embedding", choices=list(pictures.PROJECTIONS), default="tsne",
                       help="2-D projection for the embedding plot")  # fmt: skip


def picture_settings(flags: Namespace, labels: TrainingLabels, note: Note) -> PictureSettings:
    """The settings that the flags ask for and the labels allow."""
    return PictureSettings(flags.embedding, min(MOST_NEIGHBOURS, labels.labelled))


def draw_pictures(target: EvaluationTarget, settings: PictureSettings) -> list[Score]:
    """Nearest neighbours, 2-D projection and confusion matrix as PNG files, drawn by the first rank; no score.

    For a vision transformer whose features are those of its class token, also the attention of that token. What there
    are too few images for is left out, with a note.
    """
    train, val, data = target.train, target.val, target.data.data
    labelled = val and val.labelled()
    shown, images = (train, data.train) if val is None or data.val is None else (val, data.val)

    def draw() -> None:
        names = ("neighbours", "embedding", "confusion", "attention")
        path = {n: target.folder / f"{target.file_name}_{n}.png" for n in names}
        if val is not None or _enough(target, "neighbours", len(train.x), 2):
            pictures.neighbours(path["neighbours"], train, val, data, target.seed)
        if _enough(target, "embedding", len(shown.x), pictures.FEWEST_POINTS[settings.projection]):
            pictures.embedding(path["embedding"], shown, data.train.classes, target.seed, settings.projection, images)
        if settings.k and labelled is not None and len(labelled.x):
            predicted = knn_predictions(train, labelled, [settings.k], target.classes, target.device)[settings.k]
            pictures.confusion(path["confusion"], labelled.y, predicted, data.train.classes)
        if has_class_attention(target.network):
            network = require_vision_transformer(target.network, "a picture of attention")
            pictures.attention(path["attention"], network, target.data, target.device, target.seed)
        add_captions(path.values(), target.info.label)

    run_on_first_rank(draw)
    return []


def _enough(target: EvaluationTarget, picture: str, images: int, needed: int) -> bool:
    """Whether there are images enough for a picture; prints a note where there are not."""
    if images < needed:
        count = f"{images} image is" if images == 1 else f"{images} images are"
        print(f"  note: {picture} of {target.title} left out: {count} too few, {needed} are needed")
    return images >= needed
