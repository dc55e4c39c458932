"""Indicator types of strategy format v3: parameters, defaults and outputs, without formulas.

`strategy.py` parses `indicators:` into these models; `ktrdr_trainer.pipeline.indicators` computes
them. An indicator with one output is referenced by its name, one with several outputs as
`name.output`.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Period = Annotated[int, Field(ge=1, le=10_000)]
"""Number of bars."""
LongPeriod = Annotated[int, Field(ge=2, le=10_000)]
"""Number of bars, for indicators that need at least two."""
Multiplier = Annotated[float, Field(gt=0, le=100)]


class IndicatorType(BaseModel):
    """Base: frozen, no implicit conversions, unknown parameters rejected."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    outputs: ClassVar[tuple[str, ...]] = ()
    """Names of the outputs; empty if there is only one."""


class Sma(IndicatorType):
    """Simple moving average of closes."""

    type: Literal["sma"]
    period: Period = 20


class Ema(IndicatorType):
    """Exponential moving average of closes, alpha = 2 / (period + 1), from the first close on."""

    type: Literal["ema"]
    period: Period = 20


class Wma(IndicatorType):
    """Linearly weighted moving average of closes; the latest bar has the largest weight."""

    type: Literal["wma"]
    period: Period = 20


class Macd(IndicatorType):
    """Fast minus slow EMA (`line`), its EMA (`signal`), and their difference (`histogram`)."""

    outputs: ClassVar = ("line", "signal", "histogram")
    type: Literal["macd"]
    fast_period: Period = 12
    slow_period: Period = 26
    signal_period: Period = 9

    @model_validator(mode="after")
    def _fast_below_slow(self) -> "Macd":
        if self.fast_period >= self.slow_period:
            raise ValueError("fast_period must be below slow_period")
        return self


class Adx(IndicatorType):
    """Trend strength (`adx`) and its two directions, 0 to 100, Wilder's smoothing."""

    outputs: ClassVar = ("adx", "plus_di", "minus_di")
    type: Literal["adx"]
    period: LongPeriod = 14


class Rsi(IndicatorType):
    """Relative strength index of closes, 0 to 100, Wilder's smoothing; 50 without any change."""

    type: Literal["rsi"]
    period: Period = 14


class Stochastic(IndicatorType):
    """Position of the close in the range of the last bars, 0 to 100; 50 without a range."""

    outputs: ClassVar = ("k", "d")
    type: Literal["stochastic"]
    k_period: LongPeriod = 14
    d_period: Period = 3
    smooth_k: Period = 3


class WilliamsR(IndicatorType):
    """Distance of the close from the highest high, -100 to 0; -50 without a range."""

    type: Literal["williamsr"]
    period: LongPeriod = 14


class Cci(IndicatorType):
    """Commodity channel index: typical price against its mean; 0 without any change."""

    type: Literal["cci"]
    period: LongPeriod = 20


class Momentum(IndicatorType):
    """Close minus the close `period` bars ago."""

    type: Literal["momentum"]
    period: Period = 10


class Roc(IndicatorType):
    """Percent change of the close over `period` bars."""

    type: Literal["roc"]
    period: Period = 10


class Atr(IndicatorType):
    """Average true range, Wilder's smoothing, in units of price."""

    type: Literal["atr"]
    period: Period = 14


class BollingerBands(IndicatorType):
    """Simple moving average of closes, `multiplier` population deviations up and down."""

    outputs: ClassVar = ("upper", "middle", "lower")
    type: Literal["bollingerbands"]
    period: LongPeriod = 20
    multiplier: Multiplier = 2.0


class Obv(IndicatorType):
    """On-balance volume: running sum of volume, signed by the move of the close."""

    type: Literal["obv"]


class Mfi(IndicatorType):
    """Money flow index, 0 to 100; 50 without any money flow."""

    type: Literal["mfi"]
    period: LongPeriod = 14


Indicator = Annotated[
    Sma
    | Ema
    | Wma
    | Macd
    | Adx
    | Rsi
    | Stochastic
    | WilliamsR
    | Cci
    | Momentum
    | Roc
    | Atr
    | BollingerBands
    | Obv
    | Mfi,
    Field(discriminator="type"),
]
"""Any indicator of a strategy."""
