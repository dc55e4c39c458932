"""Where the loop leaves its progress, and the clock it reads. The reporter thread pulls.

The loop stores one tuple per chunk and never waits, formats or does I/O; values nobody pulled are
overwritten.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Event
from typing import NamedTuple

from ktrdr_api.run_contract import Stage


class LoopProgress(NamedTuple):
    """A whole, unchanging picture of a run. Epochs and batches count from 1, 0 = none yet."""

    stage: Stage
    epoch: int
    total_epochs: int
    batch: int
    """Batches done in `epoch`."""
    total_batches: int
    """Batches of each epoch."""
    step: int
    """Optimizer steps since the start of the job, all attempts together."""
    samples_per_second: float
    """Of this epoch, in this process; 0 before its first chunk."""
    metrics: Mapping[str, float]
    """Running train_loss and train_accuracy; val_loss and val_accuracy of the last epoch."""


class ProgressSlot:
    """Holds the newest LoopProgress.

    Attributes:
        latest: What the loop knows now; None before training.
        urgent: Set when the stage changed or an epoch ended; the reporter waits on it and clears.
    """

    __slots__ = ("latest", "urgent")

    def __init__(self) -> None:
        self.latest: LoopProgress | None = None
        self.urgent = Event()

    def put(self, progress: LoopProgress, *, urgent: bool = False) -> None:
        """Replace the value; one store."""
        self.latest = progress
        if urgent:
            self.urgent.set()


@dataclass(frozen=True, slots=True)
class Clock:
    """Time as an argument, so that tests decide it.

    Attributes:
        now: Wall time, UTC; only ever shown, never compared.
        monotonic: Seconds; for durations.
    """

    now: Callable[[], datetime]
    monotonic: Callable[[], float]


def system_clock() -> Clock:
    """The machine's clock."""
    return Clock(now=lambda: datetime.now(UTC), monotonic=time.monotonic)
