"""Nothing runs: start the first, the next or an interrupted attempt, or say what is missing.

An attempt is recorded in status before its pod is created, and none is created while a pod of an
earlier attempt may still run: two trainers never write to one output folder.
"""

from typing import Final

from ktrdr_api import names
from ktrdr_api.conditions import Phase, Reason
from ktrdr_api.training_job import Waiting
from ktrdr_operator.policies.draft import Case, Draft, moment_of, starting_message, timestamp
from ktrdr_operator.policies.refused import still_refused
from ktrdr_operator.snapshot import AttemptStart, PodView

RECHECK_SECONDS: Final = 5.0
"""How often a missing strategy is looked for: ConfigMaps are not watched (there are too many)."""


def speak(case: Case) -> Draft:
    """Always speaks: the last rule."""
    status = case.status
    refusal = case.refusal
    if status.retry_time is not None and case.now < moment_of(status.retry_time):
        seconds = case.seconds_until(moment_of(status.retry_time))
        if refusal is not None:
            return still_refused(refusal, seconds)
        return _retrying(case, status.message, seconds)
    if alive := case.own_pods_alive():
        return _retrying(case, f'Waiting for pod "{alive[0].name}" to end', None)
    if leftover := case.leftover_pods():
        return _leftover(leftover[0])
    strategy = case.snapshot.strategy
    if strategy is None or strategy.problem:
        return _missing(case, strategy.problem if strategy else "The strategy was not read")
    attempt = status.attempt + 1 if case.judged else max(status.attempt, 1)
    return _start(case, attempt, strategy.text, refusal)


def _start(case: Case, attempt: int, strategy: str, refusal: Waiting | None) -> Draft:
    """A refusal stays on show until the pod is there: a try is no news."""
    pod = names.pod_name(case.job.name, attempt)
    return Draft(
        phase=Phase.PENDING if refusal else Phase.STARTING,
        reason=Reason(refusal.reason) if refusal else Reason.STARTING,
        message=refusal.message if refusal else starting_message(pod),
        changes={
            "attempt": attempt,
            "pod_name": pod,
            "host": None,
            "waiting": refusal,
            "retry_time": case.status.retry_time if refusal else None,
        },
        start=AttemptStart(attempt=attempt, strategy=strategy),
    )


def _leftover(pod: PodView) -> Draft:
    """Its deletion is under way; the event of its end brings us back."""
    return Draft(
        phase=Phase.PENDING,
        reason=Reason.PENDING,
        message=f'Waiting for pod "{pod.name}" of an earlier TrainingJob of this name to be gone',
    )


def _retrying(case: Case, message: str, seconds: float | None) -> Draft:
    reason = case.status.reason
    return Draft(
        phase=Phase.RETRYING,
        reason=Reason(reason) if reason in frozenset(Reason) else Reason.RETRYING,
        message=message,
        requeue_seconds=seconds,
    )


def _missing(case: Case, problem: str) -> Draft:
    before = case.status.waiting
    same = before is not None and before.reason == Reason.STRATEGY_NOT_FOUND
    since = before.since if before is not None and same else timestamp(case.now)
    waiting = Waiting(reason=Reason.STRATEGY_NOT_FOUND, message=problem, since=since)
    return Draft(
        phase=Phase.PENDING,
        reason=Reason.STRATEGY_NOT_FOUND,
        message=problem,
        changes={
            "waiting": waiting,
            # A refused attempt has not been judged, and this wait hides the refusal.
            "retry_time": case.status.retry_time if case.judged else None,
        },
        requeue_seconds=RECHECK_SECONDS,
    )
