"""The trained model: from an outcome to a folder, and back into memory.

`ktrdr_trainer.training` stores an outcome here; `evaluate` and later serving load it again.
`artifact_folder` says what is in the folder.
"""

import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from pydantic import JsonValue
from safetensors import SafetensorError
from torch import Tensor

from ktrdr_api.errors import BadRequestError, DataError
from ktrdr_api.run_contract import ArtifactRef
from ktrdr_trainer import files
from ktrdr_trainer.artifact_folder import (
    COVERED_FILES,
    FEATURES_FILE,
    METADATA_FILE,
    METRIC_GROUPS,
    METRICS_FILE,
    MODEL_FILE,
    STRATEGY_FILE,
    Architecture,
    Metadata,
    artifact_ref,
    find_finished,
    point_latest,
    publish,
)
from ktrdr_trainer.loop import TrainingOutcome
from ktrdr_trainer.model import Mlp, ModelConfig, named_views
from ktrdr_trainer.slot import Clock

_PACKAGES: Final = ("ktrdr", "torch", "numpy", "safetensors", "ta-lib")


class Scaling(Protocol):
    """What the pipeline fitted on the training split."""

    def to_json(self) -> object:
        """A document that JSON can hold."""


@dataclass(frozen=True, slots=True)
class ArtifactSource:
    """What an artefact says besides the outcome.

    Attributes:
        job_uid: Whose result it is.
        attempt: Which attempt finished it.
        strategy: Name; the folder.
        strategy_text: As the run got it.
        base_timeframe: Begins the version's name.
        symbols: Trained on.
        timeframes: Trained on.
        seed: Of the training.
        feature_ids: In the order of the columns.
        scaling: Of the features.
        data_summary: What the pipeline read, dropped and cut.
    """

    job_uid: str
    attempt: int
    strategy: str
    strategy_text: str
    base_timeframe: str
    symbols: tuple[str, ...]
    timeframes: tuple[str, ...]
    seed: int
    feature_ids: tuple[str, ...]
    scaling: Scaling
    data_summary: Mapping[str, JsonValue]


class LoadedModel(NamedTuple):
    """An artefact in memory, verified."""

    model: Mlp
    metadata: Metadata
    feature_ids: tuple[str, ...]
    scaling: object
    """As `Scaling.to_json` gave it."""
    metrics: dict[str, dict[str, float]]
    """`training_metrics`, `validation_metrics`, `test_metrics` as recorded."""
    strategy_text: str

    @property
    def class_weights(self) -> Tensor:
        """(3,) as trained with; `metrics.evaluate` needs them."""
        return torch.tensor(self.metadata.class_weights)

    def predict(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Probabilities (n,3) of buy, hold, sell for scaled features (n,F).

        Raises:
            DataError: The features have another number of columns.
        """
        if features.ndim != 2 or features.shape[1] != len(self.feature_ids):
            raise DataError(
                f"features of shape {features.shape} do not fit the model: "
                f"it takes {len(self.feature_ids)} columns"
            )
        logits = self.model.forward(torch.from_numpy(np.ascontiguousarray(features)))
        result: npt.NDArray[np.float32] = torch.softmax(logits, 1).numpy()
        return result


def store(
    output: Path, outcome: TrainingOutcome, source: ArtifactSource, *, clock: Clock
) -> ArtifactRef:
    """Store a finished training. Repeatable: a job UID has at most one artefact.

    Raises:
        TemporaryError: The volume is full or failed.
        CheckpointError: The volume may not be written.
    """
    if finished := find_finished(output, source.job_uid, strategy=source.strategy):
        return finished
    folder = output / "models" / source.strategy
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f"{files.TEMPORARY_PREFIX}{source.job_uid}"
        shutil.rmtree(draft, ignore_errors=True)  # left by an attempt that was killed
        draft.mkdir()
        for name, content in _contents(outcome, source, clock).items():
            files.write_synced(draft / name, content)
        files.sync_folder(draft)
        place = publish(draft, source.base_timeframe)
        point_latest(place)
    return artifact_ref(output, place)


def load_artifact(path: Path) -> LoadedModel:
    """Load and verify an artefact, on the CPU; nothing is unpickled.

    Args:
        path: Its folder, or a link to it.

    Raises:
        BadRequestError: It is no artefact, or not as it was stored; names the file.
    """
    contents = _read(path)
    try:
        return _loaded(path, contents)
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise BadRequestError(f"{path}: not an artefact of this trainer: {error!r}") from error


def _loaded(path: Path, contents: Mapping[str, bytes]) -> LoadedModel:
    metadata = Metadata.model_validate_json(contents[METADATA_FILE])
    for name in COVERED_FILES:
        if files.digest(contents[name]) != metadata.sha256.get(name):
            raise BadRequestError(f"{path / name}: does not match its SHA-256; store it again")
    config = ModelConfig(**metadata.architecture.model_dump())
    tensors = safetensors.torch.load(contents[MODEL_FILE])
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != config.shapes:
        raise ValueError(f"{MODEL_FILE} does not have the tensors of its architecture")
    parameters = torch.empty(config.parameters_count)
    for name, view in named_views(config, parameters).items():
        view.copy_(tensors[name])
    features, metrics = json.loads(contents[FEATURES_FILE]), json.loads(contents[METRICS_FILE])
    return LoadedModel(
        model=Mlp(config, parameters),
        metadata=metadata,
        feature_ids=tuple(features["feature_ids"]),
        scaling=features["scaling"],
        metrics={name: metrics[name] for name in METRIC_GROUPS},
        strategy_text=contents[STRATEGY_FILE].decode(),
    )


def _read(path: Path) -> dict[str, bytes]:
    try:
        return {name: (path / name).read_bytes() for name in (*COVERED_FILES, METADATA_FILE)}
    except OSError as error:
        raise BadRequestError(
            f"{error.filename}: {error.strerror}; name the folder of an artefact, "
            "such as models/my_strategy/1h_v1"
        ) from error


def _contents(outcome: TrainingOutcome, source: ArtifactSource, clock: Clock) -> dict[str, bytes]:
    model = outcome.model
    if model is None:
        raise ValueError("a stopped training has no model to store")
    views = named_views(model.config, model.parameters)
    features = {"feature_ids": source.feature_ids, "scaling": source.scaling.to_json()}
    metrics = {
        **{name: getattr(outcome, name) for name in METRIC_GROUPS},
        "history": [record.model_dump() for record in outcome.history],
    }
    contents = {
        MODEL_FILE: safetensors.torch.save({name: view.clone() for name, view in views.items()}),
        STRATEGY_FILE: source.strategy_text.encode(),
        FEATURES_FILE: _json(features),
        METRICS_FILE: _json(metrics),
    }
    metadata = Metadata(
        job_uid=source.job_uid,
        attempt=source.attempt,
        created=files.rfc3339(clock.now()),
        strategy=source.strategy,
        base_timeframe=source.base_timeframe,
        symbols=source.symbols,
        timeframes=source.timeframes,
        seed=source.seed,
        best_epoch=outcome.best_epoch or 0,
        epochs_completed=outcome.epochs_completed,
        architecture=Architecture.model_validate(asdict(model.config)),
        parameters_count=model.config.parameters_count,
        class_weights=tuple(outcome.class_weights.tolist()),
        data_summary=dict(source.data_summary),
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
        },
        sha256={name: files.digest(content) for name, content in contents.items()},
    )
    return {**contents, METADATA_FILE: _json(metadata.model_dump(mode="json"))}


def _json(document: object) -> bytes:
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()
