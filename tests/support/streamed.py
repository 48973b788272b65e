"""Trainings with a stream method, what each step really trained, and what the table of values must then be."""

import numpy as np
import torch
import torch.nn.functional as F
from helpers import Net, fit, loader
from lightning.pytorch.callbacks import Callback

from kakurenbo_lightning import SampleSelection, get_method
from kakurenbo_lightning.methods import LB, NLB, OWC, PEB, PLB

EPOCHS, BATCH, SAMPLES = 3, 8, 61
STEPS = 8  # of an epoch of 61 samples in batches of 8
CLASSES = {"owc": OWC, "lb": LB, "nlb": NLB, "plb": PLB, "peb": PEB}
METHODS = ("owc", "lb", "nlb", "plb", "peb")


def workers(count, prefetch):
    return {"num_workers": count, "prefetch_factor": prefetch, "persistent_workers": True} if count else {}


class LogitsNet(Net):
    """As a user writes it, and writes down the logits: ``seen`` in training, ``looked`` else, each ``(epoch, batch, logits)``."""

    def __init__(self, **settings):
        super().__init__(**{"dropout": 0.0, **settings})
        self.seen, self.looked = [], []

    def training_step(self, batch, batch_idx):
        logits = self.network(batch[0])
        (self.seen if self.training else self.looked).append((self.trainer.current_epoch, batch, logits.detach()))
        return F.cross_entropy(logits, batch[1])


class ToldNet(Net):
    """Tells losses by sample, ``told[index]`` or ``told(index, epoch)``, and trains on the real ones."""

    def __init__(self, told, **settings):
        super().__init__(**{"dropout": 0.0, **settings})
        self.told = told

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.network(batch[0]), batch[1])
        told = self.told(batch[2], self.trainer.current_epoch) if callable(self.told) else self.told[batch[2]]
        return {"loss": loss, "sample_loss": told, "correct": told < 1}


class Draws(Callback):
    """What the engine knows of each batch, and of its table after each epoch; comes after the selection.

    Attributes:
        known: epoch -> batch number -> the engine's ``Drawn`` of the batch that is about to be trained.
        batches: epoch -> batch number -> indices of the batch that ``training_step`` is given.
        tables: epoch -> the values at its end.
        logged: epoch -> what the selection logged, without seconds.
    """

    def __init__(self, selection):
        self.selection = selection
        self.known, self.batches, self.tables, self.logged = {}, {}, {}, {}

    @property
    def engine(self):
        return self.selection.session.engine

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        epoch = trainer.current_epoch
        self.batches.setdefault(epoch, {})[batch_idx] = batch[2].tolist()
        if self.engine.shared_state() is not None:
            self.known.setdefault(epoch, {})[batch_idx] = self.engine.drawn(batch_idx)

    def on_train_epoch_end(self, trainer, pl_module):
        epoch = trainer.current_epoch
        if self.engine.shared_state() is not None:
            self.tables[epoch] = self.engine.tree.values.clone()
        self.logged[epoch] = {
            key.removeprefix("selection/"): float(value)
            for key, value in trainer.callback_metrics.items()
            if key.startswith("selection/") and not key.endswith("seconds")
        }

    def staleness(self, epoch):
        """Steps between each draw and the newest values it used."""
        return [number - drawn.written for number, drawn in self.known[epoch].items()]


def stream_fit(method="plb", module=None, train=None, *callbacks, **settings):
    """Train and return the Trainer, the selection, its :class:`Draws` and the module."""
    made = get_method(method) if isinstance(method, str) else method
    selection = SampleSelection(made, check_attribution=False)  # its two passes over the first batch are no draws
    draws, module = Draws(selection), LogitsNet() if module is None else module
    made = fit(module, train or loader(SAMPLES), selection, draws, *callbacks, **{"max_epochs": EPOCHS, **settings})
    return made, selection, draws, module


def observed(name, logits, target):
    """What the method ``name`` observes of samples, ``float64[n]``."""
    if name == "owc":
        return (logits.argmax(1) != target).double().numpy()
    if name == "peb":
        log_p = logits.double().log_softmax(1)
        return -(log_p.exp() * log_p).sum(1).numpy()
    return F.cross_entropy(logits, target, reduction="none").double().numpy()


def written(name, seen, old, alpha=None):
    """The new value of one drawn sample; ``old`` is its value so far."""
    if name == "owc":
        return old + alpha * seen
    return np.tanh(seen) if name == "nlb" else seen


def dense_table(name, start, steps, min_value=1e-6, alpha=None):
    """The values after ``steps``, slowly: a loop over pairs, and all normalised after each step where the method says so.

    Args:
        name: of the method.
        start: ``float64[N]``.
        steps: of each ``(indices, what was observed)``, in the order in which they count.
    """
    values = np.array(start, dtype=np.float64)
    count = len(values)
    normalised = name in ("owc", "lb", "nlb")
    if normalised:
        values /= values.sum()
    for indices, seen in steps:
        old, floor = values.copy(), min_value * values.mean()
        for index, value in zip(indices, seen, strict=True):
            if np.isfinite(value):
                values[index] = max(written(name, value, old[index], 1 / count if alpha is None else alpha), floor)
        if normalised:
            values /= values.sum()
    return values


def shares(values):
    """Probabilities, ``float64[N]``."""
    values = np.asarray(values, dtype=np.float64)
    return values / values.sum()


def assert_same_weights(one, other):
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
