"""The strategies that come with the product, and the reference page that describes all of them."""

import re
from pathlib import Path

import pytest

from ktrdr_api.strategy import Strategy, parse_strategy

ROOT = Path(__file__).parents[3]
SHIPPED = sorted((ROOT / "strategies").glob("*.yaml"))
REFERENCE = (ROOT / "docs/reference/strategy.md").read_text()


def test_shipped_strategies_are_all_there() -> None:
    names = {path.stem for path in SHIPPED}
    assert names >= {"neuro_mean_reversion", "test_strategy", "trend_momentum"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_strategy_is_valid_named_as_its_file_and_without_warnings(path: Path) -> None:
    strategy = parse_strategy(path.read_text(), source=path.name)
    assert (strategy.name, strategy.warnings()) == (path.stem, [])
    assert f"`{path.name}`" in (ROOT / "strategies/README.md").read_text()


def keys_of(schema: dict[str, object]) -> set[str]:
    """Every key that a model of the schema may have."""
    found: set[str] = set()
    for name, value in schema.items():
        if name == "properties" and isinstance(value, dict):
            found |= value.keys()
        for below in value if isinstance(value, list) else [value]:
            if isinstance(below, dict):
                found |= keys_of(below)
    return found


def test_reference_page_names_every_key_and_value_of_the_grammar() -> None:
    schema = Strategy.model_json_schema()
    values = {
        str(value)
        for values in re.findall(r"'enum': \[(.*?)\]", str(schema))
        for value in re.findall(r"'(.*?)'", values)
    }
    constants = set(re.findall(r"'const': '(.*?)'", str(schema)))
    wanted = keys_of(schema) | values | constants
    assert sorted(word for word in wanted if f"`{word}`" not in REFERENCE) == []


def test_reference_example_is_valid() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", REFERENCE, flags=re.DOTALL)
    assert [parse_strategy(example).warnings() for example in examples] == [[]]
