"""The attempt ran, and its pod does not exist: deleted while nobody watched, or its node was lost.

Its checkpoint, or even its finished result, is on the output volume: the next attempt finds it.
"""

from ktrdr_api import names
from ktrdr_operator.policies.ended import disrupted
from ktrdr_operator.policies.interface import PolicyInput, PolicyResult


def evaluate(policy_input: PolicyInput) -> PolicyResult | None:
    """Decide when an attempt that has run has no pod (the API server was asked)."""
    if policy_input.is_waiting_for_retry or policy_input.pod is not None:
        return None
    if not policy_input.has_run:
        return None
    name = names.pod_name(policy_input.job.name, policy_input.attempt)
    return disrupted(policy_input, f'Pod "{name}" no longer exists (deleted, or its node was lost)')
