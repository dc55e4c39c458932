"""Generator of docs/reference/conditions.md, the page of conditions, phases and reasons.

Run by `make generate` and `make verify`. The texts are the docstrings in `conditions.py`, parsed
from its source because Python does not keep the docstrings of enum members.
"""

import argparse
import ast
import inspect
from enum import StrEnum
from pathlib import Path
from typing import Final

from ktrdr_api import conditions
from ktrdr_api.conditions import CONDITIONS_OF_PHASE, ConditionType, Phase, Reason
from ktrdr_api.names import RESOURCE

PAGE: Final = Path("docs/reference/conditions.md")
_INTRODUCTION: Final = f"""\
<!-- Generated from operator/ktrdr_api/conditions.py by `make generate`; do not edit. -->
# Conditions, phases and reasons

Programs read the conditions, users read the phase. All conditions are present from the operator's
first update; before it, `observedGeneration` is -1, so that no tool takes the status of a new
object for current. `lastTransitionTime` changes only when the condition's status changes. Reasons
are API: scripts and alerts may match on them.

```
kubectl wait --for=condition=Finished {RESOURCE}/NAME
kubectl wait --for=condition=Complete {RESOURCE}/NAME
```
"""


def documented(enum: type[StrEnum]) -> dict[str, str]:
    """Return every value of an enum of `conditions` with its docstring.

    Raises:
        ValueError: a member has no docstring.
    """
    module = ast.parse(inspect.getsource(conditions))
    body = next(
        node.body
        for node in module.body
        if isinstance(node, ast.ClassDef) and node.name == enum.__name__
    )
    found = {}
    for member, text in zip(body, [*body[1:], None], strict=True):
        if not isinstance(member, ast.Assign) or not isinstance(member.targets[0], ast.Name):
            continue
        name = member.targets[0].id
        if not isinstance(text, ast.Expr) or not isinstance(text.value, ast.Constant):
            raise ValueError(f"{enum.__name__}.{name} has no docstring")
        found[enum[name].value] = " ".join(str(text.value.value).split())
    return found


def render() -> str:
    """Return the page as Markdown."""
    phases = documented(Phase)
    rows: list[tuple[str, ...]] = [
        (f"`{phase.value}`", phases[phase.value], ", ".join(_in_order(phase)))
        for phase in CONDITIONS_OF_PHASE
    ]
    return "\n".join(
        [
            _INTRODUCTION,
            "## Phases",
            "",
            _table(("Phase", "Meaning", "Conditions that are True"), rows),
            "",
            "While a running trainer is being cancelled, `Running` stays True until it has ended.",
            "",
            "## Conditions",
            "",
            _table(("Condition", "True when"), _rows(ConditionType)),
            "",
            "`Complete`, `Failed`, `Cancelled` and `Finished` stay True once they are True. There"
            " is no condition `Ready`.",
            "",
            "## Reasons",
            "",
            "Used in conditions, in `status.reason`, in `status.waiting` and in Events.",
            "",
            _table(("Reason", "Meaning"), _rows(Reason)),
            "",
        ]
    )


def _in_order(phase: Phase) -> list[str]:
    return [f"`{kind.value}`" for kind in ConditionType if kind in CONDITIONS_OF_PHASE[phase]]


def _rows(enum: type[StrEnum]) -> list[tuple[str, ...]]:
    return [(f"`{value}`", text) for value, text in documented(enum).items()]


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main() -> None:
    """Write the page, or with `--check` fail if it differs from the code."""
    parser = argparse.ArgumentParser(prog="python -m ktrdr_api.reference", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--root", type=Path, default=Path(), help="root of the repository")
    arguments = parser.parse_args()
    target, text = arguments.root / PAGE, render()
    if not arguments.check:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    elif not target.is_file() or target.read_text(encoding="utf-8") != text:
        parser.exit(1, f"{PAGE} does not match the code: run `make generate`\n")


if __name__ == "__main__":
    main()
