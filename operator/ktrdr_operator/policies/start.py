"""Nothing runs: start the first, the next or an interrupted attempt, or say what is missing.

An attempt is recorded in status before its pod is created, and none is created while a pod of an
earlier attempt may still run: two trainers never write to one output folder.
"""

from typing import Final

from ktrdr_api import names
from ktrdr_api.conditions import Phase, Reason
from ktrdr_api.training_job import Waiting
from ktrdr_operator.policies.draft import Case, Draft, moment_of, starting_message, timestamp
from ktrdr_operator.snapshot import AttemptStart

RECHECK_SECONDS: Final = 5.0
"""How often a missing strategy is looked for: ConfigMaps are not watched (there are too many)."""


def speak(case: Case) -> Draft:
    """Always speaks: the last rule."""
    status = case.status
    if status.retry_time is not None and case.now < moment_of(status.retry_time):
        return _retrying(case, status.message, case.seconds_until(moment_of(status.retry_time)))
    if alive := case.own_pods_alive():
        return _retrying(case, f'Waiting for pod "{alive[0].name}" to end', None)
    strategy = case.snapshot.strategy
    if strategy is None or strategy.problem:
        return _missing(case, strategy.problem if strategy else "The strategy was not read")
    again = status.attempt > 0 and status.retry_time is None  # recorded, but never created
    attempt = status.attempt if again else status.attempt + 1
    pod = names.pod_name(case.job.name, attempt)
    return Draft(
        phase=Phase.STARTING,
        reason=Reason.STARTING,
        message=starting_message(pod),
        changes={
            "attempt": attempt,
            "pod_name": pod,
            "host": None,
            "waiting": None,
            "retry_time": None,
        },
        start=AttemptStart(attempt=attempt, strategy=strategy.text),
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
        changes={"waiting": waiting},
        requeue_seconds=RECHECK_SECONDS,
    )
