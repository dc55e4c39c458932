"""The verbs of cluster.sh.

Which cluster: KTRDR_KUBECONFIG if it is set; kind where a Docker engine works; else the native one.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import clean, kind, native, objects, tools
from cluster.record import Checkout, read_record
from cluster.settings import NODE_NAME, ClusterError, Settings, read_settings
from cluster.shell import run, say

REPOSITORY = Path(__file__).resolve().parents[2]
NOT_OURS = "KTRDR_KUBECONFIG names a cluster that this script did not create: "


def provider_of(settings: Settings) -> str:
    """Provider of the cluster: "given" (KTRDR_KUBECONFIG), "kind" or "native"."""
    if settings.kubeconfig:
        return "given"
    record = read_record(settings.state)
    if record:
        return record.provider
    return "kind" if tools.docker_works(settings) else "native"


def kubeconfig_of(settings: Settings) -> Path:
    """Path to use as KUBECONFIG; the user's own configuration is never changed."""
    return settings.kubeconfig or settings.state / "kubeconfig"


def kubectl(settings: Settings, *words: str, stdin: str | None = None) -> str:
    """Run the built kubectl against the cluster."""
    program = tools.bin_folder(settings) / "kubectl"
    options = (f"--kubeconfig={kubeconfig_of(settings)}", f"--cache-dir={settings.cache}/kubectl")
    return run(program, *options, *words, stdin=stdin)


@contextmanager
def one_at_a_time(settings: Settings) -> Iterator[None]:
    """Wait for another up or down; the lock is on a folder, so it leaves no file."""
    parent = settings.state.parent
    parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def up(settings: Settings, checkout: Checkout) -> None:
    """Create the cluster for this checkout, unless it is running."""
    provider = provider_of(settings)
    tools.install(settings, provider)
    if provider == "given":
        kubectl(settings, "get", "--raw=/readyz")
        say(f"cluster: using KTRDR_KUBECONFIG={settings.kubeconfig}")
        return
    if provider == "native" and os.geteuid() != 0:
        raise ClusterError("no Docker engine answers, and the native node needs root: use sudo")
    with one_at_a_time(settings):
        (kind if provider == "kind" else native).up(settings, checkout)


def down(settings: Settings) -> None:
    """Remove every trace of the cluster, unless KTRDR_KUBECONFIG names it."""
    provider = provider_of(settings)
    if provider == "given":
        say(f"cluster: {NOT_OURS}left unchanged")
        return
    with one_at_a_time(settings):
        if provider == "kind":
            tools.install(settings, provider)
            kind.down(settings)
        else:
            clean.teardown(settings.state)
    say("cluster: removed")


def load(settings: Settings, archive: Path) -> None:
    """Copy an image archive into the node."""
    provider = provider_of(settings)
    if provider == "given":
        raise ClusterError(f"{NOT_OURS}push the image to a registry that it pulls from")
    (kind if provider == "kind" else native).load(settings, archive)
    say(f"cluster: loaded {archive}")


def dev_images(settings: Settings, checkout: Checkout) -> None:
    """Load ktrdr.io/operator:dev and ktrdr.io/trainer:dev."""
    provider = provider_of(settings)
    if provider == "given":
        raise ClusterError(f"{NOT_OURS}set the chart's image values to images that it can pull")
    (kind if provider == "kind" else native).load_dev_images(settings, checkout)
    say("cluster: loaded ktrdr.io/operator:dev and ktrdr.io/trainer:dev")


def fake_nodes(settings: Settings, count: int, gpus: int) -> None:
    """Set the number of fake nodes."""
    if provider_of(settings) != "native":
        raise ClusterError("fake nodes need the native cluster, where kwok runs")
    objects.fake_nodes(lambda *words, **more: kubectl(settings, *words, **more), count, gpus)


def volume(settings: Settings, given: argparse.Namespace) -> None:
    """Create a claim, and on the native node its volume."""
    namespace, _, claim = given.claim.partition("/")
    if not claim:
        raise ClusterError(f"{given.claim}: expected NAMESPACE/CLAIM")
    wanted = objects.Volume(given.name, namespace, claim, given.size, given.mode)
    folder = given.folder.absolute() if provider_of(settings) == "native" else None
    objects.make_volume(lambda *words, **more: kubectl(settings, *words, **more), wanted, folder)


def extended_resource(settings: Settings, name: str, count: int) -> None:
    """Give the real node a resource that it does not have."""
    nodes = {"native": NODE_NAME, "kind": kind.NODE_NAME}
    node = nodes.get(provider_of(settings))
    if node is None:
        raise ClusterError(f"{NOT_OURS}its nodes are not patched")
    objects.extended_resource(
        lambda *words, **more: kubectl(settings, *words, **more), node, name, count
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="cluster.sh", description=__doc__)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("tools", help="install and build what is missing")
    verbs.add_parser("down", help="remove every trace of the cluster")
    verbs.add_parser("kubeconfig", help="print the path to use as KUBECONFIG")
    verbs.add_parser("bin", help="print the folder of kubectl and helm, to prepend to PATH")
    for name, text in {
        "up": "create the cluster for this checkout, unless it is running",
        "dev-images": "load ktrdr.io/operator:dev and ktrdr.io/trainer:dev",
    }.items():
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("--venv", type=Path, help="default: SOURCE/.venv")
        verb.add_argument("--source", type=Path, default=REPOSITORY, help="default: %(default)s")
    verb = verbs.add_parser("load", help="copy an OCI image archive into the node")
    verb.add_argument("archive", type=Path)
    verb = verbs.add_parser("fake-nodes", help="set the number of nodes whose pods run nothing")
    verb.add_argument("count", type=int)
    verb.add_argument("gpus", type=int, nargs="?", default=8)
    verb = verbs.add_parser("pv", help="create a claim bound to a folder of the host")
    verb.add_argument("name")
    verb.add_argument("folder", type=Path, metavar="HOSTDIR")
    verb.add_argument("claim", metavar="NAMESPACE/CLAIM")
    verb.add_argument("size")
    verb.add_argument("mode")
    verb = verbs.add_parser("extended-resource", help="give the node COUNT of resource NAME")
    verb.add_argument("name")
    verb.add_argument("count", type=int)
    return top


def dispatch(settings: Settings, given: argparse.Namespace) -> None:
    """Run one verb."""
    match given.verb:
        case "tools":
            tools.install(settings, provider_of(settings))
        case "up" | "dev-images":
            source = given.source.absolute()
            venv = (given.venv or source / ".venv").absolute()
            (up if given.verb == "up" else dev_images)(settings, Checkout(str(venv), str(source)))
        case "down":
            down(settings)
        case "kubeconfig":
            say(str(kubeconfig_of(settings)))
        case "bin":
            say(str(tools.bin_folder(settings)))
        case "load":
            load(settings, given.archive)
        case "fake-nodes":
            fake_nodes(settings, given.count, given.gpus)
        case "pv":
            volume(settings, given)
        case "extended-resource":
            extended_resource(settings, given.name, given.count)


def main() -> int:
    """Parse the command line and run the verb; an error is printed as one message."""
    given = parser().parse_args()
    try:
        dispatch(read_settings(), given)
    except ClusterError as error:
        sys.stderr.write(f"cluster.sh {given.verb}: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"cluster.sh {given.verb}: stopped\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
