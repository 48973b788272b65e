"""The entropy of a prediction, in nats: of classes, of binary labels, at positions, and as the user returns it."""

import contextlib
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, fit, loader
from torch import nn

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals.criteria import binary_values, class_values, evaluate_per_sample
from kakurenbo_lightning.signals.outputs import SampleOutputs, from_returned

B, C = 6, 4
READS = ("loss", "entropy")


def numbers(*shape, seed=0):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classes(*shape, seed=0):
    return torch.randint(C, shape, generator=torch.Generator().manual_seed(seed))


def slow_entropy(logits):
    """-sum p log p of the softmax of a list of numbers, in float64."""
    highest = max(logits)
    powers = [math.exp(z - highest) for z in logits]
    return -sum(p * math.log(p) for p in (power / sum(powers) for power in powers) if p > 0)


def slow_binary_entropy(logit):
    return slow_entropy([logit, 0.0])


def mean(values):
    return sum(values) / len(values)


def near(values):
    return pytest.approx(values, abs=1e-5)


# --- classes


def test_entropy_is_that_of_the_softmax_over_the_class_axis():
    logits, target = numbers(B, C), classes(B)
    expected = [slow_entropy(row) for row in logits.tolist()]
    for values in (
        class_values(logits, target, reads=READS),
        evaluate_per_sample(F.cross_entropy, (logits, target), {}, READS),
        evaluate_per_sample(F.nll_loss, (logits.log_softmax(1), target), {}, READS),
        from_returned({"sample_loss": torch.zeros(B), "logits": logits, "target": target}, B, reads=READS),
    ):
        assert values["entropy"].tolist() == near(expected)
        assert values["entropy"].dtype == torch.float32
    alone = evaluate_per_sample(F.cross_entropy, (logits[:1], target[:1]), {}, READS)
    assert alone["entropy"].tolist() == near(expected[:1]), "whoever else is in the batch"


def test_entropy_does_not_depend_on_the_target_or_on_options_of_the_criterion():
    logits = numbers(B, C)
    expected = [slow_entropy(row) for row in logits.tolist()]
    options = {"weight": torch.arange(1.0, C + 1), "label_smoothing": 0.2}
    for target in (classes(B, seed=1), classes(B, seed=2), numbers(B, C, seed=3).softmax(1), torch.full((B,), -100)):
        given = options if target.dim() == 1 and target[0] >= 0 else {}
        assert evaluate_per_sample(F.cross_entropy, (logits, target), given, READS)["entropy"].tolist() == near(expected)


def test_entropy_at_its_ends():
    """Equal logits: log C. A sure prediction: 0, not NaN, also when the other classes underflow."""
    logits = torch.tensor([[0.0] * C, [7.0] * C, [200.0, 0, 0, 0], [-1e30, 1e30, 0, 0], [float("-inf"), 0, 0, float("-inf")]])
    values = class_values(logits, torch.zeros(5, dtype=torch.long), reads=READS)["entropy"]
    assert values.tolist() == near([math.log(C), math.log(C), 0, 0, math.log(2)])
    assert class_values(torch.tensor([[float("nan"), 1.0]]), torch.tensor([0]), reads=READS)["entropy"].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_in_float32(dtype):
    logits = numbers(B, 1000).to(dtype)
    values = class_values(logits, torch.zeros(B, dtype=torch.long), reads=READS)["entropy"]
    assert values.dtype == torch.float32
    assert values.tolist() == pytest.approx([slow_entropy(row) for row in logits.tolist()], rel=1e-5)


def test_entropy_is_not_worked_out_when_nobody_reads_it():
    logits, target = numbers(B, C), classes(B)
    assert "entropy" not in class_values(logits, target)
    assert "entropy" not in binary_values(logits[:, 0].sigmoid(), torch.zeros(B))
    assert "entropy" not in evaluate_per_sample(F.cross_entropy, (logits, target), {}, ("loss",))


# --- positions


@pytest.mark.parametrize("shape", [(5,), (3, 2)])
def test_positions_that_are_not_ignored_are_averaged(shape):
    logits, target = numbers(B, C, *shape), classes(B, *shape)
    target.view(B, -1)[0, :2] = -100
    target[2] = -100
    values = evaluate_per_sample(F.cross_entropy, (logits, target), {}, READS)["entropy"]
    assert values.shape == (B,)
    for i in range(B):
        rows = zip(logits[i].flatten(1).T.tolist(), target[i].flatten().tolist(), strict=True)
        counted = [slow_entropy(row) for row, y in rows if y != -100]
        assert float(values[i]) == near(mean(counted) if counted else 0.0)


def test_another_ignore_index_is_the_criterions():
    logits, target = numbers(B, C, 5), classes(B, 5)
    values = evaluate_per_sample(F.cross_entropy, (logits, target), {"ignore_index": 2}, READS)["entropy"]
    for i in range(B):
        counted = [slow_entropy(z) for z, y in zip(logits[i].T.tolist(), target[i].tolist(), strict=True) if y != 2]
        assert float(values[i]) == near(mean(counted) if counted else 0.0)


# --- binary labels


@pytest.mark.parametrize("criterion", [F.binary_cross_entropy_with_logits, F.binary_cross_entropy])
@pytest.mark.parametrize("shape", [(B,), (B, 3), (B, 4, 4), (B, 2, 3, 3)], ids=str)
def test_binary_entropy_is_the_mean_over_labels_and_positions(criterion, shape):
    scores, target = numbers(*shape), (numbers(*shape, seed=1) > 0).float()
    given = scores if criterion is F.binary_cross_entropy_with_logits else scores.sigmoid()
    values = evaluate_per_sample(criterion, (given, target), {}, READS)["entropy"]
    assert values.shape == (B,) and values.dtype == torch.float32
    assert values.tolist() == near([mean([slow_binary_entropy(z) for z in row.flatten().tolist()]) for row in scores])


def test_binary_entropy_at_its_ends():
    scores = torch.tensor([0.0, 100.0, -100.0, 1000.0])
    for dtype in (torch.float32, torch.bfloat16):
        values = evaluate_per_sample(F.binary_cross_entropy_with_logits, (scores.to(dtype), torch.ones(4).to(dtype)), {}, READS)
        assert values["entropy"].tolist() == near([math.log(2), 0, 0, 0])


@pytest.mark.parametrize("shapes", [((B,), (B,)), ((B, 1), (B,)), ((B, 1), (B, 1))], ids=str)
def test_returned_single_logits_are_binary(shapes):
    logits = numbers(B)
    returned = {"sample_loss": torch.zeros(B), "logits": logits.view(shapes[0]), "target": torch.ones(shapes[1])}
    values = from_returned(returned, B, reads=READS)
    assert values["entropy"].tolist() == near([slow_binary_entropy(z) for z in logits.tolist()])


# --- given by the user


def observe(step, **options):
    source = SampleOutputs(READS, **options)
    return source.observe(step, "the batch", B, contextlib.nullcontext)[1]


def test_a_returned_entropy_is_taken_as_it_is():
    loss, own = numbers(B).requires_grad_(), torch.arange(B, dtype=torch.float64).requires_grad_()
    outputs = {"loss": loss.mean(), "sample_loss": loss, "entropy": own}
    values = observe(lambda: outputs)
    assert values["entropy"].tolist() == list(range(B)) and not values["entropy"].requires_grad
    both = {**outputs, "logits": numbers(B, C), "target": classes(B)}
    assert observe(lambda: both)["entropy"].tolist() == list(range(B)), "the user's wins over that of the logits"


def test_sample_outputs_may_give_it():
    values = observe(
        lambda: numbers(B).mean(), sample_outputs=lambda batch: {"sample_loss": torch.zeros(B), "entropy": torch.ones(B)}
    )
    assert values["entropy"].tolist() == [1.0] * B


def test_the_captured_criterion_gives_it():
    logits, target = numbers(B, C), classes(B)
    assert observe(lambda: F.cross_entropy(logits, target))["entropy"].tolist() == near(
        [slow_entropy(z) for z in logits.tolist()]
    )


@pytest.mark.parametrize(
    ("entropy", "words"),
    [
        (3.0, "entropy from training_step is a float, it must be a tensor"),
        (torch.zeros(B - 1), r"entropy has shape \[5\], but the batch trains 6 samples"),
        (torch.zeros(B, 2), r"entropy has shape \[6, 2\], but the batch trains 6 samples: it must be \[6\]"),
    ],
)
def test_a_returned_entropy_that_is_none_is_refused(entropy, words):
    with pytest.raises(OutputsError, match=words):
        observe(lambda: {"loss": numbers(B).mean(), "sample_loss": torch.zeros(B), "entropy": entropy})


@pytest.mark.parametrize(
    "step",
    [
        lambda: F.mse_loss(numbers(B, 1), numbers(B, 1, seed=1)),
        lambda: {"loss": numbers(B).mean(), "sample_loss": torch.zeros(B), "correct": torch.ones(B), "confidence": torch.ones(B)},
    ],
    ids=["regression", "returned without"],
)
def test_a_step_without_it_is_told_to_return_it(step):
    with pytest.raises(OutputsError, match=r"the method reads entropy, but .* gives only loss") as error:
        observe(step)
    assert "entropy" in str(error.value).partition("gives only")[2], "the fix names it"


# --- where it goes


class Weak(nn.Module):
    """Logits that say which class, and how surely; nothing is learned."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return self.scale.detach() * x[:, :3] + 0 * self.scale


def test_peb_stores_the_entropy_of_what_it_saw():
    """A network that does not change: after a run every stored entropy is that of its logits."""

    class Fixed(Net):
        def __init__(self):
            super().__init__()
            self.network = Weak()

    selection, train, module = SampleSelection("peb"), loader(30), Fixed()
    fit(module, train, selection, max_epochs=2)
    expected = [slow_entropy(row) for row in module.network(train.dataset.x).tolist()]
    assert max(expected) > 2 * min(expected)
    assert selection.statistics.extra["entropy"].tolist() == near(expected)
    assert selection.session.engine.tree.values.tolist() == near(expected)
