"""Technical indicators: the formulas behind `ktrdr_api.indicator_types`, one function a type.

Called by `features.py` per symbol and timeframe on native bars. The windows and recursions are
TA-Lib's C code. Every exponential average starts at the first bar (pandas' `adjust=False`), where
TA-Lib's own begins with an average of the first bars, so the two differ until that has faded;
Wilder's is the one with alpha = 1 / period. Bars of the warm-up are NaN. Where a formula divides
nothing by nothing, the answer is the neutral one of its scale.

Sources: Wilder, New Concepts in Technical Trading Systems (1978) for RSI, ATR, ADX; Appel for MACD;
Bollinger on Bollinger Bands (2001); Lane for stochastic; Lambert (1980) for CCI; Quong and Soudack
(1989) for MFI; Granville (1963) for OBV.
"""

from functools import singledispatch

import numpy as np
import talib

from ktrdr_api import indicator_types as types
from ktrdr_trainer.pipeline.arrays import Float64s
from ktrdr_trainer.pipeline.bars import Bars


def outputs(spec: types.IndicatorType, bars: Bars) -> dict[str, Float64s]:
    """The outputs of an indicator by name ("" where there is one), each (bars,), warm-up NaN."""
    computed = compute(spec, bars)
    columns = computed if isinstance(computed, tuple) else (computed,)
    return dict(zip(spec.outputs or ("",), columns, strict=True))


@singledispatch
def compute(spec: types.IndicatorType, bars: Bars) -> Float64s | tuple[Float64s, ...]:
    """The outputs of one indicator in the order of its type, each (bars,)."""
    raise NotImplementedError(f"no formula for {type(spec).__name__}")


@compute.register
def _(spec: types.Sma, bars: Bars) -> Float64s:
    return _mean(bars.close, spec.period)


@compute.register
def _(spec: types.Ema, bars: Bars) -> Float64s:
    return _warm(_ewm(bars.close, spec.period), spec.period - 1)


@compute.register
def _(spec: types.Wma, bars: Bars) -> Float64s:
    return talib.WMA(bars.close, spec.period)


@compute.register
def _(spec: types.Macd, bars: Bars) -> tuple[Float64s, ...]:
    line = _ewm(bars.close, spec.fast_period) - _ewm(bars.close, spec.slow_period)
    signal = _ewm(line, spec.signal_period)
    known = spec.slow_period - 1
    told = known + spec.signal_period - 1
    return _warm(line, known), _warm(signal, told), _warm(line - signal, told)


@compute.register
def _(spec: types.Adx, bars: Bars) -> tuple[Float64s, ...]:
    up, down = np.diff(bars.high), -np.diff(bars.low)
    plus = np.where((up > down) & (up > 0), up, 0.0)
    minus = np.where((down > up) & (down > 0), down, 0.0)
    rates = [_wilder(moves, spec.period) for moves in (_true_range(bars)[1:], plus, minus)]
    plus_di, minus_di = (100 * _ratio(rate, rates[0], neutral=0.0) for rate in rates[1:])
    spread = _ratio(np.abs(plus_di - minus_di), plus_di + minus_di, neutral=0.0)
    # The first bar has no move: the directions need `period` moves, their average as many again.
    adx = _warm(100 * _wilder(spread, spec.period), 2 * spec.period - 2)
    directions = (_warm(di, spec.period - 1) for di in (plus_di, minus_di))
    return tuple(_behind(column, len(bars)) for column in (adx, *directions))


@compute.register
def _(spec: types.Rsi, bars: Bars) -> Float64s:
    moves = np.diff(bars.close)
    gain = _wilder(np.maximum(moves, 0), spec.period)
    loss = _wilder(np.maximum(-moves, 0), spec.period)
    rsi = 100 * _ratio(gain, gain + loss, neutral=0.5)
    return _behind(_warm(rsi, spec.period - 1), len(bars))


@compute.register
def _(spec: types.Stochastic, bars: Bars) -> tuple[Float64s, ...]:
    fast = 100 * _place_in_range(bars, spec.k_period)
    k = _mean(fast, spec.smooth_k)
    return k, _mean(k, spec.d_period)


@compute.register
def _(spec: types.WilliamsR, bars: Bars) -> Float64s:
    return 100 * _place_in_range(bars, spec.period) - 100


@compute.register
def _(spec: types.Cci, bars: Bars) -> Float64s:
    return talib.CCI(bars.high, bars.low, bars.close, spec.period)


@compute.register
def _(spec: types.Momentum, bars: Bars) -> Float64s:
    return talib.MOM(bars.close, spec.period)


@compute.register
def _(spec: types.Roc, bars: Bars) -> Float64s:
    return talib.ROC(bars.close, spec.period)


@compute.register
def _(spec: types.Atr, bars: Bars) -> Float64s:
    return _warm(_wilder(_true_range(bars), spec.period), spec.period - 1)


@compute.register
def _(spec: types.BollingerBands, bars: Bars) -> tuple[Float64s, ...]:
    return talib.BBANDS(bars.close, spec.period, spec.multiplier, spec.multiplier)


@compute.register
def _(spec: types.Obv, bars: Bars) -> Float64s:
    return talib.OBV(bars.close, bars.volume)


@compute.register
def _(spec: types.Mfi, bars: Bars) -> Float64s:
    typical = (bars.high + bars.low + bars.close) / 3
    moves, flow = np.diff(typical), (typical * bars.volume)[1:]
    rising = talib.SUM(np.where(moves > 0, flow, 0.0), spec.period)
    falling = talib.SUM(np.where(moves < 0, flow, 0.0), spec.period)
    # A running sum keeps rounding errors of flows long gone; counts of flows are exact.
    still = talib.SUM(((moves != 0) & (flow > 0)).astype(np.float64), spec.period) == 0
    mfi = np.clip(100 * _ratio(rising, rising + falling, neutral=0.5), 0, 100)
    return _behind(np.where(still, 50.0, mfi), len(bars))


def _mean(values: Float64s, period: int) -> Float64s:
    return talib.SMA(values, period)


def _ewm(values: Float64s, period: int) -> Float64s:
    """Exponential average with alpha = 2 / (period + 1), from the first value on."""
    # TA-Lib begins with the plain average of `period` values: of the first one, so often.
    seed = np.repeat(values[:1], period - 1)
    return np.asarray(talib.EMA(np.concatenate([seed, values]), period)[period - 1 :])


def _wilder(values: Float64s, period: int) -> Float64s:
    """Exponential average with alpha = 1 / period, from the first value on."""
    return _ewm(values, 2 * period - 1)


def _warm(values: Float64s, bars: int) -> Float64s:
    """The values with NaN for as many bars as an honest average has not seen its period."""
    warmed = values.copy()
    warmed[:bars] = np.nan
    return warmed


def _behind(values: Float64s, length: int) -> Float64s:
    """Values of the moves between bars, back on bars: NaN where there was no move yet."""
    return np.concatenate([np.full(length - len(values), np.nan), values])


def _true_range(bars: Bars) -> Float64s:
    before = np.concatenate([bars.close[:1], bars.close[:-1]])
    return np.asarray(np.maximum(bars.high, before) - np.minimum(bars.low, before))


def _place_in_range(bars: Bars, period: int) -> Float64s:
    """Place of the close between the lowest low (0) and the highest high (1) of the last bars."""
    lowest, highest = talib.MIN(bars.low, period), talib.MAX(bars.high, period)
    return _ratio(bars.close - lowest, highest - lowest, neutral=0.5)


def _ratio(above: Float64s, below: Float64s, *, neutral: float) -> Float64s:
    result = np.full(len(above), neutral)
    np.divide(above, below, out=result, where=below != 0)
    return result
