"""The pod exists and its trainer has not started: pass on the words of whoever holds it up.

Waiting for a node is no failure: GPUs are scarce. An image that cannot be pulled becomes one after
a grace time, with the kubelet's words.
"""

from datetime import timedelta
from typing import Final

from ktrdr_api.conditions import Phase, Reason
from ktrdr_api.training_job import Failure, Waiting
from ktrdr_operator.policies.draft import (
    Case,
    Draft,
    deletion_of,
    moment_of,
    starting_message,
    timestamp,
)
from ktrdr_operator.snapshot import Obstacle, PodView

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


def speak(case: Case) -> Draft | None:
    """Speaks when the current pod has neither started nor ended."""
    pod = case.pod
    if pod is None or pod.ended or pod.started is not None:
        return None
    waiting = _waiting(case, pod.obstacle)
    if waiting is not None and waiting.reason == Reason.IMAGE_PULL_FAILED:
        return _image(case, pod, waiting)
    return Draft(
        phase=Phase.STARTING,
        reason=Reason(waiting.reason) if waiting else Reason.STARTING,
        message=waiting.message if waiting else starting_message(pod.name),
        changes={"waiting": waiting, "retry_time": None},
    )


def _waiting(case: Case, obstacle: Obstacle | None) -> Waiting | None:
    if obstacle is None:
        return None
    reason = _reason(obstacle)
    before = case.status.waiting
    same = before is not None and before.reason == reason
    if before is not None and same and reason is Reason.IMAGE_PULL_FAILED:
        return before  # the kubelet alternates between two wordings of one fact
    return Waiting(
        reason=reason,
        message=_with_remedy(case, reason, obstacle.message),
        since=before.since if before is not None and same else timestamp(case.now),
    )


def _reason(obstacle: Obstacle) -> Reason:
    if obstacle.reason in _IMAGE_REASONS:
        return Reason.IMAGE_PULL_FAILED
    if _CLAIM_WORD in obstacle.message.lower():
        return Reason.VOLUME_NOT_READY
    if obstacle.reason == "Unschedulable":
        return Reason.UNSCHEDULABLE
    return Reason.STARTING


def _with_remedy(case: Case, reason: Reason, words: str) -> str:
    if reason is not Reason.VOLUME_NOT_READY:
        return words
    verb = "create" if "not found" in words else "bind"
    remedy = f'{verb} the claim in namespace "{case.job.namespace}" and the job starts'
    return f"{words.rstrip('. ')}; {remedy}"


def _image(case: Case, pod: PodView, waiting: Waiting) -> Draft:
    due = moment_of(waiting.since) + timedelta(seconds=case.limits.image_pull_grace_seconds)
    if case.now < due:
        return Draft(
            phase=Phase.STARTING,
            reason=Reason.IMAGE_PULL_FAILED,
            message=waiting.message,
            changes={"waiting": waiting, "retry_time": None},
            requeue_seconds=case.seconds_until(due),
        )
    failure = Failure(attempt=pod.attempt, reason=Reason.IMAGE_PULL_FAILED, message=waiting.message)
    return Draft(
        phase=Phase.FAILED,
        reason=Reason.IMAGE_PULL_FAILED,
        message=waiting.message,
        changes={
            "waiting": None,
            "retry_time": None,
            "failure": failure,
            "completion_time": timestamp(case.now),
        },
        deletions=deletion_of(pod),
    )
