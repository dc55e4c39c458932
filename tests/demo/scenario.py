"""The three jobs of the demo: one is trained, one cancelled, one deleted, as a user would."""

import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from demo.claims import files_pod
from demo.console import DemoError, run_merged
from demo.demo_environment import (
    MODELS_CLAIM,
    ROOT,
    SYSTEM_NAMESPACE,
    DemoEnvironment,
    uses_own_cluster,
)
from kube import Raw, RefusedError

EXAMPLES = Path("docs/examples")
JOBS = ("first-job", "cancel-me", "delete-me")
CANCEL = """kubectl patch ktj cancel-me --type=merge -p '{"spec":{"cancel":true}}'"""
METRICS = (
    "kubectl get ktj first-job "
    """-o jsonpath='{range .status.result.metrics[*]}{.name}{"\\t"}{.value}{"\\n"}{end}'"""
)
HALF_WAY = 50
UNDER_WAY = 7


def run_demo(demo_environment: DemoEnvironment) -> None:
    """Train one job, cancel a second half-way, delete a third while it runs."""
    with demo_environment.console.step("Start from nothing"):
        _show(demo_environment, f"kubectl delete ktj {' '.join(JOBS)} --ignore-not-found")
    with demo_environment.console.step("Train a model"):
        _train(demo_environment)
    with demo_environment.console.step("Cancel a job half-way"):
        _cancel(demo_environment)
    with demo_environment.console.step("Delete a job while it trains"):
        _delete(demo_environment)
    with demo_environment.console.step("The trained model"):
        _show_model(demo_environment)
    print_next_commands(demo_environment)


def print_next_commands(demo_environment: DemoEnvironment) -> None:
    """The commands to try next."""
    folder = demo_environment.kube.environment["PATH"].split(":")[0]
    namespace = (
        f"kubectl config set-context --current --namespace={demo_environment.kube.namespace}"
    )
    if uses_own_cluster():  # set-context would change the user's own kubeconfig
        namespace = f"alias kubectl='kubectl --namespace={demo_environment.kube.namespace}'"
    for line in (
        "",
        "The cluster stays up. In a shell of your own, from here:",
        f"  export KUBECONFIG={demo_environment.kube.kubeconfig} PATH={folder}:$PATH",
        f"  {namespace}",
        "  kubectl apply -f docs/examples/first-job.yaml",
        "  kubectl get ktj -w                              # progress, live",
        "  kubectl get ktj -o wide                         # loss, batch, host, checkpoint",
        "  kubectl describe ktj first-job",
        "  kubectl logs -l ktrdr.io/job=first-job -f",
        "  kubectl events --for trainingjobs.ktrdr.io/first-job",
        "  kubectl explain trainingjobs.ktrdr.io.spec",
        f"  kubectl logs -n {SYSTEM_NAMESPACE} deploy/ktrdr-operator",
        "  make demo-down                                  # removes every trace",
    ):
        demo_environment.console.print_line(line)


def _train(demo_environment: DemoEnvironment) -> None:
    _apply(demo_environment, "first-job")
    with _watching(demo_environment, "first-job"):
        _until(demo_environment, "first-job", 180, _finished)
    if _status(demo_environment, "first-job").get("phase") != "Succeeded":
        raise DemoError(_why(demo_environment, "first-job"))
    demo_environment.console.print_line(_status(demo_environment, "first-job")["message"])


def _cancel(demo_environment: DemoEnvironment) -> None:
    _apply(demo_environment, "cancel-me")
    with _watching(demo_environment, "cancel-me"):
        _until(demo_environment, "cancel-me", 120, _past(HALF_WAY))
        began = time.monotonic()
        _show(demo_environment, CANCEL)
        _until(demo_environment, "cancel-me", 60, _finished)
        seconds = time.monotonic() - began
    if _status(demo_environment, "cancel-me").get("phase") != "Cancelled":
        raise DemoError(_why(demo_environment, "cancel-me"))
    demo_environment.console.print_line(
        f"{_status(demo_environment, 'cancel-me')['message']} ({seconds:.1f} s after the patch)"
    )
    _show(demo_environment, "kubectl get ktj cancel-me -o jsonpath='{.status.cancellation}'")


def _delete(demo_environment: DemoEnvironment) -> None:
    _apply(demo_environment, "delete-me")
    with _watching(demo_environment, "delete-me"):
        _until(demo_environment, "delete-me", 120, _past(UNDER_WAY))
        _show(demo_environment, "kubectl delete ktj delete-me")
    began = time.monotonic()
    demo_environment.kube.run(
        "wait", "--for=delete", "pod", "-lktrdr.io/job=delete-me", "--timeout=60s"
    )
    demo_environment.console.print_line(
        f"its pod was deleted {time.monotonic() - began:.1f} s later"
    )
    _show(demo_environment, "kubectl get pods,configmaps -l ktrdr.io/job=delete-me")


def _show_model(demo_environment: DemoEnvironment) -> None:
    result = _status(demo_environment, "first-job")["result"]
    with files_pod(
        demo_environment.kube, demo_environment.trainer_image, {"/output": MODELS_CLAIM}
    ) as files:
        folder = f"/output/{result['artifact']['path']}"
        demo_environment.console.command(f"ls -l {folder}    # in the claim {MODELS_CLAIM}")
        demo_environment.console.print_line(files.run("ls", "-l", folder))
    _show(demo_environment, METRICS)
    _show(demo_environment, "kubectl get ktj -o wide")


def _apply(demo_environment: DemoEnvironment, job: str) -> None:
    _show(demo_environment, f"kubectl apply -f {EXAMPLES / job}.yaml")


def _show(demo_environment: DemoEnvironment, command: str) -> None:
    """Print a kubectl command as a user types it, and run it in the demo's namespace."""
    demo_environment.console.command(command)
    words = shlex.split(command)
    command_here = (words[0], *_where(demo_environment), *words[1:])
    demo_environment.console.print_line(
        run_merged(*command_here, env=demo_environment.kube.environment, cwd=ROOT)
    )


def _where(demo_environment: DemoEnvironment) -> tuple[str, str]:
    return (
        f"--kubeconfig={demo_environment.kube.kubeconfig}",
        f"--namespace={demo_environment.kube.namespace}",
    )


@contextmanager
def _watching(demo_environment: DemoEnvironment, job: str) -> Iterator[None]:
    """Run `kubectl get -w` in the background; the user sees the progress in its lines."""
    demo_environment.console.command(f"kubectl get ktj {job} -w")
    command = ["kubectl", *_where(demo_environment), "get", "trainingjobs.ktrdr.io", job, "-w"]
    watcher = subprocess.Popen(
        command, env=dict(demo_environment.kube.environment), stdout=subprocess.PIPE, text=True
    )
    # Complete lines only: kubectl writes a row in parts, between which other output could appear.
    printer = threading.Thread(target=_print_lines, args=(demo_environment, watcher))
    printer.start()
    try:
        yield
        time.sleep(0.5)  # the last line of the watch may arrive later
    finally:
        watcher.terminate()
        watcher.wait()
        printer.join()


def _print_lines(demo_environment: DemoEnvironment, watcher: subprocess.Popen[str]) -> None:
    if watcher.stdout is not None:
        for line in watcher.stdout:
            demo_environment.console.print_line(line.rstrip())


def _status(demo_environment: DemoEnvironment, job: str) -> Raw:
    status: Raw = demo_environment.kube.get("trainingjobs.ktrdr.io", job).get("status", {})
    return status


def _finished(status: Raw) -> bool:
    return any(c["type"] == "Finished" and c["status"] == "True" for c in status["conditions"])


def _past(percentage: int) -> Callable[[Raw], bool]:
    def reached(status: Raw) -> bool:
        if _finished(status):
            raise DemoError(
                f"the job finished before {percentage} %: {status['phase']} {status['message']}"
            )
        return int(status.get("progress", {}).get("percentage", 0)) >= percentage

    return reached


def _until(
    demo_environment: DemoEnvironment, job: str, seconds: float, reached: Callable[[Raw], bool]
) -> None:
    deadline = time.monotonic() + seconds
    while True:
        status = _status(demo_environment, job)
        if "conditions" in status and reached(status):
            return
        if time.monotonic() > deadline:
            raise DemoError(f"not reached within {seconds:.0f} s: {_why(demo_environment, job)}")
        time.sleep(0.3)


def _why(demo_environment: DemoEnvironment, job: str) -> str:
    status = _status(demo_environment, job)
    try:
        logs = demo_environment.kube.run("logs", f"-lktrdr.io/job={job}", "--tail=5")
    except RefusedError as error:  # its pod has not started
        logs = str(error)
    return f"{job} is {status.get('phase')}: {status.get('message')}\nlast log lines:\n{logs}"
