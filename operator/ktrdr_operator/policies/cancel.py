"""Cancellation in three stages: the stop token, SIGTERM by deleting the pod, SIGKILL.

The phase becomes Cancelled only when no trainer process is left. A run that completed before the
cancel request reached it is completed: its model is kept.
"""

from datetime import timedelta
from typing import Any

from ktrdr_api.conditions import Phase, Reason
from ktrdr_api.run_contract import Outcome, Stage
from ktrdr_api.training_job import CancellationReceipt
from ktrdr_operator.policies import interface
from ktrdr_operator.policies.interface import (
    PolicyInput,
    PolicyResult,
    deletion_of,
    end_of_second,
    finished,
    format_timestamp,
    parse_timestamp,
    seconds_until_overdue,
    terminating_message,
)
from ktrdr_operator.snapshot import PodView


def evaluate(policy_input: PolicyInput) -> PolicyResult | None:
    """Decide when `spec.cancel` is true and the run has not completed."""
    if not policy_input.job.spec.cancel:
        return None
    receipt = policy_input.status.cancellation
    if receipt is None or parse_timestamp(receipt.requested_time) > policy_input.now:
        # Not seen before, or by an operator whose clock was ahead: the trainer gets no more time.
        receipt = CancellationReceipt(requested_time=format_timestamp(policy_input.now))
    if unfinished := policy_input.unfinished_pods():
        return _stopping(policy_input, _acknowledge(policy_input, receipt), unfinished)
    return _stopped(policy_input, receipt)


def _acknowledge(policy_input: PolicyInput, receipt: CancellationReceipt) -> CancellationReceipt:
    progress = policy_input.status.progress
    seen = (
        progress is not None
        and policy_input.has_reported
        and progress.stage is Stage.CANCELLING
        and receipt.acknowledged_time is None
    )
    if not seen:
        return receipt
    return receipt.model_copy(update={"acknowledged_time": format_timestamp(policy_input.now)})


def _stopping(
    policy_input: PolicyInput, receipt: CancellationReceipt, pods: tuple[PodView, ...]
) -> PolicyResult:
    grace = timedelta(seconds=policy_input.job.spec.cancellation.grace_period_seconds)
    deadline = end_of_second(receipt.requested_time) + grace if grace else policy_input.now
    is_listening = any(pod.started is not None and not pod.deleting for pod in pods)
    wait = policy_input.seconds_until(deadline) if is_listening else 0.0
    return PolicyResult(
        phase=Phase.CANCELLING,
        reason=Reason.CANCELLING,
        message=_stopping_message(policy_input, pods, format_timestamp(deadline) if wait else ""),
        changes={**_attempt(policy_input), "cancellation": receipt, "waiting": None},
        deletions=() if wait else tuple(d for pod in pods for d in deletion_of(pod)),
        requeue_seconds=wait or seconds_until_overdue(policy_input, *pods),
    )


def _attempt(policy_input: PolicyInput) -> dict[str, Any]:
    """Record the current attempt: its pod is about to disappear."""
    pod = policy_input.pod
    if pod is None or pod.ended:
        return {}
    if pod.started is not None:
        return interface.running(policy_input, pod)
    return interface.pending(policy_input, pod.attempt)


def _stopping_message(policy_input: PolicyInput, pods: tuple[PodView, ...], deadline: str) -> str:
    if deadline:
        return (
            f"Cancel requested; the trainer has until {deadline} to stop, then its pod is deleted"
        )
    pod = pods[0]
    if pod.deletion_time is not None and policy_input.now > pod.deletion_time:
        return f"Cancel requested; {terminating_message(policy_input, pod)}"
    return f'Cancel requested; pod "{pod.name}" is being deleted, waiting for its process to exit'


def _stopped(policy_input: PolicyInput, receipt: CancellationReceipt) -> PolicyResult | None:
    result = policy_input.result
    if result is not None and result.outcome is Outcome.SUCCEEDED:
        return None
    end = policy_input.pod.termination if policy_input.pod is not None else None
    moment = end.finished if end and end.finished else policy_input.now
    # Between two attempts no trainer runs: stoppedTime is not before requestedTime.
    stopped = format_timestamp(max(moment, parse_timestamp(receipt.requested_time)))
    acknowledged = receipt.acknowledged_time
    if acknowledged is None and result is not None and result.outcome is Outcome.CANCELLED:
        acknowledged = stopped  # the run result arrived before the report that acknowledges
    complete = receipt.model_copy(
        update={
            **_stop_position(policy_input),
            "stopped_time": stopped,
            "acknowledged_time": acknowledged,
        }
    )
    return PolicyResult(
        phase=Phase.CANCELLED,
        reason=Reason.CANCELLED,
        message=_cancelled_message(complete),
        changes={
            **finished(policy_input),
            "cancellation": complete,
            "completion_time": stopped,
        },
    )


def _stop_position(policy_input: PolicyInput) -> dict[str, Any]:
    """Epoch, batch and checkpoint: from the run result, otherwise from the latest report."""
    progress, result = policy_input.status.progress, policy_input.result
    position: dict[str, Any] = {"checkpoint": policy_input.checkpoint}
    if result is not None:
        return {**position, "epoch": result.epoch, "batch": result.batch}
    if progress is not None:
        return {**position, "epoch": progress.current_epoch, "batch": progress.current_batch}
    return position


def _cancelled_message(receipt: CancellationReceipt) -> str:
    if not receipt.epoch:
        return "Cancelled before training began"
    saved = f"checkpoint {receipt.checkpoint.path}" if receipt.checkpoint else "no checkpoint"
    return f"Cancelled in epoch {receipt.epoch} after batch {receipt.batch}; {saved}"
