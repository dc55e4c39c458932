"""A child could not be created: quota, admission, a webhook, a taken name, or an invalid pod.

`reconcile` evaluates the Snapshot a second time when the API server has refused a start. The words
of the server are shown in status, and the next try comes after as long as the refusals have lasted
(1 s to 60 s): exponential, without a counter, and the same after a restart of the operator.
"""

from datetime import timedelta
from typing import Final

from ktrdr_api.conditions import Phase, Reason
from ktrdr_api.training_job import Failure
from ktrdr_operator.policies import interface
from ktrdr_operator.policies.interface import (
    MESSAGE_MAX_LENGTH,
    PolicyInput,
    PolicyResult,
    format_timestamp,
    parse_timestamp,
)
from ktrdr_operator.snapshot import CreateFailure, CreateFailureKind

MIN_SECONDS: Final = 1.0
MAX_SECONDS: Final = 60.0
_REMEDIES: Final = {
    Reason.FAILED_CREATE: "once this is corrected the job starts: see waiting.retryTime",
    Reason.NAME_CONFLICT: "tried again at waiting.retryTime",
}


def evaluate(policy_input: PolicyInput) -> PolicyResult | None:
    """Decide when the start that was just tried has failed."""
    failure = policy_input.snapshot.create_failure
    if failure is None:
        return None
    if failure.kind is CreateFailureKind.INVALID:
        return _invalid(policy_input, failure)
    reason = Reason.FAILED_CREATE
    if failure.kind is CreateFailureKind.NAME_CONFLICT:
        reason = Reason.NAME_CONFLICT
    return _waiting(policy_input, reason, failure.message)


def retry_seconds(policy_input: PolicyInput, reason: str) -> float:
    """Seconds until the next try: as many as this reason has lasted."""
    before = policy_input.status.waiting
    if before is None or before.reason != reason:
        return MIN_SECONDS
    lasted = (policy_input.now - parse_timestamp(before.since)).total_seconds()
    return min(max(lasted, MIN_SECONDS), MAX_SECONDS)


def _waiting(policy_input: PolicyInput, reason: Reason, message: str) -> PolicyResult:
    seconds = retry_seconds(policy_input, reason)
    due = format_timestamp(policy_input.now + timedelta(seconds=seconds))
    waiting = policy_input.waiting(reason, f"{message}; {_REMEDIES[reason]}", retry_time=due)
    attempt = max(policy_input.status.attempt, 1)
    return PolicyResult(
        phase=Phase.PENDING,
        reason=reason,
        message=waiting.message,
        changes={**interface.pending(policy_input, attempt), "waiting": waiting},
        requeue_seconds=seconds,
    )


def _invalid(policy_input: PolicyInput, failure: CreateFailure) -> PolicyResult:
    message = f"{failure.message}; correct it in a new TrainingJob"[:MESSAGE_MAX_LENGTH]
    attempt = policy_input.status.attempt
    return PolicyResult(
        phase=Phase.FAILED,
        reason=Reason.INVALID_REQUEST,
        message=message,
        changes={
            "attempt_state": policy_input.status.attempt_state,
            "waiting": None,
            "retry_time": None,
            "completion_time": format_timestamp(policy_input.now),
            "failure": Failure(attempt=attempt, reason=Reason.INVALID_REQUEST, message=message),
        },
    )
