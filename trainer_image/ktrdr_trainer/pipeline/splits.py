"""Which row trains, which validates, which tests: in order of time, with no way back.

Called by `prepare.py` on the rows of all symbols together, so that the cuts are the same for all.
Source for purge and embargo: Lopez de Prado, Advances in Financial Machine Learning (2018), ch. 7.
"""

import math
from dataclasses import dataclass

import numpy as np

from ktrdr_api.strategy_sections import DataSplit
from ktrdr_trainer.pipeline.arrays import Bools, Int64s


@dataclass(frozen=True, slots=True)
class Splits:
    """Masks over all rows (rows,) and the times that made them, nanoseconds since 1970, UTC."""

    train: Bools
    validation: Bools
    test: Bools
    cuts: tuple[int, int]
    """First time after the training rows, first time after the validation rows."""
    resumes: tuple[int, int]
    """First time of a validation row, first time of a test row: the cut plus the embargo."""
    purged: int
    """Rows whose label has seen a bar behind the cut they stand before."""
    embargoed: int


def split(time: Int64s, label_end: Int64s, spec: DataSplit) -> Splits:
    """Cut all rows at two times.

    Args:
        time: (rows,) start of each row's bar, in any order, repeated where symbols share bars.
        label_end: (rows,) start of the last bar that the row's label has seen.
        spec: Fractions of all rows.
    """
    cuts, resumes = [], []
    ordered = np.sort(time)
    gap = math.ceil(spec.embargo * len(time))
    for fraction in (spec.train, spec.train + spec.validation):
        place = round(fraction * len(time))
        cuts.append(_at(ordered, place))
        resumes.append(_at(ordered, place + gap))
    before = time < cuts[0]
    between = (time >= resumes[0]) & (time < cuts[1])
    train = before & (label_end < cuts[0])
    validation = between & (label_end < cuts[1])
    test = time >= resumes[1]
    used = train | validation | test
    purged = int((before & ~train).sum() + (between & ~validation).sum())
    return Splits(
        train=train,
        validation=validation,
        test=test,
        cuts=(cuts[0], cuts[1]),
        resumes=(resumes[0], resumes[1]),
        purged=purged,
        embargoed=int((~used).sum()) - purged,
    )


def _at(ordered: Int64s, place: int) -> int:
    """The time at a place; just behind the last where there is none."""
    return int(ordered[place]) if place < len(ordered) else int(ordered[-1]) + 1
