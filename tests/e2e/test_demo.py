"""The demo where the cluster is a person's own, or does not do what it hoped for."""

import uuid

import pytest

from demo.claims import files_pod
from demo.console import Console, DemoError
from demo.demo_environment import (
    DemoEnvironment,
    is_ours,
    make_namespace,
    refuse_what_is_not_ours,
    remove_namespace,
)
from e2e.job_namespace import RESOURCE, JobNamespace
from kube import Kube


def test_files_pod_that_cannot_start_names_the_cause_and_is_deleted(kube: Kube) -> None:
    with (
        pytest.raises(DemoError, match=r'not ready within 20 s: .*"none\.invalid/none:1"'),
        files_pod(kube, "none.invalid/none:1", {}, seconds=20),
    ):
        pytest.fail("a pod without an image became ready")

    kube.run("wait", "--for=delete", "pod/files", "--timeout=10s")


@pytest.mark.usefixtures("namespace")  # the product is installed
def test_demo_on_cluster_with_the_product_is_rejected_and_changes_nothing(kube: Kube) -> None:
    absent = "none-of-this-name"

    with pytest.raises(DemoError, match=f"has {kube.namespace} and {RESOURCE} already"):
        refuse_what_is_not_ours(kube, (absent, kube.namespace))

    remove_namespace(DemoEnvironment(kube, Console(colours=False)), kube.namespace)
    assert "deletionTimestamp" not in kube.get("namespace", kube.namespace)["metadata"]


def test_demo_own_namespace_is_reused_and_removed(
    namespace: JobNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"ours-{uuid.uuid4().hex[:8]}"
    make_namespace(namespace.kube, name)

    monkeypatch.delenv("KTRDR_HELM_VALUES", raising=False)
    with pytest.raises(DemoError, match="let KTRDR_HELM_VALUES name a file"):
        refuse_what_is_not_ours(namespace.kube, (name,))
    monkeypatch.setenv("KTRDR_HELM_VALUES", "values.yaml")
    refuse_what_is_not_ours(namespace.kube, (name,))
    remove_namespace(namespace.demo_environment, name)

    assert is_ours(namespace.kube, name) is None
