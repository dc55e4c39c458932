"""What Prometheus sees on /metrics.

Names are controller-runtime's where it has one, ours begin with `ktrdr_`; units are base units. No
job's name is ever a label: names have no bound. Called by all of the operator, served by `health`.
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
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ktrdr_api.conditions import Phase
from ktrdr_operator.store import Store

FAST: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""Seconds: what the operator does itself."""
SLOW: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
"""Seconds: what waits for schedulers, images and trainers."""
QUEUE_NAME: Final = "trainingjobs"


class _StoreCollector(Collector):
    """Counts what the store holds when somebody asks, so that no gauge can go stale."""

    def __init__(self, store: Store, depth: Callable[[], int], age: Callable[[], float]) -> None:
        self._store, self._depth, self._age = store, depth, age

    def collect(self) -> Iterable[Metric]:
        phases = Tally(job.phase for job in self._store.jobs.values())
        jobs = GaugeMetricFamily("ktrdr_jobs", "TrainingJobs by phase.", labels=["phase"])
        for phase in sorted({*phases, *(str(phase) for phase in Phase)}):
            jobs.add_metric([phase or "Unseen"], phases[phase])
        depth = GaugeMetricFamily("workqueue_depth", "Keys waiting for a worker.", labels=["name"])
        depth.add_metric([QUEUE_NAME], self._depth())
        age = GaugeMetricFamily(
            "ktrdr_progress_age_seconds",
            "Since the latest progress of the running TrainingJob that has been silent longest.",
            value=self._age(),
        )
        return [jobs, depth, age]


class Metrics:
    """All metrics of one operator, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "rest_client_requests_total",
            "Requests to the API server by status and method.",
            ("code", "method"),
            registry=self.registry,
        )
        self._leading = Gauge(
            "leader_election_master_status",
            "1 while this process leads.",
            ("name",),
            registry=self.registry,
        )
        self._reconciles = Counter(
            "ktrdr_reconcile_total", "Reconciles by outcome.", ("outcome",), registry=self.registry
        )
        self._attempts = Counter(
            "ktrdr_attempts_total", "Attempts started.", registry=self.registry
        )
        self._watch_lines = Counter(
            "ktrdr_watch_lines_total",
            "Lines of the TrainingJob watch, passed on or dropped as mere progress.",
            ("outcome",),
            registry=self.registry,
        )
        self._dropped_events = Counter(
            "ktrdr_events_dropped_total", "Kubernetes Events not posted.", registry=self.registry
        )
        self._unreadable_namespaces = Gauge(
            "ktrdr_unreadable_namespaces",
            "Watched namespaces that the API server does not let the operator read.",
            registry=self.registry,
        )
        self._reconcile_seconds = self._histogram(
            "ktrdr_reconcile_seconds", "Duration of a reconcile.", FAST
        )
        self._queue_seconds = Histogram(
            "workqueue_queue_duration_seconds",
            "Time a key waited for a worker.",
            ("name",),
            buckets=FAST,
            registry=self.registry,
        )
        self._handler_seconds = self._histogram(
            "ktrdr_event_handler_lag_seconds", "From a watch line to its handler.", FAST
        )
        self._loop_seconds = self._histogram(
            "ktrdr_event_loop_lag_seconds", "How late the event loop wakes a sleeper.", FAST
        )
        self._to_running_seconds = self._histogram(
            "ktrdr_time_to_running_seconds", "From creation until the trainer runs.", SLOW
        )
        self._cancel_seconds = self._histogram(
            "ktrdr_cancel_seconds", "From the wish to cancel until Cancelled.", SLOW
        )

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)

    def watch_store(
        self, store: Store, depth: Callable[[], int], progress_age: Callable[[], float]
    ) -> None:
        """Report what these hold, at every scrape."""
        self.registry.register(_StoreCollector(store, depth, progress_age))

    def request(self, method: str, code: str) -> None:
        """Count a request to the API server."""
        self._requests.labels(code, method).inc()

    def leading(self, name: str, leads: bool) -> None:
        """Say whether this process holds the Lease."""
        self._leading.labels(name).set(int(leads))

    def reconcile(self, seconds: float, outcome: Literal["ok", "error"]) -> None:
        """Count a reconcile."""
        self._reconciles.labels(outcome).inc()
        self._reconcile_seconds.observe(seconds)

    def queue_lag(self, seconds: float) -> None:
        """Record how long a key waited for a worker."""
        self._queue_seconds.labels(QUEUE_NAME).observe(seconds)

    def handler_lag(self, seconds: float) -> None:
        """Record how long an event took from the wire to its handler."""
        self._handler_seconds.observe(seconds)

    def loop_lag(self, seconds: float) -> None:
        """Record how late the event loop was."""
        self._loop_seconds.observe(seconds)

    def watch_line(self, outcome: Literal["passed", "dropped"]) -> None:
        """Count a line of the TrainingJob watch."""
        self._watch_lines.labels(outcome).inc()

    def unreadable_namespaces(self, count: int) -> None:
        """Set how many watched namespaces cannot be read."""
        self._unreadable_namespaces.set(count)

    def attempt_started(self) -> None:
        """Count an attempt."""
        self._attempts.inc()

    def time_to_running(self, seconds: float) -> None:
        """Record how long a TrainingJob took to run."""
        self._to_running_seconds.observe(seconds)

    def cancel(self, seconds: float) -> None:
        """Record how long a cancel took."""
        self._cancel_seconds.observe(seconds)

    def event_dropped(self) -> None:
        """Count a Kubernetes Event that could not be posted."""
        self._dropped_events.inc()

    def job_finished(self, outcome: str) -> None:
        """Count a TrainingJob that has finished."""

    def job_expired(self) -> None:
        """Count a TrainingJob that was deleted after its time to live."""

    def disruption(self) -> None:
        """Count a disruption."""

    def exposition(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)
