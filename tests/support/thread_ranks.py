"""Collectives that are threads of one process: what they do together without a process group."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np

from kakurenbo_lightning.core.collectives import Collectives


class ThreadRanks(Collectives):
    """One of several ranks; ``table`` and ``barrier`` are shared by them."""

    def __init__(self, rank, size, table, barrier):
        super().__init__(rank, size)
        self._table, self._barrier = table, barrier

    def _everyone(self, mine):
        self._table[self.rank] = mine
        self._barrier.wait(60)
        found = list(self._table)
        self._barrier.wait(60)
        return found

    def sum(self, counts):
        return np.sum(self._everyone(np.array(counts, dtype=np.int64)), axis=0)

    def gather(self, data):
        return self._everyone(data)

    def gather_objects(self, mine):
        return self._everyone(mine)

    def exchange(self, parts):
        return [each[self.rank] for each in self._everyone(parts)]


def on_ranks(size, run):
    """What ``run(ranks)`` returns on each of ``size`` ranks."""
    table, barrier = [None] * size, Barrier(size)

    def run_rank(rank):
        try:
            return run(ThreadRanks(rank, size, table, barrier))
        except BaseException:
            barrier.abort()  # the others need not wait
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run_rank, range(size)))
