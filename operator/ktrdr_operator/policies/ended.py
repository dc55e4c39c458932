"""The current attempt has ended: it completed, failed without a retry, or is retried.

A disruption is an end that the trainer did not cause: eviction, preemption, drain, a deleted pod, a
lost node, SIGTERM, a pod that failed before its container started. Disruptions are not counted
against `backoffLimit`; while no new checkpoint comes they back off and are bounded by
`disruptionLimit`. A bad request, bad data and OOM are not retried: the next attempt would end the
same way.
"""

import signal
from datetime import timedelta
from typing import Final

from ktrdr_api.conditions import Phase, Reason
from ktrdr_api.run_contract import ExitCode, Outcome, RunResult
from ktrdr_api.training_job import Artifact, Failure, MetricValue, Result
from ktrdr_operator.policies import interface
from ktrdr_operator.policies.interface import (
    MESSAGE_MAX_LENGTH,
    PolicyInput,
    PolicyResult,
    format_timestamp,
)
from ktrdr_operator.snapshot import PodView, Termination

_SIGNAL_BASE: Final = 128
"""The kubelet reports exit code 128 + N for a process that was ended by signal N."""
_LOST_BY_KUBELET: Final = "ContainerStatusUnknown"
"""The kubelet's reason, with exit code 137, for a container that its node no longer knows.
Source: kubernetes/pkg/kubelet/container/runtime.go, ContainerReasonStatusUnknown."""
_FINAL_EXIT_CODES: Final = frozenset({ExitCode.BAD_REQUEST, ExitCode.BAD_DATA})
_SIGNALS: Final = range(1, signal.NSIG)
_KNOWN_REASONS: Final = frozenset(Reason)
_MAX_DOUBLINGS: Final = 30
"""Beyond any cap on the delay; keeps the power small."""
_CAUSE_MAX_LENGTH: Final = 700
"""Leaves room for what to do about it."""
_SHOWN_METRICS: Final = ("test_accuracy", "test_loss")


def evaluate(policy_input: PolicyInput) -> PolicyResult | None:
    """Decide when the pod has ended and no decision about its end has been recorded."""
    pod = policy_input.pod
    if pod is None or not pod.ended or policy_input.is_waiting_for_retry:
        return None
    result = policy_input.result
    if result is not None and result.outcome is Outcome.SUCCEEDED:
        return _completed(policy_input, result)
    if (cause := _disruption(pod)) is not None:
        return disrupted(policy_input, cause)
    return _judge(policy_input, _failure(policy_input, pod))


def _judge(policy_input: PolicyInput, failure: Failure) -> PolicyResult:
    """Fail the job, or retry."""
    if failure.reason == Reason.OOM_KILLED or failure.exit_code in _FINAL_EXIT_CODES:
        return _failed(policy_input, Reason(failure.reason), failure)
    if policy_input.job.unreadable:
        return _failed(policy_input, Reason.INVALID_REQUEST, failure)
    if policy_input.status.retries >= policy_input.job.spec.backoff_limit:
        return _failed(policy_input, Reason.BACKOFF_LIMIT_EXCEEDED, failure)
    return _retry(policy_input, failure)


def disrupted(policy_input: PolicyInput, cause: str) -> PolicyResult:
    """Retry after a disruption.

    Immediately if the attempt has saved a new checkpoint, because it made progress. Otherwise with
    a delay that doubles with each disruption in a row, at most `disruptionLimit` times.
    """
    status = policy_input.status
    in_a_row = 0 if _has_new_checkpoint(policy_input) else status.disruptions_since_checkpoint + 1
    if in_a_row > policy_input.job.spec.disruption_limit:
        return _disrupted_too_often(policy_input, cause, in_a_row)
    delay = _backoff_seconds(policy_input, in_a_row - 1) if in_a_row else 0.0
    due = policy_input.now + timedelta(seconds=delay)
    when = f"at {format_timestamp(due)} " if delay else ""
    words = (
        f"{cause}; the next attempt {when}resumes from the latest checkpoint, if any, and does not "
        "count as a retry"
    )
    return PolicyResult(
        phase=Phase.RETRYING,
        reason=Reason.DISRUPTED,
        message=words[:MESSAGE_MAX_LENGTH],
        changes={
            **interface.ended(policy_input, due),
            "disruptions": status.disruptions + 1,
            "disruptions_since_checkpoint": in_a_row,
        },
        requeue_seconds=delay,
    )


def _has_new_checkpoint(policy_input: PolicyInput) -> bool:
    """Whether this attempt has a later checkpoint than the previous one, which is in status."""
    latest, before = policy_input.checkpoint, policy_input.status.checkpoint
    return latest is not None and (before is None or latest.step > before.step)


def _backoff_seconds(policy_input: PolicyInput, doublings: int) -> float:
    limits = policy_input.limits
    delay = limits.retry_base_seconds * float(2 ** min(doublings, _MAX_DOUBLINGS))
    return min(limits.retry_cap_seconds, delay)


def _disrupted_too_often(policy_input: PolicyInput, cause: str, in_a_row: int) -> PolicyResult:
    often = f"{in_a_row} times in a row" if in_a_row > 1 else "once"
    message = (
        f"Disrupted {often} without a new checkpoint, spec.disruptionLimit is "
        f"{policy_input.job.spec.disruption_limit}; last: {cause[:_CAUSE_MAX_LENGTH]}. Find out "
        "what stops the pods (kubectl get events), or create a new TrainingJob with a lower "
        "checkpoint.periodSeconds or a higher disruptionLimit"
    )
    reason = Reason.DISRUPTION_LIMIT_EXCEEDED
    return PolicyResult(
        phase=Phase.FAILED,
        reason=reason,
        message=message,
        changes={
            **interface.finished(policy_input),
            "disruptions": policy_input.status.disruptions + 1,
            "disruptions_since_checkpoint": in_a_row,
            "failure": Failure(attempt=policy_input.attempt, reason=reason, message=message),
        },
    )


def _disruption(pod: PodView) -> str | None:
    """Cause of a disruption; None if the trainer itself ended."""
    end, name = pod.termination, f'Pod "{pod.name}"'
    if pod.never_started:
        words = pod.message or (end.message or end.reason if end else "")
        return f"{name} failed before its trainer started" + (f": {words}" if words else "")
    if pod.disrupted:
        words = f" ({pod.message})" if pod.message else ""
        return f"{name} was disrupted (evicted, preempted, deleted or terminated){words}"
    if end is None:
        return f"{name} no longer exists (deleted, or its node was lost)" if pod.gone else None
    stopped = end.exit_code in {ExitCode.STOPPED, ExitCode.TERMINATED}
    killed_on_deletion = end.exit_code == _SIGNAL_BASE + signal.SIGKILL and pod.deleting
    if stopped or killed_on_deletion:
        return f"{name} was disrupted (evicted, preempted, deleted or terminated)"
    if end.reason == _LOST_BY_KUBELET:
        return f'{name} was lost: node "{pod.node}" no longer knows its container'
    return None


def _completed(policy_input: PolicyInput, result: RunResult) -> PolicyResult:
    artifact = result.artifact
    return PolicyResult(
        phase=Phase.SUCCEEDED,
        reason=Reason.COMPLETED,
        message=_completed_message(result),
        changes={
            **interface.finished(policy_input),
            "result": Result(
                outcome=result.outcome,
                duration_seconds=result.duration_seconds,
                metrics=tuple(MetricValue(**metric.model_dump()) for metric in result.metrics),
                artifact=Artifact(**artifact.model_dump()) if artifact else None,
                epochs_completed=result.epochs_completed,
                best_epoch=result.best_epoch,
            ),
        },
    )


def _completed_message(result: RunResult) -> str:
    path = f" at {result.artifact.path}" if result.artifact else ""
    shown = [f"{m.name} {m.value}" for m in result.metrics if m.name in _SHOWN_METRICS]
    metrics = f"; {', '.join(shown)}" if shown else ""
    return f"Trained {result.epochs_completed} epochs; the model is stored{path}{metrics}"


def _failed(policy_input: PolicyInput, reason: Reason, failure: Failure) -> PolicyResult:
    prefix = ""
    if reason is Reason.BACKOFF_LIMIT_EXCEEDED:
        limit, times = policy_input.job.spec.backoff_limit, policy_input.status.retries + 1
        often = f"{times} times" if times > 1 else "once"
        prefix = f"Failed {often}, spec.backoffLimit is {limit}; last failure: "
    if policy_input.job.unreadable:
        prefix = f"{policy_input.job.unreadable}; the failed attempt is not retried: "
    return PolicyResult(
        phase=Phase.FAILED,
        reason=reason,
        message=(prefix + failure.message)[:MESSAGE_MAX_LENGTH],
        changes={**interface.finished(policy_input), "failure": failure},
    )


def _retry(policy_input: PolicyInput, failure: Failure) -> PolicyResult:
    delay = _backoff_seconds(policy_input, policy_input.status.retries)
    due = policy_input.now + timedelta(seconds=delay)
    number, limit = policy_input.status.retries + 1, policy_input.job.spec.backoff_limit
    words = f"Retry {number} of {limit} at {format_timestamp(due)}: {failure.message}"
    return PolicyResult(
        phase=Phase.RETRYING,
        reason=Reason.RETRYING,
        message=words[:MESSAGE_MAX_LENGTH],
        changes={**interface.ended(policy_input, due), "retries": number, "failure": failure},
        requeue_seconds=delay,
    )


def _failure(policy_input: PolicyInput, pod: PodView) -> Failure:
    end = pod.termination
    if end is None:
        words = pod.message or "no container has reported a reason"
        message = f'Pod "{pod.name}" failed: {words}; see kubectl describe pod {pod.name}'
        return Failure(attempt=pod.attempt, reason=Reason.TRAINER_FAILED, message=message)
    number = end.exit_code - _SIGNAL_BASE
    killed = number if number in _SIGNALS else None
    reason, message = _cause(policy_input, pod, end, killed)
    return Failure(
        attempt=pod.attempt,
        rank=pod.rank,
        exit_code=end.exit_code,
        signal=killed,
        reason=reason,
        message=message[:MESSAGE_MAX_LENGTH],
    )


def _cause(
    policy_input: PolicyInput,
    pod: PodView,
    end: Termination,
    killed: int | None,
) -> tuple[Reason, str]:
    result = policy_input.result
    see = f"; see kubectl logs {pod.name}"
    if end.reason == Reason.OOM_KILLED:
        return Reason.OOM_KILLED, _oom_message(policy_input)
    if result is not None:
        known = Reason(result.reason) if result.reason in _KNOWN_REASONS else Reason.TRAINER_FAILED
        return known, result.message or f"Trainer exited with code {end.exit_code}{see}"
    if killed is not None:
        return Reason.TRAINER_FAILED, f"Trainer was killed by {_signal_name(killed)}{see}"
    tail = f"; last log output: {end.message}" if end.message else see
    return Reason.TRAINER_FAILED, (
        f"Trainer exited with code {end.exit_code} without writing a result{tail}"
    )


def _oom_message(policy_input: PolicyInput) -> str:
    limit = policy_input.job.spec.trainer.resources.limits.get("memory")
    if limit is None:
        return (
            "Trainer was OOM-killed because its node ran out of memory; set "
            "spec.trainer.resources.requests.memory in a new TrainingJob so that the scheduler "
            "reserves it, or use fewer symbols"
        )
    return (
        f"Trainer was OOM-killed at its memory limit ({limit}); create a new TrainingJob with a "
        "higher spec.trainer.resources.limits.memory or fewer symbols"
    )


def _signal_name(number: int) -> str:
    known = {s.value: s.name for s in signal.Signals}
    return f"signal {number} ({known.get(number, 'unknown')})"
