"""What goes wrong between us and a pod ends as words, soon."""

from pathlib import Path

import pytest

from demo.claims import FilesPod
from demo.console import DemoError
from kube import Kube


def pod_behind(kubectl: str, folder: Path) -> FilesPod:
    """A pod that is reached by this shell script in place of kubectl."""
    program = folder / "kubectl"
    program.write_text(f"#!/bin/sh\n{kubectl}\n")
    program.chmod(0o755)
    kube = Kube(folder / "kubeconfig", "demo", {"PATH": f"{folder}:/usr/bin:/bin"})
    return FilesPod(kube, "files")


def test_run_without_an_answer_fails_in_time(tmp_path: Path) -> None:
    # `kubectl exec -i` waits for ever once the program in the pod has crashed.
    pod = pod_behind("exec sleep 60", tmp_path)

    with pytest.raises(
        DemoError, match=r"exec files -- ls` did not end within 0\.2 s\n.*pod files"
    ):
        pod.run("ls", seconds=0.2)


def test_load_without_an_answer_fails_in_time(tmp_path: Path) -> None:
    pod = pod_behind("exec sleep 60", tmp_path)

    with pytest.raises(DemoError, match=r"did not end within 0\.2 s\n.*pod files"):
        pod.load(tmp_path, "/data", seconds=0.2)


def test_run_without_kubectl_names_what_is_missing(tmp_path: Path) -> None:
    kube = Kube(tmp_path / "kubeconfig", "demo", {"PATH": str(tmp_path)})

    with pytest.raises(DemoError, match="kubectl: not found"):
        FilesPod(kube, "files").run("ls")
