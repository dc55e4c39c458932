"""Raw objects as the API server has them, valid by default; one keyword for each difference.

Tests of the engine build situations out of these and parse them with the product's own `observe`
functions, so that a situation is always one that can be met on a cluster.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from ktrdr_api import names
from ktrdr_api.conditions import ConditionType
from ktrdr_api.run_contract import Outcome, RunResult
from ktrdr_operator.manifests import PodDefaults
from ktrdr_operator.policies.interface import format_timestamp
from ktrdr_operator.snapshot import Limits, Snapshot, StrategyText
from ktrdr_operator.views import view_job, view_pod

Raw = dict[str, Any]

NAMESPACE = "ns"
JOB = "fx"
UID = "uid-fx"
NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
STRATEGY = "name: fx_momentum\n"
DIGEST = "sha256:" + "0" * 64
DEFAULTS = PodDefaults(image="ktrdr.io/trainer:test", image_pull_policy="IfNotPresent")
LIMITS = Limits(
    image_pull_grace_seconds=300.0,
    retry_base_seconds=10.0,
    retry_cap_seconds=360.0,
)
CHECKPOINT = {
    "epoch": 3,
    "step": 300,
    "path": "checkpoints/uid-fx/3",
    "time": "2026-01-01T11:59:00Z",
    "digest": DIGEST,
}


def ago(seconds: float) -> str:
    """The time so many seconds before NOW; negative is later."""
    return format_timestamp(NOW - timedelta(seconds=seconds))


def job_raw(name: str = JOB, *, uid: str = UID, status: Raw | None = None, **spec: Any) -> Raw:
    """A TrainingJob as the API server returns it; `spec` adds or replaces whole fields."""
    claim = {"persistentVolumeClaim": {"claimName": "market-data"}}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {
            "namespace": NAMESPACE,
            "name": name,
            "uid": uid,
            "generation": 1,
            "resourceVersion": "1",
            "creationTimestamp": ago(3600),
        },
        "spec": {"strategy": {"inline": STRATEGY}, "data": claim, "output": claim, **spec},
        "status": {"observedGeneration": -1} if status is None else status,
    }


def recorded(attempt: int = 1, *true: ConditionType, **fields: Any) -> Raw:
    """Status of a job whose attempt is on record; `true` names the conditions that hold."""
    return {
        "observedGeneration": 1,
        "phase": "Starting",
        "reason": "Starting",
        "attempt": attempt,
        "attemptState": "Running" if ConditionType.RUNNING in true else "Pending",
        "podName": names.pod_name(JOB, attempt),
        "conditions": [
            {
                "type": kind.value,
                "status": "True" if kind in true else "False",
                "reason": "Starting" if kind in true else "NotApplicable",
                "message": "",
                "lastTransitionTime": ago(600),
                "observedGeneration": 1,
            }
            for kind in ConditionType
        ],
        **fields,
    }


def progress(attempt: int = 1, stage: str = "Training", **fields: Any) -> Raw:
    """What a trainer reports."""
    return {
        "attempt": attempt,
        "podUID": f"pod-{attempt}",
        "stage": stage,
        "currentEpoch": 4,
        "totalEpochs": 50,
        "currentBatch": 17,
        "totalBatches": 640,
        "lastUpdateTime": ago(1),
        **fields,
    }


def pod_raw(
    attempt: int = 1,
    *,
    job: str = JOB,
    owner: str | None = UID,
    state: Raw | None = None,
    phase: str = "Pending",
    deleting: float | None = None,
    conditions: tuple[Raw, ...] = (),
    node: str | None = "node-1",
    uid: str | None = None,
    age: float = 90,
    **status: Any,
) -> Raw:
    """A trainer pod.

    `owner` is the UID of its TrainingJob, None a pod of another owner; `deleting` the seconds that
    are left of its grace period.
    """
    references = [
        {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": job,
            "uid": owner,
            "controller": True,
        }
    ]
    containers = [{"name": names.TRAINER_CONTAINER, "state": state}] if state else []
    return {
        "metadata": {
            "namespace": NAMESPACE,
            "name": names.pod_name(job, attempt),
            "uid": uid or f"pod-{attempt}",
            "resourceVersion": "1",
            "creationTimestamp": ago(age),
            "labels": {
                names.LABEL_JOB: job,
                names.LABEL_ATTEMPT: str(attempt),
                names.LABEL_RANK: "0",
            },
            "ownerReferences": references if owner else [],
            **({} if deleting is None else {"deletionTimestamp": ago(-deleting)}),
        },
        "spec": {"nodeName": node} if node else {},
        "status": {
            "phase": phase,
            "conditions": list(conditions),
            "containerStatuses": containers,
            **status,
        },
    }


def running_pod(attempt: int = 1, *, startedAt: str = "", **fields: Any) -> Raw:  # noqa: N803 - the API's word
    """A pod whose trainer has started."""
    state = {"running": {"startedAt": startedAt or ago(60)}}
    return pod_raw(attempt, state=state, phase="Running", **fields)


def waiting_pod(reason: str, message: str, attempt: int = 1, **fields: Any) -> Raw:
    """A pod that the kubelet holds up."""
    state = {"waiting": {"reason": reason, "message": message}}
    return pod_raw(attempt, state=state, **fields)


def unscheduled_pod(message: str, reason: str = "Unschedulable") -> Raw:
    """A pod that the scheduler holds up."""
    condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
    return pod_raw(node=None, conditions=(condition,))


def ended_pod(
    exit_code: int,
    attempt: int = 1,
    *,
    message: str = "",
    reason: str = "",
    finished: str | None = None,
    startedAt: str = "",  # noqa: N803 - the API's word
    **fields: Any,
) -> Raw:
    """A pod whose trainer has ended; `message` is its termination message."""
    terminated = {
        "exitCode": exit_code,
        "reason": reason or ("Completed" if exit_code == 0 else "Error"),
        "message": message,
        "startedAt": startedAt or ago(120),
        "finishedAt": finished or ago(30),
    }
    phase = "Succeeded" if exit_code == 0 else "Failed"
    return pod_raw(attempt, **{"state": {"terminated": terminated}, "phase": phase, **fields})


def last_word(outcome: Outcome = Outcome.SUCCEEDED, **fields: Any) -> str:
    """A termination message as the trainer writes it."""
    exit_code = {"Succeeded": 0, "Cancelled": 10, "Terminated": 143, "Failed": 1}[outcome]
    reason = {"Succeeded": "Completed", "Cancelled": "Cancelled"}.get(outcome, "TrainerFailed")
    body: Raw = {
        "jobUid": UID,
        "attempt": 1,
        "outcome": outcome,
        "exitCode": exit_code,
        "reason": reason,
        **fields,
    }
    return RunResult.model_validate(body).model_dump_json(by_alias=True, exclude_none=True)


def with_sidecar(pod: Raw, state: str = "running") -> Raw:
    """The same pod beside a container that has not ended."""
    sidecar = {"name": "sidecar", "state": {state: {"startedAt": ago(100)}}}
    pod["status"]["containerStatuses"].append(sidecar)
    return pod


MODEL = {"path": "models/fx_momentum/1h_v1", "digest": DIGEST, "sizeBytes": 4096}


def succeeded_pod(attempt: int = 1, *, checkpoint: Raw | None = None, **fields: Any) -> Raw:
    """A pod whose trainer has stored a model."""
    message = last_word(attempt=attempt, epochsCompleted=50, artifact=MODEL, checkpoint=checkpoint)
    return ended_pod(0, attempt, message=message, **fields)


def snapshot(
    job: Raw | None, *pods: Raw, gone: tuple[Raw, ...] = (), strategy: str = STRATEGY
) -> Snapshot:
    """What `observe` would make of these objects, with the strategy readable."""
    return Snapshot(
        job=view_job(job) if job else None,
        pods=(*(view_pod(pod) for pod in pods), *(view_pod(pod, gone=True) for pod in gone)),
        strategy=StrategyText(text=strategy),
    )
