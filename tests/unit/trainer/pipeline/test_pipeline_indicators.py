"""Every indicator against pandas from the first bar, and against TA-Lib once its seed faded."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import talib
from pydantic import TypeAdapter

from bars_builder import make_bars, random_walk
from ktrdr_api.indicator_types import Indicator, IndicatorType
from ktrdr_trainer.pipeline.arrays import Float64s
from ktrdr_trainer.pipeline.bars import Bars
from ktrdr_trainer.pipeline.indicators import outputs

BURN_IN = 500
TOLERANCE = 3e-6
"""Of the range of the second source."""
BARS = make_bars(random_walk(4000, seed=1), seed=1)
TYPES = tuple(get_args(get_args(Indicator)[0]))

Columns = dict[str, Any]


def spec_of(**parameters: object) -> IndicatorType:
    adapter: TypeAdapter[IndicatorType] = TypeAdapter(Indicator)
    return adapter.validate_python(parameters)


def frame_of(bars: Bars) -> pd.DataFrame:
    names = ("open", "high", "low", "close", "volume")
    return pd.DataFrame({name: getattr(bars, name) for name in names})


def ewm(series: Any, alpha: float) -> Any:
    return series.ewm(alpha=alpha, adjust=False).mean()


def pandas_macd(f: pd.DataFrame) -> Columns:
    line = ewm(f.close, 2 / 13) - ewm(f.close, 2 / 27)
    signal = ewm(line, 2 / 10)
    return {
        "line": line.where(f.index >= 25),
        "signal": signal.where(f.index >= 33),
        "histogram": (line - signal).where(f.index >= 33),
    }


def pandas_rsi(f: pd.DataFrame) -> Columns:
    moves = f.close.diff().iloc[1:]
    strength = ewm(moves.clip(lower=0), 1 / 14) / ewm(-moves.clip(upper=0), 1 / 14)
    return {"": (100 - 100 / (1 + strength)).reindex(f.index).where(f.index >= 14)}


def pandas_atr(f: pd.DataFrame) -> Columns:
    before = f.close.shift()
    spans = pd.concat([f.high - f.low, (f.high - before).abs(), (f.low - before).abs()], axis=1)
    return {"": ewm(spans.max(axis=1), 1 / 14).where(f.index >= 13)}


def pandas_stochastic(f: pd.DataFrame) -> Columns:
    low, high = f.low.rolling(14).min(), f.high.rolling(14).max()
    k = (100 * (f.close - low) / (high - low)).rolling(3).mean()
    return {"k": k, "d": k.rolling(3).mean()}


def pandas_bands(f: pd.DataFrame) -> Columns:
    window = f.close.rolling(20)
    middle, spread = window.mean(), 2.5 * window.std(ddof=0)
    return {"upper": middle + spread, "middle": middle, "lower": middle - spread}


def pandas_mfi(f: pd.DataFrame) -> Columns:
    typical = (f.high + f.low + f.close) / 3
    flow, moves = typical * f.volume, typical.diff()
    up = flow.where(moves > 0, 0.0).where(moves.notna()).rolling(14).sum()
    down = flow.where(moves < 0, 0.0).where(moves.notna()).rolling(14).sum()
    return {"": 100 * up / (up + down)}


def pandas_wma(f: pd.DataFrame) -> Columns:
    weights = np.arange(1, 21)
    return {"": f.close.rolling(20).apply(lambda x: x @ weights / weights.sum(), raw=True)}


def pandas_cci(f: pd.DataFrame) -> Columns:
    typical = (f.high + f.low + f.close) / 3
    mean = typical.rolling(20).mean()
    off = typical.rolling(20).apply(lambda x: np.abs(x - x.mean()).mean(), raw=True)
    return {"": (typical - mean) / (0.015 * off)}


PANDAS: dict[str, tuple[IndicatorType, Callable[[pd.DataFrame], Columns]]] = {
    "sma": (spec_of(type="sma"), lambda f: {"": f.close.rolling(20).mean()}),
    "ema": (
        spec_of(type="ema"),
        lambda f: {"": ewm(f.close, 2 / 21).where(f.index >= 19)},
    ),
    "wma": (spec_of(type="wma"), pandas_wma),
    "macd": (spec_of(type="macd"), pandas_macd),
    "rsi": (spec_of(type="rsi"), pandas_rsi),
    "stochastic": (spec_of(type="stochastic"), pandas_stochastic),
    "williamsr": (
        spec_of(type="williamsr"),
        lambda f: {
            "": -100
            * (f.high.rolling(14).max() - f.close)
            / (f.high.rolling(14).max() - f.low.rolling(14).min())
        },
    ),
    "cci": (spec_of(type="cci"), pandas_cci),
    "momentum": (spec_of(type="momentum"), lambda f: {"": f.close.diff(10)}),
    "roc": (spec_of(type="roc"), lambda f: {"": 100 * f.close.pct_change(10)}),
    "atr": (spec_of(type="atr"), pandas_atr),
    "bollingerbands": (spec_of(type="bollingerbands", multiplier=2.5), pandas_bands),
    "obv": (
        spec_of(type="obv"),
        lambda f: {"": f.volume[0] + (np.sign(f.close.diff()).fillna(0) * f.volume).cumsum()},
    ),
    "mfi": (spec_of(type="mfi"), pandas_mfi),
}

HLC = (BARS.high, BARS.low, BARS.close)
TALIB: dict[str, tuple[Float64s, ...]] = {
    "ema": (talib.EMA(BARS.close, 20),),
    "macd": talib.MACD(BARS.close),
    "rsi": (talib.RSI(BARS.close),),
    "atr": (talib.ATR(*HLC),),
    "adx": (talib.ADX(*HLC), talib.PLUS_DI(*HLC), talib.MINUS_DI(*HLC)),
    "stochastic": talib.STOCH(*HLC, fastk_period=14),
    "williamsr": (talib.WILLR(*HLC),),
    "mfi": (talib.MFI(*HLC, BARS.volume),),
}


def assert_close(got: Float64s, want: Float64s) -> None:
    assert np.isnan(got).tolist() == np.isnan(want).tolist()
    known = ~np.isnan(want)
    span = want[known].max() - want[known].min()
    assert np.abs(got[known] - want[known]).max() <= TOLERANCE * span


@pytest.mark.parametrize("name", PANDAS)
def test_outputs_equal_pandas_from_the_first_bar(name: str) -> None:
    spec, reference = PANDAS[name]
    got, want = outputs(spec, BARS), reference(frame_of(BARS))
    assert list(got) == list(want)
    for output, column in want.items():
        assert_close(got[output], np.asarray(column, dtype=np.float64))


@pytest.mark.parametrize("name", TALIB)
def test_outputs_equal_talib_once_its_seed_has_faded(name: str) -> None:
    got = tuple(outputs(spec_of(type=name), BARS).values())
    for column, want in zip(got, TALIB[name], strict=True):
        assert_close(column[BURN_IN:], want[BURN_IN:])


def test_every_type_has_a_second_source() -> None:
    names = {str(get_args(kind.model_fields["type"].annotation)[0]) for kind in TYPES}
    assert names == PANDAS.keys() | TALIB.keys()


def test_adx_begins_when_both_averages_have_seen_their_period() -> None:
    columns = outputs(spec_of(type="adx"), BARS)
    first = {name: int(np.flatnonzero(~np.isnan(column))[0]) for name, column in columns.items()}
    want = {
        "adx": talib.ADX(*HLC),
        "plus_di": talib.PLUS_DI(*HLC),
        "minus_di": talib.MINUS_DI(*HLC),
    }
    assert first == {name: int(np.flatnonzero(~np.isnan(col))[0]) for name, col in want.items()}


NEUTRAL = {
    "rsi": [50.0],
    "stochastic": [50.0, 50.0],
    "williamsr": [-50.0],
    "cci": [0.0],
    "mfi": [50.0],
    "adx": [0.0, 0.0, 0.0],
    "atr": [0.0],
    "roc": [0.0],
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_outputs_of_bars_that_never_move_are_neutral(name: str) -> None:
    flat = np.full(200, 1.1)
    bars = Bars("AAA", "1h", BARS.time[:200], flat, flat, flat, flat, flat * 0, BARS.counts)
    assert [column[-1] for column in outputs(spec_of(type=name), bars).values()] == NEUTRAL[name]


def test_mfi_once_the_money_stops_is_neutral_in_spite_of_rounding() -> None:
    volume = np.where(np.arange(len(BARS)) < 1000, BARS.volume, 0.0)
    mfi = outputs(spec_of(type="mfi"), replace(BARS, volume=volume))[""]
    assert set(mfi[1014:].tolist()) == {50.0}


@pytest.mark.parametrize("kind", TYPES)
def test_outputs_see_no_bar_that_comes_later(kind: type[IndicatorType]) -> None:
    name = get_args(kind.model_fields["type"].annotation)[0]
    columns = ("time", "open", "high", "low", "close", "volume")
    head = replace(BARS, **{column: getattr(BARS, column)[:600] for column in columns})
    whole, part = outputs(spec_of(type=name), BARS), outputs(spec_of(type=name), head)
    for output, column in part.items():
        np.testing.assert_array_equal(column, whole[output][:600])


@pytest.mark.parametrize("kind", TYPES)
def test_outputs_of_too_few_bars_are_nan_and_no_error(kind: type[IndicatorType]) -> None:
    name = get_args(kind.model_fields["type"].annotation)[0]
    columns = outputs(spec_of(type=name), make_bars([100.0, 101.0]))
    assert all(len(column) == 2 for column in columns.values())
