"""The largest status that the operator may write: at most 16 KiB in every phase."""

from typing import Any

import pytest

from ktrdr_api.conditions import CONDITIONS_OF_PHASE, ConditionType, Phase
from ktrdr_api.crd import build
from ktrdr_api.run_contract import COUNT_MAX

STATUS_MAX_BYTES = 16 * 1024
LONGEST_TIME = "2026-01-01T00:00:00.123456789+00:00"
TERMINAL = {Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED}
Json = dict[str, Any]


@pytest.fixture(scope="module")
def fields() -> Json:
    version = build()["spec"]["versions"][0]
    found: Json = version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    return found


def largest(node: Json) -> int:
    """Bytes of the longest JSON that a schema node accepts, in ASCII without escapes."""
    if node.get("format") == "date-time":
        return len(f'"{LONGEST_TIME}"')
    match node["type"]:
        case "string":
            return 2 + int(node.get("maxLength", max(map(len, node.get("enum", [""])))))
        case "integer":
            return len(str(node.get("maximum", COUNT_MAX)))
        case "array":
            return 2 + int(node["maxItems"]) * (largest(node["items"]) + len(","))
        case "object":
            pairs = node["properties"].items()
            return 2 + sum(len(f'"{name}":,') + largest(below) for name, below in pairs)
    raise AssertionError(f"no largest value: {node}")


def largest_status(fields: Json, phase: Phase) -> int:
    """The operator's share: all fields that can be set in this phase, each as long as possible."""
    absent = {"progress"}
    absent |= {"waiting", "retryTime"} if phase in TERMINAL else {"completionTime", "result"}
    if phase is not Phase.SUCCEEDED:
        absent.add("result")
    total = sum(
        len(f'"{name}":,') + largest(node) for name, node in fields.items() if name not in absent
    )
    # A condition that is False has no message.
    true = CONDITIONS_OF_PHASE[phase] | (
        {ConditionType.RUNNING} if phase is Phase.CANCELLING else set()
    )
    message = fields["conditions"]["items"]["properties"]["message"]["maxLength"]
    return total - (len(ConditionType) - len(true)) * int(message)


@pytest.mark.parametrize("phase", Phase)
def test_status_of_the_operator_is_bounded_in_every_phase(fields: Json, phase: Phase) -> None:
    assert fields["conditions"]["maxItems"] == len(ConditionType)
    assert largest_status(fields, phase) <= STATUS_MAX_BYTES


def test_progress_of_the_trainer_is_bounded(fields: Json) -> None:
    # It is written every few seconds, and etcd keeps minutes of history.
    assert largest(fields["progress"]) <= 6 * 1024
