"""A trainer may write its own progress from its own pod, and nothing else: real bound tokens."""

import base64
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import pytest
import urllib3
import yaml

from kube import Kube, Raw, training_job

pytestmark = pytest.mark.usefixtures("crd", "policy")

CHART = Path(__file__).parents[2] / "charts/ktrdr"
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"


@pytest.fixture(scope="module")
def policy(cluster: Kube) -> Iterator[None]:
    """The policy of this checkout's chart, under a name of its own; removed afterwards."""
    manifest = subprocess.run(
        ["helm", "template", "contract-test", CHART, "--show-only=templates/admission.yaml"],
        env=dict(cluster.environment),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    cluster.run("apply", "-f-", stdin=manifest)
    yield
    cluster.run("delete", "-f-", stdin=manifest)


@dataclass(frozen=True)
class Trainer:
    """What speaks to the API server with the token of the ServiceAccount `job-trainer`.

    Attributes:
        pool: Connection to the API server without any identity.
        path: The status of the TrainingJob.
        token: Bearer token.
    """

    pool: urllib3.HTTPSConnectionPool
    path: str
    token: str

    def patch(
        self, status: Raw, content_type: str = MERGE, *, query: str = "", **more: Raw
    ) -> tuple[int, str]:
        """Send one PATCH of the status; returns the HTTP status and the server's words.

        `more` goes into the body, beside the status.
        """
        body: Raw = {"status": status, **more}
        if content_type == APPLY:
            query = "?fieldManager=ktrdr-trainer&force=true"
            body |= {key: training_job()[key] for key in ("apiVersion", "kind")}
        answer = self.pool.request(
            "PATCH",
            self.path + query,
            body=json.dumps(body),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": content_type},
        )
        return answer.status, str(answer.json().get("message", ""))


@pytest.fixture
def pool(cluster: Kube) -> Iterator[urllib3.HTTPSConnectionPool]:
    entry = yaml.safe_load(cluster.run("config", "view", "--minify", "--raw"))["clusters"][0]
    authority = entry["cluster"].get("certificate-authority-data")
    url = urllib3.util.parse_url(entry["cluster"]["server"])
    with urllib3.HTTPSConnectionPool(
        url.host or "",
        url.port,
        ca_cert_data=base64.b64decode(authority).decode() if authority else None,
        ca_certs=entry["cluster"].get("certificate-authority"),
    ) as connections:
        yield connections


@pytest.fixture
def namespace(kube: Kube) -> Kube:
    """A namespace with a job, its trainer's account and rights, and two pods of that account."""
    # An operator may run on this cluster: it waits for the ConfigMap, and makes no children.
    kube.create(training_job(strategy={"configMapKeyRef": {"name": "absent", "key": "any"}}))
    kube.run("create", "serviceaccount", "job-trainer")
    account = f"--serviceaccount={kube.namespace}:job-trainer"
    rights = {"trainingjobs.ktrdr.io": "get,watch", "trainingjobs.ktrdr.io/status": "get,patch"}
    for name, (resource, verbs) in zip(("object", "status"), rights.items(), strict=True):
        what = (f"--resource={resource}", f"--verb={verbs}", "--resource-name=job")
        kube.run("create", "role", name, *what)
        kube.run("create", "rolebinding", name, f"--role={name}", account)
    for name in ("job-1-0", "other"):
        kube.create(pod(name))
    return kube


def pod(name: str) -> Raw:
    """A pod that need not run: its UID is what counts."""
    restricted = {
        "runAsNonRoot": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {"name": "a", "image": "none.invalid/none", "securityContext": restricted}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"serviceAccountName": "job-trainer", "containers": [container]},
    }


@pytest.fixture
def trainer_of(namespace: Kube, pool: urllib3.HTTPSConnectionPool) -> Callable[..., Trainer]:
    def make(*bound_to: str) -> Trainer:
        bound = [
            f"--bound-object-{kind}={value}"
            for kind, value in zip(("kind", "name"), bound_to, strict=False)
        ]
        token = namespace.run("create", "token", "job-trainer", *bound).strip()
        path = f"/apis/ktrdr.io/v1alpha1/namespaces/{namespace.namespace}/trainingjobs/job/status"
        return Trainer(pool, path, token)

    wait_until_active(make())
    return make


def wait_until_active(unbound: Trainer) -> None:
    """A new policy is enforced a moment after it was created."""
    deadline = time.monotonic() + 15
    while unbound.patch(progress("any"), query="?dryRun=All")[0] != HTTPStatus.FORBIDDEN:
        assert time.monotonic() < deadline, "the policy was not enforced within 15 s"
        time.sleep(0.1)


def progress(pod_uid: str, step: int = 1) -> Raw:
    return {
        "progress": {
            "attempt": 1,
            "podUID": pod_uid,
            "stage": "Training",
            "step": step,
            "lastUpdateTime": "2026-01-01T00:00:00Z",
        }
    }


def uid_of(kube: Kube, name: str) -> str:
    return str(kube.get("pod", name)["metadata"]["uid"])


@pytest.mark.parametrize("content_type", [MERGE, APPLY])
def test_policy_own_progress_is_taken_and_a_step_backwards_is_not(
    namespace: Kube, trainer_of: Callable[..., Trainer], content_type: str
) -> None:
    trainer = trainer_of("Pod", "job-1-0")
    uid = uid_of(namespace, "job-1-0")
    assert trainer.patch(progress(uid, step=5), content_type) == (HTTPStatus.OK, "")
    code, message = trainer.patch(progress(uid, step=4), content_type)
    assert code == HTTPStatus.UNPROCESSABLE_ENTITY
    assert "step must not fall within an attempt" in message
    status = namespace.get("trainingjobs.ktrdr.io", "job")["status"]
    assert status["progress"] == progress(uid, step=5)["progress"]


def test_policy_everything_else_is_forbidden(
    namespace: Kube, trainer_of: Callable[..., Trainer]
) -> None:
    mine, other = uid_of(namespace, "job-1-0"), uid_of(namespace, "other")
    trainer, unbound = trainer_of("Pod", "job-1-0"), trainer_of()
    only_progress = "a trainer may change status.progress only"
    only_its_pod = "status.progress.podUID must be the pod whose bound token makes the request"
    refusals: list[tuple[Trainer, Raw, str]] = [
        (unbound, progress(mine), only_its_pod),
        (trainer, progress(other), only_its_pod),
        (trainer, {**progress(mine), "phase": "Succeeded"}, only_progress),
        (trainer, {**progress(mine), "observedGeneration": 99}, only_progress),
        (trainer, {"phase": "Succeeded"}, only_progress),
    ]
    for speaker, status, want in refusals:
        code, message = speaker.patch(status)
        assert (code, want in message) == (HTTPStatus.FORBIDDEN, True), message
    status = namespace.get("trainingjobs.ktrdr.io", "job")["status"]
    assert "progress" not in status
    assert status.get("phase") != "Succeeded"


def test_policy_nothing_beside_status_can_be_changed_through_it(
    namespace: Kube, trainer_of: Callable[..., Trainer]
) -> None:
    trainer, uid = trainer_of("Pod", "job-1-0"), uid_of(namespace, "job-1-0")
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "job-1-0", "uid": uid}
    metadata: Raw = {
        "labels": {"any": "label"},
        "annotations": {"any": "annotation"},
        "finalizers": ["example.com/stays"],
        "ownerReferences": [owner],
    }
    before = namespace.get("trainingjobs.ktrdr.io", "job")

    code, message = trainer.patch(progress(uid), metadata=metadata, spec={"cancel": True})

    assert (code, message) == (HTTPStatus.OK, "")
    after = namespace.get("trainingjobs.ktrdr.io", "job")
    assert after["status"]["progress"]["podUID"] == uid
    assert not metadata.keys() & after["metadata"].keys()
    assert after["spec"] == before["spec"]


def test_policy_another_field_cannot_be_removed(
    namespace: Kube, trainer_of: Callable[..., Trainer]
) -> None:
    namespace.patch(
        "trainingjobs.ktrdr.io", "job", {"status": {"phase": "Running"}}, "--subresource=status"
    )
    status = {**progress(uid_of(namespace, "job-1-0")), "phase": None}
    code, message = trainer_of("Pod", "job-1-0").patch(status)
    assert (code, "status.progress only" in message) == (HTTPStatus.FORBIDDEN, True), message


def test_policy_another_job_is_out_of_reach(
    namespace: Kube, trainer_of: Callable[..., Trainer]
) -> None:
    namespace.create(training_job("neighbour"))
    trainer = trainer_of("Pod", "job-1-0")
    elsewhere = Trainer(trainer.pool, trainer.path.replace("/job/", "/neighbour/"), trainer.token)
    code, message = elsewhere.patch(progress(uid_of(namespace, "job-1-0")))
    assert (code, "cannot patch resource" in message) == (HTTPStatus.FORBIDDEN, True), message
