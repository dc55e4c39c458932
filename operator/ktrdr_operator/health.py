"""Health: a canary that does real work, and the small HTTP server that tells of it.

Watches prove themselves by what they receive, the workers by a key that goes through the queue like
any other. A process that is alive and blind therefore fails its liveness probe. Started by
`__main__`; `session` and `leader` report to it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from ktrdr_operator.metrics import Metrics
from ktrdr_operator.queue import Priority, WorkQueue
from ktrdr_operator.store import JobKey

SILENCE_SECONDS: Final = 180.0
"""A watch gets a bookmark every minute or is reopened after 70 s: more is a hang."""
CANARY_SECONDS: Final = 5.0
WORKERS: Final = "workers"
CANARY: Final = JobKey("", "")
"""A key no TrainingJob can have: it proves that a worker takes keys and finishes them."""


@dataclass
class Liveness:
    """When each vital part was last seen working."""

    clock: Callable[[], float]
    """Monotonic seconds."""
    _beats: dict[str, float] = field(default_factory=dict)

    def expect(self, *parts: str) -> None:
        """Count parts as vital from now on."""
        self._beats.update(dict.fromkeys(parts, self.clock()))

    def beat(self, part: str) -> None:
        """Note that a part works."""
        if part in self._beats:
            self._beats[part] = self.clock()

    def silent(self) -> dict[str, float]:
        """Parts that have not worked for too long, and for how many seconds."""
        now = self.clock()
        ages = {part: now - seen for part, seen in self._beats.items()}
        return {part: age for part, age in ages.items() if age > SILENCE_SECONDS}


def with_canary(
    health: Liveness, work: Callable[[JobKey, float], Awaitable[None]]
) -> Callable[[JobKey, float], Awaitable[None]]:
    """Let workers note the canary and do everything else as before."""
    health.expect(WORKERS)

    async def work_or_note(key: JobKey, waited_seconds: float) -> None:
        if key == CANARY:
            health.beat(WORKERS)
        else:
            await work(key, waited_seconds)

    return work_or_note


async def run_canary(queue: WorkQueue[JobKey], metrics: Metrics) -> None:
    """Send the canary through the queue for ever, and measure how late the event loop is."""
    loop = asyncio.get_running_loop()
    while True:
        queue.add(CANARY, Priority.STOP)
        due = loop.time() + CANARY_SECONDS
        await asyncio.sleep(CANARY_SECONDS)
        metrics.loop_lag(max(loop.time() - due, 0.0))


async def serve(port: int, health: Liveness, metrics: Metrics) -> web.AppRunner:
    """Serve /healthz and /metrics on all interfaces; the caller cleans up the runner."""

    async def healthz(_: web.Request) -> web.Response:
        silent = [f"{part}: silent for {age:.0f} s" for part, age in health.silent().items()]
        return web.Response(text="\n".join(silent) or "ok", status=503 if silent else 200)

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(
            body=metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/metrics", exposition)])
    # No keep-alive: kopf, when it ends, waits 5 s for every task it does not know.
    runner = web.AppRunner(app, shutdown_timeout=1.0, handle_signals=False, keepalive_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, port=port)
    await site.start()
    return runner
