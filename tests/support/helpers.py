"""Shared by the tests: a tiny data set that knows its indices, tiny modules, a quiet Trainer and a spy."""

import os
from collections import defaultdict

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.utils.data import DataLoader, Dataset

from kakurenbo_lightning import SampleSelection

torch.set_num_threads(1)  # tensors are tiny, and test processes share the cores

CLASSES, FEATURES = 3, 6
ACCELERATOR = os.environ.get("KAKURENBO_TEST_ACCELERATOR", "cpu")  # `make test-gpu` sets gpu


class Points(Dataset):
    """``count`` points of three well separated classes; an item is ``(x, y, index)``.

    Args:
        count: length.
        noise: spread of a class; its centre has length 3.
        seed: of the points.
    """

    def __init__(self, count=64, noise=0.5, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.y = torch.arange(count) % CLASSES
        self.x = 3 * torch.eye(FEATURES)[self.y] + noise * torch.randn(count, FEATURES, generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index], index


def loader(count=64, batch_size=8, shuffle=True, **settings):
    """A plain DataLoader of :class:`Points`."""
    return DataLoader(Points(count), batch_size=batch_size, shuffle=shuffle, **settings)


class Net(pl.LightningModule):
    """As a user writes it: ``training_step`` calls ``F.cross_entropy`` and returns a scalar.

    Args:
        rate: learning rate of SGD.
        dropout: probability, to make training draw random numbers.
        schedule: ``schedule(optimizer, module)`` makes the learning-rate scheduler or Lightning's dict for one.
        momentum: of SGD.
    """

    def __init__(self, rate=0.1, dropout=0.2, schedule=None, momentum=0.9):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = nn.Sequential(
                nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, CLASSES)
            )
        self.rate, self.momentum = rate, momentum
        self._schedule = schedule

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.network(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.rate, momentum=self.momentum)
        if self._schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self._schedule(optimizer, self)}


class SureNet(Net):
    """Returns per-sample values that call every sample right and sure, so that exactly ``floor(F_e * N)`` are hidden.

    The confidence is ``(index + 1) / 4096``: it tells whose statistics a row really holds.
    """

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.network(batch[0]), batch[1], reduction="none")
        return {
            "loss": loss.mean(),
            "sample_loss": loss,
            "confidence": (batch[2] + 1) / 4096,
            "correct": torch.ones_like(loss, dtype=torch.bool),
        }


def hide_then_grow(**settings):
    """Hides up to half of the data in epochs 1 and 2, a quarter in epoch 3 and nothing from epoch 4 on.

    With :class:`SureNet` and 64 samples in batches of 8 the epochs have :data:`GROWING` batches.
    """
    return SampleSelection("kakurenbo", max_fraction=0.5, tau=0.0, fractions=(1.0, 0.5, 0.0), milestones=(3, 4), **settings)


GROWING = [8, 4, 4, 6, 8]


def first_rate(optimizer):
    """The learning rate of the first parameter group in a list; Lightning's stand-in for no optimizer has none."""
    return [float(group["lr"]) for group in optimizer.param_groups[:1]]


def before_update(see):
    """A step hook that calls ``see(optimizer)`` right before the update: Lightning's closure, with the whole training step, is behind."""

    def hook(optimizer, args, kwargs):
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            return see(optimizer)

        def then_seen():
            result = closure()
            see(optimizer)
            return result

        return args[:1], {**kwargs, "closure": then_seen}

    return hook


# of each family and way: hidden by loss, started again, scored in each step, drawn as a stream
ONE_OF_A_KIND = ("kakurenbo", "forget", "selective_backprop", "plb")


class Spy(pl.Callback):
    """Writes down what each epoch really did. Put it after the selection in the list of callbacks.

    Attributes:
        batches: epoch -> the indices of each batch, read from the batch itself.
        hidden: epoch -> the selection's hidden indices.
        lengths: epoch -> ``trainer.num_training_batches``.
        val_checks: epoch -> ``trainer.val_check_batch``.
        validations: epoch -> how many batches had been trained when each validation started.
        rates: epoch -> the learning rate of each update.
        base_rates: epoch -> the learning rate outside, before each batch.
    """

    def __init__(self, selection=None):
        self.selection = selection
        self.batches, self.hidden, self.lengths, self.val_checks = defaultdict(list), {}, {}, {}
        self.validations, self.rates, self.base_rates = defaultdict(list), defaultdict(list), defaultdict(list)
        self._hooks = []

    def trained(self, epoch):
        """All indices of an epoch, sorted."""
        return sorted(index for batch in self.batches[epoch] for index in batch)

    @property
    def steps(self):
        """Batches of each epoch, in order."""
        return [len(batches) for _, batches in sorted(self.batches.items())]

    def on_train_start(self, trainer, pl_module):
        for optimizer in trainer.optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._seen_step(trainer)))

    def _seen_step(self, trainer):
        def see(optimizer):
            self.rates[trainer.current_epoch] += first_rate(optimizer)

        return before_update(see)

    def on_train_epoch_start(self, trainer, pl_module):
        self.lengths[trainer.current_epoch] = trainer.num_training_batches
        self.val_checks[trainer.current_epoch] = trainer.val_check_batch
        if self.selection is not None:
            self.hidden[trainer.current_epoch] = self.selection.plan.hidden.tolist()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches[trainer.current_epoch].append(batch[2].tolist())
        self.base_rates[trainer.current_epoch] += first_rate(trainer.optimizers[0])

    def on_validation_start(self, trainer, pl_module):
        self.validations[trainer.current_epoch].append(len(self.batches[trainer.current_epoch]))

    def on_train_end(self, trainer, pl_module):
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def trainer(*callbacks, **settings):
    """A Trainer that prints and writes nothing; four epochs unless told otherwise."""
    defaults = {
        "accelerator": ACCELERATOR,
        "devices": 1,
        "max_epochs": 4,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(callbacks=list(callbacks), **{**defaults, **settings})


def fit(module, train, *callbacks, val=None, ckpt_path=None, seed=0, **settings):
    """Train ``module`` on the loader (or data module) ``train`` and return the Trainer."""
    made = trainer(*callbacks, **settings)
    torch.manual_seed(seed)
    data = (
        {"datamodule": train}
        if isinstance(train, pl.LightningDataModule)
        else {"train_dataloaders": train, "val_dataloaders": val}
    )
    made.fit(module, **data, ckpt_path=ckpt_path)
    return made


def watched_fit(module=None, train=None, selection=None, *callbacks, **settings):
    """Train with a selection and a spy that watches it.

    Args:
        module: :class:`SureNet` unless given.
        train: 64 samples in batches of 8 unless given, or unless the module brings its own loader.
        selection: :func:`hide_then_grow` unless given.
        *callbacks: between the selection and the spy.
        **settings: of :func:`fit`; :data:`GROWING` epochs unless given.

    Returns:
        The spy, the selection and the Trainer.
    """
    selection = selection or hide_then_grow()
    module = SureNet() if module is None else module
    if train is None and not is_overridden("train_dataloader", getattr(module, "_orig_mod", module)):
        train = loader()
    spy = Spy(selection)
    made = fit(module, train, selection, *callbacks, spy, **{"max_epochs": len(GROWING), **settings})
    return spy, selection, made


def assert_trained_as_planned(spy, count=64):
    """Every kept sample was trained once, no hidden one was, and there were hidden ones."""
    assert any(spy.hidden.values()), "nothing was hidden, so the test shows nothing"
    for epoch, hidden in spy.hidden.items():
        assert spy.trained(epoch) == sorted(set(range(count)) - set(hidden))


def dealt_steps(count, batch_size):
    """Batches an epoch of ``count`` samples has on one process: a small tail is shared with the batch before it."""
    return -(-count // batch_size) if batch_size > 2 else count // 2
