"""The current attempt has ended: completed, failed for good, or to be tried again.

Disruptions (eviction, drain, a pod deleted by hand, SIGTERM) are tried again and never counted.
Failures are counted against `backoffLimit`. A bad request, bad data and OOM are not tried again:
the next attempt would end the same way.
"""

import signal
from datetime import timedelta
from typing import Any, Final

from ktrdr_api.conditions import Phase, Reason
from ktrdr_api.run_contract import ExitCode, Outcome, RunResult
from ktrdr_api.training_job import Artifact, Failure, MetricValue, Result
from ktrdr_operator.policies.interface import PolicyInput, PolicyResult, format_timestamp
from ktrdr_operator.snapshot import PodView, Termination

_SIGNAL_BASE: Final = 128
"""A process ended by signal N exits, to the kubelet, with 128 + N."""
_LOST_BY_KUBELET: Final = "ContainerStatusUnknown"
"""The kubelet's reason, with exit code 137, for a container that its node no longer knows.
Source: kubernetes/pkg/kubelet/container/runtime.go, ContainerReasonStatusUnknown."""
_FINAL_EXIT_CODES: Final = frozenset({ExitCode.BAD_REQUEST, ExitCode.BAD_DATA})
_SIGNALS: Final = range(1, signal.NSIG)
_KNOWN_REASONS: Final = frozenset(Reason)


def evaluate(case: PolicyInput) -> PolicyResult | None:
    """Speaks when the pod has ended and its end has not been judged yet."""
    pod = case.pod
    if pod is None or not pod.ended or case.is_waiting_for_retry:
        return None
    result = case.result
    if result is not None and result.outcome is Outcome.SUCCEEDED:
        return _completed(case, pod, result)
    if _is_disruption(pod):
        return disrupted(case, f'Pod "{pod.name}" was stopped from outside')
    failure = _failure(case, pod, result)
    if failure.reason == Reason.OOM_KILLED or failure.exit_code in _FINAL_EXIT_CODES:
        return _failed(case, pod, Reason(failure.reason), failure)
    if case.status.retries >= case.job.spec.backoff_limit:
        return _failed(case, pod, Reason.BACKOFF_LIMIT_EXCEEDED, failure)
    return _retry(case, failure)


def disrupted(case: PolicyInput, what: str) -> PolicyResult:
    """The next attempt follows at once and goes on from the newest checkpoint.

    Not at once when the trainer had not got as far as reporting: a node that stops every pod, or an
    image that ends like one that was stopped, would get a pod a second.
    """
    delay = 0.0 if case.has_reported else case.limits.retry_base_seconds
    return PolicyResult(
        phase=Phase.RETRYING,
        reason=Reason.DISRUPTED,
        message=f"{what}; the next attempt goes on from the newest checkpoint",
        changes={
            "retry_time": format_timestamp(case.now + timedelta(seconds=delay)),
            "waiting": None,
            "checkpoint": case.checkpoint,
        },
        requeue_seconds=delay,
    )


def _is_disruption(pod: PodView) -> bool:
    if pod.disrupted:
        return True
    end = pod.termination
    if end is None:
        return pod.gone
    stopped = end.exit_code in {ExitCode.STOPPED, ExitCode.TERMINATED}
    killed_on_deletion = end.exit_code == _SIGNAL_BASE + signal.SIGKILL and pod.deleting
    return stopped or killed_on_deletion or end.reason == _LOST_BY_KUBELET


def _completed(case: PolicyInput, pod: PodView, result: RunResult) -> PolicyResult:
    artifact = result.artifact
    path = f" at {artifact.path}" if artifact else ""
    return PolicyResult(
        phase=Phase.SUCCEEDED,
        reason=Reason.COMPLETED,
        message=f"Trained {result.epochs_completed} epochs; the model is stored{path}",
        changes={
            **_ended_changes(case, pod),
            "result": Result(
                outcome=result.outcome,
                duration_seconds=result.duration_seconds,
                metrics=tuple(MetricValue(**metric.model_dump()) for metric in result.metrics),
                artifact=Artifact(**artifact.model_dump()) if artifact else None,
                epochs_completed=result.epochs_completed,
                best_epoch=result.best_epoch,
            ),
            "checkpoint": case.checkpoint,
        },
    )


def _failed(case: PolicyInput, pod: PodView, reason: Reason, failure: Failure) -> PolicyResult:
    prefix = ""
    if reason is Reason.BACKOFF_LIMIT_EXCEEDED:
        prefix = f"Failed {case.status.retries + 1} times (backoffLimit reached). Last: "
    return PolicyResult(
        phase=Phase.FAILED,
        reason=reason,
        message=(prefix + failure.message)[:1024],
        changes={**_ended_changes(case, pod), "failure": failure, "checkpoint": case.checkpoint},
    )


def _retry(case: PolicyInput, failure: Failure) -> PolicyResult:
    limits = case.limits
    delay = min(limits.retry_cap_seconds, limits.retry_base_seconds * 2**case.status.retries)
    due = case.now + timedelta(seconds=delay)
    number = case.status.retries + 1
    return PolicyResult(
        phase=Phase.RETRYING,
        reason=Reason.RETRYING,
        message=f"Retry {number} of {case.job.spec.backoff_limit} at {format_timestamp(due)}: "
        f"{failure.message}"[:1024],
        changes={
            "retries": number,
            "retry_time": format_timestamp(due),
            "failure": failure,
            "waiting": None,
            "checkpoint": case.checkpoint,
        },
        requeue_seconds=case.seconds_until(due),
    )


def _ended_changes(case: PolicyInput, pod: PodView) -> dict[str, Any]:
    end = pod.termination
    started = end.started if end else None
    finished = end.finished if end and end.finished else case.now
    start = case.status.start_time or (format_timestamp(started) if started else None)
    return {
        "retry_time": None,
        "start_time": start,
        "host": pod.node or case.status.host,
        "completion_time": format_timestamp(finished),
        "waiting": None,
    }


def _failure(case: PolicyInput, pod: PodView, result: RunResult | None) -> Failure:
    end = pod.termination
    if end is None:
        return Failure(
            attempt=pod.attempt,
            reason=Reason.TRAINER_FAILED,
            message=pod.pod_message or f'Pod "{pod.name}" failed before its trainer started',
        )
    number = end.exit_code - _SIGNAL_BASE
    killed = number if number in _SIGNALS else None
    reason, message = _cause(case, end, result, killed)
    return Failure(
        attempt=pod.attempt,
        rank=pod.rank,
        exit_code=end.exit_code,
        signal=killed,
        reason=reason,
        message=message[:1024],
    )


def _cause(
    case: PolicyInput, end: Termination, result: RunResult | None, killed: int | None
) -> tuple[Reason, str]:
    if end.reason == Reason.OOM_KILLED:
        limit = case.job.spec.trainer.resources.limits.get("memory", "none; the node ran out")
        return Reason.OOM_KILLED, (
            f"The trainer needed more memory than its limit ({limit}); raise "
            "spec.trainer.resources.limits.memory or use fewer symbols"
        )
    if result is not None:
        known = Reason(result.reason) if result.reason in _KNOWN_REASONS else Reason.TRAINER_FAILED
        return known, result.message or f"The trainer ended with exit code {end.exit_code}"
    if killed is not None:
        return Reason.TRAINER_FAILED, f"The trainer was killed by {_signal_name(killed)}"
    tail = f"; its log ends: {end.message}" if end.message else ""
    return Reason.TRAINER_FAILED, (
        f"The trainer ended with exit code {end.exit_code} and left no result{tail}"
    )


def _signal_name(number: int) -> str:
    names = {s.value: s.name for s in signal.Signals}
    return f"signal {number} ({names.get(number, 'unknown')})"
