"""The backprop family: every loaded sample is scored by a forward pass, and some of them are trained."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.plan import EpochPlan, Plan
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.methods.base import Epoch, Method, RefreshMode
from kakurenbo_lightning.methods.frozen_module import FrozenModule
from kakurenbo_lightning.methods.settings import choice, flag, integer, number, optional, setting

if TYPE_CHECKING:
    from torch import Tensor

Memory = dict[str, Any]  # tensors and numbers that a method remembers from batch to batch


@dataclass(frozen=True)
class Picked:
    """The samples that a method chose among those it scored.

    Attributes:
        rows: ``int64[n]``, positions among the scored samples. The chosen ones come first.
        count: how many of ``rows`` are chosen: an int, or ``int64[]`` if only the device knows.
        weights: ``float32[n]``, the loss weight of each of ``rows``; ``None`` if each counts once.
        whole: ``bool[]``, whether all samples are trained because no choice was possible (every probability was 0).
        unknown: ``int64[]``, number of samples that could not be scored.
    """

    rows: Tensor
    count: Tensor | int
    weights: Tensor | None = None
    whole: Tensor | None = None
    unknown: Tensor | None = None

    @classmethod
    def mask(cls, keep: Tensor, whole: Tensor | None = None) -> Picked:
        """Choose the samples for which ``keep`` (``bool[n]``) is true, in their order; no device synchronisation."""
        return cls((~keep).to(torch.uint8).argsort(stable=True), keep.sum(), whole=whole)


@dataclass(frozen=True)
class BackpropMethod(Method):
    """A method of the backprop family: a forward pass without gradient over every loaded batch decides which samples are trained.

    A method is a frozen dataclass that derives from this one and chooses in :meth:`select`. Chosen samples wait in a pool until they fill a
    batch, which is trained in one optimizer step. If not :attr:`pooled`, they are trained at once.

    Attributes:
        pooled: whether chosen samples wait for a full batch.
        repeats: whether a sample may be chosen more than once.
    """

    _: KW_ONLY
    warmup_epochs: int = setting(
        1,
        integer(),
        "number of first epochs that train on everything, without scoring; the method learns from their losses",
        unit="epochs",
    )
    leftover: Literal["train", "carry"] = setting(
        "train",
        choice("train", "carry"),
        "samples that still wait at an epoch's end are trained as a short batch (at least two samples per rank), or "
        "wait on into the next epoch; those that wait after the last epoch count as rejected",
        fix="'train' is the published way.",
    )
    pool_on_cpu: bool = setting(
        False, flag(), "keep chosen samples that wait in the host's memory", fix="True frees device memory."
    )
    inference_mode: bool = setting(False, flag(), "score under `torch.inference_mode`", fix="True saves a little time.")
    autocast: Literal["bf16", "fp16"] | None = setting(
        None, optional(choice("bf16", "fp16")), "precision of the scoring pass; `None`: the Trainer's", fix="For example: 'bf16'."
    )
    scale: float = setting(
        1.0,
        number(0, 1, above=True),
        "resolution at which images (float tensors `[B, C, H, W]`) are scored, as a share of their own",
        fix="0.5 scores a quarter of the pixels.",
    )
    compile: bool = setting(
        False,
        flag(),
        "score with the module's submodules (those with parameters) under `torch.compile`; training runs as you wrote it",
        fix="True needs a compiler that torch.compile finds.",
    )
    train_scorer_every: int | None = setting(
        None,
        optional(integer(1)),
        "with a `scorer`: train it only on the samples chosen from every n-th loaded batch; `None`: on all samples that"
        " the module trains",
        fix="4 trains it on a quarter of the batches.",
        unit="batches",
    )

    family: ClassVar[str] = "backprop"
    needs_places: ClassVar[str] = "it chooses among the samples that have been loaded, so nothing could be left out before"
    pooled: ClassVar[bool] = True
    repeats: ClassVar[bool] = False

    @property
    def scoring_mode(self) -> RefreshMode | None:
        """Eval mode: loaded batches are scored before some of their samples are trained."""
        return "eval"

    @property
    def reference(self) -> FrozenModule | None:
        """A trained model that computes a loss of each scored sample too, ``values["reference"]`` in :meth:`select`; ``None``: there is
        none."""
        return None

    @property
    def batches_per_choice(self) -> int:
        """Number of loaded batches that are scored before one choice is made among all of them."""
        return 1

    @property
    def ends_short(self) -> bool:
        """Whether an epoch ends with one more step, for the samples that still wait."""
        return self.leftover == "train" and (self.pooled or self.batches_per_choice > 1)

    def memory(self) -> Memory:
        """The memory at the start of a training: CPU tensors and numbers."""
        return {}

    def scores(self, epoch: Epoch, step: int, steps: int, memory: Memory) -> bool:
        """Whether batch ``step`` of ``steps`` in ``epoch`` is scored; otherwise it is trained whole. The same on every rank."""
        return epoch.index >= self.warmup_epochs

    def learn(self, memory: Memory, values: Mapping[str, Tensor], mean: Callable[[Tensor], Tensor]) -> None:
        """Update ``memory`` from a batch that is trained whole, or from the samples that :meth:`select` is about to choose from.

        Args:
            memory: the method's memory; changed in place.
            values: values of the samples, each ``[n]``.
            mean: averages a tensor over the ranks; a collective operation.
        """

    @abstractmethod
    def select(self, values: Mapping[str, Tensor], indices: Tensor, memory: Memory, generator: torch.Generator) -> Picked:
        """Choose the samples to train. Pure, except for drawing from ``generator``.

        Args:
            values: values of the scored samples, each ``[n]``, on their device: what the method reads, and the ``reference``'s loss.
            indices: ``int64[n]``, their data set indices.
            memory: the method's memory, after :meth:`learn` has seen these samples.
            generator: CPU random stream of this batch and rank.
        """

    def plan(self, statistics: SampleStatistics, epoch: Epoch, previous: Plan | None = None) -> EpochPlan:
        """Return the plan that loads every sample once."""
        return EpochPlan.everything(len(statistics))


def uniform(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Uniform random numbers in [0, 1), ``float32[count]``, the same for every device."""
    return torch.rand(count, generator=generator).to(device, non_blocking=True)


def hard(losses: Tensor) -> Tensor:
    """``losses`` in float32 with infinity in place of values that are not finite, so that these never count as low."""
    losses = losses.float()
    return torch.where(losses.isfinite(), losses, float("inf"))


def at_least_two(count: int, size: int) -> int:
    """``count``, but at least two if ``size`` allows it, because BatchNorm refuses a batch of one."""
    return max(count, min(2, size))
