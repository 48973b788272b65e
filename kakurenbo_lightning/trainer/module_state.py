"""What a scoring pass changes in a module beside its metrics: buffers are put back, the rest is named."""

from __future__ import annotations

import contextlib
import random
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torchmetrics import Metric

from kakurenbo_lightning.core.distributed import rank_zero_warn
from kakurenbo_lightning.trainer.sharded import local

LARGE = 1 << 28  # bytes of a buffer whose copy goes to the host
SMALL = 1 << 20  # bytes of a buffer that is copied in every step
LONGEST = 1000  # so many values of a list are compared, or bytes of an array

Place = tuple[nn.Module, str]  # where a buffer is registered


class ModuleState:
    """Puts back the buffers that scoring passes move, and warns once of what else they change.

    A pass runs the user's ``training_step``, which may fill a queue, count steps or keep outputs. A thorough pass, and the first one over a
    module, copies every buffer and learns which ones it moved; other passes copy these alone, and notice by its version number when another
    one has moved: it is named, and put back from the next pass on.
    """

    def __init__(self) -> None:
        # of each module that was scored, which buffers of which of its parts moved; the keys must not keep the module alive
        self._moved: WeakKeyDictionary[nn.Module, _Moved] = WeakKeyDictionary()
        self._named: set[str] = set()

    @contextlib.contextmanager
    def kept(self, module: pl.LightningModule, parts: list[nn.Module], thorough: bool, but_norms: bool) -> Iterator[None]:
        """Run a scoring pass over ``module`` inside, and put back afterwards what it moved.

        Args:
            module: whose state is kept.
            parts: it and its submodules.
            thorough: copy every buffer, and compare parameters and plain attributes too.
            but_norms: running statistics of normalisation layers are meant to move.
        """
        thorough = thorough or module not in self._moved
        moved = self._moved.setdefault(module, _Moved())
        kept: list[tuple[Place, Tensor | None, Tensor | None]] = []  # the buffer and its copy
        watched: list[tuple[Place, Tensor | None, int]] = []  # the buffer and its version
        for place, buffer in _buffers(parts):
            if but_norms and isinstance(place[0], _NormBase):
                continue
            if thorough or place in moved:
                kept.append((place, buffer, _copy(buffer)))
            else:
                watched.append((place, buffer, _version(buffer)))
        rest = _Rest(module, parts) if thorough else None
        try:
            yield
        finally:
            for place, buffer, copy in kept:
                if not thorough or _differs(place, buffer, copy):
                    moved.add(place)
                    _put_back(place, buffer, copy)
            late = [place for place, buffer, version in watched if _now(place) is not buffer or _version(buffer) != version]
            for place in late:
                moved.add(place)
            self._warn(module, [_name(module, place) for place in late] + (rest.changed() if rest is not None else []))

    def _warn(self, module: nn.Module, changed: list[str]) -> None:
        new = [name for name in changed if name not in self._named]
        self._named.update(new)
        if new:
            rank_zero_warn(
                f"a scoring pass changed {', '.join(new)} of {type(module).__name__}: it runs training_step (or sample_outputs) on "
                "samples that are not trained. Buffers that are known to move are put back, these were not. Change them in "
                "on_train_batch_end, or under `if self.trainer.training:`, which is False in scoring passes"
            )


class BufferCopies:
    """The buffers of a module as they were at the last :meth:`update`, of those that its ``state_dict`` holds.

    Args:
        module: whose buffers; parts that come later are left out.
    """

    def __init__(self, module: nn.Module) -> None:
        self._places = [
            (f"{prefix}.{name}" if prefix else name, (part, name))
            for prefix, part in module.named_modules()
            if not isinstance(part, torch.jit.ScriptModule)
            for name in part._buffers
            if name not in part._non_persistent_buffers_set
        ]
        self._kept: dict[str, tuple[Tensor | None, int, Tensor | None]] = {}  # the buffer, its version and its copy

    def update(self) -> None:
        """Copy the buffers that may have changed since: small ones, as batch norm counts no version, and large ones of another version."""
        buffers, copies = [], []
        for name, place in self._places:
            buffer = _now(place)
            last, version, copy = self._kept.get(name, (None, -1, None))
            large = buffer is None or buffer.nbytes > SMALL
            if buffer is None or (large and buffer is last and _version(buffer) == version):
                continue
            if copy is None or copy.shape != buffer.shape or copy.dtype != buffer.dtype:
                copy = _copy(buffer.detach())
            else:
                buffers.append(buffer.detach())
                copies.append(copy)
            self._kept[name] = buffer, _version(buffer), copy
        if copies:
            torch._foreach_copy_(copies, buffers)  # pyright: ignore[reportPrivateImportUsage]

    def put_into(self, state: dict[str, Any]) -> None:
        """Put the copies into a ``state_dict`` of the module."""
        for name, (_, _, copy) in self._kept.items():
            if copy is not None and isinstance(state.get(name), Tensor):
                state[name] = copy.clone()


class _Moved:
    """A set of places that keeps none of their modules alive."""

    def __init__(self) -> None:
        self._names: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()

    def __contains__(self, place: Place) -> bool:
        return place[1] in self._names.get(place[0], ())

    def add(self, place: Place) -> None:
        self._names.setdefault(place[0], set()).add(place[1])


def _buffers(parts: list[nn.Module]) -> Iterator[tuple[Place, Tensor | None]]:
    """Every buffer; those of torchmetrics are put back with their metric, and those of TorchScript are out of reach."""
    for part in parts:
        if part._buffers and not isinstance(part, (Metric, torch.jit.ScriptModule)):
            for name, buffer in part._buffers.items():
                yield (part, name), buffer


def _copy(buffer: Tensor | None) -> Tensor | None:
    """A copy of a buffer; a large one is copied to the host, because a second one might not fit on the device."""
    if buffer is None:
        return None
    return buffer.clone() if buffer.nbytes <= LARGE else buffer.to("cpu", copy=True)


def _now(place: Place) -> Tensor | None:
    return place[0]._buffers.get(place[1])


def _name(module: nn.Module, place: Place) -> str:
    prefix = next(name for name, part in module.named_modules() if part is place[0])
    return f"{prefix}.{place[1]}" if prefix else place[1]


def _version(tensor: Tensor | None) -> int:
    return 0 if tensor is None or tensor.is_inference() else tensor._version


def _differs(place: Place, buffer: Tensor | None, copy: Tensor | None) -> bool:
    now = _now(place)
    if now is not buffer or now is None or copy is None:
        return now is not buffer
    return now.dtype != copy.dtype or not torch.equal(now.to(copy.device), copy)


def _put_back(place: Place, buffer: Tensor | None, copy: Tensor | None) -> None:
    """The buffer is the tensor it was, with the values it had; the copy takes the place of one that was reshaped."""
    owner, name = place
    if buffer is not None and copy is not None and buffer.shape == copy.shape:
        with torch.no_grad():
            buffer.copy_(copy)
        owner._buffers[name] = buffer
    else:
        owner._buffers[name] = None if buffer is None or copy is None else copy.to(buffer.device)


@contextlib.contextmanager
def attributes_kept(module: pl.LightningModule) -> Iterator[None]:
    """Put back what the user's code assigns to attributes of ``module`` and its parts, and frozen parameters (of a teacher).

    The content of lists, dicts, sets and deques is put back too, two levels down, and hooks of modules with the flag that says that they
    are there (transformers installs some when they are first needed). Buffers and metrics are put back elsewhere; what lies deeper, in
    objects of the user's, is not.
    """
    frozen = [parameter for parameter in module.parameters() if not parameter.requires_grad and not is_lazy(parameter)]
    if sum(parameter.nbytes for parameter in frozen) > LARGE:  # a backbone that is never changed; a change would be named
        frozen = []
    weights = [(parameter, parameter.detach().clone()) for parameter in frozen]
    own = {name for name in vars(pl.LightningModule()) if "hooks" not in name}  # Lightning's, not the user's
    parts = [part for part in module.modules() if not isinstance(part, Metric)]
    before = [(part, {name: value for name, value in vars(part).items() if name not in own}) for part in parts]
    contents = [found for _, attributes in before for value in attributes.values() for found in _containers(value)]
    try:
        yield
    finally:
        for part, attributes in before:
            for name in [name for name in vars(part) if name not in own and name not in attributes]:
                del vars(part)[name]
            vars(part).update(attributes)
        for parameter, weight in weights:
            if not torch.equal(parameter, weight):  # not through autograd, which may have saved the parameter for a step
                parameter.data.copy_(weight)
        for value, copy in contents:
            value.clear()
            (value.extend if isinstance(value, list | deque) else value.update)(copy)


@contextlib.contextmanager
def norms_kept(module: nn.Module) -> Iterator[None]:
    """Put back the running statistics of normalisation layers, which a run that is no part of a scoring pass must not move."""
    found = [(place, buffer) for place, buffer in _buffers(list(module.modules())) if isinstance(place[0], _NormBase)]
    kept = [(place, buffer, _copy(buffer)) for place, buffer in found if buffer is not None and not is_lazy(buffer)]
    try:
        yield
    finally:
        for place, buffer, copy in kept:
            if _differs(place, buffer, copy):
                _put_back(place, buffer, copy)


def _containers(value: Any, depth: int = 2) -> Iterator[tuple[Any, Any]]:
    """Containers that ``value`` is or holds, each with a copy; of a long one only itself."""
    if type(value) not in (list, dict, OrderedDict, set, deque):
        return
    yield value, value.copy()
    if depth > 1 and len(value) <= LONGEST:
        for part in list(value.values() if isinstance(value, dict) else value):
            yield from _containers(part, depth - 1)


# --- what is not put back


class _Rest:
    """Parameters and plain attributes of a module, as they were when this was made."""

    def __init__(self, module: pl.LightningModule, parts: list[nn.Module]) -> None:
        self._module, self._parts = module, parts
        self._own = vars(pl.LightningModule()).keys()  # Lightning's, not the user's
        self._alive: list[Any] = []  # what was seen: its identity is given to nothing else meanwhile
        self._before = self._marks()

    def changed(self) -> list[str]:
        """Names of the parameters and attributes that are not what they were, or are new."""
        now = self._marks()
        return [name for name, mark in now.items() if name not in self._before or self._before[name] != mark]

    def _marks(self) -> dict[str, Any]:
        marks: dict[str, Any] = {}
        for name, parameter in self._module.named_parameters():
            if parameter.is_floating_point() and not parameter.is_meta and not is_lazy(parameter):
                exact = torch.float32 if parameter.device.type == "mps" else torch.float64
                marks[name] = repr(float(local(parameter.detach()).sum(dtype=exact)))
        names = {part: name for name, part in self._module.named_modules()}
        for part in self._parts:
            if not isinstance(part, Metric):
                prefix = f"{names[part]}." if names[part] else ""
                for name, value in vars(part).items():
                    if name not in self._own and not hasattr(nn.Module, name) and not name.startswith("__"):  # torch's own
                        marks[prefix + name] = self._mark(value, 2)
        return marks

    def _mark(self, value: Any, depth: int) -> Any:
        """A mark of ``value`` that differs when it was replaced, or changed so far as can be seen ``depth`` levels down."""
        if isinstance(value, bool | int | float | complex | str | bytes | None):
            return repr(value)
        self._alive.append(value)
        inside: Any = None
        if isinstance(value, Tensor):
            inside = _version(value)
        elif isinstance(value, np.ndarray):
            inside = value.tobytes() if value.nbytes <= LONGEST and not value.dtype.hasobject else None
        elif isinstance(value, torch.Generator):
            inside = value.get_state().tolist()
        elif isinstance(value, random.Random):
            inside = value.getstate()
        elif isinstance(value, np.random.Generator):
            inside = repr(value.bit_generator.state)
        elif isinstance(value, Mapping) and depth:
            inside = len(value), [(repr(key), self._mark(part, depth - 1)) for key, part in list(value.items())[:LONGEST]]
        elif isinstance(value, list | tuple | set | frozenset | deque):
            inside = len(value), [self._mark(part, depth - 1) for part in list(value)[: LONGEST if depth else 0]]
        elif depth and hasattr(value, "__dict__") and not callable(value):
            inside = {name: self._mark(part, 0) for name, part in vars(value).items()}
        return id(value), inside
