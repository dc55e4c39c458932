"""Strategy format v3: the frozen model `Strategy` and its parser.

Used by the trainer, whose pipeline, model and loop read these models; the sections are in
`strategy_sections.py`. Create a Strategy only with `parse_strategy` or `with_overrides`: they also
validate what concerns several keys (references, feature ids, timeframes).
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from ktrdr_api import strict_yaml
from ktrdr_api.errors import StrategyError
from ktrdr_api.indicator_types import Indicator
from ktrdr_api.strategy_problems import Problem, problems_of
from ktrdr_api.strategy_sections import (
    MAX_BYTES,
    TIMEFRAME_SECONDS,
    Decisions,
    Deployment,
    FuzzySet,
    Membership,
    ModelSpec,
    Name,
    NnInput,
    StrictModel,
    Text,
    Training,
    TrainingData,
)


def _text(value: object) -> object:
    # `version: 3.0` without quotes is a number in YAML; accept it, the meaning is clear.
    return str(value) if isinstance(value, int | float) else value


@dataclass(frozen=True, slots=True)
class Feature:
    """One column of the feature matrix.

    Attributes:
        id: `{timeframe}_{set}_{membership}` or `{timeframe}_{reference}_raw`.
        timeframe: Timeframe of the bars from which the indicator is computed.
        reference: Name of the indicator, or `indicator.output`.
        membership: Membership function applied to it; None for a raw indicator.
        normalization: Scaling fitted on the training split; "none" for memberships.
    """

    id: str
    timeframe: str
    reference: str
    membership: Membership | None
    normalization: Literal["minmax", "zscore", "none"]


class Strategy(StrictModel):
    """Complete strategy; fully validated if it comes from `parse_strategy`."""

    name: Annotated[str, Field(max_length=63, pattern=r"^[A-Za-z0-9_-]+$")]
    version: Annotated[Literal["3.0"], BeforeValidator(_text)]
    description: Text = ""
    hypothesis: Text = ""
    scope: Text = ""
    training_data: TrainingData
    deployment: Deployment = Deployment()
    indicators: Annotated[dict[Name, Indicator], Field(min_length=1, max_length=256)]
    fuzzy_sets: Annotated[dict[Name, FuzzySet], Field(default_factory=dict, max_length=256)]
    nn_inputs: Annotated[tuple[NnInput, ...], Field(min_length=1, max_length=256)]
    model: ModelSpec
    training: Training
    decisions: Decisions = Decisions()

    @property
    def symbols(self) -> tuple[str, ...]:
        """Symbols in the order of the file."""
        return self.training_data.symbols.names

    @property
    def timeframes(self) -> tuple[str, ...]:
        """Timeframes in the order of the file."""
        return self.training_data.timeframes.names

    @property
    def base_timeframe(self) -> str:
        """Timeframe whose bars are the rows of the feature matrix."""
        return self.training_data.timeframes.base_timeframe

    def features(self) -> tuple[Feature, ...]:
        """Return the columns of the feature matrix, ordered by nn_input, timeframe, membership."""
        return tuple(
            feature
            for entry in self.nn_inputs
            for timeframe in self.timeframes_of(entry)
            for feature in self._features_of(entry, timeframe)
        )

    def warnings(self) -> list[str]:
        """Return messages about what is valid but probably a mistake."""
        sets = {entry.fuzzy_set for entry in self.nn_inputs}
        raw = {entry.raw_indicator for entry in self.nn_inputs if entry.raw_indicator is not None}
        used = raw | {fuzzy.indicator for fuzzy in self.fuzzy_sets.values()}
        names = {reference.partition(".")[0] for reference in used}
        return [
            f"indicators.{name}: not used by any fuzzy set or nn_input"
            for name in self.indicators
            if name not in names
        ] + [
            f"fuzzy_sets.{name}: not used by any nn_input"
            for name in self.fuzzy_sets
            if name not in sets
        ]

    def timeframes_of(self, entry: NnInput) -> tuple[str, ...]:
        """Return the timeframes of an entry of nn_inputs."""
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
    """Parse and validate a strategy.

    Args:
        text: YAML, at most 64 KiB.
        source: Name of the input in messages, such as its file name.

    Raises:
        StrategyError: The strategy is invalid; one line per problem: `source: path: what; remedy`.
    """
    size = len(text.encode(errors="surrogatepass"))
    if size > MAX_BYTES:
        raise StrategyError(source, [("(file)", f"{size} bytes; must have at most {MAX_BYTES}")])
    try:
        document = strict_yaml.load(text)
    except strict_yaml.YamlError as error:
        raise StrategyError(source, [("(file)", f"not valid YAML: {error}")]) from error
    if not isinstance(document, dict):
        raise StrategyError(source, [("(file)", "must be a map; begin with `name: ...`")])
    if isinstance(document.get("indicators"), tuple) or str(document.get("version")).startswith(
        ("1", "2")
    ):
        raise StrategyError(
            source,
            [("version", "formats v1 and v2 are not supported; convert the file to v3: "
              '`version: "3.0"`, and indicators as a map, `rsi_14: {type: rsi, period: 14}`')],
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
    """Return the strategy with the request's values for `training_data`; None keeps a value.

    The base timeframe stays if it is still listed; otherwise the shortest one becomes the base.

    Raises:
        StrategyError: The result is invalid.
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
    """Return the SHA-256 of the text in UTF-8, as 64 hex digits."""
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
        reference = entry.raw_indicator
        if reference is not None and (text := _reference_problem(strategy, reference)):
            yield f"{path}.raw_indicator", text
        if entry.fuzzy_set is not None and entry.fuzzy_set not in strategy.fuzzy_sets:
            yield (
                f"{path}.fuzzy_set",
                f"unknown fuzzy set {entry.fuzzy_set!r}; defined: {', '.join(strategy.fuzzy_sets)}",
            )
        for timeframe in strategy.timeframes_of(entry):
            if timeframe not in strategy.timeframes:
                listed = ", ".join(strategy.timeframes)
                yield (
                    f"{path}.timeframes",
                    f"{timeframe!r} is not in training_data.timeframes; use all, or some of:"
                    f" {listed}",
                )


def _reference_problem(strategy: Strategy, reference: str) -> str | None:
    name, dot, output = reference.partition(".")
    indicator = strategy.indicators.get(name)
    if indicator is None:
        return f"unknown indicator {name!r}; defined: {', '.join(strategy.indicators)}"
    if not indicator.outputs and dot:
        return f"{indicator.type} has a single output; write {name}"
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
            f"{strategy.base_timeframe!r} is not in the list; use one of: {listed}",
        )
    for path, names in (
        ("training_data.symbols.list", data.symbols.names),
        ("training_data.timeframes.list", data.timeframes.names),
        ("nn_inputs", tuple(feature.id for feature in strategy.features())),
    ):
        for name, count in Counter(names).items():
            if count > 1:
                yield path, f"duplicate entry {name!r} ({count} times); list it once"
