"""Whole trainings: what they learn, record, choose and say."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ktrdr_api.errors import DataError, KtrdrError, StrategyError
from ktrdr_api.run_contract import Stage
from ktrdr_trainer.dataset import permutation, rows_on
from ktrdr_trainer.loop import choose_threads
from ktrdr_trainer.metrics import evaluate
from ktrdr_trainer.model import initial_parameters, named_views
from ktrdr_trainer.objective import class_weights
from ktrdr_trainer.slot import LoopProgress, ProgressSlot
from ktrdr_trainer.stop import StopToken
from loop_builders import (
    Splits,
    StopAfter,
    loop_config,
    rows,
    run_training,
    splits,
    ticking_clock,
)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_training_without_dropout_equals_a_plain_torch_loop(tmp_path: Path) -> None:
    config, dataset = loop_config(epochs=2, dropout=0.0), splits()
    weights = class_weights(dataset.class_counts)
    network = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    views = named_views(config.model, initial_parameters(config.model, config.seed))
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), views.values(), strict=True):
            parameter.copy_(value)
    adam = torch.optim.Adam(network.parameters(), lr=config.learning_rate, fused=True)
    criterion = nn.CrossEntropyLoss(weight=weights)
    train = rows_on(dataset.train, CPU, name="train")
    want = []
    for epoch in (1, 2):
        losses = []
        for batch in torch.split(permutation(300, seed=config.seed, epoch=epoch, device=CPU), 16):
            adam.zero_grad()
            loss = criterion(network(train.features[batch]), train.labels[batch])
            loss.backward()
            adam.step()
            losses.append(loss.item() * len(batch))
        want.append(sum(losses) / 300)

    got = run_training(tmp_path, config, dataset)

    assert got.model is not None
    assert got.best_epoch == 2
    parameters = torch.cat([p.detach().flatten() for p in network.parameters()])
    torch.testing.assert_close(got.model.parameters, parameters, rtol=1e-4, atol=1e-5)
    assert [record.train_loss for record in got.history] == pytest.approx(want, rel=1e-5)


def test_training_of_learnable_rows_beats_chance(tmp_path: Path) -> None:
    got = run_training(tmp_path, loop_config(epochs=15), splits(2_000, 400, 400))
    assert got.test_metrics["test_accuracy"] > 0.6
    assert got.history[-1].train_loss < 0.8 * got.history[0].train_loss


def test_training_outcome_reports_the_best_epoch(tmp_path: Path) -> None:
    dataset = splits()
    got = run_training(tmp_path, loop_config(epochs=30, learning_rate=0.05), dataset)
    losses = [record.val_loss for record in got.history]
    best = int(np.argmin(losses)) + 1
    assert got.best_epoch == best < 30
    assert got.model is not None
    recomputed = evaluate(
        got.model, rows_on(dataset.validation, CPU, name="validation"), got.class_weights
    )
    assert got.validation_metrics == {
        "val_loss": recomputed["loss"],
        "val_accuracy": recomputed["accuracy"],
    }
    assert got.validation_metrics["val_loss"] == losses[best - 1]
    test = evaluate(got.model, rows_on(dataset.test, CPU, name="test"), got.class_weights)
    assert got.test_metrics["test_loss"] == test["loss"]
    assert set(got.test_metrics) == {
        "test_loss", "test_accuracy", "precision", "recall", "f1_score",
    }  # fmt: skip


def test_training_metrics_use_the_domain_words(tmp_path: Path) -> None:
    got = run_training(tmp_path, clock=ticking_clock(1.0))
    last = got.history[-1]
    minutes = got.training_metrics.pop("training_time_minutes")
    assert got.training_metrics == {
        "final_train_loss": last.train_loss,
        "final_train_accuracy": last.train_accuracy,
        "final_val_loss": last.val_loss,
        "final_val_accuracy": last.val_accuracy,
        "epochs_completed": 3,
        "early_stopped": False,
        "best_epoch": got.best_epoch,
        "final_learning_rate": 0.01,
    }
    durations = [record.duration_seconds for record in got.history]
    assert minutes == pytest.approx(sum(durations) / 60)
    assert min(durations) > 0
    assert last.timestamp == "2024-05-06T07:08:09Z"


def test_training_with_patience_stops_after_so_many_stale_epochs(tmp_path: Path) -> None:
    config = loop_config(epochs=200, learning_rate=0.05, patience=4)
    got = run_training(tmp_path, config)
    assert got.training_metrics["early_stopped"] is True
    assert got.best_epoch == got.epochs_completed - 4
    assert got.epoch == got.epochs_completed < 200


def test_training_with_min_delta_counts_small_gains_as_stale(tmp_path: Path) -> None:
    got = run_training(tmp_path, loop_config(epochs=50, patience=2, min_delta=10.0))
    assert got.epochs_completed == 3
    assert got.best_epoch == int(np.argmin([r.val_loss for r in got.history])) + 1


def test_training_monitoring_accuracy_keeps_the_most_accurate_epoch(tmp_path: Path) -> None:
    config = loop_config(epochs=12, learning_rate=0.05, monitor="val_accuracy")
    got = run_training(tmp_path, config)
    assert got.best_epoch == int(np.argmax([r.val_accuracy for r in got.history])) + 1


def test_training_twice_with_one_seed_gives_identical_parameters(tmp_path: Path) -> None:
    results = [
        run_training(tmp_path / name, loop_config(seed=seed))
        for name, seed in (("a", 7), ("b", 7), ("c", 8))
    ]
    a, b, c = (r.model.parameters for r in results if r.model is not None)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_training_that_diverges_names_epoch_and_remedy(tmp_path: Path) -> None:
    part = rows(300)
    huge = Splits(
        train=type(part)(np.copysign(np.float32(3e38), part.features), part.labels),
        validation=part,
        test=part,
        feature_ids=("a",),
        class_counts=np.bincount(part.labels, minlength=3),
    )
    with pytest.raises(
        StrategyError, match=r"training.learning_rate: the loss is .* epoch 1, batch"
    ):
        run_training(tmp_path, loop_config(learning_rate=10.0), huge)


class _FullGpu(ProgressSlot):
    def put(self, progress: LoopProgress, *, urgent: bool = False) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB.")


def test_training_without_room_on_the_gpu_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(KtrdrError, match=r"smaller batch_size \(Tried to allocate 2.00 GiB"):
        run_training(tmp_path, slot=_FullGpu())


def test_training_without_test_rows_names_the_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the test split has no rows"):
        run_training(tmp_path, dataset=splits(test=0))


class _RecordingSlot(ProgressSlot):
    __slots__ = ("all",)

    def __init__(self) -> None:
        super().__init__()
        self.all: list[tuple[LoopProgress, bool]] = []

    def put(self, progress: LoopProgress, *, urgent: bool = False) -> None:
        self.all.append((progress, urgent))
        super().put(progress, urgent=urgent)


def test_slot_of_a_training_only_moves_forward(tmp_path: Path) -> None:
    slot = _RecordingSlot()
    run_training(tmp_path, loop_config(batch_size=2, epochs=2), slot=slot, clock=ticking_clock(0.1))
    pictures = [progress for progress, _ in slot.all]
    for before, after in itertools.pairwise(pictures):
        assert (after.epoch, after.batch, after.step) >= (before.epoch, before.batch, before.step)
    assert [p.batch for p in pictures if p.epoch == 1] == [50, 100, 150, 150, 150]
    assert {(p.total_epochs, p.total_batches) for p in pictures} == {(2, 150)}
    assert pictures[0].stage is Stage.TRAINING
    assert pictures[-1].stage is Stage.EVALUATING
    assert set(pictures[-1].metrics) == {
        "train_loss", "train_accuracy", "val_loss", "val_accuracy",
    }  # fmt: skip
    assert pictures[1].samples_per_second == pytest.approx(100 / 0.1, rel=1.0)
    urgent = [(p.epoch, p.stage) for p, is_urgent in slot.all if is_urgent]
    assert urgent == [
        (0, Stage.TRAINING),
        (1, Stage.TRAINING),
        (2, Stage.TRAINING),
        (2, Stage.EVALUATING),
    ]
    assert slot.urgent.is_set()


def test_stop_is_seen_before_the_next_batch(tmp_path: Path) -> None:
    slot = ProgressSlot()
    got = run_training(tmp_path, loop_config(batch_size=10), token=StopAfter(12), slot=slot)
    assert got.stopped
    assert (got.epoch, got.batch, got.step, got.model) == (1, 12, 12, None)
    assert got.checkpoint is not None
    assert (got.checkpoint.epoch, got.checkpoint.step) == (1, 12)
    assert slot.latest is not None
    assert slot.latest.stage is Stage.CANCELLING


@pytest.mark.parametrize(
    ("reason", "wanted", "saved"),
    [
        ("cancel", True, True),
        ("cancel", False, False),
        ("deleted", False, False),
        ("sigterm", False, True),
        ("superseded", True, False),
    ],
)
def test_stop_saves_a_checkpoint_only_where_it_is_wanted(
    tmp_path: Path, reason: str, wanted: bool, saved: bool
) -> None:
    config = loop_config(checkpoint_on_cancel=wanted)
    got = run_training(tmp_path, config, token=StopAfter(3, reason))
    assert got.stopped
    assert (got.checkpoint is not None) == saved
    assert bool(list(tmp_path.rglob("*.json"))) == saved


def test_stop_on_a_volume_that_cannot_be_written_is_still_a_stop(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    got = run_training(tmp_path, token=StopAfter(3))
    assert got.stopped
    assert got.checkpoint is None
    assert len(got.problems) == 1
    assert "No checkpoint was saved at the stop" in got.problems[0]


def test_stop_after_a_periodic_checkpoint_failed_is_still_a_stop(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    config = loop_config(batch_size=2, checkpoint_period_seconds=0.5)
    got = run_training(tmp_path, config, token=StopAfter(90), clock=ticking_clock())
    assert got.stopped
    assert (got.batch, got.checkpoint, len(got.problems)) == (89, None, 1)


class _StopOnceSavedTwice(StopToken):
    """Stops at the second checkpoint (then the first is surely whole) and breaks the volume."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __getattribute__(self, name: str) -> Any:
        if name == "is_cancelled" and len(list(self._folder.glob("checkpoints/*/[0-9]*.json"))) > 1:
            (self._folder / "checkpoints").rename(self._folder / "gone")
            (self._folder / "checkpoints").write_text("a file where a folder should be")
            self.cancel("sigterm")
        return super().__getattribute__(name)


def test_stop_on_a_volume_that_broke_names_the_checkpoint_before(tmp_path: Path) -> None:
    config = loop_config(batch_size=2, epochs=10_000, checkpoint_period_seconds=0.5)
    got = run_training(tmp_path, config, token=_StopOnceSavedTwice(tmp_path), clock=ticking_clock())
    assert got.stopped
    assert got.checkpoint is not None
    assert got.checkpoint.step <= got.step  # the second one may be of the very step it stops at
    assert "No checkpoint was saved at the stop" in got.problems[0]


@pytest.mark.parametrize(
    ("files", "want"),
    [
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    ],
)
def test_threads_follow_the_quota(
    tmp_path: Path, files: dict[str, str], want: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert choose_threads(129, cgroup=tmp_path) == want


@pytest.mark.parametrize("files", [{}, {"cpu.max": "max 100000"}, {"cpu/cpu.cfs_quota_us": "-1"}])
def test_threads_without_a_quota_are_at_most_4_and_1_for_small_batches(
    tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert choose_threads(2048, cgroup=tmp_path) == 4
    assert choose_threads(128, cgroup=tmp_path) == 1
