"""What is recorded is the loss that is trained, of each sample alone, and weights reach its gradient: for losses of every make."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from losses import BATCH, LOSSES, SAMPLES, Heads, gradient, observed
from torch import nn

from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals import captured, refusals
from kakurenbo_lightning.signals.outputs import SampleOutputs


@pytest.fixture(scope="module")
def heads():
    return Heads()


@pytest.fixture(scope="module")
def batches(heads):
    return [heads.batch(start) for start in range(0, SAMPLES, BATCH)]


@pytest.mark.parametrize("name", LOSSES)
def test_each_value_is_the_loss_of_the_sample_alone(name, heads, batches):
    loss = LOSSES[name]
    source, made = observed(loss.step, heads, batches)
    for batch, (outputs, values) in zip(batches, made, strict=True):
        assert torch.equal(outputs, loss.step(heads, batch)), "the loss itself is left alone"
        assert (values["loss"] - loss.of_each(heads, batch)).abs().max() <= 1e-5
        assert not values["loss"].requires_grad
        assert ("confidence" in values) == ("correct" in values) == loss.predicts
    assert source.report.attribution == "verified"
    assert source.report.complete and source.report.weights == "exact"
    assert source.report.share == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_weights_give_the_gradient_of_the_weighted_sum_by_hand(name, heads, batches):
    loss = LOSSES[name]
    weights = torch.where(torch.arange(BATCH) % 3 > 0, 1.0, 2.5)
    _, made = observed(loss.step, heads, batches[:3], [None, weights, weights], weighs=True)
    for batch, (outputs, values) in zip(batches[1:], made[1:], strict=False):
        by_hand = loss.with_weights(heads, batch, weights)
        expected = gradient(by_hand, heads)
        assert (gradient(outputs, heads) - expected).norm() <= 1e-4 * expected.norm()
        assert torch.isclose(outputs, by_hand, rtol=1e-4), "in value too"
        assert (values["loss"] - loss.of_each(heads, batch)).abs().max() <= 1e-5, "values are without weights"


@pytest.mark.parametrize("name", LOSSES)
def test_weights_in_the_very_first_step_are_applied(name, heads, batches):
    """As in a run that is resumed in mid-epoch."""
    weights = torch.linspace(0.5, 2, BATCH)
    _, ((outputs, _),) = observed(LOSSES[name].step, heads, batches[:1], [weights], weighs=True)
    expected = gradient(LOSSES[name].with_weights(heads, batches[0], weights), heads)
    assert (gradient(outputs, heads) - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_a_scoring_pass_gives_the_same_values(name, inference, heads, batches):
    loss = LOSSES[name]
    source, ((_, trained), *_) = observed(loss.step, heads, batches[:2])
    short = {key: value[:7] for key, value in batches[3].items()}
    for batch, size in ((batches[0], BATCH), (short, 7)):
        with torch.inference_mode(inference), torch.no_grad():
            values = source.score(lambda batch=batch: loss.step(heads, batch), batch, size)
            assert not torch.is_grad_enabled() and torch.is_inference_mode_enabled() == inference
        assert values.keys() == trained.keys()
        assert (values["loss"] - loss.of_each(heads, batch)).abs().max() <= 1e-5


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_a_run_may_score_before_it_trains(name, inference, heads, batches):
    loss = LOSSES[name]
    source = SampleOutputs(("loss",))
    with torch.inference_mode(inference), torch.no_grad():
        values = source.score(lambda: loss.step(heads, batches[0]), batches[0], BATCH)
    assert ("confidence" in values) == loss.predicts
    if name not in (
        "weighted tasks",
        "masked sum over B",
        "half a sum over tokens",
    ):  # how they scale is found out by a test of attribution
        assert (values["loss"] - loss.of_each(heads, batches[0])).abs().max() <= 1e-5
    _, again = source.observe(lambda: loss.step(heads, batches[0]), batches[0], BATCH, torch.no_grad)
    assert torch.allclose(again["loss"], values["loss"])


# --- what is not made of values of samples


def dice(heads, batch):
    p, target = heads.classes(batch["x"]).sigmoid(), F.one_hot(batch["y"], 10).float()
    F.binary_cross_entropy(p, target).item()  # only logged
    return 1 - 2 * (p * target).sum() / (p.sum() + target.sum())


def dice_by_class(heads, batch):
    """Its mean is over as many classes as a batch of 10 has samples."""
    p, target = heads.classes(batch["x"]).sigmoid(), F.one_hot(batch["y"], 10).float()
    return (1 - 2 * (p * target).sum(0) / (p.sum(0) + target.sum(0))).mean()


REFUSED = {
    "rmse": lambda h, b: F.mse_loss(h.mean(b["x"]), b["target"]).sqrt(),
    "norm": lambda h, b: (h.mean(b["x"]) - b["target"]).norm(),
    "dice": dice,
    "dice by class": dice_by_class,
    "a contrast of the batch": lambda h, b: torch.logsumexp(h.mean(b["x"]).flatten(), 0),
    "correlations": lambda h, b: (torch.corrcoef(h.mean(b["x"]).T) - torch.eye(5)).square().sum(),
    "self-normalised": lambda h, b: (lambda c: (c * c).sum() / c.sum())(
        F.cross_entropy(h.classes(b["x"]), b["y"], reduction="none")
    ),
}


@pytest.mark.parametrize("sliced", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_a_loss_that_does_not_decompose_is_refused(name, sliced, heads, batches):
    batch = heads.batch(0, 10)
    with pytest.raises(OutputsError, match="cannot be split into one value for each sample") as error:
        observed(REFUSED[name], heads, [batch], **({} if sliced else {"check_attribution": False}))
    for works in ("random", "sample_loss", "sample_outputs="):
        assert works in str(error.value)
    with pytest.raises(OutputsError, match="cannot be split"), torch.no_grad():
        SampleOutputs(("loss",)).score(lambda: REFUSED[name](heads, batch), batch, 10)


def penalised(heads, batch):
    penalty = sum(p.pow(2).sum() for p in heads.parameters() if p.requires_grad)
    return F.cross_entropy(heads.classes(batch["x"]), batch["y"]) + 0.01 * penalty


def with_dice(heads, batch):
    return F.cross_entropy(heads.classes(batch["x"]), batch["y"]) + dice(heads, batch)


def by_hand_distilled(heads, batch):
    logits = heads.classes(batch["x"])
    gap = (logits - heads.teacher(batch["x"])).norm()
    return F.cross_entropy(logits, batch["y"]) + 0.05 * gap


PARTS = {"penalty": penalised, "dice beside it": with_dice, "distillation by a norm": by_hand_distilled}


@pytest.mark.parametrize("name", PARTS)
def test_a_criterion_that_is_a_part_of_the_loss_is_said_once_with_its_share(name, heads, batches):
    with pytest.warns(UserWarning, match=r"F.cross_entropy is a part of the loss, \d+.\d% of it in the first batch") as warned:
        source, made = observed(PARTS[name], heads, batches)
    assert len([w for w in warned if "part of the loss" in str(w.message)]) == 1
    for batch, (_, values) in zip(batches, made, strict=True):
        assert torch.allclose(values["loss"], F.cross_entropy(heads.classes(batch["x"]), batch["y"], reduction="none"), atol=1e-5)
    first = made[0]
    assert source.report.share == pytest.approx(float(first[1]["loss"].mean() / first[0]), rel=1e-4)
    assert source.report.complete is False and source.report.decomposes is False


@pytest.mark.parametrize("name", PARTS)
def test_weights_of_a_part_are_refused_unless_the_rest_is_no_samples(name, heads, batches):
    with pytest.raises(OutputsError, match=r"loss weights: F.cross_entropy is only a part .* unweighted_rest=True"):
        observed(PARTS[name], heads, batches[:1], weighs=True)
    weights = torch.linspace(0.5, 2, BATCH)
    with pytest.warns(UserWarning, match="part of the loss"):
        _, made = observed(PARTS[name], heads, batches[:2], [None, weights], weighs=True, unweighted_rest=True)
    batch, (outputs, _) = batches[1], made[1]
    each = F.cross_entropy(heads.classes(batch["x"]), batch["y"], reduction="none")
    by_hand = PARTS[name](heads, batch) - each.mean() + (weights * each).mean()
    assert torch.allclose(gradient(outputs, heads), gradient(by_hand, heads), rtol=1e-4, atol=1e-6)


def beside(rest, scale=1.0):
    """Cross-entropy with ``rest(heads)``, which no sample's values make."""
    return lambda heads, batch: scale * F.cross_entropy(heads.classes(batch["x"]), batch["y"]) + rest(heads.classes.weight.norm())


ABOUT_0 = (
    "F.cross_entropy is only a part of the loss, the rest of which is about 0 in the first batch but has a gradient of its own"
)


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (beside(lambda norm: norm - norm.detach()), f"loss weights: {ABOUT_0}, and weights would not reach the rest. If"),
        (beside(lambda norm: 1e-6 * norm), f"loss weights: {ABOUT_0}, and weights would not reach the rest. If"),
        (
            beside(lambda norm: -0.1 * norm),
            r"1\d\d\.\d% of it in the first batch, where the rest is -\d+\.\d% of it, and weights",
        ),
        (beside(lambda norm: 0.1 * norm), r"only a part of the loss, \d\d\.\d% of it in the first batch, and weights would"),
    ],
    ids=["0", "about 0", "negative", "positive"],
)
def test_what_the_rest_of_the_loss_is_stands_in_words_where_a_percentage_would_mislead(step, why, heads, batches):
    """As in ``(losses * exp(-a)).mean() + a`` with a parameter ``a`` that begins at 0."""
    with pytest.raises(OutputsError, match=why):
        observed(step, heads, batches[:1], weighs=True)


def test_a_part_of_the_other_sign_than_the_loss_does_not_stand_for_it(heads, batches):
    why = r"F.cross_entropy is of the other sign than the loss of the first batch \(-\d+\.\d% of it\)"
    with pytest.raises(OutputsError, match=why):
        observed(beside(lambda norm: norm, scale=-0.01), heads, batches[:1])


def test_a_rest_that_trains_nothing_has_no_gradient_of_its_own():
    said = refusals.part_of_loss("F.cross_entropy", 0.9997, complete=True)
    assert "nearly all of it in the first batch, and the rest, which has no gradient, is another number in another batch" in said


def test_a_penalty_on_as_many_weights_as_there_are_samples_is_no_value_of_theirs(heads):
    """``classes.weight`` has 10 rows, as the batch has."""
    batch = heads.batch(0, 10)
    with pytest.warns(UserWarning, match="part of the loss"):
        source, ((_, values),) = observed(penalised, heads, [batch], check_attribution=False)
    assert torch.allclose(values["loss"], F.cross_entropy(heads.classes(batch["x"]), batch["y"], reduction="none"))
    assert source.report.calls == ("F.cross_entropy",)


def test_a_constant_beside_the_loss_is_no_samples(heads, batches):
    def step(heads, batch):
        with torch.no_grad():
            constant = F.mse_loss(heads.mean(batch["x"]), batch["target"])
        return F.cross_entropy(heads.classes(batch["x"]), batch["y"]) + constant

    weights = torch.linspace(0.5, 2, BATCH)
    with pytest.warns(UserWarning, match="the rest, which has no gradient, is another number in another batch"):
        source, ((outputs, values),) = observed(step, heads, batches[:1], [weights], weighs=True)
    each = F.cross_entropy(heads.classes(batches[0]["x"]), batches[0]["y"], reduction="none")
    assert torch.allclose(values["loss"], each, atol=1e-6)
    assert torch.allclose(gradient(outputs, heads), gradient((weights * each).mean(), heads), atol=1e-6)
    assert source.report.complete and source.report.share < 1


def test_missing_targets_that_are_nan_do_not_spoil_what_counts(heads):
    batch = heads.batch(0)
    batch["target"] = batch["target"].masked_fill(batch["known"] == 0, float("nan"))

    def step(heads, batch):
        known = ~batch["target"].isnan()
        squares = (heads.mean(batch["x"]) - batch["target"].nan_to_num()) ** 2
        return torch.where(known, squares, 0.0).sum() / known.sum()

    def nan_mean(heads, batch):
        return torch.nanmean(F.mse_loss(heads.mean(batch["x"]), batch["target"], reduction="none"))

    for made in (step, nan_mean):
        _, ((_, values),) = observed(made, heads, [batch])
        squares = ((heads.mean(batch["x"]) - batch["target"]) ** 2).nanmean(1)
        assert torch.allclose(values["loss"], squares, atol=1e-5)


def test_what_a_step_makes_in_another_way_later_is_refused(heads, batches):
    steps = iter([LOSSES["cross entropy"].step, LOSSES["nll by hand"].step])
    with pytest.raises(OutputsError, match="makes its loss in another way than the first one did"):
        observed(lambda heads, batch: next(steps)(heads, batch), heads, batches[:2], check_attribution=False)


def test_the_same_parts_in_a_form_that_does_not_decompose_are_refused(heads, batches):
    steps = iter([LOSSES["mse"].step, lambda h, b: LOSSES["mse"].step(h, b).sqrt()])
    with pytest.raises(OutputsError, match="makes its loss in another way than the first one did"):
        observed(lambda heads, batch: next(steps)(heads, batch), heads, batches[:2], check_attribution=False)


def test_each_form_of_a_loss_is_verified_once(heads, batches, monkeypatch):
    """As of a step that weights its loss in every other batch."""
    verified = []
    for name in ("find", "why_not_linear"):
        original = getattr(captured, name)
        monkeypatch.setattr(captured, name, lambda *args, made=original: verified.append(1) or made(*args))
    steps = [LOSSES[name].step for name in ("cross entropy", "times a weight", "scaled", "none, then mean")]
    given = iter([*steps, *steps, *steps])
    source = SampleOutputs(("loss",))
    for number in range(12):
        batch, step = batches[number % 6], next(given)
        _, values = source.observe(lambda batch=batch, step=step: step(heads, batch), batch, BATCH, torch.no_grad)
        expected = torch.stack([step(heads, {k: v[i : i + 1] for k, v in batch.items()}) for i in range(BATCH)])
        assert torch.allclose(values["loss"], expected, atol=1e-5)
        assert len(verified) == min(number + 1, 4)


def test_the_same_parts_may_be_added_in_another_way_later(heads, batches):
    """As a loss weight that is annealed to 0, or a metric that is logged now and then."""
    scales = iter([1.0, 0.5, 2.0, 1.0])

    def step(heads, batch):
        scale = next(scales)
        logits = heads.classes(batch["x"])
        if scale == 0.5:
            F.cross_entropy(logits * 2, batch["y"])
        return scale * F.cross_entropy(logits, batch["y"])

    _, made = observed(step, heads, batches[:4], check_attribution=False)
    for scale, batch, (_, values) in zip([1.0, 0.5, 2.0, 1.0], batches, made, strict=False):
        each = F.cross_entropy(heads.classes(batch["x"]), batch["y"], reduction="none")
        assert torch.allclose(values["loss"], scale * each, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["cross entropy", "times a weight", "focal", "masked mean", "distillation"])
def test_other_precisions_are_verified_with_their_own_tolerance(name, dtype, batches):
    heads = Heads().to(dtype)
    moved = [{k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()} for batch in batches[:2]]
    source, made = observed(LOSSES[name].step, heads, moved)
    reference = Heads()
    for batch, (_, values) in zip(batches, made, strict=False):
        expected = LOSSES[name].of_each(reference, batch)
        assert torch.allclose(values["loss"].float(), expected, rtol=0.05, atol=0.05)
    assert source.report.attribution == "verified"


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_is_verified_too(name, heads, batches):
    def step(heads, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return LOSSES[name].step(heads, batch)

    _, made = observed(step, heads, batches[:2])
    for batch, (_, values) in zip(batches, made, strict=False):
        expected = LOSSES[name].of_each(heads, batch).detach()
        assert torch.allclose(values["loss"].float(), expected, rtol=0.05, atol=0.05 * float(expected.abs().mean()))


def test_a_network_with_a_batch_norm_and_dropout_is_tested_in_eval_mode(heads, batches):
    network = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 10))

    class Scoring:
        def __enter__(self):
            network.eval()

        def __exit__(self, *error):
            network.train()

    source = SampleOutputs(("loss",))
    source.observe(
        partial(lambda batch: F.cross_entropy(network(batch["x"]), batch["y"]), batches[0]), batches[0], BATCH, Scoring
    )
    assert source.report.attribution == "verified"
    assert network.training and network[1].num_batches_tracked == 1
