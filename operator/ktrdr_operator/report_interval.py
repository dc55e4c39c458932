"""Pace: how often trainers may report, so that all of them together spare the API server.

One trainer's report every two seconds is nothing; a thousand of them would be most of what an API
server does. The Pacer counts TrainingJobs that run or soon will, and remembers in the store how
long each should wait; the rule `running` puts that into `status.reportPeriodSeconds`, which
trainers obey. Started by `__main__`.
"""

import asyncio
from dataclasses import dataclass
from typing import Final

from ktrdr_api.conditions import Phase
from ktrdr_operator.queue import Priority, WorkQueue
from ktrdr_operator.store import JobKey, Store
from ktrdr_operator.views import Raw

UPDATE_SECONDS: Final = 5.0
INTERVALS_SECONDS: Final = (1, 2, 5, 10, 20, 30, 60)
"""Few, so that the period of a thousand jobs is not written anew for each that comes or goes."""
UNPACED_PER_SECOND: Final = 2.0
"""Most reports of one trainer that nobody slows down: its epochs may be that short."""
HYSTERESIS: Final = 1.5
"""Room that must be left before the pace is raised again."""


def report_period(running: int, writes_per_second: float, before: int | None) -> int | None:
    """Seconds that each trainer should wait between reports; None when they need no telling.

    Args:
        running: trainers that report.
        writes_per_second: what all of them may write together.
        before: the answer before, which is kept until there is room for more than the next step.
    """
    needed = _step(running / writes_per_second)
    if before is None or (needed or 0) >= before:
        return needed
    relaxed = _step(HYSTERESIS * running / writes_per_second)
    return relaxed if (relaxed or 0) < before else before


def _step(seconds: float) -> int | None:
    if seconds * UNPACED_PER_SECOND <= 1.0:
        return None
    return next((step for step in INTERVALS_SECONDS if step >= seconds), INTERVALS_SECONDS[-1])


@dataclass(frozen=True)
class ReportIntervalController:
    """Keeps `store.report_period_seconds` in step with the number of trainers."""

    store: Store
    queue: WorkQueue[JobKey]
    writes_per_second: float

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(UPDATE_SECONDS)
            self.look()

    def look(self) -> None:
        """Count once; when the pace changes, every TrainingJob that counts is told."""
        counted = [key for key, raw in self.store.jobs.items() if _reports_soon(raw)]
        before = self.store.report_period_seconds
        period = report_period(len(counted), self.writes_per_second, before)
        if period == before:
            return
        self.store.report_period_seconds = period
        for key in counted:
            self.queue.add(key, Priority.STATUS_ONLY)


def _reports_soon(job: Raw) -> bool:
    """Whether it runs or is on its way there, so that a burst is told once, not at every step."""
    status = job.get("status", {})
    starting = status.get("phase", "") in ("", Phase.STARTING) and "waiting" not in status
    return starting or status.get("phase") == Phase.RUNNING
