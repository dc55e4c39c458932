import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client.configuration import Configuration

from ktrdr_client.cluster import PODS, TRAINING_JOBS, Cluster, Unreachable
from ktrdr_client.testing import FakeCluster
from ktrdr_operator import __main__ as entry
from ktrdr_operator import leader
from ktrdr_operator.__main__ import (
    GC_THRESHOLDS,
    Operator,
    TaskExitedError,
    build,
    operate,
    run_tasks,
    run_until_stopped,
    tune_garbage_collection,
)
from ktrdr_operator.health import SILENCE_SECONDS, Liveness
from ktrdr_operator.metrics import Metrics
from ktrdr_operator.settings import Settings
from ktrdr_operator.store import JobKey


async def forever(ended: list[str] | None = None) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        if ended is not None:
            ended.append("ended")


async def die() -> None:
    await asyncio.sleep(0)
    raise OSError("watch died")


async def test_run_all_part_that_dies_ends_all_with_its_error() -> None:
    ended: list[str] = []
    with pytest.raises(OSError, match="watch died"):
        await run_tasks({"a": forever(ended), "b": die()})
    assert ended == ["ended"]


async def test_run_all_part_that_returns_is_an_error_with_its_name() -> None:
    with pytest.raises(TaskExitedError, match="resync"):
        await run_tasks({"a": forever(), "resync": asyncio.sleep(0)})


async def test_until_stop_cancels_the_part() -> None:
    stop, ended = asyncio.Event(), list[str]()
    asyncio.get_running_loop().call_later(0.01, stop.set)
    await run_until_stopped(stop, forever(ended))
    assert ended == ["ended"]


async def test_until_part_that_dies_raises() -> None:
    with pytest.raises(OSError, match="watch died"):
        await run_until_stopped(asyncio.Event(), die())


def test_main_with_bad_settings_names_the_variable_and_exits_2(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ktrdr_operator.logs.configure", lambda *_: None)
    monkeypatch.setenv("KTRDR_WORKERS", "many")
    monkeypatch.delenv("KTRDR_TRAINER_IMAGE", raising=False)
    said: list[str] = []
    monkeypatch.setattr(entry.log, "critical", lambda text, *args: said.append(text % args))
    assert entry.main() == 2
    assert said[0] == "KTRDR_TRAINER_IMAGE: not set, and it has no default; set it"
    assert said[1].startswith("KTRDR_WORKERS: input should be a valid integer")


@pytest.fixture(autouse=True)
def _usual_garbage_collection() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def test_garbage_collection_is_rare_and_leaves_modules_alone() -> None:
    tune_garbage_collection()
    assert gc.get_threshold() == GC_THRESHOLDS
    assert gc.get_freeze_count() > 10_000


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def build_on(cluster: FakeCluster, liveness: Liveness) -> Operator:
    return build(Settings(trainer_image="x"), cast(Cluster, cluster), Metrics(), liveness)


async def test_watches_are_not_expected_to_be_alive_while_the_server_is_unreachable() -> None:
    clock, cluster = Clock(), FakeCluster()
    liveness = Liveness(clock)
    for nth in range(1, 5):
        cluster.fail_next("list", Unreachable(0, "ClientOSError", "refused"), nth=nth)
    operator = build_on(cluster, liveness)
    tasks = operator.tasks(lambda: None)
    watching = asyncio.create_task(tasks.pop("watches"))
    for task in tasks.values():
        task.close()
    async with asyncio.timeout(5):
        while not cluster.requests:
            await asyncio.sleep(0)
    clock.now = 2 * SILENCE_SECONDS
    assert liveness.overdue() == {}
    assert operator.watches.unpositioned == {TRAINING_JOBS.path(None), PODS.path(None)}
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching


async def test_workers_start_when_the_store_is_complete() -> None:
    cluster = FakeCluster()
    cluster.put(TRAINING_JOBS, {"metadata": {"namespace": "ns", "name": "j"}, "spec": {}})
    operator = build_on(cluster, Liveness(Clock()))
    parts = operator.tasks(lambda: None)
    for name in ("watches", "events", "canary"):
        parts.pop(name).close()
    running = [asyncio.create_task(part) for part in parts.values()]
    operator.queue.add(JobKey("ns", "elsewhere"))
    await asyncio.sleep(0.01)
    assert (len(operator.queue), cluster.requests) == (1, [])
    operator.watches.positioned.set()
    async with asyncio.timeout(5):
        while len(operator.queue):
            await asyncio.sleep(0.01)
    assert operator.resync.filled.is_set()
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


class SlowApi:
    """An API server whose list of TrainingJobs never ends; it counts renewals of the Lease."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] = {}
        self.renewals = 0
        self.listed = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if "/leases" in request.path:
            return await self._answer_lease(request)
        if request.path.endswith("/trainingjobs") and "labelSelector" not in request.query:
            self.listed.set()
            await asyncio.Event().wait()
        return web.json_response({})

    async def _answer_lease(self, request: web.Request) -> web.StreamResponse:
        if request.method == "GET" and not self.lease:
            return web.json_response({"reason": "NotFound"}, status=404)
        if request.method != "GET":
            self.renewals += 1
            self.lease = await request.json()
            self.lease["metadata"]["resourceVersion"] = str(self.renewals)
        return web.json_response(self.lease)

    @asynccontextmanager
    async def serve(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        async with TestServer(app) as server:

            async def connect(**options: Any) -> Cluster:
                return Cluster(Configuration(host=str(server.make_url("/"))), **options)

            monkeypatch.setattr(Cluster, "connect", connect)
            yield


async def test_operate_renews_the_lease_while_the_first_list_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leader, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(entry, "install_signal_handlers", lambda _: None)
    settings = Settings(
        trainer_image="x", http_port=0, leader_election=True, lease_namespace="system"
    )
    api = SlowApi()
    async with api.serve(monkeypatch):
        operating = asyncio.create_task(operate(settings))
        await asyncio.wait_for(api.listed.wait(), 5)
        before = api.renewals
        async with asyncio.timeout(5):
            while api.renewals < before + 5:
                await asyncio.sleep(0.01)
        assert not operating.done()
        operating.cancel()
        with suppress(asyncio.CancelledError):
            await operating
    assert "holderIdentity" not in api.lease["spec"], "released"
