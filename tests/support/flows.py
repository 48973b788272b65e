"""Iterable data for the tests: points without an index, split over ranks and workers as a user does it."""

import torch
from helpers import Points
from torch.utils.data import DataLoader, IterableDataset, get_worker_info


class Flow(IterableDataset):
    """Yields points as :class:`Points` has them, in order, each with its number, which the selection is not given.

    Args:
        count: of an epoch; ``None``: without an end.
        points: where they come from; by default :class:`Points` of this length.
        ranks: how many share them.
        rank: this one.
    """

    def __init__(self, count=64, points=None, ranks=1, rank=0):
        self.count, self.ranks, self.rank = count, ranks, rank
        self.points = Points(count or 64) if points is None else points
        self.epochs = []  # that were set

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def share(self):
        """Place of the first sample of this rank's worker, and how far the next one is."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        return self.rank + self.ranks * worker, self.ranks * workers

    def __iter__(self):
        place, stride = self.share()
        while self.count is None or place < self.count:
            yield self.points[place % len(self.points)]
            place += stride


class SizedFlow(Flow):
    """Says how many samples this rank has.

    Args:
        claimed: what it says instead.
    """

    def __init__(self, *args, claimed=None, **settings):
        super().__init__(*args, **settings)
        self.claimed = claimed

    def __len__(self):
        return self.claimed if self.claimed is not None else len(range(self.rank, self.count, self.ranks))


class CountingFlow(Flow):
    """Keeps its place, for torchdata's ``StatefulDataLoader``, and shuffles each epoch by its own number of epochs."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.place, self.begun = 0, 0

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.begun)
        first, stride = self.share()
        order = torch.randperm(self.count, generator=generator)[first::stride]
        while self.place < len(order):
            self.place += 1
            yield self.points[int(order[self.place - 1])]
        self.place, self.begun = 0, self.begun + 1

    def state_dict(self):
        return {"place": self.place, "begun": self.begun}

    def load_state_dict(self, state):
        self.place, self.begun = state["place"], state["begun"]


class SizedCountingFlow(CountingFlow, SizedFlow):
    """Says how many samples it has, too."""


def flowing(count=64, batch_size=8, kind=Flow, **settings):
    """A DataLoader of a :class:`Flow`."""
    return DataLoader(kind(count), batch_size=batch_size, **settings)
