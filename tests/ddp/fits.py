"""What the cases train: points, networks, and :func:`fit`, which writes down what happened."""

import os
import warnings
from dataclasses import asdict

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Checkpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset

from kakurenbo_lightning import SampleSelection

CLASSES, FEATURES = 3, 5
RATE, MOMENTUM = 0.05, 0.9
CODE = 1024  # a power of 2: index / CODE is exact


class Points(Dataset):
    """``count`` points of three overlapping classes; an item is ``(x, y, index)``."""

    def __init__(self, count, dtype=torch.float64, noise=1.5):
        generator = torch.Generator().manual_seed(0)
        self.y = torch.arange(count) % CLASSES
        self.x = (2 * torch.eye(FEATURES)[self.y] + noise * torch.randn(count, FEATURES, generator=generator)).to(dtype)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index], index


class Net(pl.LightningModule):
    """As a user writes it. Double precision, so that the order of summation cannot hide an error in a weight.

    Attributes:
        scored: what each ``training_step`` in eval mode (the refresh pass) was given, and the buffers it ran with.
    """

    def __init__(self, norm=False, dtype=torch.float64):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            middle = [nn.BatchNorm1d(8)] if norm else []
            self.network = nn.Sequential(nn.Linear(FEATURES, 8), *middle, nn.ReLU(), nn.Linear(8, CLASSES)).to(dtype)
        self.looked = []

    def training_step(self, batch, batch_idx):
        self._look(batch)
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def _look(self, batch):
        if not self.training:
            self.looked.append({"indices": batch[2].clone(), "buffers": {k: v.clone() for k, v in self.named_buffers()}})

    def validation_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=RATE, momentum=MOMENTUM)


class ManualNet(Net):
    """Steps its optimizer itself, after two batches."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss, optimizer = super().training_step(batch, batch_idx), self.optimizers()
        selection = next(callback for callback in self.trainer.callbacks if isinstance(callback, SampleSelection))
        self.manual_backward(loss * selection.loss_scale(accumulate=2) / 2)
        if batch_idx % 2 or batch_idx + 1 == self.trainer.num_training_batches:
            optimizer.step()
            optimizer.zero_grad()
        return loss


class CodedNet(Net):
    """Returns its per-sample values; the loss is written by hand and the confidence tells the sample's index.

    Args:
        sure: call every sample right and sure instead, so that exactly ``floor(F_e * N)`` are hidden.
    """

    def __init__(self, sure=False):
        super().__init__()
        self.sure = sure

    def training_step(self, batch, batch_idx):
        self._look(batch)
        x, y, index = batch
        sample_loss = -self.network(x).log_softmax(1).gather(1, y[:, None]).squeeze(1)
        return {
            "loss": sample_loss.mean(),
            "sample_loss": sample_loss,
            "confidence": torch.ones_like(index) if self.sure else index / CODE,
            "correct": index >= 0 if self.sure else index % 2 == 0,
        }


class DiceNet(Net):
    """A loss over the batch; writes down that of every training batch."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def training_step(self, batch, batch_idx):
        p, target = self.network(batch[0]).softmax(1), F.one_hot(batch[1], CLASSES)
        loss = 1 - 2 * (p * target).sum() / (p.sum() + target.sum())
        self.losses.append(loss.item())
        return loss


class ScoredNet(CodedNet):
    """Each rank logs another accuracy and does not average it: that of rank 0 falls in epoch 1, that of rank 1 in epoch 3."""

    def __init__(self):
        super().__init__(sure=True)

    def validation_step(self, batch, batch_idx):
        fallen = self.current_epoch == (3 if self.global_rank else 1)
        self.log("val_acc", torch.tensor(0.1 if fallen else 0.5), sync_dist=False)
        return super().validation_step(batch, batch_idx)


class Recorder(pl.Callback):
    """Writes down, per epoch, what was planned, what was trained and what was known. Comes after the selection."""

    def __init__(self, selection):
        self.selection = selection
        self.epochs = {}

    def epoch(self, trainer):
        return self.epochs.setdefault(trainer.current_epoch, {"trained": [], "dealt": [], "validated": [], "scored": []})

    def on_train_epoch_start(self, trainer, pl_module):
        plan = self.selection.plan
        self.epoch(trainer).update(
            planned=plan.indices,
            hidden=plan.hidden,
            checksum=plan.checksum(),
            lr_factor=plan.lr_factor,
            loss_weights=torch.ones(self.selection.statistics.total) if plan.weights is None else plan.weights,
            statistics=self.selection.statistics.state_dict(),
            weights=copy_of(pl_module.state_dict()),
            scored=pl_module.looked,
        )
        pl_module.looked = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.epoch(trainer)["trained"].append(batch[2].clone())
        self.epoch(trainer)["dealt"].append(trainer.train_dataloader.sampler.step(batch_idx).clone())
        self.epoch(trainer)["buffers"] = copy_of(dict(pl_module.named_buffers()))

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.epoch(trainer)["validated"].append(batch[2].clone())


class SaveAt(pl.Callback):
    """Saves one checkpoint: after ``batch`` of ``epoch``, or at the end of ``epoch`` when there is none. Comes last."""

    def __init__(self, path, epoch, batch=None):
        self.path, self.at = path, (epoch, batch)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer, pl_module):
        if (trainer.current_epoch, None) == self.at:
            trainer.save_checkpoint(self.path)


def copy_of(tensors):
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def fit(method, net, *, count, batch_size, loader=None, callbacks=(), ckpt_path=None, selection=None, **settings):
    """Train on all ranks of the worker (one process elsewhere) and return what happened as plain tensors and numbers.

    Args:
        method: of the selection, a method object.
        net: the module.
        count: samples to train on.
        batch_size: per rank.
        loader: more settings of the train DataLoader.
        callbacks: more of them.
        ckpt_path: to resume from.
        selection: more arguments of it.
        **settings: of the Trainer.
    """
    world_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # Lightning deletes WORLD_SIZE
    selection = SampleSelection(method, seed=3, **(selection or {}))
    recorder = Recorder(selection)
    data = Points(count, next(net.parameters()).dtype)
    train = DataLoader(data, **{"batch_size": batch_size, "shuffle": True, **(loader or {})})
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy="ddp" if world_size > 1 else "auto",
        logger=False,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[selection, recorder, *callbacks],
        **settings,
    )
    with warnings.catch_warnings(record=True) as warned:
        trainer.fit(net, train, DataLoader(data, batch_size=8), ckpt_path=ckpt_path)
    return {
        "epochs": recorder.epochs,
        "weights": copy_of(net.state_dict()),
        "known": selection.statistics.state_dict(),
        "losses": getattr(net, "losses", []),
        "global_step": trainer.global_step,
        "totals": asdict(selection.totals),
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "control": selection.session.control.state_dict(),
        "coded": isinstance(net, CodedNet),
        "warnings": [str(warning.message) for warning in warned],
    }
