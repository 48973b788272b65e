"""The state of a session's current epoch, explicit and frozen. A checkpoint holds it as a part of ``SessionState``."""

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
    `validated`   and has ended                                training, validating, ended
    `ended`       counted and logged                          planned
    ============  ==========================================  ==================================

    A resumed session has the phase of its checkpoint. `trained` may be followed by `training` if the loader has become longer; `planned`
    may end without a step if Lightning resumes at the last batch of its epoch.
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
    """The current epoch of a session. It is replaced, never changed.

    Attributes:
        epoch: number of the epoch; -1 before the first.
        step: number of its batches that are done.
        phase: how far it has come.
        plan: the samples that it trains.
        done: steps and samples of it that were trained with another layout (other ranks or batch size).
        metrics: its logged metrics, by name.
        ended_metrics: metrics of the last epoch that has ended.
        kept: the choice of a static method while an epoch trains on everything instead; it cannot be made again, because the losses
            have changed.
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
        """What the progress bar shows: the share of the data set that is hidden, if any is."""
        return {"hidden": self.plan.hidden_fraction} if self.plan.hidden_count else {}

    def enter(self, phase: Phase, step: int | None = None) -> EpochState:
        """Return this epoch in another phase, and at ``step`` if that is given.

        Raises:
            RuntimeError: :data:`TRANSITIONS` does not allow this change of phase.
        """
        if phase not in TRANSITIONS[self.phase]:
            raise RuntimeError(f"epoch {self.epoch} is {self.phase.value}, which {phase.value} cannot follow")
        return replace(self, phase=phase, step=self.step if step is None else step)

    def after_step(self, done: int, batches: int) -> EpochState:
        """Return this epoch after ``done`` of its ``batches`` steps."""
        state = replace(self, step=done)
        return state.enter(Phase.TRAINED) if done == batches else state

    def validation(self, phase: Phase) -> EpochState:
        """Return this epoch as a validation begins or ends. Before its first step and after its end it is unchanged, because that
        validation is not the epoch's.
        """
        return self.enter(phase) if phase in TRANSITIONS[self.phase] else self
