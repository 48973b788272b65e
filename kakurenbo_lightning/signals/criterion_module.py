"""Losses of ``nn.Module`` classes that cannot be seen into: their values row by row."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kakurenbo_lightning.core.random import isolated_rng
from kakurenbo_lightning.signals.criteria import grouped, mean, of_classes, of_labels, total
from kakurenbo_lightning.signals.graph import leaves
from kakurenbo_lightning.signals.predictions import IGNORE_INDEX, Reads, Values

MOST_LOOPED = 32  # largest number of rows to evaluate one by one in every step if torch.vmap refuses
TESTED_ROWS = 64  # at most so many rows are compared between torch.vmap and a plain loop
GRADIENT, HALF_GRADIENT = 1e-3, 3e-2  # relative difference up to which gradients count as equal


@dataclass
class Findings:
    """What the first call of a loss module has shown.

    Attributes:
        reduction: how its result is made from the values of the rows, ``"mean"`` or ``"sum"``.
        looped: rows are evaluated in a plain loop, not by ``torch.vmap``.
        target: what its target holds: ``"classes"``, ``"probabilities"`` or ``"labels"``; ``None`` if none of these.
        logits: whether its predictions are logits instead of probabilities.
    """

    reduction: str = "mean"
    looped: bool = False
    target: str | None = None
    logits: bool = True


class ModuleCall:
    """The arguments of one call of a loss module, from which values per sample are computed.

    Args:
        module: the loss module.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        size: B, samples in the batch.

    Attributes:
        name: name of the module's class.
        rows: n, the number of rows that the call was given: B or a multiple.
        findings: what :meth:`verify` and :meth:`read_target` found, in this call or an earlier one.
    """

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], size: int) -> None:
        self.module, self._names, self._given = module, tuple(kwargs), (*args, *kwargs.values())
        self.name = type(module).__name__
        self.rows = next(len(a) for a in self._given if _has_rows(a, size))
        self._mapped = [_has_rows(a, size) and len(a) == self.rows for a in self._given]
        self.findings = Findings()
        device = next(a.device.type for a in self._given if isinstance(a, Tensor))
        self._precision = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)

    @staticmethod
    def may_be_loss(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, size: int, graph: bool = True) -> bool:
        """Whether a module got predictions of B rows (or a multiple) and returned one number, or one per sample.

        ``graph``: if the output has a graph, at least one floating-point argument must have one too, as predictions have and data have not.
        """
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.shape not in ((), (size,)):
            return False
        graph = graph and torch.is_grad_enabled() and output.requires_grad
        given = (a for a in (*args, *kwargs.values()) if _has_rows(a, size) and a.is_floating_point())
        return any(a.requires_grad or not graph for a in given)

    @property
    def reduction(self) -> str:
        """How the result is made from the rows, ``"mean"`` or ``"sum"``, see :class:`Findings`."""
        return self.findings.reduction

    # --- its loss

    def elements(self) -> Tensor:
        """Call the module for each row alone, ``[n]``, in the precision of the original call."""
        device, dtype, enabled = self._precision
        with torch.autocast(device, dtype, enabled), _attributes_kept(self.module):
            if self.findings.looped:
                with isolated_rng():
                    return self._loop(range(self.rows))
            in_dims = tuple(0 if is_mapped else None for is_mapped in self._mapped)
            return torch.vmap(self._of_one, in_dims, randomness="error")(*self._given)

    def _of_one(self, *given: Any) -> Tensor:
        """Call the module with one row of each mapped argument."""
        row = [a.unsqueeze(0) if is_mapped else a for a, is_mapped in zip(given, self._mapped, strict=True)]
        first = len(row) - len(self._names)
        return self.module.forward(*row[:first], **dict(zip(self._names, row[first:], strict=True))).reshape(())

    def _loop(self, rows: Iterable[int]) -> Tensor:
        pairs = list(zip(self._given, self._mapped, strict=True))
        return torch.stack([self._of_one(*(a[i] if is_mapped else a for a, is_mapped in pairs)) for i in rows])

    def verify(self, result: Tensor, tolerance: float) -> str | None:
        """Check that ``result`` is the mean or the sum of what each row gives alone; waits for the device.

        Args:
            result: what the call returned.
            tolerance: relative tolerance.

        Returns:
            ``None``, or a text that says why not. Buffers and attributes of the module are restored either way.
        """
        others = (a for a, is_mapped in zip(self._given, self._mapped, strict=True) if not is_mapped)
        if any(tensor.requires_grad for other in others for tensor in leaves(other)):
            return "is given predictions that are not one row for each sample"
        some = range(0, self.rows, -(-self.rows // TESTED_ROWS))
        changed: list[str] = []
        with torch.no_grad(), _attributes_kept(self.module), _buffers_kept(self.module, changed):
            try:
                alone = self._loop(some)
            except Exception as error:
                return f"cannot be called with one row ({type(error).__name__}: {error})"
        if changed:
            return f"changes its {', '.join(changed)} in each call, so it cannot be called for each row"
        with torch.no_grad():
            try:
                values = self.elements()
            except Exception as error:
                if self.rows > MOST_LOOPED:
                    return f"takes one row after the other only, and {self.rows} are too many for each step; torch.vmap says: {error}"
                self.findings.looped = True
                values = self.elements()
            if not torch.allclose(values[list(some)], alone, rtol=10 * tolerance, atol=1e-6, equal_nan=True):
                return "gives other values under torch.vmap than row by row"
            for self.findings.reduction, made in (("mean", values.mean()), ("sum", values.sum())):
                if torch.isclose(made, result.detach().to(made.dtype), rtol=tolerance, atol=1e-7):
                    return self._verify_gradient(some)
        return "gives neither the mean nor the sum of what it gives for each row alone"

    def _verify_gradient(self, some: Sequence[int]) -> str | None:
        """Check that predictions change the result as they change the mean or sum of the rows.

        The numbers alone may agree by coincidence: an untrained network predicts nearly the same of every sample.
        """
        half = (torch.float16, torch.bfloat16)
        given = [a.detach() if isinstance(a, Tensor) else a for a in self._given]
        full = [a.float() if isinstance(a, Tensor) and a.dtype in half else a for a in given]
        device, dtype, enabled = self._precision
        try:  # in float32, because half precision needs a larger tolerance
            with torch.autocast(device, enabled=False):
                differ, most = self._gradients_differ(full, some), GRADIENT
        except Exception:  # the module has weights in half precision
            with torch.autocast(device, dtype, enabled):
                differ, most = self._gradients_differ(given, some), HALF_GRADIENT
        if differ <= most:
            return None
        return (
            f"gives the {self.findings.reduction} of what it gives for each row alone by coincidence only: their gradients differ by "
            f"{differ:.1%}, as those of a loss that is normalised over the batch"
        )

    def _gradients_differ(self, given: Sequence[Any], some: Sequence[int]) -> float:
        """Largest difference between the gradient of the whole batch and that of single rows, relative to the largest gradient.
        ``given`` is detached.
        """
        learned = [m and a.requires_grad for a, m in zip(self._given, self._mapped, strict=True)]
        if not any(learned):  # only the loss module itself is trained
            return 0.0

        def gradients(rows: slice) -> tuple[Tensor, ...]:
            part = [a[rows] if is_mapped else a for a, is_mapped in zip(given, self._mapped, strict=True)]
            inputs = [a.requires_grad_() for a, is_learned in zip(part, learned, strict=True) if is_learned]
            # clone: the module may change its input in place, which a leaf forbids
            part = [a.clone() if is_learned else a for a, is_learned in zip(part, learned, strict=True)]
            first = len(part) - len(self._names)
            result = self.module.forward(*part[:first], **dict(zip(self._names, part[first:], strict=True)))
            return torch.autograd.grad(result.sum(), inputs, materialize_grads=True)

        share = 1 / self.rows if self.findings.reduction == "mean" else 1.0
        with torch.enable_grad(), _attributes_kept(self.module), _buffers_kept(self.module, []):
            whole = gradients(slice(None))
            alone = [gradients(slice(i, i + 1)) for i in some]
        far = [
            (share * one[0] - all_[i]).abs().max()
            for i, row in zip(some, alone, strict=True)
            for one, all_ in zip(row, whole, strict=True)
        ]
        largest = max(float(gradient.abs().max()) for gradient in whole)
        return float(torch.stack(far).nan_to_num().max()) / max(largest, 1e-30)

    def values(self, elements: Tensor, size: int, order: str) -> Tensor:
        """The module's loss for each sample alone, ``[size]``."""
        per_sample = grouped(elements, size, order)
        return mean(per_sample) if self.findings.reduction == "mean" else total(per_sample)

    def shares(self, elements: Tensor, size: int, order: str) -> Tensor:
        """What each sample adds to the module's result, ``[size]``."""
        return self.values(elements, size, order) / (size if self.findings.reduction == "mean" else 1)

    # --- its predictions

    def read_target(self, result: Tensor) -> bool:
        """Find out what the target argument holds, and whether the predictions are scores of it; waits for the device.

        A module with parameters of its own computes its logits inside, and labels given with embeddings are no classes of them. So it
        is required that the loss falls as the score of the target rises.
        """
        pair = self._scores_and_target()
        if pair is None or not (pair[0].requires_grad and result.requires_grad) or any(True for _ in self.module.parameters()):
            return False
        scores, target = pair[0].detach(), pair[1].detach()
        wide = scores.dim() > 1 and scores.shape[1] > 1
        if wide and target.shape == scores.shape[:1] + scores.shape[2:] and bool((target == target.round()).all()):
            self.findings.target = "classes"
        elif wide and target.is_floating_point() and target.shape == scores.shape and _are_distributions(target):
            self.findings.target = "probabilities"
        elif target.shape == scores.shape and bool(((target == 0) | (target == 1)).all()):
            self.findings.target = "labels"
        else:
            return False
        in_range = bool(((scores >= 0) & (scores <= 1)).all())
        self.findings.logits = not (in_range and (self.findings.target == "labels" or _are_distributions(scores)))
        (gradient,) = torch.autograd.grad(result, pair[0], torch.ones_like(result), retain_graph=True, allow_unused=True)
        return gradient is not None and _lowered_by(gradient, scores, target, self.findings.target)

    def _scores_and_target(self) -> tuple[Tensor, Tensor] | None:
        """The first two arguments that have rows; a channel axis of size 1 is removed from a target of classes."""
        given = [a for a, is_mapped in zip(self._given, self._mapped, strict=True) if is_mapped]
        if len(given) < 2 or not given[0].is_floating_point():
            return None
        scores, target = given[:2]
        if target.dim() == scores.dim() > 1 and target.shape[1] == 1 < scores.shape[1]:
            target = target.squeeze(1)
        return scores, target

    def predictions(self, size: int, order: str, reads: Reads) -> Values:
        """Confidence, correctness and whatever else ``reads`` names, of ``size`` samples; detached."""
        pair = self._scores_and_target()
        assert pair is not None, "read_target has found them"
        scores, target = (a.detach() for a in pair)
        if self.findings.target == "labels":
            return of_labels(scores.sigmoid() if self.findings.logits else scores, target, size, order, reads)
        scores = scores if self.findings.logits else scores.log()  # softmax(log p) = p
        target = target.long() if self.findings.target == "classes" else target
        return of_classes(scores, target, IGNORE_INDEX, size, order, reads)


def _has_rows(value: Any, size: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) > 0 and len(value) % size == 0


def _lowered_by(gradient: Tensor, scores: Tensor, target: Tensor, what: str) -> bool:
    """Whether the loss falls, for most samples, when the scores move towards the target."""
    if what == "labels":
        towards = ((gradient <= 0) == (target > 0.5)).float().mean()
    elif what == "probabilities":
        towards = ((gradient * (target - scores.softmax(1))).sum(1) <= 0).float().mean()
    else:
        counted = (target >= 0) & (target < gradient.shape[1])
        towards = ((gradient.argmin(1) == target) & counted).sum() / counted.sum().clamp(min=1)
    return bool(towards > 0.75)


def _are_distributions(values: Tensor) -> bool:
    return bool((values >= 0).all()) and bool(((values.float().sum(1) - 1).abs() < 1e-3).all())


@contextlib.contextmanager
def _buffers_kept(module: nn.Module, changed: list[str]) -> Iterator[None]:
    """Restore buffers of ``module`` that change inside this context, and add their names to ``changed``."""
    before = {name: (buffer, buffer._version, buffer.clone()) for name, buffer in module.named_buffers()}
    try:
        yield
    finally:
        for name, (buffer, version, copy) in before.items():
            if buffer._version != version:
                changed.append(name)
                buffer.copy_(copy)


@contextlib.contextmanager
def _attributes_kept(module: nn.Module) -> Iterator[None]:
    """Restore attributes of ``module`` that are set inside this context."""
    before = [(part, dict(vars(part))) for part in module.modules()]
    try:
        yield
    finally:
        for part, attributes in before:
            vars(part).update(attributes)
