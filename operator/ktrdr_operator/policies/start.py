"""No trainer runs: start the first, the next or an interrupted attempt, or report what is missing.

No attempt is created while a pod of a previous attempt may still run, so that two trainers never
write to the same output folder. Attempts after the first are recorded before their pods are
created. The first is not, which saves one status write per job: its pod has a fixed name, so a
second create fails with AlreadyExists.
"""

from datetime import timedelta
from typing import Final

from ktrdr_api.conditions import Phase, Reason
from ktrdr_api.training_job import Failure, Waiting
from ktrdr_operator.policies import interface
from ktrdr_operator.policies.create_failed import retry_seconds
from ktrdr_operator.policies.interface import (
    PolicyInput,
    PolicyResult,
    format_timestamp,
    parse_timestamp,
    seconds_until_overdue,
    terminating_message,
)
from ktrdr_operator.snapshot import AttemptStart, PodView, StrategyText

KNOWN_AFTER_SECONDS: Final = 3.0
"""Seconds after which the pod is reconciled even without an event: no scheduler may be running."""


def evaluate(policy_input: PolicyInput) -> PolicyResult:
    """Decide always; this is the last policy."""
    waiting = _wait_for_time(policy_input) or _wait_for_pods(policy_input)
    if waiting is not None:
        return waiting
    if policy_input.job.unreadable:
        return _unreadable(policy_input)
    strategy = policy_input.snapshot.strategy
    if strategy is None or strategy.problem:
        return _strategy_missing(policy_input, strategy or StrategyText(problem="not read"))
    return _start(policy_input, strategy, policy_input.create_failure)


def _wait_for_time(policy_input: PolicyInput) -> PolicyResult | None:
    """Between two attempts, and between two tries to create one."""
    failed, phase, due = policy_input.create_failure, Phase.PENDING, None
    if failed is not None:
        due = failed.retry_time
    elif policy_input.is_waiting_for_retry:
        phase, due = Phase.RETRYING, policy_input.status.retry_time
    seconds = policy_input.seconds_until(parse_timestamp(due)) if due else 0.0
    return _as_before(policy_input, phase, seconds) if seconds > 0 else None


def _wait_for_pods(policy_input: PolicyInput) -> PolicyResult | None:
    if unfinished := policy_input.unfinished_pods():
        return _previous_pod(policy_input, unfinished[0])
    if leftover := policy_input.pods_of_deleted_job():
        return _pod_of_deleted_job(policy_input, leftover[0])
    return None


def _start(
    policy_input: PolicyInput, strategy: StrategyText, failed: Waiting | None
) -> PolicyResult:
    status = policy_input.status
    attempt = max(status.attempt + int(policy_input.is_waiting_for_retry), 1)
    start = AttemptStart(attempt=attempt, strategy=strategy)
    if failed is not None:
        return _start_again(policy_input, start, failed)
    if attempt == 1:
        return PolicyResult(
            Phase.STARTING,
            Reason.STARTING,
            "",
            start=start,
            requeue_seconds=KNOWN_AFTER_SECONDS,
            is_silent=True,
        )
    return PolicyResult(
        phase=Phase.STARTING,
        reason=Reason.STARTING,
        message=interface.starting_message(policy_input, attempt),
        changes={**interface.pending(policy_input, attempt), "waiting": None},
        start=start,
        requeue_seconds=KNOWN_AFTER_SECONDS,
    )


def _start_again(policy_input: PolicyInput, start: AttemptStart, failed: Waiting) -> PolicyResult:
    """Keep the message until the pod is known; record the time of the next try before this one.

    So a try costs one write and one create, and an operator with an outdated store makes no try.
    """
    seconds = retry_seconds(policy_input, failed.reason)
    due = format_timestamp(policy_input.now + timedelta(seconds=seconds))
    return PolicyResult(
        phase=Phase.PENDING,
        reason=Reason(failed.reason),
        message=failed.message,
        changes={
            **interface.pending(policy_input, start.attempt),
            "waiting": failed.model_copy(update={"retry_time": due}),
        },
        start=start,
        requeue_seconds=seconds,
    )


def _as_before(policy_input: PolicyInput, phase: Phase, seconds: float) -> PolicyResult:
    status = policy_input.status
    default = Reason.RETRYING if phase is Phase.RETRYING else Reason.PENDING
    return PolicyResult(
        phase=phase,
        reason=Reason(status.reason) if status.reason in frozenset(Reason) else default,
        message=status.message,
        requeue_seconds=seconds,
    )


def _previous_pod(policy_input: PolicyInput, pod: PodView) -> PolicyResult:
    message = f'Waiting for pod "{pod.name}" of attempt {pod.attempt} to end'
    if pod.deletion_time is not None and policy_input.now > pod.deletion_time:
        message = terminating_message(policy_input, pod)
    return PolicyResult(
        phase=Phase.RETRYING,
        reason=Reason.TERMINATING if pod.deleting else Reason.RETRYING,
        message=message,
        changes={"waiting": policy_input.waiting(Reason.TERMINATING, message)},
        requeue_seconds=seconds_until_overdue(policy_input, pod),
    )


def _pod_of_deleted_job(policy_input: PolicyInput, pod: PodView) -> PolicyResult:
    """The pod is being deleted; the event of its end triggers the next reconcile."""
    message = (
        f'Waiting for pod "{pod.name}" to terminate; it belongs to a deleted TrainingJob with the '
        "same name"
    )
    if pod.deletion_time is not None and policy_input.now > pod.deletion_time and not pod.ended:
        message = terminating_message(policy_input, pod)
    return PolicyResult(
        phase=Phase.PENDING,
        reason=Reason.PENDING,
        message=message,
        changes={"waiting": policy_input.waiting(Reason.PENDING, message)},
        requeue_seconds=seconds_until_overdue(policy_input, pod),
    )


def _strategy_missing(policy_input: PolicyInput, strategy: StrategyText) -> PolicyResult:
    waiting = policy_input.waiting(Reason.STRATEGY_NOT_FOUND, strategy.problem)
    return PolicyResult(
        phase=Phase.PENDING,
        reason=Reason.STRATEGY_NOT_FOUND,
        message=waiting.message,
        changes={"waiting": waiting},
        requeue_seconds=strategy.retry_seconds,
    )


def _unreadable(policy_input: PolicyInput) -> PolicyResult:
    message = f"{policy_input.job.unreadable}; correct it in a new TrainingJob"
    return PolicyResult(
        phase=Phase.FAILED,
        reason=Reason.INVALID_REQUEST,
        message=message,
        changes={
            **interface.finished(policy_input),
            "completion_time": format_timestamp(policy_input.now),
            "failure": Failure(
                attempt=policy_input.attempt, reason=Reason.INVALID_REQUEST, message=message
            ),
        },
    )
