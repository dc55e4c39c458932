"""What the model learns to say of each bar, and how far into the future that answer looked.

Called by `prepare.py` per symbol on base bars; `splits.py` uses `end` to keep the future of one
split out of another.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from ktrdr_trainer.pipeline.arrays import Float64s, Int64s

BUY: Final = 0
HOLD: Final = 1
SELL: Final = 2
UNLABELLED: Final = -1
CLASSES: Final = ("buy", "hold", "sell")
"""By number."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of one symbol's bars."""

    value: Int64s
    """(bars,) BUY, HOLD, SELL, or UNLABELLED where the future does not tell yet."""
    end: Int64s
    """(bars,) place of the last bar the label saw; the bar itself where there is no label."""


def zigzag(close: Float64s, *, threshold: float, lookahead: int | None = None) -> Labels:
    """Label the legs between zigzag pivots.

    A close extreme is a pivot once the close has come back from it by `threshold`. Bars between a
    low and a high pivot are BUY, between a high and a low pivot SELL; pivots and the bars before
    the first are HOLD, and the bars after the last are unlabelled. A label has seen all bars up to
    the one that confirmed the end of its leg.

    Args:
        close: (bars,) closes above 0.
        threshold: Reversal that makes a pivot, as a fraction of the extreme.
        lookahead: Bars further than this before the end of their leg are HOLD.
    """
    value = np.full(len(close), UNLABELLED, dtype=np.int64)
    end = np.arange(len(close), dtype=np.int64)
    begin = 0
    leg = HOLD  # before the first pivot
    for pivot, confirmed, is_high in _pivots(close, threshold):
        value[begin:pivot] = leg
        if lookahead is not None:
            value[begin : max(begin, pivot - lookahead)] = HOLD
        value[pivot] = HOLD
        end[begin : pivot + 1] = confirmed
        begin, leg = pivot + 1, SELL if is_high else BUY
    return Labels(value, end)


def _pivots(close: Float64s, threshold: float) -> list[tuple[int, int, bool]]:
    """Place of each pivot, place of the bar that confirmed it, and whether it is a high."""
    pivots: list[tuple[int, int, bool]] = []
    prices = close.tolist()  # a loop over Python floats takes a third of one over numpy's
    high = low = 0
    seek_high = seek_low = True
    for now, price in enumerate(prices):
        if price > prices[high]:
            high = now
        if price < prices[low]:
            low = now
        if seek_high and price <= prices[high] * (1 - threshold):
            pivots.append((high, now, True))
            seek_high, seek_low, low = False, True, now
        elif seek_low and price >= prices[low] * (1 + threshold):
            pivots.append((low, now, False))
            seek_high, seek_low, high = True, False, now
    return pivots
