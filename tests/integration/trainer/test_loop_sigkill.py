"""A training that is killed at any instant, again and again, ends as one that never was."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from loop_builders import loop_config, run_training

KILLS = 3
CONFIG = loop_config(epochs=150, batch_size=2, checkpoint_period_seconds=0.001)

_VICTIM = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from loop_builders import loop_config, run_training
from ktrdr_trainer.slot import system_clock
config = loop_config(epochs=150, batch_size=2, checkpoint_period_seconds=0.001)
run_training(Path(sys.argv[1]), config, attempt=int(sys.argv[3]), clock=system_clock())
"""


def _newest_step(folder: Path) -> int:
    """Of the checkpoints, whole or not: file names are all that a test may rely on here."""
    steps = [int(path.stem.partition("-")[2]) for path in folder.rglob("[0-9]*.json")]
    return max(steps, default=0)


def _killed_after_a_checkpoint(folder: Path, attempt: int) -> int:
    before = _newest_step(folder)
    tests = str(Path(__file__).parents[2])
    victim = subprocess.Popen([sys.executable, "-c", _VICTIM, str(folder), tests, str(attempt)])
    while _newest_step(folder) <= before and victim.poll() is None:
        time.sleep(0.002)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL, "the training ended before it could be killed"
    return _newest_step(folder)


def test_resume_after_sigkills_is_bit_identical(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    want = run_training(tmp_path / "through", CONFIG)
    killed = tmp_path / "killed"
    steps = [_killed_after_a_checkpoint(killed, attempt) for attempt in range(1, KILLS + 1)]
    assert steps == sorted(set(steps)), "every attempt went on where the one before was killed"

    got = run_training(killed, CONFIG, attempt=KILLS + 1)

    assert got.model is not None
    assert want.model is not None
    assert torch.equal(got.model.parameters, want.model.parameters)
    assert [r.train_loss for r in got.history] == [r.train_loss for r in want.history]
    assert [r.val_loss for r in got.history] == [r.val_loss for r in want.history]
    assert got.test_metrics == want.test_metrics
