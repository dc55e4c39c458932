"""Install, upgrade and uninstall the chart under running jobs.

Last, because it changes the release: the modules of this tier run in the order of their names.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.console import run
from demo.place import RELEASE, ROOT, SYSTEM_NAMESPACE, cluster_script, install
from e2e.workbench import LONG, QUICK, RESOURCE, Workbench, strategy, true_conditions

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
