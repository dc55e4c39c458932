"""Rows on the device, and which of them a batch gets. `steps` reads it; the pipeline fills it.

Every choice is a pure function of (seed, epoch, chunk), so a resumed run makes it again. A chunk is
a group of batches gathered together: one gather and one draw of masks for up to 50 batches.

Shapes: n rows, R rows of a chunk, B rows of a batch, F features, H units.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ktrdr_api.errors import DataError
from ktrdr_trainer.model import CLASSES

CHUNK_ROWS: Final = 16_384
CHUNK_BATCHES: Final = 50
"""A chunk's rows stay in the L2 cache, and a chunk ends often enough for progress (measured)."""
_DRAW_RANGE: Final = 65_536
"""16-bit draws: `bernoulli_` is serial on the CPU, 41 % of a batch-2048 step (measured)."""


class PartRows(Protocol):
    """One split, as the pipeline gives it."""

    @property
    def features(self) -> npt.NDArray[np.float32]:
        """(n,F), C-contiguous, finite."""

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(n,) in 0..2."""


class SplitRows(Protocol):
    """The splits, as the pipeline gives them."""

    @property
    def train(self) -> PartRows:
        """Shuffled by the loop."""

    @property
    def validation(self) -> PartRows:
        """Chooses the best epoch."""

    @property
    def test(self) -> PartRows:
        """Read once, at the end."""

    @property
    def feature_ids(self) -> tuple[str, ...]:
        """F names, in the order of the columns."""

    @property
    def class_counts(self) -> npt.NDArray[np.int64]:
        """(3,) rows of each class in train."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A split on the device."""

    features: Tensor
    """(n,F) float32."""
    labels: Tensor
    """(n,) int64."""

    def __len__(self) -> int:
        return self.labels.shape[0]


def rows_on(part: PartRows, device: torch.device, *, name: str) -> Rows:
    """Move a split to the device; on the CPU nothing is copied.

    Raises:
        DataError: No rows, a feature that is not finite, or a label outside 0..2.
    """
    if not len(part.labels):
        raise DataError(f"the {name} split has no rows; use a longer date range")
    if not np.isfinite(part.features).all():
        row, column = np.argwhere(~np.isfinite(part.features))[0]
        raise DataError(f"the {name} split has no finite feature at row {row}, column {column}")
    if part.labels.min() < 0 or part.labels.max() >= CLASSES:
        raise DataError(f"the {name} split has labels outside 0..{CLASSES - 1}")
    features, labels = torch.from_numpy(part.features), torch.from_numpy(part.labels)
    return Rows(features.to(device), labels.to(device))


def permutation(rows: int, *, seed: int, epoch: int, device: torch.device) -> Tensor:
    """Order of the rows in an epoch: (rows,) int64 on the device."""
    generator = torch.Generator(device).manual_seed(derived_seed(seed, epoch))
    return torch.randperm(rows, generator=generator, device=device)


def derived_seed(*parts: int) -> int:
    """A 63-bit seed for one use, independent of the seeds for other uses."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """How an epoch is cut: every chunk has `batches_per_chunk` batches, the last one the rest.

    The last batch has the rows that remain: no row is left out.
    """

    rows: int
    batch_size: int

    @property
    def batches_per_chunk(self) -> int:
        """Between 1 and 50."""
        return max(1, min(CHUNK_BATCHES, CHUNK_ROWS // self.batch_size))

    @property
    def chunk_rows(self) -> int:
        """Rows of a whole chunk; never more than there are rows."""
        return min(self.batches_per_chunk * self.batch_size, self.rows)

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return -(-self.rows // self.batch_size)

    @property
    def chunks(self) -> int:
        """Chunks of an epoch."""
        return -(-self.batches // self.batches_per_chunk)

    def bounds(self, chunk: int) -> tuple[int, int]:
        """First row of a chunk in the epoch's order, and the row after its last."""
        first = chunk * self.batches_per_chunk * self.batch_size
        return first, min(first + self.batches_per_chunk * self.batch_size, self.rows)


class ChunkBuffers:
    """Fixed memory for a chunk's rows, so that gathering allocates nothing."""

    def __init__(self, rows: Rows, plan: ChunkPlan) -> None:
        self._rows = rows
        size = plan.chunk_rows
        self.features = torch.empty(size, rows.features.shape[1], device=rows.features.device)
        self.labels = torch.empty(size, dtype=torch.int64, device=rows.labels.device)

    def gather(self, order: Tensor) -> None:
        """Fill the first rows with the rows named in `order` (at most R,)."""
        size = order.shape[0]
        torch.index_select(self._rows.features, 0, order, out=self.features[:size])
        torch.index_select(self._rows.labels, 0, order, out=self.labels[:size])


class DropoutMasks:
    """Fixed memory for a chunk's dropout masks, drawn on the CPU.

    Attributes:
        masks: (R,H) for each hidden layer, 0 or 1 / (1 - dropout); none without dropout.
    """

    def __init__(self, rows: int, widths: Sequence[int], dropout: float) -> None:
        dropped = round(dropout * _DRAW_RANGE)
        self.masks = [torch.empty(rows, width) for width in widths] if dropped else []
        # Draws are read as signed numbers, which torch compares: -32768 is the smallest.
        self._threshold = dropped - _DRAW_RANGE // 2
        self._scale = _DRAW_RANGE / max(1, _DRAW_RANGE - dropped)

    def draw(self, seed: int, *, epoch: int, chunk: int) -> None:
        """Fill every mask; the same numbers for the same arguments."""
        if not self.masks:
            return
        bits = np.random.SFC64(np.random.SeedSequence((seed, epoch, chunk)))
        for mask in self.masks:
            words = bits.random_raw(-(-mask.numel() // 4))
            draws = torch.from_numpy(words.view(np.int16)[: mask.numel()]).view(mask.shape)
            torch.ge(draws, self._threshold, out=mask)
            mask.mul_(self._scale)
