"""The rules, one file each, in the order in which they may speak; the first that speaks decides.

Each policy is a pure function `Case -> Draft | None`. To change what the operator does in a
situation, find the rule here; to add a situation, add a rule at its place in the order.
"""

from collections.abc import Callable
from typing import Final

from ktrdr_operator.policies import cancel, ended, pod_missing, pod_waiting, running, start
from ktrdr_operator.policies.interface import PolicyInput, PolicyResult

Policy = Callable[[PolicyInput], PolicyResult | None]

POLICIES: Final[tuple[Policy, ...]] = (
    cancel.evaluate,  # a person's wish comes before everything the pods say
    ended.evaluate,  # the current attempt has a verdict
    running.evaluate,  # the trainer runs
    pod_waiting.evaluate,  # the pod exists and has not started
    pod_missing.evaluate,  # the attempt ran and its pod is gone without a trace
    start.evaluate,  # nothing runs: start, or say what is missing
)
