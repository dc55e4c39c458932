"""Warnings about data that can be trained on, but perhaps not as the user expects.

Called by `prepare`; the texts go with the PreparedDataset to `run`, which puts them into the log
and the run result. What makes training pointless is a DataError instead.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from ktrdr_api.strategy import Strategy
from ktrdr_trainer.pipeline.arrays import Float32s, Int64s
from ktrdr_trainer.pipeline.bars import BarCounts, Bars, file_name
from ktrdr_trainer.pipeline.labels import CLASSES

VOLUME_INDICATORS: Final = frozenset({"mfi", "obv"})
"""Indicator types that read the volume; see `indicators`."""


def data_warnings(
    strategy: Strategy,
    bars: Iterable[Bars],
    *,
    feature_ids: Sequence[str],
    train_features: Float32s,
    labels: Mapping[str, Int64s],
) -> tuple[str, ...]:
    """Describe dropped rows, missing volumes, constant features and missing classes.

    Args:
        strategy: Volumes matter only if one of its indicators reads them.
        bars: All bars that were read.
        feature_ids: (F,) names of the columns.
        train_features: (rows, F) scaled features of the training split.
        labels: (rows,) classes of the validation and the test split, by name of the split.
    """
    found = tuple(bars)
    texts = [
        _counted(
            "Dropped rows with a missing, non-positive or inconsistent price",
            found,
            lambda counts: counts.dropped,
        ),
        _counted(
            "Dropped rows whose date a later row has as well",
            found,
            lambda counts: counts.duplicates,
        ),
    ]
    if VOLUME_INDICATORS & {spec.type for spec in strategy.indicators.values()}:
        texts.append(
            _counted(
                "Rows without a volume, which counts as 0",
                found,
                lambda counts: counts.volume_filled,
            )
        )
    texts.extend(_constant_features(feature_ids, train_features))
    texts.extend(_missing_classes(labels))
    return tuple(text for text in texts if text)


def _counted(what: str, bars: Iterable[Bars], count: Callable[[BarCounts], int]) -> str:
    """One text for all files, the worst first; empty if there are none."""
    rows = {file_name(each.symbol, each.timeframe): count(each.counts) for each in bars}
    worst = sorted(((n, name) for name, n in rows.items() if n), key=lambda pair: -pair[0])
    files = ", ".join(f"{name} ({n})" for n, name in worst)
    return f"{what} ({sum(rows.values())} in total): {files}" if worst else ""


def _constant_features(feature_ids: Sequence[str], features: Float32s) -> Iterator[str]:
    constant = features.min(axis=0) == features.max(axis=0)
    names = list(itertools.compress(feature_ids, constant))
    if names:
        yield (
            "Features that are constant in the training split, so that the model learns nothing "
            f"from them: {', '.join(names)}"
        )


def _missing_classes(labels: Mapping[str, Int64s]) -> Iterator[str]:
    for split, values in labels.items():
        counts = np.bincount(values, minlength=len(CLASSES))
        missing = [name for name, count in zip(CLASSES, counts, strict=True) if not count]
        if missing:
            yield (
                f"The {split} split has no {' and no '.join(missing)} rows, so its metrics do not "
                "measure these classes; use a longer date range or a lower zigzag_threshold"
            )
