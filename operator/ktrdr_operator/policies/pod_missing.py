"""The attempt ran, and its pod is gone without a verdict: deleted unwatched, or its node lost.

Its checkpoint, or even its finished result, is on the output volume: the next attempt finds it.
"""

from ktrdr_api import names
from ktrdr_api.conditions import ConditionType
from ktrdr_operator.policies.ended import disrupted
from ktrdr_operator.policies.interface import PolicyInput, PolicyResult


def evaluate(case: PolicyInput) -> PolicyResult | None:
    """Speaks when a started attempt has no pod (the API server was asked)."""
    status = case.status
    if status.attempt == 0 or case.pod is not None or case.is_waiting_for_retry:
        return None
    was_running = any(
        c.type == ConditionType.RUNNING and c.status == "True" for c in status.conditions
    )
    if not (case.has_reported or was_running):
        return None
    name = names.pod_name(case.job.name, status.attempt)
    return disrupted(case, f'Pod "{name}" is gone')
