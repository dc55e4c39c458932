"""The run contract: RunRequest and RunResult, the only interface between a trainer and its starter.

The operator (or a user on the command line) writes a RunRequest as `request.json`. The trainer
reads it and ends with a RunResult: in full beside the model, and in at most 4 KiB in the pod's
termination message, so that the outcome survives an unreachable API server.

The operator copies parts of a RunResult into the TrainingJob's status. The trainer's image is the
user's choice, so every field is validated here as strictly as the API server validates the status:
one invalid field would make it reject the whole status update.
"""

import re
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

TERMINATION_MESSAGE_MAX_BYTES: Final = 4096
"""The kubelet cuts longer messages."""
MESSAGE_MAX_LENGTH: Final = 1024
WARNINGS_MAX: Final = 8
WARNING_MAX_LENGTH: Final = 256
COUNT_MAX: Final = 2**53
"""Largest whole number that every JSON reader keeps exact."""
RFC_3339_PATTERN: Final = (
    r"^[1-8][0-9]{3}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?"
    r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
)
"""Times that Python can read and convert to UTC, too. The CRD has the same pattern, because the
API server's `format: date-time` accepts more than RFC 3339 in one place (any character before the
fraction) and less in another (no leap seconds).
Source: IsDateTime in k8s.io/kube-openapi/pkg/validation/strfmt/time.go."""

ENV_POD_UID: Final = "KTRDR_POD_UID"
"""UID of the trainer's pod. Not part of the request, because it is unknown before the pod exists.
"""


class ExitCode(IntEnum):
    """Exit codes of the trainer; any other code, 137 included, is a failure."""

    COMPLETE = 0
    BAD_REQUEST = 2
    """Bad request or strategy: never retried."""
    BAD_DATA = 3
    """Bad market data: never retried."""
    STOPPED = 10
    """Stopped on request; a checkpoint was saved unless the request says Never."""
    TEMPORARY = 75
    """A temporary condition (EX_TEMPFAIL): retried and counted."""
    TERMINATED = 143
    """SIGTERM, checkpoint saved: a disruption, retried and not counted."""


class Stage(StrEnum):
    """Stage of a run; Cancelling follows a cancel request at any point."""

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
    """The TrainingJob that a run belongs to; `uid` distinguishes jobs with the same name."""

    namespace: str
    name: str
    uid: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9-]+$")]


class Overrides(RunModel):
    """Values of the TrainingJob that replace those of the strategy's `training_data`."""

    symbols: tuple[str, ...] | None = None
    timeframes: tuple[str, ...] | None = None
    start_date: str | None = None
    end_date: str | None = None


class RunRequest(RunModel):
    """Input of one run; written once per attempt, never changed."""

    job: JobIdentity
    attempt: Annotated[int, Field(ge=1)]
    strategy_file: str
    """Path of the strategy, relative to the request's folder."""
    strategy_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the strategy's bytes; the run fails if the file has another one."""
    overrides: Overrides = Overrides()
    data_folder: str
    """Folder with `{SYMBOL}_{timeframe}.csv`; never written."""
    output_folder: str
    """Folder for `models/` and `checkpoints/`."""
    checkpoint_period_seconds: Annotated[int, Field(ge=1)] = 300
    progress_period_seconds: Annotated[int, Field(ge=1, le=60)] = 2
    checkpoint_on_cancel: CheckpointPolicy = CheckpointPolicy.BEST_EFFORT
    reporting: Literal["kubernetes", "file", "none"] = "none"
    """Where progress goes: the TrainingJob's status, `progress.json` in the output folder, none."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs that the pod requests. If it is above 0 and PyTorch finds no GPU, the run fails
    immediately instead of training on the CPU."""


def printable(text: str) -> str:
    """Replace control, bidirectional and other invisible characters, and surrogates, by spaces."""
    return "".join(character if character.isprintable() else " " for character in text)


def _printable(value: object) -> object:
    return printable(value) if isinstance(value, str) else value


def _encodable(value: object) -> object:
    """Replace lone surrogates (bytes of a file name that are not UTF-8): JSON cannot hold them."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def _rfc3339(text: str) -> str:
    if re.fullmatch(RFC_3339_PATTERN, text) is None:
        raise ValueError("not an RFC 3339 time such as 2026-01-31T08:30:00Z")
    datetime.fromisoformat(text)  # raises for a day that the month does not have
    return text


Count = Annotated[int, Field(ge=0, le=COUNT_MAX)]
OutputPath = Annotated[str, Field(max_length=512, pattern=r"^[A-Za-z0-9._/-]+$")]
"""Path relative to the output folder, from strategy name, job UID and numbers."""
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Time = Annotated[str, Field(max_length=64), AfterValidator(_rfc3339)]
"""RFC 3339 time that both the API server and `datetime.fromisoformat` accept."""
WarningText = Annotated[str, BeforeValidator(_printable), Field(max_length=WARNING_MAX_LENGTH)]


class CheckpointRef(RunModel):
    """A durable checkpoint, from which training can resume."""

    epoch: Count
    step: Count
    path: OutputPath
    time: Time
    """When it became durable, by the trainer's clock."""
    digest: Digest


class ArtifactRef(RunModel):
    """The stored model."""

    path: OutputPath
    digest: Digest
    size_bytes: Count


class Metric(RunModel):
    """One number as text, because the API does not allow floats."""

    name: Annotated[str, Field(max_length=63)]
    value: Annotated[str, Field(max_length=32)]


class Outcome(StrEnum):
    """How a run ended, according to the trainer."""

    SUCCEEDED = "Succeeded"
    CANCELLED = "Cancelled"
    TERMINATED = "Terminated"
    FAILED = "Failed"


class RunResult(RunModel):
    """Outcome of a run. All fields except metrics, warnings and message fit into 4 KiB."""

    job_uid: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9-]*$")]
    """UID of the TrainingJob; empty if the request could not be read."""
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
    warnings: Annotated[tuple[WarningText, ...], Field(max_length=WARNINGS_MAX)] = ()
    """Problems that did not end the run and that the user should know, oldest first."""

    def termination_message(self) -> str:
        """Serialize to at most 4 KiB of JSON, as much of the result as fits.

        Left out, until it fits: the metrics, then warnings from the last one, then the end of the
        message.
        """
        result = self
        while len((text := result._json()).encode()) > TERMINATION_MESSAGE_MAX_BYTES:
            result = result._shortened()
        return text

    def _shortened(self) -> "RunResult":
        if self.metrics:
            return self.model_copy(update={"metrics": ()})
        if self.warnings:
            return self.model_copy(update={"warnings": self.warnings[:-1]})
        return self.model_copy(update={"message": self.message[: len(self.message) // 2]})

    def _json(self) -> str:
        return self.model_dump_json(by_alias=True, exclude_none=True)
