"""Values, schema and files of the chart, as far as they can be checked without Helm."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # ships no types
import pytest
import yaml

from ktrdr_api.crd import CHART_STRATEGIES, main
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
    text = (CHART / "values.yaml").read_text()
    documented = set(re.findall(r"^ *# -- .+\n(?: *# .+\n)* *(\w+):", text, re.MULTILINE))
    assert {path.rpartition(".")[2] for path in leaves(VALUES)} <= documented


def test_values_match_their_schema() -> None:
    jsonschema.validate(VALUES, SCHEMA)


@pytest.mark.parametrize(
    "values",
    [
        {"imge": {}},
        {"operator": {"worker": 1}},
        {"replicas": "2"},
        {"image": {"tag": "a b"}},
        {"trainer": {"runAsUser": 0}},
        {"trainer": {"fsGroup": "none"}},
        {"trainer": {"podLabels": {"cost/": "1"}}},
        {"trainer": {"podLabels": {"cost": "a b"}}},
        {"trainer": {"podAnnotations": {"enabled": True}}},
        {"trainer": {"inheritedLabels": ["a b"]}},
        {"trainer": {"imagePullSecrets": ["registry"]}},
        {"podSecurityContext": {"fsGroup": 1}},
        {"admission": {"operatorAccounts": ["ktrdr-operator"]}},
        {"operator": {"reportBytesPerSecond": 0}},
        {"operator": {"noReportSeconds": 1}},
    ],
    ids=lambda values: json.dumps(values),
)
def test_schema_refuses(values: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, SCHEMA)


@pytest.mark.parametrize("path", [("trainer", "runAsUser"), ("trainer", "fsGroup")])
def test_schema_accepts_null_where_openshift_chooses(path: tuple[str, str]) -> None:
    jsonschema.validate({path[0]: {path[1]: None}}, SCHEMA)


def test_deployment_sets_every_setting_of_the_operator_and_no_other() -> None:
    given = set(re.findall(r"- name: (KTRDR_\w+)", TEMPLATES))
    assert given == {f"KTRDR_{name.upper()}" for name in Settings.model_fields}


def test_values_default_to_what_the_operator_defaults_to() -> None:
    operator, trainer = VALUES["operator"], VALUES["trainer"]
    want = {
        "workers": operator["workers"],
        "resync_seconds": operator["resyncSeconds"],
        "report_writes_per_second": operator["reportWritesPerSecond"],
        "report_bytes_per_second": operator["reportBytesPerSecond"],
        "no_report_seconds": operator["noReportSeconds"],
        "image_pull_grace_seconds": operator["imagePullGraceSeconds"],
        "retry_backoff_base_seconds": operator["retryBackoff"]["baseSeconds"],
        "retry_backoff_cap_seconds": operator["retryBackoff"]["capSeconds"],
        "log_level": operator["log"]["level"],
        "log_format": operator["log"]["format"],
        "trainer_image_pull_policy": trainer["image"]["pullPolicy"],
        "trainer_inherited_labels": tuple(trainer["inheritedLabels"]),
        "trainer_inherited_annotations": tuple(trainer["inheritedAnnotations"]),
        "trainer_run_as_user": trainer["runAsUser"],
        "trainer_fs_group": trainer["fsGroup"],
    }
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert {name: defaults.get(name) for name in want} == want


def test_chart_has_no_symbolic_link() -> None:
    """Helm prints a line about each at every install."""
    assert [path for path in CHART.rglob("*") if path.is_symlink()] == []


def test_strategies_of_the_chart_are_those_of_the_project() -> None:
    copies, sources = (
        {path.name: path.read_text() for path in folder.glob("*.yaml")}
        for folder in (CHART / "files/strategies", ROOT / "strategies")
    )
    assert copies == sources, "run `make generate`"


@pytest.mark.parametrize("change", ["edited", "missing", "left over"])
def test_generator_notices_and_repairs_a_copy_that_differs(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "strategies", tmp_path / "strategies")
    generate(monkeypatch, tmp_path)
    copy = tmp_path / CHART_STRATEGIES / "test_strategy.yaml"
    before = sorted(path.name for path in copy.parent.iterdir())
    if change == "missing":
        copy.unlink()
    else:
        name = "old.yaml" if change == "left over" else copy.name
        copy.with_name(name).write_text("name: other\n")

    with pytest.raises(SystemExit):
        generate(monkeypatch, tmp_path, "--check")
    assert "does not match its source: run `make generate`" in capsys.readouterr().err

    generate(monkeypatch, tmp_path)
    generate(monkeypatch, tmp_path, "--check")
    assert sorted(path.name for path in copy.parent.iterdir()) == before
    assert copy.read_text() == (ROOT / "strategies/test_strategy.yaml").read_text()


def generate(monkeypatch: pytest.MonkeyPatch, root: Path, *arguments: str) -> None:
    """What `make generate` runs, or `make verify` with `--check`."""
    monkeypatch.setattr("sys.argv", ["crd", f"--root={root}", *arguments])
    main()
