"""Copies of TrainingJobs that the scale benchmark seeds, and the trainers that it plays."""

import json

from bench.reporters import trainer_of
from bench.scale_phases import ReportRates
from bench.seeding import FINISHED, LAST_APPLIED, Template, job_body, progress, run_result
from ktrdr_api.run_contract import RunResult
from ktrdr_api.training_job import STRATEGY_MAX_BYTES, ProgressSettings, TrainingJobSpec


def test_template_copy_replaces_name_and_uids_everywhere() -> None:
    template = Template('{"a": "job-uid", "b": "template-x"}', '["template-x-1-0", "pod-uid"]',
                        "template-x", "job-uid", "pod-uid")  # fmt: skip

    copied = template.copy("ns", "seed-1")

    assert list(copied) == [
        "/registry/ktrdr.io/trainingjobs/ns/seed-1",
        "/registry/pods/ns/seed-1-1-0",
    ]
    job, pod = (json.loads(text) for text in copied.values())
    assert job["b"] == "seed-1"
    assert pod[0] == "seed-1-1-0"
    assert len({job["a"], pod[1], "job-uid", "pod-uid"}) == 4


def test_large_job_has_the_largest_strategy_and_its_copy() -> None:
    body = job_body("ns", "job", FINISHED, large=True)

    spec = TrainingJobSpec.model_validate(body["spec"])
    assert (
        STRATEGY_MAX_BYTES - 10 < len((spec.strategy.inline or "").encode()) <= STRATEGY_MAX_BYTES
    )
    copy = json.loads(body["metadata"]["annotations"][LAST_APPLIED])
    assert copy["spec"] == body["spec"]


def test_run_result_is_one_that_the_operator_reads() -> None:
    text = run_result("uid").termination_message()

    assert RunResult.model_validate_json(text).exit_code == 0


def test_trainer_waits_for_the_longer_of_both_periods() -> None:
    status = {"progress": progress("pod-uid", 5)}
    raw = {"metadata": {"name": "job"}, "spec": {}, "status": status}
    own = ProgressSettings().period_seconds

    assert trainer_of(raw).period_seconds() == own
    told = {**raw, "status": {**status, "reportPeriodSeconds": own + 20}}
    assert trainer_of(told).period_seconds() == own + 20
    asked = {**raw, "spec": {"progress": {"periodSeconds": own + 1}}}
    assert trainer_of(asked).period_seconds() == own + 1


def test_slow_api_server_does_not_pass_for_a_small_rate() -> None:
    rates = ReportRates(
        trainers=100,
        seconds=40.0,
        per_second=10.0,
        permitted_per_second=50.0,
        refused=0,
        object_bytes_per_second=1e5,
        etcd_bytes_per_second=1e5,
        etcd_log_bytes_per_second=1e5,
        api_server_cores=1.0,
        etcd_cores=0.1,
        operator_cores=0.1,
        periods=[2.0],
    )

    assert (rates.judged_per_second, rates.history_megabytes) == (50.0, 300.0)
