"""Metrics against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import (  # type: ignore[import-untyped]
    accuracy_score,
    log_loss,
    precision_recall_fscore_support,
)

from ktrdr_api.errors import CancellationError, DataError
from ktrdr_trainer.dataset import rows_on
from ktrdr_trainer.metrics import evaluate
from ktrdr_trainer.model import Mlp, ModelConfig, initial_parameters
from ktrdr_trainer.stop import StopToken
from loop_builders import FEATURES, Rows, rows

CPU = torch.device("cpu")


def _model(seed: int = 1) -> Mlp:
    config = ModelConfig(FEATURES, (8,))
    return Mlp(config, initial_parameters(config, seed) * 3)


@pytest.mark.parametrize("count", [7, 500, 40_000])
def test_evaluate_on_rows_equals_scikit_learn(count: int) -> None:
    model, part = _model(), rows_on(rows(count), CPU, name="test")
    weights = torch.tensor([0.5, 1.0, 1.7])
    probabilities = torch.softmax(model.forward(part.features), 1).double().numpy()
    probabilities /= probabilities.sum(1, keepdims=True)
    labels, predicted = part.labels.numpy(), probabilities.argmax(1)
    precision, recall, f1_score, _ = precision_recall_fscore_support(
        labels, predicted, average="weighted", zero_division=0
    )
    want = {
        "loss": log_loss(
            labels, probabilities, sample_weight=weights.numpy()[labels], labels=[0, 1, 2]
        ),
        "accuracy": accuracy_score(labels, predicted),
        "precision": precision,
        "recall": recall,
        "f1_score": f1_score,
    }
    assert evaluate(model, part, weights) == pytest.approx(want, rel=1e-5)


def test_evaluate_of_a_class_never_predicted_counts_it_with_precision_0() -> None:
    part = rows_on(rows(60), CPU, name="test")
    config = ModelConfig(FEATURES, (4,))
    parameters = torch.zeros(config.parameters_count)
    parameters[-3] = 1.0  # bias of class 0
    got = evaluate(Mlp(config, parameters), part, torch.ones(3))
    share = float(np.mean(part.labels.numpy() == 0))
    want = {"accuracy": share, "precision": share**2, "recall": share}
    assert {name: got[name] for name in want} == pytest.approx(want)


def test_evaluate_with_a_set_token_stops() -> None:
    token = StopToken()
    token.cancel("cancel")
    with pytest.raises(CancellationError):
        evaluate(_model(), rows_on(rows(9), CPU, name="test"), torch.ones(3), token=token)


def test_evaluate_of_classes_that_training_lacked_names_the_remedy() -> None:
    part = rows_on(Rows(rows(9).features, np.ones(9, np.int64)), CPU, name="test")
    with pytest.raises(DataError, match="longer date range"):
        evaluate(_model(), part, torch.tensor([1.0, 0.0, 1.0]))
