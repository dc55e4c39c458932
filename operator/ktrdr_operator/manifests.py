"""Manifests of the children of a TrainingJob. Pure; `executors.cluster_pods` sends them.

Every child of a job has a deterministic name, a controller owner reference with the job's UID, and
the labels by which the watch and `kubectl logs -l ktrdr.io/job=...` select. Pods meet the Pod
Security Standard `restricted`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ktrdr_api import names
from ktrdr_api.conditions import Phase
from ktrdr_api.run_contract import (
    ENV_POD_UID,
    JobIdentity,
    Overrides,
    RunRequest,
)
from ktrdr_api.strategy import strategy_digest
from ktrdr_api.training_job import ApiModel, TrainingJobStatus
from ktrdr_operator.snapshot import AttemptStart, JobView, StrategyText

Manifest = dict[str, Any]

TOKEN_SECONDS: Final = 3600
SHARED_MEMORY_LIMIT: Final = "1Gi"
SCRATCH_LIMIT: Final = "10Gi"
MALLOC_ENV: Final = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}
"""Keeps glibc from returning tensors to the kernel at every step (measured: LSTM 1.7x faster)."""
_FINAL_PHASES: Final = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED})
_RBAC: Final = "rbac.authorization.k8s.io"


@dataclass(frozen=True)
class PodDefaults:
    """Settings of the installation for all trainer pods."""

    image: str
    image_pull_policy: str
    image_pull_secrets: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    inherited_labels: tuple[str, ...] = ()
    """Keys of labels that are copied from the TrainingJob."""
    inherited_annotations: tuple[str, ...] = ()
    run_as_user: int | None = names.TRAINER_UID
    """None leaves the choice to the cluster (OpenShift)."""
    fs_group: int | None = names.TRAINER_UID
    role_kind: str = "ClusterRole"
    role_name: str = names.TRAINER_ACCOUNT


def fits_into_pod(job: JobView, strategy: StrategyText) -> bool:
    """Whether the strategy becomes an annotation of the pod: if it is inline and small."""
    is_inline = job.spec.strategy.inline is not None
    size = len(strategy.text.encode())
    return is_inline and 0 < size <= names.STRATEGY_ANNOTATION_MAX_BYTES


def run_request(job: JobView, start: AttemptStart) -> RunRequest:
    """Build the RunRequest of an attempt."""
    return RunRequest(
        job=JobIdentity(namespace=job.namespace, name=job.name, uid=job.uid),
        attempt=start.attempt,
        strategy_file=names.STRATEGY_FILE,
        strategy_digest=start.strategy.digest or strategy_digest(start.strategy.text),
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
        gpus=job.gpus,
    )


def strategy_config_map(job: JobView, strategy: StrategyText) -> Manifest:
    """ConfigMap with the strategy as resolved now: later edits of its source have no effect."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(job, names.strategy_name(job.name, job.uid)),
        "immutable": True,
        "data": {names.STRATEGY_FILE: strategy.text},
    }


def trainer_account(namespace: str) -> Manifest:
    """ServiceAccount of all trainers of a namespace; only the projected token of a pod uses it."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": _shared_metadata(namespace),
        "automountServiceAccountToken": False,
    }


def trainer_role_binding(namespace: str, defaults: PodDefaults) -> Manifest:
    """RoleBinding of the trainers' account to the role of the chart."""
    subject = {
        "kind": "ServiceAccount",
        "name": names.TRAINER_ACCOUNT,
        "namespace": namespace,
    }
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "RoleBinding",
        "metadata": _shared_metadata(namespace),
        "roleRef": {"apiGroup": _RBAC, "kind": defaults.role_kind, "name": defaults.role_name},
        "subjects": [subject],
    }


def _shared_metadata(namespace: str) -> Manifest:
    return {
        "name": names.TRAINER_ACCOUNT,
        "namespace": namespace,
        "labels": {
            names.LABEL_APP_NAME: "ktrdr",
            names.LABEL_COMPONENT: "trainer",
            names.LABEL_MANAGED_BY: names.OPERATOR_MANAGER,
        },
    }


def pod(job: JobView, start: AttemptStart, defaults: PodDefaults, *, rank: int = 0) -> Manifest:
    """Build the pod of one rank of one attempt."""
    trainer = job.spec.trainer
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": max(job.spec.cancellation.grace_period_seconds, 1),
        "serviceAccountName": names.TRAINER_ACCOUNT,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": _security_context(defaults),
        "nodeSelector": trainer.node_selector,
        "tolerations": _tolerations(job),
        "imagePullSecrets": _pull_secrets(job, defaults),
        "priorityClassName": trainer.priority_class_name,
        "runtimeClassName": trainer.runtime_class_name,
        "schedulerName": trainer.scheduler_name,
        "containers": [_container(job, defaults)],
        "volumes": _volumes(job, start),
    }
    present = {key: value for key, value in spec.items() if value not in (None, {}, [])}
    metadata = _pod_metadata(job, start, defaults, rank)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": present}


def _pod_metadata(job: JobView, start: AttemptStart, defaults: PodDefaults, rank: int) -> Manifest:
    """The operator's keys come last, so neither chart nor user can replace them."""
    metadata = _metadata(job, names.pod_name(job.name, start.attempt, rank))
    request = run_request(job, start).model_dump_json(by_alias=True, exclude_none=True)
    own = {names.REQUEST_ANNOTATION: request}
    if fits_into_pod(job, start.strategy):
        own[names.STRATEGY_ANNOTATION] = start.strategy.text
    metadata["labels"] = {
        **defaults.labels,
        **{key: job.labels[key] for key in defaults.inherited_labels if key in job.labels},
        **metadata["labels"],
        names.LABEL_ATTEMPT: str(start.attempt),
        names.LABEL_RANK: str(rank),
    }
    metadata["annotations"] = {
        **defaults.annotations,
        **{k: job.annotations[k] for k in defaults.inherited_annotations if k in job.annotations},
        **own,
    }
    return metadata


def _security_context(defaults: PodDefaults) -> Manifest:
    context = {
        "runAsNonRoot": True,
        "runAsUser": defaults.run_as_user,
        "runAsGroup": defaults.run_as_user,
        "fsGroup": defaults.fs_group,
        "fsGroupChangePolicy": "OnRootMismatch" if defaults.fs_group is not None else None,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    return {key: value for key, value in context.items() if value is not None}


def _tolerations(job: JobView) -> list[Manifest]:
    """Tolerations of the GPUs' taints, for GPU jobs only, and those of the spec.

    Nodes with GPUs are usually tainted with the name of the resource. As the admission plugin
    ExtendedResourceToleration does.
    """
    gpus = [
        name
        for name, count in job.spec.trainer.resources.limits.items()
        if names.is_gpu_resource(name) and int(count)
    ]
    taints = dict.fromkeys(taint for name in gpus for taint in (name, _family(name)))
    return [
        *({"key": taint, "operator": "Exists"} for taint in taints),
        *(_dump(toleration) for toleration in job.spec.trainer.tolerations),
    ]


def _family(gpu: str) -> str:
    """Taint of all nodes of a vendor, also for partitions such as `nvidia.com/mig-1g.5gb`."""
    return f"{gpu.partition('/')[0]}/gpu"


def _pull_secrets(job: JobView, defaults: PodDefaults) -> list[Manifest]:
    secrets = [secret.name for secret in job.spec.trainer.image_pull_secrets]
    return [{"name": name} for name in dict.fromkeys((*secrets, *defaults.image_pull_secrets))]


def _container(job: JobView, defaults: PodDefaults) -> Manifest:
    trainer = job.spec.trainer
    return {
        "name": names.TRAINER_CONTAINER,
        "image": trainer.image or defaults.image,
        "imagePullPolicy": trainer.image_pull_policy or defaults.image_pull_policy,
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
    data_source: Manifest = {"claimName": data}
    if data != output:
        # On the volume, not only on the mount: otherwise a disk that many nodes share cannot be
        # attached to a second one, and fsGroup changes the owner of its files.
        data_source["readOnly"] = True
    return [
        {"name": "run", "projected": {"sources": _run_sources(job, start)}},
        {"name": "data", "persistentVolumeClaim": data_source},
        {"name": "output", "persistentVolumeClaim": {"claimName": output}},
        {"name": "token", "projected": {"sources": _token_sources()}},
        {"name": "tmp", "emptyDir": {"sizeLimit": SCRATCH_LIMIT}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": SHARED_MEMORY_LIMIT}},
    ]


def _run_sources(job: JobView, start: AttemptStart) -> list[Manifest]:
    """Sources of the RunRequest and the strategy, as two files of one volume."""
    items = [_annotation_file(names.REQUEST_ANNOTATION, names.REQUEST_FILE)]
    if fits_into_pod(job, start.strategy):
        items.append(_annotation_file(names.STRATEGY_ANNOTATION, names.STRATEGY_FILE))
        return [{"downwardAPI": {"items": items}}]
    strategy = {
        "name": names.strategy_name(job.name, job.uid),
        "items": [{"key": names.STRATEGY_FILE, "path": names.STRATEGY_FILE}],
    }
    return [{"downwardAPI": {"items": items}}, {"configMap": strategy}]


def _annotation_file(annotation: str, file: str) -> Manifest:
    return {"path": file, "fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}


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


def _metadata(job: JobView, name: str) -> Manifest:
    labels = {
        names.LABEL_JOB: job.name,
        names.LABEL_APP_NAME: "ktrdr",
        names.LABEL_COMPONENT: "trainer",
        names.LABEL_MANAGED_BY: names.OPERATOR_MANAGER,
        names.LABEL_INSTANCE: job.name,
    }
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
                # `kubectl delete --cascade=foreground` waits until the pods no longer exist.
                "blockOwnerDeletion": True,
            }
        ],
    }


def status_patch(job: JobView, status: TrainingJobStatus) -> Manifest:
    """Server-side apply of the operator's whole part of status.

    Progress is the trainer's until the job has finished; then the operator owns all of status. The
    resourceVersion prevents a write to an object on which this status was not decided: one that
    has changed since, or a newer job of the same name.
    """
    exclude = None if status.phase in _FINAL_PHASES else {"progress"}
    body = status.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=exclude)
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
