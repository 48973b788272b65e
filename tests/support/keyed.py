"""Iterable data whose samples have keys, for the tests; needs no pytest, ranks import it."""

import torch
from driven import Trained
from flows import CountingFlow
from helpers import CLASSES, FEATURES, Net, fit
from torch import nn
from torchdata.stateful_dataloader import StatefulDataLoader

from kakurenbo_lightning import SampleSelection

EPOCHS, COUNT, BATCH = 6, 61, 8


class KeptFlow(CountingFlow):
    """Asks ``keep`` before it loads a point, whose key is its number.

    Args:
        keep: ``selection.keep``.
        shuffled: each epoch has another order.
        name: makes the key of a number; the number itself by default.
    """

    def __init__(self, keep, count=COUNT, shuffled=True, name=int, **settings):
        super().__init__(count, **settings)
        self.keep, self.shuffled, self.name = keep, shuffled, name

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.begun)
        first, stride = self.share()
        order = torch.randperm(self.count, generator=generator) if self.shuffled else torch.arange(self.count)
        mine = order[first::stride].tolist()
        while self.place < len(mine):
            self.place += 1
            key = self.name(mine[self.place - 1])
            if self.keep(key):
                yield *self.points[mine[self.place - 1]], key
        self.place, self.begun = 0, self.begun + 1


class LineNet(Net):
    """Without BatchNorm, which stops at a last batch of one sample."""

    def __init__(self, rate=0.1):
        super().__init__(rate)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES))


class Plans(Trained):
    """Also each epoch's plan, and the statistics that it was made of.

    Attributes:
        plans: by epoch.
        known: by epoch, copies of the statistics' columns when it began.
    """

    def __init__(self, selection):
        super().__init__()
        self._selection, self.plans, self.known = selection, {}, {}

    def on_train_epoch_start(self, trainer, pl_module):
        self.plans[trainer.current_epoch] = self._selection.plan
        self.known[trainer.current_epoch] = self._selection.statistics.state_dict()


def keyed_run(
    method, *callbacks, workers=0, count=COUNT, flow=None, ckpt_path=None, net=None, seed=0, selection=None, **settings
):
    """Train on a :class:`KeptFlow`; the Trainer, the selection, what each step trained, and the module."""
    selection = selection or SampleSelection(method, seed=3, key=3, **settings.pop("given", {}))
    train = StatefulDataLoader(KeptFlow(selection.keep, count, **(flow or {})), batch_size=BATCH, num_workers=workers)
    seen, net = Plans(selection), net or LineNet()
    made = fit(net, train, selection, seen, *callbacks, ckpt_path=ckpt_path, seed=seed, **{"max_epochs": EPOCHS, **settings})
    return made, selection, seen, net
