"""What Helm makes of the chart, and whether the API server takes it."""

import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from kube import Kube, Raw

CHART = Path(__file__).parents[2] / "charts/ktrdr"
DIGEST = f"sha256:{'0' * 64}"

EVERYTHING: Raw = {
    "image": {"tag": f"1.2.3@{DIGEST}"},
    "imagePullSecrets": [{"name": "registry"}],
    "replicas": 3,
    "priorityClassName": "system-cluster-critical",
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "any", "operator": "Exists"}],
    "affinity": {
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 1, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname"}}
            ]
        }
    },
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "podAnnotations": {"any": "true"},
    "podLabels": {"team": "007"},
    "serviceAccount": {"annotations": {"any": "1"}},
    "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
}


def helm(cluster: Kube, *words: str, values: Raw | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["helm", *words, f"--values={'/dev/stdin' if values else CHART / 'values.yaml'}"],
        env=dict(cluster.environment),
        input=yaml.safe_dump(values) if values else None,
        capture_output=True,
        text=True,
        check=False,
    )


def render(kube: Kube, values: Raw | None = None) -> dict[str, list[Raw]]:
    """The manifests of a release with these values, by kind."""
    done = helm(
        kube, "template", "chart-test", str(CHART), f"--namespace={kube.namespace}", values=values
    )
    assert done.returncode == 0, done.stderr
    found: defaultdict[str, list[Raw]] = defaultdict(list)
    for manifest in yaml.safe_load_all(done.stdout):
        found[manifest["kind"]].append(manifest)
    return found


def test_lint_finds_nothing(cluster: Kube) -> None:
    done = helm(cluster, "lint", "--strict", str(CHART))
    assert (done.returncode, "WARNING" in done.stdout) == (0, False), done.stdout


@pytest.mark.parametrize("values", [None, EVERYTHING], ids=["defaults", "everything"])
def test_server_takes_every_manifest(kube: Kube, values: Raw | None) -> None:
    manifests = render(kube, values)
    # The server may know the one of another release, and knows no Prometheus operator.
    known = [
        manifest
        for kind, of_kind in manifests.items()
        if kind not in ("CustomResourceDefinition", "ServiceMonitor")
        for manifest in of_kind
    ]

    answer = kube.run(
        "create", "--dry-run=server", "--validate=strict", "-f-", stdin=yaml.safe_dump_all(known)
    )

    assert len(answer.splitlines()) == len(known)
    assert ("PodDisruptionBudget" in manifests, "ServiceMonitor" in manifests) == (
        (True, True) if values else (False, False)
    )


def test_watched_namespaces_limit_the_rights_of_the_operator_to_them(kube: Kube) -> None:
    manifests = render(kube, {"operator": {"watchNamespaces": ["one", "two"]}})

    assert "ClusterRoleBinding" not in manifests
    bindings: Any = [
        (binding["metadata"]["namespace"], binding["roleRef"]["name"])
        for binding in manifests["RoleBinding"]
    ]
    name = "chart-test-ktrdr-operator"
    assert sorted(bindings) == sorted(
        [("one", name), ("two", name), (kube.namespace, f"{name}-leader")]
    )


def test_operators_never_overlap_where_none_is_elected(kube: Kube) -> None:
    manifests = render(kube, {"operator": {"leaderElection": False}})

    assert manifests["Deployment"][0]["spec"]["strategy"] == {"type": "Recreate"}
    assert "Role" not in manifests  # no right to any Lease


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"imge": {}}, "additional properties 'imge' not allowed"),
        ({"replicas": 2, "operator": {"leaderElection": False}}, "/operator/leaderElection"),
        (
            {"metrics": {"service": {"enabled": False}, "serviceMonitor": {"enabled": True}}},
            "metrics.serviceMonitor.enabled needs metrics.service.enabled: set it to true",
        ),
    ],
    ids=["unknown key", "two leaders", "monitor of nothing"],
)
def test_values_that_cannot_work_are_refused_in_words(
    cluster: Kube, values: Raw, words: str
) -> None:
    done = helm(cluster, "template", "chart-test", str(CHART), values=values)

    assert done.returncode != 0
    assert words in done.stderr
