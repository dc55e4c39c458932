"""The trainer runs: record its start and node; report if it is silent or its pod being deleted."""

from typing import Any

from ktrdr_api import names
from ktrdr_api.conditions import Phase, Reason
from ktrdr_operator.policies import interface
from ktrdr_operator.policies.interface import (
    PolicyInput,
    PolicyResult,
    seconds_until_overdue,
    terminating_message,
)
from ktrdr_operator.snapshot import PodView


def evaluate(policy_input: PolicyInput) -> PolicyResult | None:
    """Decide when the trainer container of the current attempt has started and not ended."""
    pod = policy_input.pod
    if pod is None or pod.ended or pod.started is None:
        return None
    changes = {
        **interface.running(policy_input, pod),
        "waiting": None,
        "report_period_seconds": policy_input.snapshot.report_interval_seconds,
    }
    if pod.deleting:
        return _terminating(policy_input, pod, changes)
    reason, message = Reason.RUNNING, f'Trainer is running in pod "{pod.name}"'
    limit = _no_report_seconds(policy_input)
    left: float | None = limit - _seconds_since_report(policy_input, pod)
    if left is not None and left <= 0:
        reason, message, left = Reason.NOT_REPORTING, _silent_message(pod, limit), None
    if pod.unlabelled:
        label = f"{names.LABEL_JOB}={policy_input.job.name}"
        message += (
            f"; the pod has lost its label {names.LABEL_JOB}, so its end is noticed late: kubectl "
            f"label pod {pod.name} -n {policy_input.job.namespace} {label}"
        )
    return PolicyResult(
        phase=Phase.RUNNING,
        reason=reason,
        message=message,
        changes=changes,
        requeue_seconds=left,
    )


def _terminating(policy_input: PolicyInput, pod: PodView, changes: dict[str, Any]) -> PolicyResult:
    """The phase stays Running, because the process may still write to the output volume."""
    message = terminating_message(policy_input, pod)
    return PolicyResult(
        phase=Phase.RUNNING,
        reason=Reason.TERMINATING,
        message=message,
        changes={**changes, "waiting": policy_input.waiting(Reason.TERMINATING, message)},
        requeue_seconds=seconds_until_overdue(policy_input, pod),
    )


def _no_report_seconds(policy_input: PolicyInput) -> float:
    """Seconds without a report until NotReporting; at least three report intervals."""
    told = policy_input.snapshot.report_interval_seconds or 0
    period = max(told, policy_input.job.spec.progress.period_seconds)
    return max(policy_input.limits.no_report_seconds, 3.0 * period)


def _seconds_since_report(policy_input: PolicyInput, pod: PodView) -> float:
    since_start = (policy_input.now - pod.started).total_seconds() if pod.started else 0.0
    reported = policy_input.snapshot.seconds_since_report
    if not policy_input.has_reported or reported is None:
        return since_start
    return min(since_start, reported)


def _silent_message(pod: PodView, limit: float) -> str:
    return (
        f'No progress report from pod "{pod.name}" for more than {limit:.0f} s; its trainer is in '
        f"a long step, hangs, or cannot reach the API server: see kubectl logs {pod.name}; to stop "
        "it set spec.cancel, to restart it delete the pod"
    )
