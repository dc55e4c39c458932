"""What Helm renders from the chart, and whether the API server accepts it."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import yaml

from helm import CHART, NAMESPACED, helm, render
from kube import Kube, Raw

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
    "podSecurityContext": {"runAsUser": 5000, "runAsGroup": 5000},
    "trainer": {
        "imagePullSecrets": [{"name": "registry"}],
        "podLabels": {"team": "quants"},
        "podAnnotations": {"sidecar.istio.io/inject": "false"},
        "runAsUser": 5000,
        "fsGroup": 5000,
    },
    "admission": {"operatorAccounts": ["team-a/ktrdr-operator"]},
    "rbac": {"namespaceInstall": True},
    "networkPolicy": {"enabled": True, "from": [{"podSelector": {}}]},
    "flowSchema": {"enabled": True},
    "serviceAccount": {"annotations": {"any": "1"}},
    "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
}


CLUSTER_SCOPED = {
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "FlowSchema",
    "Namespace",
    "PriorityClass",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}
Id = tuple[str, str, str]


def ids(manifests: dict[str, list[Raw]]) -> set[Id]:
    """Kind, namespace (empty for a cluster-scoped kind) and name of every object, none twice."""
    found: Counter[Id] = Counter()
    for kind, of_kind in manifests.items():
        for manifest in of_kind:
            metadata = manifest["metadata"]
            assert ("namespace" not in metadata) == (kind in CLUSTER_SCOPED), (kind, metadata)
            found[kind, metadata.get("namespace", ""), metadata["name"]] += 1
    assert set(found.values()) == {1}
    return set(found)


def environment(manifests: dict[str, list[Raw]]) -> dict[str, str]:
    """The variables of the operator's container."""
    container = manifests["Deployment"][0]["spec"]["template"]["spec"]["containers"][0]
    return {entry["name"]: entry.get("value", "") for entry in container["env"]}


def role(manifests: dict[str, list[Raw]], kind: str, name: str) -> dict[str, list[str]]:
    """What a role grants: verbs by resource."""
    [found] = [role for role in manifests[kind] if role["metadata"]["name"] == name]
    return {
        ",".join(f"{resource}.{group}".rstrip(".") for resource in rule["resources"]): rule["verbs"]
        for rule in found["rules"]
        for group in rule["apiGroups"]
    }


def team(cluster: Kube, name: str) -> Kube:
    """A namespace that need not exist, for `helm template`."""
    return replace(cluster, namespace=name)


def test_chart_lint_finds_no_problem(cluster: Kube) -> None:
    done = helm(cluster, "lint", "--strict", str(CHART))
    assert (done.returncode, "WARNING" in done.stdout) == (0, False), done.stdout
    assert "symbolic link" not in done.stdout + done.stderr


@pytest.mark.parametrize("values", [None, EVERYTHING], ids=["defaults", "everything"])
def test_chart_every_manifest_is_accepted_by_the_server(kube: Kube, values: Raw | None) -> None:
    manifests = render(kube, values)
    # The server may have those of another release, and does not know the Prometheus operator.
    known = [
        manifest
        for kind, of_kind in manifests.items()
        if kind not in ("CustomResourceDefinition", "ServiceMonitor")
        for manifest in of_kind
        if manifest["metadata"]["name"] != "ktrdr-trainer"
    ]

    answer = kube.run(
        "create", "--dry-run=server", "--validate=strict", "-f-", stdin=yaml.safe_dump_all(known)
    )

    assert len(answer.splitlines()) == len(known)
    extra = ("PodDisruptionBudget", "ServiceMonitor", "NetworkPolicy", "FlowSchema")
    assert [kind in manifests for kind in extra] == [bool(values)] * 4


def test_chart_rights_of_operator_and_trainer_are_minimal(cluster: Kube) -> None:
    manifests = render(team(cluster, "ops"))

    assert role(manifests, "ClusterRole", "ops.chart-test-ktrdr-operator") == {
        "trainingjobs.ktrdr.io": ["get", "list", "watch", "delete"],
        "trainingjobs/status.ktrdr.io": ["get", "patch"],
        "trainingjobs/finalizers.ktrdr.io": ["update"],
        "pods": ["get", "list", "watch", "create", "delete"],
        "configmaps,serviceaccounts": ["get", "create"],
        "rolebindings.rbac.authorization.k8s.io": ["get", "create"],
        "events": ["create", "list"],
    }
    assert role(manifests, "ClusterRole", "ktrdr-trainer") == {
        "trainingjobs.ktrdr.io": ["get", "watch"],
        "trainingjobs/status.ktrdr.io": ["get", "patch"],
    }
    assert environment(manifests)["KTRDR_TRAINER_ROLE_KIND"] == "ClusterRole"
    [lease] = [rule for rule in manifests["Role"][0]["rules"] if "resourceNames" in rule]
    assert lease["resourceNames"] == [environment(manifests)["KTRDR_LEASE_NAME"]]


def test_chart_with_watch_namespaces_has_no_object_outside_them(cluster: Kube) -> None:
    values = {**NAMESPACED, "operator": {"watchNamespaces": ["one", "two"]}}
    manifests = render(team(cluster, "ops"), values)

    assert not CLUSTER_SCOPED & manifests.keys()
    name = "chart-test-ktrdr-operator"
    places = {namespace for kind, namespace, found in ids(manifests) if found == "ktrdr-trainer"}
    assert places == {"one", "two"}
    bindings = {
        (binding["metadata"]["namespace"], binding["roleRef"]["kind"], binding["roleRef"]["name"])
        for binding in manifests["RoleBinding"]
    }
    assert bindings == {
        ("one", "Role", name),
        ("two", "Role", name),
        ("ops", "Role", f"{name}-leader"),
    }
    assert environment(manifests)["KTRDR_TRAINER_ROLE_KIND"] == "Role"


def test_chart_two_namespaced_releases_of_one_name_share_no_object(cluster: Kube) -> None:
    first, second = (
        ids(
            render(
                team(cluster, name),
                {**NAMESPACED, "operator": {"watchNamespaces": [name]}},
                release="ktrdr",
            )
        )
        for name in ("team-a", "team-b")
    )
    assert (first & second, len(first)) == (set(), len(second))
    assert {namespace for _, namespace, _ in first} == {"team-a"}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("team-a", "ktrdr"), ("team-b", "ktrdr")),
        (("team", "a-ktrdr"), ("team-a", "ktrdr")),
        (("ops", f"{'ktrdr-' * 8}a"), ("ops", f"{'ktrdr-' * 8}b")),
        (("ops", "my.ktrdr"), ("ops", "my-ktrdr")),
    ],
    ids=["namespaces", "dashes", "long", "dots"],
)
def test_chart_names_of_two_releases_differ(
    cluster: Kube, first: tuple[str, str], second: tuple[str, str]
) -> None:
    values = {"strategies": {"enabled": False}}
    both = [ids(render(team(cluster, ns), values, release)) for ns, release in (first, second)]

    common = {"trainingjobs.ktrdr.io", "ktrdr-trainer"}
    assert {name for _, _, name in both[0] & both[1]} == common
    names = [name for found in both for kind, _, name in found if kind not in CLUSTER_SCOPED]
    assert [name for name in names if len(name) > 63 or "." in name] == []


def test_chart_two_releases_in_one_namespace_have_two_leases(cluster: Kube) -> None:
    leases = {
        environment(render(team(cluster, "ops"), release=release))["KTRDR_LEASE_NAME"]
        for release in ("ktrdr-one", "ktrdr-two")
    }
    assert leases == {"ktrdr-one-operator", "ktrdr-two-operator"}


def test_chart_cluster_part_has_no_operator(cluster: Kube) -> None:
    values = {
        "operator": {"enabled": False},
        "rbac": {"namespaceInstall": True},
        "admission": {"operatorAccounts": ["team-a/ktrdr-operator"]},
    }
    manifests = render(team(cluster, "ops"), values, release="ktrdr")

    assert {(kind, name) for kind, _, name in ids(manifests)} == {
        ("CustomResourceDefinition", "trainingjobs.ktrdr.io"),
        *(
            (f"ValidatingAdmissionPolicy{kind}", f"ops.ktrdr-{who}")
            for kind in ("", "Binding")
            for who in ("trainer", "operator")
        ),
        *(("ClusterRole", f"ops.ktrdr-{name}") for name in ("view", "edit", "install")),
    }
    policies = {
        found["metadata"]["name"]: found for found in manifests["ValidatingAdmissionPolicy"]
    }
    [condition] = policies["ops.ktrdr-operator"]["spec"]["matchConditions"]
    users = '["system:serviceaccount:team-a:ktrdr-operator"]'
    assert condition["expression"] == f"request.userInfo.username in {users}"


@pytest.mark.parametrize("keep", [True, False])
def test_chart_objects_of_running_trainers_are_kept_with_the_crd(cluster: Kube, keep: bool) -> None:
    manifests = render(team(cluster, "ops"), {"crds": {"keep": keep}}, release="ktrdr")

    kept = {
        (kind, manifest["metadata"]["name"])
        for kind, of_kind in manifests.items()
        for manifest in of_kind
        if "helm.sh/resource-policy" in manifest["metadata"].get("annotations", {})
    }
    all_of_it = {
        ("CustomResourceDefinition", "trainingjobs.ktrdr.io"),
        ("ClusterRole", "ktrdr-trainer"),
        ("ValidatingAdmissionPolicy", "ops.ktrdr-trainer"),
        ("ValidatingAdmissionPolicyBinding", "ops.ktrdr-trainer"),
    }
    assert kept == (all_of_it if keep else set())


def test_chart_null_leaves_user_and_group_to_the_cluster(cluster: Kube) -> None:
    ids_of: Raw = {"runAsUser": None, "runAsGroup": None}
    values = {
        "podSecurityContext": ids_of,
        "trainer": {"runAsUser": None, "fsGroup": None},
    }
    given, default = render(cluster, values), render(cluster)

    contexts = [
        manifests["Deployment"][0]["spec"]["template"]["spec"]["securityContext"]
        for manifests in (given, default)
    ]
    restricted = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert contexts == [restricted, {**restricted, "runAsUser": 10001, "runAsGroup": 10001}]
    names = ("KTRDR_TRAINER_RUN_AS_USER", "KTRDR_TRAINER_FS_GROUP")
    assert [environment(given)[name] for name in names] == ["none", "none"]
    assert [environment(default)[name] for name in names] == ["10001", "10001"]


def test_chart_values_of_trainer_pods_reach_the_operator(cluster: Kube) -> None:
    trainer: Raw = {
        "imagePullSecrets": [{"name": "one"}, {"name": "two"}],
        "podLabels": {"team": "quants"},
        "podAnnotations": {"sidecar.istio.io/inject": "false"},
        "inheritedLabels": [],
        "inheritedAnnotations": ["example.com/a", "example.com/b"],
    }
    found = environment(render(cluster, {"trainer": trainer}))

    assert found["KTRDR_TRAINER_IMAGE_PULL_SECRETS"] == "one,two"
    assert json.loads(found["KTRDR_TRAINER_POD_LABELS"]) == trainer["podLabels"]
    assert json.loads(found["KTRDR_TRAINER_POD_ANNOTATIONS"]) == trainer["podAnnotations"]
    # Not empty: the operator takes an empty variable for its default, and a comma for no key.
    assert found["KTRDR_TRAINER_INHERITED_LABELS"] == ","
    assert found["KTRDR_TRAINER_INHERITED_ANNOTATIONS"] == "example.com/a,example.com/b"


def test_chart_large_numbers_are_written_without_exponent(cluster: Kube) -> None:
    """YAML numbers are floats in Helm: 1000000 would become 1e+06."""
    assert environment(render(cluster))["KTRDR_REPORT_BYTES_PER_SECOND"] == "1000000"


def test_chart_without_leader_election_never_runs_two_operators(cluster: Kube) -> None:
    manifests = render(cluster, {"operator": {"leaderElection": False}})

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
        ({"serviceAccount": {"create": False}}, "set serviceAccount.name to the ServiceAccount"),
        (
            {"trainer": {"podLabels": {"ktrdr.io/job": "x"}}},
            'trainer.podLabels: "ktrdr.io/job" is set by the operator',
        ),
        (
            {"trainer": {"inheritedLabels": ["app.kubernetes.io/name"]}},
            'trainer.inheritedLabels: "app.kubernetes.io/name" is set by the operator',
        ),
    ],
    ids=["unknown key", "two leaders", "monitor of nothing", "account", "label", "inherited"],
)
def test_chart_invalid_values_are_rejected_with_a_remedy(
    cluster: Kube, values: Raw, words: str
) -> None:
    done = helm(cluster, "template", "chart-test", str(CHART), values=values)

    assert done.returncode != 0
    assert words in done.stderr
