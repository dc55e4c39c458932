import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from ktrdr_api import crd, names, reference
from ktrdr_api.crd import CHART_FILE, CRD_FILE, build, render, render_template
from ktrdr_api.crd_rules import ALL_RULES
from ktrdr_api.training_job import MUTABLE_SPEC_FIELDS

ROOT = Path(__file__).parents[3]
FORBIDDEN = {"$ref", "anyOf", "oneOf", "allOf", "nullable", "title", "propertyNames", "const"}
FORBIDDEN |= {"x-kubernetes-preserve-unknown-fields", "additionalItems"}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    root: dict[str, Any] = build()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return root


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}")
    for keyword in ("items", "additionalProperties"):
        if keyword in schema:
            yield from nodes(schema[keyword], f"{path}[]")


def is_bounded(node: dict[str, Any]) -> bool:
    needed = {
        "string": {"maxLength", "enum"},
        "array": {"maxItems"},
        "object": {"maxProperties", "properties"},
        "integer": {"type"},
        "boolean": {"type"},
    }
    kind = "string" if node.get("x-kubernetes-int-or-string") else node["type"]
    return bool(needed[kind] & node.keys())


def test_crd_every_node_is_structural_and_bounded(schema: dict[str, Any]) -> None:
    inner = [(path, node) for path, node in nodes(schema) if path != ".metadata"]
    assert [path for path, node in inner if not is_bounded(node)] == []
    assert [path for path, node in inner if node.keys() & FORBIDDEN] == []
    lists = [(path, node) for path, node in inner if "items" in node]
    assert [path for path, node in lists if "x-kubernetes-list-type" not in node] == []


def test_crd_every_field_is_described(schema: dict[str, Any]) -> None:
    fields = [item for item in nodes(schema) if not item[0].endswith("[]")]
    assert [path for path, node in fields if not node.get("description")] == [".metadata"]


def test_crd_descriptions_have_no_line_breaks_within_a_paragraph(schema: dict[str, Any]) -> None:
    texts = [node["description"] for _, node in nodes(schema) if "description" in node]
    assert [text for text in texts if "\n" in text.replace("\n\n", "")] == []


def test_crd_every_rule_has_message_reason_and_an_existing_field(schema: dict[str, Any]) -> None:
    for path, node in nodes(schema):
        for rule in node.get("x-kubernetes-validations", []):
            assert rule["message"], path
            assert rule["reason"] in {"FieldValueInvalid", "FieldValueForbidden"}, path
            below = node
            for name in rule.get("fieldPath", "").split(".")[1:]:
                below = below["properties"][name]


def test_crd_every_named_rule_is_used(schema: dict[str, Any]) -> None:
    used = [rule for _, node in nodes(schema) for rule in node.get("x-kubernetes-validations", [])]
    assert [rule for rules in ALL_RULES.values() for rule in rules if rule not in used] == []


def test_crd_message_with_the_wrong_entry_begins_like_the_message(schema: dict[str, Any]) -> None:
    # The API server shows `message` if the expression fails, for example for a key with a newline.
    computed = [
        (rule["messageExpression"], rule["message"].replace("'", "\\'"))
        for _, node in nodes(schema)
        for rule in node.get("x-kubernetes-validations", [])
        if "messageExpression" in rule
    ]
    assert computed
    assert [pair for pair in computed if not pair[0].startswith(f"'{pair[1]}; got: ' + ")] == []


def test_crd_objects_below_spec_and_status_have_one_owner_each(schema: dict[str, Any]) -> None:
    for name in ("spec", "status"):
        fields = schema["properties"][name]["properties"]
        objects = {field for field, node in fields.items() if "properties" in node}
        atomic = {f for f, node in fields.items() if node.get("x-kubernetes-map-type") == "atomic"}
        assert objects == atomic
        assert "x-kubernetes-map-type" not in schema["properties"][name]
    assert schema["properties"]["status"]["properties"]["conditions"]["x-kubernetes-list-type"] == (
        "atomic"
    )


def test_crd_every_spec_field_but_the_mutable_ones_has_its_immutability_rule(
    schema: dict[str, Any],
) -> None:
    spec = schema["properties"]["spec"]

    def immutable(node: dict[str, Any]) -> set[str]:
        rules = node.get("x-kubernetes-validations", [])
        found = (re.match(r"spec\.(\w+) is immutable", rule["message"]) for rule in rules)
        return {match[1] for match in found if match}

    fields = spec["properties"].items()
    own = {name for name, node in fields if immutable(node) == {name}}
    assert own == {name for name, _ in fields} - MUTABLE_SPEC_FIELDS
    # Adding and removing is seen by the parent only, and only possible without a default.
    optional = {name for name, node in fields if "default" not in node} - {*spec["required"]}
    assert immutable(spec) == optional - MUTABLE_SPEC_FIELDS


def test_crd_fresh_status_is_never_current(schema: dict[str, Any]) -> None:
    status = schema["properties"]["status"]
    assert status["default"] == {"observedGeneration": -1}
    assert status["properties"]["observedGeneration"]["default"] == -1


def test_crd_status_has_no_default_that_would_pretend_to_be_written(schema: dict[str, Any]) -> None:
    inner = nodes(schema["properties"]["status"], "status")
    with_default = [path for path, node in inner if "default" in node]
    assert with_default == ["status", "status.observedGeneration"]


def test_crd_documented_defaults_are_emitted(schema: dict[str, Any]) -> None:
    spec = schema["properties"]["spec"]["properties"]
    want = {
        "backoffLimit": 3,
        "cancel": False,
        "cancellation": {},
        "checkpoint": {},
        "disruptionLimit": 100,
        "historyLimit": 3,
        "progress": {},
    }
    assert {name: node["default"] for name, node in spec.items() if "default" in node} == want
    assert spec["cancellation"]["properties"]["gracePeriodSeconds"]["default"] == 30
    assert spec["cancellation"]["properties"]["checkpoint"]["default"] == "BestEffort"
    assert spec["checkpoint"]["properties"]["periodSeconds"]["default"] == 300
    assert spec["progress"]["properties"]["periodSeconds"]["default"] == 2


def test_crd_printer_columns_point_at_existing_fields(schema: dict[str, Any]) -> None:
    known = {path for path, _ in nodes(schema)} | {".metadata.creationTimestamp"}
    columns = build()["spec"]["versions"][0]["additionalPrinterColumns"]
    assert [column["name"] for column in columns if column["jsonPath"] not in known] == []
    priorities = {column["name"].upper(): column.get("priority", 0) for column in columns}
    narrow = ["PHASE", "PROGRESS", "EPOCH", "ETA", "GPUS", "RETRIES", "AGE"]
    wide = ["LOSS", "BATCH", "HOST", "CHECKPOINT", "REASON", "MESSAGE"]
    assert priorities == {**dict.fromkeys(narrow, 0), **dict.fromkeys(wide, 1)}
    assert list(priorities) == [*narrow, *wide]


def test_crd_patterns_are_valid_for_re2_and_python(schema: dict[str, Any]) -> None:
    patterns = [node["pattern"] for _, node in nodes(schema) if "pattern" in node]
    assert patterns
    for pattern in patterns:
        re.compile(pattern)
        assert "(?" not in pattern, "RE2 has no look-around"


def test_crd_is_small_enough_for_client_side_apply() -> None:
    assert len(json.dumps(build())) < 150_000


@pytest.mark.parametrize(
    ("path", "renderer"), [(CRD_FILE, render), (CHART_FILE, render_template)], ids=["crds", "chart"]
)
def test_crd_files_match_the_models(path: Path, renderer: Any) -> None:
    assert (ROOT / path).read_text() == renderer(build()), "run `make generate`"


def test_render_is_yaml_of_the_same_object() -> None:
    assert yaml.safe_load(render(build())) == build()


def test_render_template_escapes_what_helm_would_evaluate() -> None:
    changed = build()
    changed["metadata"]["name"] = "{{ boom }}"
    assert "name: '{{ \"{{\" }} boom }}'" in render_template(changed)
    assert "{{ boom" not in render_template(changed)


@pytest.mark.parametrize("module", [crd, reference], ids=["crd", "reference"])
def test_main_writes_the_files_and_check_notices_each_difference(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: str) -> None:
        monkeypatch.setattr("sys.argv", ["any", "--root", str(tmp_path), *arguments])
        module.main()

    run()
    run("--check")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    for path in written:
        text = path.read_text(encoding="utf-8")
        for break_it in (lambda p=path: p.write_text("old"), path.unlink):
            break_it()
            with pytest.raises(SystemExit, match="1"):
                run("--check")
            path.write_text(text, encoding="utf-8")
    run("--check")


def test_names_resource_is_what_the_crd_is_called() -> None:
    assert build()["metadata"]["name"] == names.RESOURCE
