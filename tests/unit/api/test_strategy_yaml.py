"""The reader of hand-written YAML: plain values as people mean them, and nothing dangerous."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_api.strict_yaml import YamlError, load


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("NO", "NO"),
        ("on", "on"),
        ("yes", "yes"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("1e-3", 0.001),
        ("1.", 1.0),
        (".5", 0.5),
        ("-7", -7),
        ("012", 12),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("1:30", "1:30"),
        ("2019-10-01", "2019-10-01"),
        ("'3'", "3"),
        ('"null"', "null"),
        ("-.inf", -math.inf),
        ("[1, [a]]", (1, ("a",))),
        ("{a: {b: []}}", {"a": {"b": ()}}),
        ("a: |\n  x\n  y\n", {"a": "x\ny\n"}),
        ("", None),
    ],
)
def test_load_reads_plain_values_as_meant(text: str, want: object) -> None:
    assert load(text) == want


BILLION_LAUGHS = "a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
NO_ALIASES = "anchors and aliases (&, *) are not supported; repeat the value"
NO_TAGS = "tags (!) are not supported; write a plain value"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (BILLION_LAUGHS, f"line 1, column 4: {NO_ALIASES}"),
        ("a: *b", f"line 1, column 4: {NO_ALIASES}"),
        ("a: !!python/object:os.system x", f"line 1, column 4: {NO_TAGS}"),
        ("a: 1\nb: 2\na: 3", "line 3, column 1: duplicate key 'a'; remove one"),
        ("1: a", "line 1, column 1: key 1 is not a string; put it in quotes"),
        ("? [a]\n: b", "line 1, column 3: key ('a',) is not a string; put it in quotes"),
        (
            "a: 1\n---\nb: 1",
            "line 2, column 1: more than one YAML document; use one file per strategy",
        ),
        ("[" * 30_000, "line 1, column 17: nested deeper than 16 levels"),
        ("a: [1", "line 1, column 6: expected ',' or ']', but got '<stream end>'"),
        ("a:\n\t- b", "line 2, column 1: found character '\\t' that cannot start any token"),
    ],
)
def test_load_refuses_with_line_column_and_remedy(text: str, want: str) -> None:
    with pytest.raises(YamlError) as refused:
        load(text)
    assert str(refused.value) == want


syntax = st.sampled_from(
    [
        *"{}[]:,-?|>&*!%@`#'\"\n\t \\\x00\x85\u2028\ufeff\ud800a1~",
        "---",
        "...",
        "<<",
        ": ",
        "- ",
        "? ",
    ]
)


@given(st.text(max_size=40) | st.lists(syntax, max_size=40).map("".join))
def test_load_of_any_text_gives_a_value_or_words_for_a_terminal(text: str) -> None:
    told = ""
    try:
        load(text)
    except YamlError as refused:
        told = str(refused)
    assert told.isprintable()


NESTED_MAPS = ("{a: " * 15 + "1" + "}" * 15, "{a: " * 16 + "1" + "}" * 16)
NESTED_LISTS = ("[" * 16 + "]" * 16, "[" * 17 + "]" * 17)


@pytest.mark.parametrize(("deepest", "deeper"), [NESTED_MAPS, NESTED_LISTS])
def test_load_limits_the_depth_of_maps_and_lists(deepest: str, deeper: str) -> None:
    load(deepest)
    with pytest.raises(YamlError, match="nested deeper than 16 levels"):
        load(deeper)


def test_load_control_character_is_refused() -> None:
    with pytest.raises(YamlError, match="unacceptable character #x0007"):
        load("a: \x07")
