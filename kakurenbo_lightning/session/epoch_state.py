"""Where a session is within its epochs: explicit and frozen. A checkpoint holds it as a part of a ``SessionState``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum

from kakurenbo_lightning.core.plan import EpochPlan, Plan


class Phase(Enum):
    """What has happened to the current epoch.

    ============  ==========================================  ==================================
    phase         meaning                                     may be followed by
    ============  ==========================================  ==================================
    `idle`        no epoch is planned yet                     planned
    `planned`     planned, no batch has begun                 training, ended
    `training`    batches are trained                         training, trained, validating, ended
    `trained`     the last batch is done                      training, validating, ended
    `validating`  a validation has begun since the last step  training, validated, ended
    `validated`   and is over                                 training, validating, ended
    `ended`       counted and logged                          planned
    ============  ==========================================  ==================================

    A session that resumes takes over the phase of its checkpoint. `trained` may go on with `training` when the loader is longer than it
    was; `planned` ends without a step when Lightning resumes at the last batch of its epoch.
    """

    IDLE = "idle"
    PLANNED = "planned"
    TRAINING = "training"
    TRAINED = "trained"
    VALIDATING = "validating"
    VALIDATED = "validated"
    ENDED = "ended"


_TRAINABLE = {Phase.TRAINING, Phase.VALIDATING, Phase.ENDED}
TRANSITIONS: dict[Phase, set[Phase]] = {
    Phase.IDLE: {Phase.PLANNED},
    Phase.PLANNED: {Phase.TRAINING, Phase.ENDED},
    Phase.TRAINING: _TRAINABLE | {Phase.TRAINED},
    Phase.TRAINED: _TRAINABLE,
    Phase.VALIDATING: {Phase.TRAINING, Phase.VALIDATED, Phase.ENDED},
    Phase.VALIDATED: _TRAINABLE,
    Phase.ENDED: {Phase.PLANNED},
}


@dataclass(frozen=True)
class EpochState:
    """The epoch a session is in. It is replaced, never changed.

    Attributes:
        epoch: its number, -1 before the first.
        step: batches of it that are done.
        phase: what has happened to it.
        plan: what it trains.
        done: steps and samples of it that were trained with another layout (other ranks or batches).
        metrics: what is logged of it, by name.
        ended_metrics: what was logged of the last epoch that ended.
        kept: a static method's choice, while an epoch trains on everything in its place; the losses that it went by are others then.
    """

    epoch: int = -1
    step: int = 0
    phase: Phase = Phase.IDLE
    plan: Plan = field(default_factory=lambda: EpochPlan.everything(0))
    done: tuple[int, int] = (0, 0)
    metrics: dict[str, float] = field(default_factory=dict)
    ended_metrics: dict[str, float] = field(default_factory=dict)
    kept: Plan | None = None

    @property
    def shown(self) -> dict[str, float]:
        """What the progress bar shows of it: the share of the data set that is hidden, where some is."""
        return {"hidden": self.plan.hidden_fraction} if len(self.plan.hidden) else {}

    def enter(self, phase: Phase, step: int | None = None) -> EpochState:
        """The same epoch in another phase, and at ``step`` where it is given.

        Raises:
            RuntimeError: :data:`TRANSITIONS` do not know the way there.
        """
        if phase not in TRANSITIONS[self.phase]:
            raise RuntimeError(f"epoch {self.epoch} is {self.phase.value}, which {phase.value} cannot follow")
        return replace(self, phase=phase, step=self.step if step is None else step)

    def after_step(self, done: int, batches: int) -> EpochState:
        """The same epoch when the last of ``done`` steps is done, of ``batches`` that it has."""
        state = replace(self, step=done)
        return state.enter(Phase.TRAINED) if done == batches else state

    def validation(self, phase: Phase) -> EpochState:
        """A validation begins or ends; the same state where that says nothing of the epoch: before its first step, and after its end."""
        return self.enter(phase) if phase in TRANSITIONS[self.phase] else self
