"""What we ask of kind, docker and ip: programs that only write down how they were called."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster import kind, tools
from cluster.record import Checkout
from cluster.settings import ClusterError, Settings

PARTS = ("operator", "trainer")
ROOT = Path(__file__).parents[3]
CHECKOUT = Checkout(venv=str(ROOT / ".venv"), source=str(ROOT))
FAKE = """#!/bin/sh
echo "$(basename "$0") $*" >> {log}
case "$*" in *IPAddress*) echo 172.18.0.2;; "get clusters") cat {log}.clusters;; esac
"""


@dataclass(frozen=True)
class Machine:
    settings: Settings
    log: Path

    def calls(self) -> list[str]:
        """What was called since the last time."""
        lines = self.log.read_text().splitlines()
        self.log.write_text("")
        return lines


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    settings = Settings(tmp_path / "state", tmp_path / "cache", None, {"PATH": "/usr/bin:/bin"})
    folder, log = tools.bin_folder(settings), tmp_path / "log"
    folder.mkdir(parents=True)
    (tmp_path / "log.clusters").touch()
    for name in ("kind", "docker", "ip", "kubectl"):
        (folder / name).write_text(FAKE.format(log=log))
        (folder / name).chmod(0o755)
    return Machine(settings, log)


def test_up_repeated_builds_and_loads_images_of_the_present_code(machine: Machine) -> None:
    loads = [f"kind load docker-image ktrdr.io/{part}:dev --name ktrdr" for part in PARTS]

    kind.up(machine.settings, CHECKOUT)
    assert [call for call in machine.calls() if " load " in call] == loads

    kind.up(machine.settings, CHECKOUT)
    calls = machine.calls()
    assert [call for call in calls if " load " in call] == loads
    assert not any("create cluster" in call for call in calls)


def test_down_removes_the_route_that_up_created(machine: Machine) -> None:
    kind.up(machine.settings, CHECKOUT)
    assert "ip route replace 10.244.0.0/24 via 172.18.0.2" in machine.calls()

    kind.down(machine.settings)

    assert "ip route del 10.244.0.0/24 via 172.18.0.2" in machine.calls()
    assert not machine.settings.state.exists()


def test_up_never_deletes_a_foreign_cluster_of_the_same_name(machine: Machine) -> None:
    machine.log.with_name("log.clusters").write_text("other\nktrdr\n")

    with pytest.raises(ClusterError, match='kind cluster "ktrdr" was not created by this script'):
        kind.up(machine.settings, CHECKOUT)
    kind.down(machine.settings)

    assert not any("delete" in call for call in machine.calls())


def test_cluster_commands_never_change_the_users_kubeconfig(machine: Machine) -> None:
    kind.up(machine.settings, CHECKOUT)
    kind.down(machine.settings)

    own = f"--kubeconfig={machine.settings.state}/kubeconfig"
    changing = [call for call in machine.calls() if call.startswith(("kind create", "kind delete"))]
    assert len(changing) == 2
    assert all(own in call for call in changing)
