"""Sections of strategy format v3 as frozen models: keys, bounds and defaults.

Assembled into a Strategy by `strategy.py`; the trainer's pipeline, model and loop each read theirs.
Keys that no code implements are rejected. `docs/reference/strategy.md` describes the same format
for users.
"""

import re
from datetime import date
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MAX_BYTES: Final = 65_536
"""Maximum size of a strategy's text in UTF-8, also inline in a TrainingJob."""
YEARS: Final = range(1900, 2200)
"""Years that a date may have; others are typing errors. Timestamps are nanoseconds in 64 bits,
which reach from 1678 to 2262."""
MAX_MEMBERSHIPS: Final = 32
"""Maximum memberships of a fuzzy set. There are inputs x timeframes x memberships features: without
a bound, a small file defines millions (measured: 51 KiB took 15 s and 700 MB to reject)."""
TIMEFRAME_SECONDS: Final = {
    "1m": 60,
    "5m": 300,
    "15m": 900,
    "30m": 1_800,
    "1h": 3_600,
    "4h": 14_400,
    "1d": 86_400,
    "1w": 604_800,
}
"""Length of a bar in seconds, by timeframe."""


def _date(value: object) -> object:
    if isinstance(value, str):
        if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
            raise ValueError(f"{value!r} is not a date; use the format YYYY-MM-DD")
        value = date.fromisoformat(value)
    if isinstance(value, date) and value.year not in YEARS:
        raise ValueError(f"year must be between {YEARS.start} and {YEARS.stop - 1}, got {value}")
    return value


def _triangle(value: object) -> object:
    return {"type": "triangular", "parameters": value} if isinstance(value, tuple) else value


def _all(value: object) -> object:
    return (value,) if value == "all" else value


Name = Annotated[str, Field(max_length=63, pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
"""Name of an indicator, a fuzzy set or a membership: part of feature ids."""
Text = Annotated[str, Field(max_length=4096)]
Symbol = Annotated[str, Field(max_length=32, pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")]
Timeframe = Literal["1m", "5m", "15m", "30m", "1h", "4h", "1d", "1w"]
Day = Annotated[date, BeforeValidator(_date)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class StrictModel(BaseModel):
    """Base: frozen, no implicit conversions, unknown keys rejected."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class SingleSymbol(StrictModel):
    """One symbol."""

    mode: Literal["single"]
    symbol: Symbol

    @property
    def names(self) -> tuple[str, ...]:
        """The symbol as a list."""
        return (self.symbol,)


class MultiSymbol(StrictModel):
    """Several symbols, whose rows train one model."""

    mode: Literal["multi_symbol"]
    names: Annotated[tuple[Symbol, ...], Field(alias="list", min_length=2, max_length=256)]


class SingleTimeframe(StrictModel):
    """One timeframe, which is the base timeframe."""

    mode: Literal["single"]
    timeframe: Timeframe

    @property
    def names(self) -> tuple[str, ...]:
        """The timeframe as a list."""
        return (self.timeframe,)

    @property
    def base_timeframe(self) -> str:
        """Timeframe whose bars are the rows of the feature matrix."""
        return self.timeframe


class MultiTimeframe(StrictModel):
    """Several timeframes: one row per base bar, with the last closed bar of each other one."""

    mode: Literal["multi_timeframe"]
    names: Annotated[tuple[Timeframe, ...], Field(alias="list", min_length=2, max_length=8)]
    base_timeframe: Timeframe


class DateRange(StrictModel):
    """First and last day of market data (UTC, both inclusive)."""

    start: Day
    end: Day

    @model_validator(mode="after")
    def _ordered(self) -> "DateRange":
        if self.start > self.end:
            raise ValueError(f"start {self.start} is after end {self.end}")
        return self


class TrainingData(StrictModel):
    """Selection of the bars that are read."""

    symbols: Annotated[SingleSymbol | MultiSymbol, Field(discriminator="mode")]
    timeframes: Annotated[SingleTimeframe | MultiTimeframe, Field(discriminator="mode")]
    date_range: DateRange
    history_required: Annotated[int, Field(ge=50, le=1_000_000)] = 200
    """Minimum number of bars of each symbol and timeframe in the date range."""


class TargetSymbols(StrictModel):
    """Symbols that the model may be used on later."""

    mode: Literal["training_only"] = "training_only"


class Deployment(StrictModel):
    """Permitted later use of the model; stored with it."""

    target_symbols: TargetSymbols = TargetSymbols()


_PARAMETER_COUNTS: Final = {"triangular": 3, "trapezoidal": 4, "gaussian": 2}


class Membership(StrictModel):
    """Triangular a <= b <= c, trapezoidal a <= b <= c <= d, or gaussian mu and sigma."""

    type: Literal["triangular", "trapezoidal", "gaussian"]
    parameters: tuple[float, ...]

    @model_validator(mode="after")
    def _fits(self) -> "Membership":
        count, given = _PARAMETER_COUNTS[self.type], self.parameters
        if len(given) != count:
            raise ValueError(
                f"{self.type} needs {count} parameters, got {len(given)}; a plain list is "
                "triangular, write other types as {type: ..., parameters: [...]}"
            )
        if self.type == "gaussian":
            if given[1] <= 0:
                raise ValueError(f"sigma of a gaussian must be above 0, got {given[1]:g}")
        elif list(given) != sorted(given):
            raise ValueError(f"parameters must be in ascending order, got {list(given)}")
        return self


class FuzzySet(StrictModel):
    """Memberships of one indicator output. Every key except `indicator` is a membership."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[Name, Annotated[Membership, BeforeValidator(_triangle)]]

    indicator: str

    @property
    def memberships(self) -> dict[str, Membership]:
        """Memberships by name, in the order of the file."""
        return self.__pydantic_extra__

    @model_validator(mode="after")
    def _some(self) -> "FuzzySet":
        if not self.memberships:
            raise ValueError("must have at least one membership, such as `low: [0, 20, 40]`")
        if (count := len(self.memberships)) > MAX_MEMBERSHIPS:
            raise ValueError(f"must have at most {MAX_MEMBERSHIPS} memberships, got {count}")
        return self


class NnInput(StrictModel):
    """Features for the model: the memberships of a fuzzy set, or a raw indicator."""

    fuzzy_set: str | None = None
    raw_indicator: str | None = None
    timeframes: Annotated[
        tuple[str, ...], BeforeValidator(_all), Field(min_length=1, max_length=8)
    ] = ("all",)
    normalization: Literal["minmax", "zscore", "none"] | None = None
    """Scaling of a raw indicator, fitted on the training split; none when absent."""

    @model_validator(mode="after")
    def _one_kind(self) -> "NnInput":
        if (self.fuzzy_set is None) == (self.raw_indicator is None):
            raise ValueError("exactly one of fuzzy_set and raw_indicator is required")
        if self.fuzzy_set is not None and self.normalization is not None:
            raise ValueError(
                "normalization requires raw_indicator; memberships are in 0..1 already"
            )
        return self


class Architecture(StrictModel):
    """Hidden layers of a multi-layer perceptron; input layer and 3 outputs are added to them."""

    hidden_layers: Annotated[
        tuple[Annotated[int, Field(ge=1, le=8192)], ...], Field(min_length=1, max_length=16)
    ] = (64, 32)
    activation: Literal["relu", "tanh", "gelu"] = "relu"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class ModelSpec(StrictModel):
    """The network."""

    type: Literal["mlp"]
    architecture: Architecture = Architecture()


class Labels(StrictModel):
    """Classes that the model learns: 0 buy (up leg), 1 hold, 2 sell (down leg)."""

    source: Literal["zigzag"]
    zigzag_threshold: Fraction
    """A high or low close is a pivot once the close reverses by this fraction."""
    label_lookahead: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Bars that are further than this from the end of their leg are hold; none when absent."""


class DataSplit(StrictModel):
    """Sizes of the splits in chronological order, and of the gap between them, as fractions."""

    train: Fraction = 0.7
    validation: Fraction = 0.15
    test: Fraction = 0.15
    embargo: Annotated[float, Field(ge=0, le=0.2)] = 0.01

    @model_validator(mode="after")
    def _sum(self) -> "DataSplit":
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:  # three decimal fractions typed by hand
            raise ValueError(f"train + validation + test must sum to 1, got {total:g}")
        return self


class EarlyStopping(StrictModel):
    """Stops training if `monitor` has not improved by `min_delta` for `patience` epochs."""

    enabled: bool = True
    patience: Annotated[int, Field(ge=1, le=100_000)] = 10
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    monitor: Literal["val_loss", "val_accuracy"] = "val_loss"


class Training(StrictModel):
    """Settings of the training loop."""

    labels: Labels
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 100
    batch_size: Annotated[int, Field(ge=1, le=1_048_576)] = 32
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 0.001
    optimizer: Literal["adam"] = "adam"
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    gradient_clip: Annotated[float, Field(gt=0)] | None = None
    """Maximum norm of the whole gradient; gradients are not clipped when absent."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 42
    loss: Literal["cross_entropy"] = "cross_entropy"
    data_split: DataSplit = DataSplit()
    early_stopping: EarlyStopping = EarlyStopping(enabled=False)


class Decisions(StrictModel):
    """Meaning of the model's outputs."""

    output_format: Literal["classification"] = "classification"
