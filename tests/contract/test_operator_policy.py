"""Operator policy of the chart on a real API server: what the operator's account is limited to."""

import uuid
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from admission import (
    JOBS,
    OPERATOR,
    RBAC,
    RELEASE_NAMESPACE,
    account,
    owners,
    pod,
    refusal,
    role_binding,
    serve,
    set_status,
)
from kube import Kube, Raw, RefusedError

pytestmark = pytest.mark.usefixtures("crd")


@pytest.fixture(scope="module")
def generous(cluster: Kube, policy: None) -> Iterator[Kube]:
    """A served namespace where only the policy limits the operator: no PSS, rights of an admin."""
    name = f"test-{uuid.uuid4().hex[:10]}"
    kube = replace(cluster, namespace=name)
    kube.run("create", "namespace", name)
    kube.create(account())
    serve(kube)
    grant = ("--clusterrole=admin", f"--serviceaccount={RELEASE_NAMESPACE}:ktrdr-operator")
    kube.run("create", "rolebinding", "too-generous", *grant)
    yield kube
    kube.run("delete", "namespace", name, "--wait=false")


def changed(body: Raw, path: str, value: Any) -> Raw:
    """A copy of the object with one field set; numbers in the path are positions in a list."""
    copy = deepcopy(body)
    node: Any = copy
    *parents, last = path.split(".")
    for key in parents:
        node = node[int(key) if isinstance(node, list) else key]
    node[last] = value
    return copy


def test_operator_policy_objects_of_a_job_are_accepted(namespace: Kube) -> None:
    """With the rights of the chart: no right is missing for them either."""
    owned = owners(namespace)
    config: Raw = {"name": "job-strategy", "ownerReferences": owned}
    namespace.create(account(), OPERATOR)
    namespace.create(role_binding(namespace.namespace), OPERATOR)
    namespace.create(pod(owned_by=owned), OPERATOR)
    namespace.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": config}, OPERATOR)
    namespace.run("delete", "pod", "job-1-0", "--wait=false", OPERATOR)
    namespace.run("get", "events", "--field-selector=involvedObject.name=job-1-0", OPERATOR)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("metadata.ownerReferences", [], "only if their controller is a TrainingJob"),
        ("metadata.ownerReferences.0.controller", False, "only if their controller is"),
        ("metadata.ownerReferences.0.apiVersion", "batch/v1", "only if their controller is"),
        ("metadata.ownerReferences.0.kind", "Job", "only if their controller is a TrainingJob"),
        ("spec.serviceAccountName", "default", "must use the ServiceAccount ktrdr-trainer"),
        ("spec.volumes", [{"name": "root", "hostPath": {"path": "/"}}], "hostPath volumes; found"),
        (
            "spec.containers.0.securityContext",
            {"privileged": True},
            "privileged containers; found trainer",
        ),
        (
            "spec.initContainers",
            [{"name": "first", "image": "x", "securityContext": {"privileged": True}}],
            "privileged containers; found first",
        ),
        (
            "spec.containers.0.securityContext",
            {"capabilities": {"add": ["NET_ADMIN", "SYS_ADMIN"]}},
            "except NET_ADMIN, NET_BIND_SERVICE and NET_RAW; found trainer",
        ),
        (
            "spec.initContainers",
            [{"name": "a", "image": "x", "securityContext": {"capabilities": {"add": ["ALL"]}}}],
            "except NET_ADMIN, NET_BIND_SERVICE and NET_RAW; found a",
        ),
        ("spec.hostNetwork", True, "namespaces of the host; found hostNetwork"),
        ("spec.hostPID", True, "namespaces of the host; found hostPID"),
        ("spec.hostIPC", True, "namespaces of the host; found hostIPC"),
    ],
)  # fmt: skip
def test_operator_policy_other_pod_is_rejected(
    generous: Kube, path: str, value: Any, words: str
) -> None:
    correct = pod(owned_by=owners(generous))
    assert refusal(generous, correct) == ""

    assert words in refusal(generous, changed(correct, path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "other"),
        ("roleRef", {"apiGroup": RBAC, "kind": "ClusterRole", "name": "admin"}),
        ("subjects.0.name", "default"),
        ("subjects.0.namespace", "kube-system"),
        ("subjects", [{"apiGroup": RBAC, "kind": "User", "name": "ktrdr-trainer"}]),
        ("subjects", []),
    ],
)
def test_operator_policy_other_role_binding_is_rejected(
    generous: Kube, path: str, value: Any
) -> None:
    correct = role_binding(generous.namespace)
    assert refusal(generous, correct) == ""

    wrong = changed(correct, path, value)
    assert "allowed to create only the RoleBinding ktrdr-trainer" in refusal(generous, wrong)


def test_operator_policy_second_subject_is_rejected(generous: Kube) -> None:
    binding = role_binding(generous.namespace)
    binding["subjects"] += [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}]
    assert "allowed to create only the RoleBinding ktrdr-trainer" in refusal(generous, binding)


def test_operator_policy_delete_of_foreign_object_is_rejected(generous: Kube) -> None:
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "users"}}
    assert "only if their controller is a TrainingJob" in refusal(generous, config)
    generous.create(config)
    generous.create(pod("users"))
    for name in ("configmap/users", "pod/users"):
        with pytest.raises(RefusedError, match="only if their controller is a TrainingJob"):
            generous.run("delete", name, OPERATOR)


def test_operator_policy_delete_of_unfinished_job_is_rejected(namespace: Kube) -> None:
    with pytest.raises(RefusedError, match="delete only TrainingJobs whose condition Finished"):
        namespace.run("delete", JOBS, "job", OPERATOR)
    set_status(namespace)
    namespace.run("delete", JOBS, "job", OPERATOR)
