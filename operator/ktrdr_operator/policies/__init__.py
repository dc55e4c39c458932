"""Policies in evaluation order, one per file. The first that returns a result decides.

Each policy is a pure function `PolicyInput -> PolicyResult | None`. To change what the operator
does in a situation, find the policy here; to add a situation, add a policy at its place.
"""

from collections.abc import Callable
from typing import Final

from ktrdr_operator.policies import (
    cancel,
    create_failed,
    ended,
    pod_missing,
    pod_waiting,
    running,
    start,
)
from ktrdr_operator.policies.interface import PolicyInput, PolicyResult

Policy = Callable[[PolicyInput], PolicyResult | None]

POLICIES: Final[tuple[Policy, ...]] = (
    cancel.evaluate,  # a user's cancel request comes before everything the pods report
    ended.evaluate,  # the current attempt has ended
    running.evaluate,  # the trainer runs
    pod_waiting.evaluate,  # the pod exists and its trainer has not started
    pod_missing.evaluate,  # the attempt ran and its pod does not exist
    create_failed.evaluate,  # a child could not be created
    start.evaluate,  # nothing runs: start, or say what is missing
)
