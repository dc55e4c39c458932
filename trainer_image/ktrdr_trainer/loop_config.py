"""What the loop is told: its config, how many threads it gets, and what its numbers depend on.

Made by `training` from the strategy and the request; the loop reads nothing else.
"""

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from ktrdr_api.strategy import Strategy
from ktrdr_trainer.dataset import SplitRows
from ktrdr_trainer.model import ModelConfig

_SAMPLED_ROWS: Final = 4096
"""Of each split, in the recipe: all of 500,000 rows would cost 0.1 s of the start."""
_SMALL_BATCH: Final = 128
_MOST_THREADS: Final = 4
"""Up to 128 rows a second thread only costs; beyond 4 the gain is gone (measured)."""


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """How to train.

    Attributes:
        model: The network.
        epochs: At most so many.
        batch_size: Rows of a step.
        learning_rate: Of Adam.
        weight_decay: L2 penalty, as torch.optim.Adam.
        gradient_clip: Largest norm of the gradient; None: not clipped.
        seed: Decides start, shuffling and dropout.
        patience: Stop after so many epochs without improvement; None: never early.
        min_delta: What counts as improvement for `patience`.
        monitor: What chooses the best epoch.
        checkpoint_period_seconds: At least one checkpoint in so many seconds.
        checkpoint_on_cancel: Whether a run that is cancelled saves one; SIGTERM always does.
    """

    model: ModelConfig
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0
    gradient_clip: float | None = None
    seed: int = 42
    patience: int | None = None
    min_delta: float = 0.0
    monitor: Literal["val_loss", "val_accuracy"] = "val_loss"
    checkpoint_period_seconds: float = 300.0
    checkpoint_on_cancel: bool = True


def from_strategy(
    strategy: Strategy, *, inputs: int, checkpoint_period_seconds: float, checkpoint_on_cancel: bool
) -> LoopConfig:
    """The loop's part of a strategy; `inputs` is the number of features."""
    network, training = strategy.model.architecture, strategy.training
    stopping = training.early_stopping
    return LoopConfig(
        model=ModelConfig(inputs, network.hidden_layers, network.activation, network.dropout),
        epochs=training.epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        gradient_clip=training.gradient_clip,
        seed=training.seed,
        patience=stopping.patience if stopping.enabled else None,
        min_delta=stopping.min_delta,
        monitor=stopping.monitor,
        checkpoint_period_seconds=checkpoint_period_seconds,
        checkpoint_on_cancel=checkpoint_on_cancel,
    )


def choose_threads(batch_size: int, *, cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Threads for torch: 1 for small batches, else the CPU quota, at most 4.

    To be set before the first operation: threads beyond the quota cost up to 60x (measured).
    """
    if batch_size <= _SMALL_BATCH:
        return 1
    allowed = len(os.sched_getaffinity(0))
    quota = _cpu_quota(cgroup)
    return max(1, min(allowed, _MOST_THREADS, math.floor(quota) if quota else allowed))


def _cpu_quota(cgroup: Path) -> float | None:
    """CPUs this container may use: cgroup v2 `cpu.max`, else v1; None: as many as there are."""
    unified, quota = cgroup / "cpu.max", cgroup / "cpu" / "cpu.cfs_quota_us"
    if unified.exists():
        limit, period = unified.read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    if quota.exists() and int(quota.read_text()) > 0:
        return int(quota.read_text()) / int(quota.with_name("cpu.cfs_period_us").read_text())
    return None


def recipe_digest(config: LoopConfig, dataset: SplitRows) -> str:
    """Digest of what decides the numbers: the config, every label, a sample of the features."""
    settings = asdict(config)
    for name in ("checkpoint_period_seconds", "checkpoint_on_cancel"):
        del settings[name]
    digest = hashlib.sha256(json.dumps([settings, dataset.feature_ids], sort_keys=True).encode())
    for part in (dataset.train, dataset.validation, dataset.test):
        stride = max(1, len(part.labels) // _SAMPLED_ROWS)
        digest.update(part.labels.tobytes())
        digest.update(part.features[::stride].tobytes())
    return digest.hexdigest()
