"""Trainings with a `RunRecorder`, an independent witness of what they did, and the files they leave. Needs no pytest, ranks import it."""

import json
from collections import Counter, defaultdict

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from helpers import Net, Points, loader, trainer
from lightning.pytorch.callbacks import Callback
from method_tester import short_run
from torch.utils.data import DataLoader, Dataset

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.record import RunRecorder

EPOCHS, SAMPLES = 5, 61
FILES = {"run.json", "samples.parquet", "selection.parquet"}  # of a run on data without images


class LoggingNet(Net):
    """Logs in training, in validation and at the end of an epoch, and writes down the samples it is given.

    Attributes:
        last: indices of the last step that trains.
        scored: indices of every batch without gradient.
    """

    def __init__(self):
        super().__init__(dropout=0.0)
        self.last, self.scored = None, []

    def training_step(self, batch, batch_idx):
        if torch.is_grad_enabled() and self.training:
            self.last = batch[2].tolist()
        elif not torch.is_grad_enabled():
            self.scored += batch[2].tolist()
        loss = F.cross_entropy(self.network(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[0]))
        return loss

    def on_train_epoch_end(self):
        self.log("train/late", float(self.trainer.current_epoch))

    def validation_step(self, batch, batch_idx):
        logits = self.network(batch[0])
        self.log("val/loss", F.cross_entropy(logits, batch[1]))
        self.log("val/accuracy", (logits.argmax(1) == batch[1]).float().mean())


class Witness(Callback):
    """Writes down by epoch what was trained, hidden, scored and logged; comes after the selection."""

    def __init__(self):
        self.trained, self.hidden, self.logged, self.known = defaultdict(list), {}, {}, {}
        self.refreshed, self.scored = {}, {}

    def on_train_epoch_start(self, trainer, pl_module):
        selection, epoch = trainer.callbacks[0], trainer.current_epoch
        self.hidden[epoch] = selection.plan.hidden.tolist()
        statistics = selection.statistics
        self.known[epoch] = [column.clone().cpu() for column in (statistics.loss, statistics.correct)]
        self.refreshed[epoch], pl_module.scored = len(pl_module.scored), []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.trained[trainer.current_epoch] += pl_module.last or []
        pl_module.last = None

    def on_train_epoch_end(self, trainer, pl_module):
        epoch = trainer.current_epoch
        self.scored[epoch], pl_module.scored = len(pl_module.scored), []
        self.logged[epoch] = {name: float(value) for name, value in trainer.callback_metrics.items()}

    @property
    def samples(self):
        """What samples.parquet should hold: times trained, times hidden, last change."""
        changes, now = [-1] * SAMPLES, set()
        for epoch, hidden in self.hidden.items():
            for index in set(hidden) ^ now:
                changes[index] = epoch
            now = set(hidden)
        return {"times_trained": counted(self.trained), "times_hidden": counted(self.hidden), "last_change": changes}


def counted(epochs):
    """How often each index comes in lists by epoch."""
    times = Counter(index for epoch in epochs.values() for index in epoch)
    return [times[index] for index in range(SAMPLES)]


class Files:
    """What a folder holds: run.json, the tables of both parquet files, and these as data frames."""

    def __init__(self, folder):
        self.run = run_json(folder)
        self.rows, self.samples = (pq.read_table(folder / f"{name}.parquet") for name in ("selection", "samples"))
        self.epochs, self.frame = self.rows.to_pandas(), self.samples.to_pandas()

    def without_seconds(self):
        """Rows but for what differs from run to run."""
        return self.epochs[[name for name in self.epochs if not name.endswith("seconds")]]

    def counts(self):
        """The columns that a `Witness` knows."""
        return {name: self.frame[name].tolist() for name in ("times_trained", "times_hidden", "last_change")}

    def assert_seen_by(self, witness):
        """The files are of what the witness saw."""
        assert self.counts() == witness.samples
        assert self.epochs["epoch"].tolist() == sorted(witness.trained)
        assert self.epochs["samples_trained"].tolist() == [len(witness.trained[epoch]) for epoch in self.epochs["epoch"]]
        assert self.run["epochs"] == len(self.epochs)


def run_json(folder):
    """The content of run.json, which must be JSON as other programs read it."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads((folder / "run.json").read_text(), parse_constant=refuse)


def record(folder, method="kakurenbo", *callbacks, module=None, data=None, fit=None, recorder=None, **settings):
    """Train with a recorder and return the selection and the Trainer.

    Args:
        folder: of the recorder.
        method: name of a method, with settings for a short run, or a method.
        *callbacks: after the recorder.
        module: a new `LoggingNet` unless given.
        data: the train loader; points unless given.
        fit: keywords of `Trainer.fit`.
        recorder: settings of the recorder.
        **settings: of the Trainer.
    """
    selection = SampleSelection(short_run(method, SAMPLES) if isinstance(method, str) else method, seed=1)
    written = RunRecorder(selection, folder, **{"every_n_epochs": 2, **(recorder or {})})
    made = trainer(selection, written, *callbacks, **{"max_epochs": EPOCHS, **settings})
    torch.manual_seed(0)
    made.fit(module or LoggingNet(), points() if data is None else data, loader(24, shuffle=False), **(fit or {}))
    return selection, made


def points(count=SAMPLES, batch_size=8):
    """A loader of points."""
    return DataLoader(Points(count), batch_size, shuffle=True)


class Images(Dataset):
    """Images that `make(index, brightness)` makes, bright where `y` is 1; an item is `(image, y, index)`."""

    classes = ("dark", "bright")

    def __init__(self, make=lambda index, level: np.full((10, 12, 3), level, dtype=np.uint8), count=60):
        self.make, self.targets = make, [index % 2 for index in range(count)]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        torch.rand(1)  # as augmentation draws
        return self.make(index, 40 + 120 * self.targets[index]), self.targets[index], index

    def loader(self):
        """Batches of the mean brightness, of whatever images."""
        return DataLoader(self, 10, shuffle=True, collate_fn=_collated)


class ImageNet(LoggingNet):
    """Classifies `Images`."""

    def __init__(self):
        super().__init__()
        self.network = torch.nn.Linear(1, 2)


def _collated(items):
    images, y, index = zip(*items, strict=True)
    means = [[float(np.asarray(image, dtype=np.float64).mean()) / 255] for image in images]
    return torch.tensor(means), torch.tensor(y), torch.tensor(index)
