"""`spec.trainer`: the parts of the trainer's pod that a user may set, named as in core/v1.

Part of the TrainingJob (`training_job.py`); the operator copies these fields into the pod. Whatever
would make the API server reject that pod is rejected with the TrainingJob already, as far as the
CRD can know it (`crd_rules.py`): the spec is immutable, so such a job could never start.
"""

from typing import Annotated, Literal

from pydantic import Field

from ktrdr_api.api_fields import (
    ApiModel,
    Atomic,
    DnsName,
    Image,
    LabelKey,
    LabelMap,
    LabelValue,
    Named,
    ResourceMap,
)


class LocalObjectReference(ApiModel):
    """Reference to a Secret in the job's namespace."""

    name: DnsName
    """Name of the Secret."""


class Resources(ApiModel):
    """Compute resources of the trainer container, as in core/v1."""

    requests: ResourceMap = Field(default_factory=dict)
    """Resources that the scheduler reserves on the node. A resource without a request gets its
    limit as request. Put numbers with a fraction in quotes ("0.5"), or write 500m."""
    limits: ResourceMap = Field(default_factory=dict)
    """Resources that the kubelet enforces; unlimited when absent. GPUs go here, as whole numbers of
    one family, such as `nvidia.com/gpu: 1`. Put numbers with a fraction in quotes ("0.5"), or write
    500m."""


class EnvVar(ApiModel):
    """Environment variable with a plain value; references to Secrets are not supported."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    """Name of the variable. The prefix KTRDR_ is reserved for the operator."""
    value: Annotated[str, Field(max_length=4096, pattern=r"^[^\x00]*$")] = ""
    """Value of the variable; empty when absent."""


class Toleration(ApiModel):
    """Taint that the trainer's pod tolerates, as in core/v1."""

    key: LabelKey | None = None
    """Taint key. When absent, operator must be Exists, and all taints are tolerated."""
    operator: Literal["Exists", "Equal"] | None = None
    """Exists tolerates every value of the key, Equal only `value`. Equal when absent."""
    value: LabelValue | None = None
    """Taint value to compare with operator Equal; empty when absent."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; all effects when absent."""
    toleration_seconds: Annotated[int, Field(ge=0, le=2147483647)] | None = None
    """Seconds the pod tolerates a NoExecute taint; forever when absent."""


class Trainer(ApiModel):
    """Image, resources and placement of the trainer's pod."""

    image: Image | None = None
    """Container image of the trainer. The operator's setting when absent."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When the kubelet pulls the image. The operator's setting when absent."""
    image_pull_secrets: Annotated[
        tuple[LocalObjectReference, ...], Field(max_length=8, json_schema_extra=Atomic)
    ] = ()
    """Secrets with registry credentials, in addition to those of the operator's setting."""
    resources: Resources = Resources()
    """CPU, memory and GPUs of the trainer container. No requests and no limits when absent."""
    env: Annotated[tuple[EnvVar, ...], Field(max_length=32, json_schema_extra=Named)] = ()
    """Environment variables of the trainer container; each name once."""
    node_selector: LabelMap = Field(default_factory=dict)
    """Labels that a node must have to run the pod. Any node when absent."""
    tolerations: Annotated[
        tuple[Toleration, ...], Field(max_length=16, json_schema_extra=Atomic)
    ] = ()
    """Taints that the pod tolerates. A pod with a GPU tolerates `nvidia.com/gpu` as well."""
    priority_class_name: DnsName | None = None
    """PriorityClass of the pod. The cluster's default when absent."""
    runtime_class_name: DnsName | None = None
    """RuntimeClass of the pod, such as nvidia. The node's default runtime when absent."""
    scheduler_name: DnsName | None = None
    """Scheduler that places the pod. The cluster's default scheduler when absent."""
