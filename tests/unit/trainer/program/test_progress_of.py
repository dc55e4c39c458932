"""What a TrainingJob shows of a loop."""

import math
from datetime import UTC, datetime
from typing import Any

import pytest

from ktrdr_api.run_contract import Stage
from ktrdr_api.training_job import Display, MetricValue, Progress
from ktrdr_trainer.progress import Forecast, RunView, duration_text, metrics_of, progress_of
from ktrdr_trainer.slot import LoopProgress

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def loop_progress(**changes: Any) -> LoopProgress:
    base = LoopProgress(
        stage=Stage.TRAINING,
        epoch=3,
        total_epochs=50,
        batch=120,
        total_batches=640,
        step=1400,
        samples_per_second=98_765.4,
        metrics={"train_loss": 0.43124},
    )
    return base._replace(**changes)


def shown(loop: LoopProgress | None, *, stage: Stage, view: RunView | None = None) -> Progress:
    view = view or RunView(attempt=2, pod_uid="p-1")
    return progress_of(view, loop, stage=stage, remaining_seconds=260, now=NOW)


def test_progress_in_training_shows_numbers_message_and_columns() -> None:
    want = Progress(
        attempt=2,
        pod_uid="p-1",
        stage=Stage.TRAINING,
        percentage=5 + int(94 * (2 * 640 + 120) / (50 * 640)),
        current_epoch=3,
        total_epochs=50,
        current_batch=120,
        total_batches=640,
        step=1400,
        samples_per_second=98_765,
        estimated_remaining_seconds=260,
        metrics=(MetricValue(name="train_loss", value="0.43124"),),
        message="Epoch 3/50 · Batch 120/640",
        last_update_time="2026-01-02T03:04:05Z",
        display=Display(epoch="3/50", batch="120/640", eta="4m20s", loss="0.4312", progress="9%"),
    )
    assert shown(loop_progress(), stage=Stage.TRAINING) == want


@pytest.mark.parametrize(
    ("loop", "stage", "prepared", "want"),
    [
        (None, Stage.PREPARING, 0.0, 0),
        (None, Stage.PREPARING, 0.5, 2),
        (None, Stage.PREPARING, 1.0, 5),
        (loop_progress(epoch=1, batch=0), Stage.TRAINING, 1.0, 5),
        (loop_progress(epoch=50, batch=640), Stage.SAVING, 1.0, 99),
        (loop_progress(epoch=7, batch=9), Stage.DONE, 1.0, 100),
        (loop_progress(epoch=0, batch=0, total_batches=0), Stage.TRAINING, 1.0, 5),
    ],
)
def test_percentage_at_each_stage_follows_the_scale(
    loop: LoopProgress | None, stage: Stage, prepared: float, want: int
) -> None:
    progress = shown(loop, stage=stage, view=RunView(attempt=1, prepared=prepared))
    assert (progress.percentage, progress.display.progress) == (want, f"{want}%")


def test_metrics_of_hostile_values_keeps_what_the_api_takes() -> None:
    hostile = {
        "nan": math.nan,
        "infinite": math.inf,
        "n" * 1_000_000: 1.0,
        "n" * 63 + "again": 2.0,
        "\x1b[31mred\n": 3.0,
        "": 4.0,
        "huge": 1e308,
        **{f"more_{index}": float(index) for index in range(100)},
    }
    metrics = metrics_of(hostile)
    assert [(metric.name, metric.value) for metric in metrics[:4]] == [
        ("n" * 63, "1"),
        ("_[31mred_", "3"),
        ("huge", "1e+308"),
        ("more_0", "0"),
    ]
    assert len(metrics) == 32
    assert len({metric.name for metric in metrics}) == 32


def test_progress_with_hostile_text_and_rates_is_still_valid() -> None:
    loop = loop_progress(samples_per_second=math.inf, metrics={"train_loss": 1e300})
    view = RunView(attempt=1, message="\x1b[2J" + "x" * 10_000)
    progress = shown(loop, stage=Stage.TRAINING, view=view)
    assert progress.samples_per_second is None
    assert progress.display.loss == ""
    assert progress.message == (" [2J" + "x" * 252)


def test_forecast_after_half_the_batches_expects_the_time_they_took() -> None:
    forecast = Forecast()
    start = loop_progress(epoch=1, batch=1, total_epochs=2, total_batches=101)
    half = loop_progress(epoch=1, batch=101, total_epochs=2, total_batches=101)
    assert forecast.remaining_seconds(start, 10.0) is None
    assert forecast.remaining_seconds(half, 30.0) == round(101 * 20 / 100)


def test_forecast_outside_training_is_unknown() -> None:
    assert Forecast().remaining_seconds(loop_progress(stage=Stage.EVALUATING), 1.0) is None


@pytest.mark.parametrize(
    ("seconds", "want"),
    [(0, "0s"), (42, "42s"), (260, "4m20s"), (7_500, "2h05m"), (273_600, "3d04h")],
)
def test_duration_text_has_two_units(seconds: int, want: str) -> None:
    assert duration_text(seconds) == want
