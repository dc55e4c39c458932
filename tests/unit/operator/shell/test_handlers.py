import asyncio
from random import Random

import kopf
import pytest

from ktrdr_client.cluster import Raw
from ktrdr_operator.handlers import Handlers, is_stop_requested, kopf_settings
from ktrdr_operator.metrics import Metrics
from ktrdr_operator.queue import Priority, WorkQueue
from ktrdr_operator.store import JobKey, Store
from ktrdr_operator.watch_filter import WatchFilter

KEY = JobKey("ns", "j")


def job(version: int = 1, *, uid: str = "u", **parts: Raw) -> Raw:
    metadata = {"namespace": "ns", "name": "j", "uid": uid, "generation": 1}
    metadata["resourceVersion"] = str(version)
    metadata.update(parts.pop("metadata", {}))
    return {"metadata": metadata, "spec": {}, "status": {}, **parts}


def pod(phase: str = "Running", uid: str = "p") -> Raw:
    labels = {"ktrdr.io/job": "j"}
    metadata = {"namespace": "ns", "name": "j-1-0", "uid": uid, "labels": labels}
    return {"metadata": metadata, "status": {"phase": phase}}


def event(kind: str | None, obj: Raw) -> kopf.RawEvent:
    return kopf.RawEvent(type=kind, object=obj)  # type: ignore[typeddict-item]


class RecordingQueue(WorkQueue[JobKey]):
    """The real queue, which also remembers what was added."""

    def add(self, key: JobKey, priority: Priority = Priority.RECONCILE) -> None:
        super().add(key, priority)
        self.__dict__.setdefault("added", []).append(priority)

    def take(self) -> list[Priority]:
        """The lane of each key added since the last call."""
        added: list[Priority] = self.__dict__.pop("added", [])
        return added


@pytest.fixture
def queue() -> RecordingQueue:
    return RecordingQueue(clock=lambda: 0.0, random=Random(0))  # noqa: S311 - not used here


@pytest.fixture
async def handlers(queue: RecordingQueue) -> Handlers:
    store, metrics = Store(), Metrics()
    watch_filter = WatchFilter(
        store, metrics, lambda: 0.0, beat=lambda _: None, relisted=asyncio.Event()
    )
    return Handlers(store, queue, metrics, watch_filter)


async def test_job_is_stored_and_enqueued(handlers: Handlers, queue: RecordingQueue) -> None:
    await handlers.on_job(event(None, job()))
    await handlers.on_job(event("MODIFIED", job(2, status={"phase": "Running"})))
    assert handlers.store.jobs[KEY] == job(2, status={"phase": "Running"})
    assert queue.take() == [Priority.RECONCILE, Priority.RECONCILE]


@pytest.mark.parametrize(
    ("wish", "priority"),
    [
        (job(2, metadata={"generation": 2}, spec={"cancel": True}), Priority.STOP),
        (job(2, metadata={"deletionTimestamp": "t"}), Priority.STOP),
        (job(2, metadata={"generation": 2}), Priority.RECONCILE),
        (
            job(2, metadata={"generation": 2}, spec={"cancel": True}, status={"completionTime": 1}),
            Priority.RECONCILE,
        ),
    ],
)
async def test_job_that_shall_end_overtakes_until_it_has(
    handlers: Handlers, queue: RecordingQueue, wish: Raw, priority: Priority
) -> None:
    await handlers.on_job(event("ADDED", job()))
    queue.take()
    await handlers.on_job(event("MODIFIED", wish))
    assert queue.take() == [priority]


async def test_job_deleted_is_dropped_and_overtakes(
    handlers: Handlers, queue: RecordingQueue
) -> None:
    await handlers.on_job(event("ADDED", job()))
    await handlers.on_job(event("DELETED", job(2)))
    assert handlers.store.jobs == {}
    assert queue.take() == [Priority.RECONCILE, Priority.STOP]


async def test_job_deleted_late_spares_its_successor_of_the_same_name(
    handlers: Handlers, queue: RecordingQueue
) -> None:
    await handlers.on_job(event("ADDED", job(5, uid="new")))
    await handlers.on_job(event("DELETED", job(2)))
    assert handlers.store.jobs[KEY]["metadata"]["uid"] == "new"


async def test_job_event_older_than_our_own_write_keeps_the_newer_state(
    handlers: Handlers, queue: RecordingQueue
) -> None:
    written = job(11, spec={"cancel": True}, status={"phase": "Pending"})
    handlers.store.put_job(written)
    await handlers.on_job(event("MODIFIED", job(9)))
    assert handlers.store.jobs[KEY] == written
    assert queue.take() == [Priority.RECONCILE]


@pytest.mark.parametrize(
    ("last", "spec", "priority"),
    [
        (event("MODIFIED", pod("Failed")), {"cancel": True}, Priority.STOP),
        (event("DELETED", pod()), {"cancel": True}, Priority.STOP),
        (event("MODIFIED", pod()), {"cancel": True}, Priority.STATUS_ONLY),
        (event("MODIFIED", pod("Failed")), {}, Priority.RECONCILE),
    ],
)
async def test_pod_end_overtakes_when_awaited_and_a_living_pod_waits(
    handlers: Handlers, *, queue: RecordingQueue, last: kopf.RawEvent, spec: Raw, priority: Priority
) -> None:
    handlers.store.put_job(job(spec=spec))
    await handlers.on_pod(last)
    assert queue.take() == [priority]
    assert (KEY in handlers.store.pods) == (last["type"] != "DELETED")


async def test_pod_that_outlived_its_job_is_forgotten(
    handlers: Handlers, queue: RecordingQueue
) -> None:
    await handlers.on_pod(event("ADDED", pod()))
    await handlers.on_pod(event("DELETED", pod()))
    assert queue.take() == [Priority.STATUS_ONLY]
    assert handlers.store.pods == handlers.store.gone == {}


async def test_pod_without_our_label_is_ignored(handlers: Handlers, queue: RecordingQueue) -> None:
    stranger = pod()
    stranger["metadata"]["labels"] = {}
    await handlers.on_pod(event("ADDED", stranger))
    assert queue.take() == []


def test_is_ending_of_unknown_job_is_false() -> None:
    assert not is_stop_requested(None)


def test_kopf_settings_never_write_nor_scan() -> None:
    settings = kopf_settings()
    assert settings.scanning.disabled
    assert settings.peering.standalone
    assert not settings.posting.enabled
    assert list(settings.watching.label_selectors.values()) == ["ktrdr.io/job"]
