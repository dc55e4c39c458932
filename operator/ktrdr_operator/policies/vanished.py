"""The attempt ran, and its pod is gone without a verdict: deleted unwatched, or its node lost.

Its checkpoint, or even its finished result, is on the output volume: the next attempt finds it.
"""

from ktrdr_api import names
from ktrdr_api.conditions import ConditionType
from ktrdr_operator.policies.draft import Case, Draft
from ktrdr_operator.policies.ended import disrupted


def speak(case: Case) -> Draft | None:
    """Speaks when a started attempt has no pod (the API server was asked)."""
    status = case.status
    if status.attempt == 0 or case.pod is not None or status.retry_time is not None:
        return None
    reported = status.progress is not None and status.progress.attempt == status.attempt
    was_running = any(
        c.type == ConditionType.RUNNING and c.status == "True" for c in status.conditions
    )
    if not (reported or was_running):
        return None
    name = names.pod_name(case.job.name, status.attempt)
    return disrupted(case, f'Pod "{name}" is gone')
