"""Checks that a loss, as a function of its parts, is a sum of what the samples add to it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kakurenbo_lightning.signals.graph import Edge, edge_of, gradient_edges, gradients

KINKED = (
    ", so what a sample adds has another sign or size in another batch: return the loss that each sample has before that as "
    "sample_loss, or apply it to each sample's loss"
)
# custom autograd functions of torch itself, by which strategies wrap tensors; all are linear
_KNOWN = ("_DDPSink", "_AllReduce", "_AllGather", "_Reduce_Scatter", "_ToTorchTensor", "_FromTorchTensor", "Redistribute")
# operations that pick some of their inputs; that have a kink; and that make one number from several
_PICKS = ("Max", "Min", "Amax", "Amin", "Median", "Nanmedian", "Kthvalue", "Topk", "Sort")
_KINKS = (*_PICKS, "Abs", "Relu", "Clamp", "Hardtanh", "Threshold", "LeakyRelu", "Fmax", "Fmin")
_ROW_BY_ROW = ("Where", "MaskedFill")  # piecewise too, but another tensor decides the branch
_MIXES = (
    *("Sum", "Mean", "Nansum", "Dot", "Mv", "Mm", "Bmm", "Addmm", "Addmv"),
    *("Norm", "Linalg", "Var", "Std", "Logsumexp", "Cumsum"),
)


def ways(root: Edge, edges: Collection[Edge]) -> list[Any]:
    """The nodes on the paths from ``root`` down to ``edges``, each once. Nodes that lead elsewhere are left out."""
    above: dict[Any, list[Any]] = {root[0]: []}
    waiting, last = [] if root in edges else [root[0]], []
    while waiting:
        node = waiting.pop()
        for following in node.next_functions:
            if following in edges:
                last.append(node)
            elif following[0] is not None:
                if following[0] not in above:
                    above[following[0]] = []
                    waiting.append(following[0])
                above[following[0]].append(node)
    passed: dict[Any, None] = {}
    while last:
        node = last.pop()
        if node not in passed:
            passed[node] = None
            last.extend(above[node])
    return list(passed)


class Kinks(NamedTuple):
    """Where an otherwise linear loss has a kink.

    Attributes:
        of_batch: name of an operation with a kink in a number that is made from several samples, like ``abs`` in flooding; empty if
            none.
        picks: name of an operation that picks some samples of a batch, like ``topk``; empty if none.
        anywhere: whether there is such an operation, or one with a kink for each sample alone.
    """

    of_batch: str = ""
    picks: str = ""
    anywhere: bool = False


def kinks(loss: Tensor, edges: Sequence[Edge], values: Sequence[Tensor], size: int) -> Kinks:
    """Find kinks on the paths between ``loss`` and ``edges``, by names of operations and shapes of their results.

    Args:
        loss: the returned loss.
        edges: edges of the parts that it is a function of.
        values: the tensors at these edges: rows of samples, or one number for all of them.
        size: B; with one sample nothing can be found.
    """
    root, found = edge_of(loss), Kinks()
    if root is None or size == 1:
        return found
    numbers = {edge for edge, value in zip(edges, values, strict=True) if not value.dim()}
    for node in ways(root, set(edges)):
        name = node.name().partition("Backward")[0]
        found = found._replace(anywhere=found.anywhere or name.startswith((*_KINKS, *_ROW_BY_ROW)))
        if not name.startswith(_KINKS) or (_is_by_sample(node, size) and not _sorts_samples(node, name)):
            continue
        below = ways((node, 0), set(edges))
        mixes = any(other.name().startswith(_MIXES) for other in below) or any(
            following in numbers for other in below for following in other.next_functions
        )
        if mixes:
            found = found._replace(of_batch=name.lower())
        elif name.startswith(_PICKS):
            found = found._replace(picks=name.lower())
    return found


def _is_by_sample(node: Any, size: int) -> bool:
    """Whether an operation gave one row per sample, or nothing is known of what it gave."""
    shapes = [made.shape for made in getattr(node, "_input_metadata", ())]
    return not shapes or any(len(shape) and int(shape[0]) % size == 0 for shape in shapes)


def _sorts_samples(node: Any, name: str) -> bool:
    """Whether the operation sorted the samples by their values."""
    dims = len(node._input_metadata[0].shape) if name == "Sort" and getattr(node, "_input_metadata", ()) else 0
    return bool(dims) and (dims == 1 or getattr(node, "_saved_dim", 1) % 2**64 in (0, 2**64 - dims))


def why_not_linear(loss: Tensor, edges: Sequence[Edge], values: Sequence[Tensor], size: int) -> str:
    """Say why ``loss`` is not a linear function of the tensors at ``edges``; empty if it is.

    A kink in each sample's own loss is allowed, because a sample is on the same side of it in every batch.

    Args:
        loss: the returned loss.
        edges: edges of the parts that it should be a linear function of.
        values: the tensors at these edges.
        size: B, samples in the batch.
    """
    root = edge_of(loss)
    for node in [] if root is None else ways(root, set(edges)):
        # The names of torch's own operations end in a number, and they support a second derivative. Anything else is a custom function
        # (Python, C++ or compiled), which may be differentiable only once or hide what it depends on from the graph
        name = node.name()
        if not (name[-1].isdigit() or name.endswith("CopySlices") or name.startswith(_KNOWN)):
            return f"it goes through {name.removesuffix('Backward')}, of which nothing shows that it is linear"
    if not _has_no_curvature(loss, edges, values):
        return "it is no linear function"
    turn = kinks(loss, edges, values, size).of_batch
    return f"it turns by {turn} at a number of all samples, as in flooding{KINKED}" if turn else ""


@torch.enable_grad()
def _has_no_curvature(loss: Tensor, edges: Sequence[Edge], values: Sequence[Tensor]) -> bool:
    """Whether the gradient at ``edges`` is independent of ``values``: the second derivative in a random direction is zero."""
    inputs = gradient_edges(edges)
    try:
        first = gradients(loss, edges, create_graph=True)
        curved = [(g, value) for g, value in zip(first, values, strict=True) if g is not None and g.requires_grad]
        if not curved:
            return True
        generator = torch.Generator().manual_seed(0)
        steps = [value.detach().nan_to_num(0, 0, 0) for _, value in curved]
        # where all values are 0 the step must not be 0
        steps = [step if step.any() else torch.ones_like(step) for step in steps]
        directions = [step * torch.rand(step.shape, generator=generator).to(step) for step in steps]
        terms = ((g * direction).sum() for (g, _), direction in zip(curved, directions, strict=True))
        along = sum(terms, start=torch.zeros((), device=loss.device))
        second = torch.autograd.grad(along, inputs, retain_graph=True, allow_unused=True)
    except RuntimeError:  # not twice differentiable, so the gradient does depend on the input
        return False
    size = max(float(g.detach().abs().max()) for g, _ in curved)
    return all(g is None or float(g.abs().max()) <= 1e-4 * size for g in second)
