"""kopf over the filtering session, against a real API server: what it sees, and what it leaves."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import kopf
import pytest

from ktrdr_client.cluster import TRAINING_JOBS, Cluster, Raw
from ktrdr_operator.handlers import Handlers, kopf_settings, registry, run_kopf
from ktrdr_operator.metrics import Metrics
from ktrdr_operator.queue import WorkQueue
from ktrdr_operator.store import JobKey, Store
from ktrdr_operator.watch_filter import WatchFilter
from kube import Kube, training_job

IDLE: Raw = {"strategy": {"configMapKeyRef": {"name": "none", "key": "none"}}}
"""A job that an operator, should one serve this cluster, leaves waiting for ever."""

pytestmark = pytest.mark.usefixtures("crd")


@dataclass
class Listening(Handlers):
    """The real handlers, which also remember what kopf handed them."""

    events: list[kopf.RawEvent] = field(default_factory=list)

    async def on_job(self, event: kopf.RawEvent, **_: object) -> None:
        self.events.append(event)
        await super().on_job(event)

    async def quiet(self) -> int:
        """Wait until nothing has come for a second; returns how much has come in all."""
        count = -1
        while count != len(self.events):
            count = len(self.events)
            await asyncio.sleep(1)
        return count


@pytest.fixture
async def client(kube: Kube) -> AsyncIterator[Cluster]:
    cluster = await Cluster.connect(kubeconfig=kube.kubeconfig)
    yield cluster
    await cluster.close()


@contextlib.asynccontextmanager
async def running_shell(client: Cluster, kube: Kube) -> AsyncIterator[Listening]:
    """The operator's shell on one namespace; its queue has no workers.

    No fixture: kopf, when it ends, waits 5 s for every task that is younger than itself.
    """
    store, metrics = Store(), Metrics()
    watch_filter = WatchFilter(
        store, metrics, time.monotonic, beat=lambda _: None, relisted=asyncio.Event()
    )
    queue = WorkQueue[JobKey](clock=time.monotonic)
    handlers = Listening(store, queue, metrics, watch_filter)
    task = asyncio.create_task(
        run_kopf(
            registry(handlers, client), kopf_settings(), (kube.namespace,), started=lambda: None
        )
    )
    await asyncio.wait_for(watch_filter.relisted.wait(), 10)
    await asyncio.sleep(0.5)  # the watch follows the list
    yield handlers
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


async def test_session_hides_progress_from_kopf_and_keeps_the_newest(
    client: Cluster, kube: Kube
) -> None:
    async with running_shell(client, kube) as shell:
        kube.create(training_job(**IDLE))
        await report(client, kube, 0)
        before = await shell.quiet()
        for step in range(1, 61):
            await report(client, kube, step)
        assert await shell.quiet() == before
        uid = shell.events[-1]["object"]["metadata"]["uid"]
        assert (shell.store.latest_progress[uid].progress or {})["step"] == 60
        await report(client, kube, 61, stage="Saving")
        assert await shell.quiet() == before + 1
        assert shell.events[-1]["object"]["status"]["progress"]["stage"] == "Saving"


async def test_session_shows_a_cancel_at_once_amid_progress(client: Cluster, kube: Kube) -> None:
    async with running_shell(client, kube) as shell:
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
        while not any(event["object"].get("spec", {}).get("cancel") for event in shell.events):
            assert time.monotonic() - patched < 0.5
            await asyncio.sleep(0.005)
        stop.set()
        await flooding


async def test_shell_leaves_metadata_alone_and_sees_the_deletion(
    client: Cluster, kube: Kube
) -> None:
    async with running_shell(client, kube) as shell:
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
        assert shell.events[-1]["type"] == "DELETED"
        assert shell.store.jobs == {}


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
    await operator.until("/metrics", 'ktrdr_watch_lines_total{outcome="passed"}')
    code, log = await operator.end()
    assert code == 0, log
    assert "stopped in order" in log
    assert "Traceback" not in log


async def test_process_with_election_waits_for_the_lease_and_gives_it_up(kube: Kube) -> None:
    election = {"KTRDR_LEADER_ELECTION": "true", "KTRDR_LEASE_NAMESPACE": kube.namespace}
    leads = 'leader_election_master_status{name="ktrdr-operator"} '
    first = await start_operator(kube.kubeconfig, kube.namespace, **election)
    await first.run_until_stopped("/metrics", leads + "1.0")
    second = await start_operator(kube.kubeconfig, kube.namespace, **election)
    await second.run_until_stopped("/metrics", leads + "0.0")
    assert (await second.get("/healthz"))[0] == 200
    assert (await first.end())[0] == 0
    await second.run_until_stopped("/metrics", leads + "1.0")
    assert (await second.end())[0] == 0


async def test_process_whose_lease_was_taken_ends_non_zero(kube: Kube) -> None:
    election = {"KTRDR_LEADER_ELECTION": "true", "KTRDR_LEASE_NAMESPACE": kube.namespace}
    operator = await start_operator(kube.kubeconfig, kube.namespace, **election)
    await operator.until("/metrics", "ktrdr_watch_lines_total")
    await operator.until("/metrics", 'leader_election_master_status{name="ktrdr-operator"} 1.0')
    kube.patch("lease", "ktrdr-operator", {"spec": {"holderIdentity": "thief"}})
    async with asyncio.timeout(15):
        _, log = await operator.process.communicate()
    assert operator.process.returncode == 1
    assert "the lease is now held by thief" in log.decode()
