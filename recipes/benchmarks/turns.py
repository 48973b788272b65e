"""Fits that take turns: each trains a few steps in its own thread while the others wait, so that all meet the same load."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L


class Baton:
    """Lets one of several threads run at a time, each in turn.

    Args:
        players: number of threads.
    """

    def __init__(self, players: int) -> None:
        self._turns = [threading.Semaphore(0) for _ in range(players)]
        self.error: BaseException | None = None

    def wait(self, player: int) -> None:
        """Sleep until it is this player's turn.

        Raises:
            RuntimeError: another player has failed.
        """
        self._turns[player].acquire()
        if self.error is not None:
            raise RuntimeError("another of the fits that take turns has failed")

    def pass_on(self, player: int) -> None:
        """End this player's turn and wake the next player."""
        self._turns[(player + 1) % len(self._turns)].release()

    def fail(self, error: BaseException) -> None:
        """End all turns for good, because a player has failed with ``error``."""
        self.error = self.error or error
        for turn in self._turns:
            turn.release()


class TakeTurns(L.Callback):
    """Trains `steps` steps at a time, and takes the time of each turn.

    Stands behind the callback that is measured: a step lasts from here to here, with the training step, all hooks, and
    fetching the next batch.

    Attributes:
        seconds: seconds of a step, the mean over each turn.
    """

    def __init__(self, steps: int, clock: Callable[[], float], on_turn: Callable[[], Any] = lambda: None) -> None:
        self.seconds: list[float] = []
        self.baton = Baton(1)
        self.player = 0
        self._steps = steps
        self._clock = clock
        self._on_turn = on_turn
        self._done = 0
        self._started = 0.0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Pass on the baton if the turn is over, and wait for it."""
        self._next()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the time of the last turn."""
        self._end_turn()

    def _next(self) -> None:
        if self._done % self._steps == 0:
            if self._done:
                self._end_turn()
            self.baton.pass_on(self.player)
            self.baton.wait(self.player)
            self._started = self._clock()
        self._done += 1

    def _end_turn(self) -> None:
        self.seconds.append((self._clock() - self._started) / self._steps)
        self._on_turn()


class TakeEpochs(TakeTurns):
    """Trains `steps` epochs at a time: from the start of one to that of the next, with planning and sharding."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Do nothing: a turn ends only at the start of an epoch."""

    def on_train_epoch_start(self, trainer: L.Trainer | None = None, pl_module: L.LightningModule | None = None) -> None:
        """Pass on the baton if the turn is over, and wait for it."""
        self._next()


def take_turns(fits: Sequence[tuple[TakeTurns, Callable[[], Any]]]) -> None:
    """Run fits, each with its own `TakeTurns` among the Trainer's callbacks, in turns.

    Raises:
        BaseException: what the first fit that failed raised.
    """
    baton = Baton(len(fits))

    def run(player: int, turns: TakeTurns, fit: Callable[[], Any]) -> None:
        turns.baton, turns.player = baton, player
        try:
            baton.wait(player)
            fit()
            baton.pass_on(player)
        except BaseException as error:  # handed to the caller's thread
            baton.fail(error)

    threads = [
        threading.Thread(target=run, args=(player, *fit), daemon=True, name=f"fit {player}") for player, fit in enumerate(fits)
    ]
    for thread in threads:
        thread.start()
    baton.pass_on(-1)
    for thread in threads:
        thread.join()
    if baton.error is not None:
        raise baton.error
