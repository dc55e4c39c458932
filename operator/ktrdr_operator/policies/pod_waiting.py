"""The pod exists and its trainer has not started: report what it waits for.

Waiting for a node is not a failure, because GPUs are scarce. An image that cannot be pulled fails
the job after a grace time, but only if the job has never run; otherwise it waits for the registry.
"""

from datetime import timedelta
from typing import Final

from ktrdr_api.conditions import Phase, Reason
from ktrdr_api.training_job import Failure
from ktrdr_operator.policies import interface
from ktrdr_operator.policies.interface import (
    PolicyInput,
    PolicyResult,
    deletion_of,
    format_timestamp,
    parse_timestamp,
    seconds_until_overdue,
    terminating_message,
)
from ktrdr_operator.snapshot import PodView, WaitReason

_IMAGE_REASONS: Final = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)
"""Source: kubernetes/pkg/kubelet/images/types.go."""
_CLAIM_WORD: Final = "persistentvolumeclaim"
BURST_JOBS: Final = 20
"""Jobs without a status from which on a start may take `SILENT_IN_BURST_SECONDS`."""
SILENT_IN_BURST_SECONDS: Final = 20.0
"""500 pods that are created at the same time run after 13 s, 8 of which the scheduler needs."""
SILENT_SECONDS: Final = 3.0
"""A pod that starts within this time costs no status write before Running."""
UNEXPLAINED_SECONDS: Final = 30.0
"""Age from which a pod without any reported reason is itself reported."""
RECHECK_SECONDS: Final = (SILENT_SECONDS, 15.0, UNEXPLAINED_SECONDS, 60.0)
"""Ages at which a pod that has not started is reconciled again; then every 60 s. Its Events are
read then, because they are not watched."""


def evaluate(policy_input: PolicyInput) -> PolicyResult | None:
    """Decide when the current pod has neither started nor ended."""
    pod = policy_input.pod
    if pod is None or pod.ended or pod.started is not None:
        return None
    if pod.deleting:
        return _terminating(policy_input, pod)
    age = _age_seconds(policy_input, pod)
    words = pod.wait_reason or _unexplained(pod, age)
    if words is None or (words.is_progress and age < _silent_seconds(policy_input)):
        return _starting(policy_input, pod, age)
    return _held_up(policy_input, pod, words)


def _age_seconds(policy_input: PolicyInput, pod: PodView) -> float:
    created = pod.created or policy_input.now
    return max((policy_input.now - created).total_seconds(), 0.0)


def _silent_seconds(policy_input: PolicyInput) -> float:
    """Longer while many jobs start: a write for each would delay the pods of all."""
    in_burst = policy_input.snapshot.unwritten_jobs > BURST_JOBS
    return SILENT_IN_BURST_SECONDS if in_burst else SILENT_SECONDS


def _recheck_seconds(age: float) -> float:
    return next((moment - age for moment in RECHECK_SECONDS if moment > age), RECHECK_SECONDS[-1])


def _starting(policy_input: PolicyInput, pod: PodView, age: float) -> PolicyResult:
    """The message is the same before and after the pod is known, so a start costs one write."""
    return PolicyResult(
        phase=Phase.STARTING,
        reason=Reason.STARTING,
        message=interface.starting_message(policy_input, pod.attempt),
        changes={**interface.pending(policy_input, pod.attempt), "waiting": None},
        requeue_seconds=_recheck_seconds(age),
        is_silent=age < _silent_seconds(policy_input) and policy_input.create_failure is None,
    )


def _held_up(policy_input: PolicyInput, pod: PodView, words: WaitReason) -> PolicyResult:
    reason = _reason(words)
    waiting = policy_input.waiting(reason, _with_remedy(policy_input, reason, words.message))
    before = policy_input.status.waiting
    if before is not None and before.reason == reason is Reason.IMAGE_PULL_FAILED:
        waiting = before  # the kubelet alternates between two messages for the same failure
    if reason is Reason.IMAGE_PULL_FAILED and not policy_input.has_ever_run:
        due = parse_timestamp(waiting.since) + timedelta(
            seconds=policy_input.limits.image_pull_grace_seconds
        )
        if policy_input.now >= due:
            return _image_failed(policy_input, pod, waiting.message)
    return PolicyResult(
        phase=Phase.STARTING,
        reason=reason,
        message=waiting.message,
        changes={**interface.pending(policy_input, pod.attempt), "waiting": waiting},
        requeue_seconds=_requeue_seconds(policy_input, pod, reason, waiting.since),
    )


def _requeue_seconds(policy_input: PolicyInput, pod: PodView, reason: Reason, since: str) -> float:
    recheck = _recheck_seconds(_age_seconds(policy_input, pod))
    if reason is not Reason.IMAGE_PULL_FAILED or policy_input.has_ever_run:
        return recheck
    grace = timedelta(seconds=policy_input.limits.image_pull_grace_seconds)
    return policy_input.seconds_until(parse_timestamp(since) + grace)


def _reason(words: WaitReason) -> Reason:
    if words.is_progress:
        return Reason.STARTING
    if words.reason in _IMAGE_REASONS:
        return Reason.IMAGE_PULL_FAILED
    if _CLAIM_WORD in words.message.lower():
        return Reason.VOLUME_NOT_READY
    if words.reason == "Unschedulable":
        return Reason.UNSCHEDULABLE
    return Reason.POD_NOT_READY


_REMEDIES: Final = {
    Reason.UNSCHEDULABLE: "the job starts when a node fits: see spec.trainer.resources, "
    "nodeSelector and tolerations, and kubectl describe nodes",
    Reason.POD_NOT_READY: "the job starts when this is corrected: see kubectl describe pod {pod}",
}


def _with_remedy(policy_input: PolicyInput, reason: Reason, words: str) -> str:
    words = words.rstrip(". ")
    if reason is Reason.STARTING:
        return words
    namespace = policy_input.job.namespace
    if reason is Reason.VOLUME_NOT_READY:
        return f"{words}; {_claim_remedy(words, namespace)}"
    if reason is Reason.IMAGE_PULL_FAILED:
        return f"{words}; {_image_remedy(policy_input)}"
    pod = policy_input.pod
    return f"{words}; {_REMEDIES[reason].format(pod=pod.name if pod else '')}"


def _claim_remedy(words: str, namespace: str) -> str:
    if "not found" in words:
        return f'create the claim in namespace "{namespace}" and the job starts'
    if "being deleted" in words or "is terminating" in words:
        return f'create the claim in namespace "{namespace}" again once it is deleted'
    return f'bind the claim in namespace "{namespace}" and the job starts'


def _image_remedy(policy_input: PolicyInput) -> str:
    if policy_input.has_ever_run:
        return "the job waits, and resumes when the image can be pulled"
    seconds = policy_input.limits.image_pull_grace_seconds
    return (
        f"the job fails if this lasts longer than {seconds:.0f} s: check the image's name, the "
        "registry and spec.trainer.imagePullSecrets"
    )


def _unexplained(pod: PodView, age: float) -> WaitReason | None:
    if age < UNEXPLAINED_SECONDS:
        return None
    if pod.node is None:
        text = (
            f'Pod "{pod.name}" has no node, and no scheduler has said why; check that scheduler '
            f'"{pod.scheduler or "default-scheduler"}" is running'
        )
    else:
        text = (
            f'Pod "{pod.name}" is on node "{pod.node}" and its trainer has not started; neither '
            "its status nor its Events say why; check that the kubelet of this node is running"
        )
    return WaitReason("", text)


def _terminating(policy_input: PolicyInput, pod: PodView) -> PolicyResult:
    message = terminating_message(policy_input, pod)
    return PolicyResult(
        phase=Phase.STARTING,
        reason=Reason.TERMINATING,
        message=message,
        changes={
            **interface.pending(policy_input, pod.attempt),
            "waiting": policy_input.waiting(Reason.TERMINATING, message),
        },
        requeue_seconds=seconds_until_overdue(policy_input, pod),
    )


def _image_failed(policy_input: PolicyInput, pod: PodView, words: str) -> PolicyResult:
    fact = words.rpartition(";")[0] or words
    grace = policy_input.limits.image_pull_grace_seconds
    message = (
        f"{fact}; tried for {grace:.0f} s. Check the image's name, the registry and "
        "spec.trainer.imagePullSecrets, then create a new TrainingJob"
    )[: interface.MESSAGE_MAX_LENGTH]
    failure = Failure(attempt=pod.attempt, reason=Reason.IMAGE_PULL_FAILED, message=message)
    return PolicyResult(
        phase=Phase.FAILED,
        reason=Reason.IMAGE_PULL_FAILED,
        message=message,
        changes={
            **interface.finished(policy_input),
            "failure": failure,
            "completion_time": format_timestamp(policy_input.now),
        },
        deletions=deletion_of(pod),
    )
