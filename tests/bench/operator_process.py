"""The operator of this checkout as a process of its own, and when its watches are open.

Called by `bench_apply` and `bench_scale`. Readiness is read from the API server, not from the
operator: a watch is open when the server counts it among its long-running requests.
"""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import accounting
from bench.accounting import Exposition
from bench.environment import IMAGE, Tools
from ktrdr_api import names
from ktrdr_client.cluster import Cluster

POLL_SECONDS: Final = 0.5
"""Between two scrapes of the API server: one costs it about 40 ms of CPU."""
STOP_SECONDS: Final = 30.0
LONGEST_PAUSE: Final = "ktrdr_event_loop_longest_pause_seconds"
LOOP_LAG: Final = "ktrdr_event_loop_lag_seconds"


class OperatorExitedError(Exception):
    """The operator has ended by itself."""


@dataclass(frozen=True)
class OperatorProcess:
    """The operator under test."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    started: float
    """Monotonic time at which the process was started."""
    watches_before: tuple[int, int]

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    def check(self) -> None:
        """Make sure that it runs.

        Raises:
            OperatorExitedError: it does not.
        """
        if self.process.poll() is not None:
            last = self.log.read_text().strip().rpartition("\n")[2]
            raise OperatorExitedError(f"the operator has exited; the last line of its log: {last}")

    async def wait_for_watches(self, cluster: Cluster, seconds: float) -> float:
        """Wait until TrainingJobs and pods are watched; returns the seconds since the start.

        Raises:
            TimeoutError: they are not.
            OperatorExitedError: they never will be.
        """
        while True:
            jobs, pods = await open_watches(cluster)
            elapsed = time.monotonic() - self.started
            if jobs > self.watches_before[0] and pods > self.watches_before[1]:
                return elapsed
            self.check()
            if elapsed > seconds:
                raise TimeoutError(f"no open watch within {seconds:g} s")
            await asyncio.sleep(POLL_SECONDS)

    async def wait_until_idle(self, seconds: float, *, quiet_seconds: float = 3.0) -> bool:
        """Wait until the process has used less than 5 % of a core for a while; False if not.

        Raises:
            OperatorExitedError: it has ended.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.check()
            before = accounting.cpu_seconds(self.pid)
            await asyncio.sleep(quiet_seconds)
            if accounting.cpu_seconds(self.pid) - before <= 0.05 * quiet_seconds:
                return True
        return False

    async def scrape(self) -> Exposition:
        """Read the operator's /metrics."""
        return await accounting.scrape_plain(f"http://127.0.0.1:{self.port}/metrics")


async def open_watches(cluster: Cluster) -> tuple[int, int]:
    """Watches of TrainingJobs and of pods that the API server serves now."""
    found = await accounting.scrape(cluster)
    jobs, pods = (
        found.value("apiserver_longrunning_requests", verb="WATCH", group=group, resource=resource)
        for group, resource in ((names.GROUP, names.PLURAL), ("", "pods"))
    )
    return int(jobs or 0), int(pods or 0)


def longest_pause_seconds(metrics: Exposition) -> tuple[float, str]:
    """Longest pause of the event loop, and how it was measured."""
    exact = metrics.value(LONGEST_PAUSE)
    if exact is not None:
        return exact, "longest since the start, sampled every 50 ms"
    buckets = metrics.buckets(LOOP_LAG)
    total = max((count for _, count in buckets), default=0.0)
    bound = min((bound for bound, count in buckets if count >= total), default=0.0)
    return bound, "upper bound of a histogram, sampled every 5 s: short pauses are missed"


@asynccontextmanager
async def operator(
    tools: Tools,
    cluster: Cluster,
    *,
    log: Path,
    settings: Mapping[str, str],
) -> AsyncIterator[OperatorProcess]:
    """Run this checkout's operator."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    watches = await open_watches(cluster)
    environment = {
        **tools.environment,
        "KTRDR_TRAINER_IMAGE": IMAGE,
        "KTRDR_HTTP_PORT": str(port),
        **settings,
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ktrdr_operator"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield OperatorProcess(process, port, log, time.monotonic(), watches)
    finally:
        await asyncio.to_thread(_stop, process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
