"""Record that `up` writes before it changes anything, so that `down` works after any crash."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Checkout:
    """Code and virtual environment that the containers see."""

    venv: str
    source: str


@dataclass(frozen=True)
class Record:
    """The running cluster.

    Attributes:
        provider: "native" or "kind".
        checkout: Whose code its containers see.
        mounts: Host folders that every container sees read-only (native).
        made_folders: Shared folders of the host that did not exist before.
        sysctls: Kernel settings that the kubelet overwrites, with the values from before.
    """

    provider: str
    checkout: Checkout
    mounts: list[str] = field(default_factory=list)
    made_folders: list[str] = field(default_factory=list)
    sysctls: dict[str, str] = field(default_factory=dict)


def write_record(state: Path, record: Record) -> None:
    """Create the state folder with the record in it."""
    state.mkdir(parents=True, exist_ok=True)
    scratch = state / ".cluster.json"
    scratch.write_text(json.dumps(asdict(record), indent=1) + "\n")
    scratch.replace(state / "cluster.json")  # after a crash it is complete or missing


def read_record(state: Path) -> Record | None:
    """Read the record; None if no cluster was created."""
    try:
        content = json.loads((state / "cluster.json").read_text())
    except FileNotFoundError:
        return None
    return Record(**{**content, "checkout": Checkout(**content["checkout"])})
