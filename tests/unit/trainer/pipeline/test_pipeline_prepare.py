"""The whole preparation, on files: what comes out, that nothing leaks, and what is refused."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bars_builder import lines_of, make_bars, random_walk, write_bars, write_lines
from ktrdr_api.errors import CancellationError, DataError
from ktrdr_api.strategy import Strategy, parse_strategy, with_overrides
from ktrdr_trainer.pipeline.bars import bar_ns, read_bars
from ktrdr_trainer.pipeline.fuzzy import degree
from ktrdr_trainer.pipeline.indicators import outputs
from ktrdr_trainer.pipeline.labels import zigzag
from ktrdr_trainer.pipeline.prepare import PreparedDataset, prepare

TEXT = """
name: prepared
version: "3.0"
training_data:
  symbols: {mode: multi_symbol, list: [AAA, BBB]}
  timeframes: {mode: multi_timeframe, list: [1h, 4h], base_timeframe: 1h}
  date_range: {start: "2020-01-01", end: "2020-12-31"}
  history_required: 50
indicators:
  rsi: {type: rsi, period: 14}
  macd: {type: macd}
fuzzy_sets:
  zone:
    indicator: rsi
    low: [0, 20, 50]
    high: {type: trapezoidal, parameters: [50, 80, 100, 100]}
nn_inputs:
- {fuzzy_set: zone, timeframes: all}
- {raw_indicator: macd.line, timeframes: [4h], normalization: zscore}
- {raw_indicator: rsi, timeframes: [1h], normalization: minmax}
model: {type: mlp}
training: {labels: {source: zigzag, zigzag_threshold: 0.03}}
"""
IDS = (
    "1h_zone_low",
    "1h_zone_high",
    "4h_zone_low",
    "4h_zone_high",
    "4h_macd.line_raw",
    "1h_rsi_raw",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, symbol in enumerate(("AAA", "BBB")):
        write_bars(tmp_path, symbol, "1h", rows=2000, seed=seed)
        write_bars(tmp_path, symbol, "4h", rows=500, seed=seed + 10)
    return tmp_path


def strategy(text: str = TEXT, **overrides: Any) -> Strategy:
    return with_overrides(parse_strategy(text), **overrides)


def run(folder: Path, of: Strategy | None = None) -> PreparedDataset:
    return prepare(of or strategy(), folder, check_stop=lambda: None, on_stage=lambda _: None)


def test_prepare_gives_trainable_arrays(folder: Path) -> None:
    got = run(folder)
    assert got.feature_ids == IDS
    for part in (got.train, got.validation, got.test):
        assert part.features.shape == (len(part), 6)
        assert part.features.flags["C_CONTIGUOUS"]
        assert np.isfinite(part.features).all()
        columns = (part.features, part.labels, part.symbol_index, part.time)
        assert [str(column.dtype) for column in columns] == ["float32", "int64", "int32", "int64"]
        assert set(part.symbol_index.tolist()) == {0, 1}
    assert got.class_counts.tolist() == np.bincount(got.train.labels).tolist()
    assert (np.diff(got.train.time[got.train.symbol_index == 0]) > 0).all()


def test_prepare_row_holds_what_was_known_when_its_bar_closed(folder: Path) -> None:
    got = run(folder)
    spec = strategy()
    files = {
        timeframe: read_bars(
            folder,
            "BBB",
            timeframe,
            start=date(2020, 1, 1),
            end=date(2020, 12, 31),
            check_stop=lambda: None,
        )
        for timeframe in ("1h", "4h")
    }
    part = got.validation
    row = int(np.flatnonzero(part.symbol_index == 1)[37])
    hour = int(np.searchsorted(files["1h"].time, part.time[row]))
    now = part.time[row] + bar_ns("1h")
    four = max(place for place, time in enumerate(files["4h"].close_time) if time <= now)
    rsi = {name: outputs(spec.indicators["rsi"], bars)[""] for name, bars in files.items()}
    zone = spec.fuzzy_sets["zone"].memberships
    want = [
        float(degree(zone[label], np.array([rsi[timeframe][place]]))[0])
        for timeframe, place in (("1h", hour), ("4h", four))
        for label in ("low", "high")
    ]
    np.testing.assert_allclose(part.features[row, :4], want, rtol=1e-6)
    line = outputs(spec.indicators["macd"], files["4h"])["line"][four]
    scale = got.scaling.columns[4]
    np.testing.assert_allclose(
        part.features[row, 4], (line - scale.center) / scale.scale, rtol=1e-4, atol=1e-6
    )
    label = zigzag(files["1h"].close, threshold=0.03).value[hour]
    assert part.labels[row] == label


def test_prepare_scaling_is_that_of_the_training_rows_alone(folder: Path) -> None:
    train = run(folder).train.features
    np.testing.assert_allclose(train[:, 4].mean(), 0, atol=1e-4)
    np.testing.assert_allclose(train[:, 4].std(), 1, atol=1e-4)
    assert (train[:, 5].min(), train[:, 5].max()) == (0.0, 1.0)


def test_prepare_future_bars_change_no_training_row(tmp_path: Path, folder: Path) -> None:
    before = run(folder)
    (changed := tmp_path / "changed").mkdir()
    first_test = str(np.datetime64(int(before.test.time.min()), "ns"))[:19]
    for path in folder.glob("*.csv"):
        header, *rows = path.read_text().splitlines()
        past = [row for row in rows if row < first_test]
        future = [f"{row.split(',')[0]},1,1,1,1,1" for row in rows if row >= first_test]
        (changed / path.name).write_text("\n".join([header, *past, *future]))
    after = run(changed)
    # Later labels may appear and shift the cut; what both trained on must be the same.
    common = min(int((part.symbol_index == 0).sum()) for part in (before.train, after.train))
    scaled_alike = [0, 1, 2, 3]  # memberships: not scaled by statistics of a shifted split
    np.testing.assert_array_equal(
        before.train.features[:common, scaled_alike], after.train.features[:common, scaled_alike]
    )
    np.testing.assert_array_equal(before.train.labels[:common], after.train.labels[:common])


def test_prepare_twice_gives_the_same_bytes(folder: Path) -> None:
    one, two = run(folder), run(folder)
    for name in ("train", "validation", "test"):
        assert getattr(one, name).features.tobytes() == getattr(two, name).features.tobytes()
        assert getattr(one, name).labels.tobytes() == getattr(two, name).labels.tobytes()
    assert one.scaling == two.scaling


def test_prepare_summary_accounts_for_every_row(folder: Path) -> None:
    got = run(folder)
    summary: dict[str, Any] = json.loads(json.dumps(got.summary, allow_nan=False))
    used = [len(part) for part in (got.train, got.validation, got.test)]
    assert [summary[f"{name}_rows"] for name in ("train", "validation", "test")] == used
    lost = summary["purged_rows"] + summary["embargoed_rows"]
    assert sum(used) + lost == summary["usable_rows"]["AAA"] + summary["usable_rows"]["BBB"]
    assert summary["files"]["AAA_1h.csv"]["rows_read"] == 2000
    assert summary["common_window"] == ["2020-01-01T00:00:00Z", "2020-03-24T08:00:00Z"]


def test_prepare_tells_its_stages_and_asks_between_steps(folder: Path) -> None:
    heard: list[str] = []
    prepare(strategy(), folder, check_stop=lambda: heard.append("stop?"), on_stage=heard.append)
    stages = [word for word in heard if word != "stop?"]
    assert (stages, heard[0]) == (["load", "features"], "load")
    assert heard.count("stop?") == 4 + 2 * 3 + 2  # files, indicators by timeframe, split and fit


@pytest.mark.parametrize("asked", range(1, 13))
def test_prepare_stops_wherever_it_is_asked_to(folder: Path, asked: int) -> None:
    calls = iter(range(1, 100))

    def check_stop() -> None:
        if next(calls) == asked:
            raise CancellationError("asked to stop")

    with pytest.raises(CancellationError):
        prepare(strategy(), folder, check_stop=check_stop, on_stage=lambda _: None)


def refusal(folder: Path, of: Strategy) -> str:
    with pytest.raises(DataError) as refused:
        run(folder, of)
    return str(refused.value)


def test_prepare_too_few_bars_names_file_and_both_numbers(folder: Path) -> None:
    text = TEXT.replace("history_required: 50", "history_required: 1000")
    assert refusal(folder, strategy(text)) == (
        "AAA_4h.csv: 500 bars from 2020-01-01 to 2020-12-31, fewer than history_required (1000); "
        "add bars, or widen date_range"
    )


def test_prepare_dates_outside_the_data_have_no_bars(folder: Path) -> None:
    assert refusal(folder, strategy(start="2020-06-01")) == (
        "AAA_1h.csv: 0 bars from 2020-06-01 to 2020-12-31, fewer than history_required (50); "
        "add bars, or widen date_range"
    )


def test_prepare_symbols_without_common_time_names_both_ends(folder: Path) -> None:
    header, *rows = lines_of(make_bars(random_walk(500)))
    late = [row.replace("2020-01", "2020-07", 1) for row in rows]
    write_lines(folder, [header, *late], symbol="BBB")
    write_bars(folder, "AAA", "1h", rows=2000)
    hourly = TEXT.replace("{mode: multi_timeframe, list: [1h, 4h], base_timeframe: 1h}", HOURLY)
    assert refusal(folder, strategy(hourly.replace("[4h]", "[1h]"))) == (
        "the symbols and timeframes have 0 bars in common, at least 50 over 7 days are needed: "
        "BBB_1h.csv begins at 2020-07-01T00:00:00Z, AAA_1h.csv ends at 2020-03-24T08:00:00Z; "
        "load the missing bars, or leave a symbol or timeframe out"
    )


def test_prepare_calm_market_has_no_labels(folder: Path) -> None:
    text = TEXT.replace("zigzag_threshold: 0.03", "zigzag_threshold: 0.99")
    assert refusal(folder, strategy(text)) == (
        "no bar has both all its features and a label; widen date_range, shorten the longest "
        "indicator, or lower training.labels.zigzag_threshold"
    )


def test_prepare_split_without_rows_is_refused(tmp_path: Path) -> None:
    # One long way up: every label in the middle waits for the same bar near the end.
    close = [120.0, *np.linspace(119, 100, 20), *np.linspace(100, 200, 950)]
    write_lines(tmp_path, lines_of(make_bars([*close, *np.linspace(199, 150, 50)])))
    assert refusal(tmp_path, strategy(ONE_WAY)) == (
        "no rows are left in the validation split after the cut, the purge and the embargo; "
        "widen date_range, lower the zigzag_threshold, or raise data_split.validation"
    )


def test_prepare_class_missing_in_training_is_refused(tmp_path: Path) -> None:
    down, up = np.linspace(200, 100, 600), np.linspace(100, 200, 300)
    waves = 200 - 40 * np.abs(np.sin(np.linspace(0, 20, 200)))
    write_lines(tmp_path, lines_of(make_bars([150.0, *down, *up, *waves])))
    assert refusal(tmp_path, strategy(ONE_WAY)) == (
        "the training split has no buy rows; change training.labels.zigzag_threshold or widen "
        "date_range"
    )


HOURLY = "{mode: single, timeframe: 1h}"
ONE_WAY = """
name: one_way
version: "3.0"
training_data:
  symbols: {mode: single, symbol: AAA}
  timeframes: {mode: single, timeframe: 1h}
  date_range: {start: "2020-01-01", end: "2020-12-31"}
indicators: {change: {type: momentum, period: 1}}
nn_inputs: [{raw_indicator: change}]
model: {type: mlp}
training: {labels: {source: zigzag, zigzag_threshold: 0.1}}
"""
