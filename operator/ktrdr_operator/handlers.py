"""The shell: what kopf tells us goes into the store, and its key into the queue. Nothing else here.

Only raw events are handled: create, update and delete handlers, daemons and timers would write
finalizers and annotations on the user's object. `__main__` starts `run_kopf`; the queue's workers
go on with `reconcile`.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import kopf

from ktrdr_api import names
from ktrdr_client.cluster import Cluster
from ktrdr_operator.metrics import Metrics
from ktrdr_operator.queue import Priority, WorkQueue
from ktrdr_operator.store import JobKey, Store, job_key
from ktrdr_operator.views import Raw
from ktrdr_operator.watch_filter import WatchFilter

_ENDED: Final = ("Succeeded", "Failed")


def is_stop_requested(job: Raw | None) -> bool:
    """Whether somebody waits for this TrainingJob to stop."""
    if job is None or "completionTime" in job.get("status", {}):
        return False
    return bool(job.get("spec", {}).get("cancel")) or "deletionTimestamp" in job["metadata"]


@dataclass
class Handlers:
    """Event handlers of TrainingJobs and of their pods."""

    store: Store
    queue: WorkQueue[JobKey]
    metrics: Metrics
    watch_filter: WatchFilter

    async def on_job(self, event: kopf.RawEvent, **_: Any) -> None:
        """Note a TrainingJob and enqueue it, at once when somebody waits for its end."""
        raw: Raw = dict(event["object"])
        key, uid = job_key(raw), raw["metadata"]["uid"]
        now = self.watch_filter.clock()
        self.metrics.handler_lag(now - self.watch_filter.received.get(uid, now))
        if event["type"] == "DELETED":
            self.store.drop_job(key, uid)
        else:
            self.store.put_job(raw)
        ends = event["type"] == "DELETED" or is_stop_requested(raw)
        self.queue.add(key, Priority.STOP if ends else Priority.RECONCILE)

    async def on_pod(self, event: kopf.RawEvent, **_: Any) -> None:
        """Note a pod and enqueue its TrainingJob; a pod that has not ended goes its own way."""
        raw: Raw = dict(event["object"])
        gone = event["type"] == "DELETED"
        key = self.store.drop_pod(raw) if gone else self.store.put_pod(raw)
        if key is None or (gone and key not in self.store.jobs):
            return  # nobody is left to whom its end could matter
        if not (gone or raw.get("status", {}).get("phase") in _ENDED):
            self.queue.add(key, Priority.STATUS_ONLY)
            return
        self.queue.add(
            key,
            Priority.STOP if is_stop_requested(self.store.jobs.get(key)) else Priority.RECONCILE,
        )


def registry(handlers: Handlers, cluster: Cluster) -> kopf.OperatorRegistry:
    """All that kopf is told to do."""
    table = kopf.OperatorRegistry()

    async def log_in(**_: Any) -> kopf.AiohttpSession:
        session = cluster.open_session(handlers.watch_filter)
        return kopf.AiohttpSession(server=cluster.server, aiohttp_session=session)

    kopf.on.login(registry=table)(log_in)
    kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=table)(handlers.on_job)
    kopf.on.event("", "v1", "pods", registry=table)(handlers.on_pod)
    return table


class NoDiffBase(kopf.DiffBaseStorage):
    """Keeps kopf from copying every object three times for a comparison nobody asked for.

    kopf does so at each event, even without the handlers that would use it. Under a profiler, of
    an operator that started 500 jobs, half of the time of processing events went there.
    """

    def build(
        self, *, body: kopf.Body, extra_fields: Iterable[kopf.FieldSpec] | None = None
    ) -> kopf.BodyEssence:
        """Nothing of an object is worth comparing."""
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """What was stored: nothing."""
        return kopf.BodyEssence()

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Store nothing."""


def kopf_settings() -> kopf.OperatorSettings:
    """Settings of kopf; each one keeps it from writing, from scanning, or from waiting for ever."""
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True  # no rights on namespaces and CRDs needed
    settings.posting.enabled = False  # `events` posts ours
    settings.peering.standalone = True  # `leader` elects
    settings.watching.chunk_size = 500
    settings.watching.inactivity_timeout = 70  # the server sends a bookmark every minute
    settings.watching.label_selectors["", "v1", "pods"] = names.LABEL_JOB
    settings.networking.request_timeout = 15
    settings.networking.connect_timeout = 5
    settings.queueing.exit_timeout = 10
    settings.queueing.error_delays = (0.5, 1, 2, 5, 10)
    settings.process.ultimate_exiting_timeout = 25
    # Never written, as nothing here needs them; if ever they were, they would be ours to find.
    settings.persistence.finalizer = f"{names.GROUP}/operator"
    storage = kopf.AnnotationsProgressStorage(prefix=names.GROUP)
    settings.persistence.progress_storage = storage
    settings.persistence.diffbase_storage = NoDiffBase()
    return settings


async def run_kopf(
    table: kopf.OperatorRegistry,
    settings: kopf.OperatorSettings,
    namespaces: tuple[str, ...],
    started: Callable[[], None],
) -> None:
    """Run kopf until cancelled, then end it in order; returns or raises only when it has died.

    Args:
        table: what to handle.
        settings: how.
        namespaces: where; empty means everywhere.
        started: called once kopf has taken over the signal handlers, to take them back.
    """
    ours, stop = asyncio.all_tasks(), asyncio.Event()
    tasks = await kopf.spawn_tasks(
        registry=table,
        settings=settings,
        namespaces=namespaces,
        clusterwide=not namespaces,
        stop_flag=stop,
    )
    started()
    running = asyncio.create_task(kopf.run_tasks(tasks, ignored=ours))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()  # its own cancellation would skip closing the session
        await running
        raise
