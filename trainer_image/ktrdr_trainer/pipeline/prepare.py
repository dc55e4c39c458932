"""The whole way from a strategy and a data folder to the arrays that are trained on.

Called by `ktrdr_trainer`'s run after the request is read; `dataset.py` takes the arrays to tensors.
Everything that is learnt from data (scaling, class weights later) comes from the training split.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from ktrdr_api.errors import DataError
from ktrdr_api.strategy import Feature, Strategy
from ktrdr_trainer.pipeline import scaling
from ktrdr_trainer.pipeline.arrays import Bools, Float32s, Float64s, Int32s, Int64s
from ktrdr_trainer.pipeline.bars import NS_PER_SECOND, Bars, bar_ns, file_name, read_bars
from ktrdr_trainer.pipeline.data_warnings import data_warnings
from ktrdr_trainer.pipeline.features import feature_columns
from ktrdr_trainer.pipeline.labels import CLASSES, UNLABELLED, zigzag
from ktrdr_trainer.pipeline.splits import Splits, split

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

MIN_COMMON_BARS: Final = 50
MIN_COMMON_NS: Final = 7 * bar_ns("1d")


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one split, symbol after symbol, each in order of time."""

    features: Float32s
    """(rows, F), C-contiguous, without NaN."""
    labels: Int64s
    """(rows,) class: 0 buy, 1 hold, 2 sell."""
    symbol_index: Int32s
    """(rows,) place in `Strategy.symbols`."""
    time: Int64s
    """(rows,) start of the base bar, nanoseconds since 1970, UTC."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class PreparedDataset:
    """All that a training run needs from the market data."""

    train: Part
    validation: Part
    test: Part
    feature_ids: tuple[str, ...]
    scaling: scaling.Scaling
    class_counts: Int64s
    """(3,) rows of each class in the training split."""
    summary: dict[str, Json]
    """`data_summary` of the run's metadata: what was read, dropped, cut."""
    warnings: tuple[str, ...]
    """What the user should know about the data, see `data_warnings`."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """Usable rows of one or of all symbols."""

    columns: list[Float64s]
    labels: Int64s
    symbol_index: Int32s
    time: Int64s
    label_end: Int64s
    """(rows,) start of the last bar that the label has seen."""


def prepare(
    strategy: Strategy,
    data_folder: Path,
    *,
    check_stop: Callable[[], None],
    on_stage: Callable[[str], None],
) -> PreparedDataset:
    """Read, compute, label, split and scale.

    Args:
        strategy: Its symbols, timeframes and dates are read, its features computed.
        data_folder: Holds `{SYMBOL}_{timeframe}.csv`.
        check_stop: Called while files are read and between indicators; raises to stop.
        on_stage: Told "load" and "features" as each begins.

    Raises:
        DataError: Market data are missing, bad or too few; says which and what to do.
        TemporaryError: The system could not read an existing file.
    """
    on_stage("load")
    bars = _load(strategy, data_folder, check_stop)
    window = _common_window(strategy, bars)
    on_stage("features")
    parts = [
        _symbol_rows(strategy, index, bars[symbol], check_stop)
        for index, symbol in enumerate(strategy.symbols)
    ]
    rows = _joined(parts)
    check_stop()
    splits = split(rows.time, rows.label_end, strategy.training.data_split)
    _refuse_empty(splits)
    features = strategy.features()
    fitted = _fit(features, rows, splits.train)
    check_stop()
    train, validation, test = (
        _part(rows, mask, fitted) for mask in (splits.train, splits.validation, splits.test)
    )
    return PreparedDataset(
        train=train,
        validation=validation,
        test=test,
        feature_ids=tuple(feature.id for feature in features),
        scaling=fitted,
        class_counts=_class_counts(train),
        summary=_summary(bars, window, splits, [len(part.time) for part in parts]),
        warnings=data_warnings(
            strategy,
            (each for of_symbol in bars.values() for each in of_symbol.values()),
            feature_ids=[feature.id for feature in features],
            train_features=train.features,
            labels={"validation": validation.labels, "test": test.labels},
        ),
    )


_Loaded: TypeAlias = Mapping[str, Mapping[str, Bars]]
"""Bars by symbol, by timeframe."""


def _load(strategy: Strategy, folder: Path, check_stop: Callable[[], None]) -> _Loaded:
    """Read every file; each must hold `history_required` bars in the date range."""
    dates = strategy.training_data.date_range
    least = strategy.training_data.history_required
    loaded: dict[str, dict[str, Bars]] = {}
    for symbol in strategy.symbols:
        for timeframe in strategy.timeframes:
            bars = read_bars(
                folder,
                symbol,
                timeframe,
                start=dates.start,
                end=dates.end,
                check_stop=check_stop,
            )
            if len(bars) < least:
                raise DataError(
                    f"{len(bars)} bars from {dates.start} to {dates.end}, fewer than "
                    f"history_required ({least}); add bars, or widen date_range",
                    file=file_name(symbol, timeframe),
                )
            loaded.setdefault(symbol, {})[timeframe] = bars
    return loaded


def _common_window(strategy: Strategy, loaded: _Loaded) -> tuple[int, int]:
    """First and last time, in ns, for which every symbol and timeframe has bars."""
    every = [bars for of_symbol in loaded.values() for bars in of_symbol.values()]
    first = max(int(bars.time[0]) for bars in every)
    last = min(int(bars.close_time[-1]) for bars in every)
    base = (of_symbol[strategy.base_timeframe].time for of_symbol in loaded.values())
    fewest = min(int(((time >= first) & (time < last)).sum()) for time in base)
    if fewest < MIN_COMMON_BARS or last - first < MIN_COMMON_NS:
        late = max(every, key=lambda bars: bars.time[0])
        early = min(every, key=lambda bars: bars.close_time[-1])
        raise DataError(
            f"the symbols and timeframes have {fewest} bars in common, at least {MIN_COMMON_BARS} "
            f"over 7 days are needed: {file_name(late.symbol, late.timeframe)} begins at "
            f"{_utc(first)}, {file_name(early.symbol, early.timeframe)} ends at {_utc(last)}; "
            "load the missing bars, or leave a symbol or timeframe out"
        )
    return first, last


def _symbol_rows(
    strategy: Strategy, index: int, bars: Mapping[str, Bars], check_stop: Callable[[], None]
) -> _Rows:
    """Rows of one symbol that have every feature and a label."""
    base = bars[strategy.base_timeframe]
    columns = feature_columns(strategy, bars, check_stop=check_stop)
    spec = strategy.training.labels
    labels = zigzag(base.close, threshold=spec.zigzag_threshold, lookahead=spec.label_lookahead)
    known = ~np.logical_or.reduce([np.isnan(column) for column in columns])
    usable = known & (labels.value != UNLABELLED)
    return _Rows(
        columns=[column[usable] for column in columns],
        labels=labels.value[usable],
        symbol_index=np.full(int(usable.sum()), index, dtype=np.int32),
        time=base.time[usable],
        label_end=base.time[labels.end][usable],
    )


def _joined(parts: list[_Rows]) -> _Rows:
    rows = _Rows(
        columns=[np.concatenate(same) for same in zip(*(p.columns for p in parts), strict=True)],
        labels=np.concatenate([part.labels for part in parts]),
        symbol_index=np.concatenate([part.symbol_index for part in parts]),
        time=np.concatenate([part.time for part in parts]),
        label_end=np.concatenate([part.label_end for part in parts]),
    )
    if not len(rows.time):
        raise DataError(
            "no bar has both all its features and a label; widen date_range, shorten the longest "
            "indicator, or lower training.labels.zigzag_threshold"
        )
    return rows


def _refuse_empty(splits: Splits) -> None:
    for name in ("train", "validation", "test"):
        if not getattr(splits, name).any():
            raise DataError(
                f"no rows are left in the {name} split after the cut, the purge and the embargo; "
                f"widen date_range, lower the zigzag_threshold, or raise data_split.{name}"
            )


def _fit(features: tuple[Feature, ...], rows: _Rows, train: Bools) -> scaling.Scaling:
    ids = [feature.id for feature in features]
    return scaling.fit(ids, [f.normalization for f in features], rows.columns, train)


def _part(rows: _Rows, mask: Bools, fitted: scaling.Scaling) -> Part:
    return Part(
        features=fitted.applied([column[mask] for column in rows.columns]),
        labels=rows.labels[mask],
        symbol_index=rows.symbol_index[mask],
        time=rows.time[mask],
    )


def _class_counts(train: Part) -> Int64s:
    counts = np.bincount(train.labels, minlength=len(CLASSES)).astype(np.int64)
    absent = [name for name, count in zip(CLASSES, counts, strict=True) if not count]
    if absent:
        raise DataError(
            f"the training split has no {' and no '.join(absent)} rows; change "
            "training.labels.zigzag_threshold or widen date_range"
        )
    return counts


def _summary(
    loaded: _Loaded, window: tuple[int, int], splits: Splits, rows: list[int]
) -> dict[str, Json]:
    files: dict[str, Json] = {
        file_name(bars.symbol, bars.timeframe): {"bars": len(bars), **asdict(bars.counts)}
        for of_symbol in loaded.values()
        for bars in of_symbol.values()
    }
    return {
        "files": files,
        "common_window": [_utc(time) for time in window],
        "usable_rows": dict(zip(loaded, rows, strict=True)),
        "train_rows": int(splits.train.sum()),
        "validation_rows": int(splits.validation.sum()),
        "test_rows": int(splits.test.sum()),
        "purged_rows": splits.purged,
        "embargoed_rows": splits.embargoed,
        "cut_times": [_utc(time) for time in splits.cuts],
        "resume_times": [_utc(time) for time in splits.resumes],
    }


def _utc(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns // NS_PER_SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
