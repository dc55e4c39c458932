"""Accounting: CPU of the control plane's processes, and the counters that servers export.

Called by `bench_apply` and `bench_scale`. CPU is read from /proc: reading it costs the measured
processes nothing, unlike a scrape of /metrics, which is only made outside of a measured window.
"""

import asyncio
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

from cluster import clean
from cluster import settings as cluster_settings
from ktrdr_client.cluster import Cluster

API_SERVER: Final = "API server"
ETCD: Final = "etcd"
CONTROLLERS: Final = "controllers"
OPERATOR: Final = "operator"
COMPONENT_OF_PROGRAM: Final = {
    "kube-apiserver": API_SERVER,
    "etcd": ETCD,
    "kube-controller-manager": CONTROLLERS,
    "kube-scheduler": CONTROLLERS,
}
COMPONENTS: Final = (API_SERVER, ETCD, CONTROLLERS, OPERATOR)

Usage = Counter[str]
"""CPU in clock ticks, by component."""
Sums = dict[tuple[str, ...], float]
"""Values of a counter, by the values of some of its labels."""
TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")

WRITE_VERBS: Final = frozenset({"POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"})
HEARTBEAT_RESOURCES: Final = frozenset({"leases", "nodes"})
"""Written at regular intervals by nodes and elected leaders, whatever else happens."""
VIRTUAL_GROUPS: Final = frozenset({"authentication.k8s.io", "authorization.k8s.io"})
"""Reviews are POSTed, but nothing is stored."""


def cpu_ticks(pid: int) -> int:
    """User and system time of a process since it started."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def cpu_seconds(pid: int) -> float:
    """User and system time of a process since it started."""
    return cpu_ticks(pid) / TICKS_PER_SECOND


def peak_megabytes(pid: int) -> float:
    """Largest resident set of a process so far (VmHWM)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 / 1e6 if found else 0.0


@dataclass(frozen=True)
class ControlPlane:
    """Processes of the API server, etcd and the controllers, and optionally of the operator."""

    pids: Mapping[int, str]
    """Component by process id."""

    def usage(self) -> Usage:
        """CPU of every component so far."""
        found = Usage()
        for pid, component in self.pids.items():
            found[component] += cpu_ticks(pid)
        return found

    def with_operator(self, pid: int) -> "ControlPlane":
        """The same processes and the operator's."""
        return ControlPlane({**self.pids, pid: OPERATOR})

    def pid_of(self, component: str) -> int:
        """Process id of a component that is a single process."""
        return next(pid for pid, name in self.pids.items() if name == component)


def find_control_plane(kubeconfig: Path) -> ControlPlane:
    """Find the processes of the native test cluster.

    The command line of each names the cluster's folder, so no process of another cluster counts.
    """
    state = cluster_settings.read_settings().state
    pids = {
        pid: COMPONENT_OF_PROGRAM[program]
        for pid, program in clean.processes(state)
        if program in COMPONENT_OF_PROGRAM
    }
    missing = {API_SERVER, ETCD, CONTROLLERS} - set(pids.values())
    if missing or kubeconfig.resolve() != (state / "kubeconfig").resolve():
        sys.exit(
            f"{kubeconfig}: no processes of this cluster found in /proc; the benchmark reads their "
            f"CPU time and needs the native cluster of tests/cluster ({state})"
        )
    return ControlPlane(pids)


class Exposition:
    """Text of a /metrics endpoint."""

    def __init__(self, text: str) -> None:
        self._samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        for line in text.splitlines():
            if line.startswith("#"):
                continue
            head, _, value = line.rpartition(" ")
            name, _, labels = head.partition("{")
            found = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            self._samples.setdefault(name, []).append((found, float(value)))

    def value(self, name: str, **labels: str) -> float | None:
        """Sum of all samples with these labels; None where there is none."""
        found = [
            value for given, value in self._samples.get(name, ()) if labels.items() <= given.items()
        ]
        return sum(found) if found else None

    def by(self, name: str, *labels: str) -> Sums:
        """Sums of a counter by the values of some labels."""
        found: Sums = {}
        for given, value in self._samples.get(name, ()):
            key = tuple(given.get(label, "") for label in labels)
            found[key] = found.get(key, 0.0) + value
        return found

    def buckets(self, name: str) -> list[tuple[float, float]]:
        """Upper bounds and cumulative counts of a histogram without other labels."""
        samples = self._samples.get(f"{name}_bucket", ())
        return [(float(given["le"]), value) for given, value in samples]


async def scrape(cluster: Cluster) -> Exposition:
    """Read /metrics of the API server."""
    async with (
        cluster.open_session() as session,
        session.get(f"{cluster.server}/metrics") as response,
    ):
        return Exposition(await response.text())


async def scrape_plain(url: str) -> Exposition:
    """Read /metrics of a server without authentication."""
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as response:
        return Exposition(await response.text())


@dataclass(frozen=True)
class Requests:
    """Requests that an API server has answered since it started, or between two moments."""

    counts: Sums
    """By verb, group, resource, subresource and status code."""
    seconds: Sums
    """Duration of all of them by verb, group, resource and subresource."""

    @classmethod
    def of(cls, exposition: Exposition) -> "Requests":
        """Read the counters; dry runs are left out."""
        what = ("verb", "group", "resource", "subresource")
        return cls(
            exposition.by("apiserver_request_total", *what, "code"),
            exposition.by("apiserver_request_duration_seconds_sum", *what),
        )

    def since(self, before: "Requests") -> "Requests":
        """Those answered after an earlier moment."""
        return Requests(_grown(self.counts, before.counts), _grown(self.seconds, before.seconds))

    def writes(self) -> float:
        """Writes that were accepted, of all clients together, without Events."""
        return self._writes(lambda resource, code: resource != "events" and code.startswith("2"))

    def events(self) -> float:
        """Kubernetes Events that were written: best effort, aggregated, and gone after an hour."""
        return self._writes(lambda resource, code: resource == "events" and code.startswith("2"))

    def refused(self) -> float:
        """Writes that were answered by an error, such as a conflict."""
        return self._writes(lambda _, code: not code.startswith("2"))

    def _writes(self, counts: Callable[[str, str], bool]) -> float:
        return sum(
            number
            for (verb, group, resource, subresource, code), number in self.counts.items()
            if is_write(verb, group, resource, subresource) and counts(resource, code)
        )


def _grown(now: Sums, before: Sums) -> Sums:
    return {key: value - before.get(key, 0.0) for key, value in now.items()}


def is_write(verb: str, group: str, resource: str, subresource: str) -> bool:
    """Whether a request changes what is stored, and is not a mere heartbeat."""
    return (
        verb in WRITE_VERBS
        and bool(resource)
        and resource not in HEARTBEAT_RESOURCES
        and group not in VIRTUAL_GROUPS
        and subresource != "token"
    )


@dataclass
class IdleRate:
    """CPU that the processes take while nothing happens, to be subtracted: ticks per second."""

    ticks: Usage
    seconds: float = 0.0

    async def sample(self, plane: ControlPlane, seconds: float) -> None:
        """Watch the processes for a while in which nothing is asked of them."""
        before, began = plane.usage(), time.monotonic()
        await asyncio.sleep(seconds)
        self.ticks += plane.usage() - before
        self.seconds += time.monotonic() - began

    def of(self, component: str) -> float:
        """Cores that a component takes while idle."""
        return self.ticks[component] / TICKS_PER_SECOND / self.seconds if self.seconds else 0.0
