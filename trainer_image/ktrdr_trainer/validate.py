"""Checks strategy files without data and without torch. Called by `__main__`."""

from pathlib import Path

from ktrdr_api.errors import StrategyError
from ktrdr_api.strategy import parse_strategy


def problems_and_warnings(file: Path) -> tuple[list[str], list[str]]:
    """What must be changed, one line each with file and path, and what is only odd."""
    try:
        text = file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        return [f"{file}: {reason}"], []
    try:
        strategy = parse_strategy(text, source=str(file))
    except StrategyError as error:
        return str(error).splitlines(), []
    problems = []
    if strategy.name != file.stem:
        problems.append(f"{file}: name: {strategy.name!r} must be the file's name, {file.stem!r}")
    return problems, [f"{file}: warning: {text}" for text in strategy.warnings()]
