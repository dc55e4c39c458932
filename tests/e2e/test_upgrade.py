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
from demo.place import (
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
from e2e.workbench import LONG, QUICK, RESOURCE, Workbench, strategy, true_conditions
from kube import RefusedError

DEPLOYMENT = f"{RELEASE}-operator"


@pytest.fixture
def release(bench: Workbench) -> Iterator[Workbench]:
    """Whatever a test does to the release, the next one finds it as before."""
    yield bench
    install(bench.place, *QUICK)


def _helm(bench: Workbench, *words: str) -> str:
    where = (f"--kubeconfig={bench.kube.kubeconfig}", f"--namespace={SYSTEM_NAMESPACE}")
    return run("helm", *words, *where, env=bench.kube.environment).decode()


def test_operator_has_logged_no_traceback(bench: Workbench) -> None:
    """After all that the modules before this one did to it."""
    system = bench.place.namespaced(SYSTEM_NAMESPACE)

    assert "Traceback" not in system.run("logs", f"deployment/{DEPLOYMENT}", "--tail=-1")


def test_upgrade_replaces_the_operator_and_no_job_notices(release: Workbench) -> None:
    name = "through-upgrade"
    release.start(name, strategy(epochs=1500))
    release.until(name, lambda s: s.get("progress", {}).get("stage") == "Training")

    install(release.place, *QUICK, "--set=operator.workers=8")

    system = release.place.namespaced(SYSTEM_NAMESPACE)
    container = system.get("deployment", DEPLOYMENT)["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "KTRDR_WORKERS", "value": "8"} in container["env"]
    status = release.finished(name)
    assert true_conditions(status) == {"Complete", "Finished"}
    assert (status["attempt"], status["retries"]) == (1, 0)
    release.remove(name)


def test_operator_with_rights_in_one_namespace_only_runs_the_jobs_there(
    release: Workbench,
) -> None:
    only = f"--set=operator.watchNamespaces={{{release.kube.namespace}}}"
    install(release.place, *QUICK, only)

    bindings = json.loads(release.kube.run("get", "clusterrolebindings", "-ojson"))["items"]
    assert DEPLOYMENT not in {binding["roleRef"]["name"] for binding in bindings}
    name = "in-its-namespace"
    release.start(name, strategy(epochs=1))
    assert true_conditions(release.finished(name)) == {"Complete", "Finished"}
    release.remove(name)


TEAMS = ("team-a", "team-b")


@pytest.fixture
def teams(release: Workbench, tmp_path: Path) -> Iterator[dict[str, Workbench]]:
    """Two releases of one name in two namespaces, with rights in these alone."""
    only = f"--set=operator.watchNamespaces={{{release.kube.namespace}}}"
    install(release.place, *QUICK, only)  # the one of this tier leaves them alone
    found = {}
    shutil.copy(market_data(release.place.console) / "BTC_1h.csv", tmp_path)
    for team in TEAMS:
        kube = release.place.namespaced(f"{release.kube.namespace}-{team}")
        make_namespace(kube, kube.namespace)
        make_claims(kube)
        with files_pod(kube, release.place.trainer_image, {"/data": DATA_CLAIM}) as files:
            files.load(tmp_path, "/data")
            found[team] = Workbench(release.place, kube, files)
        install_for_team(release, kube.namespace)
    yield found
    for bench in found.values():
        where = (f"--kubeconfig={bench.kube.kubeconfig}", f"--namespace={bench.kube.namespace}")
        run("helm", "uninstall", RELEASE, *where, env=bench.kube.environment)
        bench.kube.run("delete", "namespace", bench.kube.namespace, "--wait=false")
        for claim in (DATA_CLAIM, MODELS_CLAIM):
            name = f"{bench.kube.namespace}-{claim}"
            bench.kube.run("delete", "pv", name, "--ignore-not-found", "--wait=false")


def install_for_team(release: Workbench, namespace: str) -> None:
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


def test_two_installations_with_rights_in_one_namespace_each_work_side_by_side(
    teams: dict[str, Workbench],
) -> None:
    for bench in teams.values():
        bench.start("job", strategy(epochs=1))
    for bench in teams.values():
        assert true_conditions(bench.finished("job")) == {"Complete", "Finished"}
        namespace = bench.kube.namespace
        account = f"system:serviceaccount:{namespace}:{DEPLOYMENT}"
        for elsewhere in (*(other.kube.namespace for other in teams.values()), "default"):
            allowed = can_create_pods(bench, account, elsewhere)
            assert allowed == (elsewhere == namespace), elsewhere


def can_create_pods(bench: Workbench, account: str, namespace: str) -> bool:
    """Whether RBAC lets an account create pods in a namespace."""
    words = ("auth", "can-i", "create", "pods", f"--as={account}", f"--namespace={namespace}")
    try:
        return bench.kube.run(*words).strip() == "yes"
    except RefusedError:  # kubectl says no with exit code 1
        return False


def test_trainers_report_less_often_where_the_limit_asks_for_it(release: Workbench) -> None:
    install(release.place, *QUICK, "--set=operator.reportWritesPerSecond=1")
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


def test_uninstall_keeps_jobs_and_a_new_install_goes_on_with_them(release: Workbench) -> None:
    keep, drop = "kept", "deleted-alone"
    for name in (keep, drop):
        release.start(name, strategy(epochs=LONG))
    for name in (keep, drop):
        release.until(name, lambda s: s.get("progress", {}).get("stage") == "Training")

    _helm(release, "uninstall", RELEASE, "--wait")

    assert release.kube.get(RESOURCE, keep)["status"]["phase"] == "Running"
    release.remove(drop)  # without an operator: the garbage collector does it
    release.cancel(keep)
    install(release.place, *QUICK)
    status = release.finished(keep)
    assert true_conditions(status) == {"Failed", "Cancelled", "Finished"}
    assert status["cancellation"]["checkpoint"]["digest"]
    release.remove(keep)


def test_operator_from_the_built_image_runs_a_job(release: Workbench, tmp_path: Path) -> None:
    archive = tmp_path / "operator.tar"
    subprocess.run(
        [ROOT / "tests/cluster/images.sh", "operator", archive],
        check=True,
        env=dict(release.kube.environment),
    )
    cluster_script("load", archive)

    install(release.place, *QUICK, "--set=image.tag=built")

    system = release.place.namespaced(SYSTEM_NAMESPACE)
    answer = json.loads(
        system.run("get", "pods", "-lapp.kubernetes.io/component=operator", "-ojson")
    )
    live = [pod for pod in answer["items"] if "deletionTimestamp" not in pod["metadata"]]
    assert [pod["spec"]["containers"][0]["image"] for pod in live] == ["ktrdr.io/operator:built"]
    name = "by-built-image"
    release.start(name, strategy(epochs=1))
    assert true_conditions(release.finished(name)) == {"Complete", "Finished"}
    release.remove(name)
