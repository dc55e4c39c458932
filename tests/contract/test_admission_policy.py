"""Trainer policy of the chart on a real API server, with real bound tokens.

A trainer may write the progress of the job that its pod runs, and nothing else.
"""

import base64
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import pytest
import urllib3
import yaml

from admission import JOBS, OPERATOR, account, pod, role_binding, set_status
from kube import Kube, Raw, training_job

pytestmark = pytest.mark.usefixtures("crd")

MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"
REJECTED = (HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.FORBIDDEN)
"""By a rule of the CRD, which the API server evaluates first, or by the policy."""


@dataclass(frozen=True)
class Trainer:
    """What reports to the API server with a token of the ServiceAccount `ktrdr-trainer`.

    Attributes:
        pool: Connection to the API server without any identity.
        path: The status of the TrainingJob.
        token: Bearer token.
        uid: UID of the pod that the token is bound to; empty for an unbound token.
    """

    pool: urllib3.HTTPSConnectionPool
    path: str
    token: str
    uid: str

    def patch(
        self, status: Raw, content_type: str = APPLY, manager: str = "ktrdr-trainer", **more: Raw
    ) -> tuple[int, str]:
        """Send one PATCH of the status; returns the HTTP status and the server's message.

        `more` goes into the body, beside the status.
        """
        body: Raw = {"status": status, **more}
        query = f"?fieldManager={manager}"
        if content_type == APPLY:
            query += "&force=true"
            body |= {key: training_job()[key] for key in ("apiVersion", "kind")}
        answer = self.pool.request(
            "PATCH",
            self.path + query,
            body=json.dumps(body),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": content_type},
        )
        return answer.status, str(answer.json().get("message", ""))

    def report(self, **changes: Any) -> tuple[int, str]:
        """Report progress, correct except for `changes`."""
        return self.patch(self.progress(**changes))

    def progress(self, **changes: Any) -> Raw:
        """The status that a trainer applies."""
        correct = {
            "attempt": 1,
            "podUID": self.uid,
            "stage": "Training",
            "step": 1,
            "lastUpdateTime": "2026-01-01T00:00:00Z",
        }
        return {"progress": {**correct, **changes}}


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
def trainer_of(namespace: Kube, pool: urllib3.HTTPSConnectionPool) -> Callable[..., Trainer]:
    """Creates the pod of this name, and its trainer; without a name an unbound token."""
    namespace.create(account(), OPERATOR)
    namespace.create(role_binding(namespace.namespace), OPERATOR)

    def make(name: str = "") -> Trainer:
        uid = namespace.create(pod(name))["metadata"]["uid"] if name else ""
        bound = (f"--bound-object-kind=Pod --bound-object-name={name}").split() if name else ()
        token = namespace.run("create", "token", "ktrdr-trainer", *bound).strip()
        path = f"/apis/ktrdr.io/v1alpha1/namespaces/{namespace.namespace}/trainingjobs/job/status"
        return Trainer(pool, path, token, uid)

    return make


def forbidden(answer: tuple[int, str], words: str) -> None:
    assert (answer[0], words in answer[1]) == (HTTPStatus.FORBIDDEN, True), answer


def assert_wrong_attempt(answer: tuple[int, str]) -> None:
    assert answer[0] in REJECTED, answer
    assert "attempt" in answer[1]


@pytest.mark.parametrize("content_type", [MERGE, APPLY])
def test_trainer_policy_own_progress_is_accepted_and_a_lower_step_is_not(
    namespace: Kube, trainer_of: Callable[..., Trainer], content_type: str
) -> None:
    trainer = trainer_of("job-1-0")
    assert trainer.patch(trainer.progress(step=5), content_type) == (HTTPStatus.OK, "")
    code, message = trainer.patch(trainer.progress(step=4), content_type)
    assert code == HTTPStatus.UNPROCESSABLE_ENTITY
    assert "step must not" in message
    status = namespace.get(JOBS, "job")["status"]
    assert status["progress"] == trainer.progress(step=5)["progress"]


def test_trainer_policy_before_the_first_status_only_the_pod_of_attempt_1_reports(
    namespace: Kube, trainer_of: Callable[..., Trainer]
) -> None:
    names = ("job-2-0", "job-1-1", "neighbour-1-0", "job")
    for other in map(trainer_of, names):
        forbidden(other.report(), 'the current attempt runs in pod "job-1-0"')
    first = trainer_of("job-1-0")
    for attempt in (0, 2, 999):
        assert_wrong_attempt(first.report(attempt=attempt))
    assert "progress" not in namespace.get(JOBS, "job")["status"]

    assert first.report() == (HTTPStatus.OK, "")


def test_trainer_policy_an_earlier_or_a_later_attempt_must_not_report(
    namespace: Kube, trainer_of: Callable[..., Trainer]
) -> None:
    set_status(namespace, attempt=2, podName="job-2-0")
    earlier, current, later = map(trainer_of, ("job-1-0", "job-2-0", "job-3-0"))

    for attempt in (1, 2):
        forbidden(earlier.report(attempt=attempt), 'pod "job-1-0" is not allowed to report')
    forbidden(later.report(attempt=2), 'pod "job-3-0" is not allowed to report')
    assert later.report(attempt=3)[0] in REJECTED
    forbidden(current.report(attempt=1), "attempt must be 2, the current attempt")
    for attempt in (3, 999):
        assert_wrong_attempt(current.report(attempt=attempt))
    assert current.report(attempt=2) == (HTTPStatus.OK, "")


def test_trainer_policy_the_token_decides_which_pod_it_is(
    trainer_of: Callable[..., Trainer],
) -> None:
    trainer, neighbour, unbound = trainer_of("job-1-0"), trainer_of("other-1-0"), trainer_of()

    forbidden(unbound.report(podUID=trainer.uid), "the token is not bound to a pod")
    forbidden(trainer.report(podUID=neighbour.uid), f"podUID must be {trainer.uid}")
    forbidden(neighbour.report(podUID=trainer.uid), f"podUID must be {neighbour.uid}")
    assert trainer.report() == (HTTPStatus.OK, "")


def test_trainer_policy_the_token_of_a_deleted_pod_is_worth_nothing(
    namespace: Kube, trainer_of: Callable[..., Trainer]
) -> None:
    trainer = trainer_of("job-1-0")
    namespace.run("delete", "pod", "job-1-0", "--force", "--grace-period=0")
    successor = trainer_of("job-1-0")  # the same name does not revive the token

    deadline = time.monotonic() + 15  # the API server learns of the deletion by a watch
    while (code := trainer.report()[0]) != HTTPStatus.UNAUTHORIZED:
        assert code == HTTPStatus.OK
        assert time.monotonic() < deadline, "the token was still valid after 15 s"
        time.sleep(0.1)

    assert successor.report() == (HTTPStatus.OK, "")


def test_trainer_policy_every_other_field_is_forbidden(
    namespace: Kube, trainer_of: Callable[..., Trainer]
) -> None:
    set_status(namespace, podName="job-1-0", attempt=1)
    trainer = trainer_of("job-1-0")
    mine = trainer.progress()
    allowed = "a trainer is allowed to change status.progress only, not status."

    forbidden(trainer.patch({**mine, "phase": "Failed"}), f"{allowed}phase")
    forbidden(trainer.patch({**mine, "observedGeneration": 9}), f"{allowed}observedGeneration")
    forbidden(trainer.patch({"gpus": 8}), f"{allowed}gpus")
    forbidden(trainer.patch({**mine, "phase": None}, MERGE), f"{allowed}phase")
    forbidden(
        trainer.patch({**mine, "podName": None, "gpus": 8}, MERGE),
        f"{allowed}gpus, status.podName",
    )
    assert trainer.patch(mine) == (HTTPStatus.OK, "")
    assert namespace.get(JOBS, "job")["status"]["phase"] == "Succeeded"


def test_trainer_policy_ownership_of_other_fields_cannot_be_gained(
    namespace: Kube, trainer_of: Callable[..., Trainer]
) -> None:
    set_status(namespace, podName="job-1-0", attempt=1, reportPeriodSeconds=10)
    trainer = trainer_of("job-1-0")

    same = {**trainer.progress(), "reportPeriodSeconds": 10}
    forbidden(trainer.patch(same), "must apply status.progress only")
    forbidden(
        trainer.patch(trainer.progress(), manager="kubectl"),
        "must use the field manager ktrdr-trainer",
    )
    assert trainer.report() == (HTTPStatus.OK, "")


def test_trainer_policy_nothing_beside_status_can_be_changed_through_it(
    namespace: Kube, trainer_of: Callable[..., Trainer]
) -> None:
    trainer = trainer_of("job-1-0")
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "job-1-0", "uid": trainer.uid}
    metadata: Raw = {
        "labels": {"any": "label"},
        "annotations": {"any": "annotation"},
        "finalizers": ["example.com/stays"],
        "ownerReferences": [owner],
    }
    before = namespace.get(JOBS, "job")

    answer = trainer.patch(trainer.progress(), MERGE, metadata=metadata, spec={"cancel": True})

    assert answer == (HTTPStatus.OK, "")
    after = namespace.get(JOBS, "job")
    assert after["status"]["progress"]["podUID"] == trainer.uid
    assert not metadata.keys() & after["metadata"].keys()
    assert after["spec"] == before["spec"]


def test_trainer_policy_another_job_is_out_of_reach(
    namespace: Kube, trainer_of: Callable[..., Trainer]
) -> None:
    namespace.create(training_job("neighbour", strategy={"inline": "name: any"}))
    trainer = trainer_of("job-1-0")
    elsewhere = Trainer(
        trainer.pool, trainer.path.replace("/job/", "/neighbour/"), trainer.token, trainer.uid
    )
    forbidden(elsewhere.report(), 'the current attempt runs in pod "neighbour-1-0"')


def test_trainer_policy_a_trainer_of_another_namespace_must_not_report(
    namespace: Kube, trainer_of: Callable[..., Trainer]
) -> None:
    """Also where somebody has granted it the right, and its pod has the right name."""
    trainer = trainer_of("job-1-0")
    elsewhere = f"{namespace.namespace}-x"
    namespace.run("create", "namespace", elsewhere)
    try:
        other = Kube(namespace.kubeconfig, elsewhere, namespace.environment)
        other.create(account())
        uid = other.create(pod())["metadata"]["uid"]
        bound = ("--bound-object-kind=Pod", "--bound-object-name=job-1-0")
        token = other.run("create", "token", "ktrdr-trainer", *bound).strip()
        binding = role_binding(elsewhere)
        namespace.create({**binding, "metadata": {"name": "too-generous"}})

        forbidden(
            Trainer(trainer.pool, trainer.path, token, uid).report(),
            "must report to a TrainingJob of its own namespace",
        )
    finally:
        namespace.run("delete", "namespace", elsewhere, "--wait=false")
