import asyncio
import json
import logging

import aiohttp

from ktrdr_operator.health import CANARY, WORKERS, Liveness, run_canary, serve, with_canary
from ktrdr_operator.logs import JsonFormatter
from ktrdr_operator.metrics import Metrics
from ktrdr_operator.queue import WorkQueue
from ktrdr_operator.store import JobKey, Store


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_health_names_only_what_has_been_silent_for_too_long() -> None:
    clock = Clock()
    health = Liveness(clock)
    health.beat("unknown")
    health.expect("watch", "workers")
    clock.now = 200
    health.beat("workers")
    assert health.silent() == {"watch": 200}


async def test_canary_goes_through_the_queue_and_keeps_workers_alive() -> None:
    clock = Clock()
    health, queue, metrics = Liveness(clock), WorkQueue[JobKey](clock=clock), Metrics()
    worked: list[JobKey] = []

    async def work(key: JobKey, _: float) -> None:
        worked.append(key)

    guarded = with_canary(health, work)
    clock.now = 500
    assert WORKERS in health.silent()
    tasks = [
        asyncio.create_task(queue.run(2, guarded)),
        asyncio.create_task(run_canary(queue, metrics)),
    ]
    queue.add(JobKey("ns", "j"))
    await asyncio.sleep(0.02)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert health.silent() == {}
    assert worked == [JobKey("ns", "j")]
    assert JobKey("ns", "j") != CANARY


async def test_http_server_tells_health_and_metrics() -> None:
    clock, metrics = Clock(), Metrics()
    store = Store()
    store.put_job(
        {
            "metadata": {"namespace": "ns", "name": "j", "uid": "u", "resourceVersion": "1"},
            "status": {"phase": "Running"},
        }
    )
    metrics.watch_store(store, depth=lambda: 3, progress_age=lambda: 1.5)
    metrics.request("GET", "200")
    metrics.reconcile(0.002, "error")
    metrics.leading("ktrdr-operator", leads=True)
    health = Liveness(clock)
    health.expect("watch")
    runner = await serve(0, health, metrics)
    port = next(address[1] for address in runner.addresses if len(address) == 2)  # IPv4
    base = f"http://127.0.0.1:{port}"
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{base}/healthz") as response:
            assert (response.status, await response.text()) == (200, "ok")
        clock.now = 181
        async with session.get(f"{base}/healthz") as response:
            answer = (response.status, await response.text())
            assert answer == (503, "watch: silent for 181 s")
        async with session.get(f"{base}/metrics") as response:
            text = await response.text()
    await runner.cleanup()
    for want in (
        'ktrdr_jobs{phase="Running"} 1.0',
        'ktrdr_jobs{phase="Failed"} 0.0',
        'workqueue_depth{name="trainingjobs"} 3.0',
        "ktrdr_progress_age_seconds 1.5",
        'rest_client_requests_total{code="200",method="GET"} 1.0',
        'ktrdr_reconcile_total{outcome="error"} 1.0',
        'leader_election_master_status{name="ktrdr-operator"} 1.0',
    ):
        assert want in text.splitlines()


def test_json_log_is_one_line_with_the_fields_of_the_job() -> None:
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "a\n%s", ("\x1b[31m",), None)
    record.__dict__.update(namespace="ns", job="j", uid="u", attempt=2)
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
