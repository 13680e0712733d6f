"""Nearest neighbours of embeddings in a queue of earlier ones, as targets of a loss, and their flags."""

from argparse import Namespace

import torch
from torch import Tensor

from utils.arg_types import Rule, positive_int
from utils.errors import UserError
from utils.optim import FlagGroup
from utils.plan import Plan
from utils.precision import l2_normalize
from utils.queue import FeatureQueue

QUEUE_NEEDS_NEIGHBOURS: Rule = (("queue_size",), "--neighbours", lambda args: args.neighbours)


def add_neighbour_flags(parser: FlagGroup, name: str) -> None:
    """Add --neighbours, which replaces the targets of a method (name: what it is called then), and --queue_size."""
    parser.add_argument("--neighbours", action="store_true",
                        help=f"replace each target by its nearest neighbour among earlier ones ({name})")  # fmt: skip
    add_queue_size_flag(parser, 65536, "solo-learn")


def add_queue_size_flag(parser: FlagGroup, size: int, source: str) -> None:
    """Add --queue_size with a source's default."""
    parser.add_argument("--queue_size", type=positive_int, default=size, help=f"rows of the support set ({source})")


def build_queue(args: Namespace, plan: Plan, dim: int, number: int = 0, rows_per_image: int = 1) -> FeatureQueue:
    """Build a queue of --queue_size rows of width dim; one that a step would fill more than once is an error.

    number: of the queue among those of a method, which start with different rows.
    """
    rows = rows_per_image * plan.batch.global_batch
    if args.queue_size < rows:
        brought = f"{rows} embeddings of " if rows_per_image > 1 else ""
        raise UserError(
            f"--queue_size {args.queue_size} is smaller than {brought}the global batch of {plan.batch.global_batch} "
            f"images; raise --queue_size or lower --batch_size"
        )
    return FeatureQueue(args.queue_size, dim, plan.seed + number)


def replace_by_neighbours(
    queue: FeatureQueue, targets: list[Tensor], labels: Tensor, labelled: bool
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Nearest neighbours (n, D) of each of the targets (n, D), and their logged metrics; no gradient.

    targets: embeddings of the large views of this rank's images. Those of the first view enter the queue, after the
    look-ups, or they would find themselves. labels, labelled: as in `neighbour_metrics`.
    """
    queries = [l2_normalize(target.detach()) for target in targets]
    found = [queue.nearest(query) for query in queries]
    neighbours = [queue.rows[index] for index, _ in found]
    metrics = neighbour_metrics(queue, *found[0], labels, labelled)
    queue.push(queries[0], labels)
    return neighbours, metrics


def neighbour_metrics(
    queue: FeatureQueue, index: Tensor, similarity: Tensor, labels: Tensor, labelled: bool
) -> dict[str, Tensor]:
    """Logged metrics of the queue, and of the neighbours at its (n,) positions `index` with (n,) cosines `similarity`.

    labels: (n,) of the queries. nn_similarity: mean cosine. nn_distinct: share of different rows among the neighbours;
    near 0 the queue has collapsed to a few favourites. nn_label_acc, where the data set is labelled: per cent of
    neighbours with the label of their query, where both labels are known.
    """
    distinct = torch.zeros(len(queue.rows), device=index.device).index_fill_(0, index, 1.0).sum() / len(index)
    out = {"nn_similarity": similarity.mean(), "nn_distinct": distinct, **queue.metrics()}
    if labelled:
        neighbour_labels = queue.labels[index]
        known = (neighbour_labels >= 0) & (labels >= 0)
        out["nn_label_acc"] = 100 * ((neighbour_labels == labels) & known).sum() / known.sum().clamp(min=1)
    return out
