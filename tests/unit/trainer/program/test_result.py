"""The run result: who stopped the run may become known late; the kubelet's file has a limit."""

from pathlib import Path

import pytest

from ktrdr_api.run_contract import (
    MESSAGE_MAX_LENGTH,
    TERMINATION_MESSAGE_MAX_BYTES,
    CheckpointRef,
    JobIdentity,
    Metric,
    RunRequest,
    RunResult,
)
from ktrdr_trainer.result import settled, stopped, tell_kubelet
from ktrdr_trainer.stop import StopToken
from ktrdr_trainer.stopping import StopReason, StopRequests

REQUEST = RunRequest(
    job=JobIdentity(namespace="default", name="job", uid="u-1"),
    attempt=1,
    strategy_file="strategy.yaml",
    strategy_digest="0" * 64,
    data_folder="/data",
    output_folder="/output",
)
SAVED = CheckpointRef(
    epoch=2,
    step=70,
    path="checkpoints/u-1/x.json",
    time="2024-05-06T07:08:09Z",
    digest=f"sha256:{'0' * 64}",
)
WHERE = "in epoch 2, batch 20; checkpoint at step 70"


@pytest.mark.parametrize(
    ("first", "later", "code", "message"),
    [
        (StopReason.SIGTERM, StopReason.SIGTERM, 143, f"Stopped by SIGTERM {WHERE}"),
        (StopReason.SIGTERM, StopReason.CANCEL, 10, f"Cancelled {WHERE}"),
        (StopReason.CANCEL, StopReason.SIGTERM, 10, f"Cancelled {WHERE}"),
        (StopReason.SIGTERM, StopReason.SUPERSEDED, 143, f"Superseded by a later attempt {WHERE}"),
        (
            StopReason.SUPERSEDED,
            StopReason.SIGTERM,
            143,
            f"Superseded by a later attempt {WHERE}",
        ),
    ],
)
def test_settled_again_says_once_who_asked(
    first: StopReason, later: StopReason, code: int, message: str
) -> None:
    stops = StopRequests(StopToken())
    stops.ask(first)
    result = stopped(REQUEST, stops, epoch=2, batch=20, checkpoint=SAVED)
    stops.ask(later)
    final = settled(settled(result, stops), stops)
    assert (final.exit_code, final.message) == (code, message)


def test_stopped_before_training_has_no_place_and_no_checkpoint() -> None:
    stops = StopRequests(StopToken())
    stops.ask(StopReason.INTERRUPT)
    assert stopped(REQUEST, stops).message == "Cancelled before training began; no checkpoint"


def test_tell_kubelet_of_a_result_beyond_4_kib_writes_what_the_operator_can_read(
    tmp_path: Path,
) -> None:
    termination_log = tmp_path / "termination-log"
    termination_log.touch()
    metrics = tuple(Metric(name=f"{number:063}", value="0" * 32) for number in range(32))
    result = stopped(REQUEST, StopRequests(StopToken())).model_copy(
        update={"message": "x" * MESSAGE_MAX_LENGTH, "metrics": metrics}
    )
    assert len(result.model_dump_json()) > TERMINATION_MESSAGE_MAX_BYTES
    tell_kubelet(result, termination_log, warn=pytest.fail)
    written = termination_log.read_bytes()
    assert len(written) <= TERMINATION_MESSAGE_MAX_BYTES
    want = result.model_copy(update={"metrics": ()})
    assert RunResult.model_validate_json(written) == want


def test_tell_kubelet_that_cannot_write_warns(tmp_path: Path) -> None:
    warned: list[str] = []
    tell_kubelet(stopped(REQUEST, StopRequests(StopToken())), tmp_path, warn=warned.append)
    [warning] = warned
    assert warning.startswith("The termination message was not written: ")
