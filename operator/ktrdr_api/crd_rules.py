"""What types cannot say about a TrainingJob, as CEL: between fields, and between old and new.

Called by `crd.py`, which hangs each rule on the schema node of its model. The API server evaluates
them; nothing else in the project does. `fieldPath` is given where the server allows one: it must
name a field below the node, which a rule about the node itself or about `metadata` cannot.
"""

from typing import Any, Final

from ktrdr_api import names
from ktrdr_api.conditions import TERMINAL
from ktrdr_api.training_job import MUTABLE_SPEC_FIELDS, STRATEGY_MAX_BYTES, TrainingJobSpec

Rule = dict[str, Any]

RESERVED_ENV_PREFIX: Final = "KTRDR_"
"""Variables that the operator sets from the pod's field references."""


_ORDERED_SETS: Final = frozenset({"symbols", "timeframes"})
"""CEL compares lists of type `set` without their order, and the order of rows and features decides
the model."""


def rules_of(model: str) -> list[Rule]:
    """The rules of one model, by its class name; none for other schema nodes."""
    return list(_RULES.get(model, []))


def _rule(
    rule: str, message: str, *, reason: str = "FieldValueInvalid", path: str | None = None
) -> Rule:
    located = {} if path is None else {"fieldPath": path}
    return {"rule": rule, "message": message, "reason": reason, **located}


def _immutable() -> list[Rule]:
    """One rule a field, so that the message names it: change, addition, removal are refused."""
    rules = []
    for name, field in TrainingJobSpec.model_fields.items():
        wire = field.alias or name
        if wire in MUTABLE_SPEC_FIELDS:
            continue
        order = ".join(',')" if wire in _ORDERED_SETS else ""
        same = f"self.{wire}{order} == oldSelf.{wire}{order}"
        if not field.is_required():
            same = f"has(self.{wire}) == has(oldSelf.{wire}) && (!has(self.{wire}) || {same})"
        message = f"spec.{wire} is immutable after creation"
        rules.append(_rule(same, message, reason="FieldValueForbidden", path=f".{wire}"))
    return rules


_GPU_NAMES: Final = "[" + ", ".join(f"'{name}'" for name in names.GPU_RESOURCES) + "]"
_IS_GPU: Final = f"(k in {_GPU_NAMES} || k.startsWith('{names.GPU_RESOURCE_PREFIX}'))"
_TERMINAL_NAMES: Final = "[" + ", ".join(f"'{condition}'" for condition in TERMINAL) + "]"

_RULES: Final[dict[str, list[Rule]]] = {
    "TrainingJob": [
        _rule(
            "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')"
            f" && size(self.metadata.name) <= {names.NAME_MAX_LENGTH}",
            "metadata.name must be an RFC 1035 label (lower-case letters, digits and '-', beginning"
            f" with a letter) of at most {names.NAME_MAX_LENGTH} characters",
        ),
    ],
    "TrainingJobSpec": [
        _rule(
            "!oldSelf.cancel || self.cancel",
            "cancel is one-way: once true it stays true",
            reason="FieldValueForbidden",
            path=".cancel",
        ),
        _rule(
            "!has(self.startDate) || !has(self.endDate) || self.startDate <= self.endDate",
            "startDate must not be after endDate",
            path=".startDate",
        ),
        *_immutable(),
    ],
    "StrategySource": [
        _rule(
            "has(self.inline) != has(self.configMapKeyRef)",
            "exactly one of inline and configMapKeyRef must be given",
        ),
        _rule(
            f"!has(self.inline) || size(bytes(self.inline)) <= {STRATEGY_MAX_BYTES}",
            f"inline must have at most {STRATEGY_MAX_BYTES} bytes",
            path=".inline",
        ),
    ],
    "ClaimRef": [
        _rule(
            "!has(self.subPath) || !('/' + self.subPath + '/').contains('/../')",
            "subPath must not contain '..'",
            path=".subPath",
        ),
    ],
    "EnvVar": [
        _rule(
            f"!self.name.startsWith('{RESERVED_ENV_PREFIX}')",
            f"names that begin with {RESERVED_ENV_PREFIX} belong to the operator",
            reason="FieldValueForbidden",
            path=".name",
        ),
    ],
    "Resources": [
        _rule(
            "!has(self.limits) || self.limits.all(k,"
            f" !{_IS_GPU} || string(self.limits[k]).matches('^(0|[1-9][0-9]{{0,3}})$'))",
            "GPUs are whole numbers below 10000",  # their sum is a number in status
            path=".limits",
        ),
        _rule(
            f"!has(self.limits) || {_GPU_NAMES}.filter(k, k in self.limits).size()"
            f" + (self.limits.exists(k, k.startsWith('{names.GPU_RESOURCE_PREFIX}')) ? 1 : 0) <= 1",
            f"GPUs must be of one family: {', '.join(names.GPU_RESOURCES)}"
            f" or {names.GPU_RESOURCE_PREFIX}*",
            path=".limits",
        ),
        _rule(
            f"!has(self.requests) || self.requests.all(k, !{_IS_GPU} || (has(self.limits)"
            " && k in self.limits && string(self.limits[k]) == string(self.requests[k])))",
            "GPUs must be in limits, and in requests not at all or with the same number",
            path=".requests",
        ),
    ],
    "Progress": [
        _rule(
            "self.attempt >= oldSelf.attempt",
            "an older attempt may not report: attempt must not fall",
            path=".attempt",
        ),
        _rule(
            # Another pod of the same attempt is that of an earlier TrainingJob of this name, whose
            # last report came late: the server compares no UIDs. It must not bar the right one.
            "self.attempt != oldSelf.attempt || self.podUID != oldSelf.podUID"
            " || self.?step.orValue(0) >= oldSelf.?step.orValue(0)",
            "step must not fall within an attempt",
            path=".step",
        ),
    ],
    "TrainingJobStatus": [
        _rule(
            "!has(oldSelf.progress) || has(self.progress)",
            "progress must not be removed",
            reason="FieldValueForbidden",
            path=".progress",
        ),
        _rule(
            "self.?attempt.orValue(0) >= oldSelf.?attempt.orValue(0)",
            "an operator that looks at an old state may not take an attempt back",
            path=".attempt",
        ),
        _rule(
            f"!has(oldSelf.conditions) || oldSelf.conditions.all(o, !(o.type in {_TERMINAL_NAMES})"
            " || o.status != 'True' || (has(self.conditions) && self.conditions.exists(c,"
            " c.type == o.type && c.status == 'True')))",
            "a job that has ended stays so: terminal conditions must not revert",
            reason="FieldValueForbidden",
            path=".conditions",
        ),
    ],
}
