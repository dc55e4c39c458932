import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import virtual_time
from ktrdr_api.training_job import REPORT_PERIOD_MAX_SECONDS
from ktrdr_operator.projections import known_job
from ktrdr_operator.queue import Priority, WorkQueue
from ktrdr_operator.report_interval import (
    INTERVALS_SECONDS,
    STORED_SHARE,
    UNTOLD_SECONDS,
    ReportBudget,
    ReportIntervalController,
    choose_interval,
)
from ktrdr_operator.settings import Settings
from ktrdr_operator.store import JobKey, Store
from virtual_time import elapse, in_virtual_time

BUDGET = ReportBudget(writes_per_second=60, bytes_per_second=1_000_000)


def interval(jobs: int, size_bytes: int, before: int | None = None) -> int | None:
    """What jobs of one size are told."""
    return choose_interval(BUDGET.required_seconds(jobs, jobs * size_bytes), before)


@pytest.mark.parametrize(
    ("jobs", "size_bytes", "want"),
    [
        (0, 0, None),
        (1, 8_000, None),
        (30, 8_000, None),  # 2 reports per second each, as often as their epochs end
        (31, 8_000, 1),
        (120, 8_000, 2),
        (121, 8_000, 5),
        (1_000, 8_000, 20),
        (10_000, 8_000, 240),
        (3, 150_000, None),
        (4, 150_000, 1),  # 64 KiB inline, kubectl apply: the bytes count, not the jobs
        (12, 150_000, 2),
        (48, 150_000, 10),
        (1_000, 150_000, 240),
        (1, 1_500_000, 2),
        (216_000, 8_000, 3600),
        (10**6, 8_000, 3600),
    ],
)
def test_report_interval_keeps_the_tighter_of_two_budgets(
    jobs: int, size_bytes: int, want: int | None
) -> None:
    assert interval(jobs, size_bytes) == want


@pytest.mark.parametrize(
    ("jobs", "before", "want"),
    [
        (1_000, 10, 20),
        (1_000, 20, 20),
        (600, 20, 20),  # 10 would do, but without room to spare
        (401, 20, 20),
        (400, 20, 10),
        (200, 20, 5),
        (31, 20, 1),
        (30, 1, 1),
        (20, 1, None),
        (10, 3600, None),
    ],
)
def test_report_interval_is_shortened_with_room_to_spare_only(
    jobs: int, before: int, want: int | None
) -> None:
    assert interval(jobs, 8_000, before) == want


def test_report_intervals_end_at_the_longest_that_the_api_allows() -> None:
    assert INTERVALS_SECONDS[-1] == REPORT_PERIOD_MAX_SECONDS
    assert list(INTERVALS_SECONDS) == sorted(set(INTERVALS_SECONDS))


def test_report_budget_by_default_is_600_megabytes_in_ten_minutes() -> None:
    settings = Settings(trainer_image="trainer:1")
    assert settings.report_writes_per_second == 60
    assert settings.report_bytes_per_second * 600 == 600e6


@given(st.lists(st.tuples(st.integers(0, 200_000), st.integers(2_000, 1_500_000)), min_size=1))
def test_report_interval_keeps_both_budgets_and_settles(loads: list[tuple[int, int]]) -> None:
    told: int | None = None
    for jobs, size_bytes in loads:
        told = interval(jobs, size_bytes, told)
        assert told is None or told in INTERVALS_SECONDS
        assert interval(jobs, size_bytes, told) == told
        seconds = told or UNTOLD_SECONDS
        if BUDGET.required_seconds(jobs, jobs * size_bytes) <= INTERVALS_SECONDS[-1]:
            assert jobs / seconds <= 60
            assert jobs * size_bytes / seconds <= 1_000_000


@dataclass
class Trainers:
    """TrainingJobs that run, and the operator's worker that tells them the interval."""

    budget: ReportBudget = BUDGET
    store: Store = field(default_factory=Store)
    told: list[tuple[float, JobKey]] = field(default_factory=list)
    """When a job was told."""
    deaf: set[str] = field(default_factory=set)
    """Names of jobs whose status the operator fails to write."""

    def __post_init__(self) -> None:
        self.queue = WorkQueue[JobKey](clock=asyncio.get_running_loop().time)
        self.controller = ReportIntervalController(self.store, self.queue, self.budget)
        self._task = asyncio.create_task(self.queue.run(1, self._tell))

    async def _tell(self, key: JobKey, _: float) -> None:
        self.told.append((virtual_time.now(), key))
        if key.name not in self.deaf:
            known = self.store.jobs[key]
            self.store.jobs[key] = replace(known, report_period_seconds=self.interval)

    @property
    def interval(self) -> int | None:
        return self.store.report_interval_seconds

    @property
    def intervals(self) -> list[int | None]:
        """What each job has been told."""
        return [known.report_period_seconds for known in self.store.jobs.values()]

    def start(self, jobs: int, size_bytes: int = 8_000) -> None:
        """Let jobs start; each is told the present interval."""
        like = known_job(job("x", "Running"), size_bytes=size_bytes, reported_at=0)
        for _ in range(jobs):
            key = JobKey("ns", f"job-{len(self.store.jobs)}")
            self.store.jobs[key] = replace(like, report_period_seconds=self.interval)

    async def update_for(self, seconds: float) -> None:
        """Let the controller and the worker run."""
        task = asyncio.create_task(self.controller.run())
        await elapse(seconds)
        await virtual_time.stop(task)

    def load(self) -> float:
        """Share of the tighter budget that all reports take."""
        rates = [
            (1 / (known.report_period_seconds or 0.5), known.size_bytes * STORED_SHARE)
            for known in self.store.jobs.values()
        ]
        writes = sum(rate for rate, _ in rates)
        stored = sum(rate * size for rate, size in rates)
        return max(writes / self.budget.writes_per_second, stored / self.budget.bytes_per_second)

    def most_told_in_a_second(self) -> int:
        return max(Counter(int(time) for time, _ in self.told).values(), default=0)

    async def stop(self) -> None:
        await virtual_time.stop(self._task)


def job(name: str, phase: str = "", **status: object) -> dict[str, Any]:
    metadata = {"namespace": "ns", "name": name, "uid": name, "resourceVersion": "1"}
    return {"metadata": metadata, "status": {"phase": phase, **status}}


@in_virtual_time
async def test_report_interval_counts_jobs_that_run_or_soon_will_and_tells_those_that_run() -> None:
    trainers = Trainers(ReportBudget(4.5, 1e9))
    trainers.start(8)
    trainers.store.put_job(job("new"))
    trainers.store.put_job(job("starting", "Starting"))
    trainers.store.put_job(job("told", "Running", reportPeriodSeconds=5))
    for number in range(20):
        waiting = {"reason": "Unschedulable"}
        trainers.store.put_job(job(f"queued-{number}", "Starting", waiting=waiting))
        trainers.store.put_job(job(f"ended-{number}", "Succeeded"))
    await trainers.update_for(20)
    assert (
        trainers.interval == 5
    )  # 11 jobs, 4.5 reports per second; 9 would have 2 s, 31 would have 10 s
    assert sorted(key.name for _, key in trainers.told) == [f"job-{n}" for n in range(8)]
    await trainers.stop()


@in_virtual_time
async def test_report_interval_change_comes_after_jobs_that_may_need_an_action() -> None:
    trainers = Trainers()
    trainers.start(40)
    trainers.controller.update()
    await trainers.stop()
    got: list[JobKey] = []

    async def work(key: JobKey, _: float) -> None:
        got.append(key)
        await asyncio.sleep(60)

    trainers.queue.add(JobKey("ns", "in work"), Priority.STOP)
    task = asyncio.create_task(trainers.queue.run(1, work))
    await elapse(50)
    trainers.queue.add(JobKey("ns", "other"), Priority.RECONCILE)
    await elapse(50)
    await virtual_time.stop(task)
    assert [key.name for key in got] == ["in work", "other"]


@in_virtual_time
async def test_report_interval_that_shrinks_is_told_to_20_jobs_per_second() -> None:
    trainers = Trainers()
    trainers.store.report_interval_seconds = 240
    trainers.start(2_000)
    await trainers.update_for(200)
    assert set(trainers.intervals) == {trainers.interval} == {60}
    assert len(trainers.told) == 2_000
    assert trainers.most_told_in_a_second() <= 21
    await trainers.stop()


@in_virtual_time
async def test_report_interval_that_grows_little_by_little_costs_no_burst() -> None:
    trainers = Trainers(ReportBudget(10, 1e9))
    trainers.store.report_interval_seconds = 120
    trainers.start(1_220)  # 2 % above the budget
    await trainers.update_for(20)
    assert trainers.interval == 240
    assert trainers.load() <= 1
    assert trainers.most_told_in_a_second() <= 50
    await trainers.update_for(100)
    assert len(trainers.told) == 1_220
    await trainers.stop()


@in_virtual_time
async def test_report_interval_of_ten_thousand_untold_jobs_is_told_within_a_minute() -> None:
    trainers = Trainers()
    trainers.start(10_000)
    await trainers.update_for(61)
    assert trainers.load() <= 1
    assert trainers.most_told_in_a_second() <= 170
    await trainers.stop()


@in_virtual_time
async def test_report_interval_that_grows_for_the_bytes_alone_is_urgent_too() -> None:
    trainers = Trainers()
    trainers.store.report_interval_seconds = 60
    trainers.start(2_000, 80_000)  # 33 reports per second, but 2.7 MB
    await trainers.update_for(30)
    assert trainers.interval == 240
    assert trainers.load() <= 1
    await trainers.stop()


@in_virtual_time
async def test_report_interval_that_grows_is_told_to_the_largest_jobs_first() -> None:
    trainers = Trainers()
    trainers.start(500, 2_000)
    trainers.start(20, 400_000)
    await trainers.update_for(1)
    assert trainers.interval == 10
    large = [known for known in trainers.store.jobs.values() if known.size_bytes == 400_000]
    assert [known.report_period_seconds for known in large] == [10] * 20
    await trainers.stop()


@in_virtual_time
async def test_report_interval_of_a_job_told_the_previous_one_at_its_start_is_repaired() -> None:
    trainers = Trainers()
    trainers.start(100)
    await trainers.update_for(10)
    trainers.store.put_job(job("late", "Running", reportPeriodSeconds=60), 8_000)
    await trainers.update_for(10)
    assert set(trainers.intervals) == {trainers.interval}
    await trainers.stop()


@in_virtual_time
async def test_report_interval_of_jobs_that_do_not_take_it_is_retried_once_a_minute() -> None:
    trainers = Trainers()
    trainers.start(300, 2_000)
    trainers.start(200, 10_000)
    trainers.deaf = {f"job-{number}" for number in range(300, 500)}
    await trainers.update_for(59)
    told = Counter(key.name for _, key in trainers.told)
    assert set(told.values()) == {1}
    assert len(told) == 500  # those that fail do not keep the others from being told
    await trainers.update_for(60)
    told = Counter(key.name for _, key in trainers.told)
    assert told == {f"job-{number}": 2 if number >= 300 else 1 for number in range(500)}
    await trainers.stop()


sizes = st.lists(
    st.tuples(st.integers(1, 60), st.integers(2_000, 1_000_000)), min_size=1, max_size=5
)
before = st.sampled_from([None, *INTERVALS_SECONDS[:8]])


@settings(max_examples=25, deadline=None)
@given(sizes, before, before)
def test_report_interval_whatever_was_told_before_keeps_the_budgets_after_a_minute(
    jobs: list[tuple[int, int]], first: int | None, then: int | None
) -> None:
    async def story() -> None:
        trainers = Trainers(ReportBudget(6, 100_000))
        for interval in (first, then):
            trainers.store.report_interval_seconds = interval
            for jobs_of_size, size_bytes in jobs:
                trainers.start(jobs_of_size, size_bytes)
        was_exceeded = trainers.load() > 1
        await trainers.update_for(61)
        assert trainers.load() <= 1 + 1e-9
        assert trainers.most_told_in_a_second() <= (101 if was_exceeded else 21)
        await trainers.update_for(200)
        assert set(trainers.intervals) == {trainers.interval}
        await trainers.stop()

    virtual_time.run(story())


@in_virtual_time
async def test_report_interval_keeps_up_with_50_jobs_that_start_per_second() -> None:
    trainers = Trainers()
    updates = asyncio.create_task(trainers.controller.run())
    loads: list[float] = []
    for _ in range(120):
        trainers.start(50)
        await elapse(1)
        loads.append(trainers.load())
    # At first all are untold; then 50 jobs per second have to be told to make room for 50 more.
    assert max(loads[20:]) <= 1.25
    assert sum(loads) / len(loads) <= 1.25
    await elapse(20)
    assert trainers.load() <= 1
    await virtual_time.stop(updates)
    await trainers.stop()


def test_report_interval_that_cannot_keep_the_budget_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, queue = Store(), WorkQueue[JobKey](clock=lambda: 0.0)
    controller = ReportIntervalController(store, queue, ReportBudget(1, 1))
    store.put_job(job("a", "Running"), 3_000)
    with caplog.at_level(logging.WARNING):
        controller.update()
        assert store.report_interval_seconds == 3600
        assert caplog.messages == []
        store.put_job(job("b", "Running"), 1_000)
        controller.update()
        controller.update()
    assert store.report_interval_seconds == 3600
    (message,) = caplog.messages
    assert "2 TrainingJobs" in message
    assert "an interval of 4280 s, the longest is 3600 s" in message
    assert "operator.reportBytesPerSecond" in message
