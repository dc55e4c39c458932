"""What a user is told who asks for something impossible: exit code, message, no traceback."""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ktrdr_trainer.__main__ import main
from ktrdr_trainer.request import read_request
from ktrdr_trainer.run import run
from ktrdr_trainer.runtime import Runtime
from trainer_process import SHIPPED, Workplace

Change = Callable[[Workplace], object]


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    made = Workplace(tmp_path / "job")
    made.write_data(rows=500)
    return made


@pytest.fixture
def signals() -> Iterator[int]:
    """A pipe without signals, closed at the end, so that the thread that reads it ends."""
    reader, writer = os.pipe()
    yield reader
    os.close(writer)
    logging.captureWarnings(False)


def outcome(place: Workplace, signals: int, **changes: Any) -> tuple[int, str, str]:
    """Exit code, reason and message of a run."""
    file = place.write_request(**changes)
    around = Runtime(termination_log=place.termination_log)
    code = run(lambda: read_request(file), around, signals=signals, wait_for_torch=lambda _: None)
    words = place.last_words
    return code, words["reason"], words["message"]


def data_file(place: Workplace) -> Path:
    return place.root / "data/BTC_1h.csv"


def replace_in_row(place: Workplace, row: int, column: int, text: str) -> None:
    lines = data_file(place).read_text().splitlines()
    cells = lines[row - 1].split(",")
    cells[column] = text
    lines[row - 1] = ",".join(cells)
    data_file(place).write_text("\n".join(lines) + "\n")


def negative_prices(place: Workplace) -> None:
    for row in range(10, 30):
        replace_in_row(place, row, 1, "-1.0")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda place: data_file(place).unlink(), ["BTC_1h.csv"]),
        (lambda place: data_file(place).write_text(""), ["BTC_1h.csv", "empty"]),
        (lambda place: replace_in_row(place, 7, 0, "someday"), ["BTC_1h.csv", "row 7", "someday"]),
        (negative_prices, ["BTC_1h.csv", "more than 1%"]),
        (lambda place: place.write_data(rows=60), ["BTC_1h.csv", "60 bars", "history_required"]),
    ],
    ids=["missing", "empty", "unparsable-date", "negative-prices", "too-few-bars"],
)
def test_run_on_bad_data_ends_with_3_and_names_file_and_remedy(
    place: Workplace, signals: int, change: Change, words: list[str]
) -> None:
    change(place)
    code, reason, message = outcome(place, signals)
    assert (code, reason) == (3, "InvalidData")
    assert [word for word in words if word not in message] == [], message


def test_run_of_a_strategy_with_an_unknown_key_ends_with_2_and_its_path(
    place: Workplace, signals: int
) -> None:
    place.strategy["training"]["learning_rat"] = 0.1
    code, reason, message = outcome(place, signals)
    assert (code, reason) == (2, "InvalidStrategy")
    assert "training.learning_rat" in message


def test_run_of_a_strategy_changed_after_the_request_ends_with_2(
    place: Workplace, signals: int
) -> None:
    code, reason, message = outcome(place, signals, strategy_digest="0" * 64)
    assert (code, reason) == (2, "InvalidRequest")
    assert "write a new request" in message


def test_run_reporting_to_kubernetes_outside_a_pod_ends_with_2(
    place: Workplace, signals: int
) -> None:
    code, _, message = outcome(place, signals, reporting="kubernetes")
    assert (code, place.last_words["jobUid"]) == (2, "u-1")
    assert "KUBERNETES_SERVICE_HOST" in message


def test_command_beside_a_request_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--request", "request.json", "validate", str(SHIPPED)])
    assert "--request runs by itself, not beside validate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "Invalid JSON"), ("{}", "attempt: Field required"), (None, "check the path")],
)
def test_run_of_an_unreadable_request_ends_with_2_and_says_why(
    place: Workplace, signals: int, text: str | None, words: str
) -> None:
    file = place.root / "run/request.json"
    if text is not None:
        file.write_text(text)
    around = Runtime(termination_log=place.termination_log)
    code = run(lambda: read_request(file), around, signals=signals, wait_for_torch=lambda _: None)
    assert code == 2
    assert words in place.last_words["message"]


def test_run_on_an_output_that_cannot_be_written_ends_before_it_trains_and_at_once(
    place: Workplace, signals: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (place.root / "file").touch()
    began = time.monotonic()
    code, _, message = outcome(place, signals, output_folder=str(place.root / "file/output"))
    assert time.monotonic() - began < 30  # and not a minute of attempts to write the progress
    assert code == 75
    assert re.search(r"checkpoints.*: Not a directory; check the output volume", message), message
    assert "Training" not in capsys.readouterr().err


def test_run_of_bad_input_logs_one_json_error_without_traceback(
    place: Workplace, signals: int, capsys: pytest.CaptureFixture[str]
) -> None:
    data_file(place).unlink()
    outcome(place, signals)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    errors = [line for line in lines if line["level"] == "error"]
    assert [(line["exitCode"], line["uid"], "traceback" in line) for line in errors] == [
        (3, "u-1", False)
    ]


def test_run_beside_a_file_whose_name_is_no_text_still_says_what_is_missing(
    place: Workplace, signals: int
) -> None:
    data_file(place).rename(os.fsdecode(b"%b/\xff.csv" % os.fsencode(place.root / "data")))
    code, reason, message = outcome(place, signals)
    assert (code, reason) == (3, "InvalidData")
    assert "its first files are: \\udcff.csv" in message


def test_run_hit_by_a_defect_logs_the_traceback_and_ends_with_1(
    place: Workplace, signals: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Callable[[], None]) -> None:
        raise ZeroDivisionError("seven by zero")

    file = place.write_request()
    around = Runtime(termination_log=place.termination_log)
    code = run(lambda: read_request(file), around, signals=signals, wait_for_torch=broken)
    assert code == 1
    assert place.last_words["message"] == "ZeroDivisionError: seven by zero"
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert any("Traceback" in line.get("traceback", "") for line in lines)


def test_validate_of_good_and_bad_files_prints_each_problem_with_its_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(SHIPPED.read_text().replace("epochs: 5", "epochs: -5"))
    no_yaml = tmp_path / "no_yaml.yaml"
    no_yaml.write_text("{")
    assert main(["validate", str(SHIPPED)]) == 0
    assert main(["validate", str(SHIPPED), str(bad), str(no_yaml)]) == 2
    printed = capsys.readouterr()
    assert printed.out.count("test_strategy.yaml: valid") == 2
    assert f"{bad}: training.epochs: " in printed.err
    assert f"{no_yaml}: (file): not valid YAML" in printed.err


def test_validate_of_a_file_named_otherwise_than_its_strategy_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(SHIPPED.read_text())
    assert main(["validate", str(other)]) == 2
    assert "must be the file's name" in capsys.readouterr().err


def test_evaluate_beside_a_request_that_is_none_ends_with_2_and_names_the_file(
    place: Workplace, signals: int, capsys: pytest.CaptureFixture[str]
) -> None:
    place.write_data(rows=2000)
    assert outcome(place, signals)[0] == 0
    folder = place.output / "models/test_strategy/1h_latest"
    (folder / "request.json").write_text("{}")
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--data", str(place.root / "data")]) == 2
    assert (
        f"{folder}/request.json: not a RunRequest: job: Field required" in capsys.readouterr().err
    )
