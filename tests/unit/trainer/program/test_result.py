"""The last word of a run that was stopped: who asked may come out late, and more than once."""

import pytest

from ktrdr_api.run_contract import CheckpointRef, JobIdentity, RunRequest
from ktrdr_trainer.result import settled, stopped
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
