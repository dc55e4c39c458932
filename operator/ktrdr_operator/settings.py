"""Every setting of the operator, from `KTRDR_*` variables, in one frozen object.

Built once by `__main__`; nothing else in the operator reads the environment. The chart's values are
these settings under other names.
"""

from typing import Annotated, Final, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX: Final = "KTRDR_"
"""Of every environment variable that sets something."""


class Settings(BaseSettings):
    """What can be set from outside; a wrong value ends the process with the variable's name."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, use_attribute_docstrings=True, env_ignore_empty=True
    )

    trainer_image: Annotated[str, Field(min_length=1, max_length=512)]
    """Image of trainer pods whose TrainingJob names none. No default: it must fit this operator."""
    trainer_image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When the kubelet pulls it, for TrainingJobs that do not say. IfNotPresent: it is large."""
    watch_namespaces: Annotated[tuple[str, ...], NoDecode] = ()
    """Namespaces to serve, comma-separated; empty means all, as most clusters have one operator."""
    workers: Annotated[int, Field(ge=1, le=128)] = 24
    """TrainingJobs reconciled at once. 24 keep the 32 connections busy; more only adds waiting."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severity that is logged. INFO is one line per transition of a job."""
    log_format: Literal["json", "text"] = "json"
    """One JSON object a line, for log collectors, or plain text, for people."""
    http_port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """Port of /healthz and /metrics; 0 takes a free one (one an address family), logged."""
    resync_seconds: Annotated[float, Field(gt=0)] = 300
    """Seconds between full listings, +-20 %. They repair what a broken watch lost; 5 minutes is how
    long a loss may last, at a cost of one page of 500 objects per request."""
    report_writes_per_second: Annotated[float, Field(gt=0)] = 60
    """Maximum rate of progress reports of all trainers together; beyond it each trainer reports
    less often. 60 reports per second cost the API server 0.4 cores (6.5 ms each, measured)."""
    report_bytes_per_second: Annotated[float, Field(gt=0)] = 1_000_000
    """Maximum bytes per second that all progress reports together store in etcd. Each report stores
    the whole TrainingJob again, and etcd keeps up to ten minutes of revisions: 600 MB of 2 GiB."""
    leader_election: bool = False
    """Whether to work only while holding a Lease. Off: a single operator needs none."""
    lease_name: str = "ktrdr-operator"
    """Name of the Lease."""
    lease_namespace: str = ""
    """Namespace of the Lease; required with leader_election, normally the operator's own."""
    image_pull_grace_seconds: Annotated[float, Field(ge=0)] = 300
    """Seconds an image may fail to be pulled before its job fails. 5 minutes outlast a registry's
    hiccup; a wrong name does not get better."""
    retry_backoff_base_seconds: Annotated[float, Field(gt=0)] = 10
    """Seconds before the first retry of a failed attempt, doubled each time; as batch/v1."""
    retry_backoff_cap_seconds: Annotated[float, Field(gt=0)] = 360
    """Most seconds before a retry; batch/v1's 6 minutes."""

    @field_validator("watch_namespaces", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @model_validator(mode="after")
    def _lease_has_a_place(self) -> "Settings":
        if self.leader_election and not self.lease_namespace:
            raise ValueError("KTRDR_LEADER_ELECTION needs KTRDR_LEASE_NAMESPACE")
        return self

    def namespaces(self) -> tuple[str | None, ...]:
        """Scopes to list and watch; None is the whole cluster."""
        return self.watch_namespaces or (None,)
