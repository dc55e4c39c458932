"""Strategy v3: what a strategy may say, as frozen models, and the one way to read it.

Called by the operator (is it valid, before a pod starts?) and by the trainer, whose pipeline, model
and loop read these models. What nothing reads yet is refused, so that no key lies. Make a Strategy
with `parse_strategy` or `with_overrides` only: they also check what spans several keys (references,
feature ids, timeframes).
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ktrdr_api import strict_yaml
from ktrdr_api.errors import StrategyError
from ktrdr_api.indicator_types import Indicator
from ktrdr_api.strategy_problems import Problem, problems_of

MAX_BYTES: Final = 65_536
"""Also the bound of `spec.strategy.inline`."""
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
"""Length of a bar."""


def _date(value: object) -> object:
    if isinstance(value, str):
        if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
            raise ValueError(f"{value!r} is not a date; write YYYY-MM-DD")
        return date.fromisoformat(value)
    return value


def _text(value: object) -> object:
    # `version: 3.0` without quotes is a number to YAML; the intent is plain.
    return str(value) if isinstance(value, int | float) else value


def _triangle(value: object) -> object:
    return {"type": "triangular", "parameters": value} if isinstance(value, tuple) else value


def _all(value: object) -> object:
    return (value,) if value == "all" else value


Name = Annotated[str, Field(max_length=63, pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
"""Of an indicator, a fuzzy set or a membership: part of feature ids."""
Text = Annotated[str, Field(max_length=4096)]
Symbol = Annotated[str, Field(max_length=32, pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")]
Timeframe = Literal["1m", "5m", "15m", "30m", "1h", "4h", "1d", "1w"]
Day = Annotated[date, BeforeValidator(_date)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class Model(BaseModel):
    """Base: frozen, no silent conversion, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, validate_by_name=True
    )


class SingleSymbol(Model):
    """One symbol."""

    mode: Literal["single"]
    symbol: Symbol

    @property
    def names(self) -> tuple[str, ...]:
        """The symbol, as a list."""
        return (self.symbol,)


class MultiSymbol(Model):
    """Several symbols; their rows train one model."""

    mode: Literal["multi_symbol"]
    names: Annotated[tuple[Symbol, ...], Field(alias="list", min_length=2, max_length=256)]


class SingleTimeframe(Model):
    """One timeframe, the base."""

    mode: Literal["single"]
    timeframe: Timeframe

    @property
    def names(self) -> tuple[str, ...]:
        """The timeframe, as a list."""
        return (self.timeframe,)

    @property
    def base_timeframe(self) -> str:
        """The timeframe whose bars make the rows."""
        return self.timeframe


class MultiTimeframe(Model):
    """Several timeframes; a row per base bar, the others joined on their last closed bar."""

    mode: Literal["multi_timeframe"]
    names: Annotated[tuple[Timeframe, ...], Field(alias="list", min_length=2, max_length=8)]
    base_timeframe: Timeframe


class DateRange(Model):
    """First and last day of data, both inclusive, UTC."""

    start: Day
    end: Day

    @model_validator(mode="after")
    def _ordered(self) -> "DateRange":
        if self.start > self.end:
            raise ValueError(f"start {self.start} is after end {self.end}")
        return self


class TrainingData(Model):
    """Which bars are read."""

    symbols: Annotated[SingleSymbol | MultiSymbol, Field(discriminator="mode")]
    timeframes: Annotated[SingleTimeframe | MultiTimeframe, Field(discriminator="mode")]
    date_range: DateRange
    history_required: Annotated[int, Field(ge=50, le=1_000_000)] = 200
    """Fewest bars that each symbol and timeframe must have in the date range."""


class TargetSymbols(Model):
    """What the model may later be used on."""

    mode: Literal["training_only"] = "training_only"


class Deployment(Model):
    """How the model may later be used; kept with the model."""

    target_symbols: TargetSymbols = TargetSymbols()


_PARAMETER_COUNTS: Final = {"triangular": 3, "trapezoidal": 4, "gaussian": 2}


class Membership(Model):
    """Triangular a <= b <= c, trapezoidal a <= b <= c <= d, or gaussian mu and sigma."""

    type: Literal["triangular", "trapezoidal", "gaussian"]
    parameters: tuple[float, ...]

    @model_validator(mode="after")
    def _fits(self) -> "Membership":
        count, given = _PARAMETER_COUNTS[self.type], self.parameters
        if len(given) != count:
            raise ValueError(
                f"{self.type} takes {count} parameters, got {len(given)}; "
                "a plain list is triangular, else write {type: ..., parameters: [...]}"
            )
        if self.type == "gaussian":
            if given[1] <= 0:
                raise ValueError(f"the width of a gaussian must be above 0, got {given[1]:g}")
        elif list(given) != sorted(given):
            raise ValueError(f"the parameters must ascend, got {list(given)}")
        return self


class FuzzySet(Model):
    """Memberships over one indicator output. Every key but `indicator` is a membership."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[Name, Annotated[Membership, BeforeValidator(_triangle)]]

    indicator: str

    @property
    def memberships(self) -> dict[str, Membership]:
        """By name, in the order of the file."""
        return self.__pydantic_extra__

    @model_validator(mode="after")
    def _not_empty(self) -> "FuzzySet":
        if not self.memberships:
            raise ValueError("a fuzzy set needs a membership, such as `low: [0, 20, 40]`")
        return self


class NnInput(Model):
    """Features for the model: the memberships of a fuzzy set, or an indicator as it is."""

    fuzzy_set: str | None = None
    raw_indicator: str | None = None
    timeframes: Annotated[tuple[str, ...], BeforeValidator(_all), Field(min_length=1)] = ("all",)
    normalization: Literal["minmax", "zscore", "none"] | None = None
    """Fitted on the training split."""

    @model_validator(mode="after")
    def _one_kind(self) -> "NnInput":
        if (self.fuzzy_set is None) == (self.raw_indicator is None):
            raise ValueError("write exactly one of fuzzy_set and raw_indicator")
        if self.fuzzy_set is not None and self.normalization is not None:
            raise ValueError("normalization belongs to raw_indicator; memberships are in 0..1")
        return self


class Architecture(Model):
    """Of a multi-layer perceptron; the input and the 3 outputs come on top."""

    hidden_layers: Annotated[
        tuple[Annotated[int, Field(ge=1, le=8192)], ...], Field(min_length=1, max_length=16)
    ] = (64, 32)
    activation: Literal["relu", "tanh", "gelu"] = "relu"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class ModelSpec(Model):
    """The network."""

    type: Literal["mlp"]
    architecture: Architecture = Architecture()


class Labels(Model):
    """What the model learns: 0 buy (up leg), 1 hold, 2 sell (down leg)."""

    source: Literal["zigzag"]
    zigzag_threshold: Fraction
    """A close extreme is a pivot once the close reverses by this fraction."""
    label_lookahead: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Bars further than this before the end of their leg are hold."""


class DataSplit(Model):
    """Parts of all rows in order of time, and the gap after each cut, as fractions."""

    train: Fraction = 0.7
    validation: Fraction = 0.15
    test: Fraction = 0.15
    embargo: Annotated[float, Field(ge=0, le=0.2)] = 0.01

    @model_validator(mode="after")
    def _sum(self) -> "DataSplit":
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:  # three decimal fractions typed by hand
            raise ValueError(f"train + validation + test must be 1, got {total:g}")
        return self


class EarlyStopping(Model):
    """Stop when `monitor` has not improved by `min_delta` for `patience` epochs."""

    enabled: bool = True
    patience: Annotated[int, Field(ge=1, le=100_000)] = 10
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    monitor: Literal["val_loss", "val_accuracy"] = "val_loss"


class Training(Model):
    """The training loop."""

    labels: Labels
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 100
    batch_size: Annotated[int, Field(ge=1, le=1_048_576)] = 32
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 0.001
    optimizer: Literal["adam"] = "adam"
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    gradient_clip: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the whole gradient; absent, gradients are not clipped."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 42
    loss: Literal["cross_entropy"] = "cross_entropy"
    data_split: DataSplit = DataSplit()
    early_stopping: EarlyStopping = EarlyStopping(enabled=False)


class Decisions(Model):
    """What the outputs mean."""

    output_format: Literal["classification"] = "classification"


@dataclass(frozen=True, slots=True)
class Feature:
    """One column of the feature matrix.

    Attributes:
        id: `{timeframe}_{set}_{membership}` or `{timeframe}_{reference}_raw`.
        timeframe: Whose bars the indicator runs on.
        reference: Indicator, or `indicator.output`.
        membership: The function applied to it; None for a raw indicator.
        normalization: Scaling fitted on the training split; none for memberships.
    """

    id: str
    timeframe: str
    reference: str
    membership: Membership | None
    normalization: Literal["minmax", "zscore", "none"]


class Strategy(Model):
    """A whole strategy, valid in itself once it came from `parse_strategy`."""

    name: Annotated[str, Field(max_length=63, pattern=r"^[A-Za-z0-9_-]+$")]
    version: Annotated[Literal["3.0"], BeforeValidator(_text)]
    description: Text = ""
    hypothesis: Text = ""
    scope: Text = ""
    training_data: TrainingData
    deployment: Deployment = Deployment()
    indicators: Annotated[dict[Name, Indicator], Field(min_length=1, max_length=256)]
    fuzzy_sets: Annotated[dict[Name, FuzzySet], Field(max_length=256)] = {}
    nn_inputs: Annotated[tuple[NnInput, ...], Field(min_length=1, max_length=256)]
    model: ModelSpec
    training: Training
    decisions: Decisions = Decisions()

    @property
    def symbols(self) -> tuple[str, ...]:
        """In the order of the file."""
        return self.training_data.symbols.names

    @property
    def timeframes(self) -> tuple[str, ...]:
        """In the order of the file."""
        return self.training_data.timeframes.names

    @property
    def base_timeframe(self) -> str:
        """The timeframe whose bars make the rows."""
        return self.training_data.timeframes.base_timeframe

    def features(self) -> tuple[Feature, ...]:
        """Columns of the feature matrix: nn_inputs, in each timeframes, in each memberships."""
        return tuple(
            feature
            for entry in self.nn_inputs
            for timeframe in self._timeframes_of(entry)
            for feature in self._features_of(entry, timeframe)
        )

    def warnings(self) -> list[str]:
        """What is allowed but surely not meant."""
        sets = {entry.fuzzy_set for entry in self.nn_inputs}
        raw = {entry.raw_indicator for entry in self.nn_inputs if entry.raw_indicator}
        used = raw | {fuzzy.indicator for fuzzy in self.fuzzy_sets.values()}
        names = {reference.partition(".")[0] for reference in used}
        return [
            f"indicators.{name}: nothing uses it" for name in self.indicators if name not in names
        ] + [
            f"fuzzy_sets.{name}: no nn_input uses it"
            for name in self.fuzzy_sets
            if name not in sets
        ]

    def _timeframes_of(self, entry: NnInput) -> tuple[str, ...]:
        return self.timeframes if entry.timeframes == ("all",) else entry.timeframes

    def _features_of(self, entry: NnInput, timeframe: str) -> Iterator[Feature]:
        if entry.raw_indicator is not None:
            name = f"{timeframe}_{entry.raw_indicator}_raw"
            scale = entry.normalization or "none"
            yield Feature(name, timeframe, entry.raw_indicator, None, scale)
        elif entry.fuzzy_set is not None:
            fuzzy = self.fuzzy_sets[entry.fuzzy_set]
            for label, membership in fuzzy.memberships.items():
                name = f"{timeframe}_{entry.fuzzy_set}_{label}"
                yield Feature(name, timeframe, fuzzy.indicator, membership, "none")


def parse_strategy(text: str, *, source: str = "strategy") -> Strategy:
    """Read a strategy.

    Args:
        text: YAML, at most 64 KiB.
        source: What to call it in messages, such as its file name.

    Raises:
        StrategyError: Every problem, one a line: `source: path: what; remedy`.
    """
    size = len(text.encode(errors="surrogatepass"))
    if size > MAX_BYTES:
        raise StrategyError(source, [("(file)", f"{size} bytes; at most {MAX_BYTES} are read")])
    try:
        document = strict_yaml.load(text)
    except strict_yaml.YamlError as error:
        raise StrategyError(source, [("(file)", f"not valid YAML: {error}")]) from error
    if not isinstance(document, dict):
        raise StrategyError(source, [("(file)", "not a map; begin with `name: ...`")])
    if isinstance(document.get("indicators"), tuple) or str(document.get("version")).startswith(
        ("1", "2")
    ):
        raise StrategyError(
            source,
            [("version", 'format v1 or v2 is not read; write v3: `version: "3.0"`, and indicators '
              "as a map, `rsi_14: {type: rsi, period: 14}`")],
        )  # fmt: skip
    return _validated(document, source)


def with_overrides(
    strategy: Strategy,
    *,
    symbols: Sequence[str] | None = None,
    timeframes: Sequence[str] | None = None,
    start: str | None = None,
    end: str | None = None,
) -> Strategy:
    """The strategy with what a request says instead of its `training_data`; None keeps it.

    The base timeframe stays if it is still listed, else the shortest one becomes the base.

    Raises:
        StrategyError: The result would not be valid.
    """
    document = strategy.model_dump(by_alias=True)
    data = document["training_data"]
    if symbols is not None:
        one = len(symbols) == 1
        data["symbols"] = (
            {"mode": "single", "symbol": symbols[0]}
            if one
            else {"mode": "multi_symbol", "list": tuple(symbols)}
        )
    if timeframes is not None:
        data["timeframes"] = _timeframes(timeframes, strategy.base_timeframe)
    if start is not None:
        data["date_range"]["start"] = start
    if end is not None:
        data["date_range"]["end"] = end
    return _validated(document, "strategy with the request's overrides")


def strategy_digest(text: str) -> str:
    """SHA-256 of the text in UTF-8, 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def _timeframes(names: Sequence[str], base: str) -> dict[str, Any]:
    if len(names) == 1:
        return {"mode": "single", "timeframe": names[0]}
    if base not in names:
        base = min(names, key=lambda name: TIMEFRAME_SECONDS.get(name, 0), default="")
    return {"mode": "multi_timeframe", "list": tuple(names), "base_timeframe": base}


def _validated(document: dict[str, Any], source: str) -> Strategy:
    try:
        strategy = Strategy.model_validate(document)
    except ValidationError as error:
        raise StrategyError(source, problems_of(error, Strategy)) from error
    if problems := [*_reference_problems(strategy)] or [*_identity_problems(strategy)]:
        raise StrategyError(source, problems)
    return strategy


def _reference_problems(strategy: Strategy) -> Iterator[Problem]:
    for name, fuzzy in strategy.fuzzy_sets.items():
        if text := _reference_problem(strategy, fuzzy.indicator):
            yield f"fuzzy_sets.{name}.indicator", text
    for index, entry in enumerate(strategy.nn_inputs):
        path = f"nn_inputs.{index}"
        if entry.raw_indicator and (text := _reference_problem(strategy, entry.raw_indicator)):
            yield f"{path}.raw_indicator", text
        if entry.fuzzy_set and entry.fuzzy_set not in strategy.fuzzy_sets:
            yield (
                f"{path}.fuzzy_set",
                f"no fuzzy set {entry.fuzzy_set!r}; there are: {', '.join(strategy.fuzzy_sets)}",
            )
        for timeframe in entry.timeframes:
            if timeframe not in (*strategy.timeframes, "all"):
                listed = ", ".join(strategy.timeframes)
                yield (
                    f"{path}.timeframes",
                    f"{timeframe!r} is not in training_data.timeframes; write all, or of: {listed}",
                )


def _reference_problem(strategy: Strategy, reference: str) -> str | None:
    name, dot, output = reference.partition(".")
    indicator = strategy.indicators.get(name)
    if indicator is None:
        return f"no indicator {name!r}; there are: {', '.join(strategy.indicators)}"
    if not indicator.outputs and dot:
        return f"{indicator.type} has one output; write {name}"
    if indicator.outputs and output not in indicator.outputs:
        choices = ", ".join(f"{name}.{choice}" for choice in indicator.outputs)
        return f"{indicator.type} has several outputs; write one of: {choices}"
    return None


def _identity_problems(strategy: Strategy) -> Iterator[Problem]:
    data = strategy.training_data
    if strategy.base_timeframe not in strategy.timeframes:
        listed = ", ".join(strategy.timeframes)
        yield (
            "training_data.timeframes.base_timeframe",
            f"{strategy.base_timeframe!r} is not in the list; write one of: {listed}",
        )
    for path, names in (
        ("training_data.symbols.list", data.symbols.names),
        ("training_data.timeframes.list", data.timeframes.names),
        ("nn_inputs", tuple(feature.id for feature in strategy.features())),
    ):
        for name, count in Counter(names).items():
            if count > 1:
                yield path, f"{name!r} would stand there {count} times; keep one"
