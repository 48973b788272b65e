"""Is a loss, as a function of what it is made of, the sum of what samples add to it?"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from kakurenbo_lightning.signals.graph import Edge, edge_of, gradient_edges

# functions of Python that are linear: those of torch's own that strategies put around tensors
_KNOWN = ("_DDPSink", "_AllReduce", "_AllGather", "_Reduce_Scatter", "_ToTorchTensor", "_FromTorchTensor", "Redistribute")


def ways(root: Edge, edges: Collection[Edge]) -> list[Any]:
    """The nodes on the ways from ``root`` down to ``edges``, each once; those that lead elsewhere are left out."""
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


def why_not_linear(loss: Tensor, edges: Sequence[Edge], values: Sequence[Tensor]) -> str:
    """Why ``loss`` is not, near where it is, a linear function of what it depends on through ``edges``; empty where it is one.

    Args:
        loss: the returned loss.
        edges: what it is taken to be a function of.
        values: the tensors that are there.
    """
    root = edge_of(loss)
    for node in [] if root is None else ways(root, set(edges)):
        # torch's own operations have numbers behind their names, and say how their gradient changes. Any other is a function of Python or
        # C++, or compiled, which may be differentiable once, or keep what it depends on where no graph leads
        name = node.name()
        if not (name[-1].isdigit() or name.endswith("CopySlices") or name.startswith(_KNOWN)):
            return f"it goes through {name.removesuffix('Backward')}, of which nothing shows that it is linear"
    return "" if _has_no_curvature(loss, edges, values) else "it is no linear function"


@torch.enable_grad()
def _has_no_curvature(loss: Tensor, edges: Sequence[Edge], values: Sequence[Tensor]) -> bool:
    """Whether the gradient at ``edges`` does not change with ``values``: a second derivative in a random direction is zero."""
    inputs = gradient_edges(edges)
    try:
        first = torch.autograd.grad(loss, inputs, retain_graph=True, create_graph=True, allow_unused=True)
        curved = [(g, value) for g, value in zip(first, values, strict=True) if g is not None and g.requires_grad]
        if not curved:
            return True
        generator = torch.Generator().manual_seed(0)
        steps = [value.detach().nan_to_num(0, 0, 0) for _, value in curved]
        # from zero on, a step of zero would lead nowhere
        steps = [step if step.any() else torch.ones_like(step) for step in steps]
        directions = [step * torch.rand(step.shape, generator=generator).to(step) for step in steps]
        terms = ((g * direction).sum() for (g, _), direction in zip(curved, directions, strict=True))
        along = sum(terms, start=torch.zeros((), device=loss.device))
        second = torch.autograd.grad(along, inputs, retain_graph=True, allow_unused=True)
    except RuntimeError:  # an operation that cannot be differentiated twice: its gradient depends on what it is given
        return False
    size = max(float(g.detach().abs().max()) for g, _ in curved)
    return all(g is None or float(g.abs().max()) <= 1e-4 * size for g in second)
