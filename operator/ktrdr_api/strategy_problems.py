"""Messages for invalid strategies, from pydantic's errors: dotted path, what is wrong, remedy.

Called by `strategy.py` only. The paths are those of the YAML file, without the tags that pydantic
adds for its unions, and each message lists what is allowed at that path.
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Problem = tuple[str, str]
"""Dotted path and message."""


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Return every problem in `error`, which the validation of `model` raised."""
    schema = model.model_json_schema()
    found = error.errors(include_url=False)
    return [_problem(details, schema) for details in found if not _follows(details, found)]


def _follows(details: ErrorDetails, found: Sequence[ErrorDetails]) -> bool:
    """Whether a list is too short only because of invalid items, which have their own messages."""
    loc = details["loc"]
    return details["type"] == "too_short" and any(
        other["loc"][: len(loc)] == loc and other is not details for other in found
    )


def _problem(details: ErrorDetails, schema: dict[str, Any]) -> Problem:
    keys, node = _walk(schema, details["loc"])
    context = details.get("ctx", {})
    match details["type"]:
        case "extra_forbidden":
            text = _unknown(keys[-1], _keys(schema, details["loc"][:-1]))
        case "missing":
            text = "required; add it"
        case "literal_error":
            text = f"{_shown(details)} is not supported by this version; allowed: {_options(node)}"
        case "union_tag_invalid":
            keys.append(str(context["discriminator"]).strip("'"))
            tags = str(context["expected_tags"]).replace("'", "")
            text = f"{context['tag']!r} is not supported by this version; allowed: {tags}"
        case "union_tag_not_found":
            keys.append(str(context["discriminator"]).strip("'"))
            text = f"required; allowed: {', '.join(node['discriminator']['mapping'])}"
        case "value_error":
            text = str(context["error"])
        case _:
            text = f"{_plain(details['msg'])}, got {_shown(details)}"
    return ".".join(map(_shown_key, keys)), text


def _walk(schema: dict[str, Any], loc: Sequence[int | str]) -> tuple[list[str], dict[str, Any]]:
    """Return the keys of the file along `loc`, and the schema at its end ({} if it has none)."""
    keys: list[str] = []
    node = _resolved(schema, schema)
    for part in loc:
        mapping = node.get("discriminator", {}).get("mapping", {})
        if part in mapping:
            node = _resolved(schema, {"$ref": mapping[part]})
            continue  # a tag that pydantic adds, not a key of the file
        if part != "[key]":
            keys.append(str(part))
        node = _resolved(schema, _below(node, part))
    return keys, node


def _below(node: dict[str, Any], part: int | str) -> dict[str, Any]:
    if isinstance(part, int):
        return dict(node.get("items", {}))
    if part in node.get("properties", {}):
        return dict(node["properties"][part])
    maps = [*node.get("patternProperties", {}).values(), node.get("additionalProperties")]
    return dict(maps[0] or {})


def _resolved(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    for option in node.get("anyOf", ()):  # X | None: None has nothing below it
        if option.get("type") != "null":
            node = {**node, **option}
            break
    if "$ref" in node:
        return dict(schema["$defs"][node["$ref"].rpartition("/")[2]])
    return node


def _keys(schema: dict[str, Any], loc: Sequence[int | str]) -> list[str]:
    return list(_walk(schema, loc)[1].get("properties", {}))


def _unknown(key: str, allowed: list[str]) -> str:
    close = get_close_matches(key, allowed, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown or not supported by this version; {hint}allowed here: {', '.join(allowed)}"


def _options(node: dict[str, Any]) -> str:
    return ", ".join(str(option) for option in node.get("enum", [node.get("const")]))


def _plain(text: str) -> str:
    """Return pydantic's message with the words of YAML."""
    text = re.sub(r"^(Input|String|Tuple|Dictionary|Value) should", "must", text)
    text = re.sub(r"a valid dictionary or instance of \w+", "a map", text)
    return text.replace("a valid tuple", "a list").replace(" after validation", "")


def _shown_key(key: str) -> str:
    """Return the key, escaped and cut if it could break a terminal or a log."""
    return key if re.fullmatch(r"[\w-]{1,63}", key, re.ASCII) else ascii(key[:63])


def _shown(details: ErrorDetails) -> str:
    text = ascii(details["input"])
    return text if len(text) <= 60 else text[:57] + "..."
