"""Scores of yes-or-no answers: hard ones, and those with a number that says how sure they are."""

import math

import numpy as np


def auroc(scores, labels) -> float:
    """Probability that a contact has a higher score than another pair, ties half; nan if there is only one kind.

    With predictions of 0 and 1 in place of scores it is the balanced accuracy.
    """
    scores, labels = np.asarray(scores, float), np.asarray(labels, bool)
    if labels.all() or not labels.any():
        return math.nan
    order = np.unique(scores, return_inverse=True, return_counts=True)
    rank = np.cumsum(order[2]) - (order[2] - 1) / 2  # of each different score, from 1; ties share the middle
    yes, n = labels.sum(), len(labels)
    return float((rank[order[1]][labels].sum() - yes * (yes + 1) / 2) / (yes * (n - yes)))


def precision_at(scores, labels, k: int) -> float:
    """Share of contacts among the k pairs with the highest scores; of pairs tied at the edge their average counts.

    The field's P@L/5 is this with all pairs of a chain of one range and k = L // 5.
    """
    scores, labels = np.asarray(scores, float), np.asarray(labels, float)
    edge = np.sort(scores)[-k]
    above, tied = scores > edge, scores == edge
    return float((labels[above].sum() + (k - above.sum()) * labels[tied].mean()) / k)


def rates(labels: np.ndarray, got: np.ndarray) -> dict[str, float]:
    """balanced_accuracy: mean of the shares of contacts and of other pairs that are right; mcc: Matthews'."""
    tp, tn = (labels & got).sum(), (~labels & ~got).sum()
    fp, fn = (~labels & got).sum(), (labels & ~got).sum()
    below = math.sqrt(float(tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    shares = [hit / total for hit, total in ((tp, tp + fn), (tn, tn + fp)) if total]
    return {
        "balanced_accuracy": float(sum(shares) / len(shares)) if shares else math.nan,
        "mcc": float((tp * tn - fp * fn) / below) if below else 0.0,
        "accuracy": float((tp + tn) / max(1, len(labels))),
    }
