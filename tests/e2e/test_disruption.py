"""Trainers and operators that are killed: the end is the same as without the kill."""

import json

from demo.place import SYSTEM_NAMESPACE
from e2e.processes import kill_in
from e2e.workbench import LONG, Workbench, strategy, true_conditions
from kube import Raw

LENGTHY = strategy(epochs=1500)
"""Some seconds of training: long enough to be killed in."""


def _operator_pod(bench: Workbench) -> Raw:
    system = bench.place.namespaced(SYSTEM_NAMESPACE)
    answer = json.loads(
        system.run("get", "pods", "-lapp.kubernetes.io/component=operator", "-ojson")
    )
    running: list[Raw] = [p for p in answer["items"] if "deletionTimestamp" not in p["metadata"]]
    return running[0]


def test_killed_trainer_is_retried_and_ends_as_if_never_killed(bench: Workbench) -> None:
    bench.start("killed", LENGTHY, checkpoint={"periodSeconds": 1})
    bench.start("unharmed", LENGTHY)
    saved = bench.until("killed", lambda s: s.get("progress", {}).get("checkpoint"))
    kill_in(bench.pods("killed")[0], "ktrdr_trainer")

    with bench.watch("killed", 180) as events:
        again = next(
            job["status"]["progress"]
            for _, job in events
            if job["status"].get("progress", {}).get("attempt") == 2
            and job["status"]["progress"]["step"] > 0
        )
    status = bench.finished("killed")

    assert true_conditions(status) == {"Complete", "Finished"}
    assert (status["attempt"], status["retries"]) == (2, 1)
    assert status["failure"]["signal"] == 9
    assert "SIGKILL" in status["failure"]["message"]
    assert again["step"] >= saved["progress"]["checkpoint"]["step"]
    bench.finished("unharmed")
    assert bench.model_digest("killed") == bench.model_digest("unharmed")
    assert "Traceback" not in bench.logs("killed")
    bench.remove("killed")
    bench.remove("unharmed")


def test_killed_operator_changes_no_outcome(bench: Workbench) -> None:
    bench.start("runs-on", strategy(epochs=800))
    bench.start("is-cancelled", strategy(epochs=LONG))
    for name in ("runs-on", "is-cancelled"):
        bench.until(name, lambda s: s.get("progress", {}).get("stage") == "Training")

    bench.cancel("is-cancelled")
    kill_in(_operator_pod(bench), "ktrdr_operator")

    cancelled, complete = bench.finished("is-cancelled"), bench.finished("runs-on")
    assert true_conditions(cancelled) == {"Failed", "Cancelled", "Finished"}
    assert cancelled["cancellation"]["stoppedTime"]
    assert cancelled["cancellation"]["checkpoint"]["digest"]
    assert true_conditions(complete) == {"Complete", "Finished"}
    assert (complete["attempt"], complete["retries"]) == (1, 0)
    restarts = _operator_pod(bench)["status"]["containerStatuses"][0]["restartCount"]
    assert restarts >= 1
    bench.remove("runs-on")
    bench.remove("is-cancelled")


def test_pod_deleted_by_hand_is_replaced_and_not_counted(bench: Workbench) -> None:
    bench.start("by-hand", strategy(epochs=800))
    bench.until("by-hand", lambda s: s.get("progress", {}).get("stage") == "Training")

    bench.kube.run("delete", "pod", bench.pods("by-hand")[0]["metadata"]["name"])

    status = bench.finished("by-hand")
    assert true_conditions(status) == {"Complete", "Finished"}
    assert (status["attempt"], status["retries"]) == (2, 0)
    bench.remove("by-hand")
