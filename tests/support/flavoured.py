"""A training under either name of Lightning: ``lightning.pytorch`` or ``pytorch_lightning``."""

import importlib
import os

import torch
import torch.nn.functional as F
from helpers import CLASSES, FEATURES, loader
from torch import nn

from kakurenbo_lightning import SampleSelection

FLAVOURS = ("lightning.pytorch", "pytorch_lightning")
SAMPLES, EPOCHS = 61, 4
SETTINGS = {
    "kakurenbo": {"max_fraction": 0.5, "tau": 0.0},
    "infobatch": {},
    "selective_backprop": {},
    "plb": {},
    "forget": {"static_epochs": 2},
}


def make_net(pl, rate=0.1):
    """A small classifier, as a user of ``pl`` writes it; its dropout draws random numbers."""

    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.network = nn.Sequential(
                    nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, CLASSES)
                )
            self.rate = rate

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.network(batch[0]), batch[1])

        def on_train_epoch_end(self):
            self.log("metric", 10.0 - self.current_epoch)

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.9)
            return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)}

    return Net()


def make_plans(pl, selection):
    """A callback that keeps what each epoch hides; comes after the selection."""

    class Plans(pl.Callback):
        def __init__(self):
            self.hidden = {}

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if selection in trainer.callbacks:  # else the learning-rate finder has put it aside
                self.hidden[trainer.current_epoch] = selection.plan.hidden.tolist()

    return Plans()


def fit(pl, selection, *callbacks, module=None, train=None, ckpt_path=None, seed=0, **settings):
    """Train under ``pl`` on 61 samples for 4 epochs unless something else is said; the Trainer, what was hidden, the module."""
    module, plans = make_net(pl) if module is None else module, make_plans(pl, selection)
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": EPOCHS,
        "logger": False,
        "enable_checkpointing": bool(callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    trainer = pl.Trainer(callbacks=[selection, plans, *callbacks], **{**defaults, **settings})
    torch.manual_seed(seed)
    trainer.fit(module, loader(SAMPLES) if train is None else train, ckpt_path=ckpt_path)
    return trainer, plans.hidden, module


def run_method(pl, method, *callbacks, **settings):
    """:func:`fit` with the method of that name and :data:`SETTINGS`."""
    return fit(pl, SampleSelection(method, **SETTINGS[method]), *callbacks, **settings)


def run_rank(flavour, method, file):
    """One rank of two; importable by a new process, which writes what was hidden and its weights."""
    pl = importlib.import_module(flavour)
    _, hidden, module = run_method(pl, method, devices=2, strategy="ddp")
    torch.save({"hidden": hidden, "weights": module.state_dict()}, f"{file}.{os.environ['RANK']}.pt")


def run_apart(flavour, strategy):
    """A training in processes of their own; prints what the process that called ``fit`` knows of it."""
    pl, selection = importlib.import_module(flavour), SampleSelection("kakurenbo", **SETTINGS["kakurenbo"])
    fit(pl, selection, devices=2, strategy=strategy)
    print("totals here:", selection.totals.samples_trained, "statistics here:", selection.statistics)
