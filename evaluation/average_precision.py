"""Mean average precision of scores of classes, for images that have several labels."""

from torch import Tensor


def mean_average_precision(scores: Tensor, member: Tensor) -> float:
    """scikit-learn's average precision in per cent, mean over the classes that some image has.

    scores: (N, C), larger for images that more likely have the class. member: (N, C) bool, whether they have it.
    """
    from sklearn.metrics import average_precision_score  # it starts a thread, which forks would lose

    present = member.any(dim=0)
    return 100 * float(average_precision_score(member[:, present].numpy(), scores[:, present].numpy()))
