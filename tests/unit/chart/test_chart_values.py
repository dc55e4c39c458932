import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # ships no types
import pytest
import yaml

from ktrdr_operator.leader import LEASE_NAME
from ktrdr_operator.settings import Settings

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts/ktrdr"
TEMPLATES = "".join(path.read_text() for path in sorted((CHART / "templates").iterdir()))
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value and key != "resources":
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_values_every_one_is_read_by_a_template() -> None:
    # `image` and `trainer.image` are handed on whole.
    read = TEMPLATES + ".Values.image.tag .Values.image.repository"
    read += " .Values.trainer.image.tag .Values.trainer.image.repository"
    unread = [path for path in leaves(VALUES) if f".Values.{path}" not in read]
    assert unread == []


def test_values_every_one_has_its_comment() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    documented = {
        line.split(":")[0].strip()
        for before, line in pairwise(lines)
        if before.strip().startswith("# --")
    }
    assert {path.rpartition(".")[2] for path in leaves(VALUES)} <= documented


def test_values_match_their_schema() -> None:
    jsonschema.validate(VALUES, SCHEMA)


@pytest.mark.parametrize(
    "values",
    [{"imge": {}}, {"operator": {"worker": 1}}, {"replicas": "2"}, {"image": {"tag": "a b"}}],
    ids=["unknown", "unknown below", "text for a number", "bad tag"],
)
def test_schema_refuses(values: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, SCHEMA)


def test_deployment_sets_every_setting_of_the_operator_and_no_other() -> None:
    given = set(re.findall(r"- name: (KTRDR_\w+)", TEMPLATES))
    assert given == {f"KTRDR_{name.upper()}" for name in Settings.model_fields}


def test_values_default_to_what_the_operator_defaults_to() -> None:
    operator = VALUES["operator"]
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert operator["workers"] == defaults["workers"]
    assert operator["resyncSeconds"] == defaults["resync_seconds"]
    assert operator["reportWritesPerSecond"] == defaults["report_writes_per_second"]
    assert operator["imagePullGraceSeconds"] == defaults["image_pull_grace_seconds"]
    backoff = operator["retryBackoff"]
    assert backoff["baseSeconds"] == defaults["retry_backoff_base_seconds"]
    assert backoff["capSeconds"] == defaults["retry_backoff_cap_seconds"]
    assert operator["log"] == {"level": defaults["log_level"], "format": defaults["log_format"]}
    assert VALUES["trainer"]["image"]["pullPolicy"] == defaults["trainer_image_pull_policy"]


def test_role_names_the_lease_that_the_operator_takes() -> None:
    assert f"resourceNames: [{LEASE_NAME}]" in TEMPLATES


def test_strategies_of_the_chart_are_those_of_the_project() -> None:
    # A link, so that there is no copy to keep in step; `helm package` puts the files in.
    assert (CHART / "strategies").resolve() == ROOT / "strategies"
