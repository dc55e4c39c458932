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
from demo.place import MODELS_CLAIM, ROOT, SYSTEM_NAMESPACE, Place, given
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


def tell(place: Place) -> None:
    """Train one job, cancel a second half-way, delete a third while it runs."""
    with place.console.step("Start from nothing"):
        _show(place, f"kubectl delete ktj {' '.join(JOBS)} --ignore-not-found")
    with place.console.step("Train a model"):
        _train(place)
    with place.console.step("Cancel a job half-way"):
        _cancel(place)
    with place.console.step("Delete a job while it trains"):
        _delete(place)
    with place.console.step("The trained model"):
        _show_model(place)
    say_how_to_use(place)


def say_how_to_use(place: Place) -> None:
    """The commands to try next."""
    folder = place.kube.environment["PATH"].split(":")[0]
    namespace = f"kubectl config set-context --current --namespace={place.kube.namespace}"
    if given():  # set-context would change the user's own kubeconfig
        namespace = f"alias kubectl='kubectl --namespace={place.kube.namespace}'"
    for line in (
        "",
        "The cluster stays up. In a shell of your own, from here:",
        f"  export KUBECONFIG={place.kube.kubeconfig} PATH={folder}:$PATH",
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
        place.console.say(line)


def _train(place: Place) -> None:
    _apply(place, "first-job")
    with _watching(place, "first-job"):
        _until(place, "first-job", 180, _finished)
    if _status(place, "first-job").get("phase") != "Succeeded":
        raise DemoError(_why(place, "first-job"))
    place.console.say(_status(place, "first-job")["message"])


def _cancel(place: Place) -> None:
    _apply(place, "cancel-me")
    with _watching(place, "cancel-me"):
        _until(place, "cancel-me", 120, _past(HALF_WAY))
        began = time.monotonic()
        _show(place, CANCEL)
        _until(place, "cancel-me", 60, _finished)
        seconds = time.monotonic() - began
    if _status(place, "cancel-me").get("phase") != "Cancelled":
        raise DemoError(_why(place, "cancel-me"))
    place.console.say(f"{_status(place, 'cancel-me')['message']} ({seconds:.1f} s after the patch)")
    _show(place, "kubectl get ktj cancel-me -o jsonpath='{.status.cancellation}'")


def _delete(place: Place) -> None:
    _apply(place, "delete-me")
    with _watching(place, "delete-me"):
        _until(place, "delete-me", 120, _past(UNDER_WAY))
        _show(place, "kubectl delete ktj delete-me")
    began = time.monotonic()
    place.kube.run("wait", "--for=delete", "pod", "-lktrdr.io/job=delete-me", "--timeout=60s")
    place.console.say(f"its pod was deleted {time.monotonic() - began:.1f} s later")
    _show(place, "kubectl get pods,configmaps -l ktrdr.io/job=delete-me")


def _show_model(place: Place) -> None:
    result = _status(place, "first-job")["result"]
    with files_pod(place.kube, place.trainer_image, {"/output": MODELS_CLAIM}) as files:
        folder = f"/output/{result['artifact']['path']}"
        place.console.command(f"ls -l {folder}    # in the claim {MODELS_CLAIM}")
        place.console.say(files.run("ls", "-l", folder))
    _show(place, METRICS)
    _show(place, "kubectl get ktj -o wide")


def _apply(place: Place, job: str) -> None:
    _show(place, f"kubectl apply -f {EXAMPLES / job}.yaml")


def _show(place: Place, command: str) -> None:
    """Print a kubectl command as a user types it, and run it in the demo's namespace."""
    place.console.command(command)
    words = shlex.split(command)
    command_here = (words[0], *_where(place), *words[1:])
    place.console.say(run_merged(*command_here, env=place.kube.environment, cwd=ROOT))


def _where(place: Place) -> tuple[str, str]:
    return (f"--kubeconfig={place.kube.kubeconfig}", f"--namespace={place.kube.namespace}")


@contextmanager
def _watching(place: Place, job: str) -> Iterator[None]:
    """Run `kubectl get -w` in the background; the user sees the progress in its lines."""
    place.console.command(f"kubectl get ktj {job} -w")
    command = ["kubectl", *_where(place), "get", "trainingjobs.ktrdr.io", job, "-w"]
    watcher = subprocess.Popen(
        command, env=dict(place.kube.environment), stdout=subprocess.PIPE, text=True
    )
    # Complete lines only: kubectl writes a row in parts, between which other output could appear.
    printer = threading.Thread(target=_print_lines, args=(place, watcher))
    printer.start()
    try:
        yield
        time.sleep(0.5)  # the last line of the watch may arrive later
    finally:
        watcher.terminate()
        watcher.wait()
        printer.join()


def _print_lines(place: Place, watcher: subprocess.Popen[str]) -> None:
    if watcher.stdout is not None:
        for line in watcher.stdout:
            place.console.say(line.rstrip())


def _status(place: Place, job: str) -> Raw:
    status: Raw = place.kube.get("trainingjobs.ktrdr.io", job).get("status", {})
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


def _until(place: Place, job: str, seconds: float, reached: Callable[[Raw], bool]) -> None:
    deadline = time.monotonic() + seconds
    while True:
        status = _status(place, job)
        if "conditions" in status and reached(status):
            return
        if time.monotonic() > deadline:
            raise DemoError(f"not reached within {seconds:.0f} s: {_why(place, job)}")
        time.sleep(0.3)


def _why(place: Place, job: str) -> str:
    status = _status(place, job)
    try:
        logs = place.kube.run("logs", f"-lktrdr.io/job={job}", "--tail=5")
    except RefusedError as error:  # its pod has not started
        logs = str(error)
    return f"{job} is {status.get('phase')}: {status.get('message')}\nlast log lines:\n{logs}"
