"""Cancel and delete at every moment of a job's life; the figures are printed with `pytest -s`."""

import statistics
import time
from collections.abc import Iterator

import pytest

from e2e.processes import alive, processes_of
from e2e.workbench import LONG, RESOURCE, Workbench, conditions, strategy, true_conditions
from kube import Raw

TOKEN_SECONDS, PROCESS_SECONDS = 1.0, 2.0
"""The product's promise: token seen after the patch; process gone after that."""
RUNNING = ("cancel-a", "cancel-b", "cancel-c")
CANCELLED = {"Failed", "Cancelled", "Finished"}


def training(status: Raw) -> bool:
    return bool(status.get("progress", {}).get("stage") == "Training")


@pytest.fixture(scope="module")
def running(bench: Workbench) -> Iterator[Workbench]:
    """Three jobs that train and would go on for long."""
    for name in RUNNING:
        bench.start(name, strategy(epochs=LONG))
    for name in RUNNING:
        bench.until(name, training)
    yield bench
    for name in RUNNING:
        bench.remove(name)


def _cancel_seconds(bench: Workbench, name: str) -> tuple[float, float]:
    """Patch to acknowledgement, acknowledgement to the end of the process."""
    (number,) = processes_of(bench.pods(name)[0], "ktrdr_trainer")
    with bench.watch(name, 30) as events:
        next(events)
        patched = time.monotonic()
        bench.cancel(name)
        seen = next(at for at, job in events if job["status"]["progress"]["stage"] == "Cancelling")
    while alive(number):
        assert time.monotonic() < seen + 30, "the process does not end"
        time.sleep(0.01)
    return seen - patched, max(time.monotonic() - seen, 0.0)


def test_cancel_of_running_jobs_is_seen_and_obeyed_in_time(running: Workbench) -> None:
    measured = [_cancel_seconds(running, name) for name in RUNNING]

    token, process = (statistics.median(column) for column in zip(*measured, strict=True))
    print(f"\ncancel: token seen {token:.2f} s after the patch, process gone {process:.2f} s later")
    assert token < TOKEN_SECONDS
    assert process < PROCESS_SECONDS


@pytest.mark.parametrize("name", RUNNING)
def test_cancelled_job_keeps_a_complete_receipt(running: Workbench, name: str) -> None:
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


def test_cancel_is_one_way(running: Workbench) -> None:
    name = RUNNING[0]
    with pytest.raises(Exception, match="cancel"):
        running.kube.run("patch", RESOURCE, name, "--type=merge", "-p", '{"spec":{"cancel":false}}')


def test_job_cancelled_at_creation_never_gets_a_pod(bench: Workbench) -> None:
    name = "born-cancelled"
    bench.start(name, strategy(), cancel=True)

    status = bench.finished(name, 20)

    assert true_conditions(status) == CANCELLED
    assert status["attempt"] == 0
    assert status["cancellation"]["stoppedTime"]
    assert bench.pods(name) == []
    assert "Cancelled" in bench.events(name)
    bench.remove(name)


def test_job_cancelled_before_a_node_is_found_ends_at_once(bench: Workbench) -> None:
    name = "nowhere"
    bench.start(name, strategy(), trainer={"nodeSelector": {"no-such": "node"}})
    status = bench.until(name, lambda s: s.get("waiting"), 10)
    assert status["waiting"]["reason"] == "Unschedulable"
    assert "node" in status["waiting"]["message"]

    bench.cancel(name)

    status = bench.finished(name, 20)
    assert true_conditions(status) == CANCELLED
    assert "before training began" in status["message"]
    bench.remove(name)


def test_cancel_after_the_end_changes_nothing_but_the_generation(bench: Workbench) -> None:
    name = "done-before"
    bench.start(name, strategy(epochs=1))
    before = bench.finished(name)
    assert true_conditions(before) == {"Complete", "Finished"}

    bench.cancel(name)

    after = bench.until(name, lambda s: s["observedGeneration"] == 2)
    assert conditions(after) == conditions(before)
    assert {c["observedGeneration"] for c in after["conditions"]} == {2}
    assert after["result"] == before["result"]
    assert "cancellation" not in after
    bench.remove(name)


def test_deleted_running_job_takes_its_process_with_it(bench: Workbench) -> None:
    name = "delete-running"
    bench.start(name, strategy(epochs=LONG))
    bench.until(name, training)
    (number,) = processes_of(bench.pods(name)[0], "ktrdr_trainer")

    began = time.monotonic()
    bench.remove(name)

    print(f"\ndelete: nothing left after {time.monotonic() - began:.2f} s")
    assert not alive(number)


def test_same_name_deleted_and_created_again_is_a_new_job(bench: Workbench) -> None:
    name = "phoenix"
    bench.start(name, strategy(epochs=LONG))
    bench.until(name, training)
    old = bench.kube.get(RESOURCE, name)["metadata"]["uid"]

    bench.kube.run("delete", RESOURCE, name, "--wait=false")
    bench.kube.run("wait", "--for=delete", f"{RESOURCE}/{name}", "--timeout=30s")
    bench.start(name, strategy(epochs=2))

    status = bench.finished(name)
    assert true_conditions(status) == {"Complete", "Finished"}
    assert status["result"]["epochsCompleted"] == 2
    owners = {p["metadata"]["ownerReferences"][0]["uid"] for p in bench.pods(name)}
    assert old not in owners
    bench.remove(name)
