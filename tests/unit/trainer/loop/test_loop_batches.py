"""Which rows and masks a batch gets."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ktrdr_api.errors import DataError
from ktrdr_trainer.dataset import ChunkPlan, DropoutMasks, permutation, rows_on
from loop_builders import Rows, rows

CPU = torch.device("cpu")


@given(count=st.integers(1, 40_000), batch_size=st.integers(1, 20_000))
def test_plan_of_any_rows_covers_each_row_once(count: int, batch_size: int) -> None:
    plan = ChunkPlan(count, batch_size)
    bounds = [plan.bounds(chunk) for chunk in range(plan.chunks)]
    assert [first for first, _ in bounds] == [0, *(end for _, end in bounds[:-1])]
    assert bounds[-1][1] == count
    assert all(0 < end - first <= plan.chunk_rows for first, end in bounds)
    assert sum(-(-(end - first) // batch_size) for first, end in bounds) == plan.batches
    assert plan.batches_per_chunk <= 50


def test_permutation_of_an_epoch_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> torch.Tensor:
        return permutation(100, seed=seed, epoch=epoch, device=CPU)

    assert torch.equal(order(1, 1), order(1, 1))
    assert order(1, 1).sort().values.tolist() == list(range(100))
    assert not torch.equal(order(1, 1), order(1, 2))
    assert not torch.equal(order(1, 1), order(2, 1))


@settings(max_examples=20)
@given(dropout=st.floats(0.01, 0.99))
def test_masks_of_a_chunk_drop_the_fraction_and_keep_the_mean(dropout: float) -> None:
    masks = DropoutMasks(400, (101, 50), dropout)
    masks.draw(1, epoch=2, chunk=3)
    for mask in masks.masks:
        kept = mask[mask > 0]
        deviation = (dropout * (1 - dropout) / mask.numel()) ** 0.5
        assert 1 - kept.numel() / mask.numel() == pytest.approx(dropout, abs=6 * deviation + 1e-5)
        assert torch.equal(kept, kept[0].expand_as(kept))
        assert kept[0].item() == pytest.approx(1 / (1 - dropout), rel=2e-3)


def test_masks_are_a_function_of_seed_epoch_and_chunk() -> None:
    def mask(seed: int, epoch: int, chunk: int) -> torch.Tensor:
        masks = DropoutMasks(40, (9,), 0.5)
        masks.draw(seed, epoch=epoch, chunk=chunk)
        return masks.masks[0]

    assert torch.equal(mask(1, 2, 3), mask(1, 2, 3))
    others = [mask(2, 2, 3), mask(1, 3, 3), mask(1, 2, 4)]
    assert not any(torch.equal(mask(1, 2, 3), other) for other in others)


def test_masks_without_dropout_do_not_exist() -> None:
    assert DropoutMasks(40, (9,), 0.0).masks == []


def test_rows_that_are_empty_infinite_or_mislabelled_are_refused() -> None:
    part = rows(4)
    broken = part.features.copy()
    broken[2, 1] = np.inf
    for bad, message in (
        (Rows(part.features[:0], part.labels[:0]), "validation split has no rows"),
        (Rows(broken, part.labels), "no finite feature at row 2, column 1"),
        (Rows(part.features, part.labels + 3), "labels outside 0..2"),
    ):
        with pytest.raises(DataError, match=message):
            rows_on(bad, CPU, name="validation")
