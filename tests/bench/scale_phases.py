"""Phases of `bench_scale`: cold start, resync, new jobs during resyncs, reports.

Called by `bench_scale`, which prints the results. Each phase is bounded in time; one that the
operator does not get through is infinitely slow, so its threshold fails and the run goes on.
"""

import asyncio
import math
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final

import aiohttp

from bench import accounting
from bench.accounting import API_SERVER, ETCD, ControlPlane, Requests, scrape
from bench.environment import Tools
from bench.operator_process import (
    OperatorExitedError,
    OperatorProcess,
    longest_pause_seconds,
    operator,
)
from bench.own_api_server import Etcd
from bench.reporters import Reporters
from bench.seeding import job_body
from bench.watching import Raw, Sightings, watching
from bench.writes import USER, Writer
from ktrdr_api import names
from ktrdr_client.cluster import PODS, TRAINING_JOBS, ApiError

START_SECONDS: Final = 120.0
SETTLE_SECONDS: Final = 90.0
IDLE_SECONDS: Final = 5.0
RESYNC_SECONDS: Final = 15.0
RESYNC_BOUND_SECONDS: Final = 60.0
RESYNCS: Final = 2
PROBE_SECONDS: Final = 36.0
"""Two of the longest periods between resyncs (jitter 20 %): every probe series meets two."""
PROBE_PERIOD_SECONDS: Final = 0.4
PROBE_BOUND_SECONDS: Final = 60.0
REPORT_WARM_UP_SECONDS: Final = 15.0
REPORT_SECONDS: Final = 40.0
HISTORY_SECONDS: Final = 600.0
"""etcd keeps every revision for 5 to 10 minutes: the API server compacts every 5 minutes what is
5 minutes old."""
SETTINGS: Final = {
    "KTRDR_LEADER_ELECTION": "true",
    "KTRDR_LEASE_NAME": "bench-operator",
    # The seeded trainers are silent until reports are measured; that is not what is measured here.
    "KTRDR_NO_REPORT_SECONDS": "86400",
}
POLL_SECONDS: Final = 1.0
PENDING: Final = math.inf


@dataclass
class ColdStart:
    """A start of the operator with everything there."""

    watching_seconds: float = PENDING
    """From the start of the process until TrainingJobs and pods are watched."""
    cpu_seconds: float = PENDING
    settled_seconds: float = PENDING
    """From the start of the process until it has nothing to do."""
    writes: float = PENDING
    """What it wrote meanwhile; nothing has changed, so little is expected."""
    idle_cores: float = 0.0


@dataclass
class Resync:
    """Full lists with nothing changed, and new TrainingJobs meanwhile."""

    cpu_seconds: float = PENDING
    """CPU of the operator for one resync, idle rate subtracted."""
    probes: int = 0
    pod_exists_median_seconds: float = PENDING
    pod_exists_longest_seconds: float = PENDING


@dataclass
class ReportRates:
    """What all trainers together cost."""

    trainers: int
    seconds: float
    per_second: float
    permitted_per_second: float
    """What the periods allow that the trainers were told."""
    refused: int
    object_bytes_per_second: float
    etcd_bytes_per_second: float
    etcd_log_bytes_per_second: float
    api_server_cores: float
    etcd_cores: float
    operator_cores: float
    periods: list[float]

    @property
    def judged_per_second(self) -> float:
        """What an API server that keeps up gets: a slow machine must not pass for a small rate."""
        return max(self.per_second, self.permitted_per_second)

    @property
    def history_megabytes(self) -> float:
        """Growth of etcd in ten minutes at that rate."""
        share = self.judged_per_second / self.per_second
        return self.etcd_bytes_per_second * share * HISTORY_SECONDS / 1e6


@dataclass
class Scale:
    """Operator processes on one namespace, and what they did."""

    tools: Tools
    writer: Writer
    plane: ControlPlane
    etcd: Etcd
    namespace: str
    log: Path
    peak_megabytes: float = 0.0
    pause_seconds: float = 0.0
    pause_how: str = ""
    remarks: list[str] = field(default_factory=list)
    """What the operator did not get through, for the table."""

    @contextmanager
    def _tolerating(self, phase: str) -> Iterator[None]:
        """Let a phase fail by itself: what it did not measure stays infinite."""
        try:
            yield
        except TimeoutError:
            self.remarks.append(f"{phase}: not finished in the time it was given")
        except (OperatorExitedError, ApiError, aiohttp.ClientError, OSError) as error:
            if not any(str(error) in remark for remark in self.remarks):
                self.remarks.append(f"{phase}: {error}")

    @asynccontextmanager
    async def operator(self, **settings: str) -> AsyncIterator[OperatorProcess]:
        """Run the operator, and note its memory and its longest pause at the end."""
        given = {**SETTINGS, "KTRDR_LEASE_NAMESPACE": self.namespace, **settings}
        cluster = self.writer.cluster
        async with operator(self.tools, cluster, log=self.log, settings=given) as process:
            yield process
            memory, pause = PENDING, PENDING
            with self._tolerating("memory and pauses"):
                process.check()
                memory = accounting.peak_megabytes(process.pid)
                pause, self.pause_how = longest_pause_seconds(await process.scrape())
            self.peak_megabytes = max(self.peak_megabytes, memory)
            self.pause_seconds = max(self.pause_seconds, pause)

    async def warm_up(self) -> None:
        """Let an operator correct what it wants to, so that the next one finds nothing to do."""
        settings = {**SETTINGS, "KTRDR_LEASE_NAMESPACE": self.namespace}
        cluster = self.writer.cluster
        async with operator(self.tools, cluster, log=self.log, settings=settings) as process:
            with self._tolerating("first start"):
                await process.wait_for_watches(cluster, START_SECONDS)
                await process.wait_until_idle(SETTLE_SECONDS)

    async def cold_start(self, process: OperatorProcess) -> ColdStart:
        """Follow a process that has just been started."""
        cluster = self.writer.cluster
        found = ColdStart()
        before = Requests.of(await scrape(cluster))
        with self._tolerating("cold start"):
            found.watching_seconds = await process.wait_for_watches(cluster, START_SECONDS)
            found.cpu_seconds = accounting.cpu_seconds(process.pid)
            if await process.wait_until_idle(SETTLE_SECONDS):
                found.settled_seconds = time.monotonic() - process.started
            found.writes = Requests.of(await scrape(cluster)).since(before).writes()
            used = accounting.cpu_seconds(process.pid)
            await asyncio.sleep(IDLE_SECONDS)
            found.idle_cores = (accounting.cpu_seconds(process.pid) - used) / IDLE_SECONDS
        return found

    async def resync(self, process: OperatorProcess, idle_cores: float) -> Resync:
        """Measure resyncs of a process that makes one every 15 s, then new jobs during them."""
        found = Resync()
        with self._tolerating("resync"):
            await process.wait_for_watches(self.writer.cluster, START_SECONDS)
            await process.wait_until_idle(SETTLE_SECONDS)
            found.cpu_seconds = await self._resync_cpu_seconds(process, idle_cores)
        with self._tolerating("new jobs during resyncs"):
            process.check()
            seconds = await self._probe()
            found.probes = len(seconds)
            found.pod_exists_median_seconds = statistics.median(seconds)
            found.pod_exists_longest_seconds = max(seconds)
        return found

    async def _resync_cpu_seconds(self, process: OperatorProcess, idle_cores: float) -> float:
        """CPU between the ends of two resyncs, which the API server's count of lists shows."""
        start = await self._lists()
        await self._wait_for_resync(process, start)
        first = await self._lists()
        began, used = time.monotonic(), accounting.cpu_seconds(process.pid)
        last = first
        for _ in range(RESYNCS):
            await self._wait_for_resync(process, last)
            last = await self._lists()
        used = accounting.cpu_seconds(process.pid) - used
        resyncs = max((last - first) / (first - start), 1.0)
        return max(used - idle_cores * (time.monotonic() - began), 0.0) / resyncs

    async def _wait_for_resync(self, process: OperatorProcess, lists: float) -> None:
        async with asyncio.timeout(RESYNC_BOUND_SECONDS):
            while await self._lists() <= lists:
                await asyncio.sleep(POLL_SECONDS)
            if not await process.wait_until_idle(RESYNC_BOUND_SECONDS, quiet_seconds=1.5):
                raise TimeoutError

    async def _lists(self) -> float:
        """Pages of TrainingJobs that the API server has listed so far."""
        found = await scrape(self.writer.cluster)
        labels = {"verb": "LIST", "group": names.GROUP, "resource": names.PLURAL}
        return found.value("apiserver_request_total", **labels) or 0.0

    async def _probe(self) -> list[float]:
        """Create a TrainingJob every 0.4 s; seconds from each request until its pod exists."""
        sightings = Sightings()
        created: dict[str, float] = {}

        def on_pod(_: str, raw: Raw) -> None:
            sightings.note(raw["metadata"]["name"], "exists")

        async with watching(self.writer.cluster, self.namespace, {PODS: on_pod}):
            end = time.monotonic() + PROBE_SECONDS
            while time.monotonic() < end:
                name = f"probe-{next(_PROBE_NUMBERS)}"
                created[names.pod_name(name, 1)] = time.monotonic()
                body = job_body(self.namespace, name, "probe")
                await self.writer.create(TRAINING_JOBS, body, manager=USER)
                await asyncio.sleep(PROBE_PERIOD_SECONDS)
            end = time.monotonic() + PROBE_BOUND_SECONDS
            while created.keys() - sightings.stages.get("exists", {}).keys():
                if time.monotonic() > end:
                    break
                await asyncio.sleep(0.2)
        seen = sightings.stages.get("exists", {})
        return [seen.get(name, PENDING) - began for name, began in created.items()]

    async def reports(self, process: OperatorProcess) -> ReportRates | None:
        """Let all running jobs report, and count after a while; None without an operator."""
        with self._tolerating("reports"):
            process.check()
            return await self._reports(process)
        return None

    async def _reports(self, process: OperatorProcess) -> ReportRates:
        reporters = Reporters(self.writer, self.namespace)
        plane = self.plane.with_operator(process.pid)
        async with reporters.at_work():
            await asyncio.sleep(REPORT_WARM_UP_SECONDS)
            before, ticks = await self._etcd_bytes(), plane.usage()
            sent, size = reporters.reports.accepted, reporters.reports.size_bytes
            began = time.monotonic()
            await asyncio.sleep(REPORT_SECONDS)
            seconds = time.monotonic() - began
            ticks = plane.usage() - ticks
            after = await self._etcd_bytes()
        cores = {name: used / accounting.TICKS_PER_SECOND / seconds for name, used in ticks.items()}
        return ReportRates(
            trainers=len(reporters.trainers),
            seconds=seconds,
            per_second=(reporters.reports.accepted - sent) / seconds,
            permitted_per_second=reporters.permitted_per_second(),
            refused=reporters.reports.refused,
            object_bytes_per_second=(reporters.reports.size_bytes - size) / seconds,
            etcd_bytes_per_second=(after[0] - before[0]) / seconds,
            etcd_log_bytes_per_second=(after[1] - before[1]) / seconds,
            api_server_cores=cores.get(API_SERVER, 0.0),
            etcd_cores=cores.get(ETCD, 0.0),
            operator_cores=cores.get(accounting.OPERATOR, 0.0),
            periods=reporters.periods(),
        )

    async def _etcd_bytes(self) -> tuple[float, float]:
        """Bytes of all revisions that etcd has stored so far, and of its log.

        The log is larger by what was refused: the API server proposes a write on top of a version
        out of its cache, and once more if that was not the latest.
        """
        found = await accounting.scrape_plain(f"{self.etcd.url}/metrics")
        stored = found.value("etcd_debugging_mvcc_total_put_size_in_bytes")
        logged = found.value("etcd_disk_wal_write_bytes_total")
        if stored is None or logged is None:
            sys.exit("etcd's /metrics no longer counts the bytes that it stores and logs")
        return stored, logged


_PROBE_NUMBERS: Final = count(1)
