import asyncio
from datetime import UTC, datetime

import pytest

from ktrdr_client.cluster import EVENTS, Forbidden, Raw, Unreachable
from ktrdr_client.testing import FakeCluster
from ktrdr_operator.events import EventRecorder
from ktrdr_operator.metrics import Metrics

JOB: Raw = {"metadata": {"namespace": "ns", "name": "j", "uid": "u"}}
NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


async def posted(cluster: FakeCluster, *words: tuple[str, str], job: Raw = JOB) -> Metrics:
    """Record events and let the background post them."""
    metrics = Metrics()
    recorder = EventRecorder(cluster, metrics, lambda: NOW)
    for reason, message in words:
        recorder.record(job, "Normal", reason, message)
    task = asyncio.create_task(recorder.run())
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return metrics


async def test_event_speaks_of_the_training_job_it_is_about() -> None:
    cluster = FakeCluster()
    await posted(cluster, ("Running", "The trainer runs."))
    (event,) = cluster.read_all(EVENTS)
    assert event["involvedObject"] == {
        "apiVersion": "ktrdr.io/v1alpha1",
        "kind": "TrainingJob",
        "namespace": "ns",
        "name": "j",
        "uid": "u",
    }
    assert (event["type"], event["reason"], event["message"]) == (
        "Normal",
        "Running",
        "The trainer runs.",
    )
    assert event["eventTime"] == "2026-01-02T03:04:05.000678Z"


async def test_event_said_twice_is_one_also_by_another_operator() -> None:
    cluster = FakeCluster()
    await posted(cluster, ("Running", "x"), ("Running", "x"), ("Running", "y"))
    assert len(cluster.requests) == 2
    metrics = await posted(cluster, ("Running", "x"))
    assert len(cluster.read_all(EVENTS)) == 2
    assert b"ktrdr_events_dropped_total 0.0" in metrics.exposition()


async def test_event_of_same_words_about_a_successor_is_another() -> None:
    cluster = FakeCluster()
    await posted(cluster, ("Running", "x"))
    successor = {"metadata": {**JOB["metadata"], "uid": "u2"}}
    await posted(cluster, ("Running", "x"), job=successor)
    assert len(cluster.read_all(EVENTS)) == 2


async def test_event_hostile_message_is_cut_to_the_limit_of_the_api() -> None:
    cluster = FakeCluster()
    await posted(cluster, ("Failed", "x" * 1_000_000))
    assert len(cluster.read_all(EVENTS)[0]["message"]) == 1024


async def test_event_refused_is_counted_and_the_next_goes_on() -> None:
    cluster = FakeCluster()
    cluster.fail_next("create", Forbidden(403, "Forbidden", "namespace is being terminated"))
    metrics = await posted(cluster, ("A", "x"), ("B", "x"))
    assert [event["reason"] for event in cluster.read_all(EVENTS)] == ["B"]
    assert b"ktrdr_events_dropped_total 1.0" in metrics.exposition()


async def test_event_whose_answer_was_lost_is_posted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_wait(_: float) -> None:
        await real_sleep(0)

    real_sleep = asyncio.sleep
    monkeypatch.setattr("ktrdr_operator.events.asyncio.sleep", no_wait)
    cluster = FakeCluster()
    cluster.fail_next("create", Unreachable(0, "ClientOSError", "reset"), after_effect=True)
    task = asyncio.create_task(posted(cluster, ("A", "x")))
    await real_sleep(0.05)
    metrics = await task
    assert len(cluster.read_all(EVENTS)) == 1
    assert b"ktrdr_events_dropped_total 0.0" in metrics.exposition()


async def test_event_queue_when_full_drops_counts_and_never_blocks() -> None:
    cluster, metrics = FakeCluster(), Metrics()
    recorder = EventRecorder(cluster, metrics, lambda: NOW, asyncio.Queue(5))
    for number in range(5 + 3):
        recorder.record(JOB, "Warning", "Failed", str(number))
    assert b"ktrdr_events_dropped_total 3.0" in metrics.exposition()
