"""The error tree: what each class ends a run with, and whether another try can help."""

import pytest

from ktrdr_api import errors

WANT = {
    errors.KtrdrError: ("TrainerFailed", 1, True),
    errors.BadRequestError: ("InvalidRequest", 2, False),
    errors.StrategyError: ("InvalidStrategy", 2, False),
    errors.DataError: ("InvalidData", 3, False),
    errors.CheckpointError: ("TrainerFailed", 1, True),
    errors.TemporaryError: ("TrainerFailed", 75, True),
    errors.CancellationError: ("Cancelled", 10, False),
}


@pytest.mark.parametrize("kind", WANT)
def test_error_class_knows_its_reason_exit_code_and_retry(kind: type[errors.KtrdrError]) -> None:
    assert (kind.reason, kind.exit_code, kind.retryable) == WANT[kind]


def test_error_tree_is_complete_here() -> None:
    found = {item for item in vars(errors).values() if isinstance(item, type)}
    assert {item for item in found if issubclass(item, errors.KtrdrError)} == WANT.keys()


def test_strategy_error_cuts_lists_and_lines_only_beyond_their_limits() -> None:
    hundred = [(f"key{number}", "wrong") for number in range(100)]
    assert str(errors.StrategyError("s", hundred)).splitlines()[-1] == "s: key99: wrong"
    more = str(errors.StrategyError("s", [*hundred, ("last", "wrong")])).splitlines()
    assert (len(more), more[-1]) == (101, "s: and 1 more problems")
    longest, longer = (str(errors.StrategyError("s", [("k", "x" * n)])) for n in (494, 495))
    assert longest == "s: k: " + "x" * 494
    assert longer == "s: k: " + "x" * 491 + "..."


def test_data_error_names_file_and_row() -> None:
    error = errors.DataError("bad date", file="BTC_1h.csv", row=7)
    assert (str(error), error.file, error.row) == ("BTC_1h.csv, row 7: bad date", "BTC_1h.csv", 7)
    assert str(errors.DataError("too little")) == "too little"
