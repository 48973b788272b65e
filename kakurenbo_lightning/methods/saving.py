"""How much training time a hide method saves: a model of its epochs, and the share it must hide to save so much.

Time is counted in epochs that train on everything, a sample of which costs 1. An epoch that leaves out the share h of the samples costs
1 - h; a refresh of a share s, forward only, costs phi * s, where phi is the cost of a sample's forward pass in that unit. A training of E
epochs then saves ``(sum of h - phi * sum of s - extra) / E`` of its time; ``extra`` are epochs that come on top.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.methods.course import learned, play

SAMPLES = 400  # of the made-up data set on which a method plans a course


@dataclass(frozen=True)
class Course:
    """What a training leaves out and refreshes, epoch by epoch.

    Attributes:
        hidden: share of the samples that each epoch leaves out.
        refreshed: share that is scored, forward only, before each epoch.
        extra: how many of the epochs come on top of those that were asked for: the scoring epochs of a static method.
    """

    hidden: tuple[float, ...]
    refreshed: tuple[float, ...]
    extra: int = 0

    @property
    def epochs(self) -> int:
        """E, how many were asked for."""
        return len(self.hidden) - self.extra

    def spared(self, forward: float, start: int = 0) -> float:
        """Epochs' worth of time that epoch ``start`` and those after it save, without what is scored before ``start``; ``forward``: phi."""
        return math.fsum(self.hidden[start:]) - forward * math.fsum(self.refreshed[start + 1 :])

    def saving(self, forward: float) -> float:
        """Share of the training time that is saved; negative where refreshes and extra epochs cost more than hiding saves."""
        return (self.spared(forward) - self.extra) / self.epochs


@dataclass(frozen=True)
class SavingModel:
    """The saving of a method as a function of its share setting, in proportion to which it hides.

    Attributes:
        least: the course at a setting of 0.
        most: the course at ``limit``.
        limit: the largest setting.
    """

    least: Course
    most: Course
    limit: float

    def hidden(self, share: float, epoch: int) -> float:
        """Share of the samples that ``epoch`` leaves out when the setting is ``share`` and the samples allow it."""
        least, most = (course.hidden[epoch] for course in (self.least, self.most))
        return least + (most - least) * share / self.limit

    def saving(self, share: float, forward: float, done: float = 0.0, start: int = 0, rate: float = 1.0) -> float:
        """The share of the training time that is saved. Never falls with ``share`` or ``rate``, never rises with ``forward``.

        Args:
            share: the setting, from epoch ``start`` on.
            forward: phi, in [0, 1].
            done: epochs' worth of time that the epochs before ``start`` have saved, less what is scored before ``start``.
            start: the first epoch that is still to come.
            rate: how much of what the setting allows is hidden; samples that are moved back make it less than 1.
        """
        least, most = (course.spared(forward, start) for course in (self.least, self.most))
        spared = least + (most - least) * share / self.limit
        return (done + rate * spared - self.most.extra) / self.most.epochs

    def share(self, save: float, forward: float, done: float = 0.0, start: int = 0, rate: float = 1.0) -> float:
        """The setting whose :meth:`saving` is ``save``; beyond [0, ``limit``], even infinite, where there is none."""
        none, all_of_it = (self.saving(share, forward, done, start, rate) for share in (0.0, self.limit))
        if all_of_it <= none:
            return math.inf if save > none else 0.0
        return (save - none) / (all_of_it - none) * self.limit


def share_setting(method: Method | type[Method]) -> str | None:
    """The one setting that says how much a method hides; ``None`` for methods that have none, or hide by something else too."""
    name = getattr(method, "share_setting", None)
    return name if any(field.name == name for field in fields(method)) else None


def with_share(method: Method, share: float, every: int | None = None) -> Method:
    """The method with another share, and another number of epochs that keep a choice."""
    return replace(method, **{str(share_setting(method)): share}, **({} if every is None else {"every_n_epochs": every}))


def saving_model(method: Method, max_epochs: int, limit: float, every: int | None = None) -> SavingModel:
    """The model of ``method`` in a training of ``max_epochs``, for shares up to ``limit``."""
    least, most = (_course(with_share(method, share, every), max_epochs) for share in (0.0, limit))
    return SavingModel(least, most, limit)


def _course(method: Method, max_epochs: int) -> Course:
    """The plans of ``method`` on made-up samples that are all right and sure; the first epoch trains on everything.

    Classes and protected samples are left out of account.
    """
    method = replace(method, protected=(), protected_classes=(), balance=None)
    work = play(method, max_epochs, learned(SAMPLES), SAMPLES, whole=1)
    return Course(tuple(1 - share for share in work.trained), work.refreshed, work.extra)
