from enum import StrEnum
from pathlib import Path

import pytest

from ktrdr_api.conditions import CONDITIONS_OF_PHASE, TERMINAL, ConditionType, Phase, Reason
from ktrdr_api.reference import PAGE, documented, render

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("enum", [ConditionType, Phase, Reason])
def test_reference_documents_every_member(enum: type[StrEnum]) -> None:
    texts = documented(enum)
    assert list(texts) == [member.value for member in enum]
    assert all(text.endswith((".", ")")) for text in texts.values())


def test_reference_page_is_what_the_code_says() -> None:
    assert (ROOT / PAGE).read_text(encoding="utf-8") == render()


def test_reference_lists_the_true_conditions_of_each_phase() -> None:
    rows = [line for line in render().splitlines() if line.startswith("| `Failed` |")]
    assert rows[0].endswith("| `Stalled`, `Failed`, `Finished` |")


def test_conditions_of_phases_follow_the_contract() -> None:
    assert set(CONDITIONS_OF_PHASE) == set(Phase)
    for phase, true in CONDITIONS_OF_PHASE.items():
        ended = phase in (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED)
        assert bool(true & set(TERMINAL)) == ended
        assert (ConditionType.FINISHED in true) == ended
        assert not (ended and true & {ConditionType.RECONCILING, ConditionType.RUNNING})
