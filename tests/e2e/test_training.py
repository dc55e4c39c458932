"""The main job: apply, watch, get a model that does what its record says, the same every time."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from e2e.workbench import RESOURCE, Workbench, strategy, true_conditions
from kube import Raw

TEXT = strategy(epochs=600)
"""Some seconds of training, so that there is progress to see."""


@dataclass(frozen=True)
class Trained:
    """Two finished jobs with the same strategy, and what a watch of the first one saw."""

    bench: Workbench
    name: str
    twin: str
    seen: list[Raw]


@pytest.fixture(scope="module")
def trained(bench: Workbench) -> Iterator[Trained]:
    """Train twice, side by side."""
    found = Trained(bench, "road", "road-twin", [])
    for name in (found.name, found.twin):
        bench.start(name, TEXT)
    with bench.watch(found.name, 180) as events:
        for _, job in events:
            found.seen.append(job.get("status", {}))
            if "Finished" in true_conditions({"conditions": [], **found.seen[-1]}):
                break
    bench.finished(found.twin)
    yield found
    for name in (found.name, found.twin):
        bench.remove(name)


def test_watch_shows_progress_that_only_grows(trained: Trained) -> None:
    steps = [
        (status["progress"]["percentage"], status["progress"]["step"])
        for status in trained.seen
        if "progress" in status
    ]

    assert steps == sorted(steps)
    assert len({percentage for percentage, _ in steps}) >= 5, steps
    assert steps[-1][0] == 100


def test_finished_job_is_complete_and_current(trained: Trained) -> None:
    job = trained.bench.kube.get(RESOURCE, trained.name)

    status = job["status"]
    assert true_conditions(status) == {"Complete", "Finished"}
    assert (status["phase"], status["attempt"], status["retries"]) == ("Succeeded", 1, 0)
    assert status["observedGeneration"] == job["metadata"]["generation"]
    assert status["result"]["epochsCompleted"] == 600
    assert status["startTime"] <= status["completionTime"]
    assert "Traceback" not in trained.bench.logs(trained.name)


def test_same_seed_gives_identical_parameters(trained: Trained) -> None:
    first = trained.bench.model_digest(trained.name)

    assert first == trained.bench.model_digest(trained.twin)


def test_stored_model_reloads_and_reproduces_its_recorded_test_metrics(trained: Trained) -> None:
    artifact = trained.bench.status(trained.name)["result"]["artifact"]["path"]
    recorded = json.loads(trained.bench.files.run("cat", f"/output/{artifact}/metrics.json"))

    command = (
        "python",
        "-m",
        "ktrdr_trainer",
        "evaluate",
        f"/output/{artifact}",
        "--data",
        "/data",
    )
    report = json.loads(trained.bench.files.run(*command))

    assert report["identical"], report
    assert report["testRows"] > 0
    compared = {name: pair["recorded"] for name, pair in report["metrics"].items()}
    assert compared == recorded["test_metrics"]


def test_twenty_identical_applies_change_nothing(trained: Trained) -> None:
    job = trained.bench.job(trained.name, TEXT)
    before = trained.bench.kube.get(RESOURCE, trained.name)["metadata"]["resourceVersion"]

    versions = {trained.bench.kube.apply(job)["metadata"]["resourceVersion"] for _ in range(20)}

    assert versions == {before}


def test_logs_are_one_json_object_a_line(trained: Trained) -> None:
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in trained.bench.logs(trained.name).splitlines()
    ]

    assert lines


def test_events_tell_the_story(trained: Trained) -> None:
    story = trained.bench.events(trained.name)

    assert [reason for reason in ("Running", "Completed") if reason not in story] == []


def test_table_shows_what_people_look_for(trained: Trained) -> None:
    header, row = trained.bench.kube.run("get", "ktj", trained.name, "-owide").splitlines()

    columns = dict(zip(header.split(), row.split(), strict=False))
    assert (columns["PHASE"], columns["PROGRESS"], columns["EPOCH"]) == (
        *("Succeeded", "100%", "600/600"),
    )


def test_deleted_job_leaves_its_model_and_nothing_else(bench: Workbench) -> None:
    name = "leaves-a-model"
    bench.start(name, strategy(epochs=1))
    artifact = bench.finished(name)["result"]["artifact"]["path"]

    bench.remove(name)

    bench.files.run("test", "-e", f"/output/{artifact}/model.safetensors")
