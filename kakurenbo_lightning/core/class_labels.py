"""The class of each sample, where a data set holds it beside its samples."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from kakurenbo_lightning.core.seeded_dataset import num_samples

ATTRIBUTES = ("targets", "labels", "y")


def targets_of(dataset: Dataset) -> Tensor | None:
    """Class of each sample of a data set, ``int64[N]`` on the CPU, or ``None`` when nothing says it without loading samples.

    Found in the attribute ``targets``, ``labels`` or ``y`` (torchvision's data sets have one), unless a ``target_transform`` changes
    them; in the one tensor of a ``TensorDataset``, after the first, that can be classes; and through ``Subset``, ``ConcatDataset``
    and wrappers with a ``dataset``.
    """
    if isinstance(dataset, Subset):
        inner = targets_of(dataset.dataset)
        return None if inner is None else inner[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        parts = [targets_of(part) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        return torch.cat(known) if len(known) == len(parts) else None
    if isinstance(dataset, TensorDataset):
        found = [_classes(tensor, len(dataset)) for tensor in dataset.tensors[1:]]
        found = [targets for targets in found if targets is not None]
        return found[0] if len(found) == 1 else None
    if getattr(dataset, "target_transform", None) is not None:
        return None
    for name in ATTRIBUTES:
        if (targets := _classes(getattr(dataset, name, None), num_samples(dataset))) is not None:
            return targets
    inner = getattr(dataset, "dataset", None)
    return targets_of(inner) if isinstance(inner, Dataset) and num_samples(inner) == num_samples(dataset) else None


def _classes(values: object, count: int) -> Tensor | None:
    """``values`` as ``int64[count]`` when they are that many integers."""
    if not isinstance(values, (list, tuple, np.ndarray, Tensor)) or len(values) != count:
        return None
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        return None
    is_class = tensor.dim() == 1 and not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool
    return tensor.long().cpu() if is_class and (count == 0 or int(tensor.min()) >= 0) else None
