"""Names that several programs must agree on, one documented constant each.

Used by all packages. The values are API: a change needs a decision record.
"""

from typing import Final

GROUP: Final = "ktrdr.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "TrainingJob"
PLURAL: Final = "trainingjobs"
SINGULAR: Final = "trainingjob"
SHORT_NAME: Final = "ktj"
CATEGORY: Final = "ktrdr"
RESOURCE: Final = f"{PLURAL}.{GROUP}"
"""Full name for kubectl: another vendor's CRD has the same plural `trainingjobs`."""

NAME_MAX_LENGTH: Final = 52
"""Leaves room for `-<attempt>-<rank>` in a 63-character pod hostname."""

OPERATOR_MANAGER: Final = "ktrdr-operator"
"""Server-side apply field manager of the operator."""
TRAINER_MANAGER: Final = "ktrdr-trainer"
"""Server-side apply field manager of the trainer, which writes `status.progress`."""

LABEL_JOB: Final = f"{GROUP}/job"
LABEL_ATTEMPT: Final = f"{GROUP}/attempt"
LABEL_RANK: Final = f"{GROUP}/rank"
LABEL_APP_NAME: Final = "app.kubernetes.io/name"
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
LABEL_COMPONENT: Final = "app.kubernetes.io/component"
LABEL_INSTANCE: Final = "app.kubernetes.io/instance"

TRAINER_CONTAINER: Final = "trainer"
TRAINER_UID: Final = 10001
TRAINER_COMMAND: Final = ("python", "-m", "ktrdr_trainer")

TRAINER_ACCOUNT: Final = "ktrdr-trainer"
"""ServiceAccount of all trainers of a namespace, its RoleBinding, and the role it is bound to."""

REQUEST_ANNOTATION: Final = f"{GROUP}/run-request"
"""Annotation of a pod that holds the RunRequest."""
STRATEGY_ANNOTATION: Final = f"{GROUP}/strategy"
"""Annotation of a pod that holds a small inline strategy."""
STRATEGY_ANNOTATION_MAX_BYTES: Final = 8192
"""A larger strategy goes into a ConfigMap: annotations are part of every write of the pod."""
REQUEST_FILE: Final = "request.json"
"""File below `RUN_MOUNT` that holds the RunRequest."""
STRATEGY_FILE: Final = "strategy.yaml"
"""File below `RUN_MOUNT`, and key of the job's ConfigMap, that holds the strategy as resolved."""
RUN_MOUNT: Final = "/run/ktrdr"
DATA_MOUNT: Final = "/data"
OUTPUT_MOUNT: Final = "/output"
TOKEN_MOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 - a folder
TERMINATION_LOG: Final = "/dev/termination-log"

GPU_RESOURCES: Final = ("nvidia.com/gpu", "nvidia.com/gpu.shared", "amd.com/gpu")
GPU_RESOURCE_PREFIX: Final = "nvidia.com/mig-"


def is_gpu_resource(name: str) -> bool:
    """Whether a resource name counts as GPUs in `status.gpus`."""
    return name in GPU_RESOURCES or name.startswith(GPU_RESOURCE_PREFIX)


def pod_name(job: str, attempt: int, rank: int = 0) -> str:
    """Name of the pod that runs one rank of one attempt."""
    return f"{job}-{attempt}-{rank}"


def strategy_name(job: str, uid: str) -> str:
    """Name of the immutable ConfigMap with a job's strategy, where it does not fit into the pod.

    With a part of the UID: a deleted job of the same name may have left one behind.
    """
    return f"{job}-{uid[:8]}-strategy"
