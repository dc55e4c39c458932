"""The grammar of strategies: what is read, what is refused, and in which words."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ktrdr_api.errors import StrategyError
from ktrdr_api.strategy import Strategy, parse_strategy, strategy_digest, with_overrides
from ktrdr_api.strategy_sections import TIMEFRAME_SECONDS

VALID = """
name: valid
version: "3.0"
training_data:
  symbols: {mode: multi_symbol, list: [BTC, NO]}
  timeframes: {mode: multi_timeframe, list: [1h, 1d], base_timeframe: 1h}
  date_range: {start: 2017-10-01, end: "2019-10-01"}
indicators:
  rsi_14: {type: rsi}
  macd_std: {type: macd}
fuzzy_sets:
  rsi_zone:
    indicator: rsi_14
    low: {type: gaussian, parameters: [30, 15]}
    mid: [30, 50, 70]
nn_inputs:
- {fuzzy_set: rsi_zone, timeframes: all}
- {raw_indicator: macd_std.line, timeframes: [1d], normalization: zscore}
model: {type: mlp}
training:
  labels: {source: zigzag, zigzag_threshold: 2e-2}
  learning_rate: 1e-3
"""


def parse(*changes: tuple[str, str]) -> Strategy:
    text = VALID
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return parse_strategy(text, source="s.yaml")


def test_parse_strategy_valid_reads_values_and_defaults() -> None:
    strategy = parse()
    assert (strategy.symbols, strategy.timeframes) == (("BTC", "NO"), ("1h", "1d"))
    assert (strategy.base_timeframe, str(strategy.training_data.date_range.start)) == (
        "1h",
        "2017-10-01",
    )
    training = strategy.training
    assert (training.learning_rate, training.labels.zigzag_threshold) == (0.001, 0.02)
    assert (training.epochs, training.batch_size, training.seed) == (100, 32, 42)
    assert (training.gradient_clip, training.early_stopping.enabled) == (None, False)
    assert strategy.model.architecture.hidden_layers == (64, 32)
    assert strategy.warnings() == []


def test_features_stand_in_the_order_of_inputs_timeframes_memberships() -> None:
    assert [feature.id for feature in parse().features()] == [
        "1h_rsi_zone_low",
        "1h_rsi_zone_mid",
        "1d_rsi_zone_low",
        "1d_rsi_zone_mid",
        "1d_macd_std.line_raw",
    ]


def test_features_have_reference_membership_and_normalization() -> None:
    _, mid, *_, raw = parse().features()
    assert (mid.timeframe, mid.reference, mid.normalization) == ("1h", "rsi_14", "none")
    assert mid.membership is not None
    assert mid.membership.parameters == (30, 50, 70)
    assert (raw.timeframe, raw.reference, raw.normalization) == ("1d", "macd_std.line", "zscore")
    assert raw.membership is None
    *_, unscaled = parse((", normalization: zscore", "")).features()
    assert unscaled.normalization == "none"


def test_warnings_name_unused_indicators_and_fuzzy_sets() -> None:
    strategy = parse(
        ("macd_std: {type: macd}", "macd_std: {type: macd}\n  spare: {type: obv}"),
        ("fuzzy_sets:", "fuzzy_sets:\n  odd: {indicator: rsi_14, x: [1, 2, 3]}"),
    )
    assert strategy.warnings() == [
        "indicators.spare: not used by any fuzzy set or nn_input",
        "fuzzy_sets.odd: not used by any nn_input",
    ]


def test_early_stopping_written_down_is_enabled_unless_it_says_not() -> None:
    written = parse(("learning_rate: 1e-3", "early_stopping: {patience: 3}"))
    off = parse(("learning_rate: 1e-3", "early_stopping: {enabled: false}"))
    assert written.training.early_stopping.enabled is True
    assert off.training.early_stopping.enabled is False


EDGES = {
    "one day": ("2019-10-01", "2017-10-01"),
    "gaussian with a small sigma": ("[30, 15]", "[30, 0.001]"),
    "membership without slopes": ("[30, 50, 70]", "[30, 30, 30]"),
    "most memberships": (
        "    mid: [30, 50, 70]\n",
        "".join(f"    m{number}: [1, 2, 3]\n" for number in range(31)),
    ),
    "trapezoid": ("[30, 50, 70]", "{type: trapezoidal, parameters: [30, 50, 50, 70]}"),
    "longest name": ("mid: [", f"{'m' * 63}: ["),
    "first year": ("2017-10-01", "1900-01-01"),
    "last year": ("2019-10-01", "2199-12-31"),
    "split that sums to 1 but for rounding": (
        "learning_rate: 1e-3",
        "data_split: {train: 0.333333, validation: 0.333333, test: 0.333334}",
    ),
    "fast period just below slow": ("{type: macd}", "{type: macd, fast_period: 25}"),
}


@pytest.mark.parametrize(("old", "new"), EDGES.values(), ids=EDGES.keys())
def test_parse_strategy_accepts_the_edge_of_what_is_valid(old: str, new: str) -> None:
    parse((old, new))


def test_parse_strategy_name_of_64_characters_is_refused() -> None:
    with pytest.raises(StrategyError, match="must have at most 63 characters"):
        parse(("mid: [", f"{'m' * 64}: ["))


def test_strategy_cannot_be_changed_after_it_was_validated() -> None:
    strategy = parse()
    with pytest.raises(ValidationError, match="frozen"):
        strategy.training.epochs = 1  # type: ignore[misc]  # on purpose


def test_timeframes_have_their_length_in_seconds() -> None:
    minute, hour, day = 60, 3600, 86400
    want = {
        "1m": minute,
        "5m": 5 * minute,
        "15m": 15 * minute,
        "30m": 30 * minute,
        "1h": hour,
        "4h": 4 * hour,
        "1d": day,
        "1w": 7 * day,
    }
    assert want == TIMEFRAME_SECONDS


REFUSALS = yaml.safe_load((Path(__file__).parent / "strategy_refusals.yaml").read_text())


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case["want"].partition(": ")[0])
def test_parse_strategy_refuses_by_path_with_what_is_allowed(case: dict[str, str]) -> None:
    with pytest.raises(StrategyError) as refused:
        parse((case["old"], case["new"]))
    assert str(refused.value) == f"s.yaml: {case['want']}"
    assert refused.value.path == case["want"].partition(": ")[0]


def test_parse_strategy_lists_every_problem_of_the_file() -> None:
    with pytest.raises(StrategyError) as refused:
        parse(("{type: rsi}", "{type: rsi, x: 1}"), ("{type: mlp}", "{type: gru}"), ("1e-3", "-1"))
    assert [path for path, _ in refused.value.problems] == [
        "indicators.rsi_14.x",
        "model.type",
        "training.learning_rate",
    ]


def test_parse_strategy_wrong_everywhere_is_told_shortly() -> None:
    many = "\n".join(f"k{number}: 1" for number in range(500))
    with pytest.raises(StrategyError) as refused:
        parse(("model: {type: mlp}", f"model: {{type: mlp}}\n{many}"))
    lines = str(refused.value).splitlines()
    assert (len(lines), lines[-1]) == (101, "s.yaml: and 400 more problems")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("indicator: rsi_14", f"indicator: {'x' * 50_000}"),
        ("[1d], norm", f"[{'x' * 50_000}], norm"),
        ("type: rsi", f"type: {'x' * 50_000}"),
        ("2017-10-01", "9" * 50_000),
        ("name: valid", f"{'x' * 50_000}: 1\n{'x' * 50_000}: 2"),
        ("macd_std: {", "".join(f"i{'x' * 50}{n}: {{type: obv}}\n  " for n in range(250)) + "x: {"),
    ],
)
def test_parse_strategy_long_words_are_told_shortly(old: str, new: str) -> None:
    with pytest.raises(StrategyError) as refused:
        parse((old, new))
    assert max(map(len, str(refused.value).splitlines())) <= 500


@pytest.mark.parametrize(
    ("size", "shown"), [(58, f"'{'x' * 58}'"), (59, f"'{'x' * 56}...")], ids=["longest", "longer"]
)
def test_parse_strategy_shows_a_wrong_value_up_to_60_characters(size: int, shown: str) -> None:
    with pytest.raises(StrategyError) as refused:
        parse(("{type: mlp}", f"{{type: {'x' * size}}}"))
    assert str(refused.value) == (
        f"s.yaml: model.type: {shown} is not supported by this version; allowed: mlp"
    )


@pytest.mark.parametrize(("size", "shown"), [(63, "x" * 63), (64, f"'{'x' * 63}'")])
def test_parse_strategy_shows_an_unknown_key_up_to_63_characters(size: int, shown: str) -> None:
    with pytest.raises(StrategyError) as refused:
        parse(("{type: mlp}", f"{{type: mlp, {'x' * size}: 1}}"))
    assert refused.value.path == f"model.{shown}"


def test_parse_strategy_sets_are_bounded_so_that_features_are() -> None:
    # 200 inputs of 2,500 memberships in 8 timeframes: 15 s and 700 MB when features are counted.
    many = "".join(f"    m{number}: [1, 2, 3]\n" for number in range(33))
    with pytest.raises(StrategyError) as refused:
        parse(("    mid: [30, 50, 70]\n", many))
    assert str(refused.value) == (
        "s.yaml: fuzzy_sets.rsi_zone: must have at most 32 memberships, got 34"
    )


def test_parse_strategy_list_of_indicators_is_an_old_format() -> None:
    with pytest.raises(
        StrategyError, match="formats v1 and v2 are not supported; convert the file to v3"
    ):
        parse_strategy("name: old\nindicators:\n- {name: rsi, period: 14}\n")


def test_parse_strategy_beyond_the_limit_is_refused_unread() -> None:
    with pytest.raises(StrategyError, match=r"\(file\): 65537 bytes; must have at most 65536"):
        parse_strategy("#" * 65_537)


@pytest.mark.parametrize("text", ["", "# nothing", "null", "- a", "text"])
def test_parse_strategy_not_a_map_is_refused(text: str) -> None:
    with pytest.raises(StrategyError, match=r"strategy: \(file\): must be a map; begin with"):
        parse_strategy(text)


def test_parse_strategy_not_yaml_says_line_and_column() -> None:
    with pytest.raises(StrategyError) as refused:
        parse_strategy("name: x\nversion: [\n  a: b: c\n")
    assert str(refused.value).startswith("strategy: (file): not valid YAML: line 3, column 7: ")


def test_with_overrides_replaces_only_what_is_given() -> None:
    strategy = parse()
    got = with_overrides(strategy, symbols=["ETH"], start="2018-01-01")
    assert (got.symbols, got.timeframes) == (("ETH",), ("1h", "1d"))
    assert str(got.training_data.date_range.start) == "2018-01-01"
    assert got.training_data.date_range.end == strategy.training_data.date_range.end
    assert with_overrides(strategy) == strategy


@pytest.mark.parametrize(
    ("timeframes", "base"), [(["1d", "1h"], "1h"), (["1d", "4h"], "4h"), (["1d"], "1d")]
)
def test_with_overrides_keeps_the_base_if_listed_else_takes_the_shortest(
    timeframes: list[str], base: str
) -> None:
    got = with_overrides(parse(), timeframes=timeframes)
    assert (list(got.timeframes), got.base_timeframe) == (timeframes, base)


@pytest.mark.parametrize(
    ("overrides", "path"),
    [
        ({"symbols": []}, "training_data.symbols.list"),
        ({"symbols": ["../etc"]}, "training_data.symbols.symbol"),
        ({"timeframes": ["2h"]}, "training_data.timeframes.timeframe"),
        ({"timeframes": ["2h", "3h"]}, "training_data.timeframes.list.0"),
        ({"timeframes": ["1h"]}, "nn_inputs.1.timeframes"),
        ({"start": "2020-01-01"}, "training_data.date_range"),
        ({"end": "soon"}, "training_data.date_range.end"),
    ],
)
def test_with_overrides_invalid_result_is_refused(
    overrides: dict[str, list[str]], path: str
) -> None:
    with pytest.raises(StrategyError, match="strategy with the request's overrides: ") as refused:
        with_overrides(parse(), **overrides)  # type: ignore[arg-type]  # mixed on purpose
    assert refused.value.path == path


def test_strategy_digest_is_that_of_sha256sum() -> None:
    # printf 'name: grün\n' | sha256sum
    want = "9b52810761deb022650127c4e40c72cd97ddef5f2a1f285a82633d38e864577f"
    assert strategy_digest("name: grün\n") == want


ANYTHING = st.sampled_from(
    [
        *("", "3", "-1", "1e999", ".nan", "true", "~", "[]", "{}", "[1, [2]]", "{a: {b: 1}}", "x"),
        *(
            "''",
            "all",
            "[all, 1h]",
            "'",
            '"',
            "{",
            "]",
            ":",
            "- ",
            "\t",
            "\n",
            "\x00",
            "\ud800",
            "*a",
            "&a 1",
            "!!int x",
        ),
        *('"\\e[31m"', '"\\uD800"', "9" * 5000),
    ]
)


@settings(deadline=None, max_examples=200)
@given(data=st.data(), new=ANYTHING | st.text(max_size=20))
def test_parse_strategy_of_any_edit_gives_a_strategy_or_its_problems(
    data: st.DataObject, new: str
) -> None:
    words = re.split(r"([\s,:\[\]{}]+)", VALID)
    place = data.draw(st.integers(0, len(words) - 1))
    words[place] = new
    try:
        strategy = parse_strategy("".join(words))
    except StrategyError as refused:
        lines = str(refused).splitlines()
        assert all(line.isprintable() and 0 < len(line) <= 500 for line in lines)
        return
    for feature in strategy.features():
        assert feature.id.isprintable()
        assert feature.timeframe in strategy.timeframes
        name, _, output = feature.reference.partition(".")
        assert output in (strategy.indicators[name].outputs or ("",))
