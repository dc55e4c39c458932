"""Cancel and delete at every moment of a job's life; the figures are printed with `pytest -s`."""

import statistics
import time
from collections.abc import Iterator

import pytest

from e2e.job_namespace import LONG, RESOURCE, JobNamespace, conditions, strategy, true_conditions
from e2e.processes import alive, processes_of
from kube import Raw

TOKEN_SECONDS, PROCESS_SECONDS = 1.0, 2.0
"""The product's promise: token seen after the patch; process gone after that."""
RUNNING = ("cancel-a", "cancel-b", "cancel-c")
CANCELLED = {"Failed", "Cancelled", "Finished"}


def training(status: Raw) -> bool:
    return bool(status.get("progress", {}).get("stage") == "Training")


@pytest.fixture(scope="module")
def running(namespace: JobNamespace) -> Iterator[JobNamespace]:
    """Three jobs that train and would go on for long."""
    for name in RUNNING:
        namespace.start(name, strategy(epochs=LONG))
    for name in RUNNING:
        namespace.until(name, training)
    yield namespace
    for name in RUNNING:
        namespace.remove(name)


def _cancel_seconds(namespace: JobNamespace, name: str) -> tuple[float, float]:
    """Patch to acknowledgement, acknowledgement to the end of the process."""
    (number,) = processes_of(namespace.pods(name)[0], "ktrdr_trainer")
    with namespace.watch(name, 30) as events:
        next(events)
        patched = time.monotonic()
        namespace.cancel(name)
        seen = next(at for at, job in events if job["status"]["progress"]["stage"] == "Cancelling")
    while alive(number):
        assert time.monotonic() < seen + 30, "the process does not end"
        time.sleep(0.01)
    return seen - patched, max(time.monotonic() - seen, 0.0)


def test_cancel_of_running_jobs_is_acknowledged_and_stops_them_in_time(
    running: JobNamespace,
) -> None:
    measured = [_cancel_seconds(running, name) for name in RUNNING]

    token, process = (statistics.median(column) for column in zip(*measured, strict=True))
    print(f"\ncancel: token seen {token:.2f} s after the patch, process gone {process:.2f} s later")
    assert token < TOKEN_SECONDS
    assert process < PROCESS_SECONDS


@pytest.mark.parametrize("name", RUNNING)
def test_cancel_of_running_job_leaves_a_complete_receipt(running: JobNamespace, name: str) -> None:
    running.cancel(name)  # repeating the wish changes nothing

    status = running.finished(name)

    assert true_conditions(status) == CANCELLED
    receipt = status["cancellation"]
    assert set(receipt) == {
        *("requestedTime", "acknowledgedTime", "stoppedTime", "epoch", "batch", "checkpoint")
    }
    assert receipt["requestedTime"] <= receipt["acknowledgedTime"] <= receipt["stoppedTime"]
    assert receipt["epoch"] >= 1
    saved = receipt["checkpoint"]
    assert saved["digest"].startswith("sha256:")
    running.files.run("test", "-e", f"/output/{saved['path']}")
    assert status["retries"] == 0
    assert "Traceback" not in running.logs(name)
    pod = running.pods(name)[0]["status"]["containerStatuses"][0]["state"]["terminated"]
    assert pod["exitCode"] == 10


def test_cancel_reset_is_rejected(running: JobNamespace) -> None:
    name = RUNNING[0]
    with pytest.raises(Exception, match="cancel"):
        running.kube.run("patch", RESOURCE, name, "--type=merge", "-p", '{"spec":{"cancel":false}}')


def test_cancel_at_creation_creates_no_pod(namespace: JobNamespace) -> None:
    name = "born-cancelled"
    namespace.start(name, strategy(), cancel=True)

    status = namespace.finished(name, 20)

    assert true_conditions(status) == CANCELLED
    assert status["attempt"] == 0
    assert status["cancellation"]["stoppedTime"]
    assert namespace.pods(name) == []
    assert "Cancelled" in namespace.events(name)
    namespace.remove(name)


def test_cancel_of_unscheduled_job_ends_immediately(namespace: JobNamespace) -> None:
    name = "nowhere"
    namespace.start(name, strategy(), trainer={"nodeSelector": {"no-such": "node"}})
    status = namespace.until(name, lambda s: s.get("waiting"), 10)
    assert status["waiting"]["reason"] == "Unschedulable"
    assert "node" in status["waiting"]["message"]

    namespace.cancel(name)

    status = namespace.finished(name, 20)
    assert true_conditions(status) == CANCELLED
    assert "before training began" in status["message"]
    namespace.remove(name)


def test_cancel_of_finished_job_changes_only_the_generation(namespace: JobNamespace) -> None:
    name = "done-before"
    namespace.start(name, strategy(epochs=1))
    before = namespace.finished(name)
    assert true_conditions(before) == {"Complete", "Finished"}

    namespace.cancel(name)

    after = namespace.until(name, lambda s: s["observedGeneration"] == 2)
    assert conditions(after) == conditions(before)
    assert {c["observedGeneration"] for c in after["conditions"]} == {2}
    assert after["result"] == before["result"]
    assert "cancellation" not in after
    namespace.remove(name)


def test_delete_of_running_job_ends_its_process(namespace: JobNamespace) -> None:
    name = "delete-running"
    namespace.start(name, strategy(epochs=LONG))
    namespace.until(name, training)
    (number,) = processes_of(namespace.pods(name)[0], "ktrdr_trainer")

    began = time.monotonic()
    namespace.remove(name)

    print(f"\ndelete: nothing left after {time.monotonic() - began:.2f} s")
    assert not alive(number)


def test_job_recreated_under_its_name_is_a_new_job(namespace: JobNamespace) -> None:
    name = "phoenix"
    namespace.start(name, strategy(epochs=LONG))
    namespace.until(name, training)
    old = namespace.kube.get(RESOURCE, name)["metadata"]["uid"]

    namespace.kube.run("delete", RESOURCE, name, "--wait=false")
    namespace.kube.run("wait", "--for=delete", f"{RESOURCE}/{name}", "--timeout=30s")
    namespace.start(name, strategy(epochs=2))

    status = namespace.finished(name)
    assert true_conditions(status) == {"Complete", "Finished"}
    assert status["result"]["epochsCompleted"] == 2
    owners = {p["metadata"]["ownerReferences"][0]["uid"] for p in namespace.pods(name)}
    assert old not in owners
    namespace.remove(name)
