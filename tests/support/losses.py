"""Losses of every make, each with what it is of a sample alone and what it is when samples have weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from kakurenbo_lightning.core.batch_rows import slice_batch
from kakurenbo_lightning.signals.outputs import SampleOutputs

FEATURES, CLASSES, OUTPUTS, SAMPLES, BATCH = 16, 10, 5, 192, 32
TOKENS = 4


class Heads(nn.Module):
    """A linear classifier, two linear regressions, a frozen teacher, and the data, all drawn from one seed."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.classes, self.mean, self.spread = (nn.Linear(FEATURES, n) for n in (CLASSES, OUTPUTS, OUTPUTS))
            self.teacher = nn.Linear(FEATURES, CLASSES).requires_grad_(False)
            self.data = {
                "x": torch.randn(SAMPLES, FEATURES),
                "y": torch.randint(CLASSES, (SAMPLES,)),
                "weight": 3 * torch.rand(SAMPLES),
                "keep": (torch.rand(SAMPLES) < 0.6).float(),
                "target": torch.randn(SAMPLES, OUTPUTS),
                "known": (torch.rand(SAMPLES, OUTPUTS) < 0.7).float(),
            }
            self.data["known"][:, 0] = 1  # every sample has a target

    def batch(self, start, size=BATCH):
        """``size`` samples from ``start`` on."""
        return {name: values[start : start + size] for name, values in self.data.items()}


class NoScoring:
    """A context in which a module of :class:`Heads` may run: it has nothing that training could notice."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def rows_of(batch):
    """Batches of one sample."""
    return [slice_batch(batch, torch.tensor([i]), len(batch["x"])) for i in range(len(batch["x"]))]


def one_by_one(step):
    """``step`` of each sample alone, ``[B]``."""
    return lambda heads, batch: torch.stack([step(heads, row) for row in rows_of(batch)])


@dataclass(frozen=True)
class Loss:
    """A step, and what a test compares it with.

    Attributes:
        step: ``step(heads, batch)`` gives the loss.
        alone: ``alone(heads, batch)``, the loss of each sample alone, ``[B]``; by default the step of each.
        weighted: ``weighted(heads, batch, weights)``, the loss written out with weights; by default the mean of weight times ``alone``.
        predicts: logits and target are among what the step calls.
    """

    step: Callable
    alone: Callable | None = None
    weighted: Callable | None = None
    predicts: bool = False

    def of_each(self, heads, batch):
        return (self.alone or one_by_one(self.step))(heads, batch)

    def with_weights(self, heads, batch, weights):
        if self.weighted is not None:
            return self.weighted(heads, batch, weights)
        return (weights * self.of_each(heads, batch)).mean()


def observed(step, heads, batches, weights=None, reads=("loss",), **options):
    """Observe ``step(heads, batch)`` on each batch.

    Returns:
        The source, and the outputs and values of each step.
    """
    source = SampleOutputs(reads, **options)
    made = []
    for number, batch in enumerate(batches):
        given = None if weights is None else weights[number]
        made.append(source.observe(partial(step, heads, batch), batch, len(batch["x"]), NoScoring, given))
    return source, made


def gradient(loss, heads):
    """Of a loss with respect to all that is trained, in one vector."""
    parameters = [p for p in heads.parameters() if p.requires_grad]
    made = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, made, strict=True)])


# --- the losses


def cross_entropy(heads, batch, **options):
    return F.cross_entropy(heads.classes(batch["x"]), batch["y"], **options)


def each_cross_entropy(heads, batch, **options):
    return cross_entropy(heads, batch, reduction="none", **options)


def squared(heads, batch):
    return F.mse_loss(heads.mean(batch["x"]), batch["target"], reduction="none")


def onehot(batch):
    return F.one_hot(batch["y"], CLASSES).float()


CLASS_WEIGHTS = torch.linspace(0.5, 1.5, CLASSES)


def ignoring(heads, batch):
    target = torch.where(batch["keep"] > 0, batch["y"], -100)
    return F.cross_entropy(heads.classes(batch["x"]), target)


def sum_over_tokens(heads, batch):
    """As language models write it."""
    target = tokens(batch)
    logits = heads.classes(batch["x"][:, None] * torch.linspace(0.5, 2, TOKENS)[:, None]).transpose(1, 2)
    return F.cross_entropy(logits, target, reduction="sum") / (target != -100).sum().item()


def tokens(batch):
    """A target of each position, ``[B, 4]``; behind the end of a sample they are ignored."""
    target = (batch["y"][:, None] + torch.arange(TOKENS)) % CLASSES
    return torch.where(torch.arange(TOKENS) < 1 + batch["y"][:, None] % TOKENS, target, -100)


def weighted_tokens(heads, batch, weights):
    counts = (tokens(batch) != -100).sum(1)
    return (weights * counts * one_by_one(sum_over_tokens)(heads, batch)).sum() / counts.sum()


def ignored_each(heads, batch):
    return each_cross_entropy(heads, batch) * batch["keep"]


def focal(heads, batch):
    logits = heads.classes(batch["x"])
    p = logits.softmax(1).gather(1, batch["y"][:, None])[:, 0]
    return ((1 - p) ** 2 * F.cross_entropy(logits, batch["y"], reduction="none")).mean()


def focal_of_the_loss(heads, batch):
    loss = each_cross_entropy(heads, batch)
    return ((1 - (-loss).exp()) ** 2 * loss).mean()


def smp_focal(heads, batch):
    """As segmentation_models_pytorch writes it: flattened, one class after the other."""
    total = 0
    for number in range(CLASSES):
        score, target = heads.classes(batch["x"])[:, number].reshape(-1), (batch["y"] == number).float().reshape(-1)
        logpt = F.binary_cross_entropy_with_logits(score, target, reduction="none")
        total = total + ((1 - torch.exp(-logpt)) ** 2 * logpt).mean()
    return total


def poly1(heads, batch):
    logits = heads.classes(batch["x"])
    p = logits.softmax(1).gather(1, batch["y"][:, None])[:, 0]
    return (F.cross_entropy(logits, batch["y"], reduction="none") + 2.0 * (1 - p)).mean()


def written_nll(heads, batch):
    return -heads.classes(batch["x"]).log_softmax(1)[torch.arange(len(batch["y"])), batch["y"]].mean()


def gaussian(heads, batch):
    return F.gaussian_nll_loss(heads.mean(batch["x"]), batch["target"], heads.spread(batch["x"]).exp())


def gaussian_by_hand(heads, batch):
    mean, log_variance = heads.mean(batch["x"]), heads.spread(batch["x"])
    F.l1_loss(mean, batch["target"]).item()  # only logged
    return (0.5 * (log_variance + (mean - batch["target"]) ** 2 / log_variance.exp())).mean()


def gaussian_in_two_means(heads, batch):
    """The first of which was made of what the second is the mean of."""
    mean, log_variance = heads.mean(batch["x"]), heads.spread(batch["x"])
    return ((mean - batch["target"]) ** 2 * (-log_variance).exp()).mean() + log_variance.mean()


def attenuated(heads, batch):
    """The same, of cross-entropy."""
    each, spread = each_cross_entropy(heads, batch), heads.spread(batch["x"]).mean(1)
    return (each * (-spread).exp()).mean() + spread.mean()


def divergence(heads, batch):
    return F.kl_div(heads.classes(batch["x"]).log_softmax(1), heads.teacher(batch["x"]).softmax(1), reduction="batchmean")


def triplet(heads, batch):
    return F.triplet_margin_loss(heads.mean(batch["x"]), batch["target"], batch["target"].flip(1))


def cosine(heads, batch):
    return F.cosine_embedding_loss(heads.mean(batch["x"]), batch["target"], 2 * batch["keep"] - 1, margin=0.1)


def of_squares(squares):
    """A regression made of squared errors ``[B, 5]`` and the batch."""
    return lambda heads, batch: squares(squared(heads, batch), batch)


def masked_mean(squares, batch):
    return (squares * batch["known"]).sum() / batch["known"].sum()


def weighted_tasks(squares, batch):
    """Missing targets, a weight of each sample, and a weight of each task."""
    tasks = torch.linspace(0.5, 2, OUTPUTS)
    return (squares * batch["known"] * batch["weight"][:, None] * tasks).sum() / batch["known"].sum()


def weighing_squares(squares):
    return lambda heads, batch, weights: squares(squared(heads, batch) * weights[:, None], batch)


def distilled(heads, batch):
    logits = heads.classes(batch["x"])
    soft = F.kl_div((logits / 2).log_softmax(1), (heads.teacher(batch["x"]) / 2).softmax(1), reduction="batchmean")
    return F.cross_entropy(logits, batch["y"]) + 0.5 * 4 * soft


def variational(heads, batch):
    mean, log_variance = heads.mean(batch["x"]), heads.spread(batch["x"])
    return F.mse_loss(mean, batch["target"]) + (-0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1)).mean()


def variational_sums(heads, batch):
    mean, log_variance = heads.mean(batch["x"]), heads.spread(batch["x"])
    divergence = -0.5 * torch.sum(1 + log_variance - mean**2 - log_variance.exp())
    return F.mse_loss(mean, batch["target"], reduction="sum") + divergence


def with_metrics(heads, batch):
    prediction = heads.mean(batch["x"])
    with torch.no_grad():
        F.l1_loss(prediction, batch["target"])
    F.l1_loss(prediction, batch["target"])
    F.mse_loss(prediction.detach(), batch["target"], reduction="none").mean()
    return F.mse_loss(prediction, batch["target"])


def in_place(heads, batch):
    loss = squared(heads, batch)
    loss *= batch["weight"][:, None]
    loss = loss.mean()
    loss += 0.0
    return loss


def aux_heads(heads, batch):
    logits = heads.classes(batch["x"])
    return (
        F.cross_entropy(logits, batch["y"])
        + 0.4 * F.cross_entropy(logits * 0.5, batch["y"])
        + 0.1 * F.mse_loss(heads.mean(batch["x"]), batch["target"])
    )


def ctc(heads, batch):
    scores = heads.classes(batch["x"][:, None] * torch.linspace(0.5, 2, 8)[:, None])  # [B, 8, 10]
    lengths = 1 + batch["y"] % 3
    labels = 1 + batch["y"][:, None].remainder(torch.tensor([5, 7, 9]))
    return F.ctc_loss(scores.log_softmax(2).transpose(0, 1), labels, torch.full_like(lengths, 8), lengths)


def linear_cross_entropy(heads, batch):
    return F.linear_cross_entropy(batch["x"] @ torch.eye(FEATURES), heads.classes.weight, batch["y"])


def sum_of_each(each):
    return lambda heads, batch, weights: (weights * each(heads, batch)).sum()


def over(each, divided_by):
    """The weighted sum of each sample's values, divided by a sum over the batch."""
    return lambda heads, batch, weights: (weights * each(heads, batch)).sum() / divided_by(batch).sum()


def class_weights_of(batch):
    return CLASS_WEIGHTS[batch["y"]]


def weighed(heads, batch):
    return each_cross_entropy(heads, batch) * batch["weight"]


LOSSES = {
    "cross entropy": Loss(cross_entropy, predicts=True),
    "a module": Loss(lambda h, b: nn.CrossEntropyLoss()(h.classes(b["x"]), b["y"]), predicts=True),
    "class weights": Loss(
        partial(cross_entropy, weight=CLASS_WEIGHTS),
        alone=partial(each_cross_entropy, weight=CLASS_WEIGHTS),
        weighted=over(partial(each_cross_entropy, weight=CLASS_WEIGHTS), class_weights_of),
        predicts=True,
    ),
    "ignore_index": Loss(ignoring, ignored_each, over(ignored_each, lambda batch: batch["keep"]), predicts=True),
    "label smoothing": Loss(partial(cross_entropy, label_smoothing=0.1), predicts=True),
    "sum": Loss(partial(cross_entropy, reduction="sum"), weighted=sum_of_each(each_cross_entropy), predicts=True),
    "sum over B": Loss(lambda h, b: cross_entropy(h, b, reduction="sum") / len(b["x"]), predicts=True),
    "sum over tokens": Loss(sum_over_tokens, weighted=weighted_tokens, predicts=True),
    "half a sum over tokens": Loss(
        lambda h, b: 0.5 * sum_over_tokens(h, b), weighted=lambda h, b, w: 0.5 * weighted_tokens(h, b, w), predicts=True
    ),
    "none, then mean": Loss(lambda h, b: each_cross_entropy(h, b).mean(), predicts=True),
    "times a weight": Loss(lambda h, b: weighed(h, b).mean(), predicts=True),
    "weighted mean": Loss(
        lambda h, b: weighed(h, b).sum() / b["weight"].sum(), each_cross_entropy, over(weighed, lambda b: b["weight"]), True
    ),
    "times a mask": Loss(lambda h, b: (each_cross_entropy(h, b) * b["keep"]).mean(), predicts=True),
    "scaled": Loss(lambda h, b: 0.1 * cross_entropy(h, b), predicts=True),
    "focal": Loss(focal, predicts=True),
    "focal of the loss": Loss(focal_of_the_loss, predicts=True),
    "smp focal": Loss(smp_focal, predicts=True),
    "poly-1": Loss(poly1, predicts=True),
    "clamped": Loss(lambda h, b: each_cross_entropy(h, b).clamp(max=2.0).mean(), predicts=True),
    "nll by hand": Loss(written_nll),
    "binary": Loss(lambda h, b: F.binary_cross_entropy_with_logits(h.classes(b["x"]), onehot(b)), predicts=True),
    "multi-margin": Loss(lambda h, b: F.multi_margin_loss(h.classes(b["x"]), b["y"]), predicts=True),
    "gaussian nll": Loss(gaussian),
    "gaussian nll by hand": Loss(gaussian_by_hand),
    "gaussian nll in two means": Loss(gaussian_in_two_means),
    "attenuated": Loss(attenuated, predicts=True),
    "poisson nll": Loss(lambda h, b: F.poisson_nll_loss(h.mean(b["x"]), b["target"].abs())),
    "kl_div": Loss(divergence, predicts=True),
    "triplet": Loss(triplet),
    "cosine embedding": Loss(cosine),
    "ctc": Loss(ctc),
    "huber": Loss(lambda h, b: F.huber_loss(h.mean(b["x"]), b["target"])),
    "mse": Loss(lambda h, b: F.mse_loss(h.mean(b["x"]), b["target"])),
    "mse in two means": Loss(of_squares(lambda squares, b: squares.mean(0).sum())),
    "root of each": Loss(of_squares(lambda squares, b: squares.mean(1).sqrt().mean())),
    "masked mean": Loss(of_squares(masked_mean), weighted=weighing_squares(masked_mean)),
    "masked sum over B": Loss(of_squares(lambda squares, b: (squares * b["known"]).sum() / len(squares))),
    "weighted tasks": Loss(of_squares(weighted_tasks), weighted=weighing_squares(weighted_tasks)),
    "distillation": Loss(distilled, predicts=True),
    "variational": Loss(variational),
    "variational sums": Loss(variational_sums, weighted=sum_of_each(one_by_one(variational_sums))),
    "auxiliary heads": Loss(aux_heads, predicts=True),
    "logged metrics": Loss(with_metrics),
    "changed in place": Loss(in_place),
}
if hasattr(F, "linear_cross_entropy"):  # new in torch 2.14
    LOSSES["linear cross entropy"] = Loss(linear_cross_entropy, predicts=True)
