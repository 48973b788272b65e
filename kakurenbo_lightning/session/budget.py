"""Chooses how much a method hides, and how often it refreshes, to save a share of the training time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from kakurenbo_lightning.core.distributed import collective, gather, rank_zero_info, rank_zero_warn
from kakurenbo_lightning.core.durations import STATED_FORWARD
from kakurenbo_lightning.core.plan import Plan
from kakurenbo_lightning.core.state_schema import Check, integer, number, table
from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.methods.saving import SavingModel, saving_model, share_setting, with_share
from kakurenbo_lightning.session.saving import Saving, default_of
from kakurenbo_lightning.session.totals import Totals

NEAR = 0.01  # of the training time: a forecast that is off by less changes nothing


@dataclass(frozen=True)
class Chosen:
    """What was chosen, and what it goes by.

    Attributes:
        forward: phi of the model (``methods/saving.py``).
        share: how much the method is set to hide.
        every: how many epochs keep a choice.
        rate: of what the share allows, how much the method's last plan hides.
    """

    forward: float
    share: float
    every: int
    rate: float = 1.0


class Budget:
    """Sets the share that a method hides, once the cost of a forward pass is known, and corrects it twice by what was really hidden.

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
        return with_share(self._method, 0.0) if chosen is None else with_share(self._method, chosen.share, chosen.every)

    @property
    def largest(self) -> Method:
        """The method when it hides most."""
        return with_share(self._method, self._saving.max_share)

    @property
    def metrics(self) -> dict[str, float]:
        """To log of an epoch."""
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
            self._chosen = self._first_choice(max_epochs, self._forward(position))
            self._measure()
        elif not self._totals.scoring_epochs and index in {-(-max_epochs // 3), -(-2 * max_epochs // 3)}:
            self._chosen = self._corrected(self._chosen, index, max_epochs, self._done(self._chosen, count), may_rise)

    def _forward(self, position: str) -> float:
        """What a forward pass takes of a step, waiting for data included in both: the mean of all ranks."""
        if self._saving.forward is not None:
            return self._saving.forward
        with collective("compare how long their steps took", position):
            known = [share for share in gather(self._totals.times.forward_share) if share is not None]
        return math.fsum(known) / len(known) if known else STATED_FORWARD

    def _first_choice(self, max_epochs: int, forward: float) -> Chosen:
        """The shortest interval that needs no larger share than is allowed; where there is none, what saves most."""
        save, limit = self._saving.share, self._saving.max_share
        shares = ((self._model(max_epochs, every).share(save, forward), every) for every in self._intervals)
        share, every = next((found for found in shares if found[0] <= limit), (limit, self._intervals[-1]))
        chosen = Chosen(forward, _thousandths(share, limit), every)
        saved = self._model(max_epochs, every).saving(chosen.share, forward)
        cost, settings = f"the forward pass is {forward:.0%} of a step", f"{self._name}={chosen.share:g}, every_n_epochs={every}"
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
        """With another share for the epochs that are left, when what was asked for would be missed by what the last plan hid."""
        save, limit, model = self._saving.share, self._saving.max_share, self._model(max_epochs, chosen.every)
        how = (chosen.forward, done, index, chosen.rate)
        forecast = model.saving(chosen.share, *how)
        share = _thousandths(max(0.0, model.share(save, *how)), limit)
        then = model.saving(share, *how)
        if abs(forecast - save) <= NEAR or share == chosen.share or chosen.rate <= 0 or (share > chosen.share and not may_rise):
            return chosen
        rank_zero_info(
            f"SampleSelection: save={save:g}: {done / max_epochs:.1%} were saved in {index} of {max_epochs} epochs, and the last one hid "
            f"{chosen.rate:.0%} of what it might; with {self._name}={share:g} instead of {chosen.share:g} from now on the whole training "
            f"saves {then:.1%} instead of {forecast:.1%}{'' if then > save - NEAR else f'; max_share={limit:g} allows no more'}"
        )
        return replace(chosen, share=share)

    def _done(self, chosen: Chosen, count: int) -> float:
        """Epochs' worth of time that was saved so far, of ``count`` samples each."""
        return (self._totals.samples_hidden - chosen.forward * self._totals.samples_refreshed) / max(1, count)

    def planned(self, index: int, plan: Plan, max_epochs: int) -> None:
        """``plan`` of epoch ``index`` is the method's: remember how much of what it might hide it does."""
        if self._chosen is not None:
            expected = self._model(max_epochs, self._chosen.every).hidden(self._chosen.share, index)
            if expected > 0:
                self._chosen = replace(self._chosen, rate=plan.hidden_fraction / expected)

    # --- after training

    def summary(self, epochs: int, count: int, guarded: bool) -> str:
        """What it came to in ``epochs`` of ``count`` samples; empty where nothing was chosen. ``guarded``: a guard held epochs back."""
        extra = self._totals.scoring_epochs
        if self._chosen is None or epochs <= extra:
            return ""
        saved, save = (self._done(self._chosen, count) - extra) / (epochs - extra), self._saving.share
        limit = self._saving.max_share
        why = (
            "the guard held it back"
            if guarded
            else f"with the largest share that max_share={limit:g} allows"
            if self._chosen.share == limit
            else "fewer samples could be hidden"
        )
        missed = "" if saved > save - NEAR else f", less than asked: {why}"
        return f"; save={save:g}: {saved:.1%} of the training time by its count of samples and forward passes{missed}"

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


STATE: Check = table({"forward": number(0), "share": number(0), "every": integer(1), "rate": number(0)}, closed=True)
