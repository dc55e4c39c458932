"""The loop on a GPU. Run by hand where there is one: `pytest tests/gpu`."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loop_builders import StopAfter, loop_config, run_training, splits, ticking_clock

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: the GPU path cannot run here"
)

# Ten whole chunks, which are replayed graphs, and a last one that is not.
CONFIG = loop_config(epochs=2, batch_size=8)
ROWS = 10 * 50 * 8 + 100


def test_cuda_training_twice_is_bit_identical_and_learns(tmp_path: Path) -> None:
    first, second = (run_training(tmp_path / name, CONFIG, splits(ROWS)) for name in "ab")
    assert first.model is not None
    assert second.model is not None
    assert torch.equal(first.model.parameters, second.model.parameters)
    assert first.history == second.history
    assert first.history[-1].train_loss < first.history[0].train_loss


def test_cuda_resume_after_a_stop_is_bit_identical(tmp_path: Path) -> None:
    want = run_training(tmp_path / "through", CONFIG, splits(ROWS))
    stopped = run_training(tmp_path / "stopped", CONFIG, splits(ROWS), token=StopAfter(9))
    assert stopped.stopped
    got = run_training(tmp_path / "stopped", CONFIG, splits(ROWS), attempt=2)
    assert got.model is not None
    assert want.model is not None
    assert torch.equal(got.model.parameters, want.model.parameters)
    assert [r.train_loss for r in got.history] == [r.train_loss for r in want.history]


def test_cuda_resume_from_periodic_checkpoints_is_bit_identical(tmp_path: Path) -> None:
    """A chunk is on its way whenever one is due."""
    want = run_training(tmp_path / "through", CONFIG, splits(ROWS))
    config = replace(CONFIG, checkpoint_period_seconds=1.0)
    run_training(tmp_path / "kept", config, splits(ROWS), clock=ticking_clock(0.3))
    got = run_training(tmp_path / "kept", config, splits(ROWS), attempt=2)
    assert got.checkpoint is not None
    assert got.model is not None
    assert want.model is not None
    assert torch.equal(got.model.parameters, want.model.parameters)
    assert [r.train_loss for r in got.history] == [r.train_loss for r in want.history]


def test_cuda_training_without_dropout_follows_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other order of rows and of sums; the same problem, so nearly the same loss."""
    config = loop_config(epochs=3, batch_size=8, dropout=0.0)
    on_gpu = run_training(tmp_path / "gpu", config, splits(ROWS))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_cpu = run_training(tmp_path / "cpu", config, splits(ROWS))
    want = on_cpu.history[-1].val_loss
    assert on_gpu.history[-1].val_loss == pytest.approx(want, rel=0.05)
