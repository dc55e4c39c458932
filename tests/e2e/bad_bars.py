"""Market data that must be refused, each in a folder of its own, made from good bars."""

from collections.abc import Callable
from pathlib import Path

Lines = list[str]
EVERY = 40
"""Every 40th row is 2.5 % of them: beyond the 1 % that is dropped silently."""


def write_folders(good: Path, target: Path) -> None:
    """Write `target/{kind}/BTC_1h.csv` for each kind of damage."""
    header, *rows = good.read_text().splitlines()
    for kind, damage in DAMAGE.items():
        folder = target / kind
        folder.mkdir(parents=True)
        lines = damage([header, *rows])
        (folder / "BTC_1h.csv").write_text("\n".join(lines) + "\n" if lines else "")


def _with_field(lines: Lines, column: int, value: Callable[[str], str]) -> Lines:
    changed = list(lines)
    for number in range(1, len(lines), EVERY):
        fields = lines[number].split(",")
        fields[column] = value(fields[column])
        changed[number] = ",".join(fields)
    return changed


def _bad_date(lines: Lines) -> Lines:
    changed = list(lines)
    changed[100] = "yesterday," + lines[100].partition(",")[2]
    return changed


CLOSE = 4
DAMAGE: dict[str, Callable[[Lines], Lines]] = {
    "bad-date": _bad_date,
    "nan-prices": lambda lines: _with_field(lines, CLOSE, lambda _: "NaN"),
    "negative-prices": lambda lines: _with_field(lines, CLOSE, lambda price: f"-{price}"),
    "empty-file": lambda _: [],
    "too-few-bars": lambda lines: [lines[0], *lines[-120:]],
}
