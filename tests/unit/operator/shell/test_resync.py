import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest

from ktrdr_client.cluster import (
    PODS,
    TRAINING_JOBS,
    ApiError,
    Forbidden,
    NotFound,
    Objects,
    Raw,
    Resource,
    Unreachable,
)
from ktrdr_client.testing import FakeCluster
from ktrdr_operator import resync as resync_module
from ktrdr_operator.metrics import Metrics
from ktrdr_operator.queue import Priority, WorkQueue
from ktrdr_operator.resync import Resync
from ktrdr_operator.store import JobKey, Store
from ktrdr_operator.watches import Watches

DOWN = Unreachable(0, "ClientOSError", "refused")
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def job(name: str, namespace: str = "ns", **fields: object) -> Raw:
    return {"metadata": {"namespace": namespace, "name": name}, "spec": {}, **fields}


def finished(name: str, **spec: object) -> Raw:
    status = {
        "phase": "Succeeded",
        "observedGeneration": 1,
        "conditions": [
            {"type": "Finished", "status": "True", "lastTransitionTime": "2026-01-01T11:59:00Z"}
        ],
    }
    return job(name, spec=spec, status=status)


def pod(name: str, *, of: str, phase: str = "Running") -> Raw:
    metadata = {"namespace": "ns", "name": name, "labels": {"ktrdr.io/job": of}}
    return {"metadata": metadata, "status": {"phase": phase}}


class RecordingQueue(WorkQueue[JobKey]):
    """The real queue, which also remembers what was added."""

    added: dict[str, Priority]
    later: dict[str, float]

    def add(self, key: JobKey, priority: Priority = Priority.RECONCILE) -> None:
        super().add(key, priority)
        self.added[key.name] = priority

    def add_after(self, key: JobKey, seconds: float, *args: Any, **kwargs: Any) -> None:
        super().add_after(key, seconds, *args, **kwargs)
        self.later[key.name] = seconds

    def take(self) -> dict[str, Priority]:
        """Names of keys added since the last call, with their priorities."""
        added, self.added = self.added, {}
        return added


def build(cluster: FakeCluster, *namespaces: str | None, period_seconds: float = 300) -> Resync:
    queue = RecordingQueue(clock=lambda: 0.0)
    queue.added, queue.later = {}, {}
    return Resync(
        cluster,
        Store(lambda: 0.0),
        queue,
        Watches(lambda _: None),
        Metrics(),
        namespaces=namespaces or (None,),
        period_seconds=period_seconds,
        random=Random(0),  # noqa: S311 - the same jitter in every run
        now=lambda: NOW,
    )


def added(resync: Resync) -> dict[str, Priority]:
    assert isinstance(resync.queue, RecordingQueue)
    return resync.queue.take()


async def test_resync_enqueues_at_first_all_that_is_not_finished() -> None:
    cluster = FakeCluster()
    for raw in (job("new"), job("cancelled", spec={"cancel": True}), finished("finished")):
        cluster.put(TRAINING_JOBS, raw)
    for raw in (pod("orphan-1-0", of="orphan"), pod("finished-1-0", of="finished")):
        cluster.put(PODS, raw)
    cluster.put(PODS, {"metadata": {"namespace": "ns", "name": "stranger"}})
    resync = build(cluster)
    await resync.once()
    assert added(resync) == {
        "new": Priority.STATUS_ONLY,
        "cancelled": Priority.STOP,
        "orphan": Priority.STATUS_ONLY,
        "finished": Priority.STATUS_ONLY,  # its pod still runs
    }
    assert [view.name for view in resync.store.pods_of(JobKey("ns", "orphan"))] == ["orphan-1-0"]


async def test_resync_enqueues_only_what_changed() -> None:
    cluster = FakeCluster()
    for name in ("same", "changed", "deleted", "pod changed", "pod deleted", "reporting"):
        cluster.put(TRAINING_JOBS, job(name))
        cluster.put(PODS, pod(f"{name}-1-0", of=name))
    resync = build(cluster)
    await resync.once()
    assert len(added(resync)) == 6
    await resync.once()
    assert added(resync) == {}
    cluster.put(TRAINING_JOBS, job("changed", spec={"cancel": True}))
    cluster.remove(TRAINING_JOBS, "ns", "deleted")
    cluster.put(PODS, pod("pod changed-1-0", of="pod changed", phase="Failed"))
    cluster.remove(PODS, "ns", "pod deleted-1-0")
    cluster.put(TRAINING_JOBS, job("reporting", status={"progress": {"step": 1}}))
    await resync.once()
    assert added(resync) == {
        "changed": Priority.STOP,
        "deleted": Priority.STATUS_ONLY,
        "pod changed": Priority.STATUS_ONLY,
        "pod deleted": Priority.STATUS_ONLY,
    }
    assert resync.store.jobs[JobKey("ns", "reporting")].progress == b'{"step":1}'
    deleted = resync.store.pods_of(JobKey("ns", "pod deleted"))
    assert deleted == (), "a pod of another owner is not remembered"


async def test_resync_schedules_the_deletion_of_finished_jobs() -> None:
    cluster = FakeCluster()
    cluster.put(TRAINING_JOBS, finished("kept"))
    cluster.put(TRAINING_JOBS, finished("due", ttlSecondsAfterFinished=0))
    cluster.put(TRAINING_JOBS, finished("later", ttlSecondsAfterFinished=90))
    cluster.put(TRAINING_JOBS, finished("never", ttlSecondsAfterFinished=10**12))
    resync = build(cluster)
    await resync.once()
    assert isinstance(resync.queue, RecordingQueue)
    assert resync.queue.later == {"due": -60.0, "later": 30.0}


async def test_resync_lists_only_the_watched_namespaces() -> None:
    cluster = FakeCluster()
    for namespace in ("a", "b", "c"):
        cluster.put(TRAINING_JOBS, job("j", namespace))
    resync = build(cluster, "a", "c")
    await resync.once()
    assert sorted(key.namespace for key in resync.store.jobs) == ["a", "c"]


@pytest.mark.parametrize("refusal", [Forbidden(403, "Forbidden", "no"), NotFound(404, "", "no")])
async def test_resync_skips_a_namespace_it_may_not_read(refusal: ApiError) -> None:
    cluster = FakeCluster()
    for namespace in ("a", "b"):
        cluster.put(TRAINING_JOBS, job("j", namespace))
    resync = build(cluster, "a", "b")
    await resync.once()
    cluster.put(TRAINING_JOBS, job("k", "b"))
    known = [{("a", "j"), ("b", "j"), ("b", "k")}, {("b", "j"), ("b", "k")}]
    for expected in known:  # a refusal may pass; one that lasts means that the namespace is gone
        cluster.fail_next("list", refusal)
        await resync.once()
        assert set(resync.store.jobs) == expected
        gauge = resync.metrics.registry.get_sample_value("ktrdr_unreadable_namespaces")
        assert gauge == 1.0
    await resync.once()
    assert set(resync.store.jobs) == known[0]


async def test_resync_of_all_namespaces_that_is_forbidden_fails() -> None:
    cluster = FakeCluster()
    cluster.fail_next("list", Forbidden(403, "Forbidden", "no"))
    with pytest.raises(Forbidden):
        await build(cluster).once()


async def test_resync_that_fails_drops_nothing() -> None:
    cluster = FakeCluster()
    cluster.put(TRAINING_JOBS, job("j"))
    resync = build(cluster)
    await resync.once()
    cluster.remove(TRAINING_JOBS, "ns", "j")
    cluster.fail_next("list", DOWN, resource=PODS)
    with pytest.raises(Unreachable):
        await resync.once()
    assert JobKey("ns", "j") in resync.store.jobs


async def test_resync_begins_again_when_the_continue_token_expires() -> None:
    cluster = FakeCluster()
    for name in "abcde":
        cluster.put(TRAINING_JOBS, job(name))
    resync = build(cluster)
    await resync.once()
    cluster.fail_next("list", ApiError(410, "Expired", "too old"), resource=TRAINING_JOBS, nth=2)
    await resync.once()
    assert len(resync.store.jobs) == 5
    for nth in (1, 2, 3):
        cluster.fail_next("list", ApiError(410, "Expired", "too old"), nth=nth)
    with pytest.raises(ApiError, match="410"):
        await resync.once()
    assert len(resync.store.jobs) == 5


async def test_resync_survives_an_object_that_it_cannot_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster = FakeCluster()
    cluster.put(TRAINING_JOBS, job("j"))
    broken = pod("broken", of="j")
    broken["status"]["conditions"] = [{}]
    cluster.put(PODS, broken)
    cluster.put(PODS, pod("j-1-0", of="j"))
    resync = build(cluster)
    await resync.once()
    assert [view.name for view in resync.store.pods_of(JobKey("ns", "j"))] == ["j-1-0"]
    assert "not readable" in caplog.text


class SlowCluster(FakeCluster):
    """Lets something happen after the list of TrainingJobs was made and before it is used."""

    meanwhile: Callable[[], Awaitable[None]]

    async def pages(
        self, resource: Resource, namespace: str | None, *, label_selector: str = ""
    ) -> AsyncIterator[Objects]:
        found = [
            page async for page in super().pages(resource, namespace, label_selector=label_selector)
        ]
        if resource == TRAINING_JOBS:
            await self.meanwhile()
        for page in found:
            yield page


async def test_resync_keeps_what_the_watch_said_during_the_list() -> None:
    cluster = SlowCluster()
    resync = build(cluster)
    for name in ("kept", "cancelled", "deleted"):
        resync.store.put_job(cluster.put(TRAINING_JOBS, job(name)))

    async def meanwhile() -> None:
        cancelled = cluster.put(TRAINING_JOBS, job("cancelled", spec={"cancel": True}))
        resync.store.put_job(cancelled)
        deleted = resync.store.jobs[JobKey("ns", "deleted")]
        resync.store.drop_job(JobKey("ns", "deleted"), deleted.uid)
        resync.store.put_job(cluster.put(TRAINING_JOBS, job("created")))

    cluster.meanwhile = meanwhile
    await resync.once()
    stopping = {key.name: known.is_stop_requested for key, known in resync.store.jobs.items()}
    assert stopping == {"kept": False, "cancelled": True, "created": False}
    assert added(resync) == {}


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(resync_module, "SETTLE_SECONDS", 0.01)
    yield
    gc.unfreeze()


async def test_resync_runs_first_when_the_watches_are_positioned_then_after_each_relist(
    fast: None,
) -> None:
    cluster = FakeCluster()
    resync = build(cluster)
    task = asyncio.create_task(resync.run())
    await asyncio.sleep(0.02)
    assert cluster.requests == []
    resync.watches.on_list("jobs")
    await asyncio.wait_for(resync.filled.wait(), 1)
    assert gc.get_freeze_count() > 0
    assert len(cluster.requests) == 2
    await asyncio.sleep(0.05)
    assert len(cluster.requests) == 2, "the list that positioned the watches needs no second one"
    cluster.fail_next("list", DOWN)
    resync.watches.on_list("jobs")
    resync.watches.on_list("pods")
    async with asyncio.timeout(5):
        while len(cluster.requests) < 5:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [request.kind for request in cluster.requests[2:]] == ["TrainingJob"] * 2 + ["Pod"]


async def test_first_resync_waits_for_the_server(fast: None) -> None:
    cluster = FakeCluster()
    cluster.put(TRAINING_JOBS, job("j"))
    cluster.fail_next("list", DOWN)
    resync = build(cluster)
    resync.watches.positioned.set()
    task = asyncio.create_task(resync.run())
    await asyncio.wait_for(resync.filled.wait(), 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len(resync.store.jobs) == 1


async def test_wait_for_server_ends_with_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    cluster = FakeCluster()
    resync = build(cluster, "a", "b")
    cluster.fail_next("list", NotFound(404, "NotFound", "the server has no such resource"))
    cluster.fail_next("list", Forbidden(403, "Forbidden", "no"), nth=2)
    await resync.wait_for_server()
    assert len(cluster.requests) == 3
    assert "First request to the API server failed" in caplog.text
