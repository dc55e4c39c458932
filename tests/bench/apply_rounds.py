"""Rounds of `bench_apply`: create objects of one kind, wait, delete them, and count what it took.

Called by `bench_apply`, which prints the results. A phase (creation or deletion) ends when the API
server is idle again, so that late work counts.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from bench.accounting import (
    API_SERVER,
    TICKS_PER_SECOND,
    ControlPlane,
    IdleRate,
    Requests,
    Usage,
    cpu_ticks,
    scrape,
)
from bench.environment import CLAIM, IMAGE, PLACEMENT
from bench.watching import Raw, Sightings, watching
from ktrdr_client.cluster import PODS, TRAINING_JOBS, Cluster, Resource

JOBS: Final = Resource("batch/v1", "Job", "jobs")
PHASE_SECONDS: Final = 420.0
"""A phase may take this long: 500 batch/v1 Jobs need more than a minute with stock limits."""
IDLE_SECONDS: Final = 3.0
QUIET_STEP_SECONDS: Final = 2.0
QUIET_CORES: Final = 0.03
"""The API server counts as idle again when it takes at most this much more than before."""

CLIENT_DONE: Final = "client done"
OBJECT_EXISTS: Final = "object exists"
POD_EXISTS: Final = "pod exists"
POD_SCHEDULED: Final = "pod scheduled"
POD_RUNNING: Final = "pod running"
SAYS_RUNNING: Final = "status says running"
OBJECT_GONE: Final = "object gone"
POD_STOPPING: Final = "pod terminating"
POD_GONE: Final = "pod gone"
COMING: Final = (
    CLIENT_DONE,
    OBJECT_EXISTS,
    POD_EXISTS,
    POD_SCHEDULED,
    POD_RUNNING,
    SAYS_RUNNING,
)
GOING: Final = (CLIENT_DONE, OBJECT_GONE, POD_STOPPING, POD_GONE)


@dataclass(frozen=True)
class Kind:
    """Objects that are compared."""

    title: str
    resource: Resource
    spec: Raw
    is_running: Callable[[Raw], bool]
    """Whether the status of an object says that its pod runs."""

    def body(self, namespace: str, name: str) -> Raw:
        """One object."""
        return {
            "apiVersion": self.resource.api_version,
            "kind": self.resource.kind,
            "metadata": {"namespace": namespace, "name": name},
            "spec": self.spec,
        }


_POD_SPEC: Final[Raw] = {
    "containers": [{"name": "main", "image": IMAGE}],
    "restartPolicy": "Never",
    **PLACEMENT,
}
_CLAIM: Final[Raw] = {"persistentVolumeClaim": {"claimName": CLAIM}}
BARE_PODS: Final = Kind(
    "bare pods", PODS, _POD_SPEC, lambda raw: raw["status"].get("phase") == "Running"
)
BATCH_JOBS: Final = Kind(
    "batch/v1 Jobs",
    JOBS,
    {"template": {"spec": _POD_SPEC}},
    lambda raw: raw.get("status", {}).get("ready") == 1,
)
OUR_JOBS: Final = Kind(
    "TrainingJobs",
    TRAINING_JOBS,
    {
        "strategy": {"inline": "name: bench"},
        "data": _CLAIM,
        "output": _CLAIM,
        "trainer": {"image": IMAGE, **PLACEMENT},
    },
    lambda raw: raw.get("status", {}).get("phase") == "Running",
)
KINDS: Final = (BARE_PODS, BATCH_JOBS, OUR_JOBS)


@dataclass(frozen=True)
class Phase:
    """Creation or deletion of all objects of one kind."""

    seconds: float
    """From the first request until the last pod runs, or is gone."""
    stages: dict[str, tuple[float, float]]
    """Median and last time at which a stage was reached, in seconds from the first request."""
    ticks: Usage
    window_seconds: float
    """Time over which the ticks were counted."""
    requests: Requests

    def cpu_milliseconds(self, component: str, idle: IdleRate) -> float:
        """CPU of a component above its idle rate."""
        used = self.ticks[component] / TICKS_PER_SECOND
        return 1000 * max(used - idle.of(component) * self.window_seconds, 0.0)


@dataclass(frozen=True)
class Round:
    """Objects of one kind, created and deleted."""

    coming: Phase
    going: Phase


class Bench:
    """What every phase needs.

    Args:
        cluster: the API server.
        plane: the processes whose CPU is counted.
        namespace: where the objects are created.
        count: number of objects of each kind.
    """

    def __init__(self, cluster: Cluster, plane: ControlPlane, namespace: str, count: int) -> None:
        self.cluster, self.plane, self.namespace, self.count = cluster, plane, namespace, count
        self.idle = IdleRate(Usage())

    async def round(self, kind: Kind) -> Round:
        """Create all objects, wait until all run, delete them, wait until all are gone."""
        sightings = Sightings()

        def on_pod(event: str, raw: Raw) -> None:
            sightings.note(raw["metadata"]["name"], *stages_of_pod(event, raw))

        def on_object(event: str, raw: Raw) -> None:
            if kind.resource is PODS:
                on_pod(event, raw)
            sightings.note(raw["metadata"]["name"], *stages_of_object(kind, event, raw))

        handlers = {PODS: on_pod, kind.resource: on_object}
        async with watching(self.cluster, self.namespace, handlers):
            bodies = [kind.body(self.namespace, f"bench-{n}") for n in range(self.count)]
            made: list[Raw] = []

            async def create() -> None:
                made.extend(
                    await asyncio.gather(*(self.cluster.create(kind.resource, b) for b in bodies))
                )

            async def delete() -> None:
                await asyncio.gather(*(self._delete(kind.resource, raw) for raw in made))

            coming = await self._phase(sightings, create, COMING)
            going = await self._phase(sightings, delete, GOING)
        return Round(coming, going)

    async def _delete(self, resource: Resource, raw: Raw) -> None:
        metadata = raw["metadata"]
        await self.cluster.delete(
            resource, metadata["namespace"], metadata["name"], uid=metadata["uid"]
        )

    async def _phase(
        self, sightings: Sightings, work: Callable[[], Awaitable[None]], stages: tuple[str, ...]
    ) -> Phase:
        await self.wait_until_quiet()
        await self.idle.sample(self.plane, IDLE_SECONDS)
        sightings.stages.clear()
        requests = Requests.of(await scrape(self.cluster))
        ticks, began = self.plane.usage(), time.monotonic()
        await work()
        sightings.note("", CLIENT_DONE)
        end, also = (POD_RUNNING, SAYS_RUNNING) if stages is COMING else (POD_GONE, OBJECT_GONE)
        for stage in (end, also):
            await sightings.wait_for(stage, self.count, PHASE_SECONDS)
        await self.wait_until_quiet()
        ticks, window = self.plane.usage() - ticks, time.monotonic() - began
        return Phase(
            sightings.last(end) - began,
            {
                stage: (sightings.median(stage) - began, sightings.last(stage) - began)
                for stage in stages
                if stage in sightings.stages
            },
            ticks,
            window,
            Requests.of(await scrape(self.cluster)).since(requests),
        )

    async def wait_until_quiet(self) -> None:
        """Wait until the API server is idle again, reading nothing but /proc."""
        deadline = time.monotonic() + PHASE_SECONDS
        pid = self.plane.pid_of(API_SERVER)
        allowed = self.idle.of(API_SERVER) + QUIET_CORES
        while time.monotonic() < deadline:
            if await cores_used(pid, QUIET_STEP_SECONDS) <= allowed:
                return
        sys.exit(f"bench-apply: the API server is not idle after {PHASE_SECONDS:g} s")


async def cores_used(pid: int, seconds: float) -> float:
    """Cores that a process takes for a while."""
    before, began = cpu_ticks(pid), time.monotonic()
    await asyncio.sleep(seconds)
    return (cpu_ticks(pid) - before) / TICKS_PER_SECOND / (time.monotonic() - began)


def stages_of_pod(event: str, pod: Raw) -> list[str]:
    """Stages that a watch event shows a pod to have reached."""
    found = {
        POD_EXISTS: True,
        POD_SCHEDULED: "nodeName" in pod["spec"],
        POD_RUNNING: pod["status"].get("phase") == "Running",
        POD_STOPPING: "deletionTimestamp" in pod["metadata"],
        POD_GONE: event == "DELETED",
    }
    return [stage for stage, reached in found.items() if reached]


def stages_of_object(kind: Kind, event: str, raw: Raw) -> list[str]:
    """Stages that a watch event shows an object to have reached."""
    found = {
        OBJECT_EXISTS: True,
        SAYS_RUNNING: kind.is_running(raw),
        OBJECT_GONE: event == "DELETED",
    }
    return [stage for stage, reached in found.items() if reached]
