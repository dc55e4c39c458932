"""Install, upgrade and uninstall the chart under running jobs.

Last, because it changes the release: the modules of this tier run in the order of their names.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.claims import files_pod
from demo.console import run
from demo.demo_environment import (
    CHART,
    DATA_CLAIM,
    MODELS_CLAIM,
    RELEASE,
    ROOT,
    SYSTEM_NAMESPACE,
    VALUES,
    cluster_script,
    install,
    make_claims,
    make_namespace,
    market_data,
)
from e2e.job_namespace import LONG, QUICK, RESOURCE, JobNamespace, strategy, true_conditions
from kube import RefusedError

DEPLOYMENT = f"{RELEASE}-operator"


@pytest.fixture
def release(namespace: JobNamespace) -> Iterator[JobNamespace]:
    """Whatever a test does to the release, the next one finds it as before."""
    yield namespace
    install(namespace.demo_environment, *QUICK)


def _helm(namespace: JobNamespace, *words: str) -> str:
    where = (f"--kubeconfig={namespace.kube.kubeconfig}", f"--namespace={SYSTEM_NAMESPACE}")
    return run("helm", *words, *where, env=namespace.kube.environment).decode()


def test_operator_logs_no_traceback(namespace: JobNamespace) -> None:
    """After all that the modules before this one did to it."""
    system = namespace.demo_environment.namespaced(SYSTEM_NAMESPACE)

    assert "Traceback" not in system.run("logs", f"deployment/{DEPLOYMENT}", "--tail=-1")


def test_upgrade_replaces_the_operator_and_running_jobs_continue(release: JobNamespace) -> None:
    name = "through-upgrade"
    release.start(name, strategy(epochs=1500))
    release.until(name, lambda s: s.get("progress", {}).get("stage") == "Training")

    install(release.demo_environment, *QUICK, "--set=operator.workers=8")

    system = release.demo_environment.namespaced(SYSTEM_NAMESPACE)
    container = system.get("deployment", DEPLOYMENT)["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "KTRDR_WORKERS", "value": "8"} in container["env"]
    status = release.finished(name)
    assert true_conditions(status) == {"Complete", "Finished"}
    assert (status["attempt"], status["retries"]) == (1, 0)
    release.remove(name)


def test_operator_with_rights_in_one_namespace_runs_jobs_there(
    release: JobNamespace,
) -> None:
    only = f"--set=operator.watchNamespaces={{{release.kube.namespace}}}"
    install(release.demo_environment, *QUICK, only)

    bindings = json.loads(release.kube.run("get", "clusterrolebindings", "-ojson"))["items"]
    assert DEPLOYMENT not in {binding["roleRef"]["name"] for binding in bindings}
    name = "in-its-namespace"
    release.start(name, strategy(epochs=1))
    assert true_conditions(release.finished(name)) == {"Complete", "Finished"}
    release.remove(name)


TEAMS = ("team-a", "team-b")


@pytest.fixture
def teams(release: JobNamespace, tmp_path: Path) -> Iterator[dict[str, JobNamespace]]:
    """Two releases of one name in two namespaces, with rights in these alone."""
    only = f"--set=operator.watchNamespaces={{{release.kube.namespace}}}"
    install(release.demo_environment, *QUICK, only)  # the one of this tier leaves them alone
    found = {}
    shutil.copy(market_data(release.demo_environment.console) / "BTC_1h.csv", tmp_path)
    for team in TEAMS:
        kube = release.demo_environment.namespaced(f"{release.kube.namespace}-{team}")
        make_namespace(kube, kube.namespace)
        make_claims(kube)
        with files_pod(
            kube, release.demo_environment.trainer_image, {"/data": DATA_CLAIM}
        ) as files:
            files.load(tmp_path, "/data")
            found[team] = JobNamespace(release.demo_environment, kube, files)
        install_for_team(release, kube.namespace)
    yield found
    for namespace in found.values():
        where = (
            f"--kubeconfig={namespace.kube.kubeconfig}",
            f"--namespace={namespace.kube.namespace}",
        )
        run("helm", "uninstall", RELEASE, *where, env=namespace.kube.environment)
        namespace.kube.run("delete", "namespace", namespace.kube.namespace, "--wait=false")
        for claim in (DATA_CLAIM, MODELS_CLAIM):
            name = f"{namespace.kube.namespace}-{claim}"
            namespace.kube.run("delete", "pv", name, "--ignore-not-found", "--wait=false")


def install_for_team(release: JobNamespace, namespace: str) -> None:
    """What a team's administrator installs where a cluster administrator has installed the CRD."""
    words = (
        "--set=crds.enabled=false",
        "--set=admission.enabled=false",
        "--set=rbac.aggregate=false",
        "--set=strategies.enabled=false",
        f"--set=operator.watchNamespaces={{{namespace}}}",
    )
    where = (f"--kubeconfig={release.kube.kubeconfig}", f"--namespace={namespace}")
    command = ("helm", "install", RELEASE, str(CHART), f"--values={VALUES}", *words, *where)
    run(*command, "--wait", "--timeout=120s", env=release.kube.environment)


def test_two_namespaced_installations_work_side_by_side(
    teams: dict[str, JobNamespace],
) -> None:
    for namespace in teams.values():
        namespace.start("job", strategy(epochs=1))
    for namespace in teams.values():
        assert true_conditions(namespace.finished("job")) == {"Complete", "Finished"}
        own = namespace.kube.namespace
        account = f"system:serviceaccount:{own}:{DEPLOYMENT}"
        for elsewhere in (*(other.kube.namespace for other in teams.values()), "default"):
            allowed = can_create_pods(namespace, account, elsewhere)
            assert allowed == (elsewhere == own), elsewhere


def can_create_pods(namespace: JobNamespace, account: str, target: str) -> bool:
    """Whether RBAC lets an account create pods in a namespace."""
    words = ("auth", "can-i", "create", "pods", f"--as={account}", f"--namespace={target}")
    try:
        return namespace.kube.run(*words).strip() == "yes"
    except RefusedError:  # kubectl says no with exit code 1
        return False


def test_trainers_above_the_report_budget_report_less_often(release: JobNamespace) -> None:
    install(release.demo_environment, *QUICK, "--set=operator.reportWritesPerSecond=1")
    pair = ("paced", "paced-too")
    for name in pair:
        release.start(name, strategy(epochs=LONG))

    for name in pair:
        release.until(name, lambda s: s.get("reportPeriodSeconds") == len(pair))

    steps = set()
    with release.watch(pair[0], 8) as events:
        for _, job in events:
            steps.add(job["status"].get("progress", {}).get("step"))
    assert 2 <= len(steps) <= 6, steps  # its epochs of milliseconds would be told twice a second
    for name in pair:
        release.cancel(name)
    for name in pair:
        assert "reportPeriodSeconds" not in release.finished(name)
        release.remove(name)


def test_uninstall_keeps_jobs_and_a_new_install_continues_them(release: JobNamespace) -> None:
    keep, drop = "kept", "deleted-alone"
    for name in (keep, drop):
        release.start(name, strategy(epochs=LONG))
    for name in (keep, drop):
        release.until(name, lambda s: s.get("progress", {}).get("stage") == "Training")

    _helm(release, "uninstall", RELEASE, "--wait")

    assert release.kube.get(RESOURCE, keep)["status"]["phase"] == "Running"
    release.remove(drop)  # without an operator: the garbage collector does it
    release.cancel(keep)
    install(release.demo_environment, *QUICK)
    status = release.finished(keep)
    assert true_conditions(status) == {"Failed", "Cancelled", "Finished"}
    assert status["cancellation"]["checkpoint"]["digest"]
    release.remove(keep)


def test_operator_from_the_built_image_runs_a_job(release: JobNamespace, tmp_path: Path) -> None:
    archive = tmp_path / "operator.tar"
    subprocess.run(
        [ROOT / "tests/cluster/images.sh", "operator", archive],
        check=True,
        env=dict(release.kube.environment),
    )
    cluster_script("load", archive)

    install(release.demo_environment, *QUICK, "--set=image.tag=built")

    system = release.demo_environment.namespaced(SYSTEM_NAMESPACE)
    answer = json.loads(
        system.run("get", "pods", "-lapp.kubernetes.io/component=operator", "-ojson")
    )
    live = [pod for pod in answer["items"] if "deletionTimestamp" not in pod["metadata"]]
    assert [pod["spec"]["containers"][0]["image"] for pod in live] == ["ktrdr.io/operator:built"]
    name = "by-built-image"
    release.start(name, strategy(epochs=1))
    assert true_conditions(release.finished(name)) == {"Complete", "Finished"}
    release.remove(name)
