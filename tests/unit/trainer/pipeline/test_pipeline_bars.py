"""Reading market data files, checked against pandas and, for bad files, by the exact message."""

import os
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bars_builder import HEADER, lines_of, make_bars, random_walk, write_bars, write_lines
from ktrdr_api.errors import CancellationError, DataError, TemporaryError
from ktrdr_trainer.pipeline.bars import Bars, read_bars
from ktrdr_trainer.pipeline.csv_table import read_table

START = date(2020, 1, 1)
END = date(2020, 12, 31)


def read(folder: Path, start: date = START, end: date = END) -> Bars:
    return read_bars(folder, "AAA", "1h", start=start, end=end, check_stop=lambda: None)


def good_lines(rows: int = 300) -> list[str]:
    return lines_of(make_bars(random_walk(rows)))


def test_read_bars_good_file_equals_pandas(tmp_path: Path) -> None:
    path = write_bars(tmp_path, "AAA", rows=500)
    bars = read(tmp_path)
    frame = pd.read_csv(path, parse_dates=["date"])
    want = frame["date"].dt.tz_localize(None).to_numpy("datetime64[ns]").astype(np.int64)
    assert bars.time.tolist() == want.tolist()
    for name in ("open", "high", "low", "close", "volume"):
        assert getattr(bars, name).tolist() == frame[name].tolist()
    assert bars.close_time[0] - bars.time[0] == 3_600_000_000_000


def test_read_bars_dates_naive_offset_and_utc_are_the_same_time(tmp_path: Path) -> None:
    cells = ",1,1,1,1,5"
    dates = [
        "2020-01-01 05:00:00",
        "2020-01-01T08:00:00+02:00",
        "2020-01-01T07:00:00Z",
        "2020-01-02",
    ]
    write_lines(tmp_path, [HEADER, *(day + cells for day in dates)])
    hours = [int(time) // 3_600_000_000_000 for time in read(tmp_path).time]
    assert [hour - hours[0] for hour in hours] == [0, 1, 2, 19]


def test_read_bars_date_range_is_inclusive_on_both_sides(tmp_path: Path) -> None:
    write_bars(tmp_path, "AAA", rows=24 * 5)
    bars = read(tmp_path, date(2020, 1, 2), date(2020, 1, 3))
    assert len(bars) == 48
    assert np.datetime64(int(bars.time[0]), "ns") == np.datetime64("2020-01-02T00:00")
    assert np.datetime64(int(bars.time[-1]), "ns") == np.datetime64("2020-01-03T23:00")
    assert (bars.counts.rows_read, bars.counts.rows_in_range) == (120, 48)


def test_read_bars_unsorted_file_is_sorted(tmp_path: Path) -> None:
    header, *rows = good_lines()
    write_lines(tmp_path, [header, *reversed(rows)])
    (other := tmp_path / "sorted").mkdir()
    write_lines(other, [header, *rows])
    assert read(tmp_path).close.tolist() == read(other).close.tolist()


def test_read_bars_repeated_date_last_row_wins(tmp_path: Path) -> None:
    lines = good_lines()
    time = lines[10].split(",")[0]
    lines.insert(30, f"{time},7,7,7,7,7")
    write_lines(tmp_path, lines)
    bars = read(tmp_path)
    assert (len(bars), bars.close[9], bars.counts.duplicates) == (300, 7.0, 1)


def test_read_bars_repeated_date_bad_last_row_does_not_win(tmp_path: Path) -> None:
    lines = good_lines()
    time = lines[10].split(",")[0]
    lines.insert(30, f"{time},7,7,7,nan,7")
    write_lines(tmp_path, lines)
    bars = read(tmp_path)
    assert (len(bars), bars.counts.duplicates, bars.counts.dropped) == (300, 0, 1)


@pytest.mark.parametrize(
    "cells",
    [
        "nan,1,1,1,1",
        "1,inf,1,1,1",
        "1,1,0,1,1",
        "1,1,1,-1,1",
        "x,1,1,1,1",
        ",,,,",
        "1",
        "2,1,1,1,1",
    ],
)
def test_read_bars_unusable_row_is_dropped_and_counted(tmp_path: Path, cells: str) -> None:
    lines = good_lines()
    lines[5] = f"{lines[5].split(',')[0]},{cells}"
    write_lines(tmp_path, lines)
    bars = read(tmp_path)
    assert (len(bars), bars.counts.dropped, bars.counts.gaps) == (299, 1, 1)


@pytest.mark.parametrize("volume", ["-1", "nan", "", "inf", "none"])
def test_read_bars_no_volume_counts_as_zero(tmp_path: Path, volume: str) -> None:
    lines = good_lines()
    lines[5] = f"{lines[5].rpartition(',')[0]},{volume}"
    write_lines(tmp_path, lines)
    bars = read(tmp_path)
    assert (bars.volume[4], bars.counts.volume_filled, len(bars)) == (0.0, 1, 300)


def test_read_bars_file_without_volume_column_has_none(tmp_path: Path) -> None:
    write_lines(tmp_path, [line.rpartition(",")[0] for line in good_lines()])
    assert read(tmp_path).volume.tolist() == [0.0] * 300


def test_read_bars_byte_order_mark_blank_lines_and_spaces_are_no_matter(tmp_path: Path) -> None:
    header, *rows = good_lines()
    text = "\r\n".join(["\ufeff", header.replace(",", ", "), *rows, "", ""])
    (tmp_path / "AAA_1h.csv").write_text(text)
    assert len(read(tmp_path)) == 300


def change(row: int, line: str) -> Callable[[list[str]], list[str]]:
    return lambda lines: [*lines[: row - 1], line, *lines[row:]]


BAD_FILES: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "empty": (lambda _: [], f"AAA_1h.csv: is empty; write the header {HEADER} and rows"),
    "header only": (
        lambda lines: lines[:1],
        f"AAA_1h.csv: has no rows; write rows under the header {HEADER}",
    ),
    "no close": (
        change(1, "date,open,high,low,price,volume"),
        f"AAA_1h.csv, row 1: has no column close in its header; write {HEADER}",
    ),
    "close twice, below a blank line": (
        lambda lines: ["", "date,open,high,low,close,volume,close", *lines[1:]],
        "AAA_1h.csv, row 2: has more than one column close in its header; keep one",
    ),
    "seconds since 1970": (
        change(4, "1506816000,1,1,1,1,1"),
        "AAA_1h.csv, row 4: unreadable date '1506816000'; write it as 2019-10-01T13:00:00Z",
    ),
    "bad date": (
        change(17, "17.10.2020,1,1,1,1,1"),
        "AAA_1h.csv, row 17: unreadable date '17.10.2020'; write it as 2019-10-01T13:00:00Z",
    ),
    "no date": (
        change(3, ",1,1,1,1,1"),
        "AAA_1h.csv, row 3: unreadable date ''; write it as 2019-10-01T13:00:00Z",
    ),
    "impossible year": (
        change(3, "0020-01-01,1,1,1,1,1"),
        "AAA_1h.csv, row 3: unreadable date '0020-01-01'; write it as 2019-10-01T13:00:00Z",
    ),
    "negative prices": (
        lambda lines: [*lines[:4], *(line.replace(",1", ",-1") for line in lines[4:7]), *lines[7:]],
        "AAA_1h.csv, row 5: 3 of 200 rows cannot be used, more than 1%; repair or remove them, "
        "the first are: row 5: a price is missing or not above 0; "
        "row 6: a price is missing or not above 0; row 7: a price is missing or not above 0",
    ),
    "crooked rows": (
        lambda lines: [*lines[:4], *(f"{line[:20]},5,4,3,4,1" for line in lines[4:7]), *lines[7:]],
        "AAA_1h.csv, row 5: 3 of 200 rows cannot be used, more than 1%; repair or remove them, "
        "the first are: row 5: high and low do not enclose open and close; "
        "row 6: high and low do not enclose open and close; "
        "row 7: high and low do not enclose open and close",
    ),
    "repeated": (
        lambda lines: [*lines, *lines[1:4]],
        "AAA_1h.csv, row 2: 3 of 203 rows cannot be used, more than 1%; repair or remove them, "
        "the first are: row 2: another row below has its date; "
        "row 3: another row below has its date; row 4: another row below has its date",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_read_bars_bad_file_is_refused_by_name_row_and_remedy(tmp_path: Path, case: str) -> None:
    spoil, want = BAD_FILES[case]
    lines = spoil(lines_of(make_bars(np.linspace(100, 150, 200))))
    (tmp_path / "AAA_1h.csv").write_text("".join(line + "\n" for line in lines))
    with pytest.raises(DataError) as refused:
        read(tmp_path)
    assert str(refused.value) == want


def test_read_bars_missing_file_lists_what_is_there(tmp_path: Path) -> None:
    write_bars(tmp_path, "BBB")
    with pytest.raises(DataError) as refused:
        read(tmp_path)
    assert str(refused.value) == (
        "AAA_1h.csv: not found in the data folder; its first files are: BBB_1h.csv"
    )


def test_read_bars_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "AAA_1h.csv").write_bytes(b"\x89PNG\r\n\xff\xfe\x00")
    with pytest.raises(DataError, match=r"AAA_1h\.csv: is not text in UTF-8; save it as such"):
        read(tmp_path)


def test_read_bars_endless_cell_is_refused(tmp_path: Path) -> None:
    (tmp_path / "AAA_1h.csv").write_text(f'{HEADER}\n"{"x" * 200_000}')
    with pytest.raises(DataError, match=r"AAA_1h\.csv: is not CSV \(field larger"):
        read(tmp_path)


def test_read_bars_file_beyond_the_limit_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "AAA_1h.csv").open("w") as file:
        os.truncate(file.fileno(), (1 << 30) + 1)  # a hole: takes no space
    with pytest.raises(DataError, match="1073741825 bytes; at most 1073741824 are read"):
        read(tmp_path)


def test_read_bars_name_too_long_for_the_system_is_temporary(tmp_path: Path) -> None:
    with pytest.raises(TemporaryError, match="cannot be read: File name too long"):
        read_table(tmp_path / ("A" * 300), check_stop=lambda: None)


def test_read_bars_columns_in_another_order_quoted_beside_others_are_the_same(
    tmp_path: Path,
) -> None:
    rows = [line.split(",") for line in good_lines()]
    text = "\r\n".join(f'{c},"{v}",x,"{d}",{h},{low},{o}' for d, o, h, low, c, v in rows)
    (tmp_path / "AAA_1h.csv").write_text(text)
    got = read(tmp_path)
    write_lines(tmp_path, good_lines())
    want = read(tmp_path)
    for name in ("time", "open", "high", "low", "close", "volume"):
        assert np.array_equal(getattr(got, name), getattr(want, name)), name


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_read_bars_folder_or_broken_link_in_place_of_file_is_said_to_be_one(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "AAA_1h.csv")
    with pytest.raises(DataError, match=r"AAA_1h\.csv: is a folder or a broken link; put the file"):
        read(tmp_path)


def test_read_bars_of_no_folder_or_one_without_files_says_which(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not found in the .* has no \.csv files; put it"):
        read(tmp_path)
    with pytest.raises(DataError, match=f"there is no folder {tmp_path / 'x'}; check the data"):
        read(tmp_path / "x")


def test_read_bars_of_a_long_file_can_be_stopped_within(tmp_path: Path) -> None:
    asked: list[int] = []
    write_lines(tmp_path, [HEADER, *["2020-01-01,1,1,1,1,1"] * 70_000])
    with pytest.raises(CancellationError):
        read_bars(tmp_path, "AAA", "1h", start=START, end=END, check_stop=stop_at(asked, 3))
    assert len(asked) == 3


def stop_at(asked: list[int], limit: int) -> Callable[[], None]:
    def check_stop() -> None:
        asked.append(1)
        if len(asked) == limit:
            raise CancellationError("asked to stop")

    return check_stop
