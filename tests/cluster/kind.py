"""kind cluster, for machines with a Docker engine: one node, real images."""

from __future__ import annotations

import shutil
from pathlib import Path

from cluster import tools
from cluster.record import Checkout, Record, read_record, write_record
from cluster.settings import NAME, POD_CIDR, ClusterError, Settings
from cluster.shell import run, say, succeeds

NODE_NAME = f"{NAME}-control-plane"


def up(settings: Settings, checkout: Checkout) -> None:
    """Create the cluster, or keep a healthy one; build and load the images of the present code."""
    kubeconfig = settings.state / "kubeconfig"
    env = tools.environment(settings)
    healthy = ("kubectl", f"--kubeconfig={kubeconfig}", "get", "--raw=/readyz")
    if read_record(settings.state) and succeeds(*healthy, env=env):
        say("cluster: already up")
    else:
        down(settings)
        if NAME in run("kind", "get", "clusters", env=env).split():
            raise ClusterError(
                f'the kind cluster "{NAME}" was not created by this script, or belongs to another '
                f"KTRDR_CLUSTER_DIR; if it is not needed: `kind delete cluster --name {NAME}`"
            )
        write_record(settings.state, Record("kind", checkout))
        say(f"cluster: kind create cluster --name {NAME} (pulls its node image the first time)")
        run("kind", "create", "cluster", "--wait=120s", *_which(settings), env=env)
        route = ("ip", "route", "replace", *_route(settings))
        if not succeeds(*route, env=env):
            say(f"cluster: no route to pods (`{' '.join(route)}` needs root)")
    load_dev_images(settings, checkout)
    say(f"cluster: up, KUBECONFIG={kubeconfig}")


def _which(settings: Settings) -> tuple[str, ...]:
    """Arguments that name the cluster, and a kubeconfig that is not the user's own."""
    return (f"--name={NAME}", f"--kubeconfig={settings.state}/kubeconfig")


def _route(settings: Settings) -> tuple[str, ...]:
    """Route from the host to pods; the node has an address while its container exists."""
    form = "{{.NetworkSettings.Networks.kind.IPAddress}}"
    inspect = ("docker", "inspect", "--format", form, NODE_NAME)
    return (POD_CIDR, "via", run(*inspect, env=tools.environment(settings)).strip())


def down(settings: Settings) -> None:
    """Delete the cluster that `up` created; no-op without one."""
    if read_record(settings.state) is None:
        return
    env = tools.environment(settings)
    if succeeds("docker", "inspect", NODE_NAME, env=env):
        succeeds("ip", "route", "del", *_route(settings), env=env)
    run("kind", "delete", "cluster", *_which(settings), env=env)
    shutil.rmtree(settings.state)


def load(settings: Settings, archive: Path) -> None:
    """Import an image archive into the node."""
    env = tools.environment(settings)
    run("kind", "load", "image-archive", archive, "--name", NAME, env=env)


def load_dev_images(settings: Settings, checkout: Checkout) -> None:
    """Build the real images and copy them into the node."""
    env = tools.environment(settings)
    source = Path(checkout.source)
    for part in ("operator", "trainer"):
        size = ", over 5 GB and many minutes the first time" if part == "trainer" else ""
        say(f"cluster: building the {part}'s image with docker{size}")
        run(source / "tests/cluster/images.sh", part, env=env)
        image = f"{NAME}.io/{part}:dev"
        run("docker", "tag", f"{NAME}.io/{part}:built", image, env=env)
        run("kind", "load", "docker-image", image, "--name", NAME, env=env)
