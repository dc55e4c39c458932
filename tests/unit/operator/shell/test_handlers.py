import asyncio
from random import Random

import kopf
import pytest

from ktrdr_client.cluster import Raw
from ktrdr_operator.handlers import Handlers, is_ending, kopf_settings
from ktrdr_operator.metrics import Metrics
from ktrdr_operator.queue import Lane, WorkQueue
from ktrdr_operator.session import WatchFilter
from ktrdr_operator.store import JobKey, Store

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

    def add(self, key: JobKey, lane: Lane = Lane.ACT) -> None:
        super().add(key, lane)
        self.__dict__.setdefault("added", []).append(lane)

    def take(self) -> list[Lane]:
        """The lane of each key added since the last call."""
        added: list[Lane] = self.__dict__.pop("added", [])
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
    assert queue.take() == [Lane.ACT, Lane.ACT]


@pytest.mark.parametrize(
    ("wish", "lane"),
    [
        (job(2, metadata={"generation": 2}, spec={"cancel": True}), Lane.STOP),
        (job(2, metadata={"deletionTimestamp": "t"}), Lane.STOP),
        (job(2, metadata={"generation": 2}), Lane.ACT),
        (
            job(2, metadata={"generation": 2}, spec={"cancel": True}, status={"completionTime": 1}),
            Lane.ACT,
        ),
    ],
)
async def test_job_that_shall_end_overtakes_until_it_has(
    handlers: Handlers, queue: RecordingQueue, wish: Raw, lane: Lane
) -> None:
    await handlers.on_job(event("ADDED", job()))
    queue.take()
    await handlers.on_job(event("MODIFIED", wish))
    assert queue.take() == [lane]


async def test_job_deleted_is_dropped_and_overtakes(
    handlers: Handlers, queue: RecordingQueue
) -> None:
    await handlers.on_job(event("ADDED", job()))
    await handlers.on_job(event("DELETED", job(2)))
    assert handlers.store.jobs == {}
    assert queue.take() == [Lane.ACT, Lane.STOP]


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
    assert queue.take() == [Lane.ACT]


@pytest.mark.parametrize(
    ("last", "spec", "lane"),
    [
        (event("MODIFIED", pod("Failed")), {"cancel": True}, Lane.STOP),
        (event("DELETED", pod()), {"cancel": True}, Lane.STOP),
        (event("MODIFIED", pod()), {"cancel": True}, Lane.TELL),
        (event("MODIFIED", pod("Failed")), {}, Lane.ACT),
    ],
)
async def test_pod_end_overtakes_when_awaited_and_a_living_pod_waits(
    handlers: Handlers, *, queue: RecordingQueue, last: kopf.RawEvent, spec: Raw, lane: Lane
) -> None:
    handlers.store.put_job(job(spec=spec))
    await handlers.on_pod(last)
    assert queue.take() == [lane]
    assert (KEY in handlers.store.pods) == (last["type"] != "DELETED")


async def test_pod_that_outlived_its_job_is_forgotten(
    handlers: Handlers, queue: RecordingQueue
) -> None:
    await handlers.on_pod(event("ADDED", pod()))
    await handlers.on_pod(event("DELETED", pod()))
    assert queue.take() == [Lane.TELL]
    assert handlers.store.pods == handlers.store.gone == {}


async def test_pod_without_our_label_is_ignored(handlers: Handlers, queue: RecordingQueue) -> None:
    stranger = pod()
    stranger["metadata"]["labels"] = {}
    await handlers.on_pod(event("ADDED", stranger))
    assert queue.take() == []


def test_is_ending_of_unknown_job_is_false() -> None:
    assert not is_ending(None)


def test_kopf_settings_never_write_nor_scan() -> None:
    settings = kopf_settings()
    assert settings.scanning.disabled
    assert settings.peering.standalone
    assert not settings.posting.enabled
    assert list(settings.watching.label_selectors.values()) == ["ktrdr.io/job"]
