import asyncio
import copy
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client.configuration import Configuration

from engine_builders import UID, pod_raw, running_pod, waiting_pod
from ktrdr_client.cluster import PODS, TRAINING_JOBS, Cluster, Raw
from ktrdr_operator import watch_session
from ktrdr_operator.intake import Intake
from ktrdr_operator.metrics import Metrics
from ktrdr_operator.queue import WorkQueue
from ktrdr_operator.store import JobKey, Store
from ktrdr_operator.watch_filter import WatchFilter
from ktrdr_operator.watch_session import WatchSession
from ktrdr_operator.watches import Watches

KEY = JobKey("ns", "j")
POD_KEY = JobKey("ns", "fx")
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


def pod_line(kind: str, pod: Raw, version: int) -> bytes:
    metadata = {**pod["metadata"], "resourceVersion": str(version)}
    return line(kind, {"apiVersion": "v1", "kind": "Pod", **pod, "metadata": metadata})


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Shell:
    """A watch filter, and what it fills."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = Store(self.clock)
        self.queue = WorkQueue[JobKey](clock=self.clock)
        self.metrics = Metrics()
        self.filter = WatchFilter(Intake(self.store, self.queue), self.metrics)

    def enqueues(self, text: bytes) -> bool:
        """Whether a line makes its TrainingJob run; kopf must get a bookmark only."""
        before = self.count("passed")
        passed = [json.loads(each) for each in self.filter.filter_lines([text])]
        version = json.loads(text)["object"]["metadata"]["resourceVersion"]
        bookmark = {"metadata": {"resourceVersion": version}}
        assert passed == [{"type": "BOOKMARK", "object": bookmark}]
        return self.count("passed") > before

    def count(self, outcome: str) -> float:
        return sum(
            self.metrics.registry.get_sample_value(
                "ktrdr_watch_events_total", {"kind": kind, "outcome": outcome}
            )
            or 0.0
            for kind in ("TrainingJob", "Pod")
        )


@pytest.fixture
def shell() -> Shell:
    return Shell()


def test_filter_drops_mere_progress_and_keeps_its_value(shell: Shell) -> None:
    shell.filter.filter_lines([line("ADDED", job(1))])
    lines = [
        line("MODIFIED", job(2, checkpoint=CHECKPOINT)),
        line("MODIFIED", job(3, stage="Saving", checkpoint=CHECKPOINT)),
        line("MODIFIED", job(4, stage="Training")),
    ]
    assert [shell.enqueues(text) for text in lines] == [False] * 3
    known = shell.store.jobs[KEY]
    assert (known.version, json.loads(known.progress)["step"]) == (4, 4)
    assert shell.store.job_raw(KEY) == {
        **job(4),
        "metadata": {k: v for k, v in job(4)["metadata"].items() if k != "managedFields"},
    }


@pytest.mark.parametrize(
    "change",
    [
        job(2, stage="Cancelling"),
        job(2, attempt=2),
        job(2, spec={"cancel": True}),
        {**job(2), "status": {"phase": "Failed", "progress": job(2)["status"]["progress"]}},
        {**job(2), "metadata": {**job(2)["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}},
        {**job(2), "metadata": {**job(2)["metadata"], "labels": {"a": "b"}}},
        {**job(2), "status": {}},
        {name: value for name, value in job(2).items() if name != "status"},
    ],
)
def test_filter_enqueues_every_other_change_once(shell: Shell, change: Raw) -> None:
    shell.filter.filter_lines([line("ADDED", job(1))])
    assert shell.enqueues(line("MODIFIED", change))
    again = copy.deepcopy(change)
    again["metadata"]["resourceVersion"] = "3"
    assert not shell.enqueues(line("MODIFIED", again))
    assert shell.enqueues(line("MODIFIED", job(4))), "and back again"


def test_filter_enqueues_the_first_report_after_a_long_silence(shell: Shell) -> None:
    shell.filter.filter_lines([line("ADDED", job(1))])
    shell.clock.now = 301.0
    own_write = {**job(2), "status": {**job(1)["status"], "reason": "NotReporting"}}
    shell.store.put_own_write(own_write)
    assert shell.store.seconds_since_report(KEY) == 301.0, "our own write is no report"
    report = {**own_write["status"], "progress": job(3)["status"]["progress"]}
    assert shell.enqueues(line("MODIFIED", {**job(3), "status": report}))
    assert shell.store.seconds_since_report(KEY) == 0.0
    report = {**report, "progress": job(4)["status"]["progress"]}
    assert not shell.enqueues(line("MODIFIED", {**job(4), "status": report}))


def test_filter_drops_the_echo_of_our_own_writes(shell: Shell) -> None:
    shell.filter.filter_lines([line("ADDED", job(1))])
    ours = {**job(3), "status": {"phase": "Succeeded"}}
    shell.store.put_own_write(ours)
    assert not shell.enqueues(line("MODIFIED", ours))
    assert not shell.enqueues(line("MODIFIED", job(2))), "our write was decided on a later one"
    shell.store.put_created_pod(POD_KEY, pod_raw())
    assert not shell.enqueues(pod_line("ADDED", pod_raw(), 1))


def test_filter_counts_the_bytes_of_the_object_as_the_server_stores_it(shell: Shell) -> None:
    text = json.dumps(job(1), separators=(",", ":"))
    shell.filter.filter_lines([f'{{"type":"MODIFIED","object":{text}}}'.encode()])
    assert shell.store.jobs[KEY].size_bytes == len(text)


def test_filter_enqueues_of_a_pod_only_what_decisions_see(shell: Shell) -> None:
    shell.store.put_job({**job(1), "metadata": {**job(1, uid=UID)["metadata"], "name": "fx"}})
    story = (
        ("ADDED", pod_raw(node=None), True),
        ("MODIFIED", pod_raw(), False),  # bound to a node
        ("MODIFIED", waiting_pod("ContainerCreating", ""), False),
        ("MODIFIED", waiting_pod("ErrImagePull", "no such image"), True),
        ("MODIFIED", running_pod(), True),
        ("MODIFIED", running_pod(podIPs=[{"ip": "10.0.0.1"}]), False),
        ("MODIFIED", running_pod(deleting=20), True),
        ("DELETED", running_pod(deleting=20), True),
    )
    lines = [pod_line(kind, pod, n + 1) for n, (kind, pod, _) in enumerate(story)]
    assert [shell.enqueues(text) for text in lines] == [enqueues for *_, enqueues in story]


def test_filter_measures_how_long_each_event_took_since_it_was_received(shell: Shell) -> None:
    shell.filter.filter_lines([line("ADDED", job(1)), line("MODIFIED", job(2))])
    count = shell.metrics.registry.get_sample_value("ktrdr_event_handler_lag_seconds_count")
    assert count == 2


def test_filter_survives_what_it_cannot_read(shell: Shell) -> None:
    broken = {"kind": "Pod", "metadata": {"uid": "p", "resourceVersion": "1"}}
    assert not shell.enqueues(line("MODIFIED", broken))
    assert shell.enqueues(line("ADDED", job(2)))


def test_filter_passes_bookmarks_and_errors_in_order(shell: Shell) -> None:
    error = line("ERROR", {"kind": "Status", "code": 410})
    bookmark = line("BOOKMARK", {"kind": "TrainingJob", "metadata": {"resourceVersion": "9"}})
    assert shell.filter.filter_lines([bookmark, error]) == [bookmark, error]
    assert shell.filter.filter_lines([line("ADDED", job(1)), bookmark]) == [bookmark]
    passed = shell.filter.filter_lines([bookmark, line("ADDED", job(10)), line("DELETED", job(11))])
    assert passed[0] == bookmark
    assert json.loads(passed[1])["object"] == {"metadata": {"resourceVersion": "11"}}
    assert shell.filter.filter_lines([]) == []


def test_progress_age_is_by_our_clock(shell: Shell) -> None:
    shell.filter.filter_lines([line("ADDED", job(1))])
    shell.clock.now = 7.0
    assert shell.store.progress_age_seconds() == 7.0
    shell.filter.filter_lines([line("MODIFIED", job(2))])
    assert shell.store.progress_age_seconds() == 0.0


class Api:
    """A real HTTP server that answers lists and watches, perhaps with a refusal first."""

    def __init__(self, chunks: list[bytes], refusals: int = 0) -> None:
        self.chunks = chunks
        self.refusals = refusals
        self.watched = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if self.refusals:
            self.refusals -= 1
            return web.json_response({"kind": "Status", "code": 403}, status=403)
        if request.query.get("watch") != "true":
            metadata = {"resourceVersion": "7", "continue": "more"}
            return web.json_response({"kind": "List", "metadata": metadata, "items": [job(1)]})
        self.watched += 1
        response = web.StreamResponse()
        await response.prepare(request)
        for chunk in self.chunks:
            await response.write(chunk)
            await asyncio.sleep(0.005)
        return response

    @asynccontextmanager
    async def client(self, requests: list[tuple[str, str]]) -> AsyncIterator[Cluster]:
        app = web.Application()
        app.router.add_get("/{path:.*}", self.answer)
        async with TestServer(app) as running:
            configuration = Configuration(host=str(running.make_url("/")))
            cluster = Cluster(configuration, on_request=lambda *what: requests.append(what))
            yield cluster
            await cluster.close()


async def read_lines(cluster: Cluster, session: WatchSession, path: str) -> list[Any]:
    async with (
        cluster.open_session(session) as http,
        http.get(f"{cluster.server}{path}?watch=true") as watch,
    ):
        got = b"".join([part async for part in watch.content.iter_chunked(1 << 20)])
    return [json.loads(text) for text in got.splitlines()]


async def test_session_answers_a_list_with_no_items_and_its_version(shell: Shell) -> None:
    beats: list[str] = []
    requests: list[tuple[str, str]] = []
    path = TRAINING_JOBS.path("ns")
    watches = Watches(beats.append, unpositioned={path, "other"})
    async with Api([]).client(requests) as cluster:
        session = WatchSession(shell.filter, watches)
        async with (
            cluster.open_session(session) as http,
            http.get(cluster.server + path) as answer,
        ):
            listed = await answer.json()
    assert listed == {"kind": "List", "metadata": {"resourceVersion": "7"}, "items": []}
    assert (watches.relisted.is_set(), watches.positioned.is_set()) == (True, False)
    assert watches.unpositioned == {"other"}
    assert beats == [path]
    assert requests == [("GET", "200")]


async def test_session_watch_cut_anywhere_yields_whole_lines(shell: Shell) -> None:
    beats: list[str] = []
    error = line("ERROR", {"kind": "Status", "code": 410, "message": "ü" * 1000})
    parts = [line("ADDED", job(1)), *(line("MODIFIED", job(n)) for n in (2, 3)), error]
    stream = b"\n".join(parts) + b"\n" + b'{"type": "MODIF'  # the server died here
    chunks = [stream[at : at + 700] for at in range(0, len(stream), 700)]
    path = PODS.path("ns")
    async with Api(chunks).client([]) as cluster:
        session = WatchSession(shell.filter, Watches(beats.append))
        got = await read_lines(cluster, session, path)
    assert got[-1] == json.loads(error)
    assert {event["type"] for event in got[:-1]} == {"BOOKMARK"}
    assert shell.store.jobs[KEY].version == 3
    assert set(beats) == {path}
    assert len(beats) >= 2


async def test_session_forbidden_collection_is_an_empty_list_and_a_watch_that_waits(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch_session, "FORBIDDEN_RETRY_SECONDS", 0.01)
    beats: list[str] = []
    requests: list[tuple[str, str]] = []
    api = Api([line("ADDED", job(1)) + b"\n"], refusals=4)
    path = TRAINING_JOBS.path("ns")
    watches = Watches(beats.append, unpositioned={path})
    async with api.client(requests) as cluster:
        session = WatchSession(shell.filter, watches)
        async with (
            cluster.open_session(session) as http,
            http.get(cluster.server + path) as answer,
        ):
            assert await answer.json() == {"metadata": {}, "items": []}
            assert answer.status == 200
        assert watches.positioned.is_set()
        assert not watches.relisted.is_set()
        await read_lines(cluster, session, path)
    assert KEY in shell.store.jobs
    assert watches.relisted.is_set(), "it has to be listed now"
    assert [code for _, code in requests] == ["403"] * 4 + ["200"]
    assert len(beats) >= 5
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1


async def test_session_leaves_discovery_alone(shell: Shell) -> None:
    async with Api([], refusals=1).client([]) as cluster:
        session = WatchSession(shell.filter, Watches(lambda _: None))
        async with (
            cluster.open_session(session) as http,
            http.get(f"{cluster.server}/apis") as answer,
        ):
            assert answer.status == 403
