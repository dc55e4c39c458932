"""What surrounds the process: here, the import that takes long."""

import threading
from pathlib import Path

import pytest

from ktrdr_api.errors import CancellationError
from ktrdr_trainer.runtime import import_in_thread
from ktrdr_trainer.stop import StopToken


def test_wait_for_an_import_that_takes_long_ends_when_somebody_asks_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = tmp_path / "go"
    (tmp_path / "slow_module.py").write_text(
        f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    wait = import_in_thread("slow_module")
    token = StopToken()
    threading.Timer(0.2, token.cancel, ("sigterm",)).start()
    try:
        with pytest.raises(CancellationError, match="sigterm"):
            wait(token.raise_if_cancelled)
    finally:
        go.touch()
    wait(lambda: None)


def test_wait_for_an_import_that_failed_raises_what_went_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module.py").write_text("raise OSError('no space for a lock')\n")
    monkeypatch.syspath_prepend(tmp_path)
    wait = import_in_thread("broken_module")
    with pytest.raises(OSError, match="no space for a lock"):
        wait(lambda: None)
