"""A trainer as tests start it: its request, its data, its process, what it left behind.

The process is the real program; only its runtime (API server, termination log) is the test's, where
a pod would have mounts that a test must not touch.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bars_builder import write_bars
from ktrdr_api.run_contract import JobIdentity, RunRequest
from ktrdr_api.strategy import strategy_digest

SHIPPED = Path(__file__).parents[1] / "strategies" / "test_strategy.yaml"
_PROGRAM = """
import sys
from pathlib import Path
from ktrdr_trainer import runtime
signals = runtime.catch_signals()
wait_for_torch = runtime.import_in_thread("torch")
from ktrdr_trainer.request import read_request
from ktrdr_trainer.run import run
request, log, url = sys.argv[1:]
api = runtime.ApiAccess(url) if url else None
around = runtime.Runtime(pod_uid="p-1", api=api, termination_log=Path(log))
sys.exit(
    run(lambda: read_request(Path(request)), around, signals=signals, wait_for_torch=wait_for_torch)
)
"""


@dataclass
class Workplace:
    """Folders of one job.

    Attributes:
        root: Holds `data`, `output`, `run` and the termination log.
        api_url: Where the API server is, if there is one.
    """

    root: Path
    api_url: str = ""
    strategy: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("data", "output", "run"):
            (self.root / name).mkdir(parents=True)
        self.termination_log.touch()
        self.strategy = yaml.safe_load(SHIPPED.read_text())
        dates = {"start": "2020-01-01", "end": "2020-12-31"}
        self.strategy["training_data"]["date_range"] = dates

    @property
    def output(self) -> Path:
        """The output folder."""
        return self.root / "output"

    @property
    def termination_log(self) -> Path:
        """What the kubelet would mount."""
        return self.root / "termination-log"

    @property
    def last_words(self) -> dict[str, Any]:
        """The RunResult in the termination log."""
        return dict(json.loads(self.termination_log.read_text()))

    @property
    def progress(self) -> dict[str, Any]:
        """progress.json; empty before the first report."""
        file = self.output / "progress.json"
        return dict(json.loads(file.read_text())) if file.exists() else {}

    @property
    def model(self) -> bytes:
        """The parameters of the latest model."""
        return (self.output / "models/test_strategy/1h_latest/model.safetensors").read_bytes()

    def write_data(self, *, rows: int = 2000) -> None:
        """A random walk for the strategy's symbol."""
        write_bars(self.root / "data", "BTC", "1h", rows=rows)

    def write_request(self, **changes: Any) -> Path:
        """The strategy as it is now, and a request for it."""
        text = yaml.safe_dump(self.strategy, sort_keys=False)
        (self.root / "run/strategy.yaml").write_text(text)
        fields: dict[str, Any] = {
            "job": JobIdentity(namespace="default", name="job", uid="u-1"),
            "attempt": 1,
            "strategy_file": "strategy.yaml",
            "strategy_digest": strategy_digest(text),
            "data_folder": str(self.root / "data"),
            "output_folder": str(self.output),
            "checkpoint_period_seconds": 1,
            "progress_period_seconds": 1,
            "reporting": "kubernetes" if self.api_url else "file",
        }
        file = self.root / "run/request.json"
        file.write_text(RunRequest(**{**fields, **changes}).model_dump_json(by_alias=True))
        return file

    def start(self, **changes: Any) -> subprocess.Popen[str]:
        """The process of a run."""
        file = self.write_request(**changes)
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, file, self.termination_log, self.api_url],
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, **changes: Any) -> tuple[int, list[dict[str, Any]]]:
        """A run to its end: exit code and log."""
        return ended(self.start(**changes))


def ended(process: subprocess.Popen[str]) -> tuple[int, list[dict[str, Any]]]:
    """Wait for a run: exit code, and its log, which must be JSON line by line."""
    _, log = process.communicate(timeout=90)
    return process.returncode, [json.loads(line) for line in log.splitlines()]


def messages(log: list[dict[str, Any]]) -> str:
    """All messages of a log."""
    return "\n".join(line["message"] for line in log)


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Return when the condition holds; a process that ends before is an error."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def stop(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    """Send a signal: exit code and log text."""
    process.send_signal(number)
    _, log = process.communicate(timeout=90)
    return process.returncode, log
