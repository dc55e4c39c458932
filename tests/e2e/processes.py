"""Processes of pods on the node: for tests that must do more than a user can with kubectl."""

import os
import signal
from pathlib import Path

from kube import Raw


def processes_of(pod: Raw, word: str) -> list[int]:
    """Host process ids in a pod's cgroup whose command line has `word` in it."""
    uid = pod["metadata"]["uid"]
    marks = (f"pod{uid}", f"pod{uid.replace('-', '_')}")  # cgroupfs and systemd drivers
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            groups = (folder / "cgroup").read_text()
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        if any(mark in groups for mark in marks) and word in command:
            found.append(int(folder.name))
    return found


def kill_in(pod: Raw, word: str) -> None:
    """SIGKILL the pod's processes; an AssertionError if there is none on this machine."""
    found = processes_of(pod, word)
    assert found, f"no process {word!r} of pod {pod['metadata']['name']} on this machine"
    for number in found:
        os.kill(number, signal.SIGKILL)


def alive(number: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
