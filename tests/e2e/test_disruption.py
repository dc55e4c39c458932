"""Trainers and operators that are killed: the end is the same as without the kill."""

import json

from demo.demo_environment import SYSTEM_NAMESPACE
from e2e.job_namespace import LONG, JobNamespace, strategy, true_conditions
from e2e.processes import kill_in
from kube import Raw

LENGTHY = strategy(epochs=1500)
"""Some seconds of training: long enough to be killed in."""


def _operator_pod(namespace: JobNamespace) -> Raw:
    system = namespace.demo_environment.namespaced(SYSTEM_NAMESPACE)
    answer = json.loads(
        system.run("get", "pods", "-lapp.kubernetes.io/component=operator", "-ojson")
    )
    running: list[Raw] = [p for p in answer["items"] if "deletionTimestamp" not in p["metadata"]]
    return running[0]


def test_killed_trainer_is_retried_and_produces_the_same_model(namespace: JobNamespace) -> None:
    namespace.start("killed", LENGTHY, checkpoint={"periodSeconds": 1})
    namespace.start("unharmed", LENGTHY)
    saved = namespace.until("killed", lambda s: s.get("progress", {}).get("checkpoint"))
    kill_in(namespace.pods("killed")[0], "ktrdr_trainer")

    with namespace.watch("killed", 180) as events:
        again = next(
            job["status"]["progress"]
            for _, job in events
            if job["status"].get("progress", {}).get("attempt") == 2
            and job["status"]["progress"]["step"] > 0
        )
    status = namespace.finished("killed")

    assert true_conditions(status) == {"Complete", "Finished"}
    assert (status["attempt"], status["retries"]) == (2, 1)
    assert status["failure"]["signal"] == 9
    assert "SIGKILL" in status["failure"]["message"]
    assert again["step"] >= saved["progress"]["checkpoint"]["step"]
    namespace.finished("unharmed")
    assert namespace.model_digest("killed") == namespace.model_digest("unharmed")
    assert "Traceback" not in namespace.logs("killed")
    namespace.remove("killed")
    namespace.remove("unharmed")


def test_killed_operator_does_not_change_outcomes(namespace: JobNamespace) -> None:
    namespace.start("runs-on", strategy(epochs=800))
    namespace.start("is-cancelled", strategy(epochs=LONG))
    for name in ("runs-on", "is-cancelled"):
        namespace.until(name, lambda s: s.get("progress", {}).get("stage") == "Training")

    namespace.cancel("is-cancelled")
    kill_in(_operator_pod(namespace), "ktrdr_operator")

    cancelled, complete = namespace.finished("is-cancelled"), namespace.finished("runs-on")
    assert true_conditions(cancelled) == {"Failed", "Cancelled", "Finished"}
    assert cancelled["cancellation"]["stoppedTime"]
    assert cancelled["cancellation"]["checkpoint"]["digest"]
    assert true_conditions(complete) == {"Complete", "Finished"}
    assert (complete["attempt"], complete["retries"]) == (1, 0)
    restarts = _operator_pod(namespace)["status"]["containerStatuses"][0]["restartCount"]
    assert restarts >= 1
    namespace.remove("runs-on")
    namespace.remove("is-cancelled")


def test_pod_deleted_by_user_is_replaced_and_not_counted(namespace: JobNamespace) -> None:
    namespace.start("by-hand", strategy(epochs=800))
    namespace.until("by-hand", lambda s: s.get("progress", {}).get("stage") == "Training")

    namespace.kube.run("delete", "pod", namespace.pods("by-hand")[0]["metadata"]["name"])

    status = namespace.finished("by-hand")
    assert true_conditions(status) == {"Complete", "Finished"}
    assert (status["attempt"], status["retries"]) == (2, 0)
    namespace.remove("by-hand")
