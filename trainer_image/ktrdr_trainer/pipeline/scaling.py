"""Scaling of raw indicators: fitted on the training split, applied to all, saved with the model.

Called by `prepare.py`; a saved model reads its own again with `Scaling.from_json`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from ktrdr_trainer.pipeline.arrays import Bools, Float32s, Float64s

Normalization: TypeAlias = Literal["minmax", "zscore", "none"]


@dataclass(frozen=True, slots=True)
class ColumnScaling:
    """One feature's: value becomes (value - center) / scale; a constant one becomes 0."""

    id: str
    normalization: Normalization
    center: float
    scale: float
    """0 where the feature did not vary in the training split."""

    def applied(self, column: Float64s) -> Float64s:
        """The scaled column; minmax stays within 0..1 whatever comes."""
        if self.normalization == "none":
            return column
        if self.scale == 0:
            return np.zeros_like(column)
        scaled = (column - self.center) / self.scale
        return np.clip(scaled, 0.0, 1.0) if self.normalization == "minmax" else scaled


@dataclass(frozen=True, slots=True)
class Scaling:
    """Of all features, in their order."""

    columns: tuple[ColumnScaling, ...]

    def applied(self, columns: Sequence[Float64s]) -> Float32s:
        """(F,) columns of (rows,) to one C-contiguous matrix (rows, F)."""
        matrix = np.empty((len(columns[0]), len(columns)), dtype=np.float32)
        for place, (scaling, column) in enumerate(zip(self.columns, columns, strict=True)):
            matrix[:, place] = scaling.applied(column)
        return matrix

    def to_json(self) -> list[dict[str, str | float]]:
        """Plain values for a JSON file, from which `from_json` makes an equal object."""
        return [asdict(column) for column in self.columns]

    @classmethod
    def from_json(cls, columns: Sequence[Mapping[str, Any]]) -> "Scaling":
        """Read what `to_json` gave."""
        return cls(tuple(ColumnScaling(**column) for column in columns))


def fit(
    ids: Sequence[str],
    normalizations: Sequence[Normalization],
    columns: Sequence[Float64s],
    train: Bools,
) -> Scaling:
    """Fit on the rows of the training split, (rows,) mask, and on nothing else."""
    return Scaling(
        tuple(
            _fitted(id_, normalization, column[train])
            for id_, normalization, column in zip(ids, normalizations, columns, strict=True)
        )
    )


def _fitted(id_: str, normalization: Normalization, values: Float64s) -> ColumnScaling:
    if normalization == "minmax":
        low, high = float(values.min()), float(values.max())
        return ColumnScaling(id_, normalization, low, high - low)
    if normalization == "zscore":
        # A constant's deviation can come out as rounding noise, by which nothing may be divided.
        scale = float(values.std()) if values.min() < values.max() else 0.0
        return ColumnScaling(id_, normalization, float(values.mean()), scale)
    return ColumnScaling(id_, normalization, 0.0, 1.0)
