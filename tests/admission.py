"""What the tests of both admission policies share: the chart's objects and a namespace for them."""

import subprocess
import time
from pathlib import Path
from typing import Any

from kube import Kube, Raw, RefusedError, training_job

CHART = Path(__file__).parents[1] / "charts/ktrdr"
RELEASE_NAMESPACE = "contract-policy"
"""Of the rendered chart. It does not exist: the operator's account is impersonated."""
OPERATOR = f"--as=system:serviceaccount:{RELEASE_NAMESPACE}:ktrdr-operator"
RBAC = "rbac.authorization.k8s.io"
JOBS = "trainingjobs.ktrdr.io"


def render(cluster: Kube, template: str, *values: str) -> str:
    """One template of this checkout's chart."""
    sets = [f"--set={value}" for value in values]
    return subprocess.run(
        [
            *("helm", "template", "ktrdr", CHART, f"--namespace={RELEASE_NAMESPACE}"),
            *(f"--show-only=templates/{template}.yaml", *sets),
        ],
        env=dict(cluster.environment),
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def serve(kube: Kube) -> None:
    values = (f"operator.watchNamespaces={{{kube.namespace}}}", "operator.leaderElection=false")
    kube.run("apply", "-f-", stdin=render(kube, "rbac", *values, "rbac.aggregate=false"))
    # An operator may run on this cluster: it waits for the ConfigMap, and creates no children.
    kube.create(training_job(strategy={"configMapKeyRef": {"name": "absent", "key": "any"}}))
    wait_until_enforced(kube)


def wait_until_enforced(kube: Kube) -> None:
    """A new policy is enforced, and a new role effective, a moment after its creation."""
    deadline = time.monotonic() + 15
    while "is allowed to create only the ServiceAccount" not in refusal(kube, account("other")):
        assert time.monotonic() < deadline, "the policy was not enforced within 15 s"
        time.sleep(0.1)


def refusal(kube: Kube, body: Raw) -> str:
    """Error of the operator's attempt to create an object; empty if it is allowed."""
    try:
        kube.create(body, OPERATOR, "--dry-run=server")
    except RefusedError as error:
        return str(error)
    return ""


def account(name: str = "ktrdr-trainer") -> Raw:
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}


def role_binding(namespace: str, kind: str = "Role") -> Raw:
    subject = {"kind": "ServiceAccount", "name": "ktrdr-trainer", "namespace": namespace}
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "ktrdr-trainer"},
        "roleRef": {"apiGroup": RBAC, "kind": kind, "name": "ktrdr-trainer"},
        "subjects": [subject],
    }


def owners(kube: Kube) -> list[Raw]:
    """As the operator writes it: blockOwnerDeletion needs a right where the cluster checks it."""
    job = kube.get(JOBS, "job")
    reference = {key: job[key] for key in ("apiVersion", "kind")}
    reference |= {"name": "job", "uid": job["metadata"]["uid"]}
    return [{**reference, "controller": True, "blockOwnerDeletion": True}]


def pod(name: str = "job-1-0", owned_by: list[Raw] | None = None) -> Raw:
    """A pod of the account ktrdr-trainer that is never scheduled: its name and UID are enough."""
    restricted = {
        "runAsNonRoot": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {"name": "trainer", "image": "none.invalid/none", "securityContext": restricted}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "ownerReferences": owned_by or []},
        "spec": {
            "serviceAccountName": "ktrdr-trainer",
            "schedulingGates": [{"name": "example.com/never"}],
            "containers": [container],
        },
    }


def set_status(kube: Kube, **status: Any) -> None:
    """Write status as the operator; a finished job, which an operator that runs leaves alone."""
    condition = {
        "status": "True",
        "reason": "Test",
        "message": "",
        "observedGeneration": 1,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    conditions = [{"type": name, **condition} for name in ("Complete", "Finished")]
    body: Raw = {"status": {"phase": "Succeeded", "conditions": conditions, **status}}
    kube.patch(JOBS, "job", body, "--subresource=status")
