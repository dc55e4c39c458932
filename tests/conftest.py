"""What all tiers share: the cluster that tests may write to, and a fresh namespace on it."""

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ktrdr_api import names
from ktrdr_api.crd import CRD_FILE, build
from kube import Kube, RefusedError

ROOT = Path(__file__).parents[1]
DEFAULT_KUBECONFIG = Path("/var/tmp/ktrdr-cluster/kubeconfig")  # noqa: S108 - cluster.sh's place


@pytest.fixture(scope="session")
def tool_environment() -> dict[str, str]:
    """The environment with kubectl and helm on PATH, the project's own first."""
    done = subprocess.run(
        [ROOT / "tests/cluster/cluster.sh", "bin"], capture_output=True, text=True, check=False
    )
    folders = [done.stdout.strip()] if done.returncode == 0 else []
    return {**os.environ, "PATH": os.pathsep.join([*folders, os.environ["PATH"]])}


@pytest.fixture(scope="session")
def cluster(tool_environment: dict[str, str]) -> Kube:
    """The test cluster, in namespace `default`. No cluster is a failure: a skip proves nothing."""
    kubeconfig = Path(os.environ.get("KTRDR_TEST_KUBECONFIG", DEFAULT_KUBECONFIG))
    kube = Kube(kubeconfig, "default", tool_environment)
    try:
        kube.run("get", "--raw=/readyz", "--request-timeout=10s")
    except RefusedError as error:
        pytest.fail(
            f"no cluster at {kubeconfig}: run `make cluster-up`, or let KTRDR_TEST_KUBECONFIG name"
            f" another one ({error})",
            pytrace=False,
        )
    return kube


@pytest.fixture
def kube(cluster: Kube) -> Iterator[Kube]:
    """A fresh namespace that enforces the restricted pod security standard."""
    name = f"test-{uuid.uuid4().hex[:10]}"
    cluster.create(
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": name,
                "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
            },
        }
    )
    yield replace(cluster, namespace=name)
    cluster.run("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def crd(cluster: Kube) -> Iterator[None]:
    """The CRD of this checkout on the test cluster."""
    resource = f"customresourcedefinition/{names.RESOURCE}"
    found = cluster.run("get", resource, "--ignore-not-found", "-ojson")
    if not found:
        cluster.run("create", f"-f{ROOT / CRD_FILE}")
        cluster.run("wait", "--for=condition=Established", resource, "--timeout=10s")
    elif json.loads(found)["spec"]["versions"] != build()["spec"]["versions"]:
        pytest.fail(
            f"the cluster's {names.RESOURCE} is not this checkout's: run `make cluster-up`",
            pytrace=False,
        )
    yield
    if not found:
        cluster.run("delete", resource, "--timeout=60s")
