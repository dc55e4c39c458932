"""Small splits and configs for the tests of the training loop; valid by default."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from ktrdr_trainer.checkpoint import CheckpointStore
from ktrdr_trainer.loop import LoopConfig, TrainingOutcome, train
from ktrdr_trainer.model import ModelConfig
from ktrdr_trainer.slot import Clock, ProgressSlot
from ktrdr_trainer.stop import StopToken

FEATURES = 5


@dataclass(frozen=True)
class Rows:
    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Splits:
    train: Rows
    validation: Rows
    test: Rows
    feature_ids: tuple[str, ...]
    class_counts: npt.NDArray[np.int64]


def rows(count: int, *, seed: int = 0, features: int = FEATURES) -> Rows:
    """Rows whose class depends on the features, so that there is something to learn."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((count, features), dtype=np.float32)
    noise = random.standard_normal(count)
    labels = np.digitize(values[:, 0] - values[:, 1] + 0.5 * noise, [-0.7, 0.9])
    return Rows(values, labels.astype(np.int64))


def splits(
    train: int = 300, validation: int = 80, test: int = 70, *, features: int = FEATURES
) -> Splits:
    part = rows(train, features=features)
    return Splits(
        train=part,
        validation=rows(validation, seed=1, features=features),
        test=rows(test, seed=2, features=features),
        feature_ids=tuple(f"1h_feature_{number}" for number in range(features)),
        class_counts=np.bincount(part.labels, minlength=3),
    )


def loop_config(
    *,
    epochs: int = 3,
    batch_size: int = 16,
    learning_rate: float = 0.01,
    weight_decay: float = 0.0,
    gradient_clip: float | None = None,
    seed: int = 7,
    patience: int | None = None,
    min_delta: float = 0.0,
    monitor: Literal["val_loss", "val_accuracy"] = "val_loss",
    dropout: float = 0.2,
    activation: Literal["relu", "tanh", "gelu"] = "relu",
    checkpoint_period_seconds: float = 300.0,
    checkpoint_on_cancel: bool = True,
) -> LoopConfig:
    return LoopConfig(
        model=ModelConfig(FEATURES, (8, 6), activation, dropout),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        gradient_clip=gradient_clip,
        seed=seed,
        patience=patience,
        min_delta=min_delta,
        monitor=monitor,
        checkpoint_period_seconds=checkpoint_period_seconds,
        checkpoint_on_cancel=checkpoint_on_cancel,
    )


def still_clock() -> Clock:
    return Clock(now=lambda: datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC), monotonic=lambda: 100.0)


def ticking_clock(seconds: float = 1.0) -> Clock:
    """Every look at the clock takes `seconds`."""
    time = [0.0]

    def tick() -> float:
        time[0] += seconds
        return time[0]

    return Clock(now=still_clock().now, monotonic=tick)


def store(folder: Path, *, uid: str = "job-1", attempt: int = 1) -> CheckpointStore:
    return CheckpointStore(folder, job_uid=uid, attempt=attempt, clock=still_clock())


class StopAfter(StopToken):
    """Cancels itself at a chosen look at `is_cancelled`: a stop before any chosen batch."""

    def __init__(self, looks: int, reason: str = "sigterm") -> None:
        self._left, self._why, self._is_cancelled = looks, reason, False
        super().__init__()

    @property
    def is_cancelled(self) -> bool:
        self._left -= 1
        if self._left < 0 and not self._is_cancelled:
            self.cancel(self._why)
        return self._is_cancelled

    @is_cancelled.setter
    def is_cancelled(self, value: bool) -> None:
        self._is_cancelled = value


def run_training(
    folder: Path,
    config: LoopConfig | None = None,
    dataset: Splits | None = None,
    *,
    attempt: int = 1,
    token: StopToken | None = None,
    slot: ProgressSlot | None = None,
    clock: Clock | None = None,
) -> TrainingOutcome:
    return train(
        config or loop_config(),
        dataset or splits(),
        token=token or StopToken(),
        slot=slot or ProgressSlot(),
        checkpoints=store(folder, attempt=attempt),
        clock=clock or still_clock(),
    )
