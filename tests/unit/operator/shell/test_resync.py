import asyncio
import gc
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from ktrdr_client.cluster import PODS, TRAINING_JOBS, Objects, Raw, Resource, Unreachable
from ktrdr_client.testing import FakeCluster
from ktrdr_operator import resync as resync_module
from ktrdr_operator.metrics import Metrics
from ktrdr_operator.queue import WorkQueue
from ktrdr_operator.resync import Resync, merge
from ktrdr_operator.store import JobKey, Store
from ktrdr_operator.watch_filter import WatchFilter

DOWN = Unreachable(0, "ClientOSError", "refused")


def job(name: str, **fields: object) -> Raw:
    return {"metadata": {"namespace": "ns", "name": name}, "spec": {}, **fields}


def pod(name: str, *, of: str) -> Raw:
    return {"metadata": {"namespace": "ns", "name": name, "labels": {"ktrdr.io/job": of}}}


def build(cluster: FakeCluster, *namespaces: str | None, period_seconds: float = 300) -> Resync:
    store = Store()
    watch_filter = WatchFilter(
        store, Metrics(), lambda: 0.0, beat=lambda _: None, relisted=asyncio.Event()
    )
    return Resync(
        cluster,
        store,
        WorkQueue[JobKey](clock=lambda: 0.0),
        watch_filter,
        namespaces=namespaces or (None,),
        period_seconds=period_seconds,
        random=Random(0),  # noqa: S311 - the same jitter in every run
    )


async def test_resync_replaces_store_and_enqueues_known_and_new() -> None:
    cluster = FakeCluster()
    new = cluster.put(TRAINING_JOBS, job("new"))
    cluster.put(PODS, pod("orphan-1-0", of="orphan"))
    cluster.put(PODS, {"metadata": {"namespace": "ns", "name": "stranger"}})
    resync = build(cluster)
    resync.store.put_job(FakeCluster().put(TRAINING_JOBS, job("gone")))
    await resync.once()
    assert resync.store.jobs == {JobKey("ns", "new"): new}
    assert resync.store.pods.keys() == {JobKey("ns", "orphan")}
    assert len(resync.queue) == 3


async def test_resync_lists_only_the_watched_namespaces() -> None:
    cluster = FakeCluster()
    for namespace in ("a", "b", "c"):
        cluster.put(TRAINING_JOBS, {"metadata": {"namespace": namespace, "name": "j"}})
    resync = build(cluster, "a", "c")
    await resync.once()
    assert sorted(key.namespace for key in resync.store.jobs) == ["a", "c"]


async def test_resync_that_fails_leaves_the_store() -> None:
    cluster = FakeCluster()
    cluster.put(TRAINING_JOBS, job("j"))
    resync = build(cluster)
    await resync.once()
    cluster.fail_next("list", DOWN, resource=PODS)
    before = dict(resync.store.jobs)
    with pytest.raises(Unreachable):
        await resync.once()
    assert resync.store.jobs == before


class SlowCluster(FakeCluster):
    """Lets something happen after the list of TrainingJobs was made and before it is used."""

    meanwhile: Callable[[], Awaitable[None]]

    async def list(
        self, resource: Resource, namespace: str | None, *, label_selector: str = ""
    ) -> tuple[Objects, str]:
        answer = await super().list(resource, namespace, label_selector=label_selector)
        if resource == TRAINING_JOBS:
            await self.meanwhile()
        return answer


async def test_resync_keeps_what_the_watch_said_during_the_list() -> None:
    cluster = SlowCluster()
    resync = build(cluster)
    for name in ("kept", "cancelled", "deleted"):
        resync.store.put_job(cluster.put(TRAINING_JOBS, job(name)))

    async def meanwhile() -> None:
        cancelled = cluster.put(TRAINING_JOBS, job("cancelled", spec={"cancel": True}))
        resync.store.put_job(cancelled)
        deleted = resync.store.jobs[JobKey("ns", "deleted")]
        resync.store.drop_job(JobKey("ns", "deleted"), deleted["metadata"]["uid"])
        resync.store.put_job(cluster.put(TRAINING_JOBS, job("created")))

    cluster.meanwhile = meanwhile
    await resync.once()
    assert {key.name: raw["spec"] for key, raw in resync.store.jobs.items()} == {
        "kept": {},
        "cancelled": {"cancel": True},
        "created": {},
    }


def test_merge_with_nothing_known_is_the_list() -> None:
    listed = [{"metadata": {"uid": "a"}}, {"metadata": {"uid": "b"}}]
    assert merge([], [], listed) == listed


async def test_resync_runs_at_once_after_kopf_listed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resync_module, "SETTLE_SECONDS", 0.01)
    cluster = FakeCluster()
    resync = build(cluster)
    task = asyncio.create_task(resync.run())
    await asyncio.sleep(0.05)
    assert cluster.requests == []
    cluster.fail_next("list", DOWN)
    for _ in range(2):
        resync.watch_filter.relisted.set()
        await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [request.kind for request in cluster.requests] == ["TrainingJob"] * 2 + ["Pod"]


async def test_first_sync_waits_for_the_server_and_freezes_what_is_there() -> None:
    cluster = FakeCluster()
    cluster.put(TRAINING_JOBS, job("j"))
    cluster.fail_next("list", DOWN)
    resync = build(cluster)
    try:
        await resync.first()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
    assert len(resync.store.jobs) == 1
