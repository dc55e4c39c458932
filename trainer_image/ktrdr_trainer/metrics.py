"""How good a model is on rows it did not learn from. The loop and `evaluate` use the same code.

Own code, because scikit-learn does not belong into the trainer's image; a test compares with it.
Shapes: n rows, F features, C = 3 classes.
"""

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from ktrdr_api.errors import DataError
from ktrdr_trainer.dataset import Rows
from ktrdr_trainer.model import CLASSES, Mlp
from ktrdr_trainer.stop import StopToken

_ROWS_AT_ONCE: Final = 16_384
"""Fixed, so that the sums, and with them the last digits, are the same on every call."""


def evaluate(
    model: Mlp, rows: Rows, class_weights: Tensor, *, token: StopToken | None = None
) -> dict[str, float]:
    """Loss, accuracy, and precision, recall and f1_score weighted by the rows of each class.

    Args:
        model: The network; no dropout.
        rows: On the model's device.
        class_weights: (C,) of the training split.
        token: Read every 16,384 rows.

    Returns:
        `loss` (weighted mean), `accuracy`, `precision`, `recall`, `f1_score`. A class that was
        never predicted, or never occurs, counts with precision or recall 0.

    Raises:
        DataError: Every row is of a class that the training split lacks.
        CancellationError: The token was set.
    """
    weights = class_weights.to(rows.labels.device)
    confusion = torch.zeros(CLASSES * CLASSES, dtype=torch.int64, device=weights.device)
    loss_sum = torch.zeros((), dtype=torch.float64, device=weights.device)
    for features, labels in _slices(rows):
        if token is not None:
            token.raise_if_cancelled()
        logits = model.forward(features)
        losses = torch.nn.functional.cross_entropy(logits, labels, weights, reduction="none")
        loss_sum += losses.double().sum()
        pairs = labels * CLASSES + logits.argmax(1)
        confusion += torch.bincount(pairs, minlength=CLASSES * CLASSES)
    counts = confusion.view(CLASSES, CLASSES).double().cpu()
    weight_sum = (counts.sum(1) * weights.double().cpu()).sum()
    if not weight_sum:
        raise DataError(
            "no row of a later split has a class that the training split has; "
            "use a longer date range"
        )
    return {"loss": float(loss_sum.cpu() / weight_sum), **_scores(counts)}


def _slices(rows: Rows) -> Iterator[tuple[Tensor, Tensor]]:
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(first, first + _ROWS_AT_ONCE)
        yield rows.features[part], rows.labels[part]


def _scores(counts: Tensor) -> dict[str, float]:
    """Scores of a confusion matrix (C,C): row = true class, column = predicted class."""
    right, actual, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    share = actual / actual.sum()
    precision = right / predicted.clamp(min=1)
    recall = right / actual.clamp(min=1)
    f1_score = 2 * right / (actual + predicted).clamp(min=1)
    return {
        "accuracy": float(right.sum() / actual.sum()),
        "precision": float((share * precision).sum()),
        "recall": float((share * recall).sum()),
        "f1_score": float((share * f1_score).sum()),
    }
