"""Warnings reach the run result, whatever they say and however many there are."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktrdr_api.run_contract import RunResult
from ktrdr_trainer.request import read_request
from ktrdr_trainer.run import run
from ktrdr_trainer.run_warnings import RunWarnings
from ktrdr_trainer.runtime import Runtime
from trainer_process import Workplace


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    made = Workplace(tmp_path / "job")
    made.write_data(rows=2000)
    return made


@pytest.fixture
def signals() -> Iterator[int]:
    """A pipe without signals, closed at the end, so that the thread that reads it ends."""
    reader, writer = os.pipe()
    yield reader
    os.close(writer)
    logging.captureWarnings(False)


def result_of(place: Workplace, signals: int, *, attempt: int = 1) -> RunResult:
    """Run to the end; the run result as the operator reads it."""
    file = place.write_request(attempt=attempt)
    around = Runtime(termination_log=place.termination_log)
    run(lambda: read_request(file), around, signals=signals, wait_for_torch=lambda _: None)
    return RunResult.model_validate_json(place.termination_log.read_bytes())


def change_row(place: Workplace, row: int, column: int, text: str) -> None:
    file = place.root / "data/BTC_1h.csv"
    lines = file.read_text().splitlines()
    cells = lines[row - 1].split(",")
    cells[column] = text
    lines[row - 1] = ",".join(cells)
    file.write_text("\n".join(lines) + "\n")


def test_run_warnings_repeated_and_too_many_are_bounded_and_counted() -> None:
    warnings = RunWarnings()
    for number in range(12):
        for _ in range(2):
            warnings.add(f"warning {number}")
    want = (*(f"warning {number}" for number in range(7)), "5 more warnings; see the trainer's log")
    assert warnings.texts == want


def test_run_warnings_long_or_unprintable_are_valid_in_a_run_result() -> None:
    warnings = RunWarnings()
    warnings.add("\x1b[31m\u202e\udcff" + "x" * 1000)
    [text] = warnings.texts
    assert text == " [31m  " + "x" * 246 + "..."
    assert len(text) == 256


def test_run_to_the_end_has_the_warnings_of_strategy_and_data_in_every_copy_of_its_result(
    place: Workplace, signals: int
) -> None:
    place.strategy["indicators"]["unused"] = {"type": "sma", "period": 5}
    change_row(place, 100, 1, "-1.0")
    result = result_of(place, signals)
    assert result.exit_code == 0
    strategy, data = result.warnings
    assert strategy.startswith("indicators.unused: ")
    assert data == (
        "Dropped rows with a missing, non-positive or inconsistent price (1 in total): "
        "BTC_1h.csv (1)"
    )
    for file in ("results/u-1.json", "models/test_strategy/1h_v1/result.json"):
        stored = json.loads((place.output / file).read_text())
        assert stored["warnings"] == list(result.warnings)


def test_run_that_fails_keeps_the_warnings_so_far(place: Workplace, signals: int) -> None:
    place.strategy["indicators"]["unused"] = {"type": "sma", "period": 5}
    (place.root / "data/BTC_1h.csv").unlink()
    result = result_of(place, signals)
    assert (result.exit_code, len(result.warnings)) == (3, 1)


def test_run_that_resumes_beside_a_damaged_checkpoint_warns_that_it_was_skipped(
    place: Workplace, signals: int
) -> None:
    folder = place.output / "checkpoints/u-1"
    folder.mkdir(parents=True)
    (folder / "0001-000000000070.json").write_text("damaged")
    result = result_of(place, signals, attempt=2)
    assert (result.exit_code, result.warnings) == (
        0, ("Skipped damaged checkpoint 0001-000000000070: the manifest is not one",)
    )  # fmt: skip


def test_run_whose_result_cannot_be_stored_says_so_in_the_termination_message(
    place: Workplace, signals: int
) -> None:
    (place.output / "results").touch()  # no folder
    result = result_of(place, signals)
    assert result.exit_code == 0
    [warning] = result.warnings
    assert warning.startswith("The run result was not stored: ")
    beside = json.loads((place.output / "models/test_strategy/1h_v1/result.json").read_text())
    assert beside["warnings"] == [warning]
