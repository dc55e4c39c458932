"""The TrainingJob resource: spec and status as users write and read them.

`crd.py` generates the CRD from these models, with their docstrings as the texts of `kubectl
explain`; the operator parses each object into them once and has typed values from there on. Every
field here is implemented. What types cannot say is in `crd_rules.py`, `spec.trainer` in
`trainer_pod.py`.
"""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field

from ktrdr_api import strategy_sections
from ktrdr_api.api_fields import ApiModel as ApiModel  # other packages import it from here
from ktrdr_api.api_fields import (
    Atomic,
    ConfigMapKey,
    Date,
    DnsName,
    Named,
    SubPath,
    Time,
    Unique,
)
from ktrdr_api.run_contract import (
    WARNING_MAX_LENGTH,
    WARNINGS_MAX,
    CheckpointPolicy,
    Stage,
)
from ktrdr_api.strategy_sections import Symbol, Timeframe
from ktrdr_api.trainer_pod import Trainer

STRATEGY_MAX_BYTES: Final = strategy_sections.MAX_BYTES
REPORT_PERIOD_MAX_SECONDS: Final = 3600


class ConfigMapKeyRef(ApiModel):
    """Key of a ConfigMap in the job's namespace."""

    name: DnsName
    """Name of the ConfigMap."""
    key: ConfigMapKey
    """Key of the ConfigMap whose value is the strategy, such as strategy.yaml."""


class StrategySource(ApiModel):
    """Source of the strategy: exactly one of inline and configMapKeyRef."""

    inline: Annotated[str, Field(min_length=1, max_length=STRATEGY_MAX_BYTES)] | None = None
    """Strategy as YAML text of at most 64 KiB. Above 8 KiB prefer a ConfigMap: the API server
    stores the whole TrainingJob again with every progress report."""
    config_map_key_ref: ConfigMapKeyRef | None = None
    """ConfigMap that holds the strategy, at most 64 KiB. Read once, before the first attempt; later
    changes of the ConfigMap do not affect this job. If it does not exist, the job waits for it."""


class ClaimRef(ApiModel):
    """PersistentVolumeClaim in the job's namespace."""

    claim_name: DnsName
    """Name of the claim. If it does not exist, the job waits for it."""
    sub_path: SubPath | None = None
    """Folder of the volume, relative to its root and without `..`; the whole volume when absent."""


class VolumeSource(ApiModel):
    """Volume that is mounted into the trainer's pod."""

    persistent_volume_claim: ClaimRef
    """PersistentVolumeClaim to mount."""


class Cancellation(ApiModel):
    """How a running trainer is stopped after a cancel request or after `kubectl delete`."""

    grace_period_seconds: Annotated[int, Field(ge=0, le=3600)] = 30
    """Seconds from the cancel request until the trainer's pod is deleted (SIGTERM), and from there
    until SIGKILL. 0 deletes the pod immediately."""
    checkpoint: CheckpointPolicy = CheckpointPolicy.BEST_EFFORT
    """Whether the trainer saves a checkpoint before it stops: BestEffort or Never."""


class CheckpointSettings(ApiModel):
    """When the trainer saves checkpoints."""

    period_seconds: Annotated[int, Field(ge=1, le=86400)] = 300
    """Maximum seconds between two checkpoints. A job that is interrupted loses at most this much
    training time."""


class ProgressSettings(ApiModel):
    """When the trainer reports progress."""

    period_seconds: Annotated[int, Field(ge=1, le=60)] = 2
    """Minimum seconds between routine progress reports. Stage changes, the end of an epoch and the
    end of the run are reported immediately. When many jobs run, `status.reportPeriodSeconds` sets a
    longer interval."""


class TrainingJobSpec(ApiModel):
    """Strategy, data, output and trainer of a job.

    Immutable after creation, except `cancel` and `ttlSecondsAfterFinished`.
    """

    strategy: StrategySource
    """Strategy to train: exactly one of inline and configMapKeyRef."""
    symbols: (
        Annotated[tuple[Symbol, ...], Field(min_length=1, max_length=256, json_schema_extra=Unique)]
        | None
    ) = None
    """Symbols to train on. Those of the strategy when absent."""
    timeframes: (
        Annotated[
            tuple[Timeframe, ...], Field(min_length=1, max_length=8, json_schema_extra=Unique)
        ]
        | None
    ) = None
    """Timeframes to train on. Those of the strategy when absent."""
    start_date: Date | None = None
    """First day of market data to train on (UTC, inclusive). The strategy's when absent."""
    end_date: Date | None = None
    """Last day of market data to train on (UTC, inclusive). The strategy's when absent."""
    data: VolumeSource
    """Volume with the market data, in files named `{SYMBOL}_{timeframe}.csv`; mounted read-only."""
    output: VolumeSource
    """Volume for models and checkpoints. Its files stay when the TrainingJob is deleted."""
    trainer: Trainer = Trainer()
    """Image, resources and placement of the trainer's pod."""
    cancel: bool = False
    """Set to true to cancel the job; cannot be reset. The trainer stops at the next batch and saves
    a checkpoint; the TrainingJob stays, with the receipt in `status.cancellation`."""
    cancellation: Cancellation = Cancellation()
    """How a running trainer is stopped after a cancel request or after `kubectl delete`."""
    backoff_limit: Annotated[int, Field(ge=0, le=100)] = 3
    """Number of failures that are retried; the next failure ends the job. Disruptions are not
    counted."""
    disruption_limit: Annotated[int, Field(ge=0, le=10000)] = 100
    """Number of disruptions in a row without a new checkpoint that are retried; the next one fails
    the job. A disruption is an end that the trainer did not cause: eviction, preemption, drain, a
    deleted pod, a lost node, a pod rejected by the kubelet."""
    history_limit: Annotated[int, Field(ge=0, le=100)] = 3
    """Number of ended pods of previous attempts that are kept for their logs; older ones are
    deleted."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=2147483647)] | None = None
    """Seconds from the end of the job until the TrainingJob is deleted, with its pods; files on the
    output volume stay. 0 deletes it immediately; kept forever when absent. Can be changed at any
    time."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """When the trainer saves checkpoints."""
    progress: ProgressSettings = ProgressSettings()
    """When the trainer reports progress."""


MUTABLE_SPEC_FIELDS: Final = frozenset({"cancel", "ttlSecondsAfterFinished"})
"""Camel-case names of the spec fields that may change after creation."""


class MetricValue(ApiModel):
    """Number as decimal text, because the Kubernetes API conventions do not allow floats."""

    name: Annotated[str, Field(max_length=63)]
    """Name of the metric, such as train_loss."""
    value: Annotated[str, Field(max_length=32)]
    """Value as decimal text, such as 0.6931."""


Metrics = Annotated[tuple[MetricValue, ...], Field(max_length=32, json_schema_extra=Named)]


class CheckpointStatus(ApiModel):
    """Checkpoint that is complete on the output volume, so that training can resume from it."""

    epoch: Annotated[int, Field(ge=0)]
    """Epoch in which it was saved, from 1."""
    step: Annotated[int, Field(ge=0)]
    """Optimizer steps since the start of training that it contains."""
    path: Annotated[str, Field(max_length=512)]
    """Path relative to the output folder."""
    time: Time
    """Time at which it was complete, by the trainer's clock."""
    digest: Annotated[str, Field(max_length=71)]
    """SHA-256 of its content, as `sha256:` and 64 hex digits."""


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
    progress: Annotated[str, Field(max_length=32)] = ""
    """For example `37%`."""


class Progress(ApiModel):
    """Latest progress report. Written by the trainer, which may write no other part of status."""

    attempt: Annotated[int, Field(ge=1)]
    """Attempt that reports."""
    pod_uid: Annotated[str, Field(max_length=64, alias="podUID")]
    """UID of the pod that reports."""
    stage: Stage
    """What the trainer is doing."""
    percentage: Annotated[int, Field(ge=0, le=100)] = 0
    """0 to 5 during preparation, then by batches; 100 once the model is stored."""
    current_epoch: Annotated[int, Field(ge=0)] = 0
    """Current epoch, from 1; 0 before training."""
    total_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs the strategy asks for."""
    current_batch: Annotated[int, Field(ge=0)] = 0
    """Batches done in the current epoch."""
    total_batches: Annotated[int, Field(ge=0)] = 0
    """Batches per epoch."""
    step: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps since the start of the job, over all attempts."""
    samples_per_second: Annotated[int, Field(ge=0)] | None = None
    """Training throughput."""
    estimated_remaining_seconds: Annotated[int, Field(ge=0)] | None = None
    """Seconds until the last epoch ends, at the current rate; absent while there is no rate."""
    metrics: Metrics = ()
    """Latest values."""
    message: Annotated[str, Field(max_length=256)] = ""
    """Position and stage in words; programs read the other fields."""
    last_update_time: Time
    """When this was reported, by the trainer's clock."""
    checkpoint: CheckpointStatus | None = None
    """Last durable checkpoint of this attempt."""
    display: Display = Display()
    """Texts for the printer columns."""


class Condition(ApiModel):
    """Condition as in metav1: one aspect of the state, for programs and `kubectl wait`."""

    type: Annotated[str, Field(max_length=64)]
    """Name of the condition, such as Complete."""
    status: Literal["True", "False", "Unknown"]
    """Whether the condition is True or False."""
    reason: Annotated[str, Field(min_length=1, max_length=64)]
    """Documented constant that programs may match; see docs/reference/conditions.md."""
    message: Annotated[str, Field(max_length=1024)]
    """Explanation for users; empty while the condition is False."""
    last_transition_time: Time
    """Time at which `status` last changed."""
    observed_generation: Annotated[int, Field(ge=-1)]
    """Value of metadata.generation that this condition is based on."""


class Waiting(ApiModel):
    """Reason why the trainer has not started yet."""

    reason: Annotated[str, Field(max_length=64)]
    """Documented constant that programs may match; see docs/reference/conditions.md."""
    message: Annotated[str, Field(max_length=1024)]
    """What is missing and who supplies it, with the message of the scheduler, the kubelet or the
    API server."""
    since: Time
    """Time since which the job waits for this reason."""
    retry_time: Time | None = None
    """Time of the next try, if the API server has rejected the creation of a pod or another object
    of this job; absent otherwise."""


class CancellationReceipt(ApiModel):
    """Receipt of a cancel request: when it was received and obeyed, and what was saved."""

    requested_time: Time
    """Time at which the operator received the cancel request."""
    acknowledged_time: Time | None = None
    """Time at which the operator received the trainer's acknowledgement; absent without one."""
    stopped_time: Time | None = None
    """Time at which the trainer's process no longer existed; absent before."""
    epoch: Annotated[int, Field(ge=0)] | None = None
    """Epoch in which training stopped, from 1; absent if it is unknown."""
    batch: Annotated[int, Field(ge=0)] | None = None
    """Last batch of that epoch that was trained, from 1; absent if it is unknown."""
    checkpoint: CheckpointStatus | None = None
    """Latest durable checkpoint when the job stopped; absent if there is none."""


class Artifact(ApiModel):
    """Trained model on the output volume."""

    path: Annotated[str, Field(max_length=512)]
    """Folder of the model, relative to the output folder."""
    digest: Annotated[str, Field(max_length=71)]
    """SHA-256 over all its files, as `sha256:` and 64 hex digits."""
    size_bytes: Annotated[int, Field(ge=0)]
    """Total size of its files in bytes."""


class Result(ApiModel):
    """Result of a successful job; stays when the pods are deleted."""

    outcome: Annotated[str, Field(max_length=32)]
    """Always Succeeded: a job that fails or is cancelled has no result."""
    duration_seconds: Annotated[int, Field(ge=0)] = 0
    """Duration of the last attempt in seconds."""
    metrics: Metrics = ()
    """Final metrics of the stored model."""
    artifact: Artifact | None = None
    """Trained model on the output volume."""
    epochs_completed: Annotated[int, Field(ge=0)] = 0
    """Number of epochs trained, over all attempts."""
    best_epoch: Annotated[int, Field(ge=0)] | None = None
    """Epoch whose weights the model has, from 1."""


class Failure(ApiModel):
    """Root cause of the latest failure, whether or not it was retried."""

    attempt: Annotated[int, Field(ge=0)]
    """Attempt that failed; 0 if none had started."""
    rank: Annotated[int, Field(ge=0)] = 0
    """Rank of the process that failed first."""
    exit_code: int | None = None
    """Exit code of the trainer container; absent if it is unknown."""
    signal: int | None = None
    """Number of the signal that ended the trainer, such as 9 (SIGKILL); absent if none did."""
    reason: Annotated[str, Field(max_length=64)]
    """Documented constant that programs may match; see docs/reference/conditions.md."""
    message: Annotated[str, Field(max_length=1024)]
    """What happened and what to do."""


class AttemptState(StrEnum):
    """State of the current attempt."""

    PENDING = "Pending"
    """The trainer has not started."""
    RUNNING = "Running"
    """The trainer has started and has not ended."""
    ENDED = "Ended"
    """The attempt has ended; the next one starts at `retryTime`, or the job has finished."""


class TrainingJobStatus(ApiModel):
    """State of a job: everything a user may have to act on."""

    observed_generation: Annotated[int, Field(ge=-1)] = -1
    """Value of metadata.generation that this status is based on; -1 before the operator's first
    update."""
    phase: Annotated[str, Field(max_length=32)] = ""
    """State in one word, for users; programs read the conditions, from which it is derived. See
    docs/reference/conditions.md."""
    reason: Annotated[str, Field(max_length=64)] = ""
    """Documented constant that programs may match: why the job is in this phase."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """Explanation of the phase for users, with what to do next."""
    start_time: Time | None = None
    """Time at which the trainer of the first attempt started; absent before. Never changes."""
    completion_time: Time | None = None
    """Time at which the job finished: completed, failed or cancelled; absent before."""
    attempt: Annotated[int, Field(ge=0)] = 0
    """Number of the current attempt, from 1. Incremented before the pod of a new attempt is
    created; attempt 1 is recorded once its pod is known. Unlike `retries` it also counts attempts
    after disruptions."""
    attempt_state: AttemptState | None = None
    """State of the current attempt; absent before the first one."""
    retries: Annotated[int, Field(ge=0)] = 0
    """Number of failures that were followed by another attempt; see `spec.backoffLimit`.
    Disruptions are not counted."""
    retry_time: Time | None = None
    """Earliest start of the next attempt, once the current one has ended; absent otherwise."""
    disruptions: Annotated[int, Field(ge=0)] = 0
    """Number of disruptions since the job was created."""
    disruptions_since_checkpoint: Annotated[int, Field(ge=0)] = 0
    """Number of disruptions in a row without a new checkpoint; see `spec.disruptionLimit`."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """Number of GPUs in `spec.trainer.resources.limits`."""
    pod_name: Annotated[str, Field(max_length=253)] | None = None
    """Name of the current attempt's pod, for `kubectl logs`; after the end, of the last one."""
    host: Annotated[str, Field(max_length=253)] | None = None
    """Node of the current attempt's pod; absent until the pod is scheduled."""
    report_period_seconds: Annotated[int, Field(ge=1, le=REPORT_PERIOD_MAX_SECONDS)] | None = None
    """Minimum seconds between routine progress reports, set by the operator while many jobs run, so
    that all reports together do not overload the API server. `spec.progress.periodSeconds` applies
    when absent."""
    waiting: Waiting | None = None
    """Reason why the trainer has not started yet; absent once it has."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=8, json_schema_extra=Atomic)] = ()
    """State for programs and `kubectl wait`; all eight types are present from the operator's first
    update."""
    progress: Progress | None = None
    """Latest progress report of the trainer; absent before the first one."""
    cancellation: CancellationReceipt | None = None
    """Receipt of a cancel request; absent without one."""
    checkpoint: CheckpointStatus | None = None
    """Latest durable checkpoint of all attempts, updated when an attempt ends; while the trainer
    runs, `progress.checkpoint` may be newer. Absent without one."""
    result: Result | None = None
    """Result of the job; absent unless it has succeeded."""
    failure: Failure | None = None
    """Root cause of the latest failure; absent without one."""
    warnings: Annotated[
        tuple[Annotated[str, Field(max_length=WARNING_MAX_LENGTH)], ...],
        Field(max_length=WARNINGS_MAX, json_schema_extra=Atomic),
    ] = ()
    """Problems that did not end the latest attempt and that a user should know, such as skipped
    rows of market data; reported by the trainer when it ends."""


class TrainingJob(ApiModel):
    """Training of one strategy's model, in a pod that the operator starts, retries and cancels."""

    spec: TrainingJobSpec
    """Strategy, data, output and trainer of a job. Immutable after creation, except `cancel` and
    `ttlSecondsAfterFinished`."""
    status: TrainingJobStatus = TrainingJobStatus()
    """State of the job, written by the operator; `progress` is written by the trainer."""
