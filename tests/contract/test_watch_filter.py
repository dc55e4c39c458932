"""The watch session and filter below the real kopf, against a real API server."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import orjson
import pytest
import yaml

from ktrdr_client.cluster import PODS, TRAINING_JOBS, Cluster, Raw
from ktrdr_operator import watch_session
from ktrdr_operator.handlers import Handlers, kopf_settings, registry, run_kopf
from ktrdr_operator.intake import Intake
from ktrdr_operator.metrics import Metrics
from ktrdr_operator.queue import WorkQueue
from ktrdr_operator.resync import Resync
from ktrdr_operator.store import JobKey, Store
from ktrdr_operator.watch_filter import WatchFilter
from ktrdr_operator.watch_session import WatchSession
from ktrdr_operator.watches import Watches
from kube import Kube, training_job

IDLE: Raw = {"strategy": {"configMapKeyRef": {"name": "none", "key": "none"}}}
"""A job that an operator, should one serve this cluster, leaves waiting."""

pytestmark = pytest.mark.usefixtures("crd", "_nothing_for_kopf")


@pytest.fixture
def _nothing_for_kopf(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No event of an object may reach kopf's handlers: each would cost it 0.9 ms."""
    reached: list[Any] = []

    async def note(_: Handlers, event: Any, **__: Any) -> None:
        reached.append(event)

    monkeypatch.setattr(Handlers, "on_job", note)
    monkeypatch.setattr(Handlers, "on_pod", note)
    yield
    assert reached == []


@dataclass(frozen=True)
class RecordingIntake(Intake):
    """The real intake, which also remembers the TrainingJob events that enqueued a key."""

    events: list[tuple[str, Raw]] = field(default_factory=list)

    def take_job(self, kind: str, raw: Raw, size_bytes: int = 0) -> bool:
        is_enqueued = super().take_job(kind, raw, size_bytes)
        if is_enqueued:
            self.events.append((kind, raw))
        return is_enqueued


class Shell:
    """The operator without workers."""

    def __init__(self, client: Cluster, *namespaces: str) -> None:
        self.store = Store()
        queue, metrics = WorkQueue[JobKey](clock=time.monotonic), Metrics()
        self.intake = RecordingIntake(self.store, queue)
        paths = {kind.path(ns) for kind in (TRAINING_JOBS, PODS) for ns in namespaces}
        self.watches = Watches(lambda _: None, unpositioned=paths)
        self.resync = Resync(
            client,
            self.store,
            queue,
            self.watches,
            metrics,
            namespaces=namespaces,
            period_seconds=300,
            random=Random(0),  # noqa: S311 - not used here
            now=lambda: datetime.now(UTC),
        )
        self.session = WatchSession(WatchFilter(self.intake, metrics), self.watches)

    async def quiet(self) -> int:
        """Wait until nothing has come for a second; returns how much has come in all."""
        count = -1
        while count != len(self.intake.events):
            count = len(self.intake.events)
            await asyncio.sleep(1)
        return count

    async def knows(self, namespace: str, name: str) -> None:
        """Wait until the store has a TrainingJob."""
        async with asyncio.timeout(10):
            while JobKey(namespace, name) not in self.store.jobs:
                await asyncio.sleep(0.02)


@pytest.fixture
async def client(kube: Kube) -> AsyncIterator[Cluster]:
    cluster = await Cluster.connect(kubeconfig=kube.kubeconfig)
    yield cluster
    await cluster.close()


@contextlib.asynccontextmanager
async def running_shell(
    client: Cluster, *namespaces: str, server_timeout: float | None = None
) -> AsyncIterator[Shell]:
    """The operator's shell on some namespaces; the first resync is done."""
    shell, settings = Shell(client, *namespaces), kopf_settings()
    settings.watching.server_timeout = server_timeout
    table = registry(shell.intake, client, shell.session)
    task = asyncio.create_task(run_kopf(table, settings, namespaces, started=lambda: None))
    try:
        await asyncio.wait_for(shell.watches.positioned.wait(), 10)
        await shell.resync.once()
        yield shell
        assert not task.done(), "kopf has died"
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        # kopf closes its watches without waiting for TLS to end, and the loop ends with the test.
        # Source: aiohttp, "Graceful Shutdown".
        await asyncio.sleep(0.25)


async def report(client: Cluster, kube: Kube, step: int, **progress: object) -> Raw:
    """Report progress as a trainer would."""
    body: Raw = {
        "apiVersion": "ktrdr.io/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"namespace": kube.namespace, "name": "job"},
        "status": {
            "progress": {
                "attempt": 1,
                "podUID": "p",
                "stage": "Training",
                "step": step,
                "lastUpdateTime": "2026-01-01T00:00:00Z",
                **progress,
            }
        },
    }
    return await client.apply(TRAINING_JOBS, body, subresource="status")


async def test_filter_takes_progress_from_kopf_and_keeps_the_latest(
    client: Cluster, kube: Kube
) -> None:
    async with running_shell(client, kube.namespace) as shell:
        kube.create(training_job(**IDLE))
        await report(client, kube, 0)
        before = await shell.quiet()
        for step in range(1, 61):
            await report(client, kube, step, stage="Saving" if step % 2 else "Training")
        assert await shell.quiet() == before
        known = shell.store.jobs[JobKey(kube.namespace, "job")]
        assert orjson.loads(known.progress)["step"] == 60
        raw = await client.get(TRAINING_JOBS, kube.namespace, "job")
        assert raw is not None
        assert known.version == int(raw["metadata"]["resourceVersion"])
        assert known.size_bytes == len(orjson.dumps(raw))
        await report(client, kube, 61, stage="Cancelling")
        assert await shell.quiet() == before + 1
        assert shell.intake.events[-1][1]["status"]["progress"]["stage"] == "Cancelling"


async def test_filter_body_of_an_own_write_equals_that_of_its_echo(
    client: Cluster, kube: Kube
) -> None:
    async with running_shell(client, kube.namespace) as shell:
        kube.create(training_job(**IDLE))
        job = await report(client, kube, 0)
        await shell.quiet()
        metadata = {name: job["metadata"][name] for name in ("namespace", "name")}
        kind = {name: job[name] for name in ("apiVersion", "kind")}
        status = {**job["status"], "observedGeneration": 1, "phase": "Pending"}
        body: Raw = {**kind, "metadata": metadata, "status": status}
        written = await client.apply(TRAINING_JOBS, body, subresource="status")
        shell.store.put_own_write(written)
        before = await shell.quiet()
        change = {"status": {"progress": {"step": 1}}}
        kube.patch(TRAINING_JOBS.plural, "job", change, "--subresource=status")
        assert await shell.quiet() == before
        known = shell.store.jobs[JobKey(kube.namespace, "job")]
        assert orjson.loads(known.progress)["step"] == 1


async def test_filter_shows_a_cancel_immediately_amid_progress(client: Cluster, kube: Kube) -> None:
    async with running_shell(client, kube.namespace) as shell:
        kube.create(training_job(**IDLE))
        await report(client, kube, 0)
        await shell.quiet()
        stop = asyncio.Event()

        async def flood() -> None:
            step = 1
            while not stop.is_set():
                await report(client, kube, step)
                step += 1

        flooding = asyncio.create_task(flood())
        await asyncio.to_thread(kube.patch, TRAINING_JOBS.plural, "job", {"spec": {"cancel": True}})
        patched = time.monotonic()
        while not shell.store.jobs[JobKey(kube.namespace, "job")].is_stop_requested:
            assert time.monotonic() - patched < 0.5
            await asyncio.sleep(0.005)
        stop.set()
        await flooding


async def test_shell_leaves_metadata_alone_and_sees_the_deletion(
    client: Cluster, kube: Kube
) -> None:
    async with running_shell(client, kube.namespace) as shell:
        before = kube.create(training_job(**IDLE))["metadata"]
        await shell.quiet()
        after = kube.get(TRAINING_JOBS.plural, "job")["metadata"]
        for metadata in (before, after):
            metadata.pop("resourceVersion")
            metadata.pop("managedFields", None)
        assert after == before
        assert shell.store.jobs
        kube.run("delete", "trainingjobs.ktrdr.io", "job")
        await shell.quiet()
        assert shell.intake.events[-1][0] == "DELETED"
        assert shell.store.jobs == {}


async def test_shell_reconnects_from_where_it_was(client: Cluster, kube: Kube) -> None:
    """A watch that ends goes on from the last event, although kopf has seen only bookmarks."""
    async with running_shell(client, kube.namespace, server_timeout=1) as shell:
        kube.create(training_job(**IDLE))
        shell.watches.relisted.clear()
        for step in range(8):
            await report(client, kube, step)
            await asyncio.sleep(0.4)
        await shell.quiet()
        assert orjson.loads(shell.store.jobs[JobKey(kube.namespace, "job")].progress)["step"] == 7
        assert not shell.watches.relisted.is_set()


async def test_shell_pod_that_loses_its_label_is_deleted_for_the_watch_and_live_for_a_get(
    client: Cluster, kube: Kube
) -> None:
    async with running_shell(client, kube.namespace) as shell:
        key = JobKey(kube.namespace, "job")
        job = kube.create(training_job(**IDLE))
        kube.create(labelled_pod(job["metadata"]["uid"]))
        async with asyncio.timeout(5):
            while not shell.store.pods_of(key):
                await asyncio.sleep(0.02)
        kube.run("label", "pod", "job-1-0", "ktrdr.io/job-")
        async with asyncio.timeout(5):
            while not shell.store.pods_of(key)[0].gone:
                await asyncio.sleep(0.02)
        live = await client.get(PODS, kube.namespace, "job-1-0")
        shell.store.put_live_pod(key, "job-1-0", live, shell.store.pod(key, "job-1-0"))
        assert [(view.name, view.gone) for view in shell.store.pods_of(key)] == [("job-1-0", False)]


def labelled_pod(owner_uid: str) -> Raw:
    """A pod of a TrainingJob that no scheduler takes."""
    owner = {"apiVersion": "ktrdr.io/v1alpha1", "kind": "TrainingJob", "name": "job"}
    restricted = {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "job-1-0",
            "labels": {"ktrdr.io/job": "job", "ktrdr.io/attempt": "1", "ktrdr.io/rank": "0"},
            "ownerReferences": [{**owner, "uid": owner_uid, "controller": True}],
        },
        "spec": {
            "schedulerName": "none",
            "containers": [{"name": "trainer", "image": "none", "securityContext": restricted}],
        },
    }


@pytest.fixture
def other_namespace(kube: Kube) -> Iterator[Kube]:
    other = replace(kube, namespace=f"{kube.namespace}-other")
    kube.run("create", "namespace", other.namespace)
    yield other
    kube.run("delete", "namespace", other.namespace, "--wait=false")


@pytest.fixture
async def reader(kube: Kube, tmp_path: Path) -> AsyncIterator[Cluster]:
    """A client with the identity of a ServiceAccount that has no rights yet."""
    kube.run("create", "serviceaccount", "reader")
    config = yaml.safe_load(kube.run("config", "view", "--minify", "--raw"))
    config["users"][0]["user"] = {"token": kube.run("create", "token", "reader").strip()}
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(config))
    cluster = await Cluster.connect(kubeconfig=kubeconfig)
    yield cluster
    await cluster.close()


def let_read(kube: Kube, account_namespace: str) -> None:
    """Give the reader a RoleBinding in a namespace."""
    what = "--resource=trainingjobs.ktrdr.io,pods"
    kube.run("create", "role", "reader", what, "--verb=get,list,watch")
    account = f"--serviceaccount={account_namespace}:reader"
    kube.run("create", "rolebinding", "reader", "--role=reader", account)


async def test_shell_namespace_that_may_not_be_read_stops_nobody_and_is_taken_up_again(
    reader: Cluster, kube: Kube, other_namespace: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_session, "FORBIDDEN_RETRY_SECONDS", 0.2)
    here, there = kube.namespace, other_namespace.namespace
    let_read(kube, here)
    async with running_shell(reader, here, there, server_timeout=1) as shell:
        assert {path.split("/")[-2] for path in shell.watches.forbidden} == {there}
        kube.create(training_job("first", **IDLE))
        await shell.knows(here, "first")
        other_namespace.create(training_job("there", **IDLE))
        let_read(other_namespace, here)
        await shell.knows(there, "there")
        kube.run("delete", "rolebinding", "reader")
        async with asyncio.timeout(10):
            while {path.split("/")[-2] for path in shell.watches.forbidden} != {here}:
                await asyncio.sleep(0.05)
        other_namespace.create(training_job("second", **IDLE))
        await shell.knows(there, "second")
        await shell.resync.once()
        assert JobKey(here, "first") in shell.store.jobs


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Operator:
    """`python -m ktrdr_operator` as a process of its own."""

    process: asyncio.subprocess.Process
    port: int

    async def get(self, path: str) -> tuple[int, str]:
        """Fetch a page; 0 when nothing listens yet."""
        with contextlib.suppress(aiohttp.ClientConnectionError):
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://127.0.0.1:{self.port}{path}") as response,
            ):
                return response.status, await response.text()
        return 0, ""

    async def until(self, path: str, text: str) -> None:
        """Wait until a page contains a text."""
        async with asyncio.timeout(20):
            while text not in (await self.get(path))[1]:
                await asyncio.sleep(0.1)

    async def end(self) -> tuple[int, str]:
        """Ask it to end; returns its exit code and log."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            _, log = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, log.decode()


async def start_operator(kubeconfig: Path, namespace: str, **settings: str) -> Operator:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "ktrdr_operator",
        env={
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "KTRDR_TRAINER_IMAGE": "none",
            "KTRDR_HTTP_PORT": str(port),
            "KTRDR_WATCH_NAMESPACES": namespace,
            **settings,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    return Operator(process, port)


async def test_process_serves_health_and_ends_in_order_on_sigterm(kube: Kube) -> None:
    operator = await start_operator(kube.kubeconfig, kube.namespace)
    await operator.until("/healthz", "ok")
    kube.create(training_job(**IDLE))
    await operator.until("/metrics", 'ktrdr_reconcile_total{outcome="ok"}')
    kube.create(training_job("second", **IDLE))  # the first may have been listed
    await operator.until(
        "/metrics", 'ktrdr_watch_events_total{kind="TrainingJob",outcome="passed"}'
    )
    code, log = await operator.end()
    assert code == 0, log
    assert "Operator stopped" in log
    assert "Traceback" not in log


async def test_process_with_election_waits_for_the_lease_and_gives_it_up(kube: Kube) -> None:
    election = {"KTRDR_LEADER_ELECTION": "true", "KTRDR_LEASE_NAMESPACE": kube.namespace}
    leads = 'leader_election_master_status{name="ktrdr-operator"} '
    first = await start_operator(kube.kubeconfig, kube.namespace, **election)
    await first.until("/metrics", leads + "1.0")
    second = await start_operator(kube.kubeconfig, kube.namespace, **election)
    await second.until("/metrics", leads + "0.0")
    assert (await second.get("/healthz"))[0] == 200
    assert (await first.end())[0] == 0
    await second.until("/metrics", leads + "1.0")
    assert (await second.end())[0] == 0


async def test_process_whose_lease_was_taken_ends_non_zero(kube: Kube) -> None:
    election = {"KTRDR_LEADER_ELECTION": "true", "KTRDR_LEASE_NAMESPACE": kube.namespace}
    operator = await start_operator(kube.kubeconfig, kube.namespace, **election)
    await operator.until("/metrics", "ktrdr_watch_events_total")
    await operator.until("/metrics", 'leader_election_master_status{name="ktrdr-operator"} 1.0')
    kube.patch("lease", "ktrdr-operator", {"spec": {"holderIdentity": "thief"}})
    async with asyncio.timeout(15):
        _, log = await operator.process.communicate()
    assert operator.process.returncode == 1
    assert "is now held by thief" in log.decode()
