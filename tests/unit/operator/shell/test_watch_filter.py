import asyncio
import copy
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client.configuration import Configuration

from engine_builders import UID, pod_raw, running_pod, waiting_pod
from ktrdr_client.cluster import PODS, TRAINING_JOBS, Cluster, Raw
from ktrdr_operator.metrics import Metrics
from ktrdr_operator.store import JobKey, Store
from ktrdr_operator.watch_filter import WatchFilter, essence

KEY = JobKey("ns", "j")
CHECKPOINT = {"epoch": 1, "step": 9, "path": "p", "time": "t", "digest": "sha256:0"}


def job(version: int = 1, *, uid: str = "u", spec: Raw | None = None, **progress: object) -> Raw:
    reported = {"attempt": 1, "podUID": "p", "stage": "Training", "step": version, **progress}
    return {
        "apiVersion": "ktrdr.io/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {
            "namespace": "ns",
            "name": "j",
            "uid": uid,
            "generation": 1,
            "resourceVersion": str(version),
            "managedFields": [{"manager": "ktrdr-trainer", "time": str(version)}],
        },
        "spec": spec or {"cancel": False},
        "status": {"phase": "Running", "progress": reported},
    }


def line(kind: str, obj: Raw) -> bytes:
    return json.dumps({"type": kind, "object": obj}).encode()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def beats() -> list[str]:
    return []


@pytest.fixture
def watch_filter(clock: Clock, beats: list[str]) -> WatchFilter:
    return WatchFilter(Store(), Metrics(), clock, beats.append, relisted=asyncio.Event())


def test_filter_drops_mere_progress_and_keeps_its_value(watch_filter: WatchFilter) -> None:
    watch_filter.seed(json.dumps({"items": [job(1)]}).encode())
    lines = [line("MODIFIED", job(n)) for n in range(2, 6)]
    assert [watch_filter.should_forward(text) for text in lines] == [False] * 4
    version, progress = watch_filter.store.latest_progress["u"]
    assert (version, (progress or {})["step"]) == ("5", 5)
    text = watch_filter.metrics.exposition().decode()
    assert 'ktrdr_watch_lines_total{outcome="dropped"} 4.0' in text


@pytest.mark.parametrize(
    "change",
    [
        job(2, stage="Cancelling"),
        job(2, attempt=2),
        job(2, checkpoint=CHECKPOINT),
        job(2, spec={"cancel": True}),
        {**job(2), "status": {"phase": "Failed", "progress": job(2)["status"]["progress"]}},
        {**job(2), "metadata": {**job(2)["metadata"], "deletionTimestamp": "t"}},
        {**job(2), "metadata": {**job(2)["metadata"], "labels": {"a": "b"}}},
        {**job(2), "status": {}},
        {name: value for name, value in job(2).items() if name != "status"},
    ],
)
def test_filter_passes_every_other_change_once(watch_filter: WatchFilter, change: Raw) -> None:
    watch_filter.seed(json.dumps({"items": [job(1)]}).encode())
    assert watch_filter.should_forward(line("MODIFIED", change))
    again = copy.deepcopy(change)
    again["metadata"]["resourceVersion"] = "3"
    assert not watch_filter.should_forward(line("MODIFIED", again))
    assert watch_filter.should_forward(line("MODIFIED", job(4))), "and back again"


def test_filter_drops_the_echo_of_our_own_write_once(watch_filter: WatchFilter) -> None:
    watch_filter.seed(json.dumps({"items": [job(1)]}).encode())
    ours, theirs = job(2, stage="Saving"), job(3, stage="Saving", attempt=2)
    watch_filter.store.put_own_write(ours)
    assert not watch_filter.should_forward(line("MODIFIED", ours))
    assert watch_filter.should_forward(line("MODIFIED", theirs))
    assert watch_filter.should_forward(line("MODIFIED", ours)), "versions are never used twice"


def test_filter_passes_what_came_between_two_writes_of_ours(watch_filter: WatchFilter) -> None:
    watch_filter.seed(json.dumps({"items": [job(1)]}).encode())
    watch_filter.store.put_own_write(job(4, spec={"cancel": True}))
    assert watch_filter.should_forward(line("MODIFIED", job(3, spec={"cancel": True})))
    assert not watch_filter.should_forward(line("MODIFIED", job(4, spec={"cancel": True})))


def test_filter_passes_of_a_pod_only_what_decisions_see(watch_filter: WatchFilter) -> None:
    story = (
        ("ADDED", pod_raw(node=None), True),
        ("MODIFIED", pod_raw(), False),  # bound to a node
        ("MODIFIED", waiting_pod("ContainerCreating", ""), False),
        ("MODIFIED", waiting_pod("ErrImagePull", "no such image"), True),
        ("MODIFIED", running_pod(), True),
        ("MODIFIED", running_pod(podIPs=[{"ip": "10.0.0.1"}]), False),
        ("MODIFIED", running_pod(deleting=True), True),
        ("DELETED", running_pod(deleting=True), True),
    )
    passed = [
        watch_filter.should_forward(line(kind, {"kind": "Pod", **pod})) for kind, pod, _ in story
    ]
    assert passed == [passes for *_, passes in story]
    assert watch_filter.store.latest_progress == {}


def test_filter_passes_of_a_pod_without_a_job_only_its_coming_and_going(
    watch_filter: WatchFilter,
) -> None:
    watch_filter.store.drop_job(KEY, UID)
    story = (("ADDED", pod_raw()), ("MODIFIED", running_pod()), ("DELETED", running_pod()))
    passed = [
        watch_filter.should_forward(line(kind, {"kind": "Pod", **pod})) for kind, pod in story
    ]
    assert passed == [True, False, True]


def test_filter_passes_what_it_cannot_read(watch_filter: WatchFilter) -> None:
    broken = {"kind": "Pod", "metadata": {"uid": "p", "resourceVersion": "1"}}
    assert watch_filter.should_forward(line("MODIFIED", broken))
    assert watch_filter.should_forward(line("MODIFIED", broken))


def test_filter_passes_added_deleted_bookmark_and_error(watch_filter: WatchFilter) -> None:
    status = {"kind": "Status", "code": 410}
    bookmark = {"kind": "TrainingJob", "metadata": {"resourceVersion": "9"}}
    for text in (
        line("ADDED", job(1)),
        line("ADDED", job(1)),
        line("DELETED", job(2)),
        line("BOOKMARK", bookmark),
        line("ERROR", status),
    ):
        assert watch_filter.should_forward(text)


def test_filter_after_deleted_knows_the_uid_no_more(watch_filter: WatchFilter) -> None:
    assert watch_filter.should_forward(line("ADDED", job(1)))
    assert watch_filter.should_forward(line("DELETED", job(2)))
    assert watch_filter.should_forward(line("MODIFIED", job(3)))


def test_filter_unknown_uid_passes_first(watch_filter: WatchFilter) -> None:
    watch_filter.seed(b'{"items": null}')
    assert watch_filter.should_forward(line("MODIFIED", job(1, uid="new")))
    assert not watch_filter.should_forward(line("MODIFIED", job(2, uid="new")))
    watch_filter.forget_all_but(set())
    assert watch_filter.should_forward(line("MODIFIED", job(3, uid="new")))


def test_essence_ignores_order_of_keys() -> None:
    turned = dict(reversed(job(1).items()))
    assert essence(turned) == essence(job(1))


def test_filter_progress_age_is_by_our_clock(watch_filter: WatchFilter, clock: Clock) -> None:
    watch_filter.store.put_job(job(1))
    watch_filter.should_forward(line("ADDED", job(1)))
    clock.now = 7.0
    assert watch_filter.progress_age_seconds() == 7.0
    watch_filter.should_forward(line("MODIFIED", job(2)))
    assert watch_filter.progress_age_seconds() == 0.0


@asynccontextmanager
async def server(chunks: list[bytes]) -> AsyncIterator[Cluster]:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.query.get("watch") != "true":
            return web.json_response({"items": [job(1)]})
        response = web.StreamResponse()
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
            await asyncio.sleep(0.005)
        return response

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as running:
        cluster = Cluster(Configuration(host=str(running.make_url("/"))))
        yield cluster
        await cluster.close()


async def test_session_watch_cut_anywhere_yields_whole_kept_lines(
    watch_filter: WatchFilter, beats: list[str]
) -> None:
    kept = line("MODIFIED", job(4, stage="Saving", message="ü" * 1000))
    stream = b"\n".join(
        [line("MODIFIED", job(n)) for n in (2, 3)] + [kept, line("MODIFIED", job(5))]
    )
    stream += b"\n" + line("DELETED", job(6)) + b"\n" + b'{"type": "MODIF'  # the server died here
    chunks = [stream[at : at + 700] for at in range(0, len(stream), 700)]
    path = TRAINING_JOBS.path("ns")
    async with server(chunks) as cluster, cluster.open_session(watch_filter) as session:
        async with session.get(cluster.server + path) as listing:
            assert len((await listing.json())["items"]) == 1
        assert watch_filter.relisted.is_set()
        async with session.get(cluster.server + path + "?watch=true") as watch:
            got = b"".join([part async for part in watch.content.iter_chunked(1 << 20)])
    kinds = [json.loads(text)["type"] for text in got.splitlines()]
    assert kinds == ["MODIFIED", "MODIFIED", "DELETED"]
    assert got.splitlines()[0] == kept
    assert set(beats) == {path}
    assert len(beats) >= 2


async def test_session_pod_watch_passes_news_and_beats(
    watch_filter: WatchFilter, beats: list[str]
) -> None:
    stream = line("MODIFIED", {"kind": "Pod", **running_pod()}) + b"\n"
    path = PODS.path(None)
    async with (
        server([stream, stream]) as cluster,
        cluster.open_session(watch_filter) as session,
        session.get(cluster.server + path + "?watch=true") as watch,
    ):
        got = b"".join([part async for part in watch.content.iter_chunked(1 << 20)])
    assert got == stream
    assert set(beats) == {path}
