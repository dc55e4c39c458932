"""CEL rules of the CRD: what types cannot say, between fields and between old and new objects.

`crd.py` puts each rule on the schema node of its model, field or field type; the API server
evaluates them, and nothing else in the project does. Every rule has a message that says what is
expected; where the API server would not show the wrong part (in maps), `messageExpression` adds it.
`fieldPath` is given where the API server allows one: it must name a field below the node, which a
rule about the node itself or about `metadata` cannot.

Rules about the pod follow ValidatePodSpec in kubernetes/pkg/apis/core/validation/validation.go, so
that a TrainingJob whose pod the API server would reject is rejected itself. Not known here, and so
left to the operator: LimitRange (its defaults can make a request exceed a limit), ResourceQuota,
Pod Security, admission policies and webhooks, and whether a named object exists.
"""

from collections.abc import Iterable
from typing import Any, Final

from ktrdr_api import names
from ktrdr_api.conditions import TERMINAL
from ktrdr_api.training_job import MUTABLE_SPEC_FIELDS, STRATEGY_MAX_BYTES, TrainingJobSpec

Rule = dict[str, Any]

RESERVED_ENV_PREFIX: Final = "KTRDR_"
"""Prefix of the variables that the operator sets."""

_ORDERED_SETS: Final = frozenset({"symbols", "timeframes"})
"""CEL compares lists of type `set` without their order, and the order of rows and features decides
the model."""


def rules_of(name: str) -> list[Rule]:
    """The rules of a model (by class name) or of a field type (by its `RULES`); may be empty."""
    return list(ALL_RULES.get(name, []))


def rules_of_field(model: str, field: str) -> list[Rule]:
    """The rules of one field of a model, for the field's own node.

    There `self` is that field alone. At the node of the spec the API server converts all fields for
    each access (measured: immutability rules there add 16 % to the memory that a status write
    allocates, 0.5 MB).
    """
    if model != TrainingJobSpec.__name__:
        return []
    if field == "cancel":
        return [_CANCEL_IS_ONE_WAY]
    if field in MUTABLE_SPEC_FIELDS:
        return []
    order = ".join(',')" if field in _ORDERED_SETS else ""
    return [_immutable(field, f"self{order} == oldSelf{order}")]


def rules_of_presence(optional_fields: Iterable[str]) -> list[Rule]:
    """Rules of the spec against adding and removing a field without a default.

    The field's own rule is not evaluated where the old or the new object lacks the field.
    """
    return [
        _immutable(field, f"has(self.{field}) == has(oldSelf.{field})", f".{field}")
        for field in optional_fields
        if field not in MUTABLE_SPEC_FIELDS
    ]


def _rule(
    rule: str,
    message: str,
    *,
    reason: str = "FieldValueInvalid",
    path: str | None = None,
    found: str | None = None,
) -> Rule:
    """Build a validation rule.

    Args:
        rule: CEL expression that is true for a valid value.
        message: What is expected.
        reason: Reason of the error: FieldValueInvalid or FieldValueForbidden.
        path: Path of the field at fault, below the node.
        found: CEL expression for the wrong part, which is added to the message.
    """
    located = {} if path is None else {"fieldPath": path}
    if found is not None:
        literal = message.replace("'", "\\'")
        located["messageExpression"] = f"'{literal}; got: ' + {found}"
    return {"rule": rule, "message": message, "reason": reason, **located}


def _immutable(field: str, same: str, path: str | None = None) -> Rule:
    message = f"spec.{field} is immutable after creation; create a new TrainingJob instead"
    return _rule(same, message, reason="FieldValueForbidden", path=path)


_CANCEL_IS_ONE_WAY: Final = _rule(
    "!oldSelf || self",  # never absent: it has a default
    "cancel cannot be reset to false; create a new TrainingJob instead",
    reason="FieldValueForbidden",
)


def _all_entries(condition: str, message: str, *, value: str = "string(self[k])") -> Rule:
    """Build a rule about each entry of a map, with key `k`; the message names a wrong one."""
    wrong = f"self.map(k, !({condition}), k + ': ' + {value})[0]"
    return _rule(f"self.all(k, {condition})", message, found=wrong)


_LABEL: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN: Final = rf"{_LABEL}(\\.{_LABEL})*"
_NAME_63: Final = "[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?"
_IS_LABEL_KEY: Final = f"matches('^({_SUBDOMAIN}/)?{_NAME_63}$')"
_IS_LABEL_VALUE: Final = f"matches('^({_NAME_63})?$')"
_LABEL_KEY_WORDS: Final = (
    "label and taint keys have letters, digits, '-', '_' and '.', at most 63, and optionally a DNS"
    " subdomain and '/' before them"
)
_LABEL_VALUE_WORDS: Final = (
    "label and taint values have letters, digits, '-', '_' and '.', at most 63, and begin and end"
    " with a letter or digit"
)
_SUBDOMAIN_WORDS: Final = (
    "must be a DNS subdomain: lower-case letters, digits, '-' and '.'; each part between dots"
    " begins and ends with a letter or digit"
)
_PATH_COMPONENT: Final = "[a-z0-9]+(([.]|__?|-+)[a-z0-9]+)*"
_IMAGE: Final = (
    r"^(([A-Za-z0-9]([-.A-Za-z0-9]*[A-Za-z0-9])?|\\[[0-9A-Fa-f:]+\\])(:[0-9]+)?/)?"
    f"{_PATH_COMPONENT}(/{_PATH_COMPONENT})*"
    "(:[A-Za-z0-9_][-.A-Za-z0-9_]{0,127})?(@[a-z0-9]+:[0-9a-f]{32,})?$"
)
"""As the kubelet parses it. Source: github.com/distribution/reference/reference.go."""

_GPU_NAMES: Final = "[" + ", ".join(f"'{name}'" for name in names.GPU_RESOURCES) + "]"
_IS_GPU: Final = f"(k in {_GPU_NAMES} || k.startsWith('{names.GPU_RESOURCE_PREFIX}'))"
_IS_HUGE: Final = "k.startsWith('hugepages-')"
_IS_EXTENDED: Final = "(k.contains('/') && !k.contains('kubernetes.io/'))"
_EXTENDED: Final = f"^{_SUBDOMAIN}/{_NAME_63}$"
_MAX_EXTENDED_DOMAIN: Final = 253 - len("requests.")  # the name that a ResourceQuota gives it
_TERMINAL_NAMES: Final = "[" + ", ".join(f"'{condition}'" for condition in TERMINAL) + "]"


def _quantity(container: str, key: str = "k") -> str:
    return f"quantity(string({container}[{key}]))"


_FIELD_TYPE_RULES: Final[dict[str, list[Rule]]] = {
    "DnsName": [_rule(f"self.matches('^{_SUBDOMAIN}$')", _SUBDOMAIN_WORDS)],
    "ConfigMapKey": [
        _rule(
            "self.matches('^[-._a-zA-Z0-9]+$') && self != '.' && !self.startsWith('..')",
            "must be a key of a ConfigMap: letters, digits, '-', '_' and '.', not '.' itself and"
            " not beginning with '..'",
        )
    ],
    "SubPath": [
        _rule(
            "self.matches('^[A-Za-z0-9_][A-Za-z0-9._/-]*$')"
            " && !('/' + self + '/').contains('/../')",
            "must be a path relative to the volume, such as models/a, without '..': letters,"
            " digits, '.', '_', '-' and '/', beginning with a letter, digit or '_'",
        )
    ],
    "Image": [
        _rule(
            f"self.matches('{_IMAGE}')",
            "must be an image reference such as registry.example.com/team/trainer:1.0, without"
            " blanks and with a lower-case repository",
        )
    ],
    "LabelKey": [
        _rule(f"self == '' || self.{_IS_LABEL_KEY} && self.indexOf('/') <= 253", _LABEL_KEY_WORDS)
    ],
    "LabelValue": [_rule(f"self.{_IS_LABEL_VALUE}", _LABEL_VALUE_WORDS)],
    "LabelMap": [
        _all_entries(
            f"k.{_IS_LABEL_KEY} && k.indexOf('/') <= 253", _LABEL_KEY_WORDS, value="self[k]"
        ),
        _all_entries(f"self[k].{_IS_LABEL_VALUE}", _LABEL_VALUE_WORDS, value="self[k]"),
    ],
    "ResourceMap": [
        _all_entries(
            "k in ['cpu', 'memory', 'ephemeral-storage']"
            " || k.matches('^hugepages-[1-9][0-9]*[KMG]i$')"
            f" || (k.matches('{_EXTENDED}') && !k.startsWith('requests.')"
            f" && k.indexOf('/') <= {_MAX_EXTENDED_DOMAIN})",
            "resource names are cpu, memory, ephemeral-storage, hugepages-SIZE (such as"
            " hugepages-2Mi) and DOMAIN/NAME (such as nvidia.com/gpu)",
        ),
        _all_entries(
            "!(k in ['memory', 'ephemeral-storage'])"
            f" || {_quantity('self')}.compareTo(quantity('0')) == 0"
            f" || {_quantity('self')}.compareTo(quantity('1Mi')) >= 0",
            "memory and ephemeral-storage are in bytes and must be 0 or at least 1Mi; add a unit,"
            " such as 500Mi or 4Gi",
        ),
        _all_entries(
            f"!{_IS_EXTENDED} || {_quantity('self')}.isInteger()",
            "resources with a domain, such as nvidia.com/gpu, must be whole numbers",
        ),
        _all_entries(
            f"!{_IS_HUGE} || ({_quantity('self')}.isInteger() && {_quantity('self')}.asInteger()"
            " % quantity(k.substring(10)).asInteger() == 0)",
            "huge pages must be a multiple of their size, such as hugepages-2Mi: 512Mi",
        ),
    ],
}

_SPEC_RULES: Final[dict[str, list[Rule]]] = {
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
            "!has(self.startDate) || !has(self.endDate) || self.startDate <= self.endDate",
            "startDate must not be after endDate",
            path=".startDate",
        ),
    ],
    "StrategySource": [
        _rule(
            "has(self.inline) != has(self.configMapKeyRef)",
            "exactly one of inline and configMapKeyRef must be given",
        ),
        _rule(
            f"!has(self.inline) || size(bytes(self.inline)) <= {STRATEGY_MAX_BYTES}",
            f"inline must have at most {STRATEGY_MAX_BYTES} bytes; put a larger strategy into a"
            " ConfigMap",
            path=".inline",
        ),
    ],
    "EnvVar": [
        _rule(
            "self.name.matches('^[A-Za-z_][A-Za-z0-9_]*$')",
            "names of variables have letters, digits and '_', and do not begin with a digit",
            path=".name",
        ),
        _rule(
            f"!self.name.startsWith('{RESERVED_ENV_PREFIX}')",
            f"names with the prefix {RESERVED_ENV_PREFIX} are reserved for the operator",
            reason="FieldValueForbidden",
            path=".name",
        ),
    ],
    "Toleration": [
        _rule(
            "self.?key.orValue('') != '' || self.?operator.orValue('Equal') == 'Exists'",
            "a toleration without a key needs operator Exists, and then tolerates all taints",
            path=".operator",
        ),
        _rule(
            "self.?operator.orValue('Equal') != 'Exists' || self.?value.orValue('') == ''",
            "value must be omitted with operator Exists; use operator Equal to compare a value",
            path=".value",
        ),
        _rule(
            "!has(self.tolerationSeconds) || self.?effect.orValue('') == 'NoExecute'",
            "tolerationSeconds requires effect NoExecute",
            path=".effect",
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
            f"!has(self.requests) || self.requests.all(k, !({_IS_EXTENDED} || {_IS_HUGE})"
            " || (has(self.limits) && k in self.limits"
            f" && {_quantity('self.requests')}.compareTo({_quantity('self.limits')}) == 0))",
            "requests of GPUs, other resources with a domain and huge pages must be omitted or"
            " equal to their limits",
            path=".requests",
        ),
        _rule(
            "!has(self.requests) || !has(self.limits) || self.requests.all(k, !(k in self.limits)"
            f" || !{_quantity('self.requests')}.isGreaterThan({_quantity('self.limits')}))",
            "requests must not be above limits; lower the request or raise the limit",
            path=".requests",
            found="self.requests.map(k, k in self.limits && "
            f"{_quantity('self.requests')}.isGreaterThan({_quantity('self.limits')}),"
            " k + ' ' + string(self.requests[k]) + ' with limit ' + string(self.limits[k]))[0]",
        ),
        _rule(
            f"!(has(self.limits) && self.limits.exists(k, {_IS_HUGE}))"
            " || ['cpu', 'memory'].exists(k, k in self.limits"
            " || (has(self.requests) && k in self.requests))",
            "huge pages need a request or limit of cpu or memory beside them",
            path=".limits",
        ),
    ],
}

_STATUS_RULES: Final[dict[str, list[Rule]]] = {
    "Progress": [
        _rule(
            "self.attempt >= oldSelf.attempt",
            "progress.attempt must not decrease: a newer attempt has already reported",
            path=".attempt",
        ),
        _rule(
            # Another pod of the same attempt belongs to an earlier TrainingJob of this name, whose
            # last report came late: the API server compares no UIDs. It must not block this one's.
            "self.attempt != oldSelf.attempt || self.podUID != oldSelf.podUID"
            " || self.?step.orValue(0) >= oldSelf.?step.orValue(0)",
            "progress.step must not decrease within one attempt of the same pod",
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
            # The pod of attempt 1 is created before the attempt is on record.
            "!has(self.progress) || self.progress.attempt <= 1"
            " || self.progress.attempt <= self.?attempt.orValue(0)",
            "progress.attempt must not be above status.attempt: that attempt has not started",
            path=".progress.attempt",
        ),
        _rule(
            "self.?attempt.orValue(0) >= oldSelf.?attempt.orValue(0)",
            "status.attempt must not decrease: the writer has read an outdated object",
            path=".attempt",
        ),
        _rule(
            "!has(self.retryTime) || self.?attemptState.orValue('') == 'Ended'",
            "retryTime, when the next attempt may start, requires attemptState Ended",
            path=".retryTime",
        ),
        _rule(
            f"!has(oldSelf.conditions) || oldSelf.conditions.all(o, !(o.type in {_TERMINAL_NAMES})"
            " || o.status != 'True' || (has(self.conditions) && self.conditions.exists(c,"
            " c.type == o.type && c.status == 'True')))",
            "Complete, Failed, Cancelled and Finished must stay True once they are True",
            reason="FieldValueForbidden",
            path=".conditions",
        ),
    ],
}

ALL_RULES: Final = {**_FIELD_TYPE_RULES, **_SPEC_RULES, **_STATUS_RULES}
