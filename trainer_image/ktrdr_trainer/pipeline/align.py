"""Which bar of another timeframe is known when a base bar closes.

Called by `features.py`. Joining on the close, never on the start, is what keeps a row from seeing
the rest of a day that has only begun.
"""

from typing import Final

import numpy as np

from ktrdr_trainer.pipeline.arrays import Int64s
from ktrdr_trainer.pipeline.bars import Bars, bar_ns

MAX_AGE_BARS: Final = 5
MAX_AGE_NS: Final = 4 * bar_ns("1d")
"""A long weekend: older news than this, or than 5 of its own bars, is no news."""
NONE: Final = -1


def latest_closed(base: Bars, other: Bars) -> Int64s:
    """For each base bar, the place of the last bar of `other` closed by the base bar's close.

    Returns:
        (base rows,) places in `other`; -1 where no bar has closed yet or the last is too old.
    """
    closed_at, now = other.close_time, base.close_time
    place = np.searchsorted(closed_at, now, side="right") - 1
    if not len(other):
        return np.full(len(base), NONE)
    age = now - closed_at[place]
    limit = max(MAX_AGE_BARS * bar_ns(other.timeframe), MAX_AGE_NS)
    return np.where((place < 0) | (age > limit), NONE, place)
