"""Where a loader of iterable data stands after each batch, by its own ``state_dict`` where it has one."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kakurenbo_lightning.core.distributed import rank_zero_warn
from kakurenbo_lightning.core.random import isolated_rng, seed_everything, stream_seed
from kakurenbo_lightning.core.state_schema import anything, integer, optional, table

STATE = table(
    {"loader": anything(), "samples": integer(), "steps": optional(integer()), "length": optional(integer())}, closed=True
)
_KEPT = 4  # batches: the loop trains one while the next are loaded


@dataclass(frozen=True)
class Place:
    """Where a loader stands between two batches.

    Attributes:
        loader: its state; ``None`` for one that has none, and where its next epoch begins at its start.
        samples: how many samples all ranks have trained in the epoch before this place.
        steps: batches of the epoch, where this is its end.
    """

    loader: Any = None
    samples: int = 0
    steps: int | None = None


class LoaderPlaces:
    """The places of the current epoch that a checkpoint may be saved at.

    Args:
        loader: the user's.

    Attributes:
        length: batches of the last epoch that was trained to its end; ``None`` where none was.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._places = {0: Place()}
        self._resumed: tuple[int, Place] | None = None  # at which batch, until the loader has been put there
        self.length: int | None = None

    @property
    def _is_stateful(self) -> bool:
        return all(callable(getattr(self._loader, name, None)) for name in ("state_dict", "load_state_dict"))

    def samples_before(self, number: int) -> int:
        """How many samples all ranks trained before batch ``number``, where a checkpoint was saved at it; else 0."""
        known = self._resumed
        return known[1].samples if known is not None and known[0] == number else 0

    def begin(self, epoch: int, first: int, seed: int) -> tuple[Iterator[Any] | None, int | None]:
        """Return an iterator over what is left of ``epoch`` from batch ``first`` on; or ``None``, and how many batches the epoch
        had.

        Workers, and data sets that draw numbers when they begin, draw them by the epoch, the same on every rank: which samples a rank has
        may depend on them. The process's own random numbers are afterwards what they were.
        """
        resumed, self._resumed = self._resumed, None
        last = max(self._places)
        done, start = resumed or ((first, self._places.get(first, Place())) if first else (last, self._places[last]))
        if first == 0 < done and start.steps is None:
            start = Place()  # the epoch before was cut off, and this one begins at the start
        if first and start.steps is not None:
            self._places = {first: start, first + 1: start}
            self._resumed = 0, start
            return None, start.steps
        self._places = {first: Place(start.loader, start.samples if first else 0)}
        with isolated_rng():
            seed_everything(stream_seed(seed, epoch, "iterable data"))
            if (first or resumed) and start.loader is not None and self._is_stateful:
                self._loader.load_state_dict(copy.deepcopy(start.loader))
            elif first:
                self._say_again(epoch, first)
            return self._started(tries=1 if first else 2), None

    def _started(self, tries: int) -> Iterator[Any]:
        """An iterator whose first batch is loaded: one that is a generator starts its workers with it.

        A loader that was put at the end of an epoch may end once more, with nothing, before it begins the next one.
        """
        for _ in range(tries):
            iterator = iter(self._loader)
            for batch in iterator:
                return itertools.chain([batch], iterator)
        return iter(())

    def filler(self) -> Any:
        """Any batch, of a loader that is to be put elsewhere before the next epoch."""
        with isolated_rng():
            return next(iter(self._loader))

    def took(self, number: int, samples: int) -> None:
        """Batch ``number`` is there; of the epoch ``samples`` are until its end."""
        self._places[number + 1] = Place(self._state(), samples)
        self._places.pop(number - _KEPT, None)

    def end(self, number: int, exhausted: bool, extra: bool) -> None:
        """The epoch has ended before batch ``number``: because the loader has no more, or elsewhere.

        Args:
            number: how many batches it had.
            exhausted: the loader has no more.
            extra: one more batch follows, which is not loaded.
        """
        self.length = number
        self._places[number] = Place(self._state() if exhausted else None, self._places[number].samples, number)
        if extra:
            self._places[number + 1] = self._places[number]

    def _state(self) -> Any:
        """A copy: some loaders return what they go on to change."""
        return copy.deepcopy(self._loader.state_dict()) if self._is_stateful else None

    def _say_again(self, epoch: int, first: int) -> None:
        name = type(self._loader).__name__
        why = "the checkpoint holds no place of it" if self._is_stateful else "it has no state_dict"
        rank_zero_warn(
            f"{name}: nobody knows where it stood after {first} batches of epoch {epoch} ({why}), so the epoch goes on with the start of "
            "its data: some samples come a second time, and the training is not the one that was cut off. Use torchdata's "
            "StatefulDataLoader (with a data set that has state_dict), resume on as many ranks, or resume from an epoch's end"
        )

    def state_dict(self, done: int) -> dict[str, Any]:
        """This rank's place after ``done`` batches of the epoch."""
        place = self._places.get(done, Place())
        return {"loader": place.loader, "samples": place.samples, "steps": place.steps, "length": self.length}

    def load_state_dict(self, state: dict[str, Any] | None, done: int) -> None:
        """Take over :meth:`state_dict`; ``None``: nothing is known of this rank's place."""
        place = Place() if state is None else Place(state["loader"], state["samples"], state["steps"])
        self.length = None if state is None else state["length"]
        self._resumed = done, place
