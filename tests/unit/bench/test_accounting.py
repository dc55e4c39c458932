"""What the benchmarks count and judge, on values that are known."""

import pytest

from bench.accounting import Exposition, Requests, is_write
from bench.apply_rounds import OUR_JOBS, POD_GONE, POD_STOPPING, stages_of_object, stages_of_pod
from bench.bench_apply import scheduler_floor_seconds
from bench.operator_process import longest_pause_seconds
from bench.thresholds import FAILED, NOT_JUDGED, OK, SHORT, Threshold, summary

METRICS = """\
# TYPE apiserver_request_total counter
apiserver_request_total{code="201",dry_run="",group="",resource="pods",subresource="",verb="POST"} 7
apiserver_request_total{code="409",dry_run="",group="",resource="pods",subresource="",verb="POST"} 2
apiserver_request_total{code="201",group="",resource="events",subresource="",verb="POST"} 5
apiserver_request_total{code="200",group="coordination.k8s.io",resource="leases",verb="PUT"} 40
apiserver_request_total{code="200",group="",resource="pods",subresource="",verb="GET"} 100
loop_bucket{le="0.1"} 3
loop_bucket{le="+Inf"} 3
"""


def test_requests_counts_accepted_writes_events_and_refusals_apart() -> None:
    requests = Requests.of(Exposition(METRICS))

    assert (requests.writes(), requests.events(), requests.refused()) == (7, 5, 2)


def test_requests_since_counts_only_the_difference() -> None:
    before = Requests.of(Exposition(METRICS))
    after = Requests.of(Exposition(METRICS.replace("} 7", "} 10")))

    assert after.since(before).writes() == 3


@pytest.mark.parametrize(
    ("request_kind", "want"),
    [
        (("POST", "", "pods", "binding"), True),
        (("APPLY", "ktrdr.io", "trainingjobs", "status"), True),
        (("LIST", "", "pods", ""), False),
        (("PATCH", "", "nodes", "status"), False),
        (("POST", "authorization.k8s.io", "subjectaccessreviews", ""), False),
        (("POST", "", "serviceaccounts", "token"), False),
    ],
    ids=lambda value: "/".join(value) if isinstance(value, tuple) else None,
)
def test_is_write_leaves_out_heartbeats_and_what_is_not_stored(
    request_kind: tuple[str, str, str, str], want: bool
) -> None:
    assert is_write(*request_kind) is want


def test_longest_pause_without_the_gauge_is_the_bound_of_the_last_bucket() -> None:
    text = METRICS.replace("loop_bucket", "ktrdr_event_loop_lag_seconds_bucket")

    assert longest_pause_seconds(Exposition(text))[0] == 0.1
    exact = "ktrdr_event_loop_longest_pause_seconds 0.042\n"
    assert longest_pause_seconds(Exposition(text + exact))[0] == 0.042


@pytest.mark.parametrize(
    ("value", "excuse", "want"),
    [
        (2.004, "", OK),
        (2.006, "", SHORT),
        (2.206, "", FAILED),
        (2.206, "slow machine", NOT_JUDGED),
        (1.0, "slow machine", OK),
        (float("inf"), "", FAILED),
    ],
)
def test_threshold_judges_what_is_printed(value: float, excuse: str, want: str) -> None:
    assert Threshold("CPU", value, 2.0, 2.2, "x", excuse=excuse).verdict() == want


def test_summary_exits_non_zero_only_beyond_a_limit() -> None:
    short, failed = Threshold("a", 2.1, 2.0, 2.2), Threshold("b", 3.0, 2.0, 2.2)

    assert summary("bench", "text", [short]) == ("bench: text; short of the goal: a", 0)
    assert summary("bench", "text", [failed]) == ("bench: text; FAILED: b", 1)


def test_stages_follow_watch_events() -> None:
    metadata = {"name": "a", "deletionTimestamp": "now"}
    pod = {"metadata": metadata, "spec": {}, "status": {"phase": "Pending"}}

    assert {POD_STOPPING, POD_GONE} <= set(stages_of_pod("DELETED", pod))
    job = {"metadata": {}, "status": {"phase": "Running"}}
    assert "status says running" in stages_of_object(OUR_JOBS, "MODIFIED", job)


def test_scheduler_floor_is_the_time_beyond_its_burst() -> None:
    assert (scheduler_floor_seconds(500), scheduler_floor_seconds(50)) == (8.0, 0.0)
