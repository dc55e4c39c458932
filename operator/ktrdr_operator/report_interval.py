"""Report interval: how long trainers wait between progress reports, for all jobs together.

Every report rewrites the whole TrainingJob. That costs the API server 6.5 ms of CPU and etcd one
more revision of the object, which stays for five to ten minutes until it is compacted (measured).
So two budgets bound what all trainers together write: reports per second, and bytes per second.

The controller counts the TrainingJobs that run or soon will, and their sizes, and keeps the
interval in the store. The policy `running` copies it to `status.reportPeriodSeconds`, which
trainers obey. A job that starts is told with the status write that it gets anyway. Running jobs
that have been told another interval are enqueued little by little, because telling all of them
costs as much as one report of each. Started by `__main__`.
"""

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ktrdr_api.conditions import Phase
from ktrdr_operator.queue import Priority, WorkQueue
from ktrdr_operator.store import JobKey, KnownJob, Store

log: Final = logging.getLogger(__name__)

UPDATE_SECONDS: Final = 5.0
INTERVALS_SECONDS: Final = (1, 2, 5, 10, 20, 30, 60, 120, 240, 480, 900, 1800, 3600)
"""Few, so that not every job that starts or ends changes the interval of all others."""
UNTOLD_SECONDS: Final = 0.5
"""Shortest interval of a trainer without `status.reportPeriodSeconds`: its epochs may be so short.
Their routine reports come every 2 s."""
HYSTERESIS: Final = 1.5
"""The interval is shortened only if the budgets would allow for half as much again."""
STORED_SHARE: Final = 1.07
"""etcd bytes per byte of object: 1.06 at 8 kB, 1.05 at 72 kB, 1.02 at 147 kB (measured)."""
TOLD_PER_SECOND: Final = 20.0
"""Jobs per second that are told a new interval: 13 % of a core of the API server. Telling 10,000
jobs at the same time would cost 65 s of its CPU in one burst."""
TOLD_PER_SECOND_MAXIMUM: Final = 100.0
"""The same while reports exceed the budgets: twice the 50 pods per second that a scheduler starts,
so that telling keeps up with starting."""
TOLD_ALL_SECONDS: Final = 60.0
"""While reports exceed the budgets, all jobs are told within this time, however many they are."""
RETRY_SECONDS: Final = 60.0
"""A job that has not taken the interval after this time is enqueued again."""


class Running(NamedTuple):
    """A TrainingJob whose trainer reports."""

    size_bytes: int
    key: JobKey
    told: int | None
    """`status.reportPeriodSeconds`."""

    @property
    def interval_seconds(self) -> float:
        """Shortest time between two reports."""
        return self.told or UNTOLD_SECONDS


@dataclass(frozen=True)
class ReportBudget:
    """What all trainers together may write."""

    writes_per_second: float
    bytes_per_second: float

    def required_seconds(self, jobs: int, size_bytes: int) -> float:
        """Shortest interval that keeps both budgets.

        Args:
            jobs: trainers that report.
            size_bytes: total size of their TrainingJobs, as the API server stores them.
        """
        return max(jobs / self.writes_per_second, size_bytes * STORED_SHARE / self.bytes_per_second)

    def count_urgent(self, running: list[Running], stale: list[Running], told: int | None) -> int:
        """How many stale jobs have to be told until both budgets hold.

        Args:
            running: all jobs that report, each at the interval it has been told.
            stale: those of them that are to be told, in this order.
            told: the interval that they are told.
        """
        writes, stored = -self.writes_per_second, -self.bytes_per_second
        for job in running:
            writes += 1 / job.interval_seconds
            stored += job.size_bytes * STORED_SHARE / job.interval_seconds
        for turn, job in enumerate(stale):
            if max(writes, stored) <= 0:
                return turn
            saved = 1 / job.interval_seconds - 1 / (told or UNTOLD_SECONDS)
            writes -= saved
            stored -= job.size_bytes * STORED_SHARE * saved
        return len(stale)


def choose_interval(required_seconds: float, before: int | None) -> int | None:
    """Seconds that each trainer must wait between reports; None when they need not be told.

    Args:
        required_seconds: shortest interval that keeps the budgets.
        before: the previous answer. It is kept until the budgets allow for a shorter one with room
            to spare.
    """
    shortest = _round_up(required_seconds)
    if before is None or (shortest or 0) >= before:
        return shortest
    relaxed = _round_up(HYSTERESIS * required_seconds)
    return relaxed if (relaxed or 0) < before else before


def _round_up(seconds: float) -> int | None:
    if seconds <= UNTOLD_SECONDS:
        return None
    return next((step for step in INTERVALS_SECONDS if step >= seconds), INTERVALS_SECONDS[-1])


def tell_per_second(running: int, urgent: int) -> float:
    """How many jobs per second are told.

    Args:
        running: jobs that report.
        urgent: jobs that have to be told until the budgets hold; 0 when they hold.
    """
    maximum = max(TOLD_PER_SECOND_MAXIMUM, running / TOLD_ALL_SECONDS)
    return min(max(urgent / UPDATE_SECONDS, TOLD_PER_SECOND), maximum)


@dataclass
class ReportIntervalController:
    """Adjusts `store.report_interval_seconds` to the TrainingJobs that report."""

    store: Store
    queue: WorkQueue[JobKey]
    budget: ReportBudget
    _enqueued: dict[JobKey, float] = field(default_factory=dict, init=False)
    """When a job was enqueued to be told the present interval."""
    _is_exceeded: bool = field(default=False, init=False)
    """Whether the longest interval does not keep the budgets."""

    async def run(self) -> None:
        """Update forever."""
        while True:
            self.update()
            await asyncio.sleep(UPDATE_SECONDS)

    def update(self) -> None:
        """Compute the interval, and enqueue some of the jobs that have been told another one."""
        jobs = [(key, job) for key, job in self.store.jobs.items() if _reports_soon(job)]
        size_bytes = sum(job.size_bytes for _, job in jobs)
        required = self.budget.required_seconds(len(jobs), size_bytes)
        interval = choose_interval(required, self.store.report_interval_seconds)
        self._warn_once(required, len(jobs), size_bytes)
        if interval != self.store.report_interval_seconds:
            log.info("Report interval changed to %s s for %d jobs", interval or "any", len(jobs))
            self.store.report_interval_seconds = interval
            self._enqueued.clear()
        self._tell(
            [
                Running(job.size_bytes, key, job.report_period_seconds)
                for key, job in jobs
                if job.phase == Phase.RUNNING
            ],
            interval,
        )

    def _tell(self, running: list[Running], interval: int | None) -> None:
        now = self.queue.clock()
        # Largest first: these fill etcd fastest.
        stale = sorted((job for job in running if job.told != interval), reverse=True)
        recently = now - RETRY_SECONDS
        self._enqueued = {
            job.key: self._enqueued[job.key]
            for job in stale
            if self._enqueued.get(job.key, recently) > recently
        }
        waiting = [job for job in stale if job.key not in self._enqueued]
        urgent = self.budget.count_urgent(running, stale, interval)
        rate = tell_per_second(len(running), urgent)
        for turn, job in enumerate(waiting[: int(rate * UPDATE_SECONDS)]):
            self._enqueued[job.key] = now
            self.queue.add_after(job.key, turn / rate, Priority.STATUS_ONLY)

    def _warn_once(self, required: float, jobs: int, size_bytes: int) -> None:
        is_exceeded = required > INTERVALS_SECONDS[-1]
        if is_exceeded and not self._is_exceeded:
            log.warning(
                "Progress reports exceed their budget: %d TrainingJobs of %.1f MB would need an"
                " interval of %.0f s, the longest is %d s; raise the chart values"
                " operator.reportWritesPerSecond and operator.reportBytesPerSecond if the API"
                " server and etcd can take more, or run fewer jobs",
                jobs,
                size_bytes / 1e6,
                required,
                INTERVALS_SECONDS[-1],
            )
        self._is_exceeded = is_exceeded


def _reports_soon(job: KnownJob) -> bool:
    """Whether the trainer runs or is about to: a burst of jobs then changes the interval once."""
    is_starting = job.phase in ("", Phase.STARTING) and not job.is_waiting
    return is_starting or job.phase == Phase.RUNNING
