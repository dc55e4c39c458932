"""The release under test and a namespace with data, once per session."""

import shutil
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from demo.claims import files_pod
from demo.console import Console
from demo.demo_environment import (
    DATA_CLAIM,
    DEMO_NAMESPACE,
    MODELS_CLAIM,
    DemoEnvironment,
    install,
    make_claims,
    make_namespace,
    market_data,
)
from e2e.bad_bars import write_folders
from e2e.job_namespace import QUICK, JobNamespace
from kube import Kube


@pytest.fixture(scope="session")
def demo_environment(cluster: Kube) -> Iterator[DemoEnvironment]:
    """The release of this checkout's chart, with an operator that waits only briefly."""
    found = DemoEnvironment(cluster, Console(colours=False))
    make_namespace(cluster, DEMO_NAMESPACE)  # the chart puts its strategies there
    install(found, *QUICK)
    yield found
    install(found)


@pytest.fixture(scope="session")
def namespace(
    demo_environment: DemoEnvironment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[JobNamespace]:
    """A namespace with real bars and damaged ones."""
    kube = replace(demo_environment.kube, namespace=f"e2e-{uuid.uuid4().hex[:8]}")
    make_namespace(kube, kube.namespace)
    make_claims(kube)
    data = tmp_path_factory.mktemp("bars")
    good = market_data(demo_environment.console) / "BTC_1h.csv"
    shutil.copy(good, data)
    write_folders(good, data)
    claims = {"/data": DATA_CLAIM, "/output": MODELS_CLAIM}
    # Less than pytest's own limit, so that the error has the cluster's reason.
    with files_pod(kube, demo_environment.trainer_image, claims, seconds=90) as pod:
        pod.load(data, "/data")
        yield JobNamespace(demo_environment, kube, pod)
    kube.run("delete", "namespace", kube.namespace, "--wait=false")
    volumes = (f"{kube.namespace}-{claim}" for claim in (DATA_CLAIM, MODELS_CLAIM))
    kube.run("delete", "pv", *volumes, "--ignore-not-found", "--wait=false")
    _remove_folders(kube)


def _remove_folders(kube: Kube) -> None:
    folder = Path(kube.kubeconfig).parent / "volumes" / kube.namespace
    if folder.exists():
        shutil.rmtree(folder)
