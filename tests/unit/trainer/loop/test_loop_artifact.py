"""Artefacts: whole or absent, verified, one a job; what is loaded reproduces what was measured."""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save
from torch import nn

from ktrdr_api.errors import BadRequestError, DataError, TemporaryError
from ktrdr_trainer import files
from ktrdr_trainer.artifact import ArtifactSource, load_artifact, store
from ktrdr_trainer.artifact_folder import METADATA_FILE, find_finished, point_latest
from ktrdr_trainer.dataset import rows_on
from ktrdr_trainer.loop import TrainingOutcome
from ktrdr_trainer.metrics import evaluate
from ktrdr_trainer.model import ModelConfig
from loop_builders import Splits, StopAfter, run_training, splits, still_clock

STRATEGY_TEXT = "name: trend  # with a comment\nversion: '3.0'\n"


class ScalingStub:
    """Scaling is the pipeline's; an artefact only keeps what it says."""

    def to_json(self) -> object:
        return {"1h_feature_0": {"mean": 0.1, "std": 2.0}}


def source(uid: str = "job-1") -> ArtifactSource:
    return ArtifactSource(
        job_uid=uid,
        attempt=2,
        strategy="trend",
        strategy_text=STRATEGY_TEXT,
        base_timeframe="1h",
        symbols=("BTC",),
        timeframes=("1h", "1d"),
        seed=7,
        feature_ids=splits().feature_ids,
        scaling=ScalingStub(),
        data_summary={"rows": {"BTC": 450}},
    )


@pytest.fixture(scope="module")
def dataset() -> Splits:
    return splits()


@pytest.fixture(scope="module")
def outcome(dataset: Splits, tmp_path_factory: pytest.TempPathFactory) -> TrainingOutcome:
    torch.set_num_threads(1)
    return run_training(tmp_path_factory.mktemp("training"), dataset=dataset)


def test_artifact_loaded_reproduces_the_recorded_test_metrics(
    tmp_path: Path, outcome: TrainingOutcome, dataset: Splits
) -> None:
    ref = store(tmp_path, outcome, source(), clock=still_clock())
    loaded = load_artifact(tmp_path / ref.path)
    got = evaluate(
        loaded.model, rows_on(dataset.test, torch.device("cpu"), name="test"), loaded.class_weights
    )
    want = loaded.metrics["test_metrics"]
    assert want == outcome.test_metrics
    assert (got.pop("loss"), got.pop("accuracy")) == (want["test_loss"], want["test_accuracy"])
    assert got == {name: want[name] for name in got}


def test_artifact_files_say_where_the_model_comes_from(
    tmp_path: Path, outcome: TrainingOutcome
) -> None:
    ref = store(tmp_path, outcome, source(), clock=still_clock())
    folder = tmp_path / ref.path
    assert ref.path == "models/trend/1h_v1"
    assert sorted(path.name for path in folder.iterdir()) == [
        "features.json", "metadata.json", "metrics.json", "model.safetensors", "strategy.yaml",
    ]  # fmt: skip
    assert (folder / "strategy.yaml").read_text() == STRATEGY_TEXT
    assert json.loads((folder / "features.json").read_text()) == {
        "feature_ids": list(source().feature_ids),
        "scaling": ScalingStub().to_json(),
    }
    assert len(json.loads((folder / "metrics.json").read_text())["history"]) == 3
    metadata = json.loads((folder / METADATA_FILE).read_text())
    assert (metadata["job_uid"], metadata["attempt"], metadata["seed"]) == ("job-1", 2, 7)
    assert metadata["data_summary"] == {"rows": {"BTC": 450}}
    assert metadata["versions"]["torch"] == version("torch")
    assert ref.size_bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert ref.digest == f"sha256:{files.digest((folder / METADATA_FILE).read_bytes())}"


def test_artifact_parameters_fit_torch_linear_without_our_code(
    tmp_path: Path, outcome: TrainingOutcome, dataset: Splits
) -> None:
    ref = store(tmp_path, outcome, source(), clock=still_clock())
    tensors = load_file(tmp_path / ref.path / "model.safetensors")
    network = nn.Sequential(
        nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3), nn.Softmax(1)
    )
    with torch.no_grad():
        for layer, linear in enumerate([m for m in network if isinstance(m, nn.Linear)]):
            for name, parameter in linear.named_parameters():
                parameter.copy_(torch.from_numpy(tensors[f"layers.{layer}.{name}"]))
        want = network(torch.from_numpy(dataset.test.features)).numpy()
    got = load_artifact(tmp_path / ref.path).predict(dataset.test.features)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_artifact_stored_again_for_one_job_is_the_first(
    tmp_path: Path, outcome: TrainingOutcome
) -> None:
    assert find_finished(tmp_path, "job-1") is None
    first = store(tmp_path, outcome, source(), clock=still_clock())
    assert store(tmp_path, outcome, source(), clock=still_clock()) == first
    assert find_finished(tmp_path, "job-1") == first
    assert find_finished(tmp_path, "job-1", strategy="other") is None
    assert find_finished(tmp_path, "job-2") is None


def test_artifacts_of_several_jobs_are_numbered_and_latest_is_the_highest(
    tmp_path: Path, outcome: TrainingOutcome
) -> None:
    refs = [store(tmp_path, outcome, source(uid), clock=still_clock()) for uid in ("a", "b", "c")]
    assert [ref.path for ref in refs] == [f"models/trend/1h_v{n}" for n in (1, 2, 3)]
    latest = tmp_path / "models/trend/1h_latest"
    assert latest.is_symlink()
    assert load_artifact(latest).metadata.job_uid == "c"
    assert not [path for path in (tmp_path / "models/trend").iterdir() if path.name[0] == "."]


def test_artifact_whose_number_was_just_taken_gets_the_next(
    tmp_path: Path, outcome: TrainingOutcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs looked at the folder at the same time: both saw it empty."""
    store(tmp_path, outcome, source("a"), clock=still_clock())
    monkeypatch.setattr("ktrdr_trainer.artifact_folder._numbers", lambda *_: [0])
    ref = store(tmp_path, outcome, source("b"), clock=still_clock())
    assert ref.path == "models/trend/1h_v2"


def test_latest_names_the_highest_also_if_another_job_published_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one's link came first, and is replaced by ours, which knew of fewer versions."""
    for number in (1, 2):
        (tmp_path / f"1h_v{number}").mkdir()
    looks = iter([[1], [1, 2], [1, 2]])
    monkeypatch.setattr("ktrdr_trainer.artifact_folder._numbers", lambda *_: next(looks))
    point_latest(tmp_path / "1h_v1")
    assert (tmp_path / "1h_latest").readlink() == Path("1h_v2")


def test_artifact_draft_left_by_a_kill_is_no_artifact(
    tmp_path: Path, outcome: TrainingOutcome
) -> None:
    draft = tmp_path / "models/trend/.tmp-job-1"
    draft.mkdir(parents=True)
    (draft / "model.safetensors").write_bytes(b"half")
    assert find_finished(tmp_path, "job-1") is None
    ref = store(tmp_path, outcome, source(), clock=still_clock())
    assert load_artifact(tmp_path / ref.path).metadata.job_uid == "job-1"
    assert not draft.exists()


def test_artifact_beside_foreign_folders_is_found(tmp_path: Path, outcome: TrainingOutcome) -> None:
    foreign = tmp_path / "models/trend/1h_v1"
    foreign.mkdir(parents=True)
    (foreign / METADATA_FILE).write_text("{}")
    ref = store(tmp_path, outcome, source(), clock=still_clock())
    assert ref.path == "models/trend/1h_v2"
    assert find_finished(tmp_path, "job-1") == ref


@pytest.mark.parametrize(
    "name", ["model.safetensors", "strategy.yaml", "features.json", "metrics.json"]
)
def test_artifact_that_was_changed_is_refused(
    tmp_path: Path, outcome: TrainingOutcome, name: str
) -> None:
    folder = tmp_path / store(tmp_path, outcome, source(), clock=still_clock()).path
    with (folder / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(BadRequestError, match=f"{name}: does not match its SHA-256"):
        load_artifact(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "metrics.json"])
def test_artifact_that_lost_a_part_is_not_finished_and_stored_again(
    tmp_path: Path, outcome: TrainingOutcome, name: str
) -> None:
    folder = tmp_path / store(tmp_path, outcome, source(), clock=still_clock()).path
    (folder / name).unlink()
    assert find_finished(tmp_path, "job-1") is None
    (folder / name).write_text("{")
    assert find_finished(tmp_path, "job-1") is None
    assert store(tmp_path, outcome, source(), clock=still_clock()).path == "models/trend/1h_v2"


FORGERIES: dict[str, tuple[str, bytes]] = {
    "no tensors": ("model.safetensors", save({})),
    "tensor of another shape": (
        "model.safetensors",
        save({name: np.zeros(1, np.float32) for name in ModelConfig(5, (8, 6)).shapes}),
    ),
    "other features": ("features.json", b"{}"),
    "other metrics": ("metrics.json", b"[]"),
    "no text": ("strategy.yaml", b"\xff"),
}


@pytest.mark.parametrize("case", FORGERIES)
def test_artifact_with_right_digests_of_wrong_files_is_refused(
    tmp_path: Path, outcome: TrainingOutcome, case: str
) -> None:
    name, content = FORGERIES[case]
    folder = tmp_path / store(tmp_path, outcome, source(), clock=still_clock()).path
    (folder / name).write_bytes(content)
    metadata = json.loads((folder / METADATA_FILE).read_text())
    metadata["sha256"][name] = files.digest(content)
    (folder / METADATA_FILE).write_text(json.dumps(metadata))
    with pytest.raises(BadRequestError, match="not an artefact of this trainer"):
        load_artifact(folder)


def test_artifact_without_digests_is_refused(tmp_path: Path, outcome: TrainingOutcome) -> None:
    folder = tmp_path / store(tmp_path, outcome, source(), clock=still_clock()).path
    metadata = json.loads((folder / METADATA_FILE).read_text()) | {"sha256": {}}
    (folder / METADATA_FILE).write_text(json.dumps(metadata))
    with pytest.raises(BadRequestError, match="does not match its SHA-256"):
        load_artifact(folder)


def test_artifact_that_is_missing_or_cut_names_the_file(
    tmp_path: Path, outcome: TrainingOutcome
) -> None:
    with pytest.raises(BadRequestError, match=r"model.safetensors: No such file.*name the folder"):
        load_artifact(tmp_path)
    folder = tmp_path / store(tmp_path, outcome, source(), clock=still_clock()).path
    (folder / METADATA_FILE).write_text("{")
    with pytest.raises(BadRequestError, match="not an artefact of this trainer"):
        load_artifact(folder)


def test_predict_of_other_columns_is_refused(tmp_path: Path, outcome: TrainingOutcome) -> None:
    folder = tmp_path / store(tmp_path, outcome, source(), clock=still_clock()).path
    with pytest.raises(DataError, match="takes 5 columns"):
        load_artifact(folder).predict(np.zeros((2, 4), np.float32))


def test_artifact_on_a_volume_that_cannot_be_written_names_the_path(
    tmp_path: Path, outcome: TrainingOutcome
) -> None:
    (tmp_path / "models").write_text("a file where a folder should be")
    with pytest.raises(TemporaryError, match=r"models.*check the output volume"):
        store(tmp_path, outcome, source(), clock=still_clock())


def test_artifact_of_a_stopped_training_cannot_be(tmp_path: Path) -> None:
    stopped = run_training(tmp_path, token=StopAfter(2))
    with pytest.raises(ValueError, match="no model to store"):
        store(tmp_path, stopped, source(), clock=still_clock())
