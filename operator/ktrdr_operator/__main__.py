"""The operator's process: `python -m ktrdr_operator`.

Builds every part once and runs them side by side. When any part ends, the process ends, non-zero:
restarted is better than alive and blind.
"""

import asyncio
import logging
import signal
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from random import Random
from typing import Any, Final

from pydantic import ValidationError

from ktrdr_api import names
from ktrdr_client.cluster import PODS, TRAINING_JOBS, ApiError, Cluster
from ktrdr_operator import handlers, health, logs
from ktrdr_operator.events import EventRecorder
from ktrdr_operator.health import Liveness
from ktrdr_operator.leader import LEASE_NAME, Leader, LeaseLostError
from ktrdr_operator.metrics import Metrics
from ktrdr_operator.queue import WorkQueue
from ktrdr_operator.reconcile import Reconciler
from ktrdr_operator.report_interval import ReportIntervalController
from ktrdr_operator.resync import Resync
from ktrdr_operator.settings import PREFIX, Settings
from ktrdr_operator.snapshot import Limits
from ktrdr_operator.store import JobKey, Store
from ktrdr_operator.watch_filter import WatchFilter

log: Final = logging.getLogger("ktrdr_operator")

EXIT_FAILED: Final = 1
EXIT_BAD_SETTINGS: Final = 2


class TaskExitedError(Exception):
    """A part that should run for ever has ended by itself."""


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


def install_signal_handlers(stop: asyncio.Event) -> None:
    """End in order on SIGTERM and SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def run_until_stopped(stop: asyncio.Event, part: Coroutine[Any, Any, None]) -> None:
    """Run a part until it ends or the process is asked to stop, whichever is first."""
    task, stopped = asyncio.create_task(part), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        task.cancel()
        stopped.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)


async def run_tasks(parts: dict[str, Coroutine[Any, Any, None]]) -> None:
    """Run parts side by side.

    Raises:
        Exception: the error that ended the first of them.
        PartEndedError: it ended without one.
    """
    tasks = [asyncio.create_task(part, name=name) for name, part in parts.items()]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
            raise TaskExitedError(f"{task.get_name()} has ended by itself")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def leadership(
    settings: Settings, metrics: Metrics, liveness: Liveness, stop: asyncio.Event
) -> AsyncIterator[Leader | None]:
    """Wait to lead, and give the Lease up at the end; without election there is no leader."""
    if not settings.leader_election:
        yield None
        return
    # Its own connections: a renewal must not stand in line behind 500 creates.
    cluster = await Cluster.connect(max_in_flight=1, on_request=metrics.request)
    identity = f"{socket.gethostname()}_{uuid.uuid4()}"
    leader = Leader(cluster, settings.lease_namespace, identity, utc_now, time.monotonic)
    metrics.leading(LEASE_NAME, leads=False)
    liveness.expect("lease")
    try:
        await run_until_stopped(stop, leader.acquire(lambda: liveness.beat("lease")))
        metrics.leading(LEASE_NAME, leads=not stop.is_set())
        yield leader
    finally:
        await leader.release()
        await cluster.close()


def build_parts(
    settings: Settings, cluster: Cluster, metrics: Metrics, liveness: Liveness
) -> tuple[Resync, Callable[[Callable[[], None]], dict[str, Coroutine[Any, Any, None]]]]:
    """Wire the operator together.

    Returns:
        What fills the store first; and what starts everything else after that, given a function
        that takes the signals back from kopf.
    """
    store, queue = Store(), WorkQueue[JobKey](clock=time.monotonic)
    events = EventRecorder(cluster, metrics, utc_now)
    watch_filter = WatchFilter(
        store, metrics, time.monotonic, liveness.beat, relisted=asyncio.Event()
    )
    metrics.watch_store(store, queue.__len__, watch_filter.progress_age_seconds)
    resync = Resync(
        cluster,
        store,
        queue,
        watch_filter,
        namespaces=settings.namespaces(),
        period_seconds=settings.resync_seconds,
        random=Random(),  # noqa: S311 - spreads load, guards nothing
    )
    report_intervals = ReportIntervalController(store, queue, settings.report_writes_per_second)
    reconciler = Reconciler(cluster, store, queue, limits(settings), metrics, events, utc_now)
    table = handlers.registry(handlers.Handlers(store, queue, metrics, watch_filter), cluster)

    def parts(started: Callable[[], None]) -> dict[str, Coroutine[Any, Any, None]]:
        # Before any worker: the interval that an earlier operator has set stays.
        report_intervals.look()
        return {
            "workers": queue.run(settings.workers, health.with_canary(liveness, reconciler.work)),
            "events": events.run(),
            "resync": resync.run(),
            "pace": report_intervals.run(),
            "canary": health.run_canary(queue, metrics),
            # After those above: at its end kopf ends all tasks that are younger than itself.
            "kopf": handlers.run_kopf(
                table, handlers.kopf_settings(), settings.watch_namespaces, started
            ),
        }

    return resync, parts


def limits(settings: Settings) -> Limits:
    """What of the settings decisions obey."""
    return Limits(
        trainer_image=settings.trainer_image,
        image_pull_policy=settings.trainer_image_pull_policy,
        image_pull_grace_seconds=settings.image_pull_grace_seconds,
        retry_base_seconds=settings.retry_backoff_base_seconds,
        retry_cap_seconds=settings.retry_backoff_cap_seconds,
    )


async def operate(settings: Settings) -> None:
    """Run the operator until SIGTERM or SIGINT.

    Raises:
        Exception: a part has died; the process must end.
    """
    stop = asyncio.Event()
    install_signal_handlers(stop)
    metrics, liveness = Metrics(), Liveness(time.monotonic)
    cluster = await Cluster.connect(on_request=metrics.request)
    runner = await health.serve(settings.http_port, liveness, metrics)
    log.info("operator for %s at %s, HTTP on %s", names.RESOURCE, cluster.server, runner.addresses)
    try:
        async with leadership(settings, metrics, liveness, stop) as leader:
            resync, parts = build_parts(settings, cluster, metrics, liveness)
            await run_until_stopped(stop, resync.first())
            if stop.is_set():
                return
            log.info("first listing done, working with %d workers", settings.workers)
            for namespace in settings.namespaces():
                liveness.expect(TRAINING_JOBS.path(namespace), PODS.path(namespace))
            running = parts(lambda: install_signal_handlers(stop))
            if leader is not None:
                running["lease"] = leader.hold(lambda: liveness.beat("lease"))
            await run_until_stopped(stop, run_tasks(running))
    finally:
        await runner.cleanup()
        await cluster.close()


def main() -> int:
    """Entry point; returns the exit code."""
    try:
        settings = Settings()
    except ValidationError as invalid:
        logs.configure("INFO", "text")
        for error in invalid.errors():
            field = "".join(str(part) for part in error["loc"][:1]).upper()
            log.critical("%s%s: %s", PREFIX, field or "*", error["msg"])
        return EXIT_BAD_SETTINGS
    logs.configure(settings.log_level, settings.log_format)
    try:
        asyncio.run(operate(settings))
    except (ApiError, LeaseLostError, TaskExitedError, OSError) as error:
        log.critical("the operator ends: %s", error)
        return EXIT_FAILED
    except Exception:
        log.critical("the operator ends: a part of it has died", exc_info=True)
        return EXIT_FAILED
    log.info("stopped in order")
    return 0


if __name__ == "__main__":
    sys.exit(main())
