"""A scorer that is trained beside the module, for tests."""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from helpers import CLASSES, FEATURES, Net, fit, loader
from torch import nn

from kakurenbo_lightning import SampleSelection

EPOCHS, SAMPLES, BATCH = 4, 61, 8
STEPS = 8


class Proxy(pl.LightningModule):
    """A small classifier with BatchNorm; writes down what it is trained on, and by which rate.

    Args:
        schedule: ``schedule(optimizer)``, or ``None``.
        dropout: probability.
    """

    def __init__(self, schedule=None, dropout=0.0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.network = nn.Sequential(
                nn.Linear(FEATURES, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(dropout), nn.Linear(4, CLASSES)
            )
        self.schedule = schedule
        self.trained, self.rates = [], []

    def training_step(self, batch, batch_idx):
        if torch.is_grad_enabled() and self.network[0].weight.requires_grad and self.network.training:
            self.trained.append(batch[2].tolist())
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)
        optimizer.register_step_pre_hook(lambda optimizer, *_: self.rates.append(optimizer.param_groups[0]["lr"]))
        return optimizer if self.schedule is None else {"optimizer": optimizer, "lr_scheduler": self.schedule(optimizer)}


def by_step(schedule):
    """A schedule of interval "step"."""
    return lambda optimizer: {"scheduler": schedule(optimizer), "interval": "step"}


def proxy_fit(scorer=None, *callbacks, module=None, every=3, data=None, selection=None, **settings):
    """Train and return the Trainer, the selection, the scorer and the module."""
    scorer = scorer or Proxy()
    options = {"score": "topk", "keep": 0.5, "pool": False, **(selection or {})}
    chosen = SampleSelection(
        "selective_backprop", scorer=scorer, train_scorer_every=every, seed=0, check_attribution=False, **options
    )
    module = module or Net(dropout=0.0)
    made = fit(module, data or loader(SAMPLES), chosen, *callbacks, **{"max_epochs": EPOCHS, **settings})
    return made, chosen, scorer, module
