"""Settings of the operator, from the environment variables `KTRDR_*`, in one frozen object.

Built once by `__main__`; no other module of the operator reads the environment. The chart's values
are these settings under other names. Lists are comma-separated, maps are JSON objects; an empty
variable counts as unset, and a single comma is the empty list.
"""

import json
import re
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ktrdr_api import names
from ktrdr_operator.leader import LEASE_NAME

PREFIX: Final = "KTRDR_"
"""Prefix of all environment variables of the operator."""
NONE: Final = "none"
"""Value of a numeric setting that leaves the choice to the cluster."""
_SHOWN_CHARACTERS: Final = 100
"""Length at which an invalid value is cut in an error message."""

_NAME: Final = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_DNS_LABEL: Final = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_DNS_SUBDOMAIN: Final = rf"(?=.{{1,253}}$){_DNS_LABEL}(\.{_DNS_LABEL})*"
_KEY: Final = rf"((?=[^/]{{1,253}}/){_DNS_LABEL}(\.{_DNS_LABEL})*/)?{_NAME}"
_NAMESPACE_EXPECTED: Final = "the name of a namespace"
_RESERVED_KEYS: Final = frozenset(
    {
        names.LABEL_APP_NAME,
        names.LABEL_COMPONENT,
        names.LABEL_INSTANCE,
        names.LABEL_MANAGED_BY,
    }
)


def _split(value: object) -> object:
    """Parse a comma-separated list; duplicates and blanks around commas are ignored."""
    if not isinstance(value, str):
        return value
    return tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))


def _parse_object(value: object) -> object:
    """Parse a JSON object of strings."""
    if not isinstance(value, str):
        return value
    example = 'expected a JSON object of strings such as {"team": "quant"}'
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise ValueError(f"{example}: {error}") from error
    if not isinstance(parsed, dict) or not all(isinstance(v, str) for v in parsed.values()):
        raise ValueError(f"{example}, with every value in quotes")
    return parsed


def _parse_id(value: object) -> object:
    """Parse an integer, or `none`."""
    if value == NONE:
        return None
    if isinstance(value, str) and not re.fullmatch(r"-?[0-9]+", value):
        raise ValueError(f"expected an integer, or {NONE} to leave the choice to the cluster")
    return value


def _matching(pattern: str, expected: str) -> AfterValidator:
    """Check a string against a pattern, as a whole."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"expected {expected}, got {_shown(value)}")
        return value

    return AfterValidator(check)


def _check_not_reserved(key: str) -> str:
    if key.startswith(f"{names.GROUP}/") or key in _RESERVED_KEYS:
        raise ValueError(f"expected a key that the operator does not set itself, got {_shown(key)}")
    return key


Name = Annotated[str, _matching(_DNS_SUBDOMAIN, "a DNS subdomain such as my-name")]
Namespace = Annotated[str, _matching(_DNS_LABEL, _NAMESPACE_EXPECTED)]
Key = Annotated[
    str,
    _matching(_KEY, "a label or annotation key such as example.com/team"),
    AfterValidator(_check_not_reserved),
]
LabelValue = Annotated[
    str, _matching(f"({_NAME})?", "a label value of at most 63 letters, digits, '-', '_' and '.'")
]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
UserId = Annotated[int, Field(ge=1, le=2**31 - 1)]
GroupId = Annotated[int, Field(ge=0, le=2**31 - 1)]
_List = (NoDecode, BeforeValidator(_split))
_Object = (NoDecode, BeforeValidator(_parse_object))
_Id = BeforeValidator(_parse_id)


class Settings(BaseSettings):
    """Settings of the operator; an invalid value ends the process, see `describe_problems`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, use_attribute_docstrings=True, env_ignore_empty=True
    )

    trainer_image: Annotated[str, Field(min_length=1, max_length=512)]
    """Image of trainer pods whose TrainingJob names none. No default: it must have the version of
    this operator."""
    trainer_image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When the kubelet pulls the image of TrainingJobs without imagePullPolicy. IfNotPresent,
    because the image is large."""
    trainer_image_pull_secrets: Annotated[tuple[Name, ...], *_List] = ()
    """Secrets with registry credentials for every trainer pod, in addition to those of its
    TrainingJob. They must exist in the namespace of the TrainingJob."""
    trainer_pod_labels: Annotated[dict[Key, LabelValue], *_Object] = {}
    """Labels of every trainer pod."""
    trainer_pod_annotations: Annotated[dict[Key, str], *_Object] = {}
    """Annotations of every trainer pod."""
    trainer_inherited_labels: Annotated[tuple[Key, ...], *_List] = (
        "kueue.x-k8s.io/queue-name",
        "kueue.x-k8s.io/priority-class",
    )
    """Keys of labels that trainer pods inherit from their TrainingJob. By default the keys that
    Kueue reads; no others, because other controllers may act on them."""
    trainer_inherited_annotations: Annotated[tuple[Key, ...], *_List] = (
        "kueue.x-k8s.io/podset-required-topology",
        "kueue.x-k8s.io/podset-preferred-topology",
    )
    """Keys of annotations that trainer pods inherit from their TrainingJob; see the labels."""
    trainer_run_as_user: Annotated[UserId | None, _Id] = names.TRAINER_UID
    """UID of the trainer's process, as in its image; `none` leaves the choice to the cluster, as
    OpenShift requires. Not 0: trainer pods must not run as root."""
    trainer_fs_group: Annotated[GroupId | None, _Id] = names.TRAINER_UID
    """GID that owns the trainer's volumes; `none` leaves the choice to the cluster."""
    trainer_role_kind: Literal["ClusterRole", "Role"] = "ClusterRole"
    """Kind of the role that trainers are bound to. Role for an installation that has rights in its
    namespaces only."""
    trainer_role_name: Name = "ktrdr-trainer"
    """Name of the role that trainers are bound to."""
    watch_namespaces: Annotated[tuple[Namespace, ...], *_List] = ()
    """Namespaces to serve; empty means all, because most clusters have one operator."""
    workers: Annotated[int, Field(ge=1, le=128)] = 24
    """Maximum number of TrainingJobs that are reconciled concurrently. 24 workers keep the 32
    connections busy; with more, requests only wait longer."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Minimum severity that is logged. INFO logs one line per transition of a job."""
    log_format: Literal["json", "text"] = "json"
    """json writes one object per line, for log collectors; text is for reading."""
    http_port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """Port of /healthz and /metrics; 0 uses a free port (one per address family), which is
    logged."""
    resync_seconds: Positive = 300
    """Seconds between full lists, +-20 %. They repair what a broken watch has missed, after 5
    minutes at the latest, at a cost of one request per 500 objects."""
    report_writes_per_second: Positive = 60
    """Maximum rate of progress reports of all trainers together; beyond it each trainer reports
    less often. 60 reports per second cost the API server 0.4 cores (6.5 ms each, measured)."""
    report_bytes_per_second: Positive = 1_000_000
    """Maximum bytes per second that all progress reports together store in etcd. Each report stores
    the whole TrainingJob again, and etcd keeps up to ten minutes of revisions: 600 MB of 2 GiB."""
    no_report_seconds: Positive = 300
    """Seconds without a progress report after which a running job gets the reason NotReporting. 5
    minutes are longer than any pause of a healthy trainer that may report as often as it likes."""
    leader_election: bool = False
    """Whether to work only while holding a Lease. False, because a single operator needs none."""
    lease_name: Name = LEASE_NAME
    """Name of the Lease. Two operators that share it and its namespace work in turn, never both."""
    lease_namespace: Annotated[str, _matching(f"({_DNS_LABEL})?", _NAMESPACE_EXPECTED)] = ""
    """Namespace of the Lease; required with leader_election, normally the operator's own."""
    image_pull_grace_seconds: NotNegative = 300
    """Seconds during which an image pull may fail before a job that has never run fails. 5 minutes
    are longer than a short outage of a registry; a wrong image name never succeeds."""
    retry_backoff_base_seconds: Positive = 10
    """Seconds before the first retry of a failed attempt, doubled each time; as batch/v1."""
    retry_backoff_cap_seconds: Positive = 360
    """Maximum seconds before a retry; batch/v1's 6 minutes."""

    @model_validator(mode="after")
    def _check_lease_namespace(self) -> "Settings":
        if self.leader_election and not self.lease_namespace:
            raise ValueError(
                "KTRDR_LEADER_ELECTION is true, but KTRDR_LEASE_NAMESPACE is not set; set it to the"
                " namespace of the operator, or KTRDR_LEADER_ELECTION to false"
            )
        return self

    def namespaces(self) -> tuple[str | None, ...]:
        """Scopes to list and watch; None is the whole cluster."""
        return self.watch_namespaces or (None,)


def describe_problems(invalid: ValidationError) -> list[str]:
    """Return one line per invalid setting: the variable, the value found and a remedy."""
    return [_describe(error["loc"], error["msg"], error) for error in invalid.errors()]


def _describe(loc: tuple[int | str, ...], message: str, error: Any) -> str:
    message = message.removeprefix("Value error, ")
    if not loc:  # a rule about several settings, whose message names them
        return message
    field = str(loc[0])
    variable = f"{PREFIX}{field.upper()}"
    if error["type"] == "missing":
        return f"{variable}: not set, and it has no default; set it"
    got = "" if "got " in message else f", got {_shown(error['input'])}"
    return f"{variable}: {message[0].lower()}{message[1:]}{got}; {_remedy(field)}"


def _remedy(field: str) -> str:
    info = Settings.model_fields[field]
    if info.is_required():
        return "correct it"
    default = info.default
    if not default and not isinstance(default, bool):
        return "correct it, or unset it"
    shown = ",".join(default) if isinstance(default, tuple) else default
    return f"correct it, or unset it for the default {shown}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
