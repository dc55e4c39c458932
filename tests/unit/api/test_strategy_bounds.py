"""Bounds and defaults of the strategy format: a changed one changes what a strategy file means."""

from collections.abc import Iterator
from typing import Any

import pytest

from ktrdr_api.errors import StrategyError
from ktrdr_api.strategy import Strategy, parse_strategy
from ktrdr_api.strategy_sections import MAX_BYTES

LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
Json = dict[str, Any]


def constraints(node: Json) -> str:
    """Bounds of a schema node and of what is in it: `[` includes a bound, `(` excludes it."""
    lower = next((key for key in LOWER if key in node), "")
    upper = next((key for key in UPPER if key in node), "")
    parts = []
    if lower or upper:
        left = f"{'(' if lower == 'exclusiveMinimum' else '['}{node.get(lower, '')}"
        right = f"{node.get(upper, '')}{')' if upper == 'exclusiveMaximum' else ']'}"
        parts.append(f"{left}, {right}")
    if "default" in node and not isinstance(node["default"], dict):
        parts.append(f"default {node['default']}")
    below = [*node.get("anyOf", []), node.get("items"), node.get("additionalProperties")]
    below += node.get("patternProperties", {}).values()
    inner = [constraints(part) for part in below if isinstance(part, dict)]
    return "; ".join([*parts, *(text for text in inner if text)])


def every_constraint() -> Iterator[tuple[str, str]]:
    schema = Strategy.model_json_schema()
    for name, model in {"Strategy": schema, **schema["$defs"]}.items():
        for key, node in model["properties"].items():
            if text := constraints(node):
                yield f"{name}.{key}", text


WANT: dict[str, str] = {
    "Strategy.name": "[, 63]",
    "Strategy.description": "[, 4096]; default ",
    "Strategy.hypothesis": "[, 4096]; default ",
    "Strategy.scope": "[, 4096]; default ",
    "Strategy.indicators": "[1, 256]",
    "Strategy.fuzzy_sets": "[, 256]",
    "Strategy.nn_inputs": "[1, 256]",
    "Adx.period": "[2, 10000]; default 14",
    "Architecture.hidden_layers": "[1, 16]; default [64, 32]; [1, 8192]",
    "Architecture.activation": "default relu",
    "Architecture.dropout": "[0, 1); default 0.0",
    "Atr.period": "[1, 10000]; default 14",
    "BollingerBands.period": "[2, 10000]; default 20",
    "BollingerBands.multiplier": "(0, 100]; default 2.0",
    "Cci.period": "[2, 10000]; default 20",
    "DataSplit.train": "(0, 1); default 0.7",
    "DataSplit.validation": "(0, 1); default 0.15",
    "DataSplit.test": "(0, 1); default 0.15",
    "DataSplit.embargo": "[0, 0.2]; default 0.01",
    "Decisions.output_format": "default classification",
    "EarlyStopping.enabled": "default True",
    "EarlyStopping.patience": "[1, 100000]; default 10",
    "EarlyStopping.min_delta": "[0, ]; default 0.0",
    "EarlyStopping.monitor": "default val_loss",
    "Ema.period": "[1, 10000]; default 20",
    "Labels.zigzag_threshold": "(0, 1)",
    "Labels.label_lookahead": "default None; [1, 100000]",
    "Macd.fast_period": "[1, 10000]; default 12",
    "Macd.slow_period": "[1, 10000]; default 26",
    "Macd.signal_period": "[1, 10000]; default 9",
    "Mfi.period": "[2, 10000]; default 14",
    "Momentum.period": "[1, 10000]; default 10",
    "MultiSymbol.list": "[2, 256]; [, 32]",
    "MultiTimeframe.list": "[2, 8]",
    "NnInput.fuzzy_set": "default None",
    "NnInput.raw_indicator": "default None",
    "NnInput.timeframes": "[1, 8]; default ['all']",
    "NnInput.normalization": "default None",
    "Roc.period": "[1, 10000]; default 10",
    "Rsi.period": "[1, 10000]; default 14",
    "SingleSymbol.symbol": "[, 32]",
    "Sma.period": "[1, 10000]; default 20",
    "Stochastic.k_period": "[2, 10000]; default 14",
    "Stochastic.d_period": "[1, 10000]; default 3",
    "Stochastic.smooth_k": "[1, 10000]; default 3",
    "TargetSymbols.mode": "default training_only",
    "Training.epochs": "[1, 100000]; default 100",
    "Training.batch_size": "[1, 1048576]; default 32",
    "Training.learning_rate": "(0, 10]; default 0.001",
    "Training.optimizer": "default adam",
    "Training.weight_decay": "[0, 10]; default 0.0",
    "Training.gradient_clip": "default None; (0, ]",
    "Training.seed": "[0, 4294967295]; default 42",
    "Training.loss": "default cross_entropy",
    "TrainingData.history_required": "[50, 1000000]; default 200",
    "WilliamsR.period": "[2, 10000]; default 14",
    "Wma.period": "[1, 10000]; default 20",
}


def test_strategy_bounds_and_defaults_are_those_of_the_format() -> None:
    assert dict(every_constraint()) == WANT


def test_parse_strategy_of_exactly_the_largest_size_is_read() -> None:
    text = "name: " + "x" * (MAX_BYTES - len("name: "))
    with pytest.raises(StrategyError) as refused:
        parse_strategy(text)
    assert MAX_BYTES == 64 * 1024
    assert refused.value.path != "(file)"
