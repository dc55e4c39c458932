"""The operator's process: `python -m ktrdr_operator`.

Builds every component once and runs their tasks concurrently. When any task exits, the process
exits with a code other than 0: a restarted operator is better than one that runs and receives
nothing.
"""

import asyncio
import gc
import logging
import signal
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any, Final

from pydantic import ValidationError

from ktrdr_api import names
from ktrdr_client.cluster import PODS, TRAINING_JOBS, ApiError, Cluster
from ktrdr_operator import handlers, health, logs
from ktrdr_operator.events import EventRecorder
from ktrdr_operator.health import Liveness
from ktrdr_operator.intake import Intake
from ktrdr_operator.leader import Leader, LeaseLostError
from ktrdr_operator.manifests import PodDefaults
from ktrdr_operator.metrics import Metrics
from ktrdr_operator.queue import WorkQueue
from ktrdr_operator.reconcile import Clocks, Reconciler
from ktrdr_operator.report_interval import ReportBudget, ReportIntervalController
from ktrdr_operator.resync import Resync
from ktrdr_operator.settings import Settings, describe_problems
from ktrdr_operator.snapshot import Limits
from ktrdr_operator.store import JobKey, Store
from ktrdr_operator.watch_filter import WatchFilter
from ktrdr_operator.watch_session import WatchSession
from ktrdr_operator.watches import Watches

log: Final = logging.getLogger("ktrdr_operator")

EXIT_FAILED: Final = 1
EXIT_BAD_SETTINGS: Final = 2
GC_THRESHOLDS: Final = (50_000, 20, 50)
"""Allocations before the youngest generation is searched for cycles (Python: 700), and how often
each generation is searched before the next older one is."""


class TaskExitedError(Exception):
    """A task that should run forever has exited."""


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


def install_signal_handlers(stop: asyncio.Event) -> None:
    """Shut down in order on SIGTERM and SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def run_until_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine until it ends or the process is asked to stop, whichever is first."""
    task, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        task.cancel()
        stopped.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)


async def run_tasks(coroutines: dict[str, Coroutine[Any, Any, None]]) -> None:
    """Run tasks concurrently until one of them exits.

    Raises:
        Exception: the error that ended the first of them.
        TaskExitedError: it ended without an error.
    """
    tasks = [asyncio.create_task(work, name=name) for name, work in coroutines.items()]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
            raise TaskExitedError(f"task {task.get_name()} exited without an error")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def leadership(
    settings: Settings, metrics: Metrics, liveness: Liveness, stop: asyncio.Event
) -> AsyncIterator[Leader | None]:
    """Wait until this process leads, and release the Lease at the end; None without election."""
    if not settings.leader_election:
        yield None
        return
    # Its own connections: a renewal must not wait behind 500 creates.
    cluster = await Cluster.connect(max_in_flight=1, on_request=metrics.request)
    identity = f"{socket.gethostname()}_{uuid.uuid4()}"
    leader = Leader(
        cluster,
        settings.lease_namespace,
        settings.lease_name,
        identity,
        utc_now,
        time.monotonic,
    )
    metrics.leading(leader.name, leads=False)
    liveness.register("lease")
    try:
        await run_until_stopped(stop, leader.acquire(lambda: liveness.heartbeat("lease")))
        metrics.leading(leader.name, leads=not stop.is_set())
        yield leader
    finally:
        await leader.release()
        await cluster.close()


@dataclass(frozen=True)
class Operator:
    """All components of the operator, wired together."""

    settings: Settings
    liveness: Liveness
    metrics: Metrics
    queue: WorkQueue[JobKey]
    watches: Watches
    resync: Resync
    report_intervals: ReportIntervalController
    reconciler: Reconciler
    events: EventRecorder
    registry: handlers.Registry

    def tasks(self, started: Callable[[], None]) -> dict[str, Coroutine[Any, Any, None]]:
        """Tasks that run until the process exits, by name.

        Args:
            started: called when kopf has replaced the signal handlers, to install them again.
        """
        return {
            "watches": self._watch(started),
            "resync": self.resync.run(),
            "workers": self._work(),
            "report intervals": self._adjust_report_intervals(),
            "events": self.events.run(),
            "canary": health.run_canary(self.queue),
        }

    async def _watch(self, started: Callable[[], None]) -> None:
        await self.resync.wait_for_server()
        self.liveness.register(*self.watches.unpositioned)
        await handlers.run_kopf(
            self.registry,
            handlers.kopf_settings(),
            self.settings.watch_namespaces,
            started,
        )

    async def _work(self) -> None:
        # Only when the store is complete: a job whose pods are unknown costs one request per pod.
        await self.resync.filled.wait()
        log.info("Initial list complete, starting %d workers", self.settings.workers)
        work = health.with_canary(self.liveness, self.reconciler.work)
        await self.queue.run(self.settings.workers, work)

    async def _adjust_report_intervals(self) -> None:
        # Only when all jobs are counted: otherwise few seem to run, and are told too short an
        # interval.
        await self.resync.filled.wait()
        self.report_intervals.update()
        await self.report_intervals.run()


def build(settings: Settings, cluster: Cluster, metrics: Metrics, liveness: Liveness) -> Operator:
    """Build and wire all components; starts nothing."""
    store, queue = Store(), WorkQueue[JobKey](clock=time.monotonic)
    store.silence_seconds = settings.no_report_seconds
    events = EventRecorder(cluster, metrics, utc_now, is_busy=lambda: len(queue) > 0)
    intake = Intake(store, queue)
    scopes = settings.namespaces()
    paths = {kind.path(namespace) for kind in (TRAINING_JOBS, PODS) for namespace in scopes}
    watches = Watches(liveness.heartbeat, unpositioned=paths)
    session = WatchSession(WatchFilter(intake, metrics), watches)
    metrics.watch_store(store, store.progress_age_seconds)
    metrics.watch_queue(queue)
    return Operator(
        settings=settings,
        liveness=liveness,
        metrics=metrics,
        queue=queue,
        watches=watches,
        resync=Resync(
            cluster,
            store,
            queue,
            watches,
            metrics,
            namespaces=scopes,
            period_seconds=settings.resync_seconds,
            random=Random(),  # noqa: S311 - spreads load; not for security
            now=utc_now,
        ),
        report_intervals=ReportIntervalController(store, queue, report_budget(settings)),
        reconciler=Reconciler(
            cluster,
            store,
            queue,
            limits=limits(settings),
            defaults=pod_defaults(settings),
            metrics=metrics,
            events=events,
            clocks=Clocks(utc_now, time.monotonic),
        ),
        events=events,
        registry=handlers.registry(intake, cluster, session),
    )


def limits(settings: Settings) -> Limits:
    """Select the settings that policies depend on."""
    return Limits(
        image_pull_grace_seconds=settings.image_pull_grace_seconds,
        retry_base_seconds=settings.retry_backoff_base_seconds,
        retry_cap_seconds=settings.retry_backoff_cap_seconds,
        no_report_seconds=settings.no_report_seconds,
    )


def report_budget(settings: Settings) -> ReportBudget:
    """Select the settings that the report interval depends on."""
    return ReportBudget(settings.report_writes_per_second, settings.report_bytes_per_second)


def pod_defaults(settings: Settings) -> PodDefaults:
    """Select the settings that apply to all trainer pods."""
    return PodDefaults(
        image=settings.trainer_image,
        image_pull_policy=settings.trainer_image_pull_policy,
        image_pull_secrets=settings.trainer_image_pull_secrets,
        labels=settings.trainer_pod_labels,
        annotations=settings.trainer_pod_annotations,
        inherited_labels=settings.trainer_inherited_labels,
        inherited_annotations=settings.trainer_inherited_annotations,
        run_as_user=settings.trainer_run_as_user,
        fs_group=settings.trainer_fs_group,
        role_kind=settings.trainer_role_kind,
        role_name=settings.trainer_role_name,
    )


async def operate(settings: Settings) -> None:
    """Run the operator until SIGTERM or SIGINT.

    Raises:
        Exception: a task has failed; the process must exit.
    """
    stop = asyncio.Event()
    install_signal_handlers(stop)
    metrics, liveness = Metrics(), Liveness(time.monotonic)
    cluster = await Cluster.connect(on_request=metrics.request)
    runner = await health.serve(settings.http_port, liveness, metrics)
    log.info("Operator for %s at %s, HTTP on %s", names.RESOURCE, cluster.server, runner.addresses)
    try:
        async with leadership(settings, metrics, liveness, stop) as leader:
            if stop.is_set():
                return
            operator = build(settings, cluster, metrics, liveness)
            tasks = operator.tasks(lambda: install_signal_handlers(stop))
            if leader is not None:  # from now on: the initial list may take longer than the Lease
                tasks["lease"] = leader.hold(lambda: liveness.heartbeat("lease"))
            await run_until_stopped(stop, run_tasks(tasks))
    finally:
        await runner.cleanup()
        await cluster.close()


def tune_garbage_collection() -> None:
    """Keep the garbage collector from pausing the event loop.

    It searches for reference cycles, of which there are hardly any here: parsed JSON is freed
    without it. With Python's own thresholds the first list of 10,000 jobs and their pods made it
    traverse all modules and the whole store again and again: 6.8 s of CPU and pauses of 120 ms,
    instead of 3.1 s and 60 ms (measured, pages of 2 MB).
    """
    gc.collect()
    gc.freeze()  # imported modules are never freed
    gc.set_threshold(*GC_THRESHOLDS)


def main() -> int:
    """Entry point; returns the exit code."""
    try:
        settings = Settings()
    except ValidationError as invalid:
        logs.configure("INFO", "text")
        for problem in describe_problems(invalid):
            log.critical("%s", problem)
        return EXIT_BAD_SETTINGS
    logs.configure(settings.log_level, settings.log_format)
    tune_garbage_collection()
    try:
        asyncio.run(operate(settings))
    except (ApiError, LeaseLostError, TaskExitedError, OSError) as error:
        log.critical("Operator exiting: %s", error)
        return EXIT_FAILED
    except Exception:
        log.critical("Operator exiting: a background task failed", exc_info=True)
        return EXIT_FAILED
    log.info("Operator stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
