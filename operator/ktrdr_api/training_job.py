"""The TrainingJob: spec and status as users write and read them. The CRD is generated from here.

Read by the operator (parse once at the border, typed inside) and by `crd.py`. Field docstrings are
the texts of `kubectl explain`. A field that no code obeys does not exist here.
"""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from ktrdr_api import strategy_sections
from ktrdr_api.run_contract import CheckpointPolicy, Stage
from ktrdr_api.strategy_sections import Symbol, Timeframe

STRATEGY_MAX_BYTES: Final = strategy_sections.MAX_BYTES
REPORT_PERIOD_MAX_SECONDS: Final = 3600
WARNINGS_MAX: Final = 8
WARNING_MAX_LENGTH: Final = 256

DnsName = Annotated[
    str,
    Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"),
]
Date = Annotated[
    str,
    Field(
        min_length=10,
        max_length=10,
        pattern=r"^(19|20|21)[0-9]{2}-[0-9]{2}-[0-9]{2}$",  # as strategy_sections.YEARS
        json_schema_extra={"format": "date"},
    ),
]
Time = Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})]
SubPath = Annotated[
    str, Field(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9_][A-Za-z0-9._/-]*$")
]
Quantity = Annotated[
    str,
    Field(
        max_length=32,
        pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei)?$",
        json_schema_extra={"x-kubernetes-int-or-string": True},
    ),
]
Atomic: Final = {"x-kubernetes-list-type": "atomic"}
Unique: Final = {"x-kubernetes-list-type": "set"}
Named: Final = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
IntOrStringMap = dict[Annotated[str, Field(max_length=317)], Annotated[int, Field(ge=0)] | Quantity]


class ApiModel(BaseModel):
    """Base: camelCase on the wire; fields of a newer schema are ignored on reading."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
    )


class ConfigMapKeyRef(ApiModel):
    """A key of a ConfigMap in the job's namespace."""

    name: DnsName
    """Name of the ConfigMap."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
    """Key that holds the strategy."""


class StrategySource(ApiModel):
    """Where the strategy is."""

    inline: Annotated[str, Field(min_length=1, max_length=STRATEGY_MAX_BYTES)] | None = None
    """The strategy itself, YAML, at most 64 KiB."""
    config_map_key_ref: ConfigMapKeyRef | None = None
    """Where the strategy is; read once, when the first attempt starts."""


class ClaimRef(ApiModel):
    """A PersistentVolumeClaim in the job's namespace."""

    claim_name: DnsName
    """Name of the claim."""
    sub_path: SubPath | None = None
    """Folder inside the volume; the whole volume when absent. `..` is refused."""


class VolumeSource(ApiModel):
    """Where files are."""

    persistent_volume_claim: ClaimRef
    """The claim to mount."""


class LocalObjectReference(ApiModel):
    """A Secret in the job's namespace."""

    name: DnsName
    """Name of the Secret."""


class Resources(ApiModel):
    """Compute resources of the trainer container, in the words of core/v1."""

    requests: Annotated[IntOrStringMap, Field(max_length=16)] = {}
    """What the scheduler sets aside."""
    limits: Annotated[IntOrStringMap, Field(max_length=16)] = {}
    """What the kubelet enforces. GPUs are whole numbers of one family."""


class EnvVar(ApiModel):
    """A plain environment variable; references to Secrets are not offered."""

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Name of the variable. Names that begin with KTRDR_ are refused."""
    value: Annotated[str, Field(max_length=4096)] = ""
    """Its value."""


class Toleration(ApiModel):
    """As in core/v1."""

    key: Annotated[str, Field(max_length=317)] | None = None
    """Taint key; all keys when absent and operator is Exists."""
    operator: Literal["Exists", "Equal"] | None = None
    """Equal when absent."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """Taint value for Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; all effects when absent."""
    toleration_seconds: Annotated[int, Field(ge=0, le=2147483647)] | None = None
    """How long a NoExecute taint is borne."""


class Trainer(ApiModel):
    """How the trainer's pod is made and placed."""

    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Container image; the operator's setting when absent."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When the kubelet asks the registry; the operator's setting when absent."""
    image_pull_secrets: Annotated[
        tuple[LocalObjectReference, ...], Field(max_length=8, json_schema_extra=Atomic)
    ] = ()
    """Secrets with registry credentials."""
    resources: Resources = Resources()
    """Compute resources, GPUs included."""
    env: Annotated[tuple[EnvVar, ...], Field(max_length=32, json_schema_extra=Named)] = ()
    """Plain environment variables for the trainer container, each name once."""
    node_selector: Annotated[
        dict[Annotated[str, Field(max_length=317)], Annotated[str, Field(max_length=63)]],
        Field(max_length=16),
    ] = {}
    """Labels a node must have."""
    tolerations: Annotated[
        tuple[Toleration, ...], Field(max_length=16, json_schema_extra=Atomic)
    ] = ()
    """Taints the pod bears; `nvidia.com/gpu` is always borne."""
    priority_class_name: DnsName | None = None
    """PriorityClass of the pod."""
    runtime_class_name: DnsName | None = None
    """RuntimeClass of the pod."""
    scheduler_name: DnsName | None = None
    """Scheduler that places the pod."""


class Cancellation(ApiModel):
    """What happens between the wish to cancel and the end."""

    grace_period_seconds: Annotated[int, Field(ge=0, le=3600)] = 30
    """Seconds the trainer has to end by itself before its pod is deleted, then before SIGKILL."""
    checkpoint: CheckpointPolicy = CheckpointPolicy.BEST_EFFORT
    """Whether a checkpoint is saved on the way out."""


class CheckpointSettings(ApiModel):
    """When checkpoints are taken."""

    period_seconds: Annotated[int, Field(ge=1, le=86400)] = 300
    """Most seconds between two checkpoints."""


class ProgressSettings(ApiModel):
    """When progress is reported."""

    period_seconds: Annotated[int, Field(ge=1, le=60)] = 2
    """Least seconds between routine reports; a new stage, an epoch's end, the end go at once."""


class TrainingJobSpec(ApiModel):
    """What to train, on what, where to."""

    strategy: StrategySource
    """The strategy to train: exactly one of inline and configMapKeyRef."""
    symbols: (
        Annotated[tuple[Symbol, ...], Field(min_length=1, max_length=256, json_schema_extra=Unique)]
        | None
    ) = None
    """Instead of the strategy's symbols."""
    timeframes: (
        Annotated[
            tuple[Timeframe, ...], Field(min_length=1, max_length=8, json_schema_extra=Unique)
        ]
        | None
    ) = None
    """Instead of the strategy's timeframes."""
    start_date: Date | None = None
    """First day of data (UTC, inclusive), instead of the strategy's."""
    end_date: Date | None = None
    """Last day of data (UTC, inclusive), instead of the strategy's."""
    data: VolumeSource
    """Market data, `{SYMBOL}_{timeframe}.csv`; mounted read-only."""
    output: VolumeSource
    """Where models and checkpoints go."""
    trainer: Trainer = Trainer()
    """How the trainer's pod is made and placed."""
    cancel: bool = False
    """Set to true to stop; one way."""
    cancellation: Cancellation = Cancellation()
    """What happens between the wish to cancel and the end."""
    backoff_limit: Annotated[int, Field(ge=0, le=100)] = 3
    """Failures that are retried before the job fails; disruptions are not counted."""
    disruption_limit: Annotated[int, Field(ge=0, le=10000)] = 100
    """Disruptions in a row without a new checkpoint that are retried before the job fails. A
    disruption is an end that the trainer did not cause: eviction, preemption, drain, a deleted pod,
    a lost node, a pod rejected by the kubelet."""
    history_limit: Annotated[int, Field(ge=0, le=100)] = 3
    """Ended pods of earlier attempts that are kept for their logs."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=2147483647)] | None = None
    """Seconds after the job has finished until the TrainingJob is deleted, with its pods; files on
    the output volume stay. 0 deletes it immediately. Kept forever when absent."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """When checkpoints are taken."""
    progress: ProgressSettings = ProgressSettings()
    """When progress is reported."""


MUTABLE_SPEC_FIELDS: Final = frozenset({"cancel", "ttlSecondsAfterFinished"})
"""Camel-case names of the spec fields that may change after creation."""


class MetricValue(ApiModel):
    """One number as text: the API forbids floats."""

    name: Annotated[str, Field(max_length=63)]
    """Name, for example `train_loss`."""
    value: Annotated[str, Field(max_length=32)]
    """Decimal text."""


Metrics = Annotated[tuple[MetricValue, ...], Field(max_length=32, json_schema_extra=Named)]


class CheckpointStatus(ApiModel):
    """A durable checkpoint."""

    epoch: Annotated[int, Field(ge=0)]
    """Epoch it was taken in."""
    step: Annotated[int, Field(ge=0)]
    """Optimizer steps it holds."""
    path: Annotated[str, Field(max_length=512)]
    """Path on the output volume."""
    time: Time
    """When it became durable (trainer's clock)."""
    digest: Annotated[str, Field(max_length=71)]
    """`sha256:...` of its content."""


class Display(ApiModel):
    """Texts for the printer columns; programs read the numbers."""

    epoch: Annotated[str, Field(max_length=32)] = ""
    """For example `3/50`."""
    batch: Annotated[str, Field(max_length=32)] = ""
    """For example `120/640`."""
    eta: Annotated[str, Field(max_length=32)] = ""
    """For example `4m20s`."""
    loss: Annotated[str, Field(max_length=32)] = ""
    """Latest training loss."""


class Progress(ApiModel):
    """Where the training stands. Written by the trainer; the only part it may write."""

    attempt: Annotated[int, Field(ge=1)]
    """Attempt that reports."""
    pod_uid: Annotated[str, Field(max_length=64, alias="podUID")]
    """UID of the pod that reports."""
    stage: Stage
    """What the trainer is doing."""
    percentage: Annotated[int, Field(ge=0, le=100)] = 0
    """0-5 preparation, then by batches, 100 once stored."""
    current_epoch: Annotated[int, Field(ge=0)] = 0
    """Counts from 1."""
    total_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs the strategy asks for."""
    current_batch: Annotated[int, Field(ge=0)] = 0
    """In this epoch, counts from 1."""
    total_batches: Annotated[int, Field(ge=0)] = 0
    """Per epoch."""
    step: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps since the beginning."""
    samples_per_second: Annotated[int, Field(ge=0)] | None = None
    """Training throughput."""
    estimated_remaining_seconds: Annotated[int, Field(ge=0)] | None = None
    """At the present rate, all epochs."""
    metrics: Metrics = ()
    """Latest values."""
    message: Annotated[str, Field(max_length=256)] = ""
    """For people; programs read the fields."""
    last_update_time: Time
    """Trainer's clock."""
    checkpoint: CheckpointStatus | None = None
    """Last durable checkpoint of this attempt."""
    display: Display = Display()
    """Texts for the printer columns."""


class Condition(ApiModel):
    """As metav1.Condition."""

    type: Annotated[str, Field(max_length=64)]
    """Name of the condition."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, Field(min_length=1, max_length=64)]
    """A documented constant."""
    message: Annotated[str, Field(max_length=1024)]
    """For people."""
    last_transition_time: Time
    """When `status` last changed."""
    observed_generation: Annotated[int, Field(ge=-1)]
    """Generation of the spec this speaks of."""


class Waiting(ApiModel):
    """What the job is waiting for."""

    reason: Annotated[str, Field(max_length=64)]
    """A documented constant."""
    message: Annotated[str, Field(max_length=1024)]
    """The words of the scheduler, the kubelet or the API server."""
    since: Time
    """When this began."""
    retry_time: Time | None = None
    """When the operator tries again to create what the API server has refused."""


class CancellationReceipt(ApiModel):
    """Proof of a cancel: what was asked, seen, saved, stopped."""

    requested_time: Time
    """When the operator saw the wish."""
    acknowledged_time: Time | None = None
    """When the trainer's acknowledgement was seen."""
    stopped_time: Time | None = None
    """When the process was gone."""
    epoch: Annotated[int, Field(ge=0)] | None = None
    """Epoch it stopped in."""
    batch: Annotated[int, Field(ge=0)] | None = None
    """Batch it stopped after."""
    checkpoint: CheckpointStatus | None = None
    """What was saved."""


class Artifact(ApiModel):
    """The stored model."""

    path: Annotated[str, Field(max_length=512)]
    """Folder on the output volume."""
    digest: Annotated[str, Field(max_length=71)]
    """`sha256:...` over its files."""
    size_bytes: Annotated[int, Field(ge=0)]
    """All files together."""


class Result(ApiModel):
    """What came out; outlives the pods."""

    outcome: Annotated[str, Field(max_length=32)]
    """Succeeded: no other end leaves a model."""
    duration_seconds: Annotated[int, Field(ge=0)] = 0
    """Of the last attempt."""
    metrics: Metrics = ()
    """Final metrics."""
    artifact: Artifact | None = None
    """The stored model."""
    epochs_completed: Annotated[int, Field(ge=0)] = 0
    """Epochs trained, all attempts together."""
    best_epoch: Annotated[int, Field(ge=0)] | None = None
    """Epoch whose weights were kept."""


class Failure(ApiModel):
    """The root cause of the latest failure."""

    attempt: Annotated[int, Field(ge=0)]
    """Attempt that failed; 0 when none had started."""
    rank: Annotated[int, Field(ge=0)] = 0
    """Rank that failed first."""
    exit_code: int | None = None
    """Exit code of the container."""
    signal: int | None = None
    """Signal that ended it."""
    reason: Annotated[str, Field(max_length=64)]
    """A documented constant."""
    message: Annotated[str, Field(max_length=1024)]
    """What happened and what to do."""


class AttemptState(StrEnum):
    """State of the current attempt."""

    PENDING = "Pending"
    """Its trainer has not started."""
    RUNNING = "Running"
    """Its trainer has started and has not ended."""
    ENDED = "Ended"
    """It has ended; the next attempt follows at `retryTime`, or the job has finished."""


class TrainingJobStatus(ApiModel):
    """What happened so far. Everything a user must act on is here."""

    observed_generation: Annotated[int, Field(ge=-1)] = -1
    """Generation of the spec the operator has last looked at; -1 before its first visit."""
    phase: Annotated[str, Field(max_length=32)] = ""
    """For people; derived from the conditions."""
    reason: Annotated[str, Field(max_length=64)] = ""
    """Reason of the phase."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """The phase in words."""
    start_time: Time | None = None
    """When the trainer first started."""
    completion_time: Time | None = None
    """When the job ended."""
    attempt: Annotated[int, Field(ge=0)] = 0
    """Number of the current attempt, from 1. Incremented before the pod of a new attempt is
    created; attempt 1 is recorded once its pod is known. Unlike `retries` it also counts attempts
    after disruptions."""
    attempt_state: AttemptState | None = None
    """State of the current attempt; absent before the first one."""
    retries: Annotated[int, Field(ge=0)] = 0
    """Failures that were followed by another attempt; disruptions are not counted."""
    retry_time: Time | None = None
    """When the next attempt may start, after the current one has ended."""
    disruptions: Annotated[int, Field(ge=0)] = 0
    """Disruptions so far."""
    disruptions_since_checkpoint: Annotated[int, Field(ge=0)] = 0
    """Disruptions in a row without a new checkpoint; see `spec.disruptionLimit`."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs the job asks for."""
    pod_name: Annotated[str, Field(max_length=253)] | None = None
    """Pod of the present or last attempt."""
    host: Annotated[str, Field(max_length=253)] | None = None
    """Node the trainer runs on."""
    report_period_seconds: Annotated[int, Field(ge=1, le=REPORT_PERIOD_MAX_SECONDS)] | None = None
    """Least seconds between routine reports of the trainer, while many jobs run."""
    waiting: Waiting | None = None
    """What the job is waiting for, if anything."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=16,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
            },
        ),
    ] = ()
    """The state, for programs."""
    progress: Progress | None = None
    """Where the training stands; written by the trainer."""
    cancellation: CancellationReceipt | None = None
    """The receipt of a cancel."""
    checkpoint: CheckpointStatus | None = None
    """Last durable checkpoint."""
    result: Result | None = None
    """What came out."""
    failure: Failure | None = None
    """Root cause of the latest failure."""
    warnings: Annotated[
        tuple[Annotated[str, Field(max_length=WARNING_MAX_LENGTH)], ...],
        Field(max_length=WARNINGS_MAX, json_schema_extra=Atomic),
    ] = ()
    """Warnings of the trainer, from the result of the latest attempt."""


class TrainingJob(ApiModel):
    """Trains one strategy model."""

    spec: TrainingJobSpec
    """What to train, on what, where to. Only `cancel` can be changed after creation."""
    status: TrainingJobStatus = TrainingJobStatus()
    """What happened so far."""
