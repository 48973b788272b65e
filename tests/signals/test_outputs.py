"""Per-sample values: what criteria say about each sample, and the three ways to get at them."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import cross_entropy as imported_cross_entropy

from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals.criteria import evaluate_per_sample
from kakurenbo_lightning.signals.outputs import SampleOutputs, from_returned

B, C = 6, 4
READS = ("loss", "confidence", "correct")


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(B, C, generator=generator), torch.randint(C, (B,), generator=generator)


def slow_cross_entropy(logits, target):
    """Loss, confidence and correctness of each sample, one at a time."""
    rows = []
    for z, y in zip(logits.double(), target, strict=True):
        p = (z - z.max()).exp() / (z - z.max()).exp().sum()
        rows.append((float(-p[y].log()), float(p.max()), int(p.argmax()) == int(y)))
    return rows


def assert_rows(values, rows):
    loss, confidence, correct = zip(*rows, strict=True)
    assert values["loss"].tolist() == pytest.approx(loss, abs=1e-5)
    assert values["confidence"].tolist() == pytest.approx(confidence, abs=1e-5)
    assert values["correct"].tolist() == list(correct)


def observe(step, size=B, reads=READS, **options):
    source = SampleOutputs(reads, **options)
    outputs, values = source.observe(step, "the batch", size, contextlib.nullcontext)
    return outputs, values, source


def test_softmax_is_over_the_class_axis(batch):
    logits, target = batch
    assert_rows(evaluate_per_sample(F.cross_entropy, (logits, target), {}), slow_cross_entropy(logits, target))
    alone = evaluate_per_sample(F.cross_entropy, (logits[:1], target[:1]), {})
    assert_rows(alone, slow_cross_entropy(logits, target)[:1])


def test_nll_reads_log_probabilities(batch):
    logits, target = batch
    assert_rows(evaluate_per_sample(F.nll_loss, (logits.log_softmax(1), target), {}), slow_cross_entropy(logits, target))


def test_label_smoothing_and_class_weights_are_the_users(batch):
    logits, target = batch
    options = {"weight": torch.arange(1.0, C + 1), "label_smoothing": 0.1, "reduction": "mean"}
    values = evaluate_per_sample(F.cross_entropy, (logits, target), dict(options))
    expected = F.cross_entropy(logits, target, **{**options, "reduction": "none"})
    assert torch.equal(values["loss"], expected)


def test_positional_and_legacy_arguments_are_understood(batch):
    logits, target = batch
    values = evaluate_per_sample(F.cross_entropy, (logits, target, None, None, -100, None, "sum"), {})
    assert_rows(values, slow_cross_entropy(logits, target))
    assert_rows(
        evaluate_per_sample(F.cross_entropy, (), {"input": logits, "target": target, "size_average": True}),
        slow_cross_entropy(logits, target),
    )


def test_soft_targets_are_right_when_the_likeliest_class_is(batch):
    logits, target = batch
    soft = F.one_hot(target, C).float() * 0.9 + 0.1 / C
    values = evaluate_per_sample(F.cross_entropy, (logits, soft), {})
    assert torch.equal(values["correct"], logits.argmax(1) == target)
    assert torch.allclose(values["loss"], F.cross_entropy(logits, soft, reduction="none"))


@pytest.mark.parametrize("ignore_index", [-100, 255])
def test_dense_outputs_average_positions_that_count(ignore_index):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, C, 2, 5, generator=generator)
    target = torch.randint(C, (3, 2, 5), generator=generator)
    target[0, 0, :] = ignore_index
    target[2] = ignore_index
    values = evaluate_per_sample(F.cross_entropy, (logits, target), {"ignore_index": ignore_index})
    for i in range(2):
        counted = target[i] != ignore_index
        rows = slow_cross_entropy(logits[i].permute(1, 2, 0)[counted], target[i][counted])
        loss, confidence, correct = (sum(column) / len(rows) for column in zip(*rows, strict=True))
        assert float(values["loss"][i]) == pytest.approx(loss, abs=1e-5)
        assert float(values["confidence"][i]) == pytest.approx(confidence, abs=1e-5)
        assert bool(values["correct"][i]) == (correct >= 0.5)
    assert not values["correct"][2], "a sample without a position that counts is not easy"


def test_binary_criteria(batch):
    scores = batch[0][:, 0]
    target = (torch.arange(B) % 2).float()
    for values in (
        evaluate_per_sample(F.binary_cross_entropy_with_logits, (scores, target), {}),
        evaluate_per_sample(F.binary_cross_entropy, (scores.sigmoid(), target), {}),
    ):
        p = scores.sigmoid()
        assert torch.allclose(values["loss"], -(target * p.log() + (1 - target) * (1 - p).log()), atol=1e-5)
        assert torch.allclose(values["confidence"], torch.where(p > 0.5, p, 1 - p))
        assert torch.equal(values["correct"], (p > 0.5) == (target > 0.5))


def test_a_multi_label_sample_is_right_when_all_labels_are_and_as_sure_as_the_least_sure():
    scores = torch.tensor([[4.0, -4.0, 3.0], [4.0, 4.0, 4.0], [9.0, -9.0, -0.1]])
    target = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    values = evaluate_per_sample(F.binary_cross_entropy_with_logits, (scores, target), {})
    assert values["correct"].tolist() == [True, False, True]
    assert torch.allclose(values["confidence"], torch.tensor([3.0, 4.0, 0.1]).sigmoid())
    assert values["loss"].shape == (3,)


def test_one_hot_targets_of_a_binary_criterion_are_labels_each_of_its_own():
    """All columns right is more than the arg max right, so nothing that the arg max calls wrong is called right."""
    scores = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    classes = torch.arange(200) % 4
    values = evaluate_per_sample(F.binary_cross_entropy_with_logits, (scores, F.one_hot(classes, 4).float()), {})
    by_class = scores.argmax(1) == classes
    assert torch.equal(values["correct"], (scores.sigmoid() > 0.5).eq(F.one_hot(classes, 4).bool()).all(1))
    assert not (values["correct"] & ~by_class).any() and values["correct"].sum() < by_class.sum()
    returned = from_returned({"sample_loss": values["loss"], "logits": scores, "target": classes}, 200)
    assert torch.equal(returned["correct"], by_class), "what README says to do for the arg max"


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 1, 4, 4)])
def test_binary_positions_are_averaged(shape):
    scores = torch.full(shape, 2.0)
    scores[1, ..., :3] = -2.0  # three of four positions wrong
    values = evaluate_per_sample(F.binary_cross_entropy_with_logits, (scores, torch.ones(shape)), {})
    assert values["correct"].tolist() == [True, False]
    assert torch.allclose(values["confidence"], torch.tensor(2.0).sigmoid().expand(2))


@pytest.mark.parametrize("shapes", [((4,), (4,)), ((4, 1), (4,)), ((4, 1), (4, 1))])
def test_returned_single_logits_are_binary(shapes):
    logits, target = torch.tensor([3.0, -3.0, 3.0, -3.0]), torch.tensor([1, 0, 0, 1])
    returned = {"sample_loss": torch.zeros(4), "logits": logits.view(shapes[0]), "target": target.view(shapes[1])}
    values = from_returned(returned, 4)
    assert values["correct"].tolist() == [True, True, False, False]
    assert torch.allclose(values["confidence"], torch.tensor(3.0).sigmoid().expand(4))


def test_returned_logits_and_target_that_do_not_fit_are_refused():
    with pytest.raises(OutputsError, match=r"logits \[4, 3\] and target \[4, 1\] from training_step do not fit"):
        from_returned({"sample_loss": torch.zeros(4), "logits": torch.zeros(4, 3), "target": torch.zeros(4, 1)}, 4)


def test_a_patch_of_the_criterion_by_another_library_stays(monkeypatch, batch):
    calls = []

    def patched(*args, **kwargs):
        calls.append(args)
        return imported_cross_entropy(*args, **kwargs)

    monkeypatch.setattr(F, "cross_entropy", patched)
    source = SampleOutputs(())
    for _ in range(2):
        calls.clear()
        source.observe(lambda: F.cross_entropy(*batch), None, B, contextlib.nullcontext)
        assert calls
    assert F.cross_entropy is patched


@pytest.mark.parametrize("criterion", [F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss])
def test_regression_gives_the_loss_alone(criterion, batch):
    values = evaluate_per_sample(criterion, (batch[0], batch[0] + 1), {})
    assert list(values) == ["loss"]
    assert torch.allclose(values["loss"], criterion(batch[0], batch[0] + 1, reduction="none").mean(1))


@pytest.mark.parametrize("logits_dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_confidence_is_float32_whatever_the_logits_are(batch, logits_dtype):
    values = evaluate_per_sample(F.cross_entropy, (batch[0].to(logits_dtype), batch[1]), {})
    assert values["confidence"].dtype in (torch.float32,)


CALLS = {
    "functional": (lambda z, y: F.cross_entropy(z, y), True),
    "module": (lambda z, y: nn.CrossEntropyLoss()(z, y), True),
    "alias": (lambda z, y: imported_cross_entropy(z, y), False),
}


@pytest.mark.parametrize("call", CALLS)
def test_capture_sees_the_call_and_leaves_the_loss_alone(call, batch):
    logits, target = batch[0].requires_grad_(), batch[1]
    criterion, by_name = CALLS[call]
    plain = criterion(logits, target)
    (plain_gradient,) = torch.autograd.grad(plain, logits)
    source = SampleOutputs(READS)
    for _ in range(3):
        seen, values = source.observe(lambda: criterion(logits, target), None, B, contextlib.nullcontext)
        assert_rows(values, slow_cross_entropy(logits.detach(), target))
        assert not values["loss"].requires_grad
        assert torch.equal(seen, plain)
        assert torch.equal(torch.autograd.grad(seen, logits)[0], plain_gradient)
    assert ("by its name" in source.source) == by_name
    assert F.cross_entropy is imported_cross_entropy, "nothing stays replaced"


def test_everything_that_was_replaced_is_put_back_after_an_error():
    mean, method = torch.mean, torch.Tensor.mean

    def step():
        assert F.cross_entropy is not imported_cross_entropy and torch.Tensor.mean is not method
        assert torch.mean is mean, "Lightning keeps it as reduce_fx of what is logged"
        raise KeyError

    with pytest.raises(KeyError):
        SampleOutputs(READS).observe(step, None, B, contextlib.nullcontext)
    assert F.cross_entropy is imported_cross_entropy
    assert torch.Tensor.mean is method
    assert not {"mean", "sum", "nanmean", "nansum"} & set(vars(torch.Tensor))
    assert not nn.modules.module._global_forward_hooks


def test_returned_values_win_over_capture(batch):
    logits, target = batch
    loss = F.cross_entropy(logits, target, reduction="none")
    returned = {"loss": loss.mean(), "sample_loss": loss.requires_grad_(), "logits": logits, "target": target}
    outputs, values, source = observe(lambda: returned)
    assert outputs is returned
    assert_rows(values, slow_cross_entropy(logits, target))
    assert not values["loss"].requires_grad
    assert "training_step returns" in source.source


def test_given_confidence_and_correct_win_over_logits(batch):
    given = {"confidence": torch.full((B,), 0.25), "correct": torch.ones(B, dtype=torch.uint8)}
    values = from_returned({"sample_loss": torch.zeros(B), "logits": batch[0], "target": batch[1], **given}, B)
    assert values["confidence"].tolist() == [0.25] * B
    assert values["correct"].dtype is torch.bool


def test_function_is_used_before_capture(batch):
    logits, target = batch
    seen = []

    def sample_outputs(given):
        seen.append(given)
        return {"sample_loss": torch.arange(float(B)), "logits": logits, "target": target}

    _, values, source = observe(lambda: F.cross_entropy(logits, target), sample_outputs=sample_outputs)
    assert values["loss"].tolist() == list(range(B))
    assert seen == ["the batch"]
    assert "sample_outputs" in source.source


def test_capture_is_used_when_the_step_returns_a_scalar(batch):
    outputs, values, source = observe(lambda: F.cross_entropy(*batch))
    assert torch.equal(outputs, F.cross_entropy(*batch))
    assert_rows(values, slow_cross_entropy(*batch))
    assert "F.cross_entropy" in source.source


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (lambda z, y: -z.log_softmax(1)[range(B), y].mean(), "no call of a criterion"),
        (lambda z, y: F.cross_entropy(z, y) + F.cross_entropy(z, y.flip(0)), "2 criterion calls"),
        (lambda z, y: F.cross_entropy(z[:3], y[:3]), r"F.cross_entropy has shape \[3\], but the batch trains 6"),
        (lambda z, y: F.mse_loss(z, z), "reads confidence, correct, but"),
        (
            lambda z, y: {"loss": z.sum(), "sample_loss": torch.zeros(B - 1)},
            r"sample_loss has shape \[5\], but the batch trains 6",
        ),
        (lambda z, y: {"loss": z.sum(), "sample_loss": 3}, "sample_loss from training_step is a int"),
        (
            lambda z, y: {"loss": z.sum(), "sample_loss": torch.zeros(B), "confidence": torch.zeros(B, device="meta")},
            "confidence is on meta, the module is on cpu",
        ),
    ],
)
def test_a_step_without_values_is_told_what_to_return(batch, step, words):
    with pytest.raises(OutputsError, match=words) as error:
        observe(lambda: step(*batch))
    if "device" not in words and "from training_step is" not in words and "meta" not in words:
        assert '"sample_loss": sample_loss' in str(error.value)


def test_nothing_is_needed_when_the_method_reads_nothing(batch):
    outputs, values, source = observe(lambda: batch[0].sum(), reads=())
    assert torch.equal(outputs, batch[0].sum())
    assert values is None
    assert "nowhere" in source.source


def test_a_skipped_batch_decides_nothing(batch):
    source = SampleOutputs(READS)
    assert source.observe(lambda: None, None, B, contextlib.nullcontext) == (None, None)
    _, values = source.observe(lambda: F.cross_entropy(*batch), None, B, contextlib.nullcontext)
    assert_rows(values, slow_cross_entropy(*batch))


def test_looking_uses_the_same_way(batch):
    source = SampleOutputs(READS)
    source.observe(lambda: F.cross_entropy(*batch), None, B, contextlib.nullcontext)
    logits, target = batch[0][:2], batch[1][:2]
    values = source.score(lambda: F.cross_entropy(logits, target), None, 2)
    assert_rows(values, slow_cross_entropy(logits, target))
