"""Loss modules that nothing else sees into: evaluated row by row, and what they say about predictions."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from losses import BATCH, CLASSES, NoScoring, gradient, observed, onehot, rows_of
from timm import loss as timm_loss
from torch import nn

from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals.criterion_module import MOST_LOOPED
from kakurenbo_lightning.signals.outputs import SampleOutputs


class LogCosh(nn.Module):
    """Reduced by an operation that is no mean and no sum of rows."""

    def __init__(self, mean=True):
        super().__init__()
        self.mean = mean

    def forward(self, prediction, target):
        total = torch.einsum("ij->", torch.log(torch.cosh(prediction - target)))
        return total / len(prediction) if self.mean else total


class ArcFace(nn.Module):
    """Has class weights of its own, beside embeddings."""

    def __init__(self, features=5):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.weight = nn.Parameter(torch.randn(CLASSES, features))

    def forward(self, embedding, target):
        cosine = F.normalize(embedding) @ F.normalize(self.weight).T
        logits = 8 * (cosine - 0.2 * F.one_hot(target, CLASSES))
        return torch.einsum("i->", logits.logsumexp(1) - logits.gather(1, target[:, None])[:, 0]) / len(target)


class PerSample(nn.Module):
    def forward(self, prediction, target):
        return torch.einsum("ij->i", (prediction - target) ** 2)


class Counting(LogCosh):
    """Sets an attribute in each call."""

    def __init__(self):
        super().__init__()
        self.calls, self.last = 0, None

    def forward(self, prediction, target):
        self.calls += 1
        self.last = super().forward(prediction, target)
        return self.last


def step_of(module, head="mean", target="target", scale=1.0):
    def step(heads, batch):
        return scale * module(getattr(heads, head)(batch["x"]), batch[target])

    return step


def mean_of_each(module):
    def step(heads, batch):
        return 0.5 * module(heads.mean(batch["x"]), batch["target"]).sum() / len(batch["x"])

    return step


CASES = {
    "mean": (step_of(LogCosh()), "mean"),
    "sum": (step_of(LogCosh(mean=False)), "sum"),
    "scaled": (step_of(LogCosh(), scale=0.3), "mean"),
    "by keyword": (lambda h, b: lc(target=b["target"], prediction=h.mean(b["x"])), "mean"),
    "one for each": (mean_of_each(PerSample()), "mean"),
    "an attribute set": (step_of(Counting()), "mean"),
}
lc = LogCosh()


@pytest.mark.parametrize("name", CASES)
def test_rows_are_what_each_sample_gives_alone_and_carry_weights(name, heads, batches):
    step, how = CASES[name]
    weights = torch.linspace(0.5, 2, BATCH)
    source, made = observed(step, heads, batches, [None, None, weights], weighs=True)
    for batch, (_, values) in zip(batches, made, strict=True):
        alone = torch.stack([step(heads, row) for row in rows_of(batch)])
        assert torch.allclose(values["loss"], alone, atol=1e-5)
        assert "confidence" not in values, "a regression"
    by_hand = getattr(weights * torch.stack([step(heads, row) for row in rows_of(batches[2])]), how)()
    expected = gradient(by_hand, heads)
    assert (gradient(made[2][0], heads) - expected).norm() <= 1e-4 * expected.norm()
    assert "hook" in source.source or name == "one for each"
    with torch.no_grad():
        values = source.score(lambda: step(heads, batches[1]), batches[1], BATCH)
    assert torch.allclose(values["loss"], made[1][1]["loss"])


def test_a_module_with_parameters_of_its_own_is_weighted_in_them_too(heads, batches):
    heads.arc = ArcFace()
    step = lambda h, b: h.arc(h.mean(b["x"]), b["y"])  # noqa: E731
    weights = torch.linspace(0.5, 2, BATCH)
    _, made = observed(step, heads, batches[:2], [None, weights], weighs=True)
    alone = torch.stack([step(heads, row) for row in rows_of(batches[1])])
    assert torch.allclose(made[1][1]["loss"], alone, atol=1e-5)
    assert "confidence" not in made[1][1], "embeddings are no logits"
    expected = gradient((weights * alone).mean(), heads)
    assert (gradient(made[1][0], heads) - expected).norm() <= 1e-4 * expected.norm()


def test_the_module_is_as_it_was(heads, batches):
    module = Counting()
    observed(step_of(module), heads, batches[:1], check_attribution=False)
    assert module.calls == 1, "of the step's own"
    assert module.last.requires_grad and not module._forward_hooks


class Running(LogCosh):
    """Keeps a running mean, as DINO's centre."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(()))

    def forward(self, prediction, target):
        self.centre.mul_(0.9).add_(0.1 * prediction.detach().mean())
        return super().forward(prediction - self.centre, target)


class Drawing(LogCosh):
    """Draws a random number in each call, of which nothing depends."""

    def forward(self, prediction, target):
        return super().forward(prediction, target) + 0 * torch.rand(())


@pytest.mark.parametrize("tested", [True, False])
def test_a_module_that_draws_leaves_the_random_numbers_of_the_next_step(tested, heads, batches):
    module = Drawing()

    def step(batch):
        return F.cross_entropy(heads.classes(batch["x"]), batch["y"]) + 0.1 * module(heads.mean(batch["x"]), batch["target"])

    def drawn(run):
        torch.manual_seed(5)
        for batch in batches:
            run(partial(step, batch), batch)
        return torch.rand(2)

    source = SampleOutputs(("loss",), check_attribution=tested)
    expected = drawn(lambda step, batch: step())
    assert torch.equal(drawn(lambda step, batch: source.observe(step, batch, BATCH, NoScoring)), expected)
    assert "Drawing" in source.source


def test_a_module_whose_buffers_change_is_refused_and_left_alone(heads, batches):
    module = Running()
    with pytest.raises(OutputsError, match="Running changes its centre in each call"):
        observed(step_of(module), heads, batches[:1])
    twin = Running()
    twin(heads.mean(batches[0]["x"]), batches[0]["target"])
    assert torch.equal(module.centre, twin.centre)


class Branching(LogCosh):
    """Looks at its values, which torch.vmap cannot."""

    def forward(self, prediction, target):
        if prediction.sum().item() > 1e9:
            return prediction.sum() * 0
        return super().forward(prediction, target)


def test_a_module_that_vmap_refuses_is_looped_over_a_small_batch_only(heads):
    step = step_of(Branching())
    batch = heads.batch(0, 8)
    _, ((_, values),) = observed(step, heads, [batch])
    assert torch.allclose(values["loss"], torch.stack([step(heads, row) for row in rows_of(batch)]), atol=1e-5)
    large = heads.batch(0, MOST_LOOPED + 1)
    with pytest.raises(OutputsError, match=f"takes one row after the other only, and {MOST_LOOPED + 1} are too many"):
        observed(step, heads, [large])


class Whole(nn.Module):
    def forward(self, prediction, target):
        return (prediction - target).norm()


class OfTwoRows(nn.Module):
    def forward(self, prediction, target):
        return torch.einsum("ij->", (prediction[1:] - prediction[:-1]).abs() / (len(prediction) - 1))


class Noisy(nn.Module):
    def forward(self, prediction, target):
        return torch.einsum("ij->", F.dropout(prediction - target, 0.5).abs())


class Reducer(nn.Module):
    """Is given losses in a dict, and rows beside them."""

    def forward(self, losses, prediction):
        return torch.einsum("i->", losses["each"]) / len(losses["each"])


def reduced(heads, batch):
    prediction = heads.mean(batch["x"])
    return Reducer()({"each": torch.cdist(prediction, prediction).flatten()}, prediction)


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (step_of(Whole()), "Whole gives neither the mean nor the sum of what it gives for each row alone"),
        (step_of(OfTwoRows()), "OfTwoRows (cannot be called with one row|gives neither)"),
        (step_of(Noisy()), "Noisy gives (other values under torch.vmap|neither)"),
        (reduced, "Reducer is given predictions that are not one row for each sample"),
    ],
)
def test_a_module_that_does_not_decompose_is_refused(step, why, heads, batches):
    with pytest.raises(OutputsError, match=why):
        observed(step, heads, [heads.batch(0, 8)])


def test_a_network_that_gives_one_number_for_each_sample_is_no_loss(heads, batches):
    """A regression of one output: the module that gives ``[B]`` is followed by the loss."""

    class Squeeze(nn.Module):
        def forward(self, x):
            return x[:, 0]

    squeeze = Squeeze()
    source, ((_, values),) = observed(lambda h, b: ((squeeze(h.mean(b["x"])) - b["weight"]) ** 2).mean(), heads, batches[:1])
    assert torch.allclose(values["loss"], (heads.mean(batches[0]["x"])[:, 0] - batches[0]["weight"]) ** 2)
    assert "mean of [32]" in source.source


# --- timm's

TIMM = {
    "label smoothing": (timm_loss.LabelSmoothingCrossEntropy(0.1), lambda b: b["y"], "classes"),
    "soft target": (timm_loss.SoftTargetCrossEntropy(), lambda b: 0.9 * onehot(b) + 0.01, "classes"),
    "binary cross entropy": (timm_loss.BinaryCrossEntropy(), lambda b: b["y"], "labels"),
    "asymmetric": (timm_loss.AsymmetricLossMultiLabel(), lambda b: (onehot(b) + onehot(b).roll(1, 1)).clamp(max=1), "labels"),
    "asymmetric, one label": (timm_loss.AsymmetricLossSingleLabel(), lambda b: b["y"], "classes"),
    "JSD": None,
}


@pytest.mark.parametrize("made_in_the_step", [False, True])
@pytest.mark.parametrize("name", [name for name, case in TIMM.items() if case])
def test_timm_losses_work_untouched_with_predictions(name, made_in_the_step, heads, batches):
    module, target, what = TIMM[name]

    def step(heads, batch):
        criterion = type(module)() if made_in_the_step else module
        return criterion(heads.classes(batch["x"]), target(batch))

    weights = torch.linspace(0.5, 2, BATCH)
    reads = ("loss", "confidence", "correct", "entropy")
    source, made = observed(step, heads, batches, [None, None, weights], reads, weighs=True)
    for batch, (_, values) in zip(batches, made, strict=True):
        logits = heads.classes(batch["x"]).detach()
        alone = torch.stack([step(heads, row) for row in rows_of(batch)])
        assert torch.allclose(values["loss"], alone, atol=1e-5)
        if what == "classes":
            assert torch.allclose(values["confidence"], logits.softmax(1).amax(1))
            assert torch.equal(values["correct"], logits.argmax(1) == batch["y"])
        elif name == "asymmetric":
            assert torch.equal(values["correct"], ((logits > 0) == (target(batch) > 0.5)).all(1))
    alone = torch.stack([step(heads, row) for row in rows_of(batches[2])])
    expected = gradient((weights * alone).mean(), heads)
    assert (gradient(made[2][0], heads) - expected).norm() <= 1e-4 * expected.norm()
    with torch.no_grad():
        values = source.score(lambda: step(heads, batches[1]), batches[1], BATCH)
    assert all(torch.allclose(values[key].float(), made[1][1][key].float(), atol=1e-6) for key in values)


class ChannelFirst(nn.Module):
    """As MONAI's: classes in a channel of one, at positions."""

    def forward(self, logits, target):
        p = logits.softmax(1).gather(1, target)
        return (-((1 - p) ** 2) * p.log()).mean()


def test_classes_in_a_channel_of_one_are_predictions():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, 4, 4, generator=generator, requires_grad=True)
    target = torch.randint(3, (6, 1, 4, 4), generator=generator)
    module = ChannelFirst()
    batch = {"x": logits, "y": target}
    _, ((_, values),) = observed(lambda heads, b: module(b["x"] * 1.0, b["y"]), None, [batch], reads=("loss", "correct"))
    right = (logits.argmax(1) == target[:, 0]).flatten(1).float().mean(1)
    assert torch.equal(values["correct"], right >= 0.5)
    assert torch.allclose(values["confidence"], logits.softmax(1).amax(1).flatten(1).mean(1))


class Embedding(nn.Module):
    """Integers beside embeddings that are no classes of theirs."""

    def forward(self, embedding, label):
        return torch.einsum("ij->", (embedding - label[:, None] / 10.0) ** 2) / len(label)


def test_integers_beside_embeddings_are_no_classes(heads, batches):
    step = lambda h, b: Embedding()(h.classes(b["x"]), b["y"])  # noqa: E731
    _, ((_, values),) = observed(step, heads, batches[:1])
    assert list(values) == ["loss"]
    with pytest.raises(OutputsError, match=r"reads confidence, but .* gives only loss"):
        observed(step, heads, batches[:1], reads=("loss", "confidence"))
