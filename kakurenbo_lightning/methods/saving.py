"""How much training time a hide method saves: a model of its epochs, and the share it must hide for a given saving.

The unit of time is an epoch that trains on everything, in which each sample costs 1. An epoch that hides the share h of the samples costs
1 - h; a refresh of a share s, forward only, costs phi * s, where phi is the cost of a sample's forward pass in that unit. A training of E
epochs then saves ``(sum of h - phi * sum of s - extra) / E`` of its time; ``extra`` is the
number of additional epochs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.methods.course import learned, play

SAMPLES = 400  # size of the made-up data set on which a course is planned


@dataclass(frozen=True)
class Course:
    """What a training hides and refreshes, epoch by epoch.

    Attributes:
        hidden: share of the samples that each epoch hides.
        refreshed: share that is scored, forward only, before each epoch.
        extra: number of epochs in addition to ``max_epochs``: the scoring epochs of a static method.
    """

    hidden: tuple[float, ...]
    refreshed: tuple[float, ...]
    extra: int = 0

    @property
    def epochs(self) -> int:
        """E, the number of epochs that were asked for."""
        return len(self.hidden) - self.extra

    def spared(self, forward: float, start: int = 0) -> float:
        """Time saved from epoch ``start`` on, in epochs; the scoring pass before ``start`` is not counted. ``forward`` is phi."""
        return math.fsum(self.hidden[start:]) - forward * math.fsum(self.refreshed[start + 1 :])

    def saving(self, forward: float) -> float:
        """Share of the training time that is saved; negative if refreshes and extra epochs cost more than hiding saves."""
        return (self.spared(forward) - self.extra) / self.epochs


@dataclass(frozen=True)
class SavingModel:
    """The time a method saves, as a function of the setting to which its hidden share is proportional.

    Attributes:
        least: the course at a setting of 0.
        most: the course at ``limit``.
        limit: the largest setting.
    """

    least: Course
    most: Course
    limit: float

    def hidden(self, share: float, epoch: int) -> float:
        """Share of the samples that ``epoch`` hides if the setting is ``share`` and enough samples may be hidden."""
        least, most = (course.hidden[epoch] for course in (self.least, self.most))
        return least + (most - least) * share / self.limit

    def saving(self, share: float, forward: float, done: float = 0.0, start: int = 0, rate: float = 1.0) -> float:
        """The share of the training time that is saved. It never falls with ``share`` or ``rate``, and never rises with ``forward``.

        Args:
            share: value of the setting from epoch ``start`` on.
            forward: phi, in [0, 1].
            done: time saved by the epochs before ``start``, in epochs, minus the scoring pass before ``start``.
            start: the first epoch that has not been planned yet.
            rate: how much of what the setting allows is really hidden; below 1 if samples are moved back.
        """
        least, most = (course.spared(forward, start) for course in (self.least, self.most))
        spared = least + (most - least) * share / self.limit
        return (done + rate * spared - self.most.extra) / self.most.epochs

    def share(self, save: float, forward: float, done: float = 0.0, start: int = 0, rate: float = 1.0) -> float:
        """The setting for which :meth:`saving` is ``save``. It lies outside [0, ``limit``], or is infinite, if no allowed one
        exists.
        """
        none, all_of_it = (self.saving(share, forward, done, start, rate) for share in (0.0, self.limit))
        # refreshes cost as much as hiding saves, so no share gives a larger saving
        if all_of_it <= none:
            return math.inf if save > none else 0.0
        return (save - none) / (all_of_it - none) * self.limit


def share_setting(method: Method | type[Method]) -> str | None:
    """Name of the one setting that says how much a method hides; ``None`` if there is none, or something else matters too."""
    name = getattr(method, "share_setting", None)
    return name if any(field.name == name for field in fields(method)) else None


def with_share(method: Method, share: float, every: int | None = None) -> Method:
    """Return the method with another share, and another number of epochs for which a choice is kept."""
    return replace(method, **{str(share_setting(method)): share}, **({} if every is None else {"every_n_epochs": every}))


def saving_model(method: Method, max_epochs: int, limit: float, every: int | None = None) -> SavingModel:
    """Build the model of ``method`` in a training of ``max_epochs``, for shares up to ``limit``."""
    least, most = (_course(with_share(method, share, every), max_epochs) for share in (0.0, limit))
    return SavingModel(least, most, limit)


def _course(method: Method, max_epochs: int) -> Course:
    """Plan all epochs of ``method`` on made-up samples that are all predicted correctly and confidently. The first epoch trains on
    everything.

    Classes and protected samples are ignored.
    """
    method = replace(method, protected=(), protected_classes=(), balance=None)
    work = play(method, max_epochs, learned(SAMPLES), SAMPLES, whole=1)
    return Course(tuple(1 - share for share in work.trained), work.refreshed, work.extra)
