"""Health checks: a canary that does real work, and the HTTP server of /healthz and /metrics.

Watches prove that they are alive by what they receive, workers by a key that goes through the work
queue like any other. A process that runs but no longer receives events therefore fails its liveness
probe. The server also measures how late the event loop wakes up, for as long as it serves. Started
by `__main__`; `watches` and `leader` report heartbeats.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from ktrdr_operator.metrics import Metrics
from ktrdr_operator.queue import Priority, WorkQueue
from ktrdr_operator.store import JobKey

SILENCE_SECONDS: Final = 180.0
"""Maximum time between heartbeats. A watch receives a bookmark every minute or is reopened after
70 s, so a longer silence is a hang."""
CANARY_SECONDS: Final = 5.0
SAMPLE_SECONDS: Final = 0.05
"""Time between measurements of the event loop. A pause that begins between two of them is measured
up to this much too short. All of them cost 0.4 % of a core, nearly all for waking up (measured on
busy cores)."""
WORKERS: Final = "workers"
CANARY: Final = JobKey("", "")
"""A key that no TrainingJob can have: it proves that a worker takes keys and finishes them."""


@dataclass
class Liveness:
    """Latest heartbeat of each vital task."""

    clock: Callable[[], float]
    """Monotonic seconds."""
    _heartbeats: dict[str, float] = field(default_factory=dict)

    def register(self, *tasks: str) -> None:
        """Expect heartbeats of these tasks from now on."""
        self._heartbeats.update(dict.fromkeys(tasks, self.clock()))

    def heartbeat(self, task: str) -> None:
        """Note that a task is alive; ignored if it is not registered."""
        if task in self._heartbeats:
            self._heartbeats[task] = self.clock()

    def overdue(self) -> dict[str, float]:
        """Tasks without a heartbeat for too long, and for how many seconds."""
        now = self.clock()
        ages = {task: now - seen for task, seen in self._heartbeats.items()}
        return {task: age for task, age in ages.items() if age > SILENCE_SECONDS}


def with_canary(
    liveness: Liveness, work: Callable[[JobKey, float], Awaitable[None]]
) -> Callable[[JobKey, float], Awaitable[None]]:
    """Wrap the function that workers call: the canary is a heartbeat, all other keys are passed."""
    liveness.register(WORKERS)

    async def work_or_heartbeat(key: JobKey, waited_seconds: float) -> None:
        if key == CANARY:
            liveness.heartbeat(WORKERS)
        else:
            await work(key, waited_seconds)

    return work_or_heartbeat


async def run_canary(queue: WorkQueue[JobKey]) -> None:
    """Send the canary through the queue forever."""
    while True:
        queue.add(CANARY, Priority.STOP)
        await asyncio.sleep(CANARY_SECONDS)


async def measure_loop(metrics: Metrics) -> None:
    """Measure forever how late the event loop wakes up."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + SAMPLE_SECONDS
        await asyncio.sleep(SAMPLE_SECONDS)
        metrics.loop_lag(max(loop.time() - due, 0.0))


async def serve(port: int, liveness: Liveness, metrics: Metrics) -> web.AppRunner:
    """Serve /healthz and /metrics on all interfaces; the caller cleans up the runner."""

    async def healthz(_: web.Request) -> web.Response:
        overdue = [
            f"{task}: no heartbeat for {age:.0f} s (limit {SILENCE_SECONDS:.0f} s)"
            for task, age in liveness.overdue().items()
        ]
        return web.Response(text="\n".join(overdue) or "ok", status=503 if overdue else 200)

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(
            body=metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def measured_loop(_: web.Application) -> AsyncIterator[None]:
        # From the start: reading the initial list is when the loop is busiest.
        measuring = asyncio.create_task(measure_loop(metrics))
        yield
        measuring.cancel()
        with suppress(asyncio.CancelledError):
            await measuring

    app = web.Application()
    app.cleanup_ctx.append(measured_loop)
    app.add_routes([web.get("/healthz", healthz), web.get("/metrics", exposition)])
    # Without keep-alive: at its end kopf waits 5 s for every task that it does not know.
    runner = web.AppRunner(app, shutdown_timeout=1.0, handle_signals=False, keepalive_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, port=port)
    await site.start()
    return runner
