"""The admission policies of this checkout's chart on the test cluster."""

from collections.abc import Iterator

import pytest

from admission import render, serve
from kube import Kube


@pytest.fixture(scope="module")
def policy(cluster: Kube, crd: None) -> Iterator[None]:
    """The policies of this checkout's chart, under names of their own; removed afterwards."""
    manifest = render(cluster, "admission")
    cluster.run("apply", "-f-", stdin=manifest)
    yield
    cluster.run("delete", "-f-", stdin=manifest)


@pytest.fixture
def namespace(kube: Kube, policy: None) -> Kube:
    """A namespace that an operator with the chart's rights serves, with one TrainingJob."""
    serve(kube)
    return kube
