"""Chooses how much a method hides, and how often it refreshes, to save a share of the training time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from kakurenbo_lightning.core.distributed import collective, gather, rank_zero_info, rank_zero_warn
from kakurenbo_lightning.core.durations import STATED_FORWARD
from kakurenbo_lightning.core.plan import Plan
from kakurenbo_lightning.core.state_schema import Check, absent, integer, number, optional, table
from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.methods.base import Epoch, Method
from kakurenbo_lightning.methods.saving import SavingModel, saving_model, share_setting, with_share
from kakurenbo_lightning.session.saving import Saving, default_of
from kakurenbo_lightning.session.totals import Totals

How = tuple[float, float, int, float]  # phi, done, start and rate, as SavingModel.saving takes them
NEAR = 0.01  # of the training time: a forecast that is off by less changes nothing
NEARLY_ALL = 0.95  # of what might be hidden: where less was, the samples did not allow it


@dataclass(frozen=True)
class Chosen:
    """What was chosen, and what it goes by.

    Attributes:
        forward: phi of the model (``methods/saving.py``).
        share: how much the method is set to hide.
        every: how many epochs keep a choice.
        rate: of what it might hide, how much the method's last choice hides; ``None`` before the first one.
        before: the rate of the choice before that.
        might: the share of the samples that the last choice might hide.
        allowed: the same, summed over the epochs that were planned by the method; those that kept a choice by that choice.
    """

    forward: float
    share: float
    every: int
    rate: float | None = None
    before: float | None = None
    might: float = 0.0
    allowed: float = 0.0

    @property
    def coming(self) -> float:
        """The rate to expect: that of the last choice, and its rise over the one before, if it is one, once more."""
        if self.rate is None or self.before is None:
            return 1.0 if self.rate is None else self.rate
        return max(self.rate, min(1.0, 2 * self.rate - self.before))

    @property
    def rises(self) -> bool:
        """Whether another choice in the next epoch is likely to hide more by so much as it costs to score what the last one hides."""
        if self.rate is None:
            return False
        rise = max(0.0, self.rate - (self.before or 0.0))
        return min(rise, 1 - self.rate) >= self.forward * self.rate

    def planned(self, may: float, hidden: float, chose: bool) -> Chosen:
        """After an epoch that hides ``hidden`` of the samples, by a new choice (``chose``) that might hide ``may``, or by a kept one."""
        if may <= 0:
            return self
        if not chose:
            return replace(self, allowed=self.allowed + self.might)
        return replace(self, rate=hidden / may, before=self.rate, might=may, allowed=self.allowed + may)


class Budget:
    """Sets the share that a method hides, once the cost of a forward pass is known, and corrects it by what was really hidden.

    A choice that hides little, as samples are not yet right and sure, is not kept: while choices rise, each epoch makes one.

    Args:
        method: as the user set it.
        saving: what the user asked for.
        totals: of the session: what was hidden and refreshed so far, and how long steps take.
    """

    def __init__(self, method: Method, saving: Saving, totals: Totals) -> None:
        self._method, self._saving, self._totals = method, saving, totals
        self._name = str(share_setting(method))
        self._chosen: Chosen | None = None
        self._models: dict[tuple[int, int], SavingModel] = {}
        self._measure()

    def _measure(self) -> None:
        """Time the forward passes of steps, as long as they are not known."""
        self._totals.times.measure_forwards(self._chosen is None and self._saving.forward is None)

    @property
    def method(self) -> Method:
        """The method as epochs are planned by it; one that hides nothing before a share is chosen."""
        chosen = self._chosen
        if chosen is None:
            return with_share(self._method, 0.0)
        return with_share(self._method, chosen.share, 1 if chosen.rises and self._may_choose_again else chosen.every)

    @property
    def largest(self) -> Method:
        """The method when it hides most."""
        return with_share(self._method, self._saving.max_share)

    @property
    def has_nothing(self) -> bool:
        """Whether no epoch was trained with a selection yet, whose steps could have been measured."""
        return self._totals.samples_trained == 0

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of an epoch: the share and the interval that the aim has chosen."""
        return {} if self._chosen is None else {self._name: self._chosen.share, "every_n_epochs": float(self._chosen.every)}

    # --- before training

    def check(self, max_epochs: int | None, counts_steps: bool) -> None:
        """Raise ``ConflictError`` when a training of this length cannot be shortened so much, however little a refresh costs.

        Args:
            max_epochs: of the training; ``None`` when it has no end.
            counts_steps: it ends after so many steps, or each of its epochs does.
        """
        save, limit = self._saving.share, self._saving.max_share
        if max_epochs is None or counts_steps:
            raise ConflictError(
                f"save={save:g}: hidden samples shorten a training that is counted in epochs, and this one has "
                f"{'a fixed number of steps' if counts_steps else 'no end'}; set Trainer(max_epochs=...), without max_steps and without "
                "an int as limit_train_batches"
            )
        most = self._model(max_epochs, self._intervals[-1]).saving(limit, 0.0)
        if save > most:
            raise ConflictError(
                f"save={save:g} cannot be reached: {self._method.name} saves at most {most:.1%} of {max_epochs} epochs when its "
                f"{self._name} is max_share={limit:g}, even if scoring hidden samples cost nothing; ask for less, train longer, or allow "
                f"more: save=Saving({save:g}, max_share=...)"
            )

    @property
    def _intervals(self) -> range:
        """How many epochs may keep a choice: what the user set, if he did; only 1 where hidden samples are not refreshed."""
        every = vars(self._method)["every_n_epochs"]
        is_free = every == default_of(type(self._method), "every_n_epochs") and self._method.refresh_mode is not None
        return range(every, (max(every, self._saving.max_interval) if is_free else every) + 1)

    @property
    def _may_choose_again(self) -> bool:
        """Whether a choice may be kept for fewer epochs than planned; a round of ``fraction_schedule`` counts choices."""
        return len(self._intervals) > 1 and not vars(self._method)["fraction_schedule"]

    def _model(self, max_epochs: int, every: int) -> SavingModel:
        key = max_epochs, every
        if key not in self._models:
            self._models[key] = saving_model(self._method, max_epochs, self._saving.max_share, every)
        return self._models[key]

    # --- before each epoch

    def begin(self, index: int, max_epochs: int, count: int, position: str, may_rise: bool = True) -> None:
        """Epoch ``index``, not the first one, will be planned: choose, or correct what was chosen. Collective.

        A static method that has started again keeps what it removed, so nothing is left to correct.

        Args:
            index: of the epoch.
            max_epochs: of the training.
            count: how many samples can be trained.
            position: of this rank, for errors.
            may_rise: a correction may hide more than was chosen; not once a guard has found that too much was hidden.
        """
        if self._chosen is None:
            self._chosen = self._first_choice(index, max_epochs, self._forward(position))
            self._measure()
        elif not self._totals.scoring_epochs and index in correcting_epochs(max_epochs):
            self._chosen = self._corrected(self._chosen, index, max_epochs, self._done(self._chosen, count), may_rise)

    def _forward(self, position: str) -> float:
        """What a forward pass takes of a step, waiting for data included in both: the mean of all ranks."""
        if self._saving.forward is not None:
            return self._saving.forward
        with collective("compare how long their steps took", position):
            known = [share for share in gather(self._totals.times.forward_share) if share is not None]
        return math.fsum(known) / len(known) if known else STATED_FORWARD

    def _best(self, max_epochs: int, hows: Mapping[int, How]) -> tuple[float, int]:
        """The share and the shortest interval that needs no larger share than is allowed; where there is none, what saves most.

        Args:
            max_epochs: of the training.
            hows: by interval, ascending: what :meth:`SavingModel.share` takes.
        """
        save, limit = self._saving.share, self._saving.max_share
        shares = ((self._model(max_epochs, every).share(save, *how), every) for every, how in hows.items())
        share, every = next((found for found in shares if found[0] <= limit), (limit, max(hows)))
        return _thousandths(max(0.0, share), limit), every

    def _first_choice(self, index: int, max_epochs: int, forward: float) -> Chosen:
        """As if the samples allowed it; epochs before ``index`` but the first one were trained without a selection and saved nothing."""
        save, limit = self._saving.share, self._saving.max_share
        how = forward, 0.0, index if index > 1 else 0, 1.0
        chosen = Chosen(forward, *self._best(max_epochs, dict.fromkeys(self._intervals, how)))
        saved = self._model(max_epochs, chosen.every).saving(chosen.share, *how)
        cost = f"the forward pass is {forward:.0%} of a step"
        settings = f"{self._name}={chosen.share:g}, every_n_epochs={chosen.every}"
        if chosen.every > 1 and self._may_choose_again:
            settings += " (a choice that hides little is made again in the next epoch, while that hides more)"
        if saved < save - 1e-9:
            rank_zero_warn(
                f"SampleSelection: save={save:g} cannot be reached: at most {saved:.1%} here, because {cost} and {self._name} is at most "
                f"max_share={limit:g}; {self._method.name} goes on with {settings}. save=Saving({save:g}, max_share=...) allows more"
            )
        else:
            rank_zero_info(
                f"SampleSelection: save={save:g}: {cost}; {self._method.name} goes on with {settings}, which saves {saved:.1%} of the "
                "training time if the samples allow it"
            )
        return chosen

    def _corrected(self, chosen: Chosen, index: int, max_epochs: int, done: float, may_rise: bool) -> Chosen:
        """With another share and interval for the epochs that are left, when by what choices hid lately the aim would be missed."""
        save, limit = self._saving.share, self._saving.max_share
        now = self._ahead(chosen, chosen.every, index, max_epochs, done)
        forecast = self._model(max_epochs, chosen.every).saving(chosen.share, *now)
        hows = {every: self._ahead(chosen, every, index, max_epochs, done) for every in self._intervals}
        hows = {every: how for every, how in hows.items() if how[2] < max_epochs} or {chosen.every: now}  # that choose once more
        share, every = self._best(max_epochs, hows)
        then = self._model(max_epochs, every).saving(share, *hows[every])
        is_better = abs(forecast - save) > NEAR and abs(then - save) < abs(forecast - save) - NEAR / 10
        if not is_better or chosen.coming <= 0 or (share > chosen.share and not may_rise):
            return chosen
        known = f"the last choice hid {chosen.rate or 0:.0%} of what it might"
        if chosen.before is not None:
            known += f" and the one before {chosen.before:.0%}"
        rank_zero_info(
            f"SampleSelection: save={save:g}: {done / max_epochs:.1%} were saved in {index} of {max_epochs} epochs, and {known}; with "
            f"{self._name}={share:g}, every_n_epochs={every} instead of {chosen.share:g}, {chosen.every} from now on the whole training "
            f"saves about {then:.1%} instead of {forecast:.1%}, if {chosen.coming:.0%} of what may be hidden are"
            f"{'' if then > save - NEAR else f'; max_share={limit:g} allows no more'}"
        )
        return replace(chosen, share=share, every=every)

    def _ahead(self, chosen: Chosen, every: int, index: int, max_epochs: int, done: float) -> How:
        """What :meth:`SavingModel.saving` takes of the epochs from ``index`` on, if choices are kept for ``every`` epochs from now on.

        Until the next choice the last one stays, and what it hides is scored before that.
        """
        method, last = with_share(self._method, chosen.share, every), chosen.might * (chosen.rate or 0.0)
        due = (epoch for epoch in range(index, max_epochs) if method.chooses_in(Epoch(epoch, max_epochs)))
        start = index if chosen.rises and self._may_choose_again else next(due, max_epochs)
        kept = sum(hidden > 0 for hidden in self._model(max_epochs, every).most.hidden[index:start])
        scored = chosen.forward if start < max_epochs and method.refresh_mode is not None else 0.0
        return chosen.forward, done + last * (kept - scored), start, chosen.coming

    def _done(self, chosen: Chosen, count: int) -> float:
        """Epochs' worth of time that was saved so far, of ``count`` samples each."""
        return (self._totals.samples_hidden - chosen.forward * self._totals.samples_refreshed) / max(1, count)

    def planned(self, index: int, plan: Plan, max_epochs: int, chose: bool) -> None:
        """``plan`` of epoch ``index`` is the method's: remember how much of what it might hide it does.

        Args:
            index: of the epoch.
            plan: of it.
            max_epochs: of the training.
            chose: the method made a new choice.
        """
        if self._chosen is not None:
            model = self._model(max_epochs, 1 if self._may_choose_again else self._chosen.every)
            self._chosen = self._chosen.planned(model.hidden(self._chosen.share, index), plan.hidden_fraction, chose)

    # --- after training

    def summary(self, epochs: int, count: int, guarded: bool) -> str:
        """What it came to in ``epochs`` of ``count`` samples; empty where nothing was chosen. ``guarded``: a guard held epochs back."""
        extra = self._totals.scoring_epochs
        if self._chosen is None or epochs <= extra:
            return ""
        saved, save = (self._done(self._chosen, count) - extra) / (epochs - extra), self._saving.share
        missed = "" if saved > save - NEAR else f", less than asked: {self._why(self._chosen, count, guarded)}"
        return f"; save={save:g}: {saved:.1%} of the training time by its count of samples and forward passes{missed}"

    def _why(self, chosen: Chosen, count: int, guarded: bool) -> str:
        """What kept it from its aim."""
        if guarded:
            return "the guard held it back"
        could = self._totals.samples_hidden / max(1, count) / chosen.allowed if chosen.allowed else 1.0
        if could < NEARLY_ALL:
            back = (
                "moved back (wrong, or less sure than tau)"
                if self._totals.moved_back
                else "kept by the method's rule or protected"
            )
            return f"the samples allowed no more: {could:.0%} of what {self._name} might hide was hidden, and the rest was {back}"
        limit = self._saving.max_share
        return (
            f"max_share={limit:g} allows no more"
            if chosen.share == limit
            else "too few epochs were left to make up for the first"
        )

    def state_dict(self) -> dict[str, Any]:
        """What was chosen; empty before."""
        return {} if self._chosen is None else asdict(self._chosen)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what was chosen; nothing is measured again."""
        self._chosen = Chosen(**state) if state else None
        self._measure()


def _thousandths(share: float, limit: float) -> float:
    """``share``, rounded up, and at most ``limit``."""
    return min(math.ceil(round(share * 1000, 6)) / 1000, limit) if share < limit else limit


def correcting_epochs(max_epochs: int) -> list[int]:
    """Before which epochs it is corrected: after a third of ``max_epochs``, and then each time half of what was left is over."""
    found = [-(-max_epochs // 3)]
    while (index := found[-1] + -(-(max_epochs - found[-1]) // 2)) < max_epochs:
        found.append(index)
    return found


_RATE = optional(number(0))
STATE: Check = table(
    {
        **{"forward": number(0), "share": number(0), "every": integer(1), "rate": _RATE},
        **{"before": absent(_RATE), "might": absent(number(0)), "allowed": absent(number(0))},
    },
    closed=True,
)
