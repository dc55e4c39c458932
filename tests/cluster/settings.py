"""Settings of the cluster: its paths, names and addresses.

The only module that reads the environment. Every name that the host can see (network namespace,
links, cgroup, CNI network, kind cluster) derives from `NAME`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

NAME = "ktrdr"
HOST_IP = "10.77.0.1"
NODE_IP = "10.77.0.2"
NODE_NAME = "node-1"
POD_CIDR = "10.244.0.0/24"
SERVICE_CIDR = "10.96.0.0/16"
API_SERVICE_IP = "10.96.0.1"  # the first address of SERVICE_CIDR, by definition
POD_UID = 10001  # of the operator and the trainer

# A unix socket's path has at most 107 bytes; the longest that is made below the state folder
# (a plugin's socket below kubelet/) takes about 45.
STATE_PATH_MAX = 60


class ClusterError(Exception):
    """Error that the user can act on; the message says what happened and what to do."""


@dataclass(frozen=True)
class Settings:
    """Settings from the environment, read once.

    Attributes:
        state: Folder of the running cluster (KTRDR_CLUSTER_DIR); outside the checkout because
            socket paths must be short.
        cache: Folder of what was built (XDG_CACHE_HOME), shared by every checkout.
        kubeconfig: A cluster that is already there (KTRDR_KUBECONFIG); nothing is created then.
        environment: What child processes inherit.
    """

    state: Path
    cache: Path
    kubeconfig: Path | None
    environment: Mapping[str, str]


def read_settings() -> Settings:
    """Read the environment.

    Raises:
        ClusterError: The state folder's path is too long or has whitespace in it.
    """
    env = dict(os.environ)
    state = Path(env.get("KTRDR_CLUSTER_DIR") or f"/var/tmp/{NAME}-cluster").absolute()  # noqa: S108 (a fixed place, so that every checkout finds the one cluster)
    if len(str(state)) > STATE_PATH_MAX or len(str(state).split()) != 1:
        raise ClusterError(
            f"KTRDR_CLUSTER_DIR={state}: use a path of at most {STATE_PATH_MAX} characters and "
            "no whitespace, because unix sockets are made below it"
        )
    cache = Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / NAME
    given = env.get("KTRDR_KUBECONFIG")
    # sudo and CI often drop these; ip, nft and Go's own installer live there.
    env.pop("PYTHONPATH", None)  # cluster.sh set it for this program alone
    env["PATH"] = f"{env.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/go/bin"
    return Settings(state, cache, Path(given).absolute() if given else None, env)
