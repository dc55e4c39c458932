"""What a run is told and what it answers: the one door between a trainer and whoever starts it.

The operator writes a RunRequest into a ConfigMap, a person writes one into a file; the trainer
reads it, and its last act is a RunResult: in full beside the model, and at most 4 KiB in the pod's
termination message, so that the outcome survives an unreachable API server.
"""

from enum import IntEnum, StrEnum
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

TERMINATION_MESSAGE_MAX_BYTES: Final = 4096
"""The kubelet cuts longer messages."""
MESSAGE_MAX_LENGTH: Final = 1024
COUNT_MAX: Final = 2**53
"""Whole numbers that every JSON reader keeps exact. What a run says of itself is bounded here,
because the API server refuses a status with a number or a time that is none."""
_RFC_3339: Final = r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,9})?(Z|[+-]\d{2}:\d{2})$"

ENV_POD_UID: Final = "KTRDR_POD_UID"
"""Nobody knows it before the pod exists; all else is in the request."""


class ExitCode(IntEnum):
    """Exit codes of the trainer; anything else, 137 included, is a failure."""

    COMPLETE = 0
    BAD_REQUEST = 2
    """Bad request or strategy: never retried."""
    BAD_DATA = 3
    """Bad market data: never retried."""
    STOPPED = 10
    """Stopped on request, checkpoint saved unless it was not wanted."""
    TEMPORARY = 75
    """A condition that may pass (EX_TEMPFAIL): retried and counted."""
    TERMINATED = 143
    """SIGTERM, checkpoint saved: a disruption, retried and not counted."""


class Stage(StrEnum):
    """What the trainer is doing."""

    PREPARING = "Preparing"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    SAVING = "Saving"
    CANCELLING = "Cancelling"
    DONE = "Done"


class CheckpointPolicy(StrEnum):
    """Whether a cancelled run saves a checkpoint before it ends."""

    BEST_EFFORT = "BestEffort"
    NEVER = "Never"


class RunModel(BaseModel):
    """Base: frozen, camelCase on the wire, unknown keys refused."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid"
    )


class JobIdentity(RunModel):
    """Which TrainingJob a run belongs to. `uid` tells same-named jobs apart."""

    namespace: str
    name: str
    uid: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9-]+$")]


class Overrides(RunModel):
    """What the job says instead of the strategy's `training_data`."""

    symbols: tuple[str, ...] | None = None
    timeframes: tuple[str, ...] | None = None
    start_date: str | None = None
    end_date: str | None = None


class RunRequest(RunModel):
    """Everything a trainer needs to know; written once per attempt, never changed."""

    job: JobIdentity
    attempt: Annotated[int, Field(ge=1)]
    strategy_file: str
    """Path of the strategy, relative to the request's folder."""
    strategy_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the strategy's bytes: the run refuses another text."""
    overrides: Overrides = Overrides()
    data_folder: str
    """Folder with `{SYMBOL}_{timeframe}.csv`; only read."""
    output_folder: str
    """Folder for `models/` and `checkpoints/`."""
    checkpoint_period_seconds: Annotated[int, Field(ge=1)] = 300
    progress_period_seconds: Annotated[int, Field(ge=1, le=60)] = 2
    checkpoint_on_cancel: CheckpointPolicy = CheckpointPolicy.BEST_EFFORT
    reporting: Literal["kubernetes", "file", "none"] = "none"
    """Where progress goes: the TrainingJob's status, `progress.json` in the output folder, none."""


def _encodable(value: object) -> object:
    """Names of files may hold lone surrogates, which no JSON can say."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


Count = Annotated[int, Field(ge=0, le=COUNT_MAX)]
OutputPath = Annotated[str, Field(max_length=512, pattern=r"^[A-Za-z0-9._/-]+$")]
"""Relative to the output folder; made of strategy name, job UID and numbers."""
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class CheckpointRef(RunModel):
    """A durable checkpoint: where training can go on."""

    epoch: Count
    step: Count
    path: OutputPath
    time: Annotated[str, Field(max_length=64, pattern=_RFC_3339)]
    """RFC 3339, trainer's clock."""
    digest: Digest


class ArtifactRef(RunModel):
    """The stored model."""

    path: OutputPath
    digest: Digest
    size_bytes: Count


class Metric(RunModel):
    """One number as text: the API forbids floats."""

    name: Annotated[str, Field(max_length=63)]
    value: Annotated[str, Field(max_length=32)]


class Outcome(StrEnum):
    """How a run ended, in its own words."""

    SUCCEEDED = "Succeeded"
    CANCELLED = "Cancelled"
    TERMINATED = "Terminated"
    FAILED = "Failed"


class RunResult(RunModel):
    """The last word of a run. Every field is bounded: all but metrics and message fit 4 KiB."""

    job_uid: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9-]*$")]
    """Empty when the request could not be read."""
    attempt: Annotated[int, Field(ge=0, le=2**31 - 1)]
    outcome: Outcome
    exit_code: Annotated[int, Field(ge=0, le=255)]
    reason: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z]+$")]
    """A `conditions.Reason`."""
    message: Annotated[str, BeforeValidator(_encodable), Field(max_length=MESSAGE_MAX_LENGTH)] = ""
    epoch: Count = 0
    batch: Count = 0
    step: Count = 0
    epochs_completed: Count = 0
    best_epoch: Count | None = None
    duration_seconds: Count = 0
    metrics: Annotated[tuple[Metric, ...], Field(max_length=32)] = ()
    checkpoint: CheckpointRef | None = None
    artifact: ArtifactRef | None = None

    def termination_message(self) -> str:
        """At most 4 KiB of JSON: metrics are dropped, then the message is cut, until it fits."""
        text, cut = self._json(), self.model_copy(update={"metrics": ()})
        while len(text.encode()) > TERMINATION_MESSAGE_MAX_BYTES:
            text = cut._json()
            cut = cut.model_copy(update={"message": cut.message[: len(cut.message) // 2]})
        return text

    def _json(self) -> str:
        return self.model_dump_json(by_alias=True, exclude_none=True)
