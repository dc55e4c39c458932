"""Turns what the loop knows into what the TrainingJob shows: numbers in, `status.progress` out.

Called by the reporter thread, never by the loop. Pure: the slot's picture, the run's own view and
the time are arguments. Percent: preparation 0-5, training 5 + 94 * batches done / all, 100 once
stored.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from ktrdr_api.run_contract import CheckpointRef, Metric, Stage, printable
from ktrdr_api.training_job import CheckpointStatus, Display, MetricValue, Progress
from ktrdr_trainer.slot import LoopProgress

METRICS_MAX: Final = 32
METRIC_NAME_MAX: Final = 63
MESSAGE_MAX: Final = 256
PREPARATION_PERCENT: Final = 5
TRAINING_PERCENT: Final = 94
LOSS_METRIC: Final = "train_loss"


@dataclass(frozen=True, slots=True)
class RunView:
    """What the run knows beside the loop. Replaced as a whole, so readers need no lock.

    Attributes:
        attempt: Which start of the job this is.
        pod_uid: Who reports; empty outside a pod.
        prepared: Part of the preparation that is done, in [0, 1].
        message: What to say instead of epoch and batch.
        checkpoint: The last durable one.
    """

    attempt: int
    pod_uid: str = ""
    prepared: float = 0.0
    message: str = ""
    checkpoint: CheckpointRef | None = None


class Forecast:
    """Remaining time at the mean rate of this process: validation and checkpoints are in it."""

    def __init__(self) -> None:
        self._start: tuple[float, int] | None = None

    def remaining_seconds(self, progress: LoopProgress, now_seconds: float) -> int | None:
        """Seconds for all epochs the strategy asks for; None until there is a rate.

        Args:
            progress: The newest picture of the loop.
            now_seconds: A monotonic clock.
        """
        done, total = _batches(progress)
        if progress.stage is not Stage.TRAINING or done == 0:
            return None
        if self._start is None:
            self._start = (now_seconds, done)
        elapsed, batches = now_seconds - self._start[0], done - self._start[1]
        if batches <= 0 or elapsed <= 0:
            return None
        return round((total - done) * elapsed / batches)


def progress_of(
    view: RunView,
    loop: LoopProgress | None,
    *,
    stage: Stage,
    remaining_seconds: int | None,
    now: datetime,
) -> Progress:
    """The whole of `status.progress`.

    Args:
        view: What the run says of itself.
        loop: What the loop says; None before training.
        stage: What is being done; overrides the loop's.
        remaining_seconds: See `Forecast`.
        now: UTC.
    """
    percentage = _percentage(view, loop, stage)
    common = {
        "attempt": view.attempt,
        "pod_uid": view.pod_uid,
        "stage": stage,
        "percentage": percentage,
        "message": _message(view, loop, stage),
        "last_update_time": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "checkpoint": _checkpoint_status(view.checkpoint),
    }
    if loop is None:
        return Progress.model_validate({**common, "display": Display(progress=f"{percentage}%")})
    return Progress(
        **common,
        current_epoch=loop.epoch,
        total_epochs=loop.total_epochs,
        current_batch=loop.batch,
        total_batches=loop.total_batches,
        step=loop.step,
        samples_per_second=_whole(loop.samples_per_second),
        estimated_remaining_seconds=remaining_seconds,
        metrics=tuple(
            MetricValue(name=metric.name, value=metric.value) for metric in metrics_of(loop.metrics)
        ),
        display=_display(loop, percentage, remaining_seconds),
    )


def metrics_of(values: Mapping[str, float]) -> tuple[Metric, ...]:
    """Finite numbers as text, at most 32; names cut to 63 printable characters, the first wins."""
    found: dict[str, Metric] = {}
    for name, value in values.items():
        text = "".join(c if c.isprintable() else "_" for c in name[:METRIC_NAME_MAX])
        if text and text not in found and math.isfinite(value):
            found[text] = Metric(name=text, value=f"{value:.6g}")
        if len(found) == METRICS_MAX:
            break
    return tuple(found.values())


def duration_text(seconds: int) -> str:
    """Two units, as kubectl shows ages: `42s`, `4m20s`, `2h05m`, `3d04h`."""
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour:02d}h"
    if hours:
        return f"{hours}h{minute:02d}m"
    return f"{minutes}m{second:02d}s" if minutes else f"{second}s"


def position_text(loop: LoopProgress) -> str:
    """`Epoch 1/50 · Batch 120/640`."""
    return f"Epoch {loop.epoch}/{loop.total_epochs} · Batch {loop.batch}/{loop.total_batches}"


def _batches(loop: LoopProgress) -> tuple[int, int]:
    """Batches done and batches in all."""
    return (
        max(loop.epoch - 1, 0) * loop.total_batches + loop.batch,
        loop.total_epochs * loop.total_batches,
    )


def _percentage(view: RunView, loop: LoopProgress | None, stage: Stage) -> int:
    if stage is Stage.DONE:
        return 100
    if loop is None:
        return int(PREPARATION_PERCENT * min(max(view.prepared, 0.0), 1.0))
    done, total = _batches(loop)
    part = min(done / total, 1.0) if total else 0.0
    return PREPARATION_PERCENT + int(TRAINING_PERCENT * part)


def _message(view: RunView, loop: LoopProgress | None, stage: Stage) -> str:
    if view.message:
        text = view.message
    elif stage is Stage.CANCELLING:
        text = f"Stopping at {position_text(loop)}" if loop else "Stopping before training began"
    elif stage is Stage.EVALUATING:
        text = "Measuring the model on the test split"
    elif stage is Stage.SAVING:
        text = "Storing the model"
    else:
        text = position_text(loop) if loop else "Preparing data"
    return printable(text)[:MESSAGE_MAX]


def _display(loop: LoopProgress, percentage: int, remaining_seconds: int | None) -> Display:
    loss = loop.metrics.get(LOSS_METRIC, math.nan)
    return Display(
        epoch=f"{loop.epoch}/{loop.total_epochs}",
        batch=f"{loop.batch}/{loop.total_batches}",
        eta="" if remaining_seconds is None else duration_text(remaining_seconds),
        loss=f"{loss:.4f}" if abs(loss) < 1e6 else "",  # also false for NaN
        progress=f"{percentage}%",
    )


def _checkpoint_status(checkpoint: CheckpointRef | None) -> CheckpointStatus | None:
    return None if checkpoint is None else CheckpointStatus(**checkpoint.model_dump())


def _whole(rate: float) -> int | None:
    return int(rate) if math.isfinite(rate) and rate > 0 else None
