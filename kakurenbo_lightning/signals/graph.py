"""Questions to the autograd graph of a loss: what it is made of, and how it depends on that."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

Edge = tuple[Any, int]  # a node of the graph, and the number of one of its outputs
FEW_NODES = 512  # nodes to visit between a loss and its parts before the search is given up

# nodes that may hide parameters, because their inner graph is invisible from outside
_OPAQUE = ("Checkpoint", "Compiled")
_ELEMENTWISE = ("Pow", "Mul", "Abs", "Sub", "Add", "Div", "Neg", "Exp", "View", "Reshape", "ToCopy", "Clone", "Unsafe", "Alias")


def edge_of(tensor: Tensor) -> Edge | None:
    """The edge that ``tensor`` comes from now (a change in place moves it to another edge); ``None`` for a leaf or without a graph."""
    node = tensor.grad_fn
    return None if node is None else (node, tensor.output_nr)


def root_of(loss: Tensor) -> Edge | None:
    """The edge of a returned loss, below the node that DistributedDataParallel puts around a step's outputs."""
    edge = edge_of(loss)
    while edge is not None and "DDPSink" in edge[0].name():
        following = edge[0].next_functions
        edge = following[edge[1]] if edge[1] < len(following) and following[edge[1]][0] is not None else None
    return edge


def is_hidden(root: Edge) -> bool:
    """Whether the graph of the loss is invisible because ``torch.compile`` made it."""
    return "Compiled" in root[0].name()


def reduced_by(root: Edge) -> tuple[str, Edge] | None:
    """``("mean" or "sum", edge of the rows)`` if the loss is exactly that of all elements of one tensor, else ``None``."""
    name = root[0].name()
    if name.startswith(("MeanBackward", "SumBackward")):
        return name[: name.index("B")].lower(), root[0].next_functions[0]
    return None


class Frontier(NamedTuple):
    """The result of a search down the graph from a loss.

    Attributes:
        edges: candidates that were found, the nearest first.
        complete: whether no path leads past all of them to a parameter.
        passed: names of the nodes between the loss and the edges, which describe the form of the function.
    """

    edges: list[Edge]
    complete: bool
    passed: tuple[str, ...]


def frontier(root: Edge, candidates: Collection[Edge], limit: int | None = None) -> Frontier:
    """Find the first of ``candidates`` on every path down from ``root``, visiting at most ``limit`` nodes."""
    found: dict[Edge, None] = {}
    complete, waiting, visited, passed = True, deque([root]), set(), []
    while waiting:
        edge = waiting.popleft()
        if edge in candidates:
            found[edge] = None
            continue
        node = edge[0]
        if node in visited:
            continue
        visited.add(node)
        name = node.name()
        passed.append(name)
        if hasattr(node, "variable") or any(word in name for word in _OPAQUE):
            complete = False
        if limit is not None and len(visited) >= limit:
            return Frontier(list(found), False, tuple(passed))
        waiting.extend(following for following in node.next_functions if following[0] is not None)
    return Frontier(list(found), complete, tuple(passed))


def depends_on_parameters_alone(rows: Tensor) -> bool:
    """Whether ``rows`` is an elementwise function of one parameter (a weight penalty), so that its rows are no samples."""
    waiting, visited, leaves = [rows.grad_fn], 0, set()
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        visited += 1
        variable = getattr(node, "variable", None)  # only leaves of the graph have it
        if variable is not None:
            leaves.add(variable)
        elif visited > 32 or not node.name().startswith(_ELEMENTWISE):
            return False
        waiting.extend(following for following, _ in node.next_functions)
    return len(leaves) == 1 and leaves.pop().numel() == rows.numel()


def gradient_edges(edges: Sequence[Edge]) -> list[GradientEdge]:
    """Convert ``edges`` to the ``GradientEdge`` objects that ``torch.autograd.grad`` accepts as inputs."""
    return [GradientEdge(*edge) for edge in edges]


@contextlib.contextmanager
def _hooks_aside(tensor: Tensor) -> Iterator[None]:
    """Take the tensor's own backward hooks away inside, because DeepSpeed's on the loss reduce gradients and divide the loss's."""
    hooks = tensor._backward_hooks
    kept = dict(hooks or {})
    if hooks is not None:
        hooks.clear()
    try:
        yield
    finally:
        if hooks is not None:
            hooks.update(kept)


def gradients(loss: Tensor, edges: Sequence[Edge], create_graph: bool = False) -> list[Tensor | None]:
    """The gradient of ``loss`` with respect to each of ``edges``, by a backward pass over the nodes between.

    If one edge was made from another, as in ``(losses * exp(-a)).mean() + a.mean()``, its gradient does not flow on to that other one.

    Returns:
        One gradient per edge; ``None`` where the loss does not depend on it.
    """
    with contextlib.ExitStack() as stopped:
        stopped.enter_context(_hooks_aside(loss))
        for node, output in dict.fromkeys(edges) if len(edges) > 1 else ():
            handle = node.register_prehook(lambda given, output=output: (*given[:output], None, *given[output + 1 :]))
            stopped.callback(handle.remove)
        return list(
            torch.autograd.grad(loss, gradient_edges(edges), retain_graph=True, create_graph=create_graph, allow_unused=True)
        )


@contextlib.contextmanager
def from_the_beginning(frozen: Callable[[], Any]) -> Iterator[None]:
    """Enable gradients, but freeze the network, so that a graph starts only at the parts of the loss."""
    with torch.enable_grad(), frozen():
        yield


def leaves(parts: Any, depth: int = 4) -> Iterator[Tensor]:
    """Yield the tensors in nested dicts, lists, tuples and attributes of objects, down to ``depth`` levels."""
    if isinstance(parts, Tensor):
        yield parts
    elif depth and isinstance(parts, Mapping):
        for part in parts.values():
            yield from leaves(part, depth - 1)
    elif depth and isinstance(parts, (list, tuple)):
        for part in parts:
            yield from leaves(part, depth - 1)
    elif depth and hasattr(parts, "__dict__"):
        for part in vars(parts).values():
            yield from leaves(part, depth - 1)
