"""Calls that a step makes now and then, beside those of its loss: what is recorded is still the loss that is trained."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from losses import BATCH, NoScoring, cross_entropy, each_cross_entropy, observed

from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals.outputs import SampleOutputs

READS = ("loss", "confidence", "correct")


def teacher(heads, batch):
    with torch.no_grad():
        F.cross_entropy(heads.teacher(batch["x"]), batch["y"])


def other_view(heads, batch, **options):
    return F.cross_entropy(heads.classes(batch["x"].flip(1)), batch["y"], **options)


def accuracy(heads, batch):
    (heads.classes(batch["x"]).argmax(1) == batch["y"]).sum()


def positives(heads, batch):
    """Divided by a sum that has no graph."""
    return each_cross_entropy(heads, batch).sum() / (batch["keep"] > 0).sum().clamp(min=1)


def penalty(heads):
    return 0.01 * sum(p.pow(2).sum() for p in heads.parameters() if p.requires_grad)


def penalised(heads, batch):
    return cross_entropy(heads, batch) + penalty(heads)


def focal(heads, batch):
    """Not linear in the criterion, so that is no part of it."""
    logits = heads.classes(batch["x"])
    right = logits.softmax(1).gather(1, batch["y"][:, None])[:, 0]
    return ((1 - right.detach()) ** 2 * F.cross_entropy(logits, batch["y"], reduction="none")).exp().mean()


@pytest.mark.parametrize("loss", [cross_entropy, positives, penalised, focal])
@pytest.mark.parametrize("logged", [teacher, other_view, accuracy])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.filterwarnings("ignore:SampleSelection. F.cross_entropy is a part of the loss")
def test_what_is_logged_before_the_loss_now_and_then_changes_nothing(loss, logged, first, heads, batches):
    logs = [first]

    def step(heads, batch):
        if logs[0]:
            logged(heads, batch)
        return loss(heads, batch)

    _, expected = observed(loss, heads, batches, reads=READS)
    source = SampleOutputs(READS)
    for number, (batch, (_, usual)) in enumerate(zip(batches, expected, strict=True)):
        logs[0] = first == (number != 1)
        if logs[0] and number and (loss, logged) == (focal, other_view) and not first:
            with pytest.raises(OutputsError, match="another way than the first"):  # either may be the task
                source.observe(partial(step, heads, batch), batch, BATCH, NoScoring)
            continue
        _, values = source.observe(partial(step, heads, batch), batch, BATCH, NoScoring)
        for name in READS:
            assert torch.allclose(values[name].float(), usual[name].float(), atol=1e-5), name


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("weight", [0.1, 1.0])
@pytest.mark.filterwarnings("ignore:SampleSelection. F.cross_entropy is a part of the loss")
def test_another_criterion_that_is_added_later_is_recorded_too(before, weight, heads, batches):
    adds = [False]

    def step(heads, batch):
        if not adds[0]:
            return penalised(heads, batch)
        if before:
            return weight * other_view(heads, batch) + penalised(heads, batch)
        return penalised(heads, batch) + weight * other_view(heads, batch)

    source = SampleOutputs(READS)
    for adds[0], batch in zip((False, True, False), batches, strict=True):
        _, values = source.observe(partial(step, heads, batch), batch, BATCH, NoScoring)
        expected = each_cross_entropy(heads, batch) + adds[0] * weight * other_view(heads, batch, reduction="none")
        assert torch.allclose(values["loss"], expected, atol=1e-5)
        if not (before and weight == 1.0):  # then either may be the task
            assert torch.allclose(values["confidence"], heads.classes(batch["x"]).softmax(1).amax(1))


@pytest.mark.filterwarnings("ignore:SampleSelection. that the loss is made of")
def test_a_manual_step_with_a_second_criterion_later_is_refused(heads, batches):
    adds = [False]

    def step(heads, batch):
        if adds[0]:
            other_view(heads, batch).backward()
        cross_entropy(heads, batch).backward()

    source = SampleOutputs(("loss",), manual=True)
    _, values = source.observe(partial(step, heads, batches[0]), batches[0], BATCH, NoScoring)
    assert torch.allclose(values["loss"], each_cross_entropy(heads, batches[0]))
    adds[0] = True
    with pytest.raises(OutputsError, match="made 2 criterion calls"):
        source.observe(partial(step, heads, batches[1]), batches[1], BATCH, NoScoring)


@pytest.mark.filterwarnings("ignore:SampleSelection. that the loss is made of")
def test_a_manual_step_may_log_what_has_no_graph(heads, batches):
    logs = [False]

    def step(heads, batch):
        if logs[0]:
            teacher(heads, batch)
        cross_entropy(heads, batch).backward()

    source = SampleOutputs(("loss",), manual=True)
    for logs[0], batch in zip((False, True, False), batches, strict=True):
        _, values = source.observe(partial(step, heads, batch), batch, BATCH, NoScoring)
        assert torch.allclose(values["loss"], each_cross_entropy(heads, batch))
