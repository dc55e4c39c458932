"""Nothing runs: start the first, the next or an interrupted attempt, or say what is missing.

An attempt is recorded in status before its pod is created, and none is created while a pod of an
earlier attempt may still run: two trainers never write to one output folder.
"""

from typing import Final

from ktrdr_api import names
from ktrdr_api.conditions import Phase, Reason
from ktrdr_api.training_job import Waiting
from ktrdr_operator.policies.create_failed import still_failing
from ktrdr_operator.policies.interface import (
    PolicyInput,
    PolicyResult,
    format_timestamp,
    parse_timestamp,
    starting_message,
)
from ktrdr_operator.snapshot import AttemptStart, PodView

RECHECK_SECONDS: Final = 5.0
"""How often a missing strategy is looked for: ConfigMaps are not watched (there are too many)."""


def evaluate(case: PolicyInput) -> PolicyResult:
    """Always speaks: the last rule."""
    status = case.status
    create_failure = case.create_failure
    if status.retry_time is not None and case.now < parse_timestamp(status.retry_time):
        seconds = case.seconds_until(parse_timestamp(status.retry_time))
        if create_failure is not None:
            return still_failing(create_failure, seconds)
        return _retrying(case, status.message, seconds)
    if alive := case.unfinished_pods():
        return _retrying(case, f'Waiting for pod "{alive[0].name}" to end', None)
    if leftover := case.pods_of_deleted_job():
        return _leftover(leftover[0])
    strategy = case.snapshot.strategy
    if strategy is None or strategy.problem:
        return _missing(case, strategy.problem if strategy else "The strategy was not read")
    attempt = status.attempt + 1 if case.is_waiting_for_retry else max(status.attempt, 1)
    return _start(case, attempt, strategy.text, create_failure)


def _start(
    case: PolicyInput, attempt: int, strategy: str, create_failure: Waiting | None
) -> PolicyResult:
    """A refusal stays on show until the pod is there: a try is no news."""
    pod = names.pod_name(case.job.name, attempt)
    return PolicyResult(
        phase=Phase.PENDING if create_failure else Phase.STARTING,
        reason=Reason(create_failure.reason) if create_failure else Reason.STARTING,
        message=create_failure.message if create_failure else starting_message(pod),
        changes={
            "attempt": attempt,
            "pod_name": pod,
            "host": None,
            "waiting": create_failure,
            "retry_time": case.status.retry_time if create_failure else None,
        },
        start=AttemptStart(attempt=attempt, strategy=strategy),
    )


def _leftover(pod: PodView) -> PolicyResult:
    """Its deletion is under way; the event of its end brings us back."""
    return PolicyResult(
        phase=Phase.PENDING,
        reason=Reason.PENDING,
        message=f'Waiting for pod "{pod.name}" of an earlier TrainingJob of this name to be gone',
    )


def _retrying(case: PolicyInput, message: str, seconds: float | None) -> PolicyResult:
    reason = case.status.reason
    return PolicyResult(
        phase=Phase.RETRYING,
        reason=Reason(reason) if reason in frozenset(Reason) else Reason.RETRYING,
        message=message,
        requeue_seconds=seconds,
    )


def _missing(case: PolicyInput, problem: str) -> PolicyResult:
    before = case.status.waiting
    same = before is not None and before.reason == Reason.STRATEGY_NOT_FOUND
    since = before.since if before is not None and same else format_timestamp(case.now)
    waiting = Waiting(reason=Reason.STRATEGY_NOT_FOUND, message=problem, since=since)
    return PolicyResult(
        phase=Phase.PENDING,
        reason=Reason.STRATEGY_NOT_FOUND,
        message=problem,
        changes={
            "waiting": waiting,
            # A refused attempt has not been judged, and this wait hides the refusal.
            "retry_time": case.status.retry_time if case.is_waiting_for_retry else None,
        },
        requeue_seconds=RECHECK_SECONDS,
    )
