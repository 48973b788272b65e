"""A loss is taken for the sum of what its parts add to it only where its graph proves that."""

import pytest
import torch
import torch.nn.functional as F
from losses import BATCH, CLASSES, cross_entropy, each_cross_entropy, observed, onehot

from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals.graph import edge_of
from kakurenbo_lightning.signals.linearity import why_not_linear


def reason(loss, rows):
    return why_not_linear(loss, [edge_of(rows)], [rows], len(rows))


def test_a_function_that_is_curved_is_not_linear_where_its_values_are_zero():
    values = torch.zeros(BATCH, requires_grad=True) * 1.0
    assert "no linear function" in reason((values.mean() + 1).log(), values)
    assert not reason(3 * values.mean() + 1, values)


class Square(torch.autograd.Function):
    """The square of the mean of rows, whose gradient has no graph."""

    @staticmethod
    def forward(ctx, rows):
        ctx.save_for_backward(rows)
        return rows.mean() ** 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (rows,) = ctx.saved_tensors
        return (grad * 2 * rows.mean() / len(rows)).expand_as(rows)


class Norm(torch.autograd.Function):
    """The norm of rows: what they add to it makes all of it."""

    @staticmethod
    def forward(ctx, rows):
        ctx.save_for_backward(rows)
        return rows.norm()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (rows,) = ctx.saved_tensors
        return grad * rows / rows.norm()


class Keeping(torch.autograd.Function):
    """The square of the mean, kept as a number: its gradient has a graph, which does not lead back."""

    @staticmethod
    def forward(ctx, rows):
        ctx.mean, ctx.count = float(rows.mean()), len(rows)
        return rows.mean() ** 2

    @staticmethod
    def backward(ctx, grad):
        return (grad * 2 * ctx.mean / ctx.count).expand(ctx.count)


@pytest.mark.parametrize("function", [Square, Norm, Keeping])
@pytest.mark.parametrize("tail", [lambda loss: loss, lambda loss: 2 * loss + 1])
@pytest.mark.parametrize("checks", [True, False])
def test_a_function_whose_curvature_cannot_be_seen_is_not_taken_to_be_linear(function, tail, checks, heads, batches):
    def step(heads, batch):
        return tail(function.apply(each_cross_entropy(heads, batch)))

    with pytest.raises(OutputsError, match=f"it goes through {function.__name__}, of which nothing shows that it is linear"):
        observed(step, heads, batches[:1], check_attribution=checks)


def test_a_later_step_that_goes_through_such_a_function_is_refused(heads, batches):
    steps = iter([lambda h, b: each_cross_entropy(h, b).mean() * 2, lambda h, b: Norm.apply(each_cross_entropy(h, b))])
    with pytest.raises(OutputsError, match="makes its loss in another way than the first one did"):
        observed(lambda heads, batch: next(steps)(heads, batch), heads, batches[:2], check_attribution=False)


def test_such_a_function_elsewhere_does_not_matter(heads, batches):
    """In a penalty beside the criterion, and in the network before it."""

    def step(heads, batch):
        before = Scaling.apply(heads.classes(batch["x"]))
        return 2 * F.cross_entropy(before, batch["y"]) + 1e-3 * Norm.apply(heads.classes.weight.flatten())

    with pytest.warns(UserWarning, match="is a part of the loss"):
        _, ((_, values),) = observed(step, heads, batches[:1])
    assert torch.allclose(values["loss"], 2 * each_cross_entropy(heads, batches[0]), atol=1e-5)


class Scaling(torch.autograd.Function):
    """Leaves values alone."""

    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 0.5 * grad


def test_an_operation_of_torch_that_cannot_be_differentiated_twice_is_not_linear():
    rows = torch.rand(8, requires_grad=True) * 1.0
    log_p = torch.stack([rows, 1 - rows], 1).log_softmax(1)[:, None]
    loss = F.ctc_loss(log_p, torch.tensor([1]), (8,), (1,))
    assert reason(loss, rows)


@pytest.mark.parametrize(
    "made",
    [
        lambda c: (c * c).sum() / c.sum(),
        lambda c: (c * c.mean()).mean(),
        lambda c: (c / c.sum()).mul(torch.arange(8.0)).sum(),
        lambda c: c.sum() / (1 + c.mean()),
        lambda c: torch.dot(c, c),
    ],
)
def test_a_product_of_what_depends_on_the_rows_is_not_linear(made):
    rows = torch.rand(8, requires_grad=True) * 1.0
    assert "no linear function" in reason(made(rows), rows)
    assert not reason(torch.dot(rows, rows.detach()) / rows.detach().sum(), rows)


def test_a_focal_loss_beside_a_dice_loss_over_the_batch_is_refused(heads, batches):
    """As segmentation_models_pytorch writes them: of a sum over the batch divided by another one, no sample has a part."""

    def step(heads, batch):
        logits, target = heads.classes(batch["x"]), onehot(batch)
        total = 0
        for number in range(CLASSES):
            logpt = F.binary_cross_entropy_with_logits(logits[:, number], target[:, number], reduction="none")
            total = total + ((1 - torch.exp(-logpt)) ** 2 * logpt).mean()
        p = logits.log_softmax(1).exp()
        both, together = torch.sum(p * target, dim=0), torch.sum(p + target, dim=0)
        score = 2 * both / together.clamp_min(1e-7)
        return total + ((1 - score) * (target.sum(0) > 0)).mean()

    for checks in (True, False):
        with pytest.raises(OutputsError, match="does not add up from them sample by sample"):
            observed(step, heads, batches[:1], check_attribution=checks)


def test_a_loss_of_which_a_part_has_rows_of_the_batch_is_as_before(heads, batches):
    """A product with what does not depend on the rows, whatever it depends on else, is linear in them."""

    def step(heads, batch):
        weight = heads.mean(batch["x"]).square().mean(1)
        return (cross_entropy(heads, batch, reduction="none") * weight).mean()

    _, ((_, values),) = observed(step, heads, batches[:1])
    weight = heads.mean(batches[0]["x"]).square().mean(1)
    assert torch.allclose(values["loss"], each_cross_entropy(heads, batches[0]) * weight, atol=1e-5)
