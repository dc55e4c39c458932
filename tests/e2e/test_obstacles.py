"""What holds a job up is in its status within a minute, in the words of whoever holds it up."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from demo.demo_environment import cluster_script
from e2e.job_namespace import LONG, RESOURCE, JobNamespace, claim, strategy, true_conditions
from kube import Raw

GPU = "nvidia.com/gpu"
SECONDS = 60
"""The promise: within this time."""


def waiting(namespace: JobNamespace, name: str) -> Raw:
    """Status of a job as soon as it says what it waits for."""
    return namespace.until(name, lambda s: s.get("waiting"), SECONDS)


@contextmanager
def volume_without_folder(namespace: JobNamespace, name: str) -> Iterator[None]:
    """A claim that is bound to a folder of the node that does not exist."""
    volume = f"{namespace.kube.namespace}-{name}"
    namespace.kube.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "",
                "hostPath": {"path": "/no/such/folder", "type": "Directory"},
                "claimRef": {"namespace": namespace.kube.namespace, "name": name},
            },
        }
    )
    namespace.kube.apply(
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
        namespace.kube.run("delete", "pvc", name, "--wait=false")
        namespace.kube.run("delete", "pv", volume, "--wait=false")


@pytest.fixture(scope="module")
def slow(namespace: JobNamespace) -> Iterator[JobNamespace]:
    """Jobs of which the status tells something only after a while, all started together."""
    with volume_without_folder(namespace, "no-folder"):
        namespace.start("no-folder", strategy(), output=claim("no-folder"))
        namespace.start("no-scheduler", strategy(), trainer={"schedulerName": "nobody-s-scheduler"})
        namespace.start("expires", strategy(epochs=1), ttlSecondsAfterFinished=0)
        namespace.start("unlabelled", strategy(epochs=3000))
        yield namespace
        names = ("no-folder", "no-scheduler", "unlabelled")
        namespace.kube.run("delete", RESOURCE, *names, "--ignore-not-found")


def test_pod_that_loses_its_label_is_not_replaced(slow: JobNamespace) -> None:
    name = "unlabelled"
    slow.until(name, lambda s: s.get("progress", {}).get("stage") == "Training")

    slow.kube.run("label", "pod", f"{name}-1-0", "ktrdr.io/job-")

    status = slow.finished(name)
    assert true_conditions(status) == {"Complete", "Finished"}
    assert (status["attempt"], status.get("disruptions", 0)) == (1, 0)


def test_volume_that_cannot_be_mounted_is_reported_with_the_kubelets_message(
    slow: JobNamespace,
) -> None:
    name = "no-folder"
    status = slow.until(
        name, lambda s: "hostPath" in s.get("waiting", {}).get("message", ""), SECONDS
    )

    assert status["waiting"]["reason"] == "PodNotReady"
    assert "hostPath type check failed: /no/such/folder" in status["waiting"]["message"]
    assert f"kubectl describe pod {name}-1-0" in status["message"]
    assert "hostPath type check failed" in slow.events(name)


def test_scheduler_that_does_not_run_is_reported(slow: JobNamespace) -> None:
    status = waiting(slow, "no-scheduler")
    assert 'scheduler "nobody-s-scheduler"' in status["waiting"]["message"]


def test_job_with_ttl_0_leaves_its_result_in_an_event(
    slow: JobNamespace,
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
def webhook_without_endpoints(namespace: JobNamespace) -> Iterator[None]:
    """A webhook for pods of the test's namespace that nobody answers."""
    name = f"{namespace.kube.namespace}.ktrdr.io"
    service = {"namespace": namespace.kube.namespace, "name": "nobody", "path": "/"}
    namespace.kube.apply(
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
                        "matchLabels": {"kubernetes.io/metadata.name": namespace.kube.namespace}
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
        namespace.kube.run("delete", "validatingwebhookconfiguration", name)


def test_webhook_without_endpoints_is_reported_and_its_removal_starts_the_job(
    namespace: JobNamespace,
) -> None:
    name = "behind-a-webhook"
    with webhook_without_endpoints(namespace):
        namespace.start(name, strategy(epochs=1))
        status = waiting(namespace, name)
    assert status["waiting"]["reason"] == "FailedCreate"
    assert "failed calling webhook" in status["waiting"]["message"]
    assert status["waiting"]["retryTime"]
    assert "FailedCreate" in namespace.events(name)
    assert true_conditions(namespace.finished(name)) == {"Complete", "Finished"}
    namespace.remove(name)


def test_quota_is_reported_and_its_removal_starts_the_job(namespace: JobNamespace) -> None:
    name, quota = "over-quota", "no-pods"
    metadata = {"name": quota}
    namespace.kube.apply(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": metadata,
            "spec": {"hard": {"count/pods": "0"}},
        }
    )
    namespace.kube.run(
        "wait", f"resourcequota/{quota}", "--for=jsonpath={.status.hard}", "--timeout=20s"
    )
    namespace.start(name, strategy(epochs=1))
    status = waiting(namespace, name)
    assert "exceeded quota: no-pods" in status["waiting"]["message"]
    namespace.kube.run("delete", "resourcequota", quota)
    assert true_conditions(namespace.finished(name)) == {"Complete", "Finished"}
    namespace.remove(name)


def test_gpu_requested_but_missing_in_the_pod_fails_the_trainer(namespace: JobNamespace) -> None:
    name = "no-gpu"
    cluster_script("extended-resource", GPU, "1")
    try:
        limits = {"limits": {GPU: 1}}
        namespace.start(name, strategy(), trainer={"resources": limits}, backoffLimit=0)
        status = namespace.finished(name)
    finally:
        cluster_script("extended-resource", GPU, "0")
    assert status["reason"] == "BackoffLimitExceeded"
    assert "GPU" in status["failure"]["message"]
    assert status["gpus"] == 1
    namespace.remove(name)


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
def sidecars(namespace: JobNamespace) -> Iterator[None]:
    """Pods whose names begin with `with-sidecar` get a second container that never ends."""
    if "mutatingadmissionpolicies" not in namespace.kube.run("api-resources", "-oname"):
        pytest.skip("this API server does not serve MutatingAdmissionPolicy")
    policy = sidecar_policy(namespace.kube.namespace)
    for part in policy:
        namespace.kube.apply(part)
    try:
        wait_until_injected(namespace)
        yield
    finally:
        for part in reversed(policy):
            namespace.kube.run("delete", part["kind"], part["metadata"]["name"])


def wait_until_injected(namespace: JobNamespace) -> None:
    """Wait until the API server applies the policy: it takes some seconds to know a new one."""
    probe = namespace.kube.get("pod", "files")
    probe = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "with-sidecar-probe"},
        "spec": {**probe["spec"], "nodeName": None},
    }
    deadline = time.monotonic() + 30
    while len(namespace.kube.create(probe, "--dry-run=server")["spec"]["containers"]) < 2:
        assert time.monotonic() < deadline, "the sidecar policy has no effect"
        time.sleep(0.5)


def test_sidecar_that_outlives_the_trainer_is_deleted_with_its_pod(namespace: JobNamespace) -> None:
    name = "with-sidecar"
    with sidecars(namespace):
        namespace.start(name, strategy(epochs=1), cancellation={"gracePeriodSeconds": 1})
        namespace.until(name, lambda s: s.get("podName"))
        assert len(namespace.pods(name)[0]["spec"]["containers"]) == 2
        status = namespace.finished(name)
    assert true_conditions(status) == {"Complete", "Finished"}
    namespace.kube.run("wait", f"pod/{name}-1-0", "--for=delete", "--timeout=60s")
    namespace.remove(name)


def test_drained_node_is_no_retry_and_resumes_from_the_checkpoint(namespace: JobNamespace) -> None:
    name = "drained"
    namespace.start(name, strategy(epochs=4000), checkpoint={"periodSeconds": 1})
    before = namespace.until(name, lambda s: s.get("progress", {}).get("checkpoint"))
    node = before["host"]
    try:
        words = (f"--pod-selector=ktrdr.io/job={name}", "--force", "--timeout=60s")
        namespace.kube.run("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", *words)
        held = namespace.until(name, lambda s: s.get("waiting"), SECONDS)
        assert held["waiting"]["reason"] == "Unschedulable"
    finally:
        namespace.kube.run("uncordon", node)
    status = namespace.finished(name)
    assert true_conditions(status) == {"Complete", "Finished"}
    assert (status["attempt"], status["disruptions"], status.get("retries", 0)) == (2, 1, 0)
    assert status["progress"]["step"] > before["progress"]["checkpoint"]["step"]
    namespace.remove(name)


@pytest.mark.parametrize("cascade", ["foreground", "orphan"])
def test_delete_with_cascade_foreground_waits_and_orphan_keeps_the_pod(
    namespace: JobNamespace, cascade: str
) -> None:
    name = f"cascade-{cascade}"
    namespace.start(name, strategy(epochs=LONG))
    namespace.until(name, lambda s: s.get("progress", {}).get("stage") == "Training")

    namespace.kube.run("delete", RESOURCE, name, f"--cascade={cascade}", "--timeout=60s")

    found = namespace.kube.run("get", "pods", f"-lktrdr.io/job={name}", "-ojson")
    pods = json.loads(found)["items"]
    if cascade == "foreground":
        assert pods == []
        return
    assert [pod["metadata"].get("ownerReferences") for pod in pods] == [None]
    namespace.kube.run("delete", "pod", f"{name}-1-0")
