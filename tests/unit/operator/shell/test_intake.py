from random import Random
from typing import Any

import pytest

from ktrdr_client.cluster import Raw
from ktrdr_operator.intake import Cause, Intake, priority_of
from ktrdr_operator.projections import known_job
from ktrdr_operator.queue import Priority, WorkQueue
from ktrdr_operator.store import JobKey, KnownJob, Store

KEY = JobKey("ns", "j")
CANCELLED = {"cancel": True}
FINISHED = {
    "phase": "Succeeded",
    "observedGeneration": 1,
    "conditions": [{"type": "Finished", "status": "True"}],
}


def job(version: int = 1, *, uid: str = "u", **parts: Any) -> Raw:
    metadata = {"namespace": "ns", "name": "j", "uid": uid, "generation": 1}
    metadata["resourceVersion"] = str(version)
    metadata.update(parts.pop("metadata", {}))
    return {"metadata": metadata, "spec": {}, "status": {}, **parts}


def pod(phase: str = "Running", version: int = 1, *, uid: str = "p", **metadata: Any) -> Raw:
    owner = {"apiVersion": "ktrdr.io/v1alpha1", "kind": "TrainingJob", "uid": "u"}
    return {
        "metadata": {
            "namespace": "ns",
            "name": "j-1-0",
            "uid": uid,
            "resourceVersion": str(version),
            "labels": {"ktrdr.io/job": "j", "ktrdr.io/attempt": "1"},
            "ownerReferences": [{**owner, "name": "j", "controller": True}],
            **metadata,
        },
        "status": {"phase": phase},
    }


class RecordingQueue(WorkQueue[JobKey]):
    """The real queue, which also remembers what was added."""

    def add(self, key: JobKey, priority: Priority = Priority.RECONCILE) -> None:
        super().add(key, priority)
        self.__dict__.setdefault("added", []).append(priority)

    def take(self) -> list[Priority]:
        """Return the priority of each key added since the last call."""
        added: list[Priority] = self.__dict__.pop("added", [])
        return added


@pytest.fixture
def queue() -> RecordingQueue:
    return RecordingQueue(clock=lambda: 0.0, random=Random(0))  # noqa: S311 - not used here


@pytest.fixture
def intake(queue: RecordingQueue) -> Intake:
    return Intake(Store(lambda: 0.0), queue)


def known(**parts: Any) -> KnownJob:
    return known_job(job(**parts), size_bytes=1, reported_at=0.0)


@pytest.mark.parametrize(
    ("cause", "concerned", "want"),
    [
        (Cause.JOB_CHANGED, known(), Priority.RECONCILE),
        (Cause.JOB_CHANGED, known(spec=CANCELLED), Priority.STOP),
        (
            Cause.JOB_CHANGED,
            known(metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}),
            Priority.STOP,
        ),
        (Cause.JOB_CHANGED, known(spec=CANCELLED, status=FINISHED), Priority.RECONCILE),
        (Cause.JOB_DELETED, None, Priority.STOP),
        (Cause.JOB_DELETED, known(), Priority.STOP),
        (Cause.POD_CHANGED, known(spec=CANCELLED), Priority.STATUS_ONLY),
        (Cause.POD_CHANGED, None, Priority.STATUS_ONLY),
        (Cause.POD_ENDED, known(), Priority.RECONCILE),
        (Cause.POD_ENDED, known(spec=CANCELLED), Priority.STOP),
        (Cause.POD_ENDED, None, Priority.RECONCILE),
        (Cause.LISTED, known(), Priority.STATUS_ONLY),
        (Cause.LISTED, known(spec=CANCELLED), Priority.STOP),
        (Cause.LISTED, None, Priority.STATUS_ONLY),
    ],
)
def test_priority_of_event_and_job(cause: Cause, concerned: KnownJob | None, want: int) -> None:
    assert priority_of(cause, concerned) is want


def test_intake_job_is_stored_and_enqueued(intake: Intake, queue: RecordingQueue) -> None:
    assert intake.take_job("ADDED", job())
    assert intake.take_job("MODIFIED", job(2, status={"phase": "Running"}))
    assert intake.store.jobs[KEY].phase == "Running"
    assert queue.take() == [Priority.RECONCILE, Priority.RECONCILE]


def test_intake_job_deleted_is_dropped_and_goes_first(
    intake: Intake, queue: RecordingQueue
) -> None:
    intake.take_job("ADDED", job())
    intake.take_job("DELETED", job(2))
    assert intake.store.jobs == {}
    assert queue.take() == [Priority.RECONCILE, Priority.STOP]


@pytest.mark.parametrize(
    ("event", "spec", "want"),
    [
        (("MODIFIED", pod("Failed", 2)), CANCELLED, Priority.STOP),
        (("DELETED", pod(version=2)), CANCELLED, Priority.STOP),
        (
            ("MODIFIED", pod(version=2, deletionTimestamp="2026-01-01T00:00:00Z")),
            CANCELLED,
            Priority.STATUS_ONLY,
        ),
        (("MODIFIED", pod("Failed", 2)), {}, Priority.RECONCILE),
        (("DELETED", pod(version=2)), {}, Priority.RECONCILE),
    ],
    ids=["ended, awaited", "deleted, awaited", "terminating", "ended", "deleted"],
)
def test_intake_pod_enqueues_its_job(
    intake: Intake, *, queue: RecordingQueue, event: tuple[str, Raw], spec: Raw, want: Priority
) -> None:
    intake.take_job("ADDED", job(spec=spec))
    intake.take_pod("ADDED", pod())
    queue.take()
    assert intake.take_pod(*event)
    assert queue.take() == [want]


def test_intake_pod_without_label_and_owner_is_ignored(
    intake: Intake, queue: RecordingQueue
) -> None:
    assert not intake.take_pod("ADDED", pod(labels={}, ownerReferences=[]))
    assert queue.take() == []


def test_intake_pod_of_a_deleted_job_is_enqueued_only_when_it_appears(
    intake: Intake, queue: RecordingQueue
) -> None:
    intake.take_job("ADDED", job())
    intake.take_pod("ADDED", pod())
    intake.take_job("DELETED", job(2))
    queue.take()
    terminating = pod(version=2, deletionTimestamp="2026-01-01T00:00:00Z")
    assert not intake.take_pod("MODIFIED", terminating)
    assert not intake.take_pod("DELETED", {**terminating, "metadata": pod(version=3)["metadata"]})
    assert intake.take_pod("ADDED", pod(version=4, uid="created late")), "it has to be deleted"
    assert queue.take() == [Priority.STATUS_ONLY]


def test_intake_events_of_a_finished_job_are_enqueued_only_when_it_changes(
    intake: Intake, queue: RecordingQueue
) -> None:
    assert not intake.take_job("ADDED", job(status=FINISHED))
    assert not intake.take_pod("ADDED", pod("Succeeded"))
    assert intake.take_job("MODIFIED", job(2, status=FINISHED, spec={"ttlSecondsAfterFinished": 0}))
    assert queue.take() == [Priority.RECONCILE]
