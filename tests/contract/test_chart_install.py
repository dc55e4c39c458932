"""Installations of the chart on the test cluster: rights, owners of objects, what is kept."""

import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest
import yaml

from helm import CHART, NAMESPACED, helm, render
from kube import Kube, Raw, RefusedError

TRAINER_ROLE: Raw = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRole",
    "metadata": {"name": "ktrdr-trainer"},
}


def served(kube: Kube) -> Raw:
    """Values of a release that serves its own namespace, without a pod."""
    return {**NAMESPACED, "operator": {"watchNamespaces": [kube.namespace]}, "replicas": 0}


def dry_install(kube: Kube, values: Raw) -> str:
    """Error of an installation, as a dry run that looks at the cluster; empty if there is none."""
    command = ("install", "chart-test", str(CHART), f"-n={kube.namespace}", "--dry-run=server")
    return helm(kube, *command, values=values).stderr


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    """The output of a command that must succeed."""
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.usefixtures("crd")
def test_crd_of_another_owner_stops_the_installation_with_a_remedy(kube: Kube) -> None:
    """On this cluster it belongs to another release, or was created by kubectl."""
    error = dry_install(kube, {**served(kube), "crds": {"enabled": True}})

    assert 'CustomResourceDefinition "trainingjobs.ktrdr.io" exists already and ' in error
    assert "Either use it as it is: --set crds.enabled=false" in error
    assert (
        "kubectl annotate --overwrite customresourcedefinition trainingjobs.ktrdr.io"
        f" meta.helm.sh/release-name=chart-test meta.helm.sh/release-namespace={kube.namespace}"
    ) in error
    assert dry_install(kube, served(kube)) == ""


def test_role_of_another_release_stops_the_installation_and_the_remedy_works(kube: Kube) -> None:
    kube.run("create", "role", "ktrdr-trainer", "--verb=get", "--resource=pods")
    owner = ("meta.helm.sh/release-name=other", "meta.helm.sh/release-namespace=elsewhere")
    kube.run("annotate", "role", "ktrdr-trainer", *owner)

    error = dry_install(kube, served(kube))

    assert (
        'Role "ktrdr-trainer" exists already and belongs to release "other" in namespace'
        ' "elsewhere", which is installed or was uninstalled with crds.keep'
    ) in error
    assert "remove the namespace from one of the two operator.watchNamespaces" in error
    [commands] = [line for line in error.splitlines() if "take it over: " in line]
    for command in commands.partition("take it over: ")[2].split(" && "):
        kube.run(*command.split()[1:])
    assert dry_install(kube, served(kube)) == ""


def test_cluster_role_of_another_owner_stops_the_installation_with_a_remedy(kube: Kube) -> None:
    found = kube.run("get", "clusterrole", "ktrdr-trainer", "--ignore-not-found", "-oname")
    if not found:
        kube.create(TRAINER_ROLE)
    try:
        error = dry_install(kube, NAMESPACED)
        assert 'ClusterRole "ktrdr-trainer" exists already and ' in error
        assert "its operator serves all namespaces, and only one may" in error
        assert dry_install(kube, {**NAMESPACED, "rbac": {"trainerRole": False}}) == ""
    finally:
        if not found:
            kube.run("delete", "clusterrole", "ktrdr-trainer")


def test_policy_of_another_owner_stops_the_installation_with_a_remedy(kube: Kube) -> None:
    values = {**served(kube), "admission": {"enabled": True}}
    [trainer, _] = render(kube, values)["ValidatingAdmissionPolicyBinding"]
    kube.create(trainer)
    try:
        error = dry_install(kube, values)
        assert "exists already and was not created by Helm" in error
        assert "Either use it as it is: --set admission.enabled=false" in error
    finally:
        kube.run("delete", "validatingadmissionpolicybinding", trainer["metadata"]["name"])


@pytest.fixture
def teams(cluster: Kube) -> Iterator[list[Kube]]:
    """Two namespaces."""
    kubes = [replace(cluster, namespace=f"test-{uuid.uuid4().hex[:10]}") for _ in range(2)]
    for kube in kubes:
        kube.run("create", "namespace", kube.namespace)
    yield kubes
    cluster.run("delete", "namespace", *(kube.namespace for kube in kubes), "--wait=false")


@pytest.fixture
def administrators(teams: list[Kube]) -> Iterator[list[str]]:
    """The administrator of each namespace, on a cluster that allows them to install operators."""
    values = {"operator": {"enabled": False}, "rbac": {"namespaceInstall": True}}
    roles = yaml.safe_dump_all(render(teams[0], values)["ClusterRole"])
    teams[0].run("apply", "-f-", stdin=roles)
    users = [f"admin-of-{kube.namespace}" for kube in teams]
    for kube, user in zip(teams, users, strict=True):
        kube.run("create", "rolebinding", "admin", "--clusterrole=admin", f"--user={user}")
        wait_for_rights(kube, user)
    yield users
    teams[0].run("delete", "-f-", stdin=roles)


def wait_for_rights(kube: Kube, user: str) -> None:
    """A controller extends the built-in role admin a moment after the roles were created."""
    question = ("auth", "can-i", "patch", "trainingjobs.ktrdr.io/job", "--subresource=status")
    deadline = time.monotonic() + 15
    while True:
        try:
            kube.run(*question, f"--as={user}")
        except RefusedError:
            assert time.monotonic() < deadline, f"{user} has no right to status after 15 s"
            time.sleep(0.1)
        else:
            return


@pytest.mark.usefixtures("crd")
def test_two_teams_install_an_operator_each_without_cluster_rights(
    teams: list[Kube], administrators: list[str]
) -> None:
    for kube, user in zip(teams, administrators, strict=True):
        where = (f"-n={kube.namespace}", f"--kube-as-user={user}")
        install = ("install", "ktrdr", str(CHART), *where)
        succeeded(helm(kube, *install, values=served(kube)))

    for kube, user in zip(teams, administrators, strict=True):
        where = (f"-n={kube.namespace}", f"--kube-as-user={user}")
        succeeded(helm(kube, "upgrade", "ktrdr", str(CHART), *where, values=served(kube)))
        succeeded(helm(kube, "uninstall", "ktrdr", *where))


def test_notes_warn_where_no_release_has_installed_the_crd(cluster: Kube) -> None:
    command = ("install", "chart-test", str(CHART), "--dry-run=client")
    notes = succeeded(helm(cluster, *command, values=NAMESPACED))
    assert "WARNING: this cluster does not know TrainingJobs" in notes


@pytest.mark.usefixtures("crd")
def test_uninstall_keeps_the_guard_of_running_trainers_and_says_so(kube: Kube) -> None:
    values = {**served(kube), "admission": {"enabled": True}}
    install = ("install", "ktrdr", str(CHART), f"-n={kube.namespace}")
    notes = succeeded(helm(kube, *install, values=values))
    policy = f"{kube.namespace}.ktrdr-trainer"
    kinds = ("validatingadmissionpolicy", "validatingadmissionpolicybinding")
    assert "WARNING" not in notes  # the cluster has the CustomResourceDefinition
    removal = [line.split() for line in notes.splitlines() if line.startswith("  kubectl delete ")]

    succeeded(helm(kube, "uninstall", "ktrdr", f"-n={kube.namespace}"))

    kept = kube.run("get", ",".join(kinds), "-oname").split()
    assert [name for name in kept if kube.namespace in name] == [
        f"{kind}.admissionregistration.k8s.io/{policy}" for kind in kinds
    ]
    assert kube.run("get", "role", "-oname").split() == [
        "role.rbac.authorization.k8s.io/ktrdr-trainer"
    ]
    succeeded(helm(kube, *install, values=values))  # the same release adopts them again
    succeeded(helm(kube, "uninstall", "ktrdr", f"-n={kube.namespace}"))

    for command in removal:
        kube.run(*command[1:])
    left = kube.run("get", f"{','.join(kinds)},role", "-oname").split()
    assert [name for name in left if kube.namespace in name or "role" in name] == []
