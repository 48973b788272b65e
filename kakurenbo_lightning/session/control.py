"""What overrides the method when an epoch is planned: the share of training time to save, and a guard that watches a metric."""

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
    """Adjusts the method's settings for the epoch to plan, and decides which epochs train on everything instead.

    Args:
        method: the method with the user's settings.
        save: the share of the training time to save; ``None`` leaves the method's settings unchanged.
        guarded: the user's guard; ``None`` if there is none.
        totals: sums over the session's epochs.
    """

    def __init__(self, method: Method, save: Saving | None, guarded: SelectionGuard | None, totals: Totals) -> None:
        self._method, self._save, self._guarded = method, save, guarded
        self._budget = None if save is None else Budget(method, save, totals)
        self._guard = None if guarded is None else GuardWatch(guarded)
        self._held = -1  # the last epoch in which everything was trained instead of the method's plan

    @property
    def method(self) -> Method:
        """The method with the settings by which the epoch is planned."""
        return self._method if self._budget is None else self._budget.method

    @property
    def largest(self) -> Method:
        """The method with the settings by which it hides most."""
        return self._method if self._budget is None else self._budget.largest

    def check(self, trainer: AnyTrainer, max_epochs: int | None) -> None:
        """Raise ``ConflictError`` if the training cannot be shortened as asked, or if the guard's metric is never validated."""
        if self._budget is not None and not trainer.fast_dev_run:
            counts_steps = trainer.max_steps >= 0 or type(trainer.limit_train_batches) is int
            self._budget.check(max_epochs, counts_steps)
        if self._guard is not None:
            self._guard.check(trainer.enable_validation, None if trainer.fast_dev_run else max_epochs)

    def begin(self, epoch: Epoch, before: EpochState, count: int, position: str) -> tuple[bool, Plan | None]:
        """Prepare the planning of ``epoch``. Collective.

        Args:
            epoch: the epoch to plan.
            before: the current state of the session.
            count: number of samples that can be trained.
            position: describes rank and step, for errors.

        Returns:
            Whether the epoch trains on everything, because of the guard or because it is the first, whose steps are timed; and the plan of
            the epoch before, which the method may keep, or ``None`` if it must make a new choice.
        """
        index, first = epoch.index, before.phase is Phase.IDLE
        previous = None if first else before.kept if self._held == before.epoch else before.plan
        held = self._guard is not None and self._guard.begin(index, epoch.scoring or 0)
        # has_nothing: resumed from a checkpoint without a selection, so no step has been timed
        if self._budget is not None and (first or self._budget.has_nothing):
            held = True
        elif self._budget is not None and epoch.max_epochs is not None:
            self._budget.begin(index, epoch.max_epochs, count, position, may_rise=not self._guarded_epochs)
        if held:
            self._held = index
        return held, previous

    def planned(self, epoch: Epoch, plan: Plan, previous: Plan | None) -> None:
        """Take note of the method's ``plan`` for ``epoch``, which may be the plan of the epoch before, ``previous``."""
        if self._budget is not None and epoch.max_epochs is not None:
            chose = previous is None or self.method.chooses_in(epoch)
            self._budget.planned(epoch.index, plan, epoch.max_epochs, chose)

    def metrics(self, index: int) -> dict[str, float]:
        """Metrics to log for epoch ``index`` once it is planned."""
        guarded = {} if self._guard is None else {"guard": float(self._guard.holds(index))}
        return guarded if self._budget is None else {**self._budget.metrics, **guarded}

    def validated(self, adapter: TrainerAdapter, epoch: int, position: Callable[[], str]) -> None:
        """Take note of a finished validation, which belongs to ``epoch`` if the Trainer of ``adapter`` is training. Collective."""
        if self._guard is not None and adapter.is_fitting and not (adapter.trainer.sanity_checking or adapter.passive):
            self._guard.validated(validation_metrics(adapter.trainer), epoch, position())

    def summary(self, epochs: int, count: int) -> str:
        """The result after ``epochs`` epochs of ``count`` samples, in words; empty without ``save`` and ``guard``."""
        saved = "" if self._budget is None else self._budget.summary(epochs, count, guarded=self._guarded_epochs > 0)
        return saved if self._guard is None else saved + self._guard.summary

    @property
    def _guarded_epochs(self) -> int:
        return 0 if self._guard is None else self._guard.held

    # --- state

    def settings(self) -> dict[str, Any]:
        """Settings, besides the method's, that a resumed training must share."""
        save = {} if self._save is None else {"save": dict(vars(self._save))}
        return save if self._guarded is None else {**save, "guard": self._guarded.described()}

    def state_dict(self) -> dict[str, Any]:
        """State as plain numbers; empty without ``save`` and ``guard``."""
        parts = {"saving": self._budget, "guard": self._guard}
        states = {name: part.state_dict() for name, part in parts.items() if part is not None}
        return {"held": self._held, **states} if states else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, when a training resumes."""
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
    """Return the ``guard`` argument if it is valid.

    Raises:
        ValueError: it is not a guard, or the method does not hide samples, so that the guard could not act.
    """
    if guarded is None or (isinstance(guarded, SelectionGuard) and method.family == "hide"):
        return guarded
    if not isinstance(guarded, SelectionGuard):
        raise ValueError(
            f"guard={shown(guarded)} is not allowed; guard must be None or a SelectionGuard. For example: "
            "SelectionGuard('val_acc', max_drop=0.005)"
        )
    raise ConflictError(
        f"guard is not possible with method {method.name}: it replaces plans that hide samples by epochs that train on everything, "
        f"and the {method.family} family makes no such plans; leave it out, or use a method that hides, for example kakurenbo"
    )
