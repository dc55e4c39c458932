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


def test_data_error_names_file_and_row() -> None:
    error = errors.DataError("bad date", file="BTC_1h.csv", row=7)
    assert (str(error), error.file, error.row) == ("BTC_1h.csv, row 7: bad date", "BTC_1h.csv", 7)
    assert str(errors.DataError("too little")) == "too little"
