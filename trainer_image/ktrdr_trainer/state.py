"""What a run knows at a batch boundary: enough to go on as if it had never stopped.

`loop` makes it, `checkpoint` stores it. All randomness is a function of (seed, epoch, chunk), so
there is no generator state.
"""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

PARAMETERS: Final = "parameters"
FIRST_MOMENT: Final = "first_moment"
SECOND_MOMENT: Final = "second_moment"
BEST_PARAMETERS: Final = "best_parameters"
"""Names of the flat tensors in a checkpoint."""

Count = Annotated[int, Field(ge=0)]


class StateModel(BaseModel):
    """Base: frozen, unknown keys refused, floats survive JSON exactly."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class EpochRecord(StateModel):
    """One line of the history."""

    epoch: Annotated[int, Field(ge=1)]
    train_loss: float
    """Mean over the rows of the epoch, with dropout, while the parameters moved."""
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    duration_seconds: float
    """Of all attempts together."""
    timestamp: str
    """RFC 3339, UTC, when the epoch ended."""


class Position(StateModel):
    """Where the run stands. A position inside an epoch carries the epoch's running sums."""

    epoch: Count = 0
    """Epochs completed, each with its validation."""
    batch: Count = 0
    """Batches done in the epoch after those."""
    step: Count = 0
    loss_sum: float = 0.0
    """Batch losses times their rows."""
    correct: Count = 0
    """Rows whose class was right."""
    epoch_seconds: float = 0.0
    training_seconds: float = 0.0

    @property
    def current_epoch(self) -> int:
        """The epoch it stands in or, between two, the one completed; 0 before the first batch."""
        return self.epoch + 1 if self.batch else self.epoch


class Selection(StateModel):
    """Which epoch is best and how long nothing got better; lower values are better."""

    best_epoch: int | None = None
    best_value: float | None = None
    """Smallest monitored value so far; its parameters are kept."""
    reference_value: float | None = None
    """Value of the last epoch that improved by more than `min_delta`."""
    stale_epochs: Count = 0
    """Epochs since."""

    def after(self, epoch: int, value: float, min_delta: float) -> "Selection":
        """The selection once an epoch's value is known."""
        best = self.best_value is None or value < self.best_value
        fresh = self.reference_value is None or value < self.reference_value - min_delta
        return Selection(
            best_epoch=epoch if best else self.best_epoch,
            best_value=value if best else self.best_value,
            reference_value=value if fresh else self.reference_value,
            stale_epochs=0 if fresh else self.stale_epochs + 1,
        )


class RunState(StateModel):
    """Everything but the tensors."""

    position: Position = Position()
    selection: Selection = Selection()
    history: tuple[EpochRecord, ...] = ()
