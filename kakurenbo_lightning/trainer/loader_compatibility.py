"""Every refusal of a train loader that sample selection cannot follow, the warnings beside them, and what is kept of its sampler."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from kakurenbo_lightning.core.distributed import rank_zero_warn
from kakurenbo_lightning.core.flavour import is_instance
from kakurenbo_lightning.core.sampler import SelectionSampler
from kakurenbo_lightning.core.seeded_dataset import num_samples
from kakurenbo_lightning.core.statistics import NoStatistics, SampleStatistics
from kakurenbo_lightning.core.universe import Universe
from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.methods.registry import available_methods, method_class
from kakurenbo_lightning.methods.settings import shown
from kakurenbo_lightning.trainer.arrivals import Arrivals, is_iterable_data
from kakurenbo_lightning.trainer.listed_order import ListedOrder


def only_loader(loaders: Any) -> Any:
    """The one loader of what ``train_dataloader`` returned: itself, or alone in a list, a dict or a CombinedLoader.

    Raises:
        ConflictError: several loaders, or none that gives batches.
    """
    loaders = getattr(loaders, "iterables", loaders)  # a CombinedLoader, which Lightning has under two names
    parts = tree_leaves(loaders)
    if len(parts) == 1 and (isinstance(parts[0], DataLoader) or is_iterable_data(parts[0])):
        return parts[0]
    kind = type(loaders).__name__
    raise ConflictError(
        f"train_dataloader={kind}: sample selection needs one torch.utils.data.DataLoader, not a {kind} of {len(parts)}; "
        "join the data sets with torch.utils.data.ConcatDataset and return one loader"
    )


def in_place_of(loaders: Any, loader: DataLoader) -> Any:
    """What ``train_dataloader`` returned, with ``loader`` in the place where :func:`only_loader` found the user's."""
    if is_instance(loaders, CombinedLoader):
        loaders = copy.copy(loaders)
        loaders.flattened = [loader]
        return loaders
    return tree_map(lambda part: loader, loaders)


def check_wrapped(loaders: Any, loader: DataLoader) -> None:
    """Raise ``ConflictError`` when the ``loader`` that ``selection.wrap`` returned is in a list or a dict, ``loaders``."""
    if getattr(loaders, "iterables", loaders) is not loader:
        raise ConflictError(
            f"train_dataloader={type(loaders).__name__}: selection.wrap(...) needs to be returned by itself; return the wrapped loader"
        )


def check_not_followed(loader: Any) -> None:
    """Raise ``ConflictError`` for a loader that follows a selection already."""
    if isinstance(getattr(loader, "sampler", None), (SelectionSampler, Arrivals)):
        raise ConflictError("this DataLoader already follows a selection; pass the original one, not trainer.train_dataloader")


def check_length(total: int, before: int) -> None:
    """Raise ``ConflictError`` when a data set of ``before`` samples has ``total`` now."""
    if total != before:
        raise ConflictError(
            f"the train data set has {total} samples now and had {before} before; samples are known by their index, so the data set must "
            "keep its length and order; use a new Trainer and SampleSelection for new data"
        )


def check_same_samples(fingerprints: tuple[str, str], universes: tuple[Universe, Universe]) -> None:
    """Raise ``ConflictError`` when a loader that takes the place of another one, each pair is (now, before), trains other samples."""
    what = None
    if fingerprints[0] != fingerprints[1]:
        what = "the train data set has other samples than before (compared by a hash of a few of them)"
    elif universes[0].digest != universes[1].digest:
        what = "the sampler of the train loader yields other samples of the data set than before"
    if what is not None:
        raise ConflictError(
            f"{what}, and samples are known by their index: new ones would be hidden by the losses of the old ones. Use a new Trainer and "
            "a new SampleSelection for new data, for each fold of a cross-validation too. Samples that only change their form (size, "
            "augmentation) may do so in the data set object that is there, which is not compared again"
        )


@dataclass(frozen=True)
class LoaderOrder:
    """What a train loader's sampler says of the order and the samples of an epoch.

    Attributes:
        shuffle: whether it shuffles.
        universe: the samples that it yields.
        batch_size: samples of a full batch.
        drop_last: whether an incomplete last batch is dropped.
        listed: the order of a sampler of the user's own; ``None`` for one whose place is taken.
    """

    shuffle: bool
    universe: Universe
    batch_size: int
    drop_last: bool = False
    listed: ListedOrder | None = None


def read_loader(loader: DataLoader, world_size: int, rank: int) -> LoaderOrder:
    """Check that a loader's order can be followed or replaced, and return what is kept of it.

    Args:
        loader: the user's.
        world_size: how many ranks train.
        rank: the rank of this process.

    Raises:
        ConflictError: naming the setting, its value and the fix.
    """
    _check_loader(loader)
    batches: Any = loader.batch_sampler
    if type(batches) is BatchSampler:
        if known := _read_sampler(batches.sampler, num_samples(loader.dataset), world_size, rank):
            return LoaderOrder(*known, batches.batch_size, batches.drop_last)
        if isinstance(batches.sampler, (RandomSampler, WeightedRandomSampler)):
            raise ConflictError(_sampler_refusal(batches.sampler))
    listed = ListedOrder(loader, world_size)
    return LoaderOrder(True, listed.universe, listed.batch_size, listed.drop_last, listed)


def _check_loader(loader: DataLoader) -> None:
    """Refuse a loader whose batches need not be its sampler's."""
    kind = type(loader)
    if num_samples(loader.dataset) == 0:
        raise ConflictError(
            f"the train data set, a {type(loader.dataset).__name__}, has length 0, so there is nothing to train; check where it reads its "
            "samples from, and what it filters out"
        )
    if loader.batch_sampler is None:
        raise ConflictError(
            "DataLoader(batch_size=None) is not allowed: samples must be batched by the loader; set batch_size, for example 128"
        )
    if getattr(loader, "in_order", True) is False:
        raise ConflictError(
            "DataLoader(in_order=False) is not allowed: the index of a sample comes from the order of the batches; "
            "use in_order=True"
        )
    if hasattr(loader, "load_state_dict"):
        raise ConflictError(
            f"{kind.__name__} keeps its own position, and the selection keeps it too; use torch.utils.data.DataLoader or torchdata's "
            "StatefulDataLoader itself, a resumed run goes on at the right batch"
        )
    own = [name for name in ("__iter__", "_get_iterator") if getattr(kind, name) is not getattr(DataLoader, name)]
    if own:
        raise ConflictError(
            f"{kind.__module__}.{kind.__qualname__} is a DataLoader with an {own[0]} of its own, which need not ask the sampler what is "
            "in a batch; use torch.utils.data.DataLoader, and do what it does to batches in collate_fn or in on_after_batch_transfer"
        )


def _read_sampler(sampler: Any, total: int, world_size: int, rank: int) -> tuple[bool, Universe] | None:
    """Whether a sampler shuffles, and what it yields of ``total`` samples; ``None`` for one that is not torch's, or repeats samples."""
    kind = type(sampler)
    if kind is SubsetRandomSampler:
        return True, Universe(total, _subset(sampler.indices, total))
    if kind is DistributedSampler:
        if (sampler.num_replicas, sampler.rank) != (world_size, rank):
            raise ConflictError(
                f"DistributedSampler(num_replicas={sampler.num_replicas}, rank={sampler.rank}) is not that of this process, rank {rank} of "
                f"{world_size}; leave the sampler out, the selection shards the data set"
            )
        return sampler.shuffle, _first(len(sampler.dataset), total, kind)
    if kind is SequentialSampler:
        return False, _first(len(sampler.data_source), total, kind)
    if kind is RandomSampler and not sampler.replacement and sampler.num_samples == len(sampler.data_source):
        return True, _first(len(sampler.data_source), total, kind)
    return None


def _first(count: int, total: int, kind: type) -> Universe:
    """The first ``count`` of ``total`` samples: torch's samplers yield the places of their source, whatever it holds."""
    if count > total:
        raise ConflictError(
            f"sampler={kind.__name__} is made of {count} samples, the data set has {total}; make it of the loader's data set, or use "
            "DataLoader(shuffle=True) without a sampler"
        )
    return Universe(total, None if count == total else torch.arange(count))


def _subset(given: Any, total: int) -> Tensor | None:
    """The indices of a SubsetRandomSampler, ascending; ``None`` when they are all ``total``."""
    given = np.asarray(given) if len(given) else np.empty(0, dtype=np.int64)
    wrong, indices = None, np.empty(0, dtype=np.int64)
    if given.dtype.kind in "iu" and given.ndim == 1:
        indices = np.unique(given).astype(np.int64)
    else:
        wrong = f"are of type {given.dtype} and shape {list(given.shape)}"
    if wrong is None and len(indices) < len(given):
        wrong = f"name {len(given) - len(indices)} samples more than once"
    elif len(indices) and (indices[0] < 0 or indices[-1] >= total):
        wrong = f"are {indices[0]} to {indices[-1]}"
    if wrong is not None:
        raise ConflictError(
            f"sampler=SubsetRandomSampler: its indices {wrong}; they must be integers from 0 to {total - 1}, each once"
        )
    return None if len(indices) == total else torch.from_numpy(indices)


def _sampler_refusal(sampler: Any) -> str:
    kind = type(sampler)
    refused = (
        f"sampler={kind.__name__} is not allowed: sample selection decides which samples an epoch has and in which order; use "
    )
    if kind is WeightedRandomSampler:
        return (
            f'{refused}DataLoader(shuffle=True) without a sampler, and SampleSelection("weighted", weights=...), which draws by the same '
            'weights and shards the draws over the ranks; or plb, which draws by the loss; or balance="class" of a method that hides, '
            "which holds its fraction in each class"
        )
    settings = ""
    if kind is RandomSampler:
        refused = refused.replace(" is", f"(replacement={sampler.replacement}, num_samples={sampler.num_samples}) is", 1)
        settings = " with its defaults"
    return (
        f"{refused}DataLoader(shuffle=True) without a sampler{settings}, or, for a part of the data set, SubsetRandomSampler(indices) or "
        "torch.utils.data.Subset(dataset, indices)"
    )


def check_arrivals(loader: Any, method: Method, public: bool, is_first: bool, keyed: bool = False) -> None:
    """Raise ``ConflictError`` for a loader of iterable data where it cannot be followed.

    Args:
        loader: the user's.
        method: the selection method.
        public: it is given to ``selection.wrap``.
        is_first: no map-style data set was followed before.
        keyed: its samples have keys.
    """
    kind = type(getattr(loader, "dataset", loader)).__name__
    if not keyed and (method.needs_index or method.needs_classes):
        known = {name: method_class(name) for name in available_methods()}
        works = ", ".join(
            f"{name} with {cls.without_index}" if cls.without_index else name
            for name, cls in known.items()
            if cls.without_index or not cls.needs_index
        )
        what = f"{method.name} knows samples by their index" if method.needs_index else f"{method.name} needs their classes"
        by_key = "" if method.needs_places or method.needs_classes else "say what names a sample (SampleSelection(key=...)), "
        raise ConflictError(
            f"the train loader's {kind} is iterable data, whose samples have no index, and {what}: give the loader a map-style data set "
            f"with __len__ and __getitem__, {by_key}or use a method that takes samples as they come: {works}"
        )
    if public:
        raise ConflictError(
            f"selection.wrap(...) takes a DataLoader of a map-style data set, not of iterable data ({kind}); return the loader itself "
            "from train_dataloader, without wrap"
        )
    if not is_first:
        raise ConflictError(
            f"the train loader's {kind} is iterable data, and the data set before was map-style; use a new Trainer and a new "
            "SampleSelection for new data"
        )


def check_values_kept(values: str, statistics: SampleStatistics) -> None:
    """Raise ``ConflictError`` for losses of batches, averaged over those that a sample was in, where samples are not known."""
    if values == "bls" and isinstance(statistics, NoStatistics):
        raise ConflictError(
            "values='bls' averages the losses of the batches that a sample was in, and samples of iterable data are not known by an index; "
            "return the loss of each sample from training_step, or give the loader a map-style data set"
        )


def check_order(order: LoaderOrder, method: Method) -> None:
    """Raise ``ConflictError`` for a method that draws its own order, or from all of a data set, where the sampler has one, or a part."""
    universe = order.universe
    if order.listed is not None and method.family == "draw":
        raise ConflictError(
            f"{order.listed.name} lists the order of an epoch, and {method.name} draws it; use DataLoader(shuffle=True) without a sampler "
            "of your own, or a method that hides or chooses within the epoch"
        )
    if universe.indices is not None and method.stream_samples(1, 1) is not None:
        raise ConflictError(
            f"the sampler of the train loader yields {len(universe.indices)} of {universe.num_samples} samples, and {method.name} draws "
            "from the whole data set; use torch.utils.data.Subset(dataset, indices) without a sampler, or a method that hides or "
            "chooses within the epoch"
        )


def no_classes(method: Method) -> str:
    """The error text where neither the data set nor the training step gives the classes that a setting, or the method itself,
    needs."""
    asking = {name: getattr(method, name, None) for name in ("balance", "protected_classes")}
    named = [] if type(method).needs_classes is True else [f"{name}={shown(value)}" for name, value in asking.items() if value]
    left = " and ".join(name for name, value in asking.items() if value)
    instead = f"leave {left} out" if named else "use a method that needs no classes, for example orderdp"
    return (
        f"classes: {' and '.join([f'{method.name}: {named[0]}', *named[1:]]) if named else method.name} need{'s' * (len(named) < 2)} the "
        "class of each sample, which neither the data set nor training_step gives. Give the data set an attribute targets (one integer per "
        f"sample), or {instead}; in a classification, return sample_loss, logits and target from training_step"
    )


def warn_of_loader(loader: DataLoader, world_size: int) -> None:
    """Warn of a setting that works in most runs, but not in all."""
    if world_size == 1 or not loader.num_workers or loader.persistent_workers:
        return
    context = loader.multiprocessing_context or torch.multiprocessing
    if context.get_start_method() == "fork":
        rank_zero_warn(
            f"DataLoader(num_workers={loader.num_workers}) forks its workers again before each epoch, and for each scoring pass. Forking "
            "one of several ranks may hang, without sample selection too (seen with Python 3.11 and gloo); persistent_workers=True "
            "forks once"
        )
