"""The reporter and the cancel watch against an API server that breaks in every way."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

from ktrdr_api.run_contract import CheckpointRef, JobIdentity, Stage
from ktrdr_trainer.cluster_job import ClusterJob
from ktrdr_trainer.kube import KubeClient
from ktrdr_trainer.progress import RunView
from ktrdr_trainer.reporter import FileSink, Pace, Reporter, Sink
from ktrdr_trainer.runtime import ApiAccess
from ktrdr_trainer.slot import LoopProgress, ProgressSlot, system_clock
from ktrdr_trainer.stop import StopToken
from ktrdr_trainer.stopping import StopReason, StopRequests
from ktrdr_trainer.testing import FakeApiServer, Fault, Request

JOB = JobIdentity(namespace="default", name="job", uid="u-1")
FIRST, SECOND = "bearer-1", "bearer-2"
SAVED = CheckpointRef(
    epoch=1,
    step=7,
    path="checkpoints/u-1/0001-7.json",
    time="2026-01-02T03:04:05Z",
    digest=f"sha256:{'0' * 64}",
)
FAST = Pace(period_seconds=0.05, gap_seconds=0.02, farewell_seconds=5.0)


def at_batch(batch: int, *, stage: Stage = Stage.TRAINING) -> LoopProgress:
    return LoopProgress(stage, 1, 2, batch, 1000, batch, 1.0, {"train_loss": 0.5})


@pytest.fixture
def api() -> Iterator[FakeApiServer]:
    with FakeApiServer() as server:
        yield server


@pytest.fixture
def stops() -> StopRequests:
    return StopRequests(StopToken())


def cluster_job(api: FakeApiServer, stops: StopRequests, *, attempt: int = 1) -> ClusterJob:
    return ClusterJob(KubeClient(api.access), JOB, attempt=attempt, stops=stops)


@contextmanager
def watching(job: ClusterJob, api: FakeApiServer) -> Iterator[None]:
    job.start_watch()
    api.wait_for(lambda server: any("watch=1" in one.path for one in server.requests))
    try:
        yield
    finally:
        job.stop_watch()


@contextmanager
def reporting(
    sink: Sink,
    stops: StopRequests,
    *,
    pace: Pace = FAST,
    attempt: int = 1,
    warned: list[str] | None = None,
) -> Iterator[tuple[Reporter, ProgressSlot]]:
    slot = ProgressSlot()
    view = RunView(attempt=attempt, pod_uid="p-1")
    reporter = Reporter(
        slot,
        view,
        sink=sink,
        stops=stops,
        clock=system_clock(),
        pace=pace,
        warn=warned.append if warned is not None else lambda _: None,
    )
    reporter.start()
    try:
        yield reporter, slot
    finally:
        reporter.close(message="the end", done=True)


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_until(flag: threading.Event, seconds: float = 1.0) -> bool:
    return flag.wait(seconds)


def test_reporter_drops_values_between_reports_and_delivers_the_last(
    api: FakeApiServer, stops: StopRequests
) -> None:
    with reporting(cluster_job(api, stops), stops) as (_, slot):
        for batch in range(1, 1001):
            slot.put(at_batch(batch), urgent=True)
    got = api.progress
    assert (got["stage"], got["percentage"], got["currentBatch"]) == ("Done", 100, 1000)
    assert got["message"] == "the end"
    assert len(api.patches) < 100


def test_reporter_without_changes_writes_once(api: FakeApiServer, stops: StopRequests) -> None:
    quick = Pace(period_seconds=0.01)
    with reporting(cluster_job(api, stops), stops, pace=quick) as (_, slot):
        slot.put(at_batch(1), urgent=True)
        api.wait_for(lambda server: server.progress.get("step") == 1)
        before = len(api.patches)
        wait_until(threading.Event(), 0.2)  # twenty periods
        assert len(api.patches) == before


def test_reporter_sends_the_whole_progress_as_server_side_apply(
    api: FakeApiServer, stops: StopRequests
) -> None:
    with reporting(cluster_job(api, stops), stops):
        pass
    patch = api.patches[0]
    assert patch.path == (
        "/apis/ktrdr.io/v1alpha1/namespaces/default/trainingjobs/job/status"
        "?fieldManager=ktrdr-trainer&force=true"
    )
    assert patch.body is not None
    assert patch.body["metadata"] == {"name": "job", "namespace": "default"}
    assert patch.body["status"].keys() == {"progress"}


def test_reporter_through_an_outage_delivers_the_newest_value_after_it(
    api: FakeApiServer, stops: StopRequests
) -> None:
    with reporting(cluster_job(api, stops), stops) as (_, slot):
        api.wait_for(lambda server: bool(server.progress))
        with api.outage():
            for batch in range(1, 20):
                slot.put(at_batch(batch), urgent=True)
                time.sleep(0.02)
            assert api.progress["step"] == 0
        api.wait_for(lambda server: server.progress["step"] == 19)


def test_reporter_closed_in_an_outage_retries_the_last_value(
    api: FakeApiServer, stops: StopRequests
) -> None:
    warned: list[str] = []
    with reporting(cluster_job(api, stops), stops, warned=warned) as (_, slot):
        api.wait_for(lambda server: bool(server.progress))
        api.is_away = True
        slot.put(at_batch(7))
        threading.Timer(0.6, setattr, (api, "is_away", False)).start()
    assert (api.progress["step"], api.progress["stage"], warned) == (7, "Done", [])


def test_reporter_closed_after_sigterm_gives_up_in_time(
    api: FakeApiServer, stops: StopRequests
) -> None:
    pace = Pace(period_seconds=0.05, farewell_terminated_seconds=0.3)
    api.is_away = True
    stops.ask(StopReason.SIGTERM)
    began, warned = time.monotonic(), list[str]()
    with reporting(cluster_job(api, stops), stops, pace=pace, warned=warned):
        pass
    assert 0.2 < time.monotonic() - began < 5.0  # and not the 10 s of a cancel
    [warning] = warned
    assert "final progress report was not delivered" in warning
    assert "API server not reached" in warning


def test_reporter_told_retry_after_sends_nothing_before(
    api: FakeApiServer, stops: StopRequests
) -> None:
    api.faults.append(Fault(429, (("Retry-After", "1"),)))
    with reporting(cluster_job(api, stops), stops) as (_, slot):
        slot.put(at_batch(1), urgent=True)
    first, second = api.patches[:2]
    assert second.at - first.at >= 1.0
    assert api.progress["step"] == 1


@pytest.mark.parametrize("status", [403, 404, 409, 422, 500, 503])
def test_reporter_refused_for_now_tries_again(
    api: FakeApiServer, stops: StopRequests, status: int
) -> None:
    api.faults.extend([Fault(status)] * 2)
    with reporting(cluster_job(api, stops), stops):
        api.wait_for(lambda server: bool(server.progress))
    assert not stops.token.is_cancelled


def test_reporter_of_a_recreated_job_learns_it_from_the_first_answer_and_stops(
    api: FakeApiServer, stops: StopRequests
) -> None:
    api.create(uid="u-2")
    with reporting(cluster_job(api, stops), stops) as (_, slot):
        slot.put(at_batch(1), urgent=True)
    assert len(api.patches) == 1
    assert (stops.token.reason, stops.by_a_person) == ("deleted", True)


def test_reporter_of_a_job_that_is_gone_stops(api: FakeApiServer, stops: StopRequests) -> None:
    api.delete()
    with reporting(cluster_job(api, stops), stops):
        pass
    assert stops.token.reason == "deleted"


def test_reporter_and_watch_while_the_crd_is_not_served_retry_and_do_not_stop(
    api: FakeApiServer, stops: StopRequests
) -> None:
    api.is_served = False
    job = cluster_job(api, stops)
    job.start_watch()
    with reporting(job, stops):
        api.wait_for(lambda server: len(server.patches) >= 2)
        api.wait_for(lambda server: len(tries(server)) >= 2)
        api.is_served = True
        api.wait_for(lambda server: bool(server.progress))
        assert not stops.token.is_cancelled
    job.stop_watch()


def test_reporter_of_an_older_attempt_is_superseded_and_writes_no_more(
    api: FakeApiServer, stops: StopRequests
) -> None:
    later = StopRequests(StopToken())
    with reporting(cluster_job(api, later, attempt=2), later, attempt=2):
        pass
    with reporting(cluster_job(api, stops), stops) as (_, slot):
        slot.put(at_batch(1), urgent=True)
    assert api.progress["attempt"] == 2
    assert (stops.superseded, stops.by_a_person) == (True, False)


def test_cancel_in_the_answer_to_a_report_sets_the_token_and_is_acknowledged(
    api: FakeApiServer, stops: StopRequests
) -> None:
    with reporting(cluster_job(api, stops), stops) as (_, slot):
        api.wait_for(lambda server: bool(server.progress))
        api.cancel()
        slot.put(at_batch(3), urgent=True)
        api.wait_for(lambda server: server.progress["stage"] == "Cancelling")
        assert stops.token.reason == "cancel"


def test_cancel_seen_by_the_watch_sets_the_token_within_a_second(
    api: FakeApiServer, stops: StopRequests
) -> None:
    seen = threading.Event()
    stops.on_ask(seen.set)
    with watching(cluster_job(api, stops), api):
        api.cancel()
        assert wait_until(seen)
    assert (stops.token.reason, stops.by_a_person) == ("cancel", True)


def shows(stage: Stage) -> Callable[[FakeApiServer], bool]:
    return lambda server: server.progress.get("stage") == stage


def wait_until_consumed(slot: ProgressSlot) -> None:
    """Return once the reporter has decided about the latest urgent value."""
    wait_for(lambda: not slot.urgent.is_set())


def test_reporter_of_a_paced_job_sends_stage_changes_and_the_end_and_nothing_else(
    api: FakeApiServer, stops: StopRequests
) -> None:
    api.set_status(reportPeriodSeconds=3600)
    unbraked = Pace(period_seconds=0.0, gap_seconds=0.0)
    with reporting(cluster_job(api, stops), stops, pace=unbraked) as (reporter, slot):
        api.wait_for(lambda server: server.progress.get("stage") == "Preparing")
        reporter.update(message="Computing features", urgent=True)
        wait_until_consumed(slot)
        for stage in (Stage.TRAINING, Stage.EVALUATING, Stage.SAVING):
            slot.put(at_batch(1, stage=stage), urgent=True)
            reporter.update(message="")
            api.wait_for(shows(stage))
            for batch in range(2, 20):  # epochs end, checkpoints become durable
                reporter.update(checkpoint=SAVED)
                slot.put(at_batch(batch, stage=stage), urgent=True)
                wait_until_consumed(slot)
    assert [patch.body["status"]["progress"]["stage"] for patch in api.patches if patch.body] == [
        "Preparing", "Training", "Evaluating", "Saving", "Done"
    ]  # fmt: skip
    assert api.progress["currentBatch"] == 19


def test_reporter_of_a_paced_job_reports_soon_after_the_pace_is_lifted(
    api: FakeApiServer, stops: StopRequests
) -> None:
    api.set_status(reportPeriodSeconds=3600)
    job = cluster_job(api, stops)
    with reporting(job, stops) as (_, slot), watching(job, api):
        slot.put(at_batch(1), urgent=True)
        api.wait_for(lambda server: server.progress.get("step") == 1)
        slot.put(at_batch(2), urgent=True)
        wait_until_consumed(slot)
        api.set_status(reportPeriodSeconds=None)
        api.wait_for(lambda server: server.progress["step"] == 2)


def test_reporter_of_a_paced_job_refused_at_first_retries_within_seconds(
    api: FakeApiServer, stops: StopRequests
) -> None:
    api.set_status(reportPeriodSeconds=3600)
    job = cluster_job(api, stops)
    with watching(job, api):
        wait_for(lambda: job.pause_seconds == 3600)
        api.faults.extend([Fault(403)] * 3)
        with reporting(job, stops) as (_, slot):
            api.wait_for(lambda server: bool(server.progress))
            api.faults.append(Fault(500))
            slot.put(at_batch(1), urgent=True)
            api.wait_for(lambda server: server.progress["stage"] == "Training")
            api.faults.append(Fault(503))
            api.cancel()
            api.wait_for(lambda server: server.progress["stage"] == "Cancelling")
    assert stops.token.reason == "cancel"


def test_reporter_of_a_job_paced_while_a_report_fails_retries_it_before_the_next_interval(
    api: FakeApiServer, stops: StopRequests
) -> None:
    job = cluster_job(api, stops)
    with reporting(job, stops) as (_, slot), watching(job, api):
        slot.put(at_batch(1), urgent=True)
        api.wait_for(lambda server: server.progress.get("step") == 1)
        api.faults.append(Fault(503, (("Retry-After", "1"),)))
        slot.put(at_batch(2), urgent=True)
        api.wait_for(lambda server: not server.faults)
        api.set_status(reportPeriodSeconds=3600)
        wait_for(lambda: job.pause_seconds == 3600)
        api.wait_for(lambda server: server.progress["step"] == 2)


def test_reporter_of_attempt_1_without_an_attempt_on_record_reports_and_is_not_superseded(
    api: FakeApiServer, stops: StopRequests
) -> None:
    job = cluster_job(api, stops)
    with reporting(job, stops) as (_, slot), watching(job, api):
        api.wait_for(lambda server: bool(server.progress))
        assert "attempt" not in api.job["status"]
        api.set_status(attempt=0)
        slot.put(at_batch(1), urgent=True)
        api.wait_for(lambda server: server.progress["step"] == 1)
        api.set_status(attempt=1, podName="job-1-0")
        slot.put(at_batch(2), urgent=True)
        api.wait_for(lambda server: server.progress["step"] == 2)
        assert not stops.token.is_cancelled


def test_watch_that_sees_a_later_attempt_on_record_is_superseded(
    api: FakeApiServer, stops: StopRequests
) -> None:
    seen = threading.Event()
    stops.on_ask(seen.set)
    with watching(cluster_job(api, stops), api):
        api.set_status(attempt=2)
        assert wait_until(seen)
    assert (stops.superseded, stops.by_a_person) == (True, False)


@pytest.mark.parametrize("cascade", ["foreground", "orphan"])
def test_deletion_held_up_by_a_finalizer_is_a_cancel_for_the_watch(
    api: FakeApiServer, stops: StopRequests, cascade: Literal["foreground", "orphan"]
) -> None:
    job = cluster_job(api, stops)
    with reporting(job, stops), watching(job, api):
        api.begin_deletion(cascade)
        api.wait_for(lambda server: server.progress.get("stage") == "Cancelling")
    assert (stops.token.reason, stops.by_a_person) == ("deleted", True)


def test_deletion_held_up_by_a_finalizer_is_a_cancel_in_the_answer_to_a_report(
    api: FakeApiServer, stops: StopRequests
) -> None:
    api.begin_deletion("foreground")
    with reporting(cluster_job(api, stops), stops):
        api.wait_for(lambda server: server.progress.get("stage") == "Cancelling")
    assert (stops.token.reason, stops.by_a_person) == ("deleted", True)


def test_cancel_acknowledged_before_the_next_period(
    api: FakeApiServer, stops: StopRequests
) -> None:
    job, slow = cluster_job(api, stops), Pace(period_seconds=60)
    with reporting(job, stops, pace=slow), watching(job, api):
        api.cancel()
        api.wait_for(
            lambda server: server.progress.get("stage") == "Cancelling", timeout_seconds=1.0
        )


def test_cancel_before_the_watch_began_is_seen_by_its_get(
    api: FakeApiServer, stops: StopRequests
) -> None:
    api.cancel()
    seen = threading.Event()
    stops.on_ask(seen.set)
    cluster_job(api, stops).start_watch()
    assert wait_until(seen)


def test_watch_sees_the_deletion_of_the_job(api: FakeApiServer, stops: StopRequests) -> None:
    seen = threading.Event()
    stops.on_ask(seen.set)
    with watching(cluster_job(api, stops), api):
        api.delete()
        assert wait_until(seen)
    assert stops.token.reason == "deleted"


def test_watch_broken_by_an_outage_comes_back(api: FakeApiServer, stops: StopRequests) -> None:
    seen = threading.Event()
    stops.on_ask(seen.set)
    with watching(cluster_job(api, stops), api):
        with api.outage():
            time.sleep(0.3)
        api.cancel()
        assert wait_until(seen, 3.0)


class WatchEndingApiServer(FakeApiServer):
    """Ends every watch without an event, as a proxy with a short time-out does."""

    def events_after(self, version: int) -> Iterator[dict[str, Any]]:
        return iter(())


@pytest.mark.parametrize("kind", ["no answer", "ended at once"])
def test_watch_that_breaks_again_and_again_pauses_longer_each_time(
    stops: StopRequests, kind: str
) -> None:
    with (WatchEndingApiServer if kind == "ended at once" else FakeApiServer)() as api:
        api.is_away = kind == "no answer"
        job = cluster_job(api, stops)
        job.start_watch()
        try:
            api.wait_for(lambda server: len(tries(server)) >= 4)
        finally:
            job.stop_watch()
        times = [request.at for request in tries(api)[:4]]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    # Half of 0.25 s * 2^n at least, see `backoff`.
    assert [pause >= least for pause, least in zip(pauses, (0.25, 0.5, 1.0), strict=True)] == [
        True, True, True
    ], pauses  # fmt: skip


def tries(api: FakeApiServer) -> list[Request]:
    """The GET with which each try of a watch begins."""
    return [one for one in api.requests if one.method == "GET" and "watch=1" not in one.path]


def test_client_with_a_rotated_token_reads_it_again(tmp_path: Path, stops: StopRequests) -> None:
    token_file = tmp_path / "token"
    with FakeApiServer() as api:
        api.token = FIRST
        token_file.write_text(f"{FIRST}\n")
        client = KubeClient(ApiAccess(api.access.url, token_file))
        job = ClusterJob(client, JOB, attempt=1, stops=stops)
        with reporting(job, stops) as (_, slot):
            api.wait_for(lambda server: bool(server.progress))
            api.token = SECOND
            token_file.write_text(f"{SECOND}\n")
            slot.put(at_batch(5), urgent=True)
            api.wait_for(lambda server: server.progress.get("step") == 5)


def test_file_sink_leaves_the_last_progress_in_the_folder(
    tmp_path: Path, stops: StopRequests
) -> None:
    with reporting(FileSink(tmp_path / "output"), stops) as (_, slot):
        slot.put(at_batch(9))
    text = (tmp_path / "output" / "progress.json").read_text()
    assert '"stage":"Done"' in text
    assert '"step":9' in text


def test_stop_requests_by_a_person_after_sigterm_count_as_cancel(stops: StopRequests) -> None:
    stops.ask(StopReason.SIGTERM)
    assert (stops.by_a_person, stops.token.reason) == (False, "sigterm")
    stops.ask(StopReason.CANCEL)
    assert (stops.by_a_person, stops.token.reason) == (True, "sigterm")
