"""The last word of a run: made from how it ended, stored where it outlives the process.

Called by `run`. The result goes to `results/{job uid}.json` in the output folder, beside the model
(`artifact` does that), and, in at most 4 KiB, to the pod's termination message, which the operator
reads; so the outcome survives an unreachable API server.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from ktrdr_api.conditions import Reason
from ktrdr_api.errors import KtrdrError
from ktrdr_api.run_contract import (
    MESSAGE_MAX_LENGTH,
    ArtifactRef,
    CheckpointRef,
    ExitCode,
    Outcome,
    RunRequest,
    RunResult,
)
from ktrdr_trainer.artifact_folder import METADATA_FILE, METRICS_FILE, Metadata
from ktrdr_trainer.files import write_durably, writing
from ktrdr_trainer.progress import metrics_of
from ktrdr_trainer.stopping import StopRequests

RESULT_COPY: Final = "result.json"
"""Beside the model."""
REQUEST_COPY: Final = "request.json"
"""Beside the model: which symbols, timeframes and dates the job put in place of the strategy's."""
_UNEXPECTED_EXIT_CODE: Final = 1


def failed(request: RunRequest | None, error: BaseException) -> RunResult:
    """The result of a run that ended with an error: our own words, or the class and its text.

    Args:
        request: None if it could not be read.
        error: What ended the run.
    """
    known = isinstance(error, KtrdrError)
    text = str(error) if known else f"{type(error).__name__}: {error}"
    return RunResult(
        job_uid=request.job.uid if request else "",
        attempt=request.attempt if request else 0,
        outcome=Outcome.FAILED,
        exit_code=int(error.exit_code) if isinstance(error, KtrdrError) else _UNEXPECTED_EXIT_CODE,
        reason=error.reason if isinstance(error, KtrdrError) else Reason.TRAINER_FAILED,
        # A file's name need not be text; its bytes are shown, for JSON has no place for them.
        message=text.encode(errors="backslashreplace").decode()[:MESSAGE_MAX_LENGTH],
    )


def succeeded(
    request: RunRequest, artifact: ArtifactRef, *, metrics: Mapping[str, float]
) -> RunResult:
    """The result of a run whose model is stored."""
    return RunResult(
        job_uid=request.job.uid,
        attempt=request.attempt,
        outcome=Outcome.SUCCEEDED,
        exit_code=ExitCode.COMPLETE,
        reason=Reason.COMPLETED,
        message=f"Model stored in {artifact.path}",
        metrics=metrics_of(metrics),
        artifact=artifact,
    )


def of_stored_model(request: RunRequest, artifact: ArtifactRef) -> RunResult:
    """The result of a job whose model an earlier attempt stored before it was killed."""
    folder = Path(request.output_folder) / artifact.path
    metadata = Metadata.model_validate_json((folder / METADATA_FILE).read_bytes())
    recorded = json.loads((folder / METRICS_FILE).read_bytes())
    metrics = {
        name: value
        for group in ("test_metrics", "validation_metrics", "training_metrics")
        for name, value in recorded[group].items()
    }
    return succeeded(request, artifact, metrics=metrics).model_copy(
        update={
            "epochs_completed": metadata.epochs_completed,
            "best_epoch": metadata.best_epoch,
        }
    )


def stopped(
    request: RunRequest,
    stops: StopRequests,
    *,
    epoch: int = 0,
    batch: int = 0,
    checkpoint: CheckpointRef | None = None,
) -> RunResult:
    """The result of a run that was asked to stop; `settled` says by whom."""
    unsettled = RunResult(
        job_uid=request.job.uid,
        attempt=request.attempt,
        outcome=Outcome.TERMINATED,
        exit_code=ExitCode.TERMINATED,
        reason=Reason.DISRUPTED,
        epoch=epoch,
        batch=batch,
        step=checkpoint.step if checkpoint else 0,
        checkpoint=checkpoint,
    )
    return settled(unsettled, stops)


def settled(result: RunResult, stops: StopRequests) -> RunResult:
    """The result in the light of all that is known of who asked to stop.

    The last report may bring the news that a SIGTERM belonged to a cancel. Repeatable.
    """
    if result.outcome not in (Outcome.TERMINATED, Outcome.CANCELLED):
        return result
    if not stops.by_a_person:
        word = "Superseded by a later attempt" if stops.superseded else "Stopped by SIGTERM"
        return result.model_copy(update={"message": f"{word} {_where(result)}"})
    return result.model_copy(
        update={
            "outcome": Outcome.CANCELLED,
            "exit_code": int(ExitCode.STOPPED),
            "reason": Reason.CANCELLED,
            "message": f"Cancelled {_where(result)}",
        }
    )


def _where(result: RunResult) -> str:
    began = result.epoch > 0
    place = f"in epoch {result.epoch}, batch {result.batch}" if began else "before training began"
    kept = f"checkpoint at step {result.checkpoint.step}" if result.checkpoint else "no checkpoint"
    return f"{place}; {kept}"


def result_file(output: Path, job_uid: str) -> Path:
    """Where the last attempt of a job leaves its result."""
    return output / "results" / f"{job_uid}.json"


def store(
    result: RunResult, *, request: RunRequest, termination_log: Path, warn: Callable[[str], None]
) -> None:
    """Write the result into the output folder and, if there is a model, beside it.

    What cannot be written is a warning: the run's outcome does not change by that.
    """
    output = Path(request.output_folder)
    texts = {result_file(output, result.job_uid): _full_text(result)}
    if result.artifact is not None:
        folder = output / result.artifact.path
        texts[folder / RESULT_COPY] = _full_text(result)
        texts[folder / REQUEST_COPY] = request.model_dump_json(by_alias=True, indent=2)
    tell_kubelet(result, termination_log, warn=warn)
    for path, text in texts.items():
        try:
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_durably(path, text.encode())
        except KtrdrError as error:
            warn(f"The run result was not stored: {error}")


def tell_kubelet(result: RunResult, termination_log: Path, *, warn: Callable[[str], None]) -> None:
    """Leave the result in the kubelet's file, if there is one: it ends up in the pod's status."""
    try:
        if termination_log.exists():
            termination_log.write_text(result.termination_message())
    except OSError as error:
        warn(f"The termination message was not written: {error}")


def _full_text(result: RunResult) -> str:
    return result.model_dump_json(by_alias=True, exclude_none=True, indent=2)
