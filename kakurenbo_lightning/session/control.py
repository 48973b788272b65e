"""What stands above the method when an epoch is planned: how much of the training time to save, and a guard of what it must not cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kakurenbo_lightning.core.flavour import AnyTrainer
from kakurenbo_lightning.core.plan import Plan
from kakurenbo_lightning.core.state_schema import absent, either, integer, table
from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.methods.base import Epoch, Method
from kakurenbo_lightning.methods.settings import shown
from kakurenbo_lightning.session import budget, guard
from kakurenbo_lightning.session.budget import Budget
from kakurenbo_lightning.session.epoch_state import EpochState, Phase
from kakurenbo_lightning.session.guard import GuardWatch, SelectionGuard
from kakurenbo_lightning.session.saving import Saving
from kakurenbo_lightning.session.totals import Totals
from kakurenbo_lightning.trainer.adapter import TrainerAdapter, validation_metrics


class Control:
    """Says by which settings the method plans an epoch, and which epochs train on everything in its place.

    Args:
        method: as the user set it.
        save: how much training time to save; ``None`` leaves the method's settings as they are.
        guarded: the user's guard; ``None`` for none.
        totals: of the session.
    """

    def __init__(self, method: Method, save: Saving | None, guarded: SelectionGuard | None, totals: Totals) -> None:
        self._method, self._save, self._guarded = method, save, guarded
        self._budget = None if save is None else Budget(method, save, totals)
        self._guard = None if guarded is None else GuardWatch(guarded)
        self._held = -1  # the last epoch that trained on everything in place of the method's plan

    @property
    def method(self) -> Method:
        """The method as the epoch is planned by it."""
        return self._method if self._budget is None else self._budget.method

    @property
    def largest(self) -> Method:
        """The method when it hides most."""
        return self._method if self._budget is None else self._budget.largest

    def check(self, trainer: AnyTrainer, max_epochs: int | None) -> None:
        """Raise ``ConflictError`` for a training that cannot be shortened as asked, or that the guard would never see validated."""
        if self._budget is not None and not trainer.fast_dev_run:
            counts_steps = trainer.max_steps >= 0 or type(trainer.limit_train_batches) is int
            self._budget.check(max_epochs, counts_steps)
        if self._guard is not None:
            self._guard.check(trainer.enable_validation, None if trainer.fast_dev_run else max_epochs)

    def begin(self, epoch: Epoch, before: EpochState, count: int, position: str) -> tuple[bool, Plan | None]:
        """``epoch`` will be planned. Collective.

        Args:
            epoch: to be planned.
            before: where the session is.
            count: how many samples can be trained.
            position: of this rank, for errors.

        Returns:
            Whether it trains on everything: by the guard, or the first epoch, whose steps are measured. And the plan of the epoch before,
            which the method may keep; ``None`` where it must choose.
        """
        index, first = epoch.index, before.phase is Phase.IDLE
        previous = None if first else before.kept if self._held == before.epoch else before.plan
        held = self._guard is not None and self._guard.begin(index, epoch.scoring or 0)
        if self._budget is not None and (
            first or self._budget.has_nothing
        ):  # of a checkpoint without a selection the last epoch ended
            held = True
        elif self._budget is not None and epoch.max_epochs is not None:
            self._budget.begin(index, epoch.max_epochs, count, position, may_rise=not self._guarded_epochs)
        if held:
            self._held = index
        return held, previous

    def planned(self, epoch: Epoch, plan: Plan, previous: Plan | None) -> None:
        """``plan`` of ``epoch`` is the method's, which might keep that of the epoch before, ``previous``."""
        if self._budget is not None and epoch.max_epochs is not None:
            chose = previous is None or self.method.chooses_in(epoch)
            self._budget.planned(epoch.index, plan, epoch.max_epochs, chose)

    def metrics(self, index: int) -> dict[str, float]:
        """To log of epoch ``index``, when it is planned."""
        guarded = {} if self._guard is None else {"guard": float(self._guard.holds(index))}
        return guarded if self._budget is None else {**self._budget.metrics, **guarded}

    def validated(self, adapter: TrainerAdapter, epoch: int, position: Callable[[], str]) -> None:
        """A validation is over, of ``epoch`` where the Trainer of ``adapter`` is training. Collective."""
        if self._guard is not None and adapter.is_fitting and not (adapter.trainer.sanity_checking or adapter.passive):
            self._guard.validated(validation_metrics(adapter.trainer), epoch, position())

    def summary(self, epochs: int, count: int) -> str:
        """What it came to in ``epochs`` of ``count`` samples, in words; empty where nothing was asked for."""
        saved = "" if self._budget is None else self._budget.summary(epochs, count, guarded=self._guarded_epochs > 0)
        return saved if self._guard is None else saved + self._guard.summary

    @property
    def _guarded_epochs(self) -> int:
        return 0 if self._guard is None else self._guard.held

    # --- state

    def settings(self) -> dict[str, Any]:
        """What a resumed training must share, beside the method's settings."""
        save = {} if self._save is None else {"save": dict(vars(self._save))}
        return save if self._guarded is None else {**save, "guard": self._guarded.described()}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers; empty where nothing was asked for."""
        parts = {"saving": self._budget, "guard": self._guard}
        states = {name: part.state_dict() for name, part in parts.items() if part is not None}
        return {"held": self._held, **states} if states else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over :meth:`state_dict`."""
        self._held = state.get("held", -1)
        if self._budget is not None:
            self._budget.load_state_dict(state.get("saving", {}))
        if self._guard is not None:
            self._guard.load_state_dict(state.get("guard", {}))


STATE = table(
    {
        "held": integer(-1),
        "saving": absent(either("share", budget.STATE, table({}, closed=True))),
        "guard": absent(guard.STATE),
    },
    closed=True,
)


def check_guard(guarded: object, method: Method) -> SelectionGuard | None:
    """The ``guard`` that was given.

    Raises:
        ValueError: it is none, or the method hides nothing that an epoch could train.
    """
    if guarded is None or (isinstance(guarded, SelectionGuard) and method.family == "hide"):
        return guarded
    if not isinstance(guarded, SelectionGuard):
        raise ValueError(
            f"guard={shown(guarded)} is not allowed; guard must be None or a SelectionGuard. For example: "
            "SelectionGuard('val_acc', max_drop=0.005)"
        )
    raise ConflictError(
        f"guard is not possible with method {method.name}: an epoch that trains on everything takes the place of a plan that hides, "
        f"which the {method.family} family does not make; leave it out, or use a method that hides, for example kakurenbo"
    )
