"""The last word of a run: it must reach the operator whatever it says."""

from hypothesis import given
from hypothesis import strategies as st

from ktrdr_api.run_contract import (
    COUNT_MAX,
    MESSAGE_MAX_LENGTH,
    TERMINATION_MESSAGE_MAX_BYTES,
    ArtifactRef,
    CheckpointRef,
    Metric,
    Outcome,
    RunResult,
)

DIGEST = "sha256:" + "0" * 64
LONGEST = {
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


@given(message=texts, metrics=metrics)
def test_termination_message_fits_the_kubelet_and_is_the_same_result(
    message: str, metrics: list[Metric]
) -> None:
    result = RunResult.model_validate({**LONGEST, "message": message, "metrics": tuple(metrics)})
    text = result.termination_message()
    assert len(text.encode()) <= TERMINATION_MESSAGE_MAX_BYTES
    read = RunResult.model_validate_json(text)
    assert result.message.startswith(read.message)
    for part in (result, read):
        assert part.model_copy(update={"message": "", "metrics": ()}) == RunResult(**LONGEST)


def test_termination_message_that_fits_is_whole() -> None:
    metric = Metric(name="test_loss", value="0.5")
    result = RunResult(**{**LONGEST, "message": "x" * MESSAGE_MAX_LENGTH, "metrics": (metric,)})
    assert RunResult.model_validate_json(result.termination_message()) == result


def test_termination_message_too_long_loses_metrics_before_words() -> None:
    many = tuple(Metric(name=f"{n:063}", value="0" * 32) for n in range(32))
    result = RunResult(**{**LONGEST, "message": "x" * MESSAGE_MAX_LENGTH, "metrics": many})
    read = RunResult.model_validate_json(result.termination_message())
    assert (read.metrics, read.message) == ((), "x" * MESSAGE_MAX_LENGTH)


def test_result_with_the_name_of_a_file_that_is_no_text_is_made_all_the_same() -> None:
    # Python reads the bytes of a file name that are not UTF-8 as lone surrogates.
    result = RunResult(**{**LONGEST, "message": "a\udcff.json: No such file"})
    assert result.message == "a?.json: No such file"
