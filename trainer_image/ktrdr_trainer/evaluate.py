"""Proves a stored model: load it, compute its test metrics again, compare with the recorded ones.

Called by `__main__`. The features are rebuilt from the artefact's own strategy (and the overrides
it was trained with); they must come out with the stored scaling, or the data are not the same.
"""

import json
from pathlib import Path
from typing import Any, Final

import torch

from ktrdr_api.run_contract import Overrides
from ktrdr_api.strategy import Strategy, parse_strategy, with_overrides
from ktrdr_trainer import metrics
from ktrdr_trainer.artifact import LoadedModel, load_artifact
from ktrdr_trainer.artifact_folder import STRATEGY_FILE
from ktrdr_trainer.dataset import rows_on
from ktrdr_trainer.loop import choose_threads
from ktrdr_trainer.pipeline.prepare import PreparedDataset, prepare
from ktrdr_trainer.request import read_request
from ktrdr_trainer.result import REQUEST_COPY

TOLERANCE: Final = 1e-6
"""Another number of threads adds up in another order."""
_RECORDED_NAMES: Final = {"loss": "test_loss", "accuracy": "test_accuracy"}


def evaluate(folder: Path, data_folder: Path) -> dict[str, Any]:
    """Compare the recorded test metrics with what the stored model reaches now.

    Args:
        folder: The artefact.
        data_folder: The market data it was trained on.

    Returns:
        `identical`, `scalingIdentical`, and each metric's recorded and recomputed value.

    Raises:
        KtrdrError: The artefact is damaged, or the data are missing or bad.
    """
    model = load_artifact(folder)
    strategy = _strategy(folder, model.strategy_text)
    torch.set_num_threads(choose_threads(strategy.training.batch_size))
    dataset = prepare(strategy, data_folder, check_stop=lambda: None, on_stage=lambda _: None)
    same_scaling = _same_scaling(model, dataset)
    rows = rows_on(dataset.test, torch.device("cpu"), name="test")
    values = metrics.evaluate(model.model, rows, model.class_weights)
    compared = _compared(model.metrics["test_metrics"], values)
    close = all(
        abs(pair["recorded"] - pair["recomputed"]) <= TOLERANCE for pair in compared.values()
    )
    return {
        "artifact": str(folder),
        "identical": same_scaling and close,
        "tolerance": TOLERANCE,
        "scalingIdentical": same_scaling,
        "testRows": len(rows),
        "metrics": compared,
    }


def _compared(
    recorded: dict[str, float], recomputed: dict[str, float]
) -> dict[str, dict[str, float]]:
    named = {_RECORDED_NAMES.get(name, name): value for name, value in recomputed.items()}
    return {
        name: {"recorded": value, "recomputed": named[name]} for name, value in recorded.items()
    }


def _same_scaling(model: LoadedModel, dataset: PreparedDataset) -> bool:
    fitted = json.loads(json.dumps(dataset.scaling.to_json()))  # as it was stored
    return model.feature_ids == dataset.feature_ids and model.scaling == fitted


def _strategy(folder: Path, text: str) -> Strategy:
    strategy = parse_strategy(text, source=str(folder / STRATEGY_FILE))
    file = folder / REQUEST_COPY
    wishes = read_request(file).request.overrides if file.exists() else Overrides()
    return with_overrides(
        strategy,
        symbols=wishes.symbols,
        timeframes=wishes.timeframes,
        start=wishes.start_date,
        end=wishes.end_date,
    )
