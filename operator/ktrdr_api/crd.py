"""Generator of the CustomResourceDefinition from the models.

pydantic writes JSON Schema; the API server accepts a smaller language (structural schemas: no
`$ref`, no `anyOf` with null, no `propertyNames`). This module translates, adds the rules that types
cannot say (`crd_rules.py`) and writes two files: `crds/` for `kubectl apply`, and the chart's
template. It also copies `strategies/` into the chart, because Helm reads no file outside a chart.
"""

import argparse
from pathlib import Path
from typing import Any, Final

import yaml

from ktrdr_api import names
from ktrdr_api.api_fields import RULES
from ktrdr_api.crd_rules import Rule, rules_of, rules_of_field, rules_of_presence
from ktrdr_api.training_job import TrainingJob

Json = dict[str, Any]

COPIED_KEYWORDS: Final = (
    "description", "type", "format", "enum", "pattern", "minimum", "maximum", "minLength",
    "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
    "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-int-or-string",
)  # fmt: skip
"""Keywords of both languages; all others are translated or rejected."""

COLUMNS: Final = (
    ("Phase", "string", ".status.phase", 0),
    ("Progress", "string", ".status.progress.display.progress", 0),
    ("Epoch", "string", ".status.progress.display.epoch", 0),
    ("ETA", "string", ".status.progress.display.eta", 0),
    ("GPUs", "integer", ".status.gpus", 0),
    ("Retries", "integer", ".status.retries", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Loss", "string", ".status.progress.display.loss", 1),
    ("Batch", "string", ".status.progress.display.batch", 1),
    ("Host", "string", ".status.host", 1),
    ("Checkpoint", "integer", ".status.checkpoint.epoch", 1),
    ("Reason", "string", ".status.reason", 1),
    ("Message", "string", ".status.message", 1),  # last, because it is long
)
"""Printer columns: name, type, JSONPath, priority (1: shown only by `-o wide`)."""

CRD_FILE: Final = Path("crds") / f"{names.RESOURCE}.yaml"
CHART_FILE: Final = Path("charts/ktrdr/templates/crd.yaml")
STRATEGIES: Final = Path("strategies")
CHART_STRATEGIES: Final = Path("charts/ktrdr/files/strategies")
"""Copies of the strategies. A symbolic link would make Helm print a line at every install."""


def build() -> Json:
    """Build the CustomResourceDefinition."""
    version = {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [_column(*column) for column in COLUMNS],
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": _root()},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": names.RESOURCE},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "singular": names.SINGULAR,
                "shortNames": [names.SHORT_NAME],
                "categories": [names.CATEGORY],
            },
            "versions": [version],
        },
    }


def _column(name: str, kind: str, path: str, priority: int) -> Json:
    column: Json = {"name": name, "type": kind, "jsonPath": path}
    return {**column, "priority": priority} if priority else column


def _root() -> Json:
    source = TrainingJob.model_json_schema()
    translator = _Translator(source["$defs"])
    status = translator.schema(source["properties"]["status"], defaults=False)
    status["properties"]["observedGeneration"]["default"] = -1
    # Without it, kstatus, Flux and `kubectl wait` would take a new object's status for current.
    status["default"] = {"observedGeneration": -1}
    spec = translator.schema(source["properties"]["spec"])
    _make_fields_atomic(spec, status)
    _add_rules(spec, rules_of_presence(_fields_that_may_be_absent(spec)))
    return {
        "description": _unwrapped(source["description"]),
        "type": "object",
        "required": source["required"],
        "properties": {
            "apiVersion": {"type": "string", "maxLength": 63, "description": "Version of the API."},
            "kind": {"type": "string", "maxLength": 63, "description": f"Always {names.KIND}."},
            "metadata": {"type": "object"},  # the API server allows no description here
            "spec": spec,
            "status": status,
        },
        "x-kubernetes-validations": rules_of(names.KIND),
    }


def _fields_that_may_be_absent(node: Json) -> list[str]:
    return [
        name
        for name, field in node["properties"].items()
        if name not in node["required"] and "default" not in field
    ]


def _make_fields_atomic(*nodes: Json) -> None:
    """Give each object directly below spec and status one owner (`x-kubernetes-map-type: atomic`).

    Each has one writer, which always writes it whole. Without the marker the API server keeps one
    entry in `managedFields` for every leaf (measured: 18 % more bytes and 25 % more allocations per
    status write).
    """
    for node in nodes:
        for field in node["properties"].values():
            if "properties" in field:
                field["x-kubernetes-map-type"] = "atomic"


class _Translator:
    """Translates pydantic's JSON Schema into a structural schema."""

    def __init__(self, definitions: Json) -> None:
        self._definitions = definitions

    def schema(self, source: Json, *, defaults: bool = True) -> Json:
        """Translate a node and all nodes below it.

        Args:
            source: JSON Schema as pydantic produces it.
            defaults: Whether defaults are emitted; False for status, where a default would look
                like something that the operator has written.

        Raises:
            ValueError: The models use a feature that a structural schema does not have.
        """
        flat = self._flatten(source)
        result: Json = {key: flat[key] for key in COPIED_KEYWORDS if key in flat}
        if "description" in result:
            result["description"] = _unwrapped(result["description"])
        if "x-kubernetes-int-or-string" in result:
            del result["type"]
        elif "type" not in result:
            raise ValueError(f"structural schemas require a type, got none: {source}")
        if "properties" in flat:
            self._add_properties(result, flat, defaults=defaults)
        if "items" in flat:
            result["items"] = self.schema(flat["items"], defaults=defaults)
        if "additionalProperties" in flat:
            result["additionalProperties"] = self.schema(flat["additionalProperties"])
            _add_rules(result, [_key_rule(flat["propertyNames"]["maxLength"])])
        if RULES in flat:
            _add_rules(result, rules_of(flat[RULES]))
        return result

    def _add_properties(self, result: Json, flat: Json, *, defaults: bool) -> None:
        result["properties"] = {}
        for name, source in flat["properties"].items():
            node = self.schema(source, defaults=defaults)
            default = _default(node, source.get("default")) if defaults else None
            if default is not None:
                node["default"] = default
            _add_rules(node, rules_of_field(flat["title"], name))
            result["properties"][name] = node
        if "required" in flat:
            result["required"] = flat["required"]
        _add_rules(result, rules_of(flat["title"]))

    def _flatten(self, source: Json) -> Json:
        """Inline `$ref` and `anyOf`; keywords next to them override those inside."""
        merged = dict(source)
        while "$ref" in merged or "anyOf" in merged:
            if "$ref" in merged:
                inner = self._definitions[merged.pop("$ref").rpartition("/")[2]]
            else:
                inner = _fold(merged.pop("anyOf"))
            merged = {**inner, **merged}
        return merged


def _fold(branches: list[Json]) -> Json:
    """Merge the branches of `T | None` (absent instead of null) or of integer-or-string."""
    real = [branch for branch in branches if branch.get("type") != "null"]
    if len(real) > 1 and not any("x-kubernetes-int-or-string" in branch for branch in real):
        raise ValueError(f"structural schemas have no unions, got: {branches}")
    return {key: value for branch in real for key, value in branch.items()}


def _unwrapped(text: str) -> str:
    """Join the lines of each paragraph: `kubectl explain` wraps texts itself."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _add_rules(node: Json, rules: list[Rule]) -> None:
    if rules:
        node["x-kubernetes-validations"] = [*node.get("x-kubernetes-validations", []), *rules]


def _default(node: Json, value: Any) -> Any:
    """Return the default to emit, or None.

    Empty strings, lists and maps mean the same as absence and would only enlarge every object. The
    default of a nested object is `{}` if a field in it has one: the API server fills in the rest.
    """
    if "properties" in node:
        filled = any("default" in inner for inner in node["properties"].values())
        return {} if filled and value is not None else None
    return None if value in (None, "", [], {}) else value


def _key_rule(length: int) -> Rule:
    return {
        "rule": f"self.all(key, size(key) <= {length})",
        "message": f"keys must have at most {length} characters",
        "reason": "FieldValueInvalid",
    }


def render(crd: Json) -> str:
    """Render the CRD as YAML."""
    text: str = yaml.safe_dump(crd, sort_keys=False, width=110, allow_unicode=True)
    return f"# Generated from operator/ktrdr_api by `make generate`; do not edit.\n{text}"


def render_template(crd: Json) -> str:
    """Render the CRD as a Helm template: optional, labelled, kept on uninstall if configured."""
    marked = {**crd, "metadata": {**crd["metadata"], "annotations": "@annotations@"}}
    text = render(marked).replace("{{", '{{ "{{" }}')
    text = text.replace(
        "  annotations: '@annotations@'\n",
        "  labels:\n"
        '    {{- include "ktrdr.labels" . | nindent 4 }}\n'
        "  {{- if .Values.crds.keep }}\n"
        "  annotations:\n"
        "    helm.sh/resource-policy: keep\n"
        "  {{- end }}\n",
    )
    return f"{{{{- if .Values.crds.enabled }}}}\n{text}{{{{- end }}}}\n"


def generated_files(root: Path) -> dict[Path, str | None]:
    """What belongs in each generated file, by its path below the root; None: no such file."""
    crd = build()
    wanted: dict[Path, str | None] = {
        CHART_STRATEGIES / copy.name: None for copy in (root / CHART_STRATEGIES).glob("*")
    }
    for source in sorted((root / STRATEGIES).glob("*.yaml")):
        wanted[CHART_STRATEGIES / source.name] = source.read_text(encoding="utf-8")
    return {**wanted, CRD_FILE: render(crd), CHART_FILE: render_template(crd)}


def main() -> None:
    """Write the generated files, or with `--check` fail when they differ from their sources."""
    parser = argparse.ArgumentParser(prog="python -m ktrdr_api.crd", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--root", type=Path, default=Path(), help="root of the repository")
    arguments = parser.parse_args()
    for path, text in generated_files(arguments.root).items():
        target = arguments.root / path
        found = target.read_text(encoding="utf-8") if target.is_file() else None
        if found == text:
            continue
        if arguments.check:
            parser.exit(1, f"{path} does not match its source: run `make generate`\n")
        if text is None:
            target.unlink()
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
