"""The record that a training writes before it is killed, and the moments of a training at which it can be killed."""

import json
import os
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

STEP_ENDS = ("inside a step", "batch end", "last batch")
EPOCH_ENDS = ("validation", "validation end", "epoch end", "epoch start", "forward-only pass")
WRITES = ("half-written", "before renaming", "after renaming")  # of a checkpoint's file
IN_STEP = ("batch start", "after forward", "after backward", "inside a step", "after the update")
# the process is not killed at once but saves a checkpoint there first, or gets a signal: SLURM's to save and requeue, or SIGTERM
SAVES = tuple(f"save:{moment}" for moment in (*IN_STEP, "batch end", "last batch", *EPOCH_ENDS[:4]))
REQUEUES = tuple(f"requeue:{moment}" for moment in (*IN_STEP[1:], "forward-only pass", "validation", "epoch end"))
TERMINATIONS = tuple(f"terminate:{moment}" for moment in ("inside a step", "batch end", "validation"))
MOMENTS = (*STEP_ENDS, *EPOCH_ENDS, *WRITES, *SAVES, *REQUEUES, *TERMINATIONS)
SIGNALS = {"requeue": signal.SIGUSR1, "terminate": signal.SIGTERM}
Event = tuple[str, int, int]


@dataclass(frozen=True)
class Kill:
    """When and how one rank ends itself: at the first occurrence of a moment at or after batch `tick` of the run.

    Attributes:
        moment: one of `MOMENTS`.
        tick: number of batches begun since the run began.
        index: number of earlier occurrences of the moment since that batch began.
        rank: the rank that ends itself.
    """

    moment: str
    tick: int
    index: int = 0
    rank: int = 0

    @property
    def how(self) -> str:
        """The prefix of the moment, which says how to end; empty for a plain kill."""
        return self.moment.rpartition(":")[0]

    @property
    def event(self) -> str:
        """The moment without its prefix."""
        return self.moment.rpartition(":")[2]


@dataclass
class Record(L.Callback):
    """Records what happens and at which moments, and kills this process at one of them. Comes after the selection.

    Attributes:
        folder: gets `killed.json` before a kill.
        kill: when to kill this process; `None` for never.
        events: (moment, tick, index) of every moment on this rank, without `WRITES`.
    """

    folder: Path
    kill: Kill | None = None
    batches: dict[int, dict[int, Tensor]] = field(default_factory=dict)
    rates: dict[int, dict[int, float]] = field(default_factory=dict)
    validations: dict[int, dict[int, float]] = field(default_factory=dict)
    plans: dict[int, dict[str, Any]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    position: dict[str, int] = field(default_factory=dict)
    _tick: int = 0
    _validating: bool = False
    _times: Counter[str] = field(default_factory=Counter)

    def reach(self, moment: str) -> None:
        """Record a moment, or end the process in it."""
        if not self.due(moment) or self.kill is None:
            return
        if self.kill.how == "save":
            self.trainer.save_checkpoint(self.folder / f"in-{moment.replace(' ', '-')}-{self._tick}.ckpt")
        if self.kill.rank != self.trainer.global_rank and self.kill.how != "terminate":
            self.kill = None
        elif self.kill.how in SIGNALS:
            self.signal(SIGNALS[self.kill.how])
        else:
            self.die()

    def due(self, moment: str) -> bool:
        """Whether this is the moment to end in."""
        now, kill = (self._tick, self._times[moment]), self.kill
        self._times[moment] += 1
        self.events.append((moment, *now))
        return kill is not None and moment == kill.event and now >= (kill.tick, kill.index)

    def signal(self, number: signal.Signals) -> None:
        """Write where the process is, then send it the signal that ends it now or later."""
        self.kill = None
        (self.folder / "killed.json").write_text(json.dumps(self.position))
        os.kill(os.getpid(), number)

    def die(self) -> None:
        """End the process at once, without any cleanup."""
        self.signal(signal.SIGKILL)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Watch forward passes and the writing of files; ranks that only one signal or kill reaches forget it."""
        self.trainer = trainer
        if self.kill is not None and self.kill.rank != trainer.global_rank and self.kill.how in ("", "requeue"):
            self.kill = None

        def score(*_: Any) -> None:
            if trainer.validating and not self._validating:  # a scoring pass sets trainer.validating too
                self.reach("forward-only pass")

        pl_module.network.register_forward_pre_hook(score)
        if self.kill is not None and self.kill.moment in WRITES:
            self._watch_writing()

    def _watch_writing(self) -> None:
        sync, replace = os.fsync, Path.replace

        def half(file: int) -> None:
            if self.due(WRITES[0]):
                os.ftruncate(file, os.fstat(file).st_size // 2)
                self.die()
            sync(file)

        def rename(source: Path, target: Path) -> Path:
            self.reach(WRITES[1])
            renamed = replace(source, target)
            self.reach(WRITES[2])
            return renamed

        os.fsync, Path.replace = half, rename  # patched for the whole process, which ends soon

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take note of the batches that a resumed run has behind it. The hook comes after the selection's."""
        trainer.optimizers[0].register_step_post_hook(lambda *_: self.reach("after the update"))
        self._tick = trainer.fit_loop.epoch_loop.batch_progress.total.processed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the moment at which a plan has been made."""
        self.reach("epoch start")

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Record the batch that was loaded."""
        self._tick, self._times = self._tick + 1, Counter()
        epoch = trainer.current_epoch
        self.position = {"epoch": epoch, "batch": batch_idx, "of": trainer.num_training_batches}
        self.batches.setdefault(epoch, {})[batch_idx] = batch[2].clone()
        self.rates.setdefault(epoch, {})[batch_idx] = float(trainer.optimizers[0].param_groups[0]["lr"])
        plan = trainer.callbacks[0].plan
        self.plans[epoch] = {"hidden": plan.hidden, "lr_factor": plan.lr_factor, "checksum": plan.checksum()}
        self.reach("batch start")

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Record the moment at which buffers and random streams have changed."""
        self.reach("after forward")

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the moment at which gradients exist, including those accumulated over earlier batches."""
        self.reach("after backward")

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """Record the moment at which the gradients are as the optimizer gets them."""
        self.reach("inside a step")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Record that a batch is trained. Checkpoints are saved after this hook."""
        self.reach("last batch" if trainer.is_last_batch else "batch end")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that the following forward passes belong to a validation, not to a scoring pass."""
        self._validating = True

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Record a moment within a validation."""
        self.reach("validation")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the validated value, which belongs to the last batch."""
        self._validating = False
        value = float(trainer.callback_metrics["val_loss"])
        self.validations.setdefault(trainer.current_epoch, {})[trainer.fit_loop.batch_idx] = value
        self.reach("validation end")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the end of an epoch. Checkpoints are saved after this hook."""
        self.reach("epoch end")


class MemoryLogger(Logger):
    """Keeps the metrics that the selection logged, by epoch, except those in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: dict[int, dict[str, float]] = {}

    @property
    def name(self) -> str:
        """The logger's name, which nothing reads."""
        return "memory"

    @property
    def version(self) -> int:
        """The logger's version, which nothing reads."""
        return 0

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Ignore hyperparameters, because the test compares metrics only."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keep the metrics of the selection under their epoch."""
        kept = {name: value for name, value in metrics.items() if name.startswith("selection/") and not name.endswith("seconds")}
        if kept:
            self.epochs.setdefault(int(metrics["epoch"]), {}).update(kept)
