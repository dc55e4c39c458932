"""A run that was stopped or killed ends as one that never was."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ktrdr_api.errors import CheckpointError, KtrdrError
from ktrdr_trainer.loop import TrainingOutcome
from ktrdr_trainer.steps import CpuSteps
from loop_builders import (
    StopAfter,
    loop_config,
    run_training,
    splits,
    still_clock,
    store,
    ticking_clock,
)

BATCHES = 300  # of one row: six chunks of 50
CONFIG = loop_config(epochs=2, batch_size=1, gradient_clip=0.5, weight_decay=0.01)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def want(tmp_path_factory: pytest.TempPathFactory) -> TrainingOutcome:
    return run_training(tmp_path_factory.mktemp("through"), CONFIG)


def _assert_same(got: TrainingOutcome, want: TrainingOutcome) -> None:
    assert got.model is not None
    assert want.model is not None
    assert torch.equal(got.model.parameters, want.model.parameters)
    assert got.history == want.history
    assert (got.best_epoch, got.step) == (want.best_epoch, want.step)
    assert got.test_metrics == want.test_metrics


@settings(max_examples=10, deadline=None)
@given(stops=st.lists(st.integers(0, 2 * BATCHES), min_size=1, max_size=3))
def test_resume_after_stops_at_any_batches_is_bit_identical(
    stops: list[int], want: TrainingOutcome
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for attempt, looks in enumerate(stops, start=1):
            run_training(Path(folder), CONFIG, attempt=attempt, token=StopAfter(looks))
        got = run_training(Path(folder), CONFIG, attempt=len(stops) + 1)
    _assert_same(got, want)


@pytest.mark.parametrize("looks", [49, 50, 51, 52, 100, 305, 306, 307, 308, 309, 310])
def test_resume_at_chunk_and_epoch_borders_is_bit_identical(
    looks: int, want: TrainingOutcome, tmp_path: Path
) -> None:
    stopped = run_training(tmp_path, CONFIG, token=StopAfter(looks))
    assert stopped.stopped
    _assert_same(run_training(tmp_path, CONFIG, attempt=2), want)


def test_resume_in_the_evaluation_gives_the_same_result(tmp_path: Path) -> None:
    config = loop_config(epochs=1, batch_size=300)
    want = run_training(tmp_path / "through", config)
    outcomes = []
    for looks in range(8):
        folder = tmp_path / str(looks)
        outcomes.append(run_training(folder, config, token=StopAfter(looks)).stopped)
        _assert_same(run_training(folder, config, attempt=2), want)
    assert outcomes[0]
    assert not outcomes[-1]


def test_resume_of_early_stopping_keeps_its_count(tmp_path: Path) -> None:
    config = loop_config(epochs=200, learning_rate=0.05, patience=4)
    want = run_training(tmp_path / "through", config)
    steps = want.step
    for looks in (steps // 2, steps - 1):
        folder = tmp_path / str(looks)
        assert run_training(folder, config, token=StopAfter(looks)).stopped
        got = run_training(folder, config, attempt=2)
        _assert_same(got, want)
        assert got.training_metrics["early_stopped"] is True


def test_resume_from_periodic_checkpoints_is_bit_identical(tmp_path: Path) -> None:
    config = loop_config(epochs=4, checkpoint_period_seconds=1.0, batch_size=2)
    want = run_training(tmp_path / "through", config)
    run_training(tmp_path / "kept", config, clock=ticking_clock(0.4))
    assert list((tmp_path / "kept").rglob("*.safetensors"))
    got = run_training(tmp_path / "kept", config, attempt=2)
    assert got.checkpoint is not None
    assert got.model is not None
    assert want.model is not None
    assert torch.equal(got.model.parameters, want.model.parameters)
    assert [r.train_loss for r in got.history] == [r.train_loss for r in want.history]


@pytest.mark.parametrize("seconds", [0.05, 0.13, 0.2, 0.3, 0.4, 0.7])
def test_resume_from_a_checkpoint_with_a_chunk_ahead_is_bit_identical(
    tmp_path: Path, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the newest chunk is on its way while the one before it is accounted for."""
    config = loop_config(epochs=2, checkpoint_period_seconds=1.0, batch_size=2)
    want = run_training(tmp_path / "through", config)
    monkeypatch.setattr(CpuSteps, "run_ahead", 1)
    run_training(tmp_path / "kept", config, clock=ticking_clock(seconds))
    got = run_training(tmp_path / "kept", config, attempt=2)
    assert got.model is not None
    assert want.model is not None
    assert torch.equal(got.model.parameters, want.model.parameters)
    assert [r.train_loss for r in got.history] == [r.train_loss for r in want.history]


def test_checkpoint_is_due_every_ten_epochs(tmp_path: Path) -> None:
    got = run_training(tmp_path, loop_config(epochs=21, batch_size=100), clock=still_clock())
    assert got.checkpoint is not None
    # The second is due at 20; one epoch late, or missing, while the write before is on its way.
    assert got.checkpoint.epoch in {10, 20, 21}
    assert got.checkpoint.step == 3 * got.checkpoint.epoch


def test_checkpoint_that_cannot_be_written_ends_the_run_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    with pytest.raises(KtrdrError, match=r"checkpoints.*check the output volume"):
        run_training(tmp_path, loop_config(epochs=12))


def test_resume_with_another_strategy_or_data_is_refused(tmp_path: Path) -> None:
    run_training(tmp_path, CONFIG, token=StopAfter(30))
    for config, dataset in ((loop_config(seed=8), splits()), (CONFIG, splits(train=301))):
        with pytest.raises(CheckpointError, match="strategy or the data changed"):
            run_training(tmp_path, config, dataset, attempt=2)


@pytest.mark.parametrize("tensors", [{}, {"parameters": torch.zeros(1)}, {"more": torch.zeros(1)}])
def test_resume_from_tensors_of_another_network_is_refused_with_the_remedy(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    run_training(tmp_path, CONFIG, token=StopAfter(30))
    found = store(tmp_path, attempt=2).latest().checkpoint
    assert found is not None
    snapshot = found.snapshot
    spoilt = {**snapshot.tensors, **tensors} if tensors else {}
    store(tmp_path, attempt=2).save(snapshot._replace(tensors=spoilt))
    with pytest.raises(CheckpointError, match=r"0002-0+30\.json: .*of this network; remove"):
        run_training(tmp_path, CONFIG, attempt=3)
