"""The bytes of a market data file as columns of numbers, with the line each row stands on.

Called by `bars.py` only. Written over the standard library: for the usual file of some ten thousand
rows, importing a data frame library costs more than all of the reading (measured for 17,000 rows:
0.06 s to read, 1.2 s to import pandas), and TA-Lib imports one too where it is installed.
"""

import csv
import math
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from ktrdr_api.errors import DataError, TemporaryError
from ktrdr_api.strategy_sections import YEARS
from ktrdr_trainer.pipeline.arrays import Bools, Float64s, Int64s

if TYPE_CHECKING:
    import _csv

MAX_FILE_BYTES: Final = 1 << 30
"""Ten years of one-minute bars take about 0.4 GB."""
ROWS_BETWEEN_CHECKS: Final = 32_768
"""About a tenth of a second (measured)."""
PRICES: Final = ("open", "high", "low", "close")
NUMBERS: Final = (*PRICES, "volume")
HEADER: Final = ",".join(("date", *NUMBERS))

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_CellsOf: TypeAlias = Callable[[list[str]], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a file in its own order; blank lines are left out."""

    line: Int64s
    """(rows,) as an editor shows it: counted from 1, the header included."""
    time: Int64s
    """(rows,) nanoseconds since 1970, UTC."""
    numbers: Float64s
    """(rows, 5) open, high, low, close, volume; NaN where a cell is no number."""

    def __len__(self) -> int:
        return len(self.line)

    def taken(self, rows: Bools | Int64s) -> "Table":
        """The rows of a mask, or those at some places, in that order."""
        return Table(self.line[rows], self.time[rows], self.numbers[rows])


def read_table(path: Path, *, check_stop: Callable[[], None]) -> Table:
    """Read a file with the columns date, open, high, low, close and, if it has one, volume.

    Args:
        path: The file.
        check_stop: Called several times a second; raises to stop.

    Raises:
        DataError: No such file, no such columns, no rows, or a date that cannot be read.
        TemporaryError: The system could not read an existing file.
    """
    with _reading(path) as lines:
        reader = csv.reader(lines)
        header = [cell.strip() for cell in next(filter(None, reader), [])]
        if not header:
            raise DataError(f"is empty; write the header {HEADER} and rows", file=path.name)
        cells = _cells_of(header, path.name, row=reader.line_num)
        rows = _stoppable(reader, check_stop)
        return _table(rows, header.index("date"), cells, path.name)


@contextmanager
def _reading(path: Path) -> Iterator[Iterator[str]]:
    """Open a file; whatever goes wrong while it is read becomes an error that names it."""
    try:
        if not path.is_file():
            raise DataError(_missing(path), file=path.name)
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise DataError(f"{size} bytes; at most {MAX_FILE_BYTES} are read", file=path.name)
        with path.open(encoding="utf-8-sig", newline="") as lines:
            yield lines
    except UnicodeDecodeError as error:
        raise DataError("is not text in UTF-8; save it as such", file=path.name) from error
    except csv.Error as error:
        raise DataError(f"is not CSV ({error}); write plain cells", file=path.name) from error
    except PermissionError as error:
        text = "may not be read; let the user of the trainer's process read it"
        raise DataError(text, file=path.name) from error
    except OSError as error:
        raise TemporaryError(f"{path.name}: cannot be read: {error.strerror}") from error


def _missing(path: Path) -> str:
    if os.path.lexists(path):
        return "is a folder or a broken link; put the file itself in its place"
    if not path.parent.is_dir():
        return f"not found: there is no folder {path.parent}; check the data folder"
    if found := sorted(other.name for other in path.parent.glob("*.csv"))[:10]:
        return f"not found in the data folder; its first files are: {', '.join(found)}"
    return (
        "not found in the data folder, which has no .csv files; put it there, or choose another "
        "folder (a TrainingJob: data.persistentVolumeClaim.subPath)"
    )


def _cells_of(header: Sequence[str], name: str, *, row: int) -> _CellsOf:
    """How to take the five numbers from a row; the volume is NaN where the file has none."""
    absent = [column for column in ("date", *PRICES) if column not in header]
    if absent:
        text = f"has no column {', '.join(absent)} in its header; write {HEADER}"
        raise DataError(text, file=name, row=row)
    repeated = [column for column in ("date", *NUMBERS) if header.count(column) > 1]
    if repeated:
        text = f"has more than one column {', '.join(repeated)} in its header; keep one"
        raise DataError(text, file=name, row=row)
    take = itemgetter(*(header.index(column) for column in NUMBERS if column in header))
    if "volume" in header:
        return take
    return lambda row: (*take(row), "nan")


def _stoppable(
    reader: "_csv.Reader", check_stop: Callable[[], None]
) -> Iterator[tuple[int, list[str]]]:
    """Each row that is not blank, with its line."""
    for number, row in enumerate(reader):
        if number % ROWS_BETWEEN_CHECKS == 0:
            check_stop()
        if row:
            yield reader.line_num, row


def _table(
    rows: Iterator[tuple[int, list[str]]], place: int, cells_of: _CellsOf, name: str
) -> Table:
    line, time, numbers = array("q"), array("q"), array("d")
    for at, row in rows:
        line.append(at)
        try:
            time.append(_nanoseconds(row[place]))
        except (ValueError, IndexError) as error:
            shown = row[place][:40] if place < len(row) else ""
            text = f"unreadable date {shown!r}; write it as 2019-10-01T13:00:00Z"
            raise DataError(text, file=name, row=at) from error
        try:
            numbers.extend(tuple(map(float, cells_of(row))))
        except (ValueError, IndexError):
            blanks = [""] * (place + len(NUMBERS))  # a short row has no cells at its end
            numbers.extend(_number(cell) for cell in cells_of(row + blanks))
    if not line:
        raise DataError(f"has no rows; write rows under the header {HEADER}", file=name)
    return Table(np.array(line), np.array(time), np.array(numbers).reshape(-1, len(NUMBERS)))


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _nanoseconds(text: str) -> int:
    """Nanoseconds since 1970 of an ISO 8601 date or time; without an offset it is UTC."""
    time = datetime.fromisoformat(text.strip())
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    if time.year not in YEARS:
        raise ValueError(f"year {time.year}")
    return (time - _EPOCH) // _MICROSECOND * 1_000
