"""The real program on generated bars: complete, stop, die, resume, be cancelled."""

import itertools
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ktrdr_api.run_contract import CheckpointPolicy
from ktrdr_trainer.testing import FakeApiServer
from trainer_process import Workplace, ended, messages, stop, wait_until

LONG_EPOCHS = 60


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    made = Workplace(tmp_path / "job")
    made.write_data()
    return made


def long_training(place: Workplace) -> None:
    """A few seconds, so that there is a middle to stop in."""
    place.strategy["training"].update(epochs=LONG_EPOCHS, batch_size=8)


def test_run_to_the_end_leaves_model_result_and_last_words(place: Workplace) -> None:
    code, log = place.run()
    assert code == 0, messages(log)
    folder = place.output / "models/test_strategy/1h_v1"
    result = json.loads((folder / "result.json").read_text())
    assert result == json.loads((place.output / "results/u-1.json").read_text())
    assert (result["outcome"], result["exitCode"], result["epochsCompleted"]) == ("Succeeded", 0, 5)
    assert place.last_words["artifact"]["path"] == "models/test_strategy/1h_v1"
    assert (place.progress["stage"], place.progress["percentage"]) == ("Done", 100)

    latest = folder.with_name("1h_latest")
    latest.unlink()  # as if the first attempt had been killed just before it made this link
    again, log = place.run(attempt=2)
    assert again == 0
    assert "stored the model already" in messages(log)
    assert latest.readlink() == Path("1h_v1")
    assert place.last_words["metrics"] == result["metrics"]

    proof = subprocess.run(
        [sys.executable, "-m", "ktrdr_trainer", "evaluate", folder, "--data", place.root / "data"],
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(proof.stdout)
    assert report["identical"]
    assert report["metrics"].keys() == {
        "test_loss", "test_accuracy", "precision", "recall", "f1_score"
    }  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The model of a long training that nobody stopped."""
    whole = Workplace(tmp_path_factory.mktemp("whole") / "job")
    whole.write_data()
    long_training(whole)
    code, log = whole.run()
    assert code == 0, messages(log)
    return whole.model


@pytest.mark.parametrize(
    ("number", "want"), [(signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_run_stopped_by_a_signal_resumes_to_the_identical_model(
    place: Workplace, uninterrupted: bytes, number: signal.Signals, want: int
) -> None:
    long_training(place)
    first = place.start()
    wait_until(lambda: list(place.output.glob("checkpoints/u-1/[0-9]*.json")), first)
    code, _ = stop(first, number)
    assert code == want
    if number is signal.SIGTERM:
        words = place.last_words
        assert (words["outcome"], words["reason"]) == ("Terminated", "Disrupted")
        assert words["checkpoint"]["step"] == words["step"]

    code, log = place.run(attempt=2)
    assert code == 0
    assert "Resuming from epoch" in messages(log)
    assert place.model == uninterrupted


def test_run_terminated_while_preparing_ends_without_a_traceback(place: Workplace) -> None:
    process = place.start()
    assert process.stderr is not None
    assert "Preparing" in process.stderr.readline()
    code, log = stop(process, signal.SIGTERM)
    assert code == 143
    assert "Stopped by SIGTERM before training began; no checkpoint" in log
    assert "Traceback" not in log


def test_train_at_a_terminal_tells_how_to_go_on_after_a_stop(place: Workplace) -> None:
    long_training(place)
    place.write_request()
    command: list[str | Path] = [
        sys.executable, "-m", "ktrdr_trainer", "train", place.root / "run/strategy.yaml",
        "--data", place.root / "data", "--output", place.output,
    ]  # fmt: skip
    screen, terminal = pty.openpty()
    process = subprocess.Popen(command, stderr=terminal)
    os.close(terminal)
    with open(screen, errors="replace") as lines:
        shown = itertools.takewhile(lambda line: "Training: " not in line, lines)
        hint = next(line for line in shown if "--job-uid" in line)
        list(shown)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=90) == 10
    uid = hint.split()[-1]
    assert list(place.output.glob(f"checkpoints/{uid}/[0-9]*.json"))
    again = subprocess.run(
        [*command, "--job-uid", uid], capture_output=True, text=True, check=False
    )
    assert (again.returncode, "Resuming from epoch" in again.stderr) == (0, True), again.stderr


@pytest.mark.parametrize("policy", list(CheckpointPolicy))
def test_run_cancelled_through_the_api_acknowledges_and_ends_with_10(
    tmp_path: Path, policy: CheckpointPolicy
) -> None:
    with FakeApiServer() as api:
        place = Workplace(tmp_path / "job", api_url=api.access.url)
        place.write_data()
        long_training(place)
        process = place.start(checkpoint_on_cancel=policy, checkpoint_period_seconds=300)
        wait_until(lambda: api.progress.get("currentEpoch", 0) > 1, process)
        asked = time.monotonic()
        api.cancel()
        api.wait_for(lambda server: server.progress["stage"] == "Cancelling")
        acknowledged = time.monotonic()
        process.send_signal(signal.SIGTERM)  # an impatient second request changes nothing
        code, log = ended(process)
    assert code == 10, messages(log)
    assert acknowledged - asked < 1
    words = place.last_words
    assert (words["outcome"], words["reason"]) == ("Cancelled", "Cancelled")
    assert (api.progress["step"], api.progress["podUID"]) == (words["step"], "p-1")
    saved = api.progress.get("checkpoint", {}).get("step")
    # With Never, an older one of the loop's own may be there.
    assert (saved == words["step"]) is (policy is CheckpointPolicy.BEST_EFFORT)


def test_run_with_the_api_server_away_trains_all_the_same(tmp_path: Path) -> None:
    with FakeApiServer() as api:
        place = Workplace(tmp_path / "job", api_url=api.access.url)
        place.write_data()
        api.is_away = True
        process = place.start()
        wait_until(lambda: (place.output / "results/u-1.json").exists(), process)
        api.is_away = False
        code, log = ended(process)
    assert code == 0
    assert "training continues" in messages(log)
    assert (api.progress["stage"], api.progress["percentage"]) == ("Done", 100)
