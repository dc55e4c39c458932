"""What training makes smaller, and the step that does it.

`steps` calls both once per batch. Shapes: B rows, C = 3 classes, P parameters.
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ktrdr_api.errors import DataError, StrategyError
from ktrdr_trainer.model import CLASSES

_MEAN: Final = 1
_NO_IGNORED_CLASS: Final = -100
"""As at::Reduction::Mean and the default `ignore_index` of torch.nn.functional.nll_loss."""
_BETA1: Final = 0.9
_BETA2: Final = 0.999
_EPSILON: Final = 1e-8
"""Adam's defaults: Kingma and Ba 2015, and torch.optim.Adam."""
_CLIP_EPSILON: Final = 1e-6
"""As torch.nn.utils.clip_grad_norm_."""

_aten = torch.ops.aten
_nll_loss = _aten.nll_loss_forward.default
_nll_loss_backward = _aten.nll_loss_backward.default
_log_softmax_backward = _aten._log_softmax_backward_data.default


def class_weights(counts: npt.NDArray[np.int64]) -> Tensor:
    """Inverse-frequency weights (C,): rows / (classes present * rows of the class).

    The same as scikit-learn's `compute_class_weight("balanced")`; a class without rows weighs 0.

    Args:
        counts: (C,) rows of each class in the training split, and only there.

    Raises:
        DataError: There are no rows, or only one class of them.
    """
    present = counts > 0
    if present.sum() < 2:
        raise DataError(
            f"the training rows have labels of {int(present.sum())} class(es) "
            f"(buy, hold, sell: {', '.join(str(int(count)) for count in counts)}); "
            "two are needed: use a longer date range or a smaller zigzag_threshold"
        )
    weights = np.zeros(CLASSES)
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return torch.from_numpy(weights).float()


class CrossEntropy:
    """Weighted cross entropy, mean over a batch, as torch.nn.CrossEntropyLoss(weight)."""

    def __init__(self, weights: Tensor) -> None:
        self._weights = weights
        self._one = torch.ones((), device=weights.device)

    def __call__(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss () and its gradient with respect to the logits (B,C), for labels (B,) int64."""
        scores = torch.log_softmax(logits, 1)
        settings = (self._weights, _MEAN, _NO_IGNORED_CLASS)
        loss, total = _nll_loss(scores, labels, *settings)
        slope = _nll_loss_backward(self._one, scores, labels, *settings, total)
        return loss, _log_softmax_backward(slope, scores, 1, torch.float32)


class FlatAdam:
    """Adam on one flat tensor: one operator a step, bit-equal to torch.optim.Adam(fused=True).

    `torch.optim.Adam` itself would import torch._dynamo, 1.4 s of start-up (measured).

    Attributes:
        first_moment: (P,).
        second_moment: (P,).
    """

    def __init__(
        self,
        parameters: Tensor,
        gradient: Tensor,
        *,
        learning_rate: float,
        weight_decay: float,
        clip: float | None,
    ) -> None:
        self.first_moment = torch.zeros_like(parameters)
        self.second_moment = torch.zeros_like(parameters)
        self._step = torch.zeros((), device=parameters.device)
        self._gradient = gradient
        self._clip = clip
        self._parameters = parameters
        self._learning_rate = learning_rate
        self._weight_decay = weight_decay

    @property
    def steps(self) -> int:
        """Steps done; waits for the device."""
        return int(self._step)

    def restore(self, *, steps: int) -> None:
        """Set the number of steps done; the caller writes the moments in place."""
        self._step.fill_(steps)

    def step(self) -> None:
        """Clip the gradient to the largest norm allowed, then move the parameters."""
        if self._clip is not None:
            norm = torch.linalg.vector_norm(self._gradient)
            self._gradient.mul_((self._clip / (norm + _CLIP_EPSILON)).clamp_(max=1.0))
        self._step.add_(1)
        torch._fused_adam_(
            [self._parameters],
            [self._gradient],
            [self.first_moment],
            [self.second_moment],
            [],
            [self._step],
            lr=self._learning_rate,
            beta1=_BETA1,
            beta2=_BETA2,
            weight_decay=self._weight_decay,
            eps=_EPSILON,
            amsgrad=False,
            maximize=False,
        )


def require_finite(loss: float, *, epoch: int, batch: int | None) -> None:
    """Stop at the first loss that is no number: every later one would be none too.

    Raises:
        StrategyError: With where it happened and what to change.
    """
    if not math.isfinite(loss):
        where = f"batch {batch}" if batch is not None else "the validation"
        text = (
            f"the loss is {loss} in epoch {epoch}, {where}: training diverged; "
            "lower learning_rate, or set training.gradient_clip (such as 1.0)"
        )
        raise StrategyError("strategy", [("training.learning_rate", text)])
