"""The callback that writes what a selection did into a folder: :class:`RunRecorder`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities import rank_zero_warn

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.core.extras import require
from kakurenbo_lightning.core.flavour import join
from kakurenbo_lightning.methods.settings import require as check
from kakurenbo_lightning.record import files, schema
from kakurenbo_lightning.record.epoch_rows import EpochRows
from kakurenbo_lightning.record.loggers import log_samples
from kakurenbo_lightning.record.machine import git_state, machine, typed_command, versions, without_secrets
from kakurenbo_lightning.record.sample_counts import SampleCounts
from kakurenbo_lightning.record.selection_view import SelectionView

METRICS = ("val/accuracy", "val_accuracy", "val/acc", "val_acc", "val/iou", "accuracy")


WITHOUT_INDEX = (
    "RunRecorder: samples of iterable data have no index, so there are no samples.parquet and no thumbnails.npz; run.json and "
    "selection.parquet are written as always"
)


class RunRecorder(L.Callback):
    """Writes what a selection did into a folder, of which ``kakurenbo-report`` makes tables and pictures::

        selection = SampleSelection("kakurenbo")
        trainer = L.Trainer(callbacks=[selection, RunRecorder(selection, "results/kakurenbo")])

    Rank 0 writes, in a thread of its own; a file appears under its name when it is whole. What cannot be written (a full disk) is a
    warning and tried again later; training goes on. Counts and rows are in the checkpoint, so the files of a resumed run cover all of
    it. :mod:`kakurenbo_lightning.record.schema` says what the files hold.

    Memory: 4 bytes per sample on the device, 24 on the host and 28 in a checkpoint.

    Args:
        selection: the selection to record, which stands before the recorder in the Trainer's callbacks; by default the one found there.
        folder: where to write; made when it is not there. It has no default.
        metric: the logged validation metric that runs are compared by; by default the first of ``METRICS`` that is logged.
        every_n_epochs: how often samples.parquet is written, and histograms logged.
        to_loggers: also give histograms and images to loggers that can show them (TensorBoard, Weights & Biases).
        config: the settings of the program, written to run.json without passwords.
        class_names: name of each class; by default those of the data set (its attribute ``classes``).

    Raises:
        MissingExtraError: pyarrow is not installed.
        ValueError: a setting that is not possible, or callbacks in the wrong order.
    """

    _trainer: L.Trainer  # from setup on
    _clock: float  # from the start of the fit on

    def __init__(
        self,
        selection: SampleSelection | None = None,
        folder: str | Path | None = None,
        metric: str | None = None,
        every_n_epochs: int = 5,
        to_loggers: bool = False,
        config: Mapping[str, Any] | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        require("RunRecorder", "report", "pyarrow")
        join(RunRecorder)  # pytorch_lightning may have been imported since
        _check_arguments(type(self).__name__, selection, folder, every_n_epochs, to_loggers)
        self.folder, self.metric = Path(cast("str | Path", folder)), metric  # checked above
        self.every_n_epochs, self.to_loggers = every_n_epochs, to_loggers
        self.config, self.class_names, self._view = dict(config or {}), class_names, SelectionView(selection)
        self._writer = files.BackgroundWriter(self.folder)
        self._info: dict[str, Any] = {}  # the content of run.json
        self._training = False  # from the start of training to its end
        self._in_epoch = False  # the row of the current epoch is open
        self._reset()

    @property
    def selection(self) -> SampleSelection:
        """The selection that is recorded; one that was not given is known from ``setup`` on."""
        return self._view.selection

    def _reset(self) -> None:
        """Start a record with no counts and rows."""
        self._rows = EpochRows(self._view)
        self._counts, self._counting = SampleCounts(0, torch.device("cpu")), False
        self._loaded: dict[str, Any] | None = None
        self._fit_seconds, self._started = 0.0, None  # of earlier fits, and when the first one began
        self._resumed = False
        self._warned: set[str] = set()  # settings whose warning was given

    # --- the fit

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse callbacks in the wrong order."""
        self._view.find(self, trainer.callbacks)  # pyright: ignore[reportAttributeAccessIssue]  which Lightning sets elsewhere
        if stage != "fit":
            return
        if trainer is not getattr(self, "_trainer", None):  # a second fit of the same Trainer goes on where the first one ended
            self._reset()
        self._trainer, self._training = trainer, False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write that a run has begun."""
        self._clock = time.perf_counter()
        device = "cuda" if trainer.strategy.root_device.type == "cuda" else "cpu"
        self._info = {
            "name": self.folder.name,
            "status": "running",
            "error": None,
            **self._view.method,
            "config": without_secrets(self.config),
            "world_size": trainer.world_size,
            "max_epochs": trainer.max_epochs if (trainer.max_epochs or -1) >= 0 else None,
            "versions": versions(),
            "machine": machine(device),
            "git": git_state(Path.cwd()),
            "started": self._started or _now(),
            "ended": None,
            "command": typed_command(),
        }
        if trainer.is_global_zero:
            if self._loaded is None and not self._fit_seconds:
                _warn_of_run(self.folder)
            self._writer.start()
        if self._loaded is None:  # else what the folder says of the run is right until training goes on
            self._write_run()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count from here what the steps train."""
        self._start_counting()
        if len(self._counts):
            self._view.call_on_trained(lambda indices: self._counts.begin_step(self._view.step, indices))
        else:
            _warn_once(self._warned, "samples", WITHOUT_INDEX)

    def _start_counting(self) -> None:
        """Make room for the counts, and take over those that were loaded."""
        if not len(self._counts):
            self._counts = SampleCounts(len(self._view.statistics), self._trainer.strategy.root_device, self._view.ranks)
        self._counting = True
        state, self._loaded = self._loaded, None
        if state is not None:
            self._take_over(state)
        self._training, self._in_epoch = True, False

    # --- an epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count what the epoch hides."""
        self._enter_epoch(trainer.current_epoch)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Enter an epoch that was resumed in its middle: Lightning calls no ``on_train_epoch_start`` for it."""
        if not self._in_epoch:
            self._enter_epoch(trainer.current_epoch)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the samples of the step, which is complete now."""
        self._counts.end_step()

    def _enter_epoch(self, epoch: int) -> None:
        """Open the row of ``epoch``, unless a checkpoint has brought an open one."""
        if self._rows.outdated:  # the selection has started over (on_mismatch="reset"), so the record does
            self._reset()
            self._start_counting()
        self._in_epoch = True
        if self._rows.epoch not in (None, epoch):
            self._rows.take_ended()  # the checkpoint was of that epoch's end, which Lightning does not repeat
            self._rows.close()
        if self._rows.epoch is not None:
            return
        self._rows.take_late(self._trainer)
        if self._resumed:
            self._resumed = False
            self._write_run()
        self._counts.figures.add(self._view.statistics, epoch - 1)
        if epoch and epoch % self.every_n_epochs == 0:
            self._write_samples(epoch)
        self._counts.hide(self._view.plan.hidden, epoch)
        self._rows.open(epoch)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember which metrics were logged before, to know those of the validation."""
        self._logged_before = set(trainer.callback_metrics)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep what validation logged with the epoch."""
        if self._rows.epoch is None or trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self._rows.take_validation(trainer, self._logged_before)
        if self.metric is not None and self.metric not in self._rows.validation:
            names = ", ".join(sorted(self._rows.validation)) or "nothing"
            text = f"RunRecorder(metric={self.metric!r}): validation does not log it, so the run has no score; it logs {names}"
            _warn_once(self._warned, "metric", text)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the row of the epoch, and write the rows."""
        if self._rows.epoch == trainer.current_epoch:
            self._rows.take_training(trainer)
            self._rows.close()
            self._write_rows()

    # --- the end

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take what the module logged last: its ``on_train_epoch_end`` comes after a callback's."""
        self._rows.take_late(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write that the run is finished, and what is known of every sample, which the ranks have merged."""
        if not self._training and self._loaded is not None:  # the checkpoint was of the end, nothing was left to train
            self._start_counting()
        if self._rows.epoch is not None:
            self._rows.take_ended()
            self._rows.close()
        if len(self._rows):
            self._write_rows()
            self._counts.figures.add(self._view.statistics, self._rows.last)
            self._write_samples(len(self._rows), last=True)
        self._finish("finished")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write that the run is stopped; the rows and samples written so far stay."""
        if self._info:
            self._info["error"] = without_secrets(f"{type(exception).__name__}: {exception}")
            if len(self._rows):
                self._write_rows()
            if self._loaded is None:  # else nothing is known of the run yet
                self._finish("stopped")
        self._release()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let go of the selection and the thread."""
        if stage == "fit":
            self._release()

    def _release(self) -> None:
        self._training = False
        self._view.call_on_trained(None)
        self._writer.stop()

    def _finish(self, status: str) -> None:
        self._info |= {"status": status, "ended": _now()}
        self._write_run()
        self._fit_seconds, self._started = self._info["fit_seconds"], self._info["started"]
        self.flush()

    # --- files

    def flush(self) -> None:
        """Wait until all files are written."""
        self._writer.flush()

    def _write_rows(self) -> None:
        self._write_run()
        self._writer.submit(files.write_epochs, self._rows.flat())

    def _write_run(self) -> None:
        name = self.metric or next((name for name in METRICS if name in self._rows.validation), None)
        scores = self._rows.logged(name)
        totals, statistics = self.selection.totals, self.selection.statistics
        classes = self.class_names or getattr(self._view.dataset, "classes", None)
        if self._rows.epoch is None or "totals" not in self._info:  # within an epoch they hold its plan, but not its training
            self._info |= {"totals": totals.as_dict(), "seconds": totals.seconds}
        self._info |= {
            "seed": self._view.seed,
            "metric": name,
            "score": scores[-1] if scores else None,
            "num_samples": len(statistics) if statistics is not None and len(statistics) and not statistics.grows else None,
            "class_names": [str(one) for one in classes] if isinstance(classes, list | tuple) else None,
            "epochs": len(self._rows),
            "fit_seconds": self._fit_seconds + time.perf_counter() - self._clock,
            "fingerprint": self._view.fingerprint,
        }
        self._writer.submit(files.write_run, dict(self._info))

    def _write_samples(self, epochs: int, last: bool = False) -> None:
        """Copy what is known of every sample, and let it be written; collective. Of samples without an index nothing is."""
        if not len(self._counts):
            return
        trained = self._counts.trained(self._view.done_batches())
        if not self._trainer.is_global_zero:
            return
        columns = {
            name: column.detach().to("cpu", copy=True).numpy()
            for name, column in self._view.columns(trained, self._counts).items()
        }
        self._writer.submit(files.write_samples, columns, epochs)
        thumbnails = self._view.thumbnails(columns) if last else None
        if thumbnails is not None:
            self._writer.submit(files.write_thumbnails, thumbnails)
        if self.to_loggers:
            try:
                log_samples(self._trainer, columns, thumbnails, epochs)
            except Exception as error:  # a full disk, a network that is down: training is worth more
                text = f"RunRecorder: a logger did not take histograms or images ({error}), training goes on"
                _warn_once(self._warned, "to_loggers", text)

    # --- state

    def state_dict(self) -> dict[str, Any]:
        """Rows and counts; loads with ``weights_only=True``. Collective unless an exception is being handled."""
        if not self._counting:
            return self._loaded or {}
        self._rows.take_late(self._trainer)
        alone = self._trainer.state.status == TrainerStatus.INTERRUPTED
        counts = self._counts.state_dict(self._view.done_batches(), alone)
        spent = self._fit_seconds + time.perf_counter() - self._clock
        return {"rows": self._rows.state_dict(), "counts": counts, "fit_seconds": spent, "started": self._info["started"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training begins; one that is put back during training (a static method's restart) changes nothing."""
        if not self._training:
            self._loaded = dict(state_dict) or None

    def _take_over(self, state: dict[str, Any]) -> None:
        if len(state["counts"]["trained"]) != len(self._view.statistics):
            return  # of another data set: the selection has started over
        self._fit_seconds, self._started = state["fit_seconds"], state["started"]
        self._info["started"], self._resumed = self._started, True
        self._rows.load_state_dict(state["rows"])
        self._counts.load_state_dict(state["counts"], self._trainer.is_global_zero)


join(RunRecorder)  # for a command line that asks before an instance is made


def _check_arguments(name: str, selection: Any, folder: Any, every_n_epochs: Any, to_loggers: Any) -> None:
    """Raise ``ValueError`` for an argument of a recorder, of a class called ``name``, that is not possible."""
    is_selection = selection is None or isinstance(selection, SampleSelection)
    check(is_selection, name, "selection", selection, "a SampleSelection or None", "Give it to the Trainer too.")
    is_folder = isinstance(folder, str | Path) and bool(str(folder))
    check(is_folder, name, "folder", folder, "the path of a folder of this run alone", 'Try folder="results/kakurenbo".')
    is_count = isinstance(every_n_epochs, int) and not isinstance(every_n_epochs, bool) and every_n_epochs >= 1
    check(is_count, name, "every_n_epochs", every_n_epochs, "an int >= 1", "Try 5.")
    check(isinstance(to_loggers, bool), name, "to_loggers", to_loggers, "true or false", "Try false.")


def _warn_once(warned: set[str], setting: str, text: str) -> None:
    if setting not in warned:
        warned.add(setting)
        rank_zero_warn(text)


def _warn_of_run(folder: Path) -> None:
    if (folder / schema.RUN).exists():
        rank_zero_warn(
            f"RunRecorder: {folder} holds a run already, which this one replaces; give each run a folder of its own, or resume it with "
            "ckpt_path"
        )


def _now() -> str:
    return datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")
