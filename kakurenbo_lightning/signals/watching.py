"""Sees the calls of a step that may have made its loss while the step runs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, MethodWrapperType, WrapperDescriptorType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._guards import TracingContext
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode

from kakurenbo_lightning.signals.criteria import CRITERIA, CriterionCall
from kakurenbo_lightning.signals.criterion_module import ModuleCall
from kakurenbo_lightning.signals.graph import Edge, edge_of, gradients, root_of
from kakurenbo_lightning.signals.reduction import OF_TENSOR, REDUCTIONS, methods_replaced, rows_reduced

Key = tuple[str, str, int]  # kind, name, and number of the call among those of this kind and name


@dataclass(eq=False, slots=True)
class LossCall:
    """One call whose result may be the loss or a part of it.

    Attributes:
        key: kind (``"criterion"``, ``"module"`` or ``"reduction"``), name, and which call of these it was, from 0.
        named: the call can be seen by replacing functions by name, which is the cheapest way.
        result: what the call returned to the step.
        rows: ``[n, ...]``, where there is one number or more for each row: an unreduced result, or what was reduced; else ``None``.
        edge: autograd edge of ``rows``, or of ``result`` if there are no rows, at the time of the call; ``None`` without a graph.
        arguments: arguments of the criterion or loss module.
        elements: for a criterion or module that gave one number, the values of which it is the mean or sum, ``[n, ...]``, once
            evaluated.
        original: the tensor that ``rows`` is a copy of, or ``rows`` itself.
        version: how often ``original`` had been changed in place at the time of the call.
        number: a copy of a scalar ``result``, if copies are kept, because the step may add to it in place.
        result_version: how often ``result`` had been changed in place at the time of the call.
        graph: whether ``elements`` keep their graph.
    """

    key: Key
    named: bool
    result: Tensor
    rows: Tensor | None
    edge: Edge | None
    arguments: CriterionCall | ModuleCall | None = None
    elements: Tensor | None = None
    original: Tensor | None = None
    version: int = 0
    number: Tensor | None = None
    result_version: int = 0
    graph: bool = False

    @property
    def kind(self) -> str:
        return self.key[0]

    @property
    def name(self) -> str:
        return self.key[1]

    @property
    def described(self) -> str:
        """Name and shape of the call, for messages."""
        return f"a {self.name} of {list(self.known_rows.shape)}" if self.kind == "reduction" else self.name

    @property
    def known_rows(self) -> Tensor:
        """The :attr:`rows` of a call that is known to have some."""
        assert self.rows is not None
        return self.rows

    @property
    def values(self) -> Tensor:
        """The tensor at :attr:`edge`: the rows, or else the result."""
        if self.rows is not None:
            return self.rows
        return self.result if self.number is None else self.number

    @property
    def known_edge(self) -> Edge:
        """The :attr:`edge` of a call that is known to have a graph."""
        assert self.edge is not None
        return self.edge

    @property
    def criterion(self) -> CriterionCall:
        """The :attr:`arguments` of a call that is known to be of a functional criterion."""
        assert isinstance(self.arguments, CriterionCall)
        return self.arguments

    @property
    def module(self) -> ModuleCall:
        """The :attr:`arguments` of a call that is known to be of a loss module."""
        assert isinstance(self.arguments, ModuleCall)
        return self.arguments

    @property
    def given(self) -> CriterionCall | ModuleCall:
        """The :attr:`arguments` of a call that is not a reduction."""
        assert self.arguments is not None
        return self.arguments

    @property
    def changed_in_place(self) -> bool:
        """Whether the step has changed the rows in place since the call."""
        if self.rows is None:
            return _version(self.result) != self.result_version
        return self.original is not None and _version(self.original) != self.version

    def gave(self, loss: Any) -> bool:
        """Whether ``loss`` is the result of this call, with nothing added to it in place."""
        return self.result is loss and _version(self.result) == self.result_version

    def evaluate(self) -> Tensor:
        """Return :attr:`elements`, which are computed on the first call."""
        if self.elements is None:
            with torch.enable_grad() if self.graph else torch.no_grad():
                self.elements = self.given.elements()
        return self.elements


@dataclass(frozen=True)
class Sight:
    """What to watch during a step.

    Attributes:
        criteria: names of functions of ``torch.nn.functional`` to replace.
        reductions: whether the mean and sum methods of tensors are replaced.
        mode: see functions by whatever name they are called, by a ``TorchFunctionMode`` (about a microsecond for each torch call).
        modules: loss modules: all that are called, or these.
    """

    criteria: tuple[str, ...] = ()
    reductions: bool = False
    mode: bool = False
    modules: bool | tuple[nn.Module, ...] = ()


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; 0 for tensors of inference mode, which does not count."""
    return 0 if tensor.is_inference() else tensor._version


_FUNCTIONS = {function.__name__: function for function in CRITERIA}
# torch's own functions, taken at import, before any step could patch them
_FUNCTIONALS = {name: f for name, f in vars(F).items() if isinstance(f, FunctionType)}
_TORCHS = frozenset(_FUNCTIONALS.values())
NOTHING = Sight()
CRITERIA_BY_NAME = Sight(tuple(_FUNCTIONS))
EVERYTHING = Sight(tuple(_FUNCTIONS), reductions=True, mode=True, modules=True)


@dataclass(eq=False, slots=True)
class Recording:
    """The calls of one run of the step.

    Attributes:
        size: B, samples in the batch.
        graph: recomputed elements keep their graph, so that loss weights can act on them.
        leaves: calls at which a graph starts in a run that otherwise makes none.
        enclosed: such a graph has started inside a block of the step that enables gradients itself and may end with that block, as the
            ``update`` of a torchmetrics metric does.
        clone: rows are copied, because the step changes them in place.
        calls: the calls, in order.
        batch_statistics: a BatchNorm layer has used the statistics of the batch.
        low_precision: at least a part of the step computes in half precision; only recorded while attribution is tested.
        random: states of all random streams after the run; only recorded while attribution is tested.
        busy: a call is being made or evaluated, so calls inside it are ignored.
        traced: calls made inside ``torch.compile``: the function, its arguments, its result, and the elements of a criterion.
    """

    size: int
    graph: bool = False
    leaves: frozenset[Key] = frozenset()
    clone: bool = False
    calls: list[LossCall] = field(default_factory=list)
    batch_statistics: bool = False
    low_precision: bool = False
    random: dict[str, Any] = field(default_factory=dict)
    busy: bool = False
    enclosed: bool = False
    traced: list[tuple[Any, ...]] = field(default_factory=list)
    _counts: dict[tuple[str, str], int] = field(default_factory=dict)
    _begun: bool = False

    def _key(self, kind: str, name: str) -> Key:
        number = self._counts.get((kind, name), 0)
        self._counts[kind, name] = number + 1
        return kind, name, number

    def _leaf(self, tensor: Tensor, key: Key) -> Tensor:
        """Return ``tensor``, or, for a call among :attr:`leaves`, a copy that starts a graph; gradients then stay on."""
        if key not in self.leaves:
            return tensor
        self.enclosed |= torch.is_grad_enabled() and not self._begun
        if tensor.requires_grad:
            return tensor
        self._begun = True
        torch.set_grad_enabled(True)
        return tensor.detach().requires_grad_().clone()  # clone: autograd forbids in-place changes of a leaf

    def lost(self, loss: Any) -> bool:
        """Whether ``loss`` lacks its graph, or a part of it, because gradients were switched off after the graph had started."""
        if not self.enclosed or not isinstance(loss, Tensor):
            return False
        edges = [call.known_edge for call in self.calls if call.key in self.leaves and call.edge is not None]
        return root_of(loss) is None or any(gradient is None for gradient in gradients(loss, edges))

    def _add(self, key: Key, named: bool, result: Tensor, rows: Tensor | None, arguments: Any = None) -> LossCall:
        edge = edge_of(result if rows is None else rows)
        call = LossCall(key, named, result, rows, edge, arguments, original=rows, graph=self.graph)
        call.result_version = _version(result)
        if rows is not None:
            call.version = _version(rows)
        if self.clone:
            call.rows, call.number = (None, result.detach().clone()) if rows is None else (rows.clone(), None)
        self.calls.append(call)
        return call

    def criterion(self, function: Callable[..., Tensor], named: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Make a criterion call, and compute its elements at once, in the call's precision and before its inputs can change."""
        if torch.compiler.is_dynamo_compiling():
            return self._trace(function, named, args, kwargs)
        if _compiler_works():
            return function(*args, **kwargs)
        self.busy = True
        try:
            result = function(*args, **kwargs)
            if _is_wrapped(result):  # a tensor inside torch.vmap exists only there and cannot be kept
                return result
            arguments = CriterionCall(function, args, kwargs)
            key = self._key("criterion", arguments.name)
            making_graph = torch.is_grad_enabled()
            result = self._leaf(result, key)
            rows = result if result.dim() or arguments.reduction == "none" else None
            call = self._add(key, named, result, rows, arguments)
            if rows is None and (result.requires_grad or not making_graph):
                with contextlib.suppress(Exception):  # the call may be no part of the loss: its error must not stop the step
                    call.evaluate()
            return result
        finally:
            self.busy = False

    def reduction(self, function: Callable[..., Tensor], named: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Make a call of a mean or sum, and record it if it reduces over the samples."""
        rows = None if _compiler_works() else rows_reduced(args, kwargs, self.size)
        if rows is None or _is_wrapped(rows):
            return function(*args, **kwargs)
        key = self._key("reduction", REDUCTIONS[function])
        rows = self._leaf(rows, key)
        args, kwargs = ((rows, *args[1:]), kwargs) if args else (args, {**kwargs, "input": rows})
        self.busy = True
        try:
            result = function(*args, **kwargs)
        finally:
            self.busy = False
        self._add(key, named, result, rows)
        return result

    def _trace(self, function: Callable[..., Tensor], named: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Make a criterion call inside ``torch.compile``. Dynamo traces this function, so it does as little as possible."""
        result, elements = function(*args, **kwargs), None
        if not result.dim():
            with nullcontext() if self.graph else torch.no_grad():
                elements = CriterionCall(function, args, kwargs).elements()
        self.traced.append((function, named, args, kwargs, result, elements))
        return result

    def take_traced(self) -> None:
        """Add the calls made inside ``torch.compile``, replacing those that an uncompiled backend has recorded already."""
        known = [tensor for *_, result, elements in self.traced for tensor in (result, elements)]
        self.calls = [call for call in self.calls if not any(call.result is tensor for tensor in known)]
        self._counts = {names: number for names, number in self._counts.items() if names[0] != "criterion"}
        for call in self.calls:
            call.key = self._key(*call.key[:2]) if call.kind == "criterion" else call.key
        for function, named, args, kwargs, result, elements in self.traced:
            arguments = CriterionCall(function, args, kwargs)
            call = self._add(self._key("criterion", arguments.name), named, result, result if result.dim() else None, arguments)
            call.elements = elements

    def module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
        """Record the call of a module; returns the tensor to hand to the step in place of ``output``, or ``None`` to keep it."""
        if self.busy or not ModuleCall.may_be_loss(args, kwargs, output, self.size, graph=not self.leaves):
            return None
        key = self._key("module", type(module).__name__)
        result = self._leaf(output, key)
        self._add(key, True, result, result if result.dim() else None, ModuleCall(module, args, kwargs, self.size))
        return result


_FUNCTORCH: Any = vars(torch._C)["_functorch"]


def _is_wrapped(tensor: Tensor) -> bool:
    """Whether a tensor exists only inside a ``torch.func`` transform."""
    return _FUNCTORCH.is_functorch_wrapped_tensor(tensor)


def _compiler_works() -> bool:
    """Whether this call is the compiler trying out its own code. In torch 2.6 only the tracing context shows that."""
    return torch.compiler.is_compiling() or TracingContext.try_get() is not None


class Watcher:
    """Replaces functions by name, enters function modes and hooks modules while a step runs, and undoes all of it afterwards."""

    def __init__(self) -> None:
        self._recording: Recording | None = None
        self._criteria = {f.__name__: self._replacement(f, Recording.criterion) for f in CRITERIA}
        self._reductions = {name: self._replacement(f, Recording.reduction) for name, f in OF_TENSOR.items()}

    @contextlib.contextmanager
    def watching(self, sight: Sight, recording: Recording) -> Iterator[Recording]:
        """Record the calls that are made inside this context in ``recording``."""
        self._recording = recording
        before = self._replace_functionals(sight.criteria)
        try:
            if sight.reductions or sight.mode or sight.modules or recording.leaves:
                with contextlib.ExitStack() as stack:
                    self._enter(sight, recording, stack)
                    yield recording
            else:
                yield recording
            if recording.traced:
                recording.take_traced()
        finally:
            for name, function in before.items():
                if F.__dict__.get(name) is self._criteria[name]:  # do not undo a patch that the step itself has made
                    F.__dict__[name] = function
            self._recording = None

    def _replace_functionals(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Put our functions into ``torch.nn.functional`` and return what was there."""
        functional = F.__dict__
        # keep another library's patch: the user chose to train with it
        before = {name: functional[name] for name in names if functional[name] is _FUNCTIONS[name]}
        for name in before:
            functional[name] = self._criteria[name]
        return before

    def _enter(self, sight: Sight, recording: Recording, stack: contextlib.ExitStack) -> None:
        """Enter the more expensive ways to watch: tensor methods, a function mode, module hooks."""
        if recording.leaves:
            stack.enter_context(torch.set_grad_enabled(torch.is_grad_enabled()))
        if sight.reductions:
            stack.enter_context(methods_replaced(self._reductions))
        if sight.mode:
            stack.enter_context(_Mode(recording, sight))
        if sight.modules is True:
            stack.callback(register_module_forward_hook(self._hook, with_kwargs=True).remove)
        elif sight.modules:
            for module in sight.modules:
                stack.callback(module.register_forward_hook(self._hook, with_kwargs=True).remove)

    def _hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return None if self._recording is None else self._recording.module(module, args, kwargs, output)

    def _replacement(self, function: Callable[..., Tensor], make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(function)
        def replaced(*args: Any, **kwargs: Any) -> Tensor:
            recording = self._recording
            if recording is None or recording.busy:
                return function(*args, **kwargs)
            return make(recording, function, True, args, kwargs)

        return replaced


class _Mode(TorchFunctionMode):
    def __init__(self, recording: Recording, sight: Sight) -> None:
        super().__init__()
        self._recording, self._sight = recording, sight

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, function = kwargs or {}, _original(func)
        if self._recording.busy:
            return function(*args, **kwargs)
        if function in CRITERIA:
            return self._recording.criterion(function, False, args, kwargs)
        if function is _FUNCTIONALS["batch_norm"] and (args[5] if len(args) > 5 else kwargs.get("training")):
            self._recording.batch_statistics = True
        if self._sight.reductions and function in REDUCTIONS:
            return self._recording.reduction(function, False, args, kwargs)
        return function(*args, **kwargs)


def _original(func: Any) -> Any:
    """The unpatched function. Functions of ``torch.nn.functional`` pass themselves on by name, and that name may be patched by now."""
    if isinstance(func, (BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType, MethodWrapperType)) or func in _TORCHS:
        return func
    return next((function for name, function in _FUNCTIONALS.items() if F.__dict__.get(name) is func), func)
