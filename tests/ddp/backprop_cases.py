"""Cases of the backprop family, in which ranks choose different amounts; :mod:`worker` runs them with those of ``cases.py``."""

import os
from dataclasses import asdict, replace

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from cases import CASES
from fits import CLASSES, FEATURES, Net, Points, copy_of
from torch import nn
from torch.utils.data import DataLoader

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.methods import FixedRate, Katharopoulos, RhoLoss, SelectiveBackprop, StaleSB
from recipes.benchmarks.fault_run import irreducible_table

COUNT, BATCH, EPOCHS = 61, 4, 5
LOPSIDED = SelectiveBackprop(floor=0.25, history=12)


class Told(Net):
    """Tells the losses by index, and trains on the real ones.

    The samples with ``index % world_size == 0``, which rank 0 gets when nothing is shuffled, rise from batch to batch through the run, so
    that nearly all of them are chosen; the others fall.
    """

    def __init__(self, told=True):
        super().__init__()
        self.told = told
        self.data = Points(COUNT)
        self.trained = []

    def training_step(self, batch, batch_idx):
        x, y, index = batch
        assert torch.equal(x, self.data.x[index]) and torch.equal(y, self.data.y[index]), "a sample waits with all its parts"
        if self.training:
            self.trained.append(index.clone())
        loss = F.cross_entropy(self.network(x), y)
        if not self.told:
            return loss
        first, place = index % self.trainer.world_size == 0, 100.0 * self.current_epoch + index
        return {"loss": loss, "sample_loss": torch.where(first, place, 1000 - place)}


class Small(pl.LightningModule):
    """A linear classifier that looks in the module's place."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = nn.Linear(FEATURES, CLASSES, dtype=torch.float64)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Lopsided(Small):
    """With BatchNorm; tells high losses on rank 0 and low ones on others, which choose next to nothing."""

    def __init__(self, seed=0):
        super().__init__(seed)
        self.network = nn.Sequential(nn.BatchNorm1d(FEATURES, dtype=torch.float64), nn.Dropout(0.3), self.network)
        self.sizes = []

    def training_step(self, batch, batch_idx):
        if self.training and torch.is_grad_enabled() and all(parameter.requires_grad for parameter in self.parameters()):
            self.sizes.append(len(batch[2]))
        loss = super().training_step(batch, batch_idx)
        first, place = batch[2] % int(os.environ["LOCAL_WORLD_SIZE"]) == 0, 100.0 * batch_idx + batch[2]
        return {"loss": loss, "sample_loss": torch.where(first, place, 100000 - place)}


class Steps(pl.Callback):
    """Writes down, per epoch, what is loaded, what each step trained, what waits after each batch, and t; comes after the selection."""

    def __init__(self, selection):
        self.selection, self.epochs = selection, {}

    def on_train_epoch_start(self, trainer, pl_module):
        pl_module.trained = []
        plan = self.selection.plan
        self.epochs[trainer.current_epoch] = {
            "trained": pl_module.trained,
            "loaded": [],
            "hidden": plan.hidden,
            "checksum": plan.checksum(),
            "lr_factor": plan.lr_factor,
            "loss_weights": torch.ones(COUNT),
            "waiting": [],
            "pooled": [],
            "steps": [],
            "t": [],
        }

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch not in self.epochs:  # resumed within it
            self.on_train_epoch_start(trainer, pl_module)
        self.epochs[trainer.current_epoch]["loaded"].append(batch[2].clone())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        state, epoch = self.selection.session.engine.state_dict(True, batch_idx + 1), self.epochs[trainer.current_epoch]
        epoch["steps"].append(trainer.global_step)
        if state is None:  # of no backprop method
            return
        epoch["waiting"].append(sum(len(part["indices"]) for part in state["pool"]))
        epoch["pooled"].append(state["counts"]["pooled"] - state["undecided"])
        epoch["t"].append(state["memory"].get("t", torch.zeros(())).clone())

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch not in self.epochs:  # resumed at its end
            return
        counted = getattr(self.selection.session.engine, "counts", None)
        self.epochs[trainer.current_epoch]["counts"] = {} if counted is None else asdict(counted)
        self.epochs[trainer.current_epoch]["weights"] = copy_of(pl_module.state_dict())


def driven(method, told=False, shuffle=True, scored=None, train=None, callbacks=(), ckpt_path=None):
    """Train on all ranks, on the points or on the loader ``train``, and return what each step did."""
    world_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    scorer = scored(seed=int(os.environ.get("LOCAL_RANK", 0))) if scored else None  # rank 0's is the one that counts
    selection, net = SampleSelection(method, seed=3, scorer=scorer), Told(told)
    steps = Steps(selection)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy="ddp" if world_size > 1 else "auto",
        max_epochs=EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[selection, steps, *callbacks],
    )
    trainer.fit(net, DataLoader(Points(COUNT), BATCH, shuffle=shuffle) if train is None else train, ckpt_path=ckpt_path)
    return {
        "epochs": steps.epochs,
        "weights": copy_of(net.state_dict()),
        "scorer": copy_of(scorer.state_dict()) if scored else {},
        "sizes": getattr(scorer, "sizes", []),
        "global_step": trainer.global_step,
        "totals": {name: value for name, value in asdict(selection.totals).items() if name.startswith("samples")},
    }


def case(name, method, **options):
    """Register a case that is one fit."""
    CASES[name] = lambda scratch: driven(method(), **options)


for ranks in ("two", "four"):
    case(f"lopsided_{ranks}", lambda: LOPSIDED, told=True, shuffle=False)
    case(f"lopsided_carry_{ranks}", lambda: replace(LOPSIDED, leftover="carry"), told=True, shuffle=False)
case("sb", SelectiveBackprop)
case("sb_topk", lambda: SelectiveBackprop(score="topk", beta=2))
case("scored", SelectiveBackprop, scored=Small)
case("proxy", lambda: SelectiveBackprop(score="topk", keep=0.5, pool=False, train_scorer_every=3), scored=Small)
case("proxy_lopsided", lambda: replace(LOPSIDED, floor=0.0, train_scorer_every=2), shuffle=False, scored=Lopsided)
case("stale_sb", lambda: StaleSB(staleness=2))
case("sb_fixed", lambda: FixedRate(start=0.2))
case("katharopoulos", lambda: Katharopoulos(threshold=0.0))
case("rho_loss", lambda: RhoLoss(fraction=0.5, irreducible=irreducible_table(COUNT)))
