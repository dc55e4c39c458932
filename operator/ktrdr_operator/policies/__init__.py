"""The rules, one file each, in the order in which they may speak; the first that speaks decides.

Each policy is a pure function `Case -> Draft | None`. To change what the operator does in a
situation, find the rule here; to add a situation, add a rule at its place in the order.
"""

from collections.abc import Callable
from typing import Final

from ktrdr_operator.policies import cancel, ended, obstructed, running, start, vanished
from ktrdr_operator.policies.draft import Case, Draft

Policy = Callable[[Case], Draft | None]

POLICIES: Final[tuple[Policy, ...]] = (
    cancel.speak,  # a person's wish comes before everything the pods say
    ended.speak,  # the current attempt has a verdict
    running.speak,  # the trainer runs
    obstructed.speak,  # the pod exists and has not started
    vanished.speak,  # the attempt ran and its pod is gone without a trace
    start.speak,  # nothing runs: start, or say what is missing
)
