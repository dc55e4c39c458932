"""Helm with this checkout's chart."""

import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Final

import yaml

from kube import Kube, Raw

CHART: Final = Path(__file__).parents[1] / "charts/ktrdr"

NAMESPACED: Final[Raw] = {
    "crds": {"enabled": False},
    "admission": {"enabled": False},
    "rbac": {"aggregate": False},
}
"""Values of a release whose cluster part a cluster administrator has installed."""


def helm(cluster: Kube, *words: str, values: Raw | None = None) -> subprocess.CompletedProcess[str]:
    """Run helm in a cluster with values that differ from the chart's."""
    return subprocess.run(
        ["helm", *words, *(("--values=-",) if values is not None else ())],
        env={**cluster.environment, "KUBECONFIG": str(cluster.kubeconfig)},
        input=None if values is None else yaml.safe_dump(values),
        capture_output=True,
        text=True,
        check=False,
    )


def render(
    kube: Kube, values: Raw | None = None, release: str = "chart-test"
) -> dict[str, list[Raw]]:
    """The manifests of a release with these values, by kind."""
    done = helm(kube, "template", release, str(CHART), f"-n={kube.namespace}", values=values)
    assert done.returncode == 0, done.stderr
    found: defaultdict[str, list[Raw]] = defaultdict(list)
    for manifest in yaml.safe_load_all(done.stdout):
        found[manifest["kind"]].append(manifest)
    return found
