"""The main job: apply, watch, get a model that does what its record says, the same every time."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from e2e.job_namespace import RESOURCE, JobNamespace, strategy, true_conditions
from kube import Raw

TEXT = strategy(epochs=600)
"""Some seconds of training, so that there is progress to see."""


@dataclass(frozen=True)
class Trained:
    """Two finished jobs with the same strategy, and what a watch of the first one saw."""

    namespace: JobNamespace
    name: str
    twin: str
    seen: list[Raw]


@pytest.fixture(scope="module")
def trained(namespace: JobNamespace) -> Iterator[Trained]:
    """Train twice, side by side."""
    found = Trained(namespace, "road", "road-twin", [])
    for name in (found.name, found.twin):
        namespace.start(name, TEXT)
    with namespace.watch(found.name, 180) as events:
        for _, job in events:
            found.seen.append(job.get("status", {}))
            if "Finished" in true_conditions({"conditions": [], **found.seen[-1]}):
                break
    namespace.finished(found.twin)
    yield found
    for name in (found.name, found.twin):
        namespace.remove(name)


def test_watch_shows_progress_that_only_increases(trained: Trained) -> None:
    steps = [
        (status["progress"]["percentage"], status["progress"]["step"])
        for status in trained.seen
        if "progress" in status
    ]

    assert steps == sorted(steps)
    assert len({percentage for percentage, _ in steps}) >= 5, steps
    assert steps[-1][0] == 100


def test_finished_job_is_complete_and_current(trained: Trained) -> None:
    job = trained.namespace.kube.get(RESOURCE, trained.name)

    status = job["status"]
    assert true_conditions(status) == {"Complete", "Finished"}
    assert (status["phase"], status["attempt"], status["retries"]) == ("Succeeded", 1, 0)
    assert status["observedGeneration"] == job["metadata"]["generation"]
    assert status["result"]["epochsCompleted"] == 600
    assert status["startTime"] <= status["completionTime"]
    assert "Traceback" not in trained.namespace.logs(trained.name)


def test_same_seed_gives_identical_parameters(trained: Trained) -> None:
    first = trained.namespace.model_digest(trained.name)

    assert first == trained.namespace.model_digest(trained.twin)


def test_stored_model_reloads_and_reproduces_its_recorded_test_metrics(trained: Trained) -> None:
    artifact = trained.namespace.status(trained.name)["result"]["artifact"]["path"]
    recorded = json.loads(trained.namespace.files.run("cat", f"/output/{artifact}/metrics.json"))

    command = (
        "python",
        "-m",
        "ktrdr_trainer",
        "evaluate",
        f"/output/{artifact}",
        "--data",
        "/data",
    )
    report = json.loads(trained.namespace.files.run(*command))

    assert report["identical"], report
    assert report["testRows"] > 0
    compared = {name: pair["recorded"] for name, pair in report["metrics"].items()}
    assert compared == recorded["test_metrics"]


def test_twenty_identical_applies_change_nothing(trained: Trained) -> None:
    job = trained.namespace.job(trained.name, TEXT)
    before = trained.namespace.kube.get(RESOURCE, trained.name)["metadata"]["resourceVersion"]

    versions = {trained.namespace.kube.apply(job)["metadata"]["resourceVersion"] for _ in range(20)}

    assert versions == {before}


def test_logs_have_one_json_object_per_line(trained: Trained) -> None:
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in trained.namespace.logs(trained.name).splitlines()
    ]

    assert lines


def test_events_list_every_transition(trained: Trained) -> None:
    story = trained.namespace.events(trained.name)

    assert [reason for reason in ("Running", "Completed") if reason not in story] == []


def test_printer_columns_show_state_progress_and_result(trained: Trained) -> None:
    header, row = trained.namespace.kube.run("get", "ktj", trained.name, "-owide").splitlines()

    columns = dict(zip(header.split(), row.split(), strict=False))
    assert (columns["PHASE"], columns["PROGRESS"], columns["EPOCH"]) == (
        *("Succeeded", "100%", "600/600"),
    )


def test_delete_of_finished_job_leaves_only_its_model(namespace: JobNamespace) -> None:
    name = "leaves-a-model"
    namespace.start(name, strategy(epochs=1))
    artifact = namespace.finished(name)["result"]["artifact"]["path"]

    namespace.remove(name)

    namespace.files.run("test", "-e", f"/output/{artifact}/model.safetensors")
