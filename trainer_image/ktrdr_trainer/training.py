"""The part of a run that needs torch: train what was prepared, store the model.

Called by `run` once the data are read and torch is imported; the loop, the checkpoints and the
artefact do the work.
"""

from collections.abc import Callable

import torch

from ktrdr_api.run_contract import (
    ArtifactRef,
    CheckpointPolicy,
    CheckpointRef,
    RunRequest,
    RunResult,
    Stage,
)
from ktrdr_trainer import result
from ktrdr_trainer.artifact import ArtifactSource, store
from ktrdr_trainer.checkpoint import CheckpointStore, Found, Snapshot
from ktrdr_trainer.logs import LOGGER
from ktrdr_trainer.loop import TrainingOutcome, choose_threads, from_strategy, train
from ktrdr_trainer.pipeline.prepare import PreparedDataset
from ktrdr_trainer.request import StrategySource
from ktrdr_trainer.run import RunContext


class ShownCheckpoints(CheckpointStore):
    """A checkpoint store that shows each durable checkpoint in the progress.

    Set `show` and `warn` before use; `show` is called by the writer's thread.
    """

    show: Callable[[CheckpointRef], None]
    warn: Callable[[str], None]

    def save(self, snapshot: Snapshot) -> CheckpointRef:
        """As the base class; shown once it is durable."""
        ref = super().save(snapshot)
        self.show(ref)
        return ref

    def latest(self) -> Found:
        """As the base class; what a run resumes from is shown as well."""
        found = super().latest()
        for problem in found.problems:  # now, not at the end: a run killed later would never say it
            self.warn(problem)
        if found.checkpoint is not None:
            ref = found.checkpoint.ref
            LOGGER.info("Resuming from epoch %d, step %d: %s", ref.epoch, ref.step, ref.path)
            self.show(ref)
        return found


def train_and_store(
    context: RunContext, source: StrategySource, dataset: PreparedDataset
) -> RunResult:
    """Train from the newest checkpoint of the job, if there is one, and store the best model.

    Raises:
        KtrdrError: The output cannot be written; else see `loop.train` and `artifact.store`.
    """
    request, strategy = context.request, source.strategy
    torch.set_num_threads(choose_threads(strategy.training.batch_size))
    checkpoints = ShownCheckpoints(
        context.output, job_uid=request.job.uid, attempt=request.attempt, clock=context.clock
    )
    checkpoints.require_writable()
    checkpoints.show = lambda ref: context.reporter.update(checkpoint=ref)
    checkpoints.warn = context.warnings.add
    config = from_strategy(
        strategy,
        inputs=len(dataset.feature_ids),
        checkpoint_period_seconds=request.checkpoint_period_seconds,
        checkpoint_on_cancel=request.checkpoint_on_cancel is CheckpointPolicy.BEST_EFFORT,
    )
    outcome = train(
        config,
        dataset,
        token=context.stops.token,
        slot=context.slot,
        checkpoints=checkpoints,
        clock=context.clock,
    )
    for problem in outcome.problems:
        context.warnings.add(problem)
    if outcome.stopped:
        return _stopped(context, outcome)
    if context.slot.latest is not None:
        context.slot.put(context.slot.latest._replace(stage=Stage.SAVING), urgent=True)
    ref = store(
        context.output, outcome, _artifact_source(request, source, dataset), clock=context.clock
    )
    return _succeeded(request, outcome, ref)


def _artifact_source(
    request: RunRequest, source: StrategySource, dataset: PreparedDataset
) -> ArtifactSource:
    strategy = source.strategy
    return ArtifactSource(
        job_uid=request.job.uid,
        attempt=request.attempt,
        strategy=strategy.name,
        strategy_text=source.text,
        base_timeframe=strategy.base_timeframe,
        symbols=strategy.symbols,
        timeframes=strategy.timeframes,
        seed=strategy.training.seed,
        feature_ids=dataset.feature_ids,
        scaling=dataset.scaling,
        data_summary=dataset.summary,
    )


def _succeeded(request: RunRequest, outcome: TrainingOutcome, ref: ArtifactRef) -> RunResult:
    metrics = {**outcome.test_metrics, **outcome.validation_metrics, **outcome.training_metrics}
    return result.succeeded(request, ref, metrics=metrics).model_copy(
        update={
            "epoch": outcome.epoch,
            "batch": outcome.batch,
            "step": outcome.step,
            "epochs_completed": outcome.epochs_completed,
            "best_epoch": outcome.best_epoch,
            "checkpoint": outcome.checkpoint,
        }
    )


def _stopped(context: RunContext, outcome: TrainingOutcome) -> RunResult:
    last = result.stopped(
        context.request,
        context.stops,
        epoch=outcome.epoch,
        batch=outcome.batch,
        checkpoint=outcome.checkpoint,
    )
    return last.model_copy(
        update={
            "step": outcome.step,
            "epochs_completed": outcome.epochs_completed,
            "best_epoch": outcome.best_epoch,
        }
    )
