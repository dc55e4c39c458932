"""Loading the market data, with a shell script in place of kubectl."""

from pathlib import Path

import pytest

from demo import demo_environment
from demo.claims import FilesPod
from demo.console import Console, DemoError
from kube import Kube

BROKEN_OFF = """
echo "$*" >> {folder}/calls
case "$*" in *extractall*) cat > {folder}/archive.tar; exit 1;; esac
"""


def test_load_bars_interrupted_writes_no_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars = tmp_path / f"bars-{demo_environment.data_digest()}"
    bars.mkdir()
    (bars / "EOS_1d.csv").write_text("a bar")
    monkeypatch.setattr(demo_environment, "BUILD", tmp_path)
    program = tmp_path / "kubectl"
    program.write_text("#!/bin/sh" + BROKEN_OFF.format(folder=tmp_path))
    program.chmod(0o755)
    kube = Kube(tmp_path / "kubeconfig", "demo", {"PATH": f"{tmp_path}:/usr/bin:/bin"})

    with pytest.raises(DemoError, match="ended with 1"):
        demo_environment.load_bars(FilesPod(kube, "files"), Console(colours=False))

    assert b"a bar" in (tmp_path / "archive.tar").read_bytes()
    assert b".loaded" not in (tmp_path / "archive.tar").read_bytes()
    assert "open(sys.argv[1], 'w')" not in (tmp_path / "calls").read_text()
