"""What the demo says when the cluster does not do what it hoped for."""

import pytest

from demo.claims import files_pod
from demo.console import DemoError
from kube import Kube


def test_files_pod_that_cannot_start_names_the_cause_and_is_not_left_behind(kube: Kube) -> None:
    with (
        pytest.raises(DemoError, match=r'not ready within 5 s: .*"none\.invalid/none:1"'),
        files_pod(kube, "none.invalid/none:1", {}, seconds=5),
    ):
        pytest.fail("a pod without an image became ready")

    kube.run("wait", "--for=delete", "pod/files", "--timeout=10s")
