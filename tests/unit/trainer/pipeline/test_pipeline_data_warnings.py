"""What a user is told about data that can be trained on, but perhaps not as expected."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bars_builder import lines_of, make_bars, random_walk, write_lines
from ktrdr_api.strategy import Strategy, parse_strategy
from ktrdr_trainer.pipeline.bars import Bars
from ktrdr_trainer.pipeline.data_warnings import data_warnings
from ktrdr_trainer.pipeline.prepare import prepare

TEXT = """
name: warned
version: "3.0"
training_data:
  symbols: {{mode: single, symbol: AAA}}
  timeframes: {{mode: single, timeframe: 1h}}
  date_range: {{start: "2020-01-01", end: "2020-12-31"}}
  history_required: 50
indicators:
  first: {indicator}
  rsi: {{type: rsi, period: 14}}
fuzzy_sets:
  zone:
    indicator: rsi
    low: [0, 20, 50]
    never: [101, 102, 103]
nn_inputs:
- {{fuzzy_set: zone, timeframes: all}}
- {{raw_indicator: first, timeframes: [1h], normalization: zscore}}
model: {{type: mlp}}
training: {{labels: {{source: zigzag, zigzag_threshold: 0.03}}}}
"""
NO_VOLUME = ("Rows without a volume, which counts as 0 (4 in total): AAA_1h.csv (4)",)
ALL_CLASSES = np.array([0, 1, 2])
VARIED = np.array([[0.0, 1.0], [1.0, 0.0]], dtype=np.float32)


def strategy(indicator: str = "{type: sma, period: 5}") -> Strategy:
    return parse_strategy(TEXT.format(indicator=indicator))


def bars(symbol: str = "AAA", **counts: int) -> Bars:
    made = make_bars(random_walk(10), symbol=symbol)
    return replace(made, counts=replace(made.counts, **counts))


def warned(
    *of: Bars,
    indicator: str = "{type: sma, period: 5}",
    features: Any = VARIED,
    labels: dict[str, Any] | None = None,
) -> tuple[str, ...]:
    return data_warnings(
        strategy(indicator),
        of or [bars()],
        feature_ids=("first", "second"),
        train_features=features,
        labels={"validation": ALL_CLASSES, "test": ALL_CLASSES, **(labels or {})},
    )


def test_data_warnings_of_good_data_are_none() -> None:
    assert warned(bars(gaps=3)) == ()


def test_data_warnings_of_dropped_rows_name_the_worst_file_first() -> None:
    got = warned(bars("AAA", dropped=1), bars("BBB"), bars("CCC", dropped=20, duplicates=3))
    assert got == (
        "Dropped rows with a missing, non-positive or inconsistent price (21 in total): "
        "CCC_1h.csv (20), AAA_1h.csv (1)",
        "Dropped rows whose date a later row has as well (3 in total): CCC_1h.csv (3)",
    )


@pytest.mark.parametrize(
    ("indicator", "want"),
    [
        ("{type: mfi, period: 14}", NO_VOLUME),
        ("{type: obv}", NO_VOLUME),
        ("{type: sma, period: 5}", ()),
    ],
)
def test_data_warnings_of_missing_volumes_depend_on_whether_an_indicator_reads_them(
    indicator: str, want: tuple[str, ...]
) -> None:
    assert warned(bars(volume_filled=4), indicator=indicator) == want


def test_data_warnings_of_a_constant_feature_name_it() -> None:
    got = warned(features=np.array([[0.0, 1.0], [0.0, 0.0]], dtype=np.float32))
    assert got == (
        "Features that are constant in the training split, so that the model learns nothing from "
        "them: first",
    )


@pytest.mark.parametrize("split", ["validation", "test"])
def test_data_warnings_of_a_split_without_a_class_name_both(split: str) -> None:
    [text] = warned(labels={split: np.array([1, 1])})
    assert text.startswith(f"The {split} split has no buy and no sell rows, so its metrics")


def test_prepare_hands_on_the_warnings_about_what_it_has_read(tmp_path: Path) -> None:
    lines = lines_of(make_bars(random_walk(2000)))
    lines[500] = lines[499]
    write_lines(tmp_path, lines)
    got = prepare(strategy(), tmp_path, check_stop=lambda: None, on_stage=lambda _: None)
    assert got.warnings == (
        "Dropped rows whose date a later row has as well (1 in total): AAA_1h.csv (1)",
        "Features that are constant in the training split, so that the model learns nothing from "
        "them: 1h_zone_never",
    )
