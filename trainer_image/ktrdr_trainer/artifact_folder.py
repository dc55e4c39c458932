"""Where artefacts lie, what they say about themselves, and how one appears all at once.

    {output}/models/{strategy}/{base timeframe}_v{N}/
        model.safetensors   parameters by name: layers.{i}.weight, layers.{i}.bias
        strategy.yaml       as the run got it, byte for byte
        features.json       feature ids in the order of the columns, and their scaling
        metrics.json        metrics and the history of the epochs
        metadata.json       job, seed, versions, architecture, class weights, digests of the rest
    {output}/models/{strategy}/{base timeframe}_latest -> {base timeframe}_v{N}

Called by `artifact`, and before torch is imported by whoever asks whether a job has finished.
"""

import errno
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from ktrdr_api.run_contract import ArtifactRef
from ktrdr_trainer import files

MODEL_FILE: Final = "model.safetensors"
STRATEGY_FILE: Final = "strategy.yaml"
FEATURES_FILE: Final = "features.json"
METRICS_FILE: Final = "metrics.json"
METADATA_FILE: Final = "metadata.json"
FORMAT_VERSION: Final = 1
COVERED_FILES: Final = (MODEL_FILE, STRATEGY_FILE, FEATURES_FILE, METRICS_FILE)
METRIC_GROUPS: Final = ("training_metrics", "validation_metrics", "test_metrics")


class Architecture(BaseModel):
    """The network, as `ModelConfig`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: int
    hidden_layers: tuple[int, ...]
    activation: Literal["relu", "tanh", "gelu"]
    dropout: float


class Metadata(BaseModel):
    """Where a model comes from; its digests cover every other file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = FORMAT_VERSION
    job_uid: str
    attempt: int
    created: str
    """RFC 3339, the trainer's clock."""
    strategy: str
    base_timeframe: str
    symbols: tuple[str, ...]
    timeframes: tuple[str, ...]
    seed: int
    best_epoch: int
    epochs_completed: int
    architecture: Architecture
    parameters_count: int
    class_weights: tuple[float, float, float]
    data_summary: dict[str, JsonValue]
    """What the pipeline read, dropped and cut."""
    versions: dict[str, str]
    sha256: dict[str, str]
    """By file name."""


def find_finished(output: Path, job_uid: str, *, strategy: str = "*") -> ArtifactRef | None:
    """The artefact that a job already stored; None if it has not finished.

    Folders that are no whole artefact of this format are passed over: they are somebody else's, or
    somebody has removed or changed a part.

    Args:
        output: The run's output folder.
        job_uid: Whose.
        strategy: Look under this name only.
    """
    for path in sorted((output / "models").glob(f"{strategy}/*_v*/{METADATA_FILE}")):
        try:
            metadata = Metadata.model_validate_json(path.read_bytes())
            if metadata.job_uid == job_uid and _is_whole(path.parent, metadata):
                return artifact_ref(output, path.parent)
        except (OSError, ValidationError):
            continue
    return None


def _is_whole(place: Path, metadata: Metadata) -> bool:
    return all(
        files.digest((place / name).read_bytes()) == metadata.sha256.get(name)
        for name in COVERED_FILES
    )


def publish(draft: Path, base_timeframe: str) -> Path:
    """Give the draft the next free number: renaming onto a folder that is not empty fails."""
    folder = draft.parent
    number = max(_numbers(folder, base_timeframe), default=0) + 1
    while True:
        place = folder / f"{base_timeframe}_v{number}"
        try:
            draft.rename(place)
        except OSError as error:
            if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                raise
            number += 1  # another job took it a moment ago
        else:
            files.sync_folder(folder)
            return place


def point_latest(place: Path) -> None:
    """Let `{tf}_latest` name the highest version, by renaming a link over it. Repeatable."""
    folder, base_timeframe = place.parent, place.name.rpartition("_v")[0]
    latest = folder / f"{base_timeframe}_latest"
    link = folder / f"{files.TEMPORARY_PREFIX}{place.name}_latest"
    # Looked at again: another job may have published meanwhile, and its link be older than ours.
    while True:
        newest = Path(f"{base_timeframe}_v{max(_numbers(folder, base_timeframe))}")
        if latest.is_symlink() and latest.readlink() == newest:
            break
        link.unlink(missing_ok=True)
        link.symlink_to(newest)
        link.replace(latest)
    files.sync_folder(folder)


def _numbers(folder: Path, base_timeframe: str) -> list[int]:
    prefix = f"{base_timeframe}_v"
    numbers = (path.name.removeprefix(prefix) for path in folder.glob(f"{prefix}*"))
    return [int(number) for number in numbers if number.isdecimal()]


def artifact_ref(output: Path, place: Path) -> ArtifactRef:
    """The digest is that of metadata.json, which holds the digests of all the others."""
    return ArtifactRef(
        path=place.relative_to(output).as_posix(),
        digest=f"sha256:{files.digest((place / METADATA_FILE).read_bytes())}",
        size_bytes=sum((place / name).stat().st_size for name in (*COVERED_FILES, METADATA_FILE)),
    )
