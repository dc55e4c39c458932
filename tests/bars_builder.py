"""Market data made up for tests: files as a user has them, and bars as the pipeline reads them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from ktrdr_trainer.pipeline.arrays import Float64s
from ktrdr_trainer.pipeline.bars import BarCounts, Bars, bar_ns

START_NS = int(datetime(2020, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000_000
HEADER = "date,open,high,low,close,volume"


def random_walk(rows: int, *, seed: int = 0, step: float = 0.01) -> Float64s:
    """Closes around 100 that move by about `step` a bar."""
    moves = np.random.default_rng(seed).normal(0, step, rows)
    return np.asarray(100 * np.exp(np.cumsum(moves)))


def make_bars(
    close: Sequence[float] | Float64s, *, timeframe: str = "1h", symbol: str = "AAA", seed: int = 0
) -> Bars:
    """Bars without gaps from 2020-01-01; high and low enclose open and close."""
    closes = np.asarray(close, dtype=np.float64)
    draw = np.random.default_rng(seed)
    opens = np.concatenate([closes[:1], closes[:-1]])
    spread = draw.uniform(0, 0.005, (2, len(closes)))
    counts = BarCounts(len(closes), len(closes), 0, 0, 0, 0)
    return Bars(
        symbol=symbol,
        timeframe=timeframe,
        time=START_NS + np.arange(len(closes)) * bar_ns(timeframe),
        open=opens,
        high=np.maximum(opens, closes) * (1 + spread[0]),
        low=np.minimum(opens, closes) * (1 - spread[1]),
        close=closes,
        volume=draw.uniform(1, 1000, len(closes)),
        counts=counts,
    )


def lines_of(bars: Bars) -> list[str]:
    """The file's lines, header first."""
    columns = zip(bars.time, bars.open, bars.high, bars.low, bars.close, bars.volume, strict=True)
    return [HEADER] + [
        f"{np.datetime64(int(time), 'ns').astype('datetime64[s]')}Z,{','.join(map(repr, rest))}"
        for time, *rest in ((row[0], *map(float, row[1:])) for row in columns)
    ]


def write_bars(
    folder: Path, symbol: str, timeframe: str = "1h", *, rows: int = 400, seed: int = 0
) -> Path:
    """Write `{SYMBOL}_{timeframe}.csv` with a seeded random walk from 2020-01-01 on."""
    bars = make_bars(random_walk(rows, seed=seed), timeframe=timeframe, symbol=symbol, seed=seed)
    return write_lines(folder, lines_of(bars), symbol=symbol, timeframe=timeframe)


def write_lines(
    folder: Path, lines: Sequence[str], *, symbol: str = "AAA", timeframe: str = "1h"
) -> Path:
    """Write a file of exactly these lines."""
    path = folder / f"{symbol}_{timeframe}.csv"
    path.write_text("\n".join(lines) + "\n")
    return path
