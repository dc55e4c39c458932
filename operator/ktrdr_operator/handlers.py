"""kopf handlers and settings: the resources that kopf watches, and how it is started and stopped.

Only raw events are handled: create, update and delete handlers, daemons and timers would write
finalizers and annotations on the user's object. kopf opens a watch for each resource that has a
handler, reconnects it, and lists again when the watch's version is too old. `watch_filter` takes
the events before kopf sees them. `__main__` starts `run_kopf`.
"""

import asyncio
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import kopf

from ktrdr_api import names
from ktrdr_client.cluster import Cluster
from ktrdr_operator.intake import Intake
from ktrdr_operator.watch_session import WatchSession

Registry = kopf.OperatorRegistry
"""All handlers that kopf calls."""


@dataclass(frozen=True)
class Handlers:
    """Event handlers of TrainingJobs and pods, for events that `watch_filter` does not take."""

    intake: Intake

    async def on_job(self, event: kopf.RawEvent, **_: Any) -> None:
        """Store a TrainingJob and enqueue it."""
        self.intake.take_job(str(event["type"]), dict(event["object"]))

    async def on_pod(self, event: kopf.RawEvent, **_: Any) -> None:
        """Store a pod and enqueue its TrainingJob."""
        self.intake.take_pod(str(event["type"]), dict(event["object"]))


def registry(intake: Intake, cluster: Cluster, session: WatchSession) -> Registry:
    """Build the registry of kopf's handlers.

    Args:
        intake: receives the events.
        cluster: the API server that kopf watches.
        session: middleware of kopf's requests and their answers.
    """
    table, handlers = kopf.OperatorRegistry(), Handlers(intake)

    async def log_in(**_: Any) -> kopf.AiohttpSession:
        http = cluster.open_session(session)
        return kopf.AiohttpSession(server=cluster.server, aiohttp_session=http)

    kopf.on.login(registry=table)(log_in)
    kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=table)(handlers.on_job)
    kopf.on.event("", "v1", "pods", registry=table)(handlers.on_pod)
    return table


def kopf_settings() -> kopf.OperatorSettings:
    """Build kopf's settings: kopf must not write, scan, or wait without a limit."""
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True  # no rights on namespaces and CRDs needed
    settings.posting.enabled = False  # `events` posts Kubernetes Events
    settings.peering.standalone = True  # `leader` does the leader election
    settings.watching.chunk_size = 1  # `watch_session` needs only the list's version
    settings.watching.inactivity_timeout = 70  # the server sends a bookmark every minute
    settings.watching.label_selectors["", "v1", "pods"] = names.LABEL_JOB
    settings.networking.request_timeout = 15
    settings.networking.connect_timeout = 5
    settings.queueing.exit_timeout = 10
    settings.queueing.error_delays = (0.5, 1, 2, 5, 10)
    settings.process.ultimate_exiting_timeout = 25
    # Never written, because no handler needs a finalizer; the name would tell its owner.
    settings.persistence.finalizer = f"{names.GROUP}/operator"
    return settings


class _EveryTask(Collection[asyncio.Task[Any]]):
    """Tasks that kopf must not cancel when it stops: all of them.

    kopf waits 5 s for every task that was created after its own ones, and cancels it. It stops its
    own watches and workers before that in any case.
    """

    def __contains__(self, _task: object) -> bool:
        return True

    def __iter__(self) -> Iterator[asyncio.Task[Any]]:
        return iter(asyncio.all_tasks())

    def __len__(self) -> int:
        return len(asyncio.all_tasks())


async def run_kopf(
    table: Registry,
    settings: kopf.OperatorSettings,
    namespaces: tuple[str, ...],
    started: Callable[[], None],
) -> None:
    """Run kopf until cancelled, then stop it in order; returns or raises by itself only on failure.

    Args:
        table: handlers.
        settings: see `kopf_settings`.
        namespaces: namespaces to watch; empty means all.
        started: called when kopf has replaced the signal handlers, to install them again.
    """
    stop = asyncio.Event()
    tasks = await kopf.spawn_tasks(
        registry=table,
        settings=settings,
        namespaces=namespaces,
        clusterwide=not namespaces,
        stop_flag=stop,
    )
    started()
    running = asyncio.create_task(kopf.run_tasks(tasks, ignored=_EveryTask()))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()  # cancelling kopf would leave its HTTP session open
        await running
        raise
