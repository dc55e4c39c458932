"""The trainer runs: say since when and where, and keep its newest checkpoint in sight."""

from ktrdr_api.conditions import Phase, Reason
from ktrdr_operator.policies.interface import PolicyInput, PolicyResult, format_timestamp


def evaluate(case: PolicyInput) -> PolicyResult | None:
    """Speaks when the trainer container of the current attempt has started and not ended."""
    pod = case.pod
    if pod is None or pod.ended or pod.started is None:
        return None
    return PolicyResult(
        phase=Phase.RUNNING,
        reason=Reason.RUNNING,
        message=f'The trainer runs in pod "{pod.name}"',
        changes={
            "start_time": case.status.start_time or format_timestamp(pod.started),
            "host": pod.node,
            "waiting": None,
            "retry_time": None,
            "report_period_seconds": case.snapshot.report_period_seconds,
            "checkpoint": case.checkpoint,
        },
    )
