"""The pod exists and its trainer has not started: pass on the words of whoever holds it up.

Waiting for a node is no failure: GPUs are scarce. An image that cannot be pulled becomes one after
a grace time, with the kubelet's words.
"""

from datetime import timedelta
from typing import Final

from ktrdr_api.conditions import Phase, Reason
from ktrdr_api.training_job import Failure, Waiting
from ktrdr_operator.policies.interface import (
    PolicyInput,
    PolicyResult,
    deletion_of,
    format_timestamp,
    parse_timestamp,
    starting_message,
)
from ktrdr_operator.snapshot import PodView, WaitReason

_IMAGE_REASONS: Final = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "RegistryUnavailable",
    }
)
_CLAIM_WORD: Final = "persistentvolumeclaim"


def evaluate(case: PolicyInput) -> PolicyResult | None:
    """Speaks when the current pod has neither started nor ended."""
    pod = case.pod
    if pod is None or pod.ended or pod.started is not None:
        return None
    waiting = _waiting(case, pod.wait_reason)
    if waiting is not None and waiting.reason == Reason.IMAGE_PULL_FAILED:
        return _image(case, pod, waiting)
    return PolicyResult(
        phase=Phase.STARTING,
        reason=Reason(waiting.reason) if waiting else Reason.STARTING,
        message=waiting.message if waiting else starting_message(pod.name),
        changes={"waiting": waiting, "retry_time": None},
    )


def _waiting(case: PolicyInput, wait_reason: WaitReason | None) -> Waiting | None:
    if wait_reason is None:
        return None
    reason = _reason(wait_reason)
    before = case.status.waiting
    same = before is not None and before.reason == reason
    if before is not None and same and reason is Reason.IMAGE_PULL_FAILED:
        return before  # the kubelet alternates between two wordings of one fact
    return Waiting(
        reason=reason,
        message=_with_remedy(case, reason, wait_reason.message),
        since=before.since if before is not None and same else format_timestamp(case.now),
    )


def _reason(wait_reason: WaitReason) -> Reason:
    if wait_reason.reason in _IMAGE_REASONS:
        return Reason.IMAGE_PULL_FAILED
    if _CLAIM_WORD in wait_reason.message.lower():
        return Reason.VOLUME_NOT_READY
    if wait_reason.reason == "Unschedulable":
        return Reason.UNSCHEDULABLE
    return Reason.STARTING


def _with_remedy(case: PolicyInput, reason: Reason, words: str) -> str:
    if reason is not Reason.VOLUME_NOT_READY:
        return words
    verb = "create" if "not found" in words else "bind"
    remedy = f'{verb} the claim in namespace "{case.job.namespace}" and the job starts'
    return f"{words.rstrip('. ')}; {remedy}"


def _image(case: PolicyInput, pod: PodView, waiting: Waiting) -> PolicyResult:
    due = parse_timestamp(waiting.since) + timedelta(seconds=case.limits.image_pull_grace_seconds)
    if case.now < due:
        return PolicyResult(
            phase=Phase.STARTING,
            reason=Reason.IMAGE_PULL_FAILED,
            message=waiting.message,
            changes={"waiting": waiting, "retry_time": None},
            requeue_seconds=case.seconds_until(due),
        )
    failure = Failure(attempt=pod.attempt, reason=Reason.IMAGE_PULL_FAILED, message=waiting.message)
    return PolicyResult(
        phase=Phase.FAILED,
        reason=Reason.IMAGE_PULL_FAILED,
        message=waiting.message,
        changes={
            "waiting": None,
            "retry_time": None,
            "failure": failure,
            "completion_time": format_timestamp(case.now),
        },
        deletions=deletion_of(pod),
    )
