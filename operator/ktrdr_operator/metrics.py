"""Prometheus metrics of the operator, as served on /metrics.

Names are controller-runtime's where it has one (`workqueue_*`, `rest_client_*`,
`leader_election_*`), so that its dashboards and alerts work; the others have the prefix `ktrdr_`.
Units are base units. No label holds the name of a job, because the number of names has no bound.
Called by all modules of the operator that measure something, served by `health`.
"""

from collections import Counter as Tally
from collections.abc import Callable, Iterable
from typing import Final, Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ktrdr_api.conditions import Phase
from ktrdr_operator.queue import WorkQueue
from ktrdr_operator.store import JobKey, Store

FAST: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""Seconds: what the operator does itself."""
SLOW: Final = (20.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
"""Seconds: what waits for schedulers, images and trainers."""
FAST_TO_SLOW: Final = (*(bound for bound in FAST if 0.05 <= bound < SLOW[0]), *SLOW)
"""Seconds: what takes less than a second if nothing waits, and an hour if something does."""
QUEUE_NAME: Final = "trainingjobs"

WatchedKind = Literal["TrainingJob", "Pod"]


class _StoreCollector(Collector):
    """Counts what the store holds at every scrape, so that no gauge can be outdated."""

    def __init__(self, store: Store, progress_age: Callable[[], float]) -> None:
        self._store, self._progress_age = store, progress_age

    def collect(self) -> Iterable[Metric]:
        phases = Tally(job.phase for job in self._store.jobs.values())
        jobs = GaugeMetricFamily(
            "ktrdr_jobs", "TrainingJobs by phase; Unseen before the first status.", labels=["phase"]
        )
        for phase in sorted({*phases, *(str(phase) for phase in Phase)}):
            jobs.add_metric([phase or "Unseen"], phases[phase])
        age = GaugeMetricFamily(
            "ktrdr_progress_age_seconds",
            "Time since the latest progress report of the running TrainingJob that has not reported"
            " for longest.",
            value=self._progress_age(),
        )
        interval = GaugeMetricFamily(
            "ktrdr_report_interval_seconds",
            "Minimum time between progress reports that trainers are told; 0 when they are not.",
            value=self._store.report_interval_seconds or 0,
        )
        return [jobs, age, interval]


class _QueueCollector(Collector):
    """Reads the state of the work queue at every scrape."""

    def __init__(self, queue: WorkQueue[JobKey]) -> None:
        self._queue = queue

    def collect(self) -> Iterable[Metric]:
        processing = self._queue.processing_seconds()
        counters = {
            "workqueue_adds_total": (
                "Keys added, with the key every 5 s that proves that workers are alive.",
                self._queue.adds,
            ),
            "workqueue_retries_total": (
                "Keys added again with backoff after a failed reconcile.",
                self._queue.retries,
            ),
        }
        gauges = {
            "workqueue_depth": ("Keys that wait for a worker.", len(self._queue)),
            "workqueue_unfinished_work_seconds": (
                "Total time so far of the reconciles that are running.",
                sum(processing),
            ),
            "workqueue_longest_running_processor_seconds": (
                "Time so far of the longest running reconcile.",
                max(processing, default=0.0),
            ),
        }
        for name, (text, value) in counters.items():
            counter = CounterMetricFamily(name, text, labels=["name"])
            counter.add_metric([QUEUE_NAME], value)
            yield counter
        for name, (text, reading) in gauges.items():
            gauge = GaugeMetricFamily(name, text, labels=["name"])
            gauge.add_metric([QUEUE_NAME], reading)
            yield gauge


class Metrics:
    """All metrics of one operator, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._count_requests_and_events()
        self._count_jobs()
        self._measure_times()

    def _count_requests_and_events(self) -> None:
        self._requests = self._counter(
            "rest_client_requests_total",
            "Requests to the API server by HTTP status and method.",
            "code",
            "method",
        )
        self._leading = Gauge(
            "leader_election_master_status",
            "1 while this process holds the Lease, otherwise 0.",
            ("name",),
            registry=self.registry,
        )
        self._watch_events = self._counter(
            "ktrdr_watch_events_total",
            "Events received from the watches by kind of object: passed to the work queue, or"
            " dropped because no decision depends on them.",
            "kind",
            "outcome",
        )
        self._dropped_events = self._counter(
            "ktrdr_events_dropped_total", "Kubernetes Events that could not be posted."
        )
        self._unreadable_namespaces = Gauge(
            "ktrdr_unreadable_namespaces",
            "Watched namespaces that the API server does not let the operator read.",
            registry=self.registry,
        )

    def _count_jobs(self) -> None:
        self._reconciles = self._counter(
            "ktrdr_reconcile_total", "Reconciles by outcome.", "outcome"
        )
        self._attempts = self._counter(
            "ktrdr_attempts_total", "Attempts whose trainer has started running."
        )
        self._disruptions = self._counter(
            "ktrdr_disruptions_total",
            "Attempts ended by a disruption (eviction, preemption, node loss, deleted pod).",
        )
        self._finished = self._counter(
            "ktrdr_jobs_finished_total", "TrainingJobs that have finished, by outcome.", "outcome"
        )
        self._expired = self._counter(
            "ktrdr_jobs_expired_total",
            "TrainingJobs that the operator has deleted because their ttlSecondsAfterFinished was"
            " over.",
        )

    def _measure_times(self) -> None:
        self._reconcile_seconds = self._histogram(
            "ktrdr_reconcile_seconds", "Duration of a reconcile.", FAST
        )
        self._work_seconds = Histogram(
            "workqueue_work_duration_seconds",
            "Time that a worker took to process a key.",
            ("name",),
            buckets=FAST,
            registry=self.registry,
        )
        self._queue_seconds = Histogram(
            "workqueue_queue_duration_seconds",
            "Time that a key waited for a worker.",
            ("name",),
            buckets=FAST,
            registry=self.registry,
        )
        self._handler_seconds = self._histogram(
            "ktrdr_event_handler_lag_seconds",
            "Time from receiving a watch event until it was handled.",
            FAST,
        )
        self._loop_seconds = self._histogram(
            "ktrdr_event_loop_lag_seconds",
            "Delay between scheduled and actual wake-up of the event loop.",
            FAST,
        )
        self._longest_pause = Gauge(
            "ktrdr_event_loop_longest_pause_seconds",
            "Longest delay between scheduled and actual wake-up of the event loop since the start"
            " of the process.",
            registry=self.registry,
        )
        self._longest_pause_seconds = 0.0
        self._to_running_seconds = self._histogram(
            "ktrdr_time_to_running_seconds",
            "Time from the first sight of a TrainingJob until its trainer runs.",
            FAST_TO_SLOW,
        )
        self._cancel_seconds = self._histogram(
            "ktrdr_cancel_seconds",
            "Time from the cancel request to phase Cancelled.",
            FAST_TO_SLOW,
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)

    def watch_store(self, store: Store, progress_age: Callable[[], float]) -> None:
        """Report the contents of the store at every scrape."""
        self.registry.register(_StoreCollector(store, progress_age))

    def watch_queue(self, queue: WorkQueue[JobKey]) -> None:
        """Report the state of the work queue at every scrape."""
        self.registry.register(_QueueCollector(queue))

    def request(self, method: str, code: str) -> None:
        """Count a request to the API server."""
        self._requests.labels(code, method).inc()

    def leading(self, name: str, leads: bool) -> None:
        """Set whether this process holds the Lease."""
        self._leading.labels(name).set(int(leads))

    def reconcile(self, seconds: float, outcome: Literal["ok", "error"]) -> None:
        """Count a reconcile and its duration."""
        self._reconciles.labels(outcome).inc()
        self._reconcile_seconds.observe(seconds)
        self._work_seconds.labels(QUEUE_NAME).observe(seconds)

    def queue_lag(self, seconds: float) -> None:
        """Record how long a key waited for a worker."""
        self._queue_seconds.labels(QUEUE_NAME).observe(seconds)

    def handler_lag(self, seconds: float) -> None:
        """Record the time from receiving a watch event until it was handled."""
        self._handler_seconds.observe(seconds)

    def loop_lag(self, seconds: float) -> None:
        """Record how late the event loop woke up."""
        self._loop_seconds.observe(seconds)
        if seconds > self._longest_pause_seconds:
            self._longest_pause_seconds = seconds
            self._longest_pause.set(seconds)

    def watch_event(self, kind: WatchedKind, outcome: Literal["passed", "dropped"]) -> None:
        """Count an event received from a watch."""
        self._watch_events.labels(kind, outcome).inc()

    def unreadable_namespaces(self, count: int) -> None:
        """Set how many watched namespaces cannot be read."""
        self._unreadable_namespaces.set(count)

    def attempt_started(self) -> None:
        """Count an attempt; the caller does so once per UID and attempt."""
        self._attempts.inc()

    def disruption(self) -> None:
        """Count an attempt that was ended by a disruption."""
        self._disruptions.inc()

    def job_finished(self, outcome: str) -> None:
        """Count a TrainingJob that has finished.

        Args:
            outcome: its phase: Succeeded, Failed or Cancelled.
        """
        self._finished.labels(outcome).inc()

    def job_expired(self) -> None:
        """Count a TrainingJob that was deleted after its time to live."""
        self._expired.inc()

    def time_to_running(self, seconds: float) -> None:
        """Record the time from the first sight of a TrainingJob until its trainer runs.

        Args:
            seconds: by a monotonic clock: timestamps of the API have whole seconds.
        """
        self._to_running_seconds.observe(seconds)

    def cancel(self, seconds: float) -> None:
        """Record the time from a cancel request to phase Cancelled; see `time_to_running`."""
        self._cancel_seconds.observe(seconds)

    def event_dropped(self) -> None:
        """Count a Kubernetes Event that could not be posted."""
        self._dropped_events.inc()

    def exposition(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)
