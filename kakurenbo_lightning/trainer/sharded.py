"""Parameters that are sharded over processes, by FSDP2 (``fully_shard``) or tensor parallelism: what is done to them outside a step."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def _fully_sharded(parts: Iterable[nn.Module]) -> list[Any]:
    """The ``parts`` that ``fully_shard`` was applied to; none where nobody has imported it."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(fsdp, "FSDPModule", None)
    return [] if kind is None else [part for part in parts if isinstance(part, kind)]


def reshard(parts: Iterable[nn.Module]) -> None:
    """Put the shards of parameters in the place of whole ones, which a forward pass without a backward pass leaves behind."""
    for part in _fully_sharded(parts):
        part.reshard()


@contextlib.contextmanager
def resharded(parts: Iterable[nn.Module]) -> Iterator[None]:
    """Run what is inside, then :func:`reshard` the ``parts``."""
    try:
        yield
    finally:
        reshard(parts)


def settle(parts: Iterable[nn.Module]) -> None:
    """Let FSDP2 install at once what it else does in the first forward pass, which may be one that must leave no trace; collective."""
    for part in _fully_sharded(parts):
        part.unshard()
        part.reshard()


def is_sharded(tensor: object) -> bool:
    """Whether it is a distributed tensor, of which this process has a part."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """This process's part of a distributed tensor; another one as it is."""
    part: Any = tensor
    return part.to_local() if is_sharded(tensor) else tensor


_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")  # of torch.compile and activation checkpointing


def _sharded_names(module: nn.Module) -> dict[str, str]:
    """The names of the sharded parameters, and what torch calls each in a state dict, where wrappers within ``module`` have no part."""
    names = {name: name for name, parameter in module.named_parameters() if is_sharded(parameter)}
    for wrapper in _WRAPPERS:
        names = {name: saved.replace(wrapper, "") for name, saved in names.items()}
    return names


def whole_parameters(module: nn.Module) -> dict[str, Tensor]:
    """The sharded parameters of ``module``, each whole and on the CPU, on the first process; nothing on others. Collective."""
    names = _sharded_names(module)
    if not names:
        return {}
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    found: dict[str, Any] = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {name: found[saved] for name, saved in names.items()} if found else {}  # there are none on other processes


def load_whole_parameters(module: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    """Take over :func:`whole_parameters`, of the first process. Collective."""
    names = _sharded_names(module)
    if not names:
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    first = torch.distributed.get_rank() == 0
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
    whole: dict[str, Any] = {saved: parameters[name] for name, saved in names.items()} if first else {}
    set_model_state_dict(module, whole, options=options)
