"""A child was refused: quota, admission, or a name that somebody else holds.

Not one of the ordered rules: `reconcile` asks it when the API server said no to a plan. Its words
stand in status, and the next try comes after as long as the refusal has lasted (1 s to 60 s):
exponential, without a counter, and the same after a restart of the operator.
"""

from datetime import timedelta
from typing import Final

from ktrdr_api.conditions import Phase, Reason
from ktrdr_api.training_job import Waiting
from ktrdr_operator.policies.interface import (
    PolicyInput,
    PolicyResult,
    format_timestamp,
    parse_timestamp,
)

LEAST_SECONDS: Final = 1.0
MOST_SECONDS: Final = 60.0


def create_failed(case: PolicyInput, reason: Reason, words: str) -> PolicyResult:
    """The state after a refusal."""
    before = case.status.waiting
    same = before is not None and before.reason == reason
    since = before.since if before is not None and same else format_timestamp(case.now)
    lasted = (case.now - parse_timestamp(since)).total_seconds()
    delay = min(max(lasted, LEAST_SECONDS), MOST_SECONDS)
    waiting = Waiting(reason=reason, message=words, since=since)
    return PolicyResult(
        phase=Phase.PENDING,
        reason=reason,
        message=words,
        changes={
            "waiting": waiting,
            "retry_time": format_timestamp(case.now + timedelta(seconds=delay)),
        },
        requeue_seconds=delay,
    )


def still_failing(waiting: Waiting, seconds: float) -> PolicyResult:
    """The state between two tries."""
    return PolicyResult(
        phase=Phase.PENDING,
        reason=Reason(waiting.reason),
        message=waiting.message,
        requeue_seconds=seconds,
    )
