"""Cancel in three stages: the token, then SIGTERM by deleting the pod, then the kubelet's SIGKILL.

`Cancelled` is said only when no process is left. A run that completed before the wish reached it
has completed: its model is not thrown away.
"""

from datetime import timedelta
from typing import Any

from ktrdr_api.conditions import Phase, Reason
from ktrdr_api.run_contract import Outcome, Stage
from ktrdr_api.training_job import CancellationReceipt
from ktrdr_operator.policies.interface import (
    PolicyInput,
    PolicyResult,
    deletion_of,
    format_timestamp,
    parse_timestamp,
)
from ktrdr_operator.snapshot import PodDeletion, PodView


def evaluate(case: PolicyInput) -> PolicyResult | None:
    """Speaks when `spec.cancel` is true and the run has not completed."""
    if not case.job.spec.cancel:
        return None
    receipt = case.status.cancellation or CancellationReceipt(
        requested_time=format_timestamp(case.now)
    )
    alive = case.unfinished_pods()
    if not alive:
        return _stopped(case, receipt)
    return _stopping(case, _acknowledge(case, receipt), alive)


def _acknowledge(case: PolicyInput, receipt: CancellationReceipt) -> CancellationReceipt:
    progress = case.status.progress
    seen = (
        progress is not None
        and progress.attempt == case.status.attempt
        and progress.stage is Stage.CANCELLING
    )
    if not seen or receipt.acknowledged_time is not None:
        return receipt
    return receipt.model_copy(update={"acknowledged_time": format_timestamp(case.now)})


def _stopping(
    case: PolicyInput, receipt: CancellationReceipt, alive: tuple[PodView, ...]
) -> PolicyResult:
    grace = timedelta(seconds=case.job.spec.cancellation.grace_period_seconds)
    deadline = parse_timestamp(receipt.requested_time) + grace
    listening = any(pod.started is not None for pod in alive)
    wait = case.seconds_until(deadline) if listening else 0.0
    if wait > 0:
        message = f"Waiting for the trainer to stop by itself until {format_timestamp(deadline)}"
        deletions: tuple[PodDeletion, ...] = ()
    else:
        message = "Waiting for the pod to end"
        deletions = tuple(d for pod in alive for d in deletion_of(pod))
    return PolicyResult(
        phase=Phase.CANCELLING,
        reason=Reason.CANCELLING,
        message=message,
        changes={"cancellation": receipt, "waiting": None},
        deletions=deletions,
        requeue_seconds=wait or None,
    )


def _stopped(case: PolicyInput, receipt: CancellationReceipt) -> PolicyResult | None:
    result = case.result
    if result is not None and result.outcome is Outcome.SUCCEEDED:
        return None
    end = case.pod.termination if case.pod is not None else None
    finished = end.finished if end and end.finished else case.now
    # Between two attempts nothing ran: what had ended before the wish stopped with the wish.
    stopped = format_timestamp(max(finished, parse_timestamp(receipt.requested_time)))
    where = _where(case)
    acknowledged = receipt.acknowledged_time
    if acknowledged is None and result is not None and result.outcome is Outcome.CANCELLED:
        acknowledged = stopped  # its last word came before we saw the one before it
    complete = receipt.model_copy(
        update={**where, "stopped_time": stopped, "acknowledged_time": acknowledged}
    )
    return PolicyResult(
        phase=Phase.CANCELLED,
        reason=Reason.CANCELLED,
        message=_words(complete),
        changes={
            "cancellation": complete,
            "checkpoint": case.checkpoint,
            "completion_time": stopped,
            "waiting": None,
            "retry_time": None,
        },
    )


def _where(case: PolicyInput) -> dict[str, Any]:
    """Epoch, batch and checkpoint: from the run's last word, else from its last report."""
    progress, result = case.status.progress, case.result
    where: dict[str, Any] = {"checkpoint": case.checkpoint}
    if result is not None:
        return {**where, "epoch": result.epoch, "batch": result.batch}
    if progress is not None:
        return {**where, "epoch": progress.current_epoch, "batch": progress.current_batch}
    return where


def _words(receipt: CancellationReceipt) -> str:
    if not receipt.epoch:
        return "Cancelled before training began"
    saved = f"checkpoint {receipt.checkpoint.path}" if receipt.checkpoint else "no checkpoint"
    return f"Cancelled in epoch {receipt.epoch} after batch {receipt.batch}; {saved}"
