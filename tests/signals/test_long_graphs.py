"""Losses that are made by many operations, more than the way down into a network is followed."""

import pytest
import torch
from losses import BATCH, cross_entropy, each_cross_entropy, observed, squared

from kakurenbo_lightning.errors import OutputsError


def far(heads, batch, count=700):
    """Of two calls, behind many operations."""
    loss = cross_entropy(heads, batch) + 0.5 * squared(heads, batch).mean()
    for _ in range(count):
        loss = loss * 1.0
    return loss


def one_row_after_another(heads, batch):
    each = each_cross_entropy(heads, batch)
    return sum(each[number] * heads.data["weight"][number] for number in range(len(each))) / len(each)


@pytest.mark.parametrize("sizes", [(192, 192), (8, 192, 8), (192, 8, 192)])
def test_a_loss_may_be_made_by_many_operations(sizes, heads):
    def penalised(heads, batch):
        return far(heads, batch) + 1e-4 * heads.classes.weight.norm()

    each = {
        far: lambda b: each_cross_entropy(heads, b) + 0.5 * squared(heads, b).mean(1),
        penalised: lambda b: each_cross_entropy(heads, b) + 0.5 * squared(heads, b).mean(1),
        one_row_after_another: lambda b: each_cross_entropy(heads, b) * heads.data["weight"][: len(b["x"])],
    }
    for step, alone in each.items():
        _, made = observed(step, heads, batches := [heads.batch(0, size) for size in sizes])
        for batch, (_, values) in zip(batches, made, strict=True):
            assert torch.allclose(values["loss"], alone(batch), atol=1e-5)


def test_a_later_step_that_differs_far_from_its_loss_is_noticed(heads):
    """A form of which only the beginning is compared would be taken for the first one."""
    makes = iter([torch.neg, torch.exp])

    def step(heads, batch):
        near = cross_entropy(heads, batch)
        away = next(makes)(near)
        for _ in range(700):
            away = away * 1.0
        return 3 * near + away

    with pytest.raises(OutputsError, match="makes its loss in another way than the first one did"):
        observed(step, heads, [heads.batch(0), heads.batch(BATCH)], check_attribution=False)
