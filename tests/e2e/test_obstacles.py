"""What holds a job up is in its status within a minute, in the words of whoever holds it up."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from demo.place import cluster_script
from e2e.workbench import LONG, RESOURCE, Workbench, claim, strategy, true_conditions
from kube import Raw

GPU = "nvidia.com/gpu"
SECONDS = 60
"""The promise: within this time."""


def waiting(bench: Workbench, name: str) -> Raw:
    """Status of a job as soon as it says what it waits for."""
    return bench.until(name, lambda s: s.get("waiting"), SECONDS)


@contextmanager
def volume_without_folder(bench: Workbench, name: str) -> Iterator[None]:
    """A claim that is bound to a folder of the node that does not exist."""
    volume = f"{bench.kube.namespace}-{name}"
    bench.kube.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "",
                "hostPath": {"path": "/no/such/folder", "type": "Directory"},
                "claimRef": {"namespace": bench.kube.namespace, "name": name},
            },
        }
    )
    bench.kube.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "",
                "volumeName": volume,
                "resources": {"requests": {"storage": "1Gi"}},
            },
        }
    )
    try:
        yield
    finally:
        bench.kube.run("delete", "pvc", name, "--wait=false")
        bench.kube.run("delete", "pv", volume, "--wait=false")


@pytest.fixture(scope="module")
def slow(bench: Workbench) -> Iterator[Workbench]:
    """Jobs of which the status tells something only after a while, all started together."""
    with volume_without_folder(bench, "no-folder"):
        bench.start("no-folder", strategy(), output=claim("no-folder"))
        bench.start("no-scheduler", strategy(), trainer={"schedulerName": "nobody-s-scheduler"})
        bench.start("expires", strategy(epochs=1), ttlSecondsAfterFinished=0)
        bench.start("unlabelled", strategy(epochs=3000))
        yield bench
        names = ("no-folder", "no-scheduler", "unlabelled")
        bench.kube.run("delete", RESOURCE, *names, "--ignore-not-found")


def test_pod_that_loses_its_label_gets_no_second_trainer(slow: Workbench) -> None:
    name = "unlabelled"
    slow.until(name, lambda s: s.get("progress", {}).get("stage") == "Training")

    slow.kube.run("label", "pod", f"{name}-1-0", "ktrdr.io/job-")

    status = slow.finished(name)
    assert true_conditions(status) == {"Complete", "Finished"}
    assert (status["attempt"], status.get("disruptions", 0)) == (1, 0)


def test_volume_that_cannot_be_mounted_is_named_in_the_words_of_the_kubelet(
    slow: Workbench,
) -> None:
    name = "no-folder"
    status = slow.until(
        name, lambda s: "hostPath" in s.get("waiting", {}).get("message", ""), SECONDS
    )

    assert status["waiting"]["reason"] == "PodNotReady"
    assert "hostPath type check failed: /no/such/folder" in status["waiting"]["message"]
    assert f"kubectl describe pod {name}-1-0" in status["message"]
    assert "hostPath type check failed" in slow.events(name)


def test_scheduler_that_does_not_run_is_named(slow: Workbench) -> None:
    status = waiting(slow, "no-scheduler")
    assert 'scheduler "nobody-s-scheduler"' in status["waiting"]["message"]


def test_job_that_lives_for_no_time_after_its_end_leaves_its_result_in_an_event(
    slow: Workbench,
) -> None:
    name = "expires"
    slow.kube.run("wait", f"{RESOURCE}/{name}", "--for=delete", "--timeout=120s")
    answer = slow.kube.run("get", "events", "--field-selector=reason=Expired", "-ojson")
    told = [
        event["message"]
        for event in json.loads(answer)["items"]
        if event["involvedObject"]["name"] == name
    ]
    assert len(told) == 1
    assert "Succeeded: Trained 1 epochs; the model is stored at models/" in told[0]


@contextmanager
def webhook_without_endpoints(bench: Workbench) -> Iterator[None]:
    """A webhook for pods of the test's namespace that nobody answers."""
    name = f"{bench.kube.namespace}.ktrdr.io"
    service = {"namespace": bench.kube.namespace, "name": "nobody", "path": "/"}
    bench.kube.apply(
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": name},
            "webhooks": [
                {
                    "name": name,
                    "admissionReviewVersions": ["v1"],
                    "sideEffects": "None",
                    "timeoutSeconds": 1,
                    "clientConfig": {"service": service},
                    "namespaceSelector": {
                        "matchLabels": {"kubernetes.io/metadata.name": bench.kube.namespace}
                    },
                    "rules": [
                        {
                            "apiGroups": [""],
                            "apiVersions": ["v1"],
                            "operations": ["CREATE"],
                            "resources": ["pods"],
                        }
                    ],
                }
            ],
        }
    )
    try:
        yield
    finally:
        bench.kube.run("delete", "validatingwebhookconfiguration", name)


def test_webhook_that_nobody_answers_is_named_and_its_removal_starts_the_job(
    bench: Workbench,
) -> None:
    name = "behind-a-webhook"
    with webhook_without_endpoints(bench):
        bench.start(name, strategy(epochs=1))
        status = waiting(bench, name)
    assert status["waiting"]["reason"] == "FailedCreate"
    assert "failed calling webhook" in status["waiting"]["message"]
    assert status["waiting"]["retryTime"]
    assert "FailedCreate" in bench.events(name)
    assert true_conditions(bench.finished(name)) == {"Complete", "Finished"}
    bench.remove(name)


def test_quota_is_named_and_its_removal_starts_the_job(bench: Workbench) -> None:
    name, quota = "over-quota", "no-pods"
    metadata = {"name": quota}
    bench.kube.apply(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": metadata,
            "spec": {"hard": {"count/pods": "0"}},
        }
    )
    bench.kube.run(
        "wait", f"resourcequota/{quota}", "--for=jsonpath={.status.hard}", "--timeout=20s"
    )
    bench.start(name, strategy(epochs=1))
    status = waiting(bench, name)
    assert "exceeded quota: no-pods" in status["waiting"]["message"]
    bench.kube.run("delete", "resourcequota", quota)
    assert true_conditions(bench.finished(name)) == {"Complete", "Finished"}
    bench.remove(name)


def test_gpu_that_is_asked_for_and_not_there_fails_the_trainer(bench: Workbench) -> None:
    name = "no-gpu"
    cluster_script("extended-resource", GPU, "1")
    try:
        limits = {"limits": {GPU: 1}}
        bench.start(name, strategy(), trainer={"resources": limits}, backoffLimit=0)
        status = bench.finished(name)
    finally:
        cluster_script("extended-resource", GPU, "0")
    assert status["reason"] == "BackoffLimitExceeded"
    assert "GPU" in status["failure"]["message"]
    assert status["gpus"] == 1
    bench.remove(name)


def sidecar_policy(namespace: str) -> list[Raw]:
    """Adds a container that never ends to the pods of a namespace, as a service mesh would."""
    name = f"{namespace}.sidecar"
    context = "Object.spec.containers.securityContext"
    sidecar = (
        '[JSONPatch{op: "add", path: "/spec/containers/-", value: Object.spec.containers{'
        'name: "sidecar", image: object.spec.containers[0].image,'
        ' command: ["python", "-c", "import time; time.sleep(3600)"],'
        f" securityContext: {context}{{allowPrivilegeEscalation: false,"
        f' capabilities: {context}.capabilities{{drop: ["ALL"]}}}}}}}}]'
    )
    return [
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {
                "failurePolicy": "Fail",
                "reinvocationPolicy": "Never",
                "matchConstraints": {
                    "resourceRules": [
                        {
                            "apiGroups": [""],
                            "apiVersions": ["v1"],
                            "operations": ["CREATE"],
                            "resources": ["pods"],
                        }
                    ]
                },
                "matchConditions": [
                    {"name": "here", "expression": f"request.namespace == '{namespace}'"},
                    {
                        "name": "wants-it",
                        "expression": "object.metadata.name.startsWith('with-sidecar')",
                    },
                ],
                "mutations": [
                    {
                        "patchType": "JSONPatch",
                        "jsonPatch": {"expression": sidecar},
                    }
                ],
            },
        },
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {"policyName": name},
        },
    ]


@contextmanager
def sidecars(bench: Workbench) -> Iterator[None]:
    """Pods whose names begin with `with-sidecar` get a second container that never ends."""
    if "mutatingadmissionpolicies" not in bench.kube.run("api-resources", "-oname"):
        pytest.skip("this API server does not serve MutatingAdmissionPolicy")
    policy = sidecar_policy(bench.kube.namespace)
    for part in policy:
        bench.kube.apply(part)
    try:
        wait_until_injected(bench)
        yield
    finally:
        for part in reversed(policy):
            bench.kube.run("delete", part["kind"], part["metadata"]["name"])


def wait_until_injected(bench: Workbench) -> None:
    """Wait until the API server applies the policy: it takes some seconds to know a new one."""
    probe = bench.kube.get("pod", "files")
    probe = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "with-sidecar-probe"},
        "spec": {**probe["spec"], "nodeName": None},
    }
    deadline = time.monotonic() + 30
    while len(bench.kube.create(probe, "--dry-run=server")["spec"]["containers"]) < 2:
        assert time.monotonic() < deadline, "the sidecar policy has no effect"
        time.sleep(0.5)


def test_sidecar_that_outlives_the_trainer_does_not_keep_the_pod(bench: Workbench) -> None:
    name = "with-sidecar"
    with sidecars(bench):
        bench.start(name, strategy(epochs=1), cancellation={"gracePeriodSeconds": 1})
        bench.until(name, lambda s: s.get("podName"))
        assert len(bench.pods(name)[0]["spec"]["containers"]) == 2
        status = bench.finished(name)
    assert true_conditions(status) == {"Complete", "Finished"}
    bench.kube.run("wait", f"pod/{name}-1-0", "--for=delete", "--timeout=60s")
    bench.remove(name)


def test_drained_node_costs_nothing(bench: Workbench) -> None:
    name = "drained"
    bench.start(name, strategy(epochs=4000), checkpoint={"periodSeconds": 1})
    before = bench.until(name, lambda s: s.get("progress", {}).get("checkpoint"))
    node = before["host"]
    try:
        words = (f"--pod-selector=ktrdr.io/job={name}", "--force", "--timeout=60s")
        bench.kube.run("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", *words)
        held = bench.until(name, lambda s: s.get("waiting"), SECONDS)
        assert held["waiting"]["reason"] == "Unschedulable"
    finally:
        bench.kube.run("uncordon", node)
    status = bench.finished(name)
    assert true_conditions(status) == {"Complete", "Finished"}
    assert (status["attempt"], status["disruptions"], status.get("retries", 0)) == (2, 1, 0)
    assert status["progress"]["step"] > before["progress"]["checkpoint"]["step"]
    bench.remove(name)


@pytest.mark.parametrize("cascade", ["foreground", "orphan"])
def test_delete_with_cascade_does_what_it_says(bench: Workbench, cascade: str) -> None:
    name = f"cascade-{cascade}"
    bench.start(name, strategy(epochs=LONG))
    bench.until(name, lambda s: s.get("progress", {}).get("stage") == "Training")

    bench.kube.run("delete", RESOURCE, name, f"--cascade={cascade}", "--timeout=60s")

    found = bench.kube.run("get", "pods", f"-lktrdr.io/job={name}", "-ojson")
    pods = json.loads(found)["items"]
    if cascade == "foreground":
        assert pods == []
        return
    assert [pod["metadata"].get("ownerReferences") for pod in pods] == [None]
    bench.kube.run("delete", "pod", f"{name}-1-0")
