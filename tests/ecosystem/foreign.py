"""Trains code that is not ours with the callback added, and says what came of it."""

import copy
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kakurenbo_lightning import SampleSelection

EPOCHS, BATCH = 3, 8
NO_PREDICTIONS = {"kakurenbo": r"reads confidence, correct.*A regression has none: use .*infobatch.*or nothing \(random\)"}
READ = ("kakurenbo", "infobatch", "selective_backprop", "plb")  # they read the loss of each sample
INDIVISIBLE = dict.fromkeys(READ, r"cannot be split into one value for each sample.*use random.*sample_outputs=")
PARTIAL = dict.fromkeys(
    READ,
    r"nothing says to which samples the rows belong.*sample_outputs=.*random, random_cycle, weighted and baseline need no values",
)
BATCH_DEPENDENT = dict.fromkeys(
    READ, r"the value of a sample depends on which others are in its batch.*values=\"bls\".*, use random, "
)
TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4  # relative to the largest true number
METHODS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "random": {"max_fraction": 0.3},
    "kakurenbo": {"max_fraction": 0.5, "tau": 0.0},  # at a learning rate of 0 no network grows confident
    "infobatch": {"end_fraction": 0.0},
    "selective_backprop": {},
    "plb": {},
}
FREE = ("baseline", "random")  # they read nothing of the step
SAVES = (
    "random",
    "infobatch",
    "selective_backprop",
)  # whatever the losses are; kakurenbo needs samples that are predicted correctly


class Training:
    """A module and its train loader, as a user has them.

    Args:
        module: the LightningModule.
        loader: of the training data.
        validation: a loader, where the module cannot do without.
        terms: ``terms(sample)``, how many numbers of a sample the loss is the mean of (pixels, words); by default each sample counts
            once. ``None`` where the loss of a batch is not the mean over any numbers of its samples.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        loader: DataLoader,
        validation: DataLoader | None = None,
        terms: Callable[[Any], float] | None = lambda sample: 1.0,
    ) -> None:
        self.module, self.loader, self.validation, self.terms = module, loader, validation, terms

    def fit(self, callbacks: list[pl.Callback]) -> None:
        """Train with ``callbacks``; a library with a trainer of its own has another way."""
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=EPOCHS,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(self.module, self.loader, self.validation)

    def loss_alone(self, module: pl.LightningModule, sample: Any) -> Tensor:
        """What the module's own step returns for one sample in a batch of its own."""
        outputs = module.training_step(self.loader.collate_fn([sample]), 0)
        return outputs["loss"] if isinstance(outputs, Mapping) else outputs

    def value(self, loss: Tensor, sample: Any) -> Tensor:
        """What is to be recorded of a sample that has ``loss`` alone."""
        return loss


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: what is trained.
        package: whose version the row is for.
        make: makes the training, the same every time.
        refused: by method, the words (a regular expression) with which it is refused; the other methods train.
        warned: by method, the words of the only warning; the other methods warn of nothing.
        comparable: a sample alone has the loss that it has in a batch (not so with BatchNorm), and that is what is to be recorded.
    """

    name: str
    package: str
    make: Callable[[], Training]
    refused: Mapping[str, str] = field(default_factory=dict)
    warned: Mapping[str, str] = field(default_factory=dict)
    comparable: bool = True

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Outcome:
    """What came of a case with a method.

    Attributes:
        error: the error that ``fit`` raised, ``None`` where it trained.
        warned: what the callback warned of.
        trained: samples that went through a training step.
        left_out: samples that were hidden or rejected.
        measured: samples of which a loss is recorded.
        difference: the largest difference of a recorded loss from the one of the sample alone, relative to the largest loss.
        gradient: the relative error of the last epoch's gradients from the weighted sums of the gradients of samples alone; ``None``
            where a batch's loss is no mean, or the method chooses within the epoch.
    """

    error: Exception | None = None
    warned: tuple[str, ...] = ()
    trained: int = 0
    left_out: int = 0
    measured: int = 0
    difference: float | None = None
    gradient: float | None = None


class StandStill(pl.Callback):
    """A learning rate of 0, whatever the library's own optimizer and schedule are."""

    def on_train_start(self, trainer, pl_module):
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] = 0.0
        for config in trainer.lr_scheduler_configs:
            if hasattr(config.scheduler, "base_lrs"):
                config.scheduler.base_lrs = [0.0] * len(config.scheduler.base_lrs)


class Gradients(pl.Callback):
    """Adds up the gradients of the last epoch, and keeps which samples its steps had, and their weights; comes after the selection."""

    def __init__(self, selection):
        self.selection = selection

    def on_train_epoch_start(self, trainer, pl_module):
        self.sum, self.steps = 0, []
        self.weights = getattr(self.selection.plan, "weights", None)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.selection.method.family == "hide":
            self.steps.append(trainer.train_dataloader.sampler.shard.step(batch_idx).tolist())

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.sum = self.sum + flat_gradient(pl_module)


def flat_gradient(module):
    """The gradients of all parameters in one vector, 0 where there is none."""
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().double() for p in module.parameters() if p.requires_grad]
    )


def relative(value: Tensor, truth: Tensor) -> float:
    """The largest difference in units of the largest true value; infinite where it is no number."""
    return float(((value - truth).abs().max() / truth.abs().max().clamp(min=1e-12)).nan_to_num(torch.inf))


def outcome(case: Case, method: str, still: bool = True) -> Outcome:
    """Train ``case`` with ``method``, and compare what was recorded with each sample alone.

    Args:
        case: what to train.
        method: with its settings in ``METHODS``.
        still: at a learning rate of 0, so that there is something to compare; else at the case's own.
    """
    torch.manual_seed(0)
    training = case.make()
    untouched = copy.deepcopy(training.module)
    selection = SampleSelection(method, seed=0, **METHODS[method])
    gradients = Gradients(selection)
    with _warnings() as said:
        try:
            training.fit([selection, gradients, *([StandStill()] if still else [])])
        except Exception as error:
            return Outcome(error, tuple(said()))
    before = dict(untouched.named_parameters())
    moved = any(not torch.equal(before[name], parameter) for name, parameter in training.module.named_parameters())
    assert moved is not still
    statistics, totals = selection.statistics, selection.totals
    counts = (totals.samples_trained, totals.samples_hidden + totals.samples_rejected, int(statistics.measured.sum()))
    if not (still and case.comparable):
        finite = statistics.loss[statistics.measured].isfinite().all()
        return Outcome(None, tuple(said()), *counts, None if finite else torch.inf)
    return Outcome(None, tuple(said()), *counts, *_compared(training, untouched, statistics, gradients))


def _compared(training: Training, untouched: pl.LightningModule, statistics, gradients: Gradients) -> tuple[float, float | None]:
    """The relative errors of the losses and of the gradients."""
    factors = torch.zeros(len(statistics))
    samples = [training.loader.dataset[number] for number in range(len(statistics))]
    planned = bool(gradients.steps) and training.terms is not None
    weights = torch.ones(len(samples)) if gradients.weights is None else gradients.weights
    for step in gradients.steps if planned else ():
        terms = torch.tensor([float(training.terms(samples[number])) for number in step])
        factors[step] += weights[step] * terms / terms.sum()
    losses, wanted = [], 0
    for sample, factor in zip(samples, factors, strict=True):
        untouched.zero_grad()
        loss = training.loss_alone(untouched, sample)
        losses.append(training.value(loss.detach(), sample))
        if factor:
            loss.backward()
            wanted = wanted + float(factor) * flat_gradient(untouched)
    truth, measured = torch.stack(losses), statistics.measured
    difference = relative(statistics.loss[measured], truth[measured]) if measured.any() else 0.0
    return difference, relative(gradients.sum, wanted) if planned else None


@contextmanager
def _warnings():
    """Collects the callback's warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: [str(each.message) for each in caught if "SampleSelection" in str(each.message)]


def check(case: Case, method: str) -> None:
    """What the row of ``case`` says of ``method`` is what happens.

    Where it trains, every recorded loss is the one of the sample alone, and the gradients of an epoch are the weighted sums of its
    samples' gradients; it trains at the case's own learning rate too. Where it is refused, the words say why and name what works.
    """
    made, words = outcome(case, method), case.refused.get(method)
    if words is not None:
        assert made.error is not None, (
            f"it is to be refused, but trained: values differ by {made.difference}, gradients by {made.gradient}"
        )
        assert re.search(words, str(made.error), re.DOTALL), str(made.error)
        return
    for done in (made, outcome(case, method, still=False)):
        if done.error is not None:
            raise done.error
        expected = case.warned.get(method)
        assert len(done.warned) == (expected is not None), done.warned
        assert expected is None or re.search(expected, done.warned[0]), done.warned
        assert done.measured or method in FREE
        assert done.left_out or method not in SAVES
        assert done.difference is None or done.difference <= TOLERANCE, f"values differ by {done.difference:.1e}"
        assert done.gradient is None or done.gradient <= GRADIENT_TOLERANCE, f"gradients differ by {done.gradient:.1e}"
