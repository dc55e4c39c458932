"""The join of timeframes: never a bar that has not closed, never one that is stale."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bars_builder import make_bars
from ktrdr_trainer.pipeline.align import NONE, latest_closed
from ktrdr_trainer.pipeline.bars import Bars, bar_ns

DAY = bar_ns("1d")


def bars_at(places: list[int], timeframe: str) -> Bars:
    """Bars at these multiples of the timeframe."""
    bars = make_bars(np.linspace(100, 101, max(places, default=0) + 1), timeframe=timeframe)
    kept = np.array(sorted(set(places)), dtype=np.int64)
    columns = ("time", "open", "high", "low", "close", "volume")
    return replace(bars, **{name: getattr(bars, name)[kept] for name in columns})


def test_latest_closed_day_is_known_from_the_hour_that_ends_with_it() -> None:
    hours, days = bars_at(list(range(72)), "1h"), bars_at([0, 1, 2], "1d")
    want = [NONE] * 23 + [0] * 24 + [1] * 24 + [2]
    assert latest_closed(hours, days).tolist() == want


def test_latest_closed_of_itself_is_itself() -> None:
    hours = bars_at([0, 1, 5, 90], "1h")
    assert latest_closed(hours, hours).tolist() == [0, 1, 2, 3]


def test_latest_closed_finer_bars_give_the_last_within_the_base_bar() -> None:
    days, hours = bars_at([0, 1], "1d"), bars_at(list(range(48)), "1h")
    assert latest_closed(days, hours).tolist() == [23, 47]


def test_latest_closed_stale_bar_is_none() -> None:
    hours, days = bars_at(list(range(24 * 9)), "1h"), bars_at([0], "1d")
    places = latest_closed(hours, days)
    known = np.flatnonzero(places == 0)
    # Closed with hour 23; five days of its own later is the last time it counts.
    assert (known[0], known[-1]) == (23, 23 + 5 * 24)


def test_latest_closed_without_bars_is_none() -> None:
    empty = bars_at([], "1d")
    no_bars = replace(empty, time=empty.time[:0])
    assert latest_closed(bars_at([0, 1], "1h"), no_bars).tolist() == [NONE, NONE]


@settings(deadline=None)
@given(
    base=st.lists(st.integers(0, 400), min_size=1, max_size=30),
    other=st.lists(st.integers(0, 16), min_size=1, max_size=10),
)
def test_latest_closed_equals_a_search_through_all_bars(base: list[int], other: list[int]) -> None:
    hours, days = bars_at(base, "1h"), bars_at(other, "1d")
    want = []
    for now in hours.close_time:
        closed = [place for place, time in enumerate(days.close_time) if time <= now]
        fresh = closed and now - days.close_time[closed[-1]] <= 5 * DAY
        want.append(closed[-1] if fresh else NONE)
    assert latest_closed(hours, days).tolist() == want
