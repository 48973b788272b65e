"""The order in which a sampler of the user's own lists samples, and how its batches are filled up when some of them are left out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kakurenbo_lightning.core.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

ROUNDS = 24  # of joining batches; what is not joined then differs by more than joining would mend


@dataclass(frozen=True)
class Order:
    """An order of samples that the user's sampler gives.

    Attributes:
        indices: ``int64[n]`` on the CPU, data set indices, each once.
        batches: ``int64[n]``, ascending: in which of its batches each is; ``None`` for a sampler that yields single indices.
        listed: ``int32[E, N]``, the batch of each data set index in some other epochs, -1 for none: samples that often share a batch are
            alike, as in length.
    """

    indices: Tensor
    batches: Tensor | None = None
    listed: Tensor | None = None

    def of(self, samples: Tensor, batch_size: int) -> Tensor:
        """The ``samples`` (``int64[k]``) in this order.

        Of a batch sampler each ``batch_size`` of them are a batch: those that it has whole, in its order, and between them, where their
        first sample would be, batches made of what is left of others that are alike. Those made of unlike ones come last.
        """
        size = 1 + max(int(part.max()) for part in (self.indices, samples) if len(part))
        inside = torch.zeros(size, dtype=torch.bool).index_fill_(0, samples, True)
        there = inside[self.indices]
        ordered = self.indices[there]
        if self.batches is None or self.listed is None:
            return ordered
        batches = self.batches[there].numpy()
        whole = np.bincount(batches)[batches] == batch_size if len(batches) else np.empty(0, dtype=bool)
        loose = np.flatnonzero(~whole)
        sequence, end = _filled(batches[loose], self.listed.numpy()[:, ordered[torch.from_numpy(loose)].numpy()], batch_size)
        loose = loose[sequence]
        heads = np.empty(len(ordered), dtype=np.int64)  # of each sample, the place of its batch
        heads[whole] = np.flatnonzero(whole).reshape(-1, batch_size)[:, 0].repeat(batch_size)
        heads[loose[:end]] = loose[:end].reshape(-1, batch_size).min(1).repeat(batch_size)
        heads[loose[end:]] = len(ordered)
        within = np.arange(len(ordered))
        within[loose] = np.arange(len(loose))
        return ordered[torch.from_numpy(np.lexsort((within, heads)))]

    def digest(self, batch_size: int) -> str:
        """A hash of it; of a batch sampler the size of batches counts too."""
        digest = hashlib.blake2b(self.indices.numpy().tobytes(), digest_size=8)
        for each in (self.batches, self.listed):
            if each is not None:
                digest.update(each.numpy().tobytes() + str(batch_size).encode())
        return digest.hexdigest()


def by_ranks(count: int, last_start: int, batch_size: int, world_size: int) -> Tensor:
    """A permutation, ``int64[count]``, of samples that are batch after batch: ranks that take every ``world_size``-th sample of a step then
    have whole batches. The last step begins at ``last_start``."""
    places = np.arange(count)
    step = np.where(places < last_start, places // (batch_size * world_size), count)
    found = np.empty(count, dtype=np.int64)
    found[np.lexsort((places % world_size, step))] = places
    return torch.from_numpy(found)


def _filled(batches: np.ndarray, listed: np.ndarray, batch_size: int) -> tuple[np.ndarray, int]:
    """Put what is left of batches side by side where these are alike.

    Args:
        batches: ``int64[k]``, ascending: of each sample its batch.
        listed: ``int32[E, k]``: and in other epochs.
        batch_size: samples of each batch to make.

    Returns:
        Places of samples, ``int64[k]``, and how many of them are whole batches of those that are alike.
    """
    number, batch = np.unique(batches, return_inverse=True)
    place, group = _side_by_side(_shared(batch, listed), np.bincount(batch, minlength=len(number)))
    sequence = np.argsort(place[batch], kind="stable")
    group = group[batch[sequence]]
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    sizes = np.diff(starts, append=len(group))
    within = np.arange(len(group)) - np.repeat(starts, sizes)
    is_left = within >= np.repeat(sizes // batch_size * batch_size, sizes)
    return np.concatenate([sequence[~is_left], sequence[is_left]]), int((~is_left).sum())


def _shared(batch: np.ndarray, listed: np.ndarray) -> np.ndarray:
    """Pairs of batches, ``int64[2, p]``: those of two samples, next to each other, of a batch in another epoch."""
    pairs = []
    for other in listed:
        order = np.argsort(other, kind="stable")
        together = (np.diff(other[order]) == 0) & (other[order[1:]] >= 0)
        pairs.append(np.stack([batch[order[:-1]], batch[order[1:]]])[:, together])
    return np.concatenate(pairs, axis=1) if pairs else np.empty((2, 0), dtype=np.int64)


def _side_by_side(pairs: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join batches, and what was joined, in pairs that are most alike: those that share most for their size, both ways.

    Args:
        pairs: ``int64[2, p]`` batches that share something; a pair may be there more than once.
        sizes: ``int64[m]`` of the batches.

    Returns:
        The place of each batch, ``int64[m]``, and the number of what it was joined to at last, ``int64[m]``, ascending with the place.
    """
    count, weight, mass = len(sizes), np.ones(pairs.shape[1]), sizes.astype(float)
    follower, last = np.full(count, -1), np.arange(count)
    is_first = np.ones(count, dtype=bool)
    for _ in range(ROUNDS):
        low, high = np.minimum(*pairs), np.maximum(*pairs)
        keys, which = np.unique(low * count + high, return_inverse=True)
        weight, low, high = np.bincount(which, weight, len(keys)), keys // count, keys % count
        apart = low != high
        weight, low, high = weight[apart], low[apart], high[apart]
        if not len(low):
            break
        strength = weight / (mass[low] * mass[high])
        rank = np.empty(len(low), dtype=np.int64)
        # equals are taken in no order, or chains of them would be joined one by one
        rank[np.lexsort(((low * 40503 + high * 2654435761) % 65521, strength))] = np.arange(len(low))
        best = np.full(count, -1)
        np.maximum.at(best, low, rank)
        np.maximum.at(best, high, rank)
        chosen = (best[low] == rank) & (best[high] == rank)
        one, other = low[chosen], high[chosen]
        follower[last[one]], last[one] = other, last[other]
        is_first[other] = False
        mass[one] += mass[other]
        now = np.arange(count)
        now[other] = one
        pairs = now[np.stack([low, high])]
    return _along(np.flatnonzero(is_first), follower)


def _along(firsts: np.ndarray, follower: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The place of each batch when chains, which begin with ``firsts`` and go on with ``follower``, are laid end to end, and its chain."""
    chain, order = np.empty(len(follower), dtype=np.int64), []
    following = follower.tolist()
    for number, current in enumerate(firsts.tolist()):
        while current >= 0:
            chain[current] = number
            order.append(current)
            current = following[current]
    place = np.empty(len(follower), dtype=np.int64)
    place[order] = np.arange(len(order))
    return place, chain
