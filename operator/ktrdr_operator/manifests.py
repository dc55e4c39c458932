"""The children of a TrainingJob as manifests. Pure; `executors.cluster_pods` sends them.

Every child has a deterministic name, a controller owner reference with the job's UID, and the
labels that the watch and `kubectl logs -l ktrdr.io/job=...` select by. Pods meet the `restricted`
Pod Security Standard.
"""

from typing import Any, Final

from ktrdr_api import names
from ktrdr_api.run_contract import (
    ENV_POD_UID,
    JobIdentity,
    Overrides,
    RunRequest,
)
from ktrdr_api.strategy import strategy_digest
from ktrdr_api.training_job import ApiModel, TrainingJobStatus
from ktrdr_operator.snapshot import AttemptStart, JobView, Limits

Manifest = dict[str, Any]

TOKEN_SECONDS: Final = 3600
SHARED_MEMORY_LIMIT: Final = "1Gi"
SCRATCH_LIMIT: Final = "10Gi"
MALLOC_ENV: Final = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}
"""Keeps glibc from giving tensors back to the kernel at every step (measured: LSTM 1.7x)."""


def run_config_map(job: JobView, start: AttemptStart) -> Manifest:
    """The RunRequest and the strategy as resolved now; a later edit cannot change this run."""
    request = RunRequest(
        job=JobIdentity(namespace=job.namespace, name=job.name, uid=job.uid),
        attempt=start.attempt,
        strategy_file=names.STRATEGY_FILE,
        strategy_digest=strategy_digest(start.strategy),
        overrides=Overrides(
            symbols=job.spec.symbols,
            timeframes=job.spec.timeframes,
            start_date=job.spec.start_date,
            end_date=job.spec.end_date,
        ),
        data_folder=names.DATA_MOUNT,
        output_folder=names.OUTPUT_MOUNT,
        checkpoint_period_seconds=job.spec.checkpoint.period_seconds,
        progress_period_seconds=job.spec.progress.period_seconds,
        checkpoint_on_cancel=job.spec.cancellation.checkpoint,
        reporting="kubernetes",
    )
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(job, names.run_name(job.name, start.attempt), start.attempt),
        "immutable": True,
        "data": {
            names.REQUEST_FILE: request.model_dump_json(by_alias=True, exclude_none=True),
            names.STRATEGY_FILE: start.strategy,
        },
    }


def service_account(job: JobView) -> Manifest:
    """Who the trainer is; only the projected token of its pod speaks for it."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": _metadata(job, names.account_name(job.name)),
        "automountServiceAccountToken": False,
    }


def role(job: JobView) -> Manifest:
    """What the trainer may do: see its own TrainingJob, and patch its status."""
    rule = {"apiGroups": [names.GROUP], "resourceNames": [job.name]}
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": _metadata(job, names.account_name(job.name)),
        "rules": [
            {**rule, "resources": [names.PLURAL], "verbs": ["get", "watch"]},
            {**rule, "resources": [f"{names.PLURAL}/status"], "verbs": ["get", "patch"]},
        ],
    }


def role_binding(job: JobView) -> Manifest:
    """Gives the role to the trainer's account."""
    name = names.account_name(job.name)
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": _metadata(job, name),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": job.namespace}],
    }


def pod(job: JobView, start: AttemptStart, limits: Limits, *, rank: int = 0) -> Manifest:
    """One rank of one attempt."""
    trainer = job.spec.trainer
    metadata = _metadata(job, names.pod_name(job.name, start.attempt, rank), start.attempt)
    metadata["labels"][names.LABEL_RANK] = str(rank)
    for label in names.PARENT_LABELS_COPIED:
        if label in job.labels:
            metadata["labels"][label] = job.labels[label]
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": max(job.spec.cancellation.grace_period_seconds, 1),
        "serviceAccountName": names.account_name(job.name),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": names.TRAINER_UID,
            "runAsGroup": names.TRAINER_UID,
            "fsGroup": names.TRAINER_UID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "nodeSelector": trainer.node_selector,
        "tolerations": [
            {"key": "nvidia.com/gpu", "operator": "Exists"},
            *(_dump(toleration) for toleration in trainer.tolerations),
        ],
        "imagePullSecrets": [_dump(secret) for secret in trainer.image_pull_secrets],
        "priorityClassName": trainer.priority_class_name,
        "runtimeClassName": trainer.runtime_class_name,
        "schedulerName": trainer.scheduler_name,
        "containers": [_container(job, limits)],
        "volumes": _volumes(job, start),
    }
    present = {key: value for key, value in spec.items() if value not in (None, {}, [])}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": present}


def _container(job: JobView, limits: Limits) -> Manifest:
    trainer = job.spec.trainer
    return {
        "name": names.TRAINER_CONTAINER,
        "image": trainer.image or limits.trainer_image,
        "imagePullPolicy": trainer.image_pull_policy or limits.image_pull_policy,
        "command": [*names.TRAINER_COMMAND, "--request", f"{names.RUN_MOUNT}/{names.REQUEST_FILE}"],
        "env": [
            *({"name": name, "value": value} for name, value in MALLOC_ENV.items()),
            {"name": ENV_POD_UID, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
            *(_dump(variable) for variable in trainer.env),
        ],
        "resources": {
            "requests": dict(trainer.resources.requests),
            "limits": dict(trainer.resources.limits),
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": names.TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _mounts(job),
    }


def _mounts(job: JobView) -> list[Manifest]:
    data = job.spec.data.persistent_volume_claim
    output = job.spec.output.persistent_volume_claim
    mounts: list[Manifest] = [
        {"name": "run", "mountPath": names.RUN_MOUNT, "readOnly": True},
        {
            "name": "data",
            "mountPath": names.DATA_MOUNT,
            "subPath": data.sub_path,
            "readOnly": True,
        },
        {"name": "output", "mountPath": names.OUTPUT_MOUNT, "subPath": output.sub_path},
        {"name": "token", "mountPath": names.TOKEN_MOUNT, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the container's own emptyDir
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - likewise
    ]
    return [{k: v for k, v in mount.items() if v is not None} for mount in mounts]


def _volumes(job: JobView, start: AttemptStart) -> list[Manifest]:
    data = job.spec.data.persistent_volume_claim.claim_name
    output = job.spec.output.persistent_volume_claim.claim_name
    return [
        {"name": "run", "configMap": {"name": names.run_name(job.name, start.attempt)}},
        {"name": "data", "persistentVolumeClaim": {"claimName": data}},
        {"name": "output", "persistentVolumeClaim": {"claimName": output}},
        {"name": "token", "projected": {"sources": _token_sources()}},
        {"name": "tmp", "emptyDir": {"sizeLimit": SCRATCH_LIMIT}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": SHARED_MEMORY_LIMIT}},
    ]


def _token_sources() -> list[Manifest]:
    return [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": TOKEN_SECONDS}},
        {
            "configMap": {
                "name": "kube-root-ca.crt",
                "items": [{"key": "ca.crt", "path": "ca.crt"}],
            }
        },
    ]


def _metadata(job: JobView, name: str, attempt: int | None = None) -> Manifest:
    labels = {
        names.LABEL_JOB: job.name,
        names.LABEL_APP_NAME: "ktrdr",
        names.LABEL_COMPONENT: "trainer",
        names.LABEL_MANAGED_BY: names.OPERATOR_MANAGER,
        names.LABEL_INSTANCE: job.name,
    }
    if attempt is not None:
        labels[names.LABEL_ATTEMPT] = str(attempt)
    return {
        "name": name,
        "namespace": job.namespace,
        "labels": labels,
        "ownerReferences": [
            {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "name": job.name,
                "uid": job.uid,
                "controller": True,
                "blockOwnerDeletion": False,
            }
        ],
    }


def status_patch(job: JobView, status: TrainingJobStatus) -> Manifest:
    """The operator's whole share of status, for server-side apply; progress is the trainer's.

    The version keeps it from an object that this status does not speak of: one that has changed
    since it was observed, or a newer job of the same name.
    """
    body = status.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"progress"})
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {
            "name": job.name,
            "namespace": job.namespace,
            "resourceVersion": job.resource_version,
        },
        "status": body,
    }


def _dump(model: ApiModel) -> Manifest:
    dumped: Manifest = model.model_dump(by_alias=True, exclude_none=True)
    return dumped
