"""RunResult: it reaches the operator whatever its texts are, and holds nothing invalid."""

from datetime import datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from ktrdr_api.run_contract import (
    COUNT_MAX,
    MESSAGE_MAX_LENGTH,
    TERMINATION_MESSAGE_MAX_BYTES,
    WARNING_MAX_LENGTH,
    WARNINGS_MAX,
    ArtifactRef,
    CheckpointRef,
    Metric,
    Outcome,
    RunResult,
)

DIGEST = "sha256:" + "0" * 64
LONGEST: dict[str, Any] = {
    "job_uid": "u" * 64,
    "attempt": 2**31 - 1,
    "exit_code": 255,
    "outcome": Outcome.TERMINATED,
    "reason": "r" * 64,
    **dict.fromkeys(("epoch", "batch", "step", "epochs_completed", "best_epoch"), COUNT_MAX),
    "duration_seconds": COUNT_MAX,
    "artifact": ArtifactRef(path="p" * 512, digest=DIGEST, size_bytes=COUNT_MAX),
    "checkpoint": CheckpointRef(
        epoch=COUNT_MAX,
        step=COUNT_MAX,
        path="p" * 512,
        time="2026-01-01T00:00:00.123456789+00:00",
        digest=DIGEST,
    ),
}

texts = st.one_of(
    st.text(st.characters(), max_size=MESSAGE_MAX_LENGTH),
    st.sampled_from(["\x00", '"', "\U0001f600", "x"]).map(lambda c: c * MESSAGE_MAX_LENGTH),
)
metrics = st.lists(
    st.builds(Metric, name=st.text(max_size=63), value=st.text(max_size=32)), max_size=32
)


warnings = st.lists(
    st.one_of(
        st.text(max_size=WARNING_MAX_LENGTH),
        st.sampled_from(["\x00", '"', "\U0001f600", "x"]).map(lambda c: c * WARNING_MAX_LENGTH),
    ),
    max_size=WARNINGS_MAX,
)


@given(message=texts, metrics=metrics, warnings=warnings)
def test_termination_message_fits_the_kubelet_and_is_the_same_result(
    message: str, metrics: list[Metric], warnings: list[str]
) -> None:
    result = RunResult(**LONGEST, message=message, metrics=metrics, warnings=warnings)
    text = result.termination_message()
    assert len(text.encode()) <= TERMINATION_MESSAGE_MAX_BYTES
    read = RunResult.model_validate_json(text)
    assert result.message.startswith(read.message)
    assert result.warnings[: len(read.warnings)] == read.warnings
    for part in (result, read):
        cut = part.model_copy(update={"message": "", "metrics": (), "warnings": ()})
        assert cut == RunResult(**LONGEST)


def test_termination_message_that_fits_is_whole() -> None:
    metric = Metric(name="test_loss", value="0.5")
    result = RunResult(
        **LONGEST, message="x" * MESSAGE_MAX_LENGTH, metrics=(metric,), warnings=("w" * 256,)
    )
    assert RunResult.model_validate_json(result.termination_message()) == result


MANY_METRICS = tuple(Metric(name=f"{n:063}", value="0" * 32) for n in range(32))
LONG_WARNINGS = tuple(f"{n}" + "w" * (WARNING_MAX_LENGTH - 1) for n in range(WARNINGS_MAX))


@pytest.mark.parametrize(
    ("message", "warnings", "kept"),
    [("x" * MESSAGE_MAX_LENGTH, 1, 1), ("y" * 300, 8, 7), ("\x00" * MESSAGE_MAX_LENGTH, 8, 0)],
    ids=["metrics dropped first", "then the last warnings", "then the message is cut"],
)
def test_termination_message_too_long_drops_metrics_then_warnings_then_cuts_the_message(
    message: str, warnings: int, kept: int
) -> None:
    result = RunResult(
        **LONGEST, message=message, metrics=MANY_METRICS, warnings=LONG_WARNINGS[:warnings]
    )
    read = RunResult.model_validate_json(result.termination_message())
    assert (read.metrics, read.warnings) == ((), LONG_WARNINGS[:kept])
    assert (read.message == message) is (kept > 0)


def test_result_with_too_many_or_too_long_warnings_is_refused() -> None:
    for warnings in (("w",) * (WARNINGS_MAX + 1), ("w" * (WARNING_MAX_LENGTH + 1),)):
        with pytest.raises(ValidationError, match="warnings"):
            RunResult(**LONGEST, warnings=warnings)


def test_result_with_control_and_bidi_characters_in_a_warning_shows_spaces_there() -> None:
    result = RunResult(**LONGEST, warnings=("\x1b[31mred\n\u202egnp.exe\u2066 \udcff é 😀",))
    assert result.warnings == (" [31mred  gnp.exe    é 😀",)


def result_saved_at(time: str) -> RunResult:
    return RunResult.model_validate(
        {**LONGEST, "checkpoint": {**LONGEST["checkpoint"].model_dump(), "time": time}}
    )


@pytest.mark.parametrize(
    "time",
    [
        "2026-13-45T25:61:61Z",
        "2026-02-30T00:00:00Z",
        "2025-02-29T00:00:00Z",
        "2026-01-01T24:00:00Z",
        "2026-12-31T23:59:60Z",
        "2026-01-01T00:00:00",
        "2026-01-01T00:00:00Z\n",
        "2026-01-01T00:00:00+24:00",
        "2026-01-01T00:00:00+01:60",
        "2026-01-01T00:00:00.1234567890Z",
        "\u0662026-01-01T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+01:00",
        "20260101T000000Z",
        "",
    ],
)
def test_result_with_a_time_that_the_api_server_or_python_rejects_is_refused(time: str) -> None:
    with pytest.raises(ValidationError, match=r"checkpoint\.time"):
        result_saved_at(time)


@given(
    moment=st.datetimes(datetime(1000, 1, 1), datetime(8999, 12, 31)),
    zone=st.sampled_from(["Z", "+05:30", "-11:00"]),
)
@example(datetime(2024, 2, 29), "Z")
def test_result_with_a_real_time_is_accepted(moment: datetime, zone: str) -> None:
    assert result_saved_at(moment.isoformat() + zone).checkpoint is not None


def test_result_with_the_name_of_a_file_that_is_no_text_is_made_all_the_same() -> None:
    # Python reads the bytes of a file name that are not UTF-8 as lone surrogates.
    result = RunResult(**{**LONGEST, "message": "a\udcff.json: No such file"})
    assert result.message == "a?.json: No such file"
