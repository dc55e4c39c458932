"""Strict YAML parser for hand-written files: no implicit surprises and no unbounded expansion.

Called by `strategy.parse_strategy`. It reads the core schema of YAML 1.2 (so `NO` and `on` are
strings and `1e-3` is a number), keeps dates as strings, and rejects duplicate keys, anchors,
aliases, tags, keys that are not strings, deep nesting and more than one document in a file.
"""

import re
from collections.abc import Iterator
from typing import Final, Protocol, TypeAlias

import yaml

MAX_DEPTH: Final = 16
"""Maximum nesting; a strategy needs 5. The parser recurses, so a file of 30,000 brackets would
overflow the stack."""

Plain: TypeAlias = "bool | int | float | str | tuple[Plain, ...] | dict[str, Plain] | None"
"""Type of parsed values; sequences are tuples, which no later code can change."""

_CONSTANTS: Final[dict[str, Plain]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT: Final = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL: Final = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class Mark(Protocol):
    """Position in the text, from 0; PyYAML has one class for it in Python and one in C."""

    line: int
    column: int


class YamlError(Exception):
    """The text is not valid YAML as accepted here; the message begins with line and column."""

    def __init__(self, text: str, mark: Mark | None) -> None:
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        super().__init__(where + text)


def load(text: str) -> Plain:
    """Parse one document; an empty text is None.

    Raises:
        YamlError: The text is invalid; the message has line, column and remedy.
    """
    document: Plain = None
    documents = 0
    try:
        events = yaml.parse(text, Loader=yaml.SafeLoader)
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise YamlError(
                        "more than one YAML document; use one file per strategy", event.start_mark
                    )
                document = _node(next(events), events, 1)
    except yaml.MarkedYAMLError as error:
        raise YamlError(error.problem or "invalid YAML", error.problem_mark) from error
    except yaml.YAMLError as error:
        raise YamlError(str(error).replace("\n", " "), None) from error
    return document


def _node(event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> Plain:
    mark = event.start_mark
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
        raise YamlError("anchors and aliases (&, *) are not supported; repeat the value", mark)
    if getattr(event, "tag", None) is not None:
        raise YamlError("tags (!) are not supported; write a plain value", mark)
    if depth > MAX_DEPTH:
        raise YamlError(f"nested deeper than {MAX_DEPTH} levels", mark)
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event.value) if event.implicit[0] else str(event.value)
    if isinstance(event, yaml.SequenceStartEvent):
        return _sequence(events, depth)
    return _mapping(events, depth)


def _sequence(events: Iterator[yaml.Event], depth: int) -> tuple[Plain, ...]:
    items = []
    for event in events:
        if isinstance(event, yaml.SequenceEndEvent):
            break
        items.append(_node(event, events, depth + 1))
    return tuple(items)


def _mapping(events: Iterator[yaml.Event], depth: int) -> dict[str, Plain]:
    pairs: dict[str, Plain] = {}
    for event in events:
        if isinstance(event, yaml.MappingEndEvent):
            break
        key = _node(event, events, depth + 1)
        if not isinstance(key, str):
            raise YamlError(f"key {key!r} is not a string; put it in quotes", event.start_mark)
        if key in pairs:
            raise YamlError(f"duplicate key {key!r}; remove one", event.start_mark)
        pairs[key] = _node(next(events), events, depth + 1)
    return pairs


def _scalar(text: str) -> Plain:
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", ""))
    return text
