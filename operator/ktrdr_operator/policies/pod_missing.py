"""The attempt ran and its pod does not exist: it was deleted unobserved, or its node was lost.

Its checkpoint, or even its model, is on the output volume, where the next attempt finds it.
"""

from ktrdr_api import names
from ktrdr_operator.policies.ended import disrupted
from ktrdr_operator.policies.interface import PolicyInput, PolicyResult


def evaluate(policy_input: PolicyInput) -> PolicyResult | None:
    """Decide when an attempt that has run has no pod; `observe` has asked the API server."""
    if policy_input.is_waiting_for_retry or policy_input.pod is not None:
        return None
    if not policy_input.has_run:
        return None
    name = names.pod_name(policy_input.job.name, policy_input.attempt)
    return disrupted(policy_input, f'Pod "{name}" no longer exists (deleted, or its node was lost)')
