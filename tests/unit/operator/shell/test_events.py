import asyncio
import logging
from datetime import UTC, datetime

import pytest

import virtual_time
from ktrdr_client.cluster import EVENTS, Forbidden, Raw, TooManyRequests, Unreachable
from ktrdr_client.testing import FakeCluster
from ktrdr_operator.events import EventRecorder
from ktrdr_operator.metrics import Metrics
from virtual_time import elapse, in_virtual_time, now

JOB: Raw = {"metadata": {"namespace": "ns", "name": "j", "uid": "u"}}
NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
TERMINATING = Forbidden(403, "Forbidden", "namespace is being terminated")
AWAY = Unreachable(0, "ClientOSError", "refused")


class Recorder(EventRecorder):
    """A recorder on a fake cluster, in virtual time."""

    cluster: FakeCluster

    def __init__(self, cluster: FakeCluster | None = None, *, limit: int = 5000) -> None:
        self.busy_until = 0.0
        super().__init__(
            cluster or FakeCluster(),
            Metrics(),
            lambda: NOW,
            is_busy=lambda: now() < self.busy_until,
            clock=asyncio.get_running_loop().time,
            limit=limit,
        )

    async def post_for(self, seconds: float) -> None:
        """Let the background task post."""
        task = asyncio.create_task(self.run())
        await elapse(seconds)
        assert not task.done()
        await virtual_time.stop(task)

    def posted(self) -> list[str]:
        """Reasons of the Events on the server."""
        return sorted(event["reason"] for event in self.cluster.read_all(EVENTS))

    def dropped(self) -> float | None:
        return self.metrics.registry.get_sample_value("ktrdr_events_dropped_total")


@in_virtual_time
async def test_event_is_about_the_training_job() -> None:
    recorder = Recorder()
    recorder.record(JOB, "Normal", "Running", "Trainer is running")
    await recorder.post_for(0)
    (event,) = recorder.cluster.read_all(EVENTS)
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
        "Trainer is running",
    )
    assert event["eventTime"] == "2026-01-02T03:04:05.000678Z"


@in_virtual_time
async def test_event_recorded_twice_is_posted_once_also_by_another_operator() -> None:
    recorder = Recorder()
    for message in "xxy":
        recorder.record(JOB, "Normal", "Running", message)
    await recorder.post_for(0)
    assert len(recorder.cluster.requests) == 2
    other = Recorder(recorder.cluster)
    other.record(JOB, "Normal", "Running", "x")
    await other.post_for(0)
    assert len(recorder.cluster.read_all(EVENTS)) == 2
    assert other.dropped() == 0


@in_virtual_time
async def test_event_about_a_recreated_job_is_another_one() -> None:
    recorder = Recorder()
    for uid in ("u", "u2"):
        recorder.record({"metadata": {**JOB["metadata"], "uid": uid}}, "Normal", "Running", "x")
    await recorder.post_for(0)
    assert len(recorder.cluster.read_all(EVENTS)) == 2


@in_virtual_time
async def test_event_hostile_message_is_cut_to_the_limit_of_the_api() -> None:
    recorder = Recorder()
    recorder.record(JOB, "Warning", "Failed", "x" * 1_000_000)
    await recorder.post_for(0)
    assert len(recorder.cluster.read_all(EVENTS)[0]["message"]) == 1024


@in_virtual_time
async def test_event_that_is_rejected_is_counted_and_does_not_delay_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = Recorder()
    recorder.cluster.fail_next("create", TERMINATING)
    recorder.record(JOB, "Normal", "A", "x")
    recorder.record(JOB, "Normal", "B", "x")
    await recorder.post_for(0)
    assert (recorder.posted(), recorder.dropped()) == (["B"], 1)
    (line,) = caplog.records
    assert "Kubernetes Event A not posted: " in line.message
    assert "namespace is being terminated" in line.message
    assert {name: getattr(line, name) for name in ("namespace", "job", "uid")} == {
        "namespace": "ns",
        "job": "j",
        "uid": "u",
    }


@in_virtual_time
async def test_event_that_was_dropped_can_be_recorded_again() -> None:
    recorder = Recorder()
    recorder.cluster.fail_next("create", TERMINATING)
    for _ in range(2):
        recorder.record(JOB, "Normal", "A", "x")
        await recorder.post_for(0)
    assert recorder.posted() == ["A"]


@pytest.mark.parametrize("error", [AWAY, TooManyRequests(429, "TooManyRequests", "slow down")])
@in_virtual_time
async def test_event_is_retried_with_growing_pauses_until_it_is_given_up(error: Exception) -> None:
    recorder = Recorder()
    for nth in range(1, 4):
        recorder.cluster.fail_next("create", error, nth=nth)
    recorder.record(JOB, "Normal", "A", "x")
    task = asyncio.create_task(recorder.run())
    await elapse(6.9)
    assert recorder.posted() == []
    await elapse(0.2)
    assert (recorder.posted(), recorder.dropped()) == (["A"], 0)
    for nth in range(1, 5):
        recorder.cluster.fail_next("create", error, nth=nth)
    recorder.record(JOB, "Normal", "B", "x")
    recorder.record(JOB, "Normal", "C", "x")
    await elapse(7.1)
    assert (recorder.posted(), recorder.dropped()) == (["A", "C"], 1)
    await virtual_time.stop(task)


@in_virtual_time
async def test_event_whose_answer_was_lost_is_posted_once() -> None:
    recorder = Recorder()
    recorder.cluster.fail_next("create", AWAY, after_effect=True)
    recorder.record(JOB, "Normal", "A", "x")
    await recorder.post_for(2)
    assert (recorder.posted(), recorder.dropped()) == (["A"], 0)


@in_virtual_time
async def test_event_is_held_back_while_workers_are_busy() -> None:
    recorder = Recorder()
    recorder.busy_until = now() + 2
    recorder.record(JOB, "Normal", "A", "x")
    task = asyncio.create_task(recorder.run())
    await elapse(1.9)
    assert recorder.posted() == []
    await elapse(0.3)
    assert recorder.posted() == ["A"]
    await virtual_time.stop(task)


@in_virtual_time
async def test_event_is_held_back_for_five_seconds_at_most() -> None:
    recorder = Recorder()
    recorder.busy_until = now() + 3600
    task = asyncio.create_task(recorder.run())
    recorder.record(JOB, "Normal", "A", "x")
    await elapse(3)
    recorder.record(JOB, "Normal", "B", "x")
    await elapse(1.9)
    assert recorder.posted() == []
    await elapse(0.3)
    assert recorder.posted() == ["A"]
    await elapse(3)
    assert recorder.posted() == ["A", "B"]
    await virtual_time.stop(task)


@in_virtual_time
async def test_event_posted_now_is_stored_even_while_workers_are_busy() -> None:
    recorder = Recorder()
    recorder.busy_until = now() + 3600
    assert await recorder.post_now(JOB, "Normal", "Expired", "x")
    assert recorder.posted() == ["Expired"]
    assert await recorder.post_now(JOB, "Normal", "Expired", "x"), "stored before"
    recorder.record(JOB, "Normal", "Expired", "x")
    assert recorder.take_pending() == []


@in_virtual_time
async def test_event_posted_now_to_an_unreachable_server_is_posted_in_the_background() -> None:
    recorder, began = Recorder(), now()
    recorder.cluster.fail_next("create", AWAY)
    assert not await recorder.post_now(JOB, "Normal", "Expired", "x")
    assert now() == began, "the reconcile is not delayed"
    await recorder.post_for(0)
    assert (recorder.posted(), recorder.dropped()) == (["Expired"], 0)


@in_virtual_time
async def test_event_posted_now_that_is_rejected_is_counted() -> None:
    recorder = Recorder()
    recorder.cluster.fail_next("create", TERMINATING)
    assert not await recorder.post_now(JOB, "Normal", "Expired", "x")
    assert (recorder.take_pending(), recorder.dropped()) == ([], 1)


@in_virtual_time
async def test_event_queue_when_full_drops_counts_logs_once_and_never_blocks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = Recorder(limit=5)
    for number in range(5 + 3):
        recorder.record(JOB, "Warning", "Failed", str(number))
    assert recorder.dropped() == 3
    assert len(caplog.messages) == 1
    assert "ktrdr_events_dropped_total" in caplog.messages[0]
    assert len(recorder.take_pending()) == 5
    for number in range(5, 5 + 6):
        recorder.record(JOB, "Warning", "Failed", str(number))
    assert recorder.dropped() == 4
    assert len(caplog.messages) == 2


@in_virtual_time
async def test_event_queue_that_is_not_empty_at_the_end_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = Recorder()
    recorder.busy_until = now() + 60
    for number in range(3):
        recorder.record(JOB, "Normal", "Running", str(number))
    with caplog.at_level(logging.WARNING):
        await recorder.post_for(1)
    assert caplog.messages == ["Stopped before 3 Kubernetes Events were posted"]


@in_virtual_time
async def test_event_memory_of_recorded_events_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ktrdr_operator.events.REMEMBERED", 10)
    recorder = Recorder()
    for number in range(100):
        recorder.record(JOB, "Normal", "Running", str(number))
    assert len(recorder._recorded) == 10
