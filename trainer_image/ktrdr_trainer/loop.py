"""The training loop: epochs of chunks, validation, early stopping, checkpoints, stop.

Called by `training` with prepared splits; the outcome goes to `artifact`. The loop
waits for nobody: it leaves its progress in a slot, reads one flag per batch and hands clones to the
checkpoint writer. The steps themselves are in `steps`.

Same config and rows, same parameters: run through, stopped and resumed, or killed and resumed (same
build, thread count and device).
"""

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ktrdr_api.errors import CancellationError, CheckpointError, KtrdrError
from ktrdr_api.run_contract import CheckpointRef, Stage
from ktrdr_trainer.checkpoint import CheckpointStore, CheckpointWriter, Snapshot
from ktrdr_trainer.dataset import ChunkPlan, SplitRows, permutation, rows_on
from ktrdr_trainer.files import rfc3339
from ktrdr_trainer.loop_config import LoopConfig, choose_threads, from_strategy, recipe_digest
from ktrdr_trainer.metrics import evaluate
from ktrdr_trainer.model import Mlp, initial_parameters
from ktrdr_trainer.objective import CrossEntropy, FlatAdam, class_weights, require_finite
from ktrdr_trainer.slot import Clock, LoopProgress, ProgressSlot
from ktrdr_trainer.state import (
    BEST_PARAMETERS,
    FIRST_MOMENT,
    PARAMETERS,
    SECOND_MOMENT,
    EpochRecord,
    Position,
    RunState,
    Selection,
)
from ktrdr_trainer.steps import ChunkRun, Learner, steps_for
from ktrdr_trainer.stop import StopToken
from ktrdr_trainer.stopping import StopReason

__all__ = ["LoopConfig", "TrainingOutcome", "choose_threads", "from_strategy", "train"]

CHECKPOINT_EPOCHS: Final = 10
"""A checkpoint at least that often, besides the period."""


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """How training ended; metric names as the run's result has them.

    Attributes:
        stopped: Whether somebody stopped it; then there are no metrics and no model.
        epoch: Epoch it ended in, from 1.
        batch: Batches done in it.
        step: Optimizer steps done.
        model: The best epoch's network, on the CPU; None if stopped.
        class_weights: (3,) as trained with.
        history: A record per epoch completed.
        best_epoch: Whose parameters the model has; None before the first epoch's end.
        training_metrics: final_{train,val}_{loss,accuracy}, epochs_completed, early_stopped, ...
        validation_metrics: val_loss, val_accuracy of the model.
        test_metrics: test_loss, test_accuracy, precision, recall, f1_score of the model.
        checkpoint: The last durable one, if any.
        problems: What went wrong after the resume without ending the run, for the user.
    """

    stopped: bool
    epoch: int
    batch: int
    step: int
    model: Mlp | None
    class_weights: Tensor
    history: tuple[EpochRecord, ...]
    best_epoch: int | None
    training_metrics: dict[str, float]
    validation_metrics: dict[str, float]
    test_metrics: dict[str, float]
    checkpoint: CheckpointRef | None
    problems: tuple[str, ...]

    @property
    def epochs_completed(self) -> int:
        """Each with its validation."""
        return len(self.history)


def default_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train(
    config: LoopConfig,
    dataset: SplitRows,
    *,
    token: StopToken,
    slot: ProgressSlot,
    checkpoints: CheckpointStore,
    clock: Clock,
) -> TrainingOutcome:
    """Train, from the newest checkpoint if there is one, to the end or to a stop.

    Raises:
        DataError: A split is empty, or its values cannot be learned from.
        StrategyError: Training diverged: the loss is no number.
        CheckpointError, TemporaryError: A checkpoint cannot be read or written.
        KtrdrError: The GPU's memory is full.
    """
    with CheckpointWriter(checkpoints) as writer, _gpu_memory():
        run = _Run(config, dataset, slot=slot, clock=clock, writer=writer)
        run.resume(checkpoints)
        try:
            while not run.is_finished:
                run.epoch(token)
            return run.complete(token)
        except CancellationError:
            return run.stopped(token)


@contextmanager
def _gpu_memory() -> Iterator[None]:
    """Turn torch's error into ours, with the remedy."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise KtrdrError(
            "out of GPU memory: use a larger GPU, or one that nothing else uses, or less data, or "
            f"a smaller batch_size ({error})"
        ) from error


class _Run:
    """One attempt at one training: the flat tensors, and where in the job it stands."""

    def __init__(
        self,
        config: LoopConfig,
        dataset: SplitRows,
        *,
        slot: ProgressSlot,
        clock: Clock,
        writer: CheckpointWriter,
    ) -> None:
        device = default_device()
        self._config, self._slot, self._clock, self._writer = config, slot, clock, writer
        self._recipe = recipe_digest(config, dataset)
        self._train = rows_on(dataset.train, device, name="train")
        self._validation = rows_on(dataset.validation, device, name="validation")
        self._test = rows_on(dataset.test, device, name="test")
        self._weights = class_weights(dataset.class_counts)
        self._model = Mlp(config.model, initial_parameters(config.model, config.seed).to(device))
        self._best = self._model.parameters.clone()
        self._adam = FlatAdam(
            self._model.parameters,
            self._model.gradient,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            clip=config.gradient_clip,
        )
        self._plan = ChunkPlan(len(self._train), config.batch_size)
        learner = Learner(self._model, CrossEntropy(self._weights.to(device)), self._adam)
        self._steps = steps_for(self._train, self._plan, learner, seed=config.seed)
        self._position, self._selection = Position(), Selection()
        self._history: list[EpochRecord] = []
        self._problems: tuple[str, ...] = ()
        self._checkpoint: CheckpointRef | None = None
        self._now = self._saved_at = clock.monotonic()
        self._saved_epoch = 0
        self._rate = 0.0

    @property
    def is_finished(self) -> bool:
        """Whether the last epoch is done, or no better one is to be expected."""
        return len(self._history) >= self._config.epochs or self._is_stale

    @property
    def _is_stale(self) -> bool:
        patience = self._config.patience
        return patience is not None and self._selection.stale_epochs >= patience

    def resume(self, checkpoints: CheckpointStore) -> None:
        """Take over the newest checkpoint, if there is one."""
        checkpoint = checkpoints.latest().checkpoint
        if checkpoint is None:
            return
        snapshot = checkpoint.snapshot
        if snapshot.recipe != self._recipe:
            raise CheckpointError(
                f"{checkpoint.ref.path}: the strategy or the data changed since it was written, so "
                "training cannot go on from there; create a new job, or remove the folder "
                f"{checkpoints.folder}"
            )
        own = self._tensors()
        if _shapes(snapshot.tensors) != _shapes(own):  # copying would stretch a smaller one
            raise CheckpointError(
                f"{checkpoint.ref.path}: does not hold the tensors of this network; remove the "
                "file, and training goes on from the checkpoint before it"
            )
        for name, tensor in own.items():
            tensor.copy_(snapshot.tensors[name])
        self._position, self._selection = snapshot.state.position, snapshot.state.selection
        self._history = list(snapshot.state.history)
        self._adam.restore(steps=self._position.step)
        self._checkpoint, self._saved_epoch = checkpoint.ref, self._position.epoch

    def epoch(self, token: StopToken) -> None:
        """Train what is left of the epoch, then validate."""
        self._put(Stage.TRAINING, urgent=self._slot.latest is None)
        if self._position.batch < self._plan.batches:
            self._train_epoch(token)
        token.raise_if_cancelled()
        self._finish_epoch(evaluate(self._model, self._validation, self._weights, token=token))
        if self._is_checkpoint_due():
            self._save_in_background()

    def complete(self, token: StopToken) -> TrainingOutcome:
        """Take the best epoch's parameters and see what they are worth on the test split."""
        self._checkpoint = self._writer.finish() or self._checkpoint
        self._put(Stage.EVALUATING, urgent=True)
        best_epoch = self._selection.best_epoch
        best = self._history[(best_epoch or 1) - 1]
        model = Mlp(self._config.model, self._best)
        test = evaluate(model, self._test, self._weights, token=token)
        return self._outcome(
            stopped=False,
            model=Mlp(self._config.model, self._best.cpu()),
            training_metrics=self._training_metrics(),
            validation_metrics={"val_loss": best.val_loss, "val_accuracy": best.val_accuracy},
            test_metrics={
                "test_loss": test.pop("loss"), "test_accuracy": test.pop("accuracy"), **test
            },
        )  # fmt: skip

    def stopped(self, token: StopToken) -> TrainingOutcome:
        """Save where the run stands, if that is wanted.

        A checkpoint that cannot be saved does not turn a stop into a failure: it is a problem of
        the outcome, and the last durable checkpoint stays.
        """
        self._put(Stage.CANCELLING, urgent=True)
        try:
            if self._is_checkpoint_wanted(token.reason):
                self._writer.save(self._snapshot())
            self._writer.finish()
        except KtrdrError as error:
            self._problems += (f"No checkpoint was saved at the stop: {error}",)
        self._checkpoint = self._writer.last or self._checkpoint
        return self._outcome(stopped=True)

    def _is_checkpoint_wanted(self, reason: str | None) -> bool:
        if reason == StopReason.SIGTERM:
            return True  # a disruption: the next attempt goes on from here
        return reason != StopReason.SUPERSEDED and self._config.checkpoint_on_cancel

    def _train_epoch(self, token: StopToken) -> None:
        epoch, per_chunk = len(self._history) + 1, self._plan.batches_per_chunk
        self._now, self._rate = self._clock.monotonic(), 0.0
        order = permutation(
            len(self._train), seed=self._config.seed, epoch=epoch, device=self._best.device
        )
        meter = _Meter(self._now)
        chunk, inside = divmod(self._position.batch, per_chunk)
        ahead: deque[ChunkRun] = deque()
        for index in range(chunk, self._plan.chunks):
            first = inside if index == chunk else 0
            run = self._steps.run(order, epoch=epoch, chunk=index, first_batch=first, token=token)
            ahead.append(run)
            # Both are asked once: what is saved must account for every step that was done.
            is_stopped = token.is_cancelled
            is_due = not is_stopped and self._is_checkpoint_due()
            while len(ahead) > (0 if is_stopped or is_due else self._steps.run_ahead):
                self._account(ahead.popleft(), meter)
            if is_stopped:
                token.raise_if_cancelled()
            if is_due:
                self._save_in_background()
        while ahead:
            self._account(ahead.popleft(), meter)

    def _account(self, run: ChunkRun, meter: "_Meter") -> None:
        """Add a chunk's results to the position, in order: sums do not depend on where it stops."""
        losses, correct = run.result()
        position = self._position
        loss_sum, batch = position.loss_sum, position.batch
        for loss, size in zip(losses, run.sizes, strict=True):
            batch += 1
            require_finite(loss, epoch=position.epoch + 1, batch=batch)
            loss_sum += loss * size
        seconds = self._lap()
        self._rate = meter.rate(sum(run.sizes), self._now)
        self._position = Position(
            epoch=position.epoch,
            batch=batch,
            step=position.step + len(losses),
            loss_sum=loss_sum,
            correct=position.correct + correct,
            epoch_seconds=position.epoch_seconds + seconds,
            training_seconds=position.training_seconds + seconds,
        )
        self._put(Stage.TRAINING)

    def _finish_epoch(self, scores: dict[str, float]) -> None:
        position, rows = self._position, len(self._train)
        epoch, seconds = position.epoch + 1, self._lap()
        require_finite(scores["loss"], epoch=epoch, batch=None)
        record = EpochRecord(
            epoch=epoch,
            train_loss=position.loss_sum / rows,
            train_accuracy=position.correct / rows,
            val_loss=scores["loss"],
            val_accuracy=scores["accuracy"],
            learning_rate=self._config.learning_rate,
            duration_seconds=position.epoch_seconds + seconds,
            timestamp=rfc3339(self._clock.now()),
        )
        by_loss = self._config.monitor == "val_loss"
        value = record.val_loss if by_loss else -record.val_accuracy
        self._selection = self._selection.after(epoch, value, self._config.min_delta)
        if self._selection.best_epoch == epoch:
            self._best = self._model.parameters.clone()
        self._history.append(record)
        self._position = Position(
            epoch=epoch,
            step=position.step,
            training_seconds=position.training_seconds + seconds,
        )
        self._put(Stage.TRAINING, urgent=True)

    def _lap(self) -> float:
        """Seconds since the last lap."""
        before, self._now = self._now, self._clock.monotonic()
        return self._now - before

    def _is_checkpoint_due(self) -> bool:
        if self._writer.is_busy:
            return False
        return (
            self._clock.monotonic() - self._saved_at >= self._config.checkpoint_period_seconds
            or self._position.epoch - self._saved_epoch >= CHECKPOINT_EPOCHS
        )

    def _save_in_background(self) -> None:
        self._writer.submit(self._snapshot())
        self._saved_at, self._saved_epoch = self._clock.monotonic(), self._position.epoch

    def _tensors(self) -> dict[str, Tensor]:
        return {
            PARAMETERS: self._model.parameters,
            FIRST_MOMENT: self._adam.first_moment,
            SECOND_MOMENT: self._adam.second_moment,
            BEST_PARAMETERS: self._best,
        }

    def _snapshot(self) -> Snapshot:
        tensors = {name: tensor.to("cpu", copy=True) for name, tensor in self._tensors().items()}
        state = RunState(
            position=self._position, selection=self._selection, history=tuple(self._history)
        )
        return Snapshot(tensors, state, self._recipe)

    def _put(self, stage: Stage, *, urgent: bool = False) -> None:
        position = self._position
        metrics: dict[str, float] = {}
        if self._history:
            last = self._history[-1]
            metrics = {
                "train_loss": last.train_loss, "train_accuracy": last.train_accuracy,
                "val_loss": last.val_loss, "val_accuracy": last.val_accuracy,
            }  # fmt: skip
        if position.batch:
            rows = min(position.batch * self._config.batch_size, len(self._train))
            metrics["train_loss"] = position.loss_sum / rows
            metrics["train_accuracy"] = position.correct / rows
        self._slot.put(
            LoopProgress(
                stage,
                position.current_epoch,
                self._config.epochs,
                self._current_batch,
                self._plan.batches,
                position.step,
                self._rate,
                metrics,
            ),
            urgent=urgent,
        )

    @property
    def _current_batch(self) -> int:
        """Batches done in the current epoch: all of it when the next one has not begun."""
        return self._position.batch or (self._plan.batches if self._position.epoch else 0)

    def _training_metrics(self) -> dict[str, float]:
        last = self._history[-1]
        return {
            "final_train_loss": last.train_loss,
            "final_train_accuracy": last.train_accuracy,
            "final_val_loss": last.val_loss,
            "final_val_accuracy": last.val_accuracy,
            "epochs_completed": len(self._history),
            "early_stopped": len(self._history) < self._config.epochs,
            "best_epoch": self._selection.best_epoch or 0,
            "final_learning_rate": last.learning_rate,
            "training_time_minutes": self._position.training_seconds / 60,
        }

    def _outcome(
        self,
        *,
        stopped: bool,
        model: Mlp | None = None,
        training_metrics: dict[str, float] | None = None,
        validation_metrics: dict[str, float] | None = None,
        test_metrics: dict[str, float] | None = None,
    ) -> TrainingOutcome:
        return TrainingOutcome(
            stopped=stopped,
            epoch=self._position.current_epoch,
            batch=self._current_batch,
            step=self._position.step,
            model=model,
            class_weights=self._weights,
            history=tuple(self._history),
            best_epoch=self._selection.best_epoch,
            training_metrics=training_metrics or {},
            validation_metrics=validation_metrics or {},
            test_metrics=test_metrics or {},
            checkpoint=self._checkpoint,
            problems=self._problems,
        )


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


class _Meter:
    """Rows per second since it was made."""

    def __init__(self, started: float) -> None:
        self._started, self._rows = started, 0

    def rate(self, rows: int, now: float) -> float:
        """The rate once `rows` more are done."""
        self._rows += rows
        return self._rows / (now - self._started) if now > self._started else 0.0
