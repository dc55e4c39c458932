"""Base model and field types of the TrainingJob API: what each may hold, as JSON Schema and CEL.

Used by `trainer_pod.py` and `training_job.py`. A type that carries `RULES` is checked by the API
server with the CEL rules of that name in `crd_rules.py`, because a rule can say what is wrong and a
`pattern` cannot. The models themselves do not repeat these checks: a job that was stored under
older rules must stay readable.
"""

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from ktrdr_api import run_contract

RULES: Final = "x-ktrdr-rules"
"""Schema keyword that names an entry of `crd_rules`; `crd.py` replaces it by the rules."""


def _checked(rules: str) -> dict[str, Any]:
    return {RULES: rules}


DnsName = Annotated[str, Field(min_length=1, max_length=253, json_schema_extra=_checked("DnsName"))]
ConfigMapKey = Annotated[
    str, Field(min_length=1, max_length=253, json_schema_extra=_checked("ConfigMapKey"))
]
SubPath = Annotated[str, Field(min_length=1, max_length=255, json_schema_extra=_checked("SubPath"))]
Image = Annotated[str, Field(min_length=1, max_length=512, json_schema_extra=_checked("Image"))]
LabelKey = Annotated[str, Field(max_length=317, json_schema_extra=_checked("LabelKey"))]
LabelValue = Annotated[str, Field(max_length=63, json_schema_extra=_checked("LabelValue"))]
LabelMap = Annotated[
    dict[Annotated[str, Field(max_length=317)], Annotated[str, Field(max_length=63)]],
    Field(max_length=16, json_schema_extra=_checked("LabelMap")),
]
Date = Annotated[
    str,
    Field(
        min_length=10,
        max_length=10,
        pattern=r"^(19|20|21)[0-9]{2}-[0-9]{2}-[0-9]{2}$",  # as strategy_sections.YEARS
        json_schema_extra={"format": "date"},
    ),
]
Time = Annotated[
    run_contract.Time,
    Field(json_schema_extra={"format": "date-time", "pattern": run_contract.RFC_3339_PATTERN}),
]
"""RFC 3339 time. The pattern is in the CRD, too, because the API server's `format: date-time`
accepts more (any character before the fraction, lower-case letters, the year 0), and a status that
the operator cannot read would stop it from serving the job."""
Quantity = Annotated[
    str,
    Field(
        max_length=32,
        pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei)?$",
        json_schema_extra={"x-kubernetes-int-or-string": True},
    ),
]
ResourceMap = Annotated[
    dict[Annotated[str, Field(max_length=317)], Annotated[int, Field(ge=0)] | Quantity],
    Field(max_length=16, json_schema_extra=_checked("ResourceMap")),
]
Atomic: Final = {"x-kubernetes-list-type": "atomic"}
Unique: Final = {"x-kubernetes-list-type": "set"}
Named: Final = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}


class ApiModel(BaseModel):
    """Base: camelCase in JSON; unknown fields are ignored, because a newer schema may add some."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
    )
