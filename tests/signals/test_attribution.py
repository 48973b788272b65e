"""Row i of what is recorded must be sample i's: the test that is made once, on the first batch."""

import random
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from losses import BATCH, LOSSES, Heads, NoScoring, cross_entropy, observed
from torch import nn

from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals.outputs import SampleOutputs


@pytest.fixture(scope="module")
def heads():
    return Heads()


@pytest.fixture
def batch(heads):
    return heads.batch(0)


def shuffled(heads, batch):
    order = torch.randperm(len(batch["x"]))
    return F.cross_entropy(heads.classes(batch["x"][order]), batch["y"][order])


def flipped(heads, batch):
    return F.cross_entropy(heads.classes(batch["x"].flip(0)), batch["y"].flip(0))


def sorted_by_class(heads, batch):
    order = batch["y"].argsort(stable=True)
    return LOSSES["focal"].step(heads, {name: value[order] for name, value in batch.items()})


def contrastive(heads, batch):
    embedding = F.normalize(heads.mean(batch["x"]), dim=1)
    return F.cross_entropy(embedding @ embedding.T / 0.1, torch.arange(len(embedding)))


def contrastive_by_hand(heads, batch):
    embedding = F.normalize(heads.mean(batch["x"]), dim=1)
    return -(embedding @ embedding.T / 0.1).log_softmax(1).diagonal().mean()


def mixed(heads, batch):
    logits = heads.classes(batch["x"])
    return 0.7 * F.cross_entropy(logits, batch["y"]) + 0.3 * F.cross_entropy(logits, batch["y"].flip(0))


@pytest.mark.parametrize("step", [shuffled, flipped, sorted_by_class])
def test_a_step_that_puts_rows_into_another_order_is_an_error_that_says_so(step, heads, batch):
    with pytest.raises(OutputsError, match="attribution: training_step puts the samples into another order") as error:
        observed(step, heads, [batch])
    assert "check_attribution=False" in str(error.value) and "sample_outputs=" in str(error.value)


@pytest.mark.parametrize("step", [contrastive, contrastive_by_hand])
def test_a_loss_over_pairs_is_an_error_that_says_so(step, heads, batch):
    with pytest.raises(
        OutputsError, match="attribution: the value of a sample depends on which others are in its batch"
    ) as error:
        observed(step, heads, [batch])
    assert "random" in str(error.value) and "check_attribution=False" in str(error.value)


@pytest.mark.parametrize("step", [shuffled, flipped, contrastive, contrastive_by_hand])
def test_check_attribution_false_goes_on(step, heads, batch):
    source, ((_, values),) = observed(step, heads, [batch], check_attribution=False)
    assert values["loss"].shape == (BATCH,)
    assert source.report.attribution == "off"


@pytest.mark.parametrize("checked", [True, False])
def test_one_prediction_with_two_targets_is_mixup(checked, heads, batch):
    with pytest.raises(OutputsError, match=r"2 criterion calls \(F.cross_entropy, F.cross_entropy\) .* exactly one is needed"):
        observed(mixed, heads, [batch], check_attribution=checked)


def test_two_targets_of_one_sample_are_proved_to_be_its_own(heads, batch):
    """As distillation from a teacher's hard labels."""

    def step(heads, batch):
        logits = heads.classes(batch["x"])
        return F.cross_entropy(logits, batch["y"]) + F.cross_entropy(logits, heads.teacher(batch["x"]).argmax(1))

    _, ((_, values),) = observed(step, heads, [batch])
    logits = heads.classes(batch["x"])
    both = (batch["y"], heads.teacher(batch["x"]).argmax(1))
    assert torch.allclose(values["loss"], sum(F.cross_entropy(logits, y, reduction="none") for y in both))


def test_a_value_made_of_the_batch_falls_back_on_what_it_was_made_of(heads, batch):
    """The mean of rows that are divided by the batch's mean weight: the rows depend on the batch, the criterion's values do not."""

    def step(heads, batch):
        loss = F.cross_entropy(heads.classes(batch["x"]), batch["y"], reduction="none")
        return (loss * batch["weight"] / batch["weight"].mean()).mean()

    source, ((_, values),) = observed(step, heads, [batch])
    assert source.report.calls == ("F.cross_entropy",) and source.report.attribution == "verified"
    each = F.cross_entropy(heads.classes(batch["x"]), batch["y"], reduction="none")
    assert torch.allclose(values["loss"], each, atol=1e-5), "alone, the weight of a sample is divided by itself"


# --- where it cannot be made


def test_random_numbers_in_the_step_skip_the_test(heads, batch, caplog):
    def noisy(heads, batch):
        torch.rand(len(batch["x"]))  # so that a sample's numbers depend on how many samples there are
        return F.cross_entropy(heads.classes(batch["x"] + torch.randn_like(batch["x"])), batch["y"])

    with caplog.at_level("INFO"):
        source, _ = observed(noisy, heads, [batch])
    assert source.report.attribution == "skipped: two equal passes differ: the step draws random numbers"
    assert "test of attribution" in caplog.text and "random numbers" in caplog.text


@pytest.mark.parametrize("draw", [lambda: float(torch.rand(())), np.random.rand, random.random])
def test_other_random_numbers_of_every_kind_are_noticed_and_put_back(draw, heads, batch):
    def noisy(heads, batch):
        numbers = [draw() for _ in batch["x"]]
        return F.cross_entropy(heads.classes(batch["x"] * (1 + 5 * numbers[-1])), batch["y"])

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = [draw() for _ in range(BATCH + 1)][-1]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    source, _ = observed(noisy, heads, [batch])
    assert "random numbers" in source.report.attribution
    assert draw() == expected, "the training step alone has moved the stream"


class Graphs:
    """A batch that nobody knows how to slice, as PyTorch Geometric's."""

    def __init__(self, batch):
        self.x, self.y = batch["x"], batch["y"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda batch: Graphs(batch), "a Graphs, cannot be sliced"),
        (
            lambda batch: {**batch, "extra": torch.zeros(3)},
            "cannot be sliced (the batch of 32 samples holds a tensor of shape [3]",
        ),
        (lambda batch: {name: value[:1] for name, value in batch.items()}, "one sample"),
    ],
)
def test_a_batch_that_cannot_be_sliced_skips_the_test(change, words, heads, batch):
    def step(batch):
        x, y = (batch.x, batch.y) if isinstance(batch, Graphs) else (batch["x"], batch["y"])
        return F.cross_entropy(heads.classes(x), y)

    given = change(batch)
    size = 1 if words == "one sample" else BATCH
    source = SampleOutputs(("loss",))
    _, values = source.observe(partial(step, given), given, size, NoScoring)
    assert values["loss"].shape == (size,)
    assert source.report.attribution.startswith("skipped") and words in source.report.attribution


def test_a_step_that_fails_in_eval_mode_skips_the_test(heads, batch):
    """As a detection model, which gives predictions in place of losses."""
    training = [True]

    class Scoring:
        def __enter__(self):
            training[0] = False

        def __exit__(self, *error):
            training[0] = True

    def step(batch):
        if not training[0]:
            raise ValueError("no losses in eval mode")
        return cross_entropy(heads, batch)

    source = SampleOutputs(("loss",))
    _, values = source.observe(partial(step, batch), batch, BATCH, Scoring)
    assert values["loss"].shape == (BATCH,)
    assert source.report.attribution == "skipped: a scoring pass failed (ValueError: no losses in eval mode)"


def test_a_batch_norm_without_running_statistics_skips_the_test(heads, batch):
    norm = nn.BatchNorm1d(16, track_running_stats=False)
    source, _ = observed(lambda h, b: F.cross_entropy(h.classes(norm(b["x"])), b["y"]), heads, [batch])
    assert "BatchNorm without running statistics" in source.report.attribution


def test_without_a_way_to_replay_the_test_is_skipped(heads, batch):
    source = SampleOutputs(("loss",))
    source.observe(lambda: cross_entropy(heads, batch), batch, BATCH, NoScoring)
    assert source.report.attribution == "skipped: the step cannot be given another batch"
    source = SampleOutputs(("loss",))
    source.observe(lambda: cross_entropy(heads, batch), batch, BATCH, NoScoring, replay=partial(cross_entropy, heads))
    assert source.report.attribution == "verified"


def test_it_is_made_once_in_scoring_contexts_and_leaves_the_graph_of_the_step_alone(heads, batch):
    contexts, sizes = [], []

    class Scoring(NoScoring):
        def __enter__(self):
            contexts.append(True)

        def __exit__(self, *error):
            contexts.append(False)

    def step(batch):
        sizes.append((len(batch["x"]), torch.is_grad_enabled(), bool(contexts and contexts[-1])))
        return cross_entropy(heads, batch)

    source = SampleOutputs(("loss",))
    for _ in range(3):
        loss, _ = source.observe(partial(step, batch), batch, BATCH, Scoring)
        loss.backward()
    training, rehearsal = (BATCH, True, False), [(BATCH, False, True), (BATCH // 2, False, True)]
    assert sizes == [training, *rehearsal, training, training]
    assert contexts == [True, False] * 2
    heads.zero_grad()


# --- values that the user returns


def returned(change):
    def step(heads, batch):
        logits = heads.classes(batch["x"])
        loss = F.cross_entropy(logits, batch["y"], reduction="none")
        return {"loss": loss.mean(), "sample_loss": change(loss, heads, batch)}

    return step


def test_returned_values_in_another_order_are_an_error(heads, batch):
    with pytest.raises(OutputsError, match="puts the samples into another order"):
        observed(returned(lambda loss, *_: loss.flip(0)), heads, [batch])
    with pytest.raises(OutputsError, match="puts the samples into another order"):
        observed(
            lambda heads, batch: LOSSES["mse"].step(heads, batch),
            heads,
            [batch],
            sample_outputs=lambda batch: returned(lambda loss, *_: loss.flip(0))(heads, batch),
        )


def test_what_the_user_returns_may_depend_on_the_batch(heads, batch):
    """They are told to return values of their own choice where a loss has none."""
    source, ((_, values),) = observed(returned(lambda loss, *_: loss / loss.mean()), heads, [batch])
    assert source.report.attribution == "batch"
    assert values["loss"].mean() == pytest.approx(1.0)


def test_returned_values_are_verified(heads, batch):
    source, _ = observed(returned(lambda loss, *_: loss), heads, [batch])
    report = source.report
    assert (report.way, report.attribution, report.complete, report.weights) == ("returned", "verified", True, "exact")
    assert report.share == pytest.approx(1.0, abs=1e-6)
    assert "share of the loss: 100.0%" in report.lines()
    source, _ = observed(returned(lambda loss, *_: loss.detach()), heads, [batch])
    assert (source.report.share, source.report.complete) == (None, None)
    assert "decomposes over samples: not known" in source.report.lines()


def test_returned_values_that_are_a_part_of_the_loss_carry_no_weights(heads, batch):
    def step(heads, batch):
        outputs = returned(lambda loss, *_: loss)(heads, batch)
        return {**outputs, "loss": outputs["loss"] + F.mse_loss(heads.mean(batch["x"]), batch["target"])}

    source, _ = observed(step, heads, [batch])
    assert source.report.complete is False and 0 < source.report.share < 1
    with pytest.raises(OutputsError, match=r"the returned sample_loss is only a part of the loss.*unweighted_rest=True"):
        observed(step, heads, [batch], weighs=True)
    observed(step, heads, [batch], weighs=True, unweighted_rest=True)


@pytest.mark.parametrize("change", [lambda x: x.sub_(1.0), lambda x: x.mul_(2.0)])
def test_a_step_that_changes_its_batch_in_place_can_go_backward(change, heads, batch):
    """The test runs it on copies: its own graph holds the batch."""

    def step(batch):
        change(batch["x"])
        return F.cross_entropy(heads.classes(batch["x"]), batch["y"])

    given = {name: value.clone() for name, value in batch.items()}
    source = SampleOutputs(("loss",))
    loss, values = source.observe(partial(step, given), given, BATCH, NoScoring)
    loss.backward()
    assert torch.equal(given["x"], change(batch["x"].clone())), "once"
    each = F.cross_entropy(heads.classes(given["x"]), batch["y"], reduction="none")
    assert torch.allclose(values["loss"], each)
    assert source.report.attribution == "verified"


# --- losses that are all alike, as those of a head that begins with zeros (MAE, fine-tuning)


@pytest.mark.parametrize("scale", [0.0, 1e-5])
@pytest.mark.parametrize("step", [shuffled, cross_entropy])
def test_losses_that_are_all_alike_prove_nothing_and_say_so(step, scale):
    heads = Heads()
    with torch.no_grad():
        heads.classes.weight.mul_(scale)
        heads.classes.bias.zero_()
    source, _ = observed(step, heads, [heads.batch(0)])
    assert source.report.attribution.startswith("skipped: all losses of the first batch are the same")


def test_losses_that_are_nearly_alike_are_compared_more_closely():
    heads = Heads()
    with torch.no_grad():
        heads.classes.weight.mul_(1e-3)
        heads.classes.bias.zero_()
    assert observed(cross_entropy, heads, [heads.batch(0)])[0].report.attribution == "verified"
    assert observed(flipped, heads, [heads.batch(0)])[0].report.attribution.startswith("skipped: all losses")


def test_one_term_that_is_alike_does_not_hide_another():
    heads = Heads()
    with torch.no_grad():
        heads.mean.weight.zero_()
        heads.mean.bias.zero_()

    def step(heads, batch):
        same = F.mse_loss(heads.mean(batch["x"]), torch.ones_like(batch["target"]))
        return F.cross_entropy(heads.classes(batch["x"]), batch["y"]) + 0.5 * same

    source, _ = observed(step, heads, [heads.batch(0)])
    assert source.report.attribution == "verified" and source.report.complete


def test_tokens_of_a_head_of_zeros_belong_to_their_samples():
    heads = Heads()
    with torch.no_grad():
        heads.classes.weight.zero_()

    def step(heads, batch):
        tokens = torch.stack([batch["x"], batch["x"].flip(1)], 1)
        return F.cross_entropy(heads.classes(tokens).flatten(0, 1), batch["y"].repeat_interleave(2))

    _, made = observed(step, heads, [heads.batch(0)])
    assert made[0][1]["loss"].shape == (BATCH,)
