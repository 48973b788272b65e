"""A callback that leaves what a selection did in files: `RunRecorder`.

run.json says what was run and how it ended, selection.parquet has a row per epoch, samples.parquet one per sample, thumbnails.npz a few
images. `kakurenbo-report FOLDER` makes tables and pictures of them.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from kakurenbo_recipes.settings import check_setting, is_count
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.core.class_labels import targets_of
from kakurenbo_lightning.core.random import rng_state, set_rng_state
from kakurenbo_lightning.record import files as run_files
from kakurenbo_lightning.record import loggers
from kakurenbo_lightning.record.epoch_rows import EpochRows
from kakurenbo_lightning.record.machine import git_state, machine, versions
from kakurenbo_lightning.record.sample_counts import SampleCounts
from kakurenbo_lightning.session.checkpoint import describe_method

METRICS = ("val/accuracy", "val_accuracy", "val/acc", "val_acc", "val/iou", "accuracy")


class RunRecorder(L.Callback):
    """Writes what a selection did into a folder; comes after the selection in the Trainer's callbacks::

        selection = SampleSelection("kakurenbo")
        trainer = L.Trainer(callbacks=[selection, RunRecorder(selection, "results/kakurenbo")])

    Rank 0 writes, in a thread of its own; files appear under their names when they are whole. What cannot be written (a full disk) is
    told in a warning and tried again; training goes on. Counts and rows are in the checkpoint, so a resumed run has them all.

    Memory: 4 bytes per sample on the device, 7 on the host and 11 in a checkpoint.

    Args:
        selection: whose.
        folder: where to; made when it is not there.
        metric: the logged validation metric that runs are compared by; by default the first of `METRICS` that is logged.
        every_n_epochs: how often samples.parquet is written, and histograms logged.
        to_loggers: also give histograms and images to loggers that can show them (TensorBoard, Weights & Biases).
        config: the settings of the program, to be written down.
        class_names: by class; by default those of the data set (its attribute `classes`).

    Raises:
        ValueError: a setting that is not possible, or callbacks in the wrong order.
    """

    def __init__(
        self,
        selection: SampleSelection,
        folder: str | Path,
        metric: str | None = None,
        every_n_epochs: int = 5,
        to_loggers: bool = False,
        config: Mapping[str, Any] | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        is_number = is_count(every_n_epochs, 1)
        is_selection = isinstance(selection, SampleSelection)
        check_setting("selection", selection, is_selection, "a SampleSelection", "Make one, and give it to the Trainer too.")
        check_setting("every_n_epochs", every_n_epochs, is_number, "an int >= 1", "Try 5.")
        check_setting("to_loggers", to_loggers, isinstance(to_loggers, bool), "true or false", "Try false.")
        self.selection, self.folder, self.metric = selection, Path(folder), metric
        self.every_n_epochs, self.to_loggers = every_n_epochs, to_loggers
        self.config, self.class_names = dict(config or {}), class_names
        self._trainer: L.Trainer | None = None
        self._writer: ThreadPoolExecutor | None = None
        self._writes: list[Future] = []
        self._told: dict[str, Any] = {}
        self._running = False
        self._forget()

    def _forget(self) -> None:
        """Begin anew."""
        self._rows = EpochRows(self.selection)
        self._counts: SampleCounts | None = None
        self._loaded: dict[str, Any] | None = None
        self._fit_seconds, self._started = 0.0, None  # of fits before this one, and when the first began
        self._resumed = self._warned = False

    # --- the run

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what cannot work."""
        order = [callback for callback in trainer.callbacks if callback is self or callback is self.selection]
        right, names = order == [self.selection, self], [type(callback).__name__ for callback in order]
        hint = "Write callbacks=[selection, RunRecorder(selection, folder)]."
        check_setting("callbacks", names, right, "a list with the selection and, after it, its RunRecorder", hint)
        if stage != "fit":
            return
        if trainer is not self._trainer:  # a second fit of the same Trainer goes on where the first one ended
            self._forget()
        self._trainer, self._running = trainer, False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say that a run has begun."""
        self._clock = time.perf_counter()
        device = "cuda" if trainer.strategy.root_device.type == "cuda" else "cpu"
        self._told = {
            "name": self.folder.name,
            "status": "running",
            "error": None,
            **describe_method(self.selection.method),
            "family": self.selection.method.family,
            "config": run_files.without_secrets(self.config),
            "world_size": trainer.world_size,
            "max_epochs": trainer.max_epochs if (trainer.max_epochs or -1) >= 0 else None,
            "versions": versions(),
            "machine": machine(device),
            "git": git_state(Path.cwd()),
            "started": self._started or _now(),
            "ended": None,
            "command": run_files.command(),
        }
        if trainer.is_global_zero:
            self._writer = ThreadPoolExecutor(1, "run recorder")
        if self._loaded is None:  # else what the folder says of the run is right until it goes on
            self._write_run()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Watch the steps."""
        self._begin()
        self.selection.session.on_trained = self._count

    def _begin(self) -> None:
        """Make room, and take over what was loaded."""
        if self._counts is None:
            self._counts = SampleCounts(len(self.selection.statistics), self._trainer.strategy.root_device)
        state, self._loaded = self._loaded, None
        if state is not None:
            self._take_over(state)
        self._running, self._follows = True, False

    def _count(self, indices: Tensor) -> None:
        self._counts.begin_step(self.selection.session.step, indices)

    # --- an epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count what the epoch hides."""
        self._follow(trainer.current_epoch)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """An epoch that goes on from a checkpoint has no other beginning."""
        if not self._follows:
            self._follow(trainer.current_epoch)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is made."""
        self._counts.end_step()

    def _follow(self, epoch: int) -> None:
        """Open the row of `epoch`, unless it goes on from a checkpoint."""
        self._follows = True
        if self._rows.outdated:
            self._forget()  # as the selection has, with on_mismatch="reset"
            self._begin()
            self._follows = True
        if self._rows.epoch not in (None, epoch):
            self._rows.take_ended()  # resumed at its end: Lightning does not end it
            self._rows.close()
        if self._rows.epoch is not None:
            return
        self._rows.take_late(self._trainer)
        if self._resumed:
            self._resumed = False
            self._write_run()
        if epoch and epoch % self.every_n_epochs == 0:
            self._write_samples(epoch)
        self._counts.hide(self.selection.plan.hidden, epoch)
        self._rows.open(epoch)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember what is logged before."""
        self._logged_before = set(trainer.callback_metrics)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Know what validation logs, and keep it with the epoch."""
        if self._rows.epoch is not None and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._rows.take_validation(trainer, self._logged_before)
            if self.metric is not None and self.metric not in self._rows.validation and not self._warned:
                self._warned = True
                names = ", ".join(sorted(self._rows.validation)) or "nothing"
                rank_zero_warn(
                    f"RunRecorder(metric={self.metric!r}): validation does not log it, so the run has no score; it logs {names}"
                )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the epoch's row."""
        if self._rows.epoch == trainer.current_epoch:
            self._rows.take_training(trainer)
            self._rows.close()
            self._write_rows()

    def _write_rows(self) -> None:
        self._write_run()
        self._write(run_files.write_epochs, self._rows.flat())

    # --- the end

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing more is logged."""
        self._rows.take_late(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The run is finished; write what is known of every sample, which the ranks have merged."""
        if not self._running and self._loaded is not None:  # the checkpoint was of the end, nothing was left to train
            self._begin()
        if self._rows.epoch is not None:
            self._rows.take_ended()
            self._rows.close()
        if len(self._rows):
            self._write_rows()
            self._write_samples(len(self._rows), last=True)
        self._finish("finished")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """The run is stopped: the epochs and samples written so far stay."""
        if self._told:
            self._told["error"] = f"{type(exception).__name__}: {exception}"
            if len(self._rows):
                self._write_rows()
            if self._loaded is None:  # else nothing is known of the run yet
                self._finish("stopped")
        self._release()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let go of the run and the thread."""
        if stage == "fit":
            self._release()

    def _release(self) -> None:
        self._running = False
        if self.selection.session is not None:
            self.selection.session.on_trained = None
        if self._writer is not None:
            self._writer.shutdown()
            self._writer = None

    def _finish(self, status: str) -> None:
        self._told |= {"status": status, "ended": _now()}
        self._write_run()
        self._fit_seconds, self._started = self._told["fit_seconds"], self._told["started"]
        self.flush()

    # --- files

    def flush(self) -> None:
        """Wait until everything is written."""
        for write in self._writes:
            write.result()
        self._writes = []

    def _write(self, function: Callable[..., None], *arguments: Any) -> None:
        """Let the thread write; warn of what it cannot."""
        if self._writer is None:
            return

        def write() -> None:
            try:
                function(self.folder, *arguments)
            except Exception as error:  # training is worth more than its record
                rank_zero_warn(
                    f"RunRecorder: {getattr(error, 'filename', None) or self.folder} is not written "
                    f"({getattr(error, 'strerror', None) or error}), training goes on; make room or set another folder. What was "
                    "there is whole"
                )

        self._writes = [pending for pending in self._writes if not pending.done()]
        self._writes.append(self._writer.submit(write))

    def _write_run(self) -> None:
        name = self.metric or next((name for name in METRICS if name in self._rows.validation), None)
        scores = self._rows.logged(name)
        totals = self.selection.totals
        statistics = self.selection.statistics
        self._told |= {
            "seed": self.selection.session.seed,
            "metric": name,
            "score": scores[-1] if scores else None,
            "num_samples": None if statistics is None else len(statistics),
            "class_names": self._names(),
            "epochs": len(self._rows),
            "totals": {**asdict(totals), "saved_seconds": totals.saved_seconds},
            "seconds": totals.train_seconds + totals.refresh_seconds + totals.select_seconds,
            "fit_seconds": self._fit_seconds + time.perf_counter() - self._clock,
            "fingerprint": self.selection.session.fingerprint,
        }
        self._write(run_files.write_run, dict(self._told))

    def _names(self) -> list[str] | None:
        dataset = self._dataset()
        names = self.class_names or getattr(dataset, "classes", None)
        return [str(name) for name in names] if isinstance(names, list | tuple) else None

    def _dataset(self) -> Any:
        run = self.selection.session
        return None if run is None or run.loader is None else run.loader.dataset

    def _write_samples(self, epochs: int, last: bool = False) -> None:
        """Copy what is known of every sample, and let it be written; collective."""
        statistics = self.selection.statistics
        trained = self._counts.trained(self.selection.session.adapter.done_batches())
        if not self._trainer.is_global_zero:
            return
        columns = {
            "loss": statistics.loss,
            "confidence": statistics.confidence,
            "correct": statistics.correct,
            "target": statistics.extra.get("target", self._targets()),
            "epoch_seen": statistics.epoch_seen,
            "times_trained": trained,
            "times_hidden": self._counts.hidden,
            "last_change": self._counts.changed,
            **{name: column for name, column in statistics.extra.items() if name != "target"},
        }
        copies = {name: column.detach().to("cpu", copy=True).numpy() for name, column in columns.items()}
        self._write(run_files.write_samples, copies, epochs)
        shown = self._thumbnails(copies) if last else None
        if shown is not None:
            self._write(run_files.write_thumbnails, *shown)
        if self.to_loggers:
            try:
                loggers.show(self._trainer, copies, shown, epochs)
            except Exception as error:  # a full disk, a network that is down: training is worth more
                rank_zero_warn(f"RunRecorder: a logger did not take histograms or images ({error}), training goes on")

    def _targets(self) -> Tensor:
        known = targets_of(self._dataset())
        return torch.full((len(self.selection.statistics),), -1, dtype=torch.int32) if known is None else known.to(torch.int32)

    def _thumbnails(self, columns: Mapping[str, np.ndarray]) -> run_files.Shown | None:
        streams = rng_state()
        try:
            return run_files.thumbnails(self._dataset(), columns)
        except Exception as error:  # of the user's data set, which workers could read: no reason to fail at the end of a run
            rank_zero_warn(f"RunRecorder: there are no thumbnails, the data set could not be read here ({error})")
            return None
        finally:
            set_rng_state(streams)

    # --- state

    def state_dict(self) -> dict[str, Any]:
        """Rows and counts; loads with `weights_only=True`. Collective unless an exception is being handled."""
        if self._counts is None:
            return self._loaded or {}
        self._rows.take_late(self._trainer)
        alone = self._trainer.state.status == TrainerStatus.INTERRUPTED
        counts = self._counts.state_dict(self.selection.session.adapter.done_batches(), alone)
        spent = self._fit_seconds + time.perf_counter() - self._clock
        return {"rows": self._rows.state_dict(), "counts": counts, "fit_seconds": spent, "started": self._told["started"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training begins; a state put back in the middle of a run (a static method's restart) changes nothing."""
        if not self._running:
            self._loaded = dict(state_dict) or None

    def _take_over(self, state: dict[str, Any]) -> None:
        if len(state["counts"]["trained"]) != len(self.selection.statistics):
            return  # of another data set: the selection has begun anew
        self._fit_seconds, self._started = state["fit_seconds"], state["started"]
        self._told["started"], self._resumed = self._started, True
        self._rows.load_state_dict(state["rows"])
        self._counts.load_state_dict(state["counts"], self._trainer.is_global_zero)


def _now() -> str:
    return datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")
