"""Bars of one symbol and timeframe: where market data come into a run, and where bad rows stop.

Called by `prepare.py`; the bars go on to `indicators.py`, `labels.py` and `align.py`. Nothing is
interpolated or invented: a bad row is dropped and counted, and too many of them are an error.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np

from ktrdr_api.errors import DataError
from ktrdr_api.strategy_sections import TIMEFRAME_SECONDS
from ktrdr_trainer.pipeline.arrays import Bools, Float64s, Int64s
from ktrdr_trainer.pipeline.csv_table import read_table

NS_PER_SECOND: Final = 1_000_000_000
MAX_BAD_FRACTION: Final = 0.01
MAX_ROWS_NAMED: Final = 5
GAP_BARS: Final = 1.5
"""A longer step between neighbours is a gap."""


@dataclass(frozen=True, slots=True)
class BarCounts:
    """What was found in one file; all but `rows_read` within the date range."""

    rows_read: int
    rows_in_range: int
    dropped: int
    duplicates: int
    volume_filled: int
    """Rows whose volume was absent or negative and counts as 0."""
    gaps: int


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars in ascending order, no two at the same time; all arrays (rows,)."""

    symbol: str
    timeframe: str
    time: Int64s
    """Start of each bar, nanoseconds since 1970, UTC."""
    open: Float64s
    high: Float64s
    low: Float64s
    close: Float64s
    volume: Float64s
    counts: BarCounts

    def __len__(self) -> int:
        return len(self.time)

    @property
    def close_time(self) -> Int64s:
        """When each bar is complete, nanoseconds since 1970, UTC."""
        return self.time + bar_ns(self.timeframe)


def bar_ns(timeframe: str) -> int:
    """Length of a bar in nanoseconds."""
    return TIMEFRAME_SECONDS[timeframe] * NS_PER_SECOND


def file_name(symbol: str, timeframe: str) -> str:
    """Where bars lie in the data folder."""
    return f"{symbol}_{timeframe}.csv"


def read_bars(
    folder: Path,
    symbol: str,
    timeframe: str,
    *,
    start: date,
    end: date,
    check_stop: Callable[[], None],
) -> Bars:
    """Read the bars that start between two days, both inclusive.

    Args:
        folder: Holds `{SYMBOL}_{timeframe}.csv`.
        symbol: Which file.
        timeframe: Which file.
        start: First day, UTC.
        end: Last day, UTC.
        check_stop: Called several times a second; raises to stop.

    Raises:
        DataError: The file is missing or no table of bars, or more than 1 % of its rows in the
            range are unusable; names file and row, counted as an editor does.
        TemporaryError: The system could not read an existing file.
    """
    name = file_name(symbol, timeframe)
    table = read_table(folder / name, check_stop=check_stop)
    since, until = _midnight(start), _midnight(end + timedelta(days=1))
    inside = table.taken((table.time >= since) & (table.time < until))
    priceless = _is_priceless(inside.numbers)
    crooked = _is_crooked(inside.numbers) & ~priceless
    sound = inside.taken(~(priceless | crooked))
    ordered = sound.taken(np.argsort(sound.time, kind="stable"))
    # Of rows at the same time the last in the file wins.
    beaten = np.isin(np.arange(len(ordered)), np.flatnonzero(np.diff(ordered.time) == 0))
    _refuse_many(
        name,
        len(inside),
        {
            "a price is missing or not above 0": inside.line[priceless],
            "high and low do not enclose open and close": inside.line[crooked],
            "another row below has its date": ordered.line[beaten],
        },
    )
    kept = ordered.taken(~beaten)
    open_, high, low, close, volume = np.ascontiguousarray(kept.numbers.T)
    silent = ~(np.isfinite(volume) & (volume >= 0))
    counts = BarCounts(
        rows_read=len(table),
        rows_in_range=len(inside),
        dropped=len(inside) - len(sound),
        duplicates=int(beaten.sum()),
        volume_filled=int(silent.sum()),
        gaps=int((np.diff(kept.time) > GAP_BARS * bar_ns(timeframe)).sum()),
    )
    volume = np.where(silent, 0.0, volume)
    return Bars(symbol, timeframe, kept.time, open_, high, low, close, volume, counts)


def _midnight(day: date) -> int:
    seconds = datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
    return int(seconds) * NS_PER_SECOND


def _is_priceless(numbers: Float64s) -> Bools:
    """(rows, 5) to (rows,): a price is NaN, infinite, zero or negative."""
    prices = numbers[:, :4]
    return np.asarray((~np.isfinite(prices) | (prices <= 0)).any(axis=1))


def _is_crooked(numbers: Float64s) -> Bools:
    """(rows, 5) to (rows,): the high is not the highest or the low not the lowest price."""
    open_, high, low, close = numbers[:, :4].T
    return np.asarray((high < np.maximum(open_, close)) | (low > np.minimum(open_, close)))


def _refuse_many(name: str, total: int, lines_by_fault: Mapping[str, Int64s]) -> None:
    faults = sorted((int(n), fault) for fault, lines in lines_by_fault.items() for n in lines)
    if len(faults) <= MAX_BAD_FRACTION * total:
        return
    first = "; ".join(f"row {line}: {fault}" for line, fault in faults[:MAX_ROWS_NAMED])
    raise DataError(
        f"{len(faults)} of {total} rows cannot be used, more than {MAX_BAD_FRACTION:.0%}; "
        f"repair or remove them, the first are: {first}",
        file=name,
        row=faults[0][0],
    )
