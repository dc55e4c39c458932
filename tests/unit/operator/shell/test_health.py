import asyncio
import json
import logging
import time

import aiohttp
import pytest

import virtual_time
from ktrdr_operator.health import (
    CANARY,
    SAMPLE_SECONDS,
    WORKERS,
    Liveness,
    measure_loop,
    run_canary,
    serve,
    with_canary,
)
from ktrdr_operator.logs import JsonFormatter
from ktrdr_operator.metrics import FAST_TO_SLOW, Metrics
from ktrdr_operator.queue import WorkQueue
from ktrdr_operator.store import JobKey, Store
from virtual_time import elapse, in_virtual_time

LONGEST_PAUSE = "ktrdr_event_loop_longest_pause_seconds"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def value(metrics: Metrics, series: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(series, labels)


def test_liveness_names_only_tasks_without_a_heartbeat_for_too_long() -> None:
    clock = Clock()
    liveness = Liveness(clock)
    liveness.heartbeat("unknown")
    liveness.register("watch", "workers")
    clock.now = 180
    assert liveness.overdue() == {}
    clock.now = 200
    liveness.heartbeat("workers")
    assert liveness.overdue() == {"watch": 200}


@in_virtual_time
async def test_canary_goes_through_the_queue_and_keeps_workers_alive() -> None:
    clock = asyncio.get_running_loop().time
    liveness, queue = Liveness(clock), WorkQueue[JobKey](clock=clock)
    worked: list[JobKey] = []

    async def work(key: JobKey, _: float) -> None:
        worked.append(key)

    guarded = with_canary(liveness, work)
    await elapse(500)
    assert WORKERS in liveness.overdue()
    workers = asyncio.create_task(queue.run(2, guarded))
    canary = asyncio.create_task(run_canary(queue))
    queue.add(JobKey("ns", "j"))
    await elapse(3600)
    assert liveness.overdue() == {}
    assert worked == [JobKey("ns", "j")]
    assert JobKey("ns", "j") != CANARY
    await virtual_time.stop(workers)
    await elapse(200)
    assert WORKERS in liveness.overdue()
    await virtual_time.stop(canary)


@in_virtual_time
async def test_canary_does_not_wait_behind_other_keys() -> None:
    clock = asyncio.get_running_loop().time
    liveness, queue = Liveness(clock), WorkQueue[JobKey](clock=clock)
    for number in range(1000):
        queue.add(JobKey("ns", str(number)))
    guarded = with_canary(liveness, lambda *_: asyncio.sleep(1))
    tasks = [asyncio.create_task(queue.run(1, guarded)), asyncio.create_task(run_canary(queue))]
    await elapse(500)
    assert liveness.overdue() == {}
    await virtual_time.stop(*tasks)


async def test_loop_pause_is_measured_and_the_longest_is_kept() -> None:
    metrics = Metrics()
    task = asyncio.create_task(measure_loop(metrics))
    await asyncio.sleep(3 * SAMPLE_SECONDS)
    for seconds in (0.3, 0.15):
        time.sleep(seconds)
        await asyncio.sleep(3 * SAMPLE_SECONDS)
    await virtual_time.stop(task)
    longest = value(metrics, LONGEST_PAUSE)
    assert longest is not None
    assert 0.3 - SAMPLE_SECONDS <= longest < 3
    measured = value(metrics, "ktrdr_event_loop_lag_seconds_count") or 0
    short = value(metrics, "ktrdr_event_loop_lag_seconds_bucket", le="0.25") or 0
    assert measured >= 6
    assert short < measured


async def test_http_server_reports_health_and_metrics() -> None:
    clock, metrics = Clock(), Metrics()
    liveness = Liveness(clock)
    liveness.register("watch")
    runner = await serve(0, liveness, metrics)
    port = next(address[1] for address in runner.addresses if len(address) == 2)  # IPv4
    base = f"http://127.0.0.1:{port}"
    try:
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{base}/healthz") as response:
                assert (response.status, await response.text()) == (200, "ok")
            clock.now = 181
            async with session.get(f"{base}/healthz") as response:
                assert response.status == 503
                assert await response.text() == "watch: no heartbeat for 181 s (limit 180 s)"
            async with session.get(f"{base}/metrics") as response:
                assert response.headers["Content-Type"].startswith("text/plain")
                assert "ktrdr_reconcile_seconds_count 0.0" in await response.text()
        await asyncio.sleep(3 * SAMPLE_SECONDS)
    finally:
        tasks_while_serving = len(asyncio.all_tasks())
        await runner.cleanup()
    assert value(metrics, "ktrdr_event_loop_lag_seconds_count"), "measured while it serves"
    assert len(asyncio.all_tasks()) < tasks_while_serving


def test_metrics_of_the_store_are_those_of_the_moment() -> None:
    metrics, store = Metrics(), Store()
    metrics.watch_store(store, progress_age=lambda: 1.5)
    assert value(metrics, "ktrdr_jobs", phase="Running") == 0
    for name, status in (("j", {"phase": "Running"}), ("k", {})):
        metadata = {"namespace": "ns", "name": name, "uid": name, "resourceVersion": "1"}
        store.put_job({"metadata": metadata, "status": status})
    assert value(metrics, "ktrdr_jobs", phase="Running") == 1
    assert value(metrics, "ktrdr_jobs", phase="Unseen") == 1
    assert value(metrics, "ktrdr_jobs", phase="Failed") == 0
    assert value(metrics, "ktrdr_progress_age_seconds") == 1.5
    assert value(metrics, "ktrdr_report_interval_seconds") == 0
    store.report_interval_seconds = 20
    assert value(metrics, "ktrdr_report_interval_seconds") == 20


@in_virtual_time
async def test_metrics_of_the_queue_have_the_names_of_controller_runtime() -> None:
    metrics = Metrics()
    queue = WorkQueue[JobKey](clock=asyncio.get_running_loop().time)
    metrics.watch_queue(queue)

    async def work(key: JobKey, _: float) -> None:
        await asyncio.sleep(10 if key.name == "slow" else 4)
        queue.add_rate_limited(key)

    for name in ("slow", "fast", "waits"):
        queue.add(JobKey("ns", name))
    task = asyncio.create_task(queue.run(2, work))
    await elapse(3)
    got = {
        series: value(metrics, f"workqueue_{series}", name="trainingjobs")
        for series in (
            "depth",
            "adds_total",
            "retries_total",
            "unfinished_work_seconds",
            "longest_running_processor_seconds",
        )
    }
    assert got == {
        "depth": 1,
        "adds_total": 3,
        "retries_total": 0,
        "unfinished_work_seconds": 6,
        "longest_running_processor_seconds": 3,
    }
    await elapse(3)
    assert value(metrics, "workqueue_retries_total", name="trainingjobs") == 1
    assert value(metrics, "workqueue_longest_running_processor_seconds", name="trainingjobs") == 6
    await virtual_time.stop(task)


def test_metrics_count_what_they_are_told() -> None:
    metrics = Metrics()
    metrics.request("GET", "200")
    metrics.reconcile(0.002, "error")
    metrics.queue_lag(0.3)
    metrics.leading("ktrdr-operator", leads=True)
    metrics.watch_event("Pod", "dropped")
    metrics.attempt_started()
    metrics.disruption()
    metrics.job_finished("Failed")
    metrics.job_expired()
    metrics.event_dropped()
    metrics.unreadable_namespaces(2)
    lines = metrics.exposition().decode().splitlines()
    for want in (
        'rest_client_requests_total{code="200",method="GET"} 1.0',
        'ktrdr_reconcile_total{outcome="error"} 1.0',
        'workqueue_work_duration_seconds_bucket{le="0.005",name="trainingjobs"} 1.0',
        'workqueue_work_duration_seconds_bucket{le="0.001",name="trainingjobs"} 0.0',
        'workqueue_queue_duration_seconds_bucket{le="0.5",name="trainingjobs"} 1.0',
        'leader_election_master_status{name="ktrdr-operator"} 1.0',
        'ktrdr_watch_events_total{kind="Pod",outcome="dropped"} 1.0',
        "ktrdr_attempts_total 1.0",
        "ktrdr_disruptions_total 1.0",
        'ktrdr_jobs_finished_total{outcome="Failed"} 1.0',
        "ktrdr_jobs_expired_total 1.0",
        "ktrdr_events_dropped_total 1.0",
        "ktrdr_unreadable_namespaces 2.0",
    ):
        assert want in lines


@pytest.mark.parametrize("name", ["ktrdr_cancel_seconds", "ktrdr_time_to_running_seconds"])
def test_metrics_show_times_below_a_second_and_up_to_an_hour(name: str) -> None:
    metrics = Metrics()
    for seconds in (0.2, 0.7, 3000):
        metrics.cancel(seconds)
        metrics.time_to_running(seconds)
    counts = [
        value(metrics, f"{name}_bucket", le=bound) for bound in ("0.1", "0.25", "1.0", "3600.0")
    ]
    assert counts == [0, 1, 2, 3]
    assert list(FAST_TO_SLOW) == sorted(set(FAST_TO_SLOW))


def test_metrics_have_help_texts_that_are_sentences() -> None:
    metrics = Metrics()
    metrics.watch_store(Store(), lambda: 0.0)
    metrics.watch_queue(WorkQueue[JobKey](clock=lambda: 0.0))
    texts = {metric.name: metric.documentation for metric in metrics.registry.collect()}
    assert len(texts) >= 25
    assert [name for name, text in texts.items() if not text.endswith(".")] == []


def test_json_log_is_one_line_with_the_fields_of_the_job() -> None:
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "a\n%s", ("\x1b[31m",), None)
    record.__dict__.update(namespace="ns", job="j", uid="u", attempt=2, other="not a field")
    text = JsonFormatter().format(record)
    assert "\n" not in text
    assert "\x1b" not in text
    line = json.loads(text)
    assert line.pop("time")
    assert line == {
        "level": "WARNING",
        "logger": "x",
        "message": "a\n\x1b[31m",
        "namespace": "ns",
        "job": "j",
        "uid": "u",
        "attempt": 2,
    }
