import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_operator.queue import WorkQueue
from ktrdr_operator.report_interval import (
    INTERVALS_SECONDS,
    ReportIntervalController,
    report_period,
)
from ktrdr_operator.store import JobKey, Store


@pytest.mark.parametrize(
    ("running", "before", "want"),
    [
        (0, None, None),
        (150, None, None),
        (151, None, 1),
        (301, None, 2),
        (1000, None, 5),
        (1000, 1, 5),
        (1000, 10, 5),
        (1000, 5, 5),
        (500, 5, 5),  # 2 would do, but not with room to spare
        (400, 5, 2),
        (10, 60, None),
        (10**6, None, 60),
    ],
)
def test_report_period_for(running: int, before: int | None, want: int | None) -> None:
    assert report_period(running, 300, before) == want


@given(
    st.lists(st.integers(min_value=0, max_value=18_000), min_size=1, max_size=20),
)
def test_report_period_keeps_the_limit_and_settles(counts: list[int]) -> None:
    period: int | None = None
    for running in counts:
        period = report_period(running, 300, period)
        assert running / (period or 0.5) <= 300
        assert period is None or period in INTERVALS_SECONDS
        assert report_period(running, 300, period) == period


def job(name: str, phase: str = "", **status: object) -> dict[str, object]:
    metadata = {"namespace": "ns", "name": name, "uid": name, "resourceVersion": "1"}
    return {"metadata": metadata, "status": {"phase": phase, **status}}


def test_pacer_tells_those_who_report_or_soon_will_when_the_pace_changes() -> None:
    store, queue = Store(), WorkQueue[JobKey](clock=lambda: 0.0)
    for number in range(8):
        store.put_job(job(f"runs-{number}", "Running"))
    store.put_job(job("new"))
    store.put_job(job("starting", "Starting"))
    store.put_job(job("queued", "Starting", waiting={"reason": "Unschedulable"}))
    store.put_job(job("ended", "Succeeded"))
    report_intervals = ReportIntervalController(store, queue, writes_per_second=3)

    report_intervals.look()

    assert (store.report_period_seconds, len(queue)) == (5, 10)
    report_intervals.look()
    assert len(queue) == 10
