"""Trainings that use several features of the selection at once, on one rank or several; needs no pytest, ranks import it."""

import os
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from kakurenbo_lightning import SampleSelection, Saving, SelectionGuard
from recipes.benchmarks.fault_record import MemoryLogger, Record
from recipes.benchmarks.fault_run import (
    CLASSES,
    SAMPLES,
    Points,
    RestlessNet,
    RestlessScorer,
    describe,
    differences,
    equal,
    position,
    quiet_trainer,
    seed_streams,
)
from recipes.benchmarks.forked import printed, run_ranks

ACCURACY = (0.5, 0.7, 0.2, 0.7, 0.2, 0.8, 0.8, 0.8)  # epochs 3 and 5 are guarded, and 5 alone where two come before a restart
GUARD = {"guard": SelectionGuard("val_acc", 0.05)}
SAVE = {"save": Saving(0.2, forward=0.3)}
BLS = {"values": "bls"}


OURS = ("control", "summary", "scorer_schedules")  # of what train returns, beside that of fault_run


@dataclass(frozen=True)
class Combination:
    """What is used together.

    Attributes:
        method: a registered name.
        settings: of it, and arguments of ``SampleSelection``.
        returns: the step returns logits and target beside its loss.
        scorer: a small network scores and is trained beside the module, by a schedule of its own.
        nan: the loss of one batch is NaN, and moves no weight.
        epochs: length.
    """

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    returns: bool = False
    scorer: bool = False
    nan: bool = False
    epochs: int = 6


EASY = {"tau": 0.3}
PROXY = {"score": "topk", "keep": 0.5, "train_scorer_every": 3}
ALTERNATE = {"fraction_schedule": [1.5, 0.5]}
COMBINATIONS = {
    "infobatch bls schedule": Combination("infobatch", {**BLS, **ALTERNATE}),
    "infobatch bls schedule guard": Combination("infobatch", {**BLS, **ALTERNATE, **GUARD}),
    "infobatch bls save guard": Combination("infobatch", {**BLS, **SAVE, **GUARD}),
    "infobatch bls rcap": Combination("infobatch", {**BLS, "balance": "rcap"}, returns=True),
    "kakurenbo save guard": Combination("kakurenbo", {**EASY, **SAVE, **GUARD}),
    "kakurenbo save guard rcap": Combination("kakurenbo", {**EASY, **SAVE, **GUARD, "balance": "rcap"}),
    "kakurenbo bls schedule guard": Combination("kakurenbo", {**EASY, **BLS, **ALTERNATE, **GUARD}, returns=True),
    "kakurenbo every schedule guard": Combination(
        "kakurenbo", {**EASY, **ALTERNATE, **GUARD, "every_n_epochs": 2, "lr_fraction": "max"}
    ),
    "seta bls guard": Combination("seta", {**BLS, **GUARD, "prune_ratio": 0.2, "groups": 3}),  # few groups: no epoch of 2 steps
    "random rcap schedule save": Combination(
        "random", {**ALTERNATE, "balance": "rcap", "save": Saving(0.2, forward=0.3, max_share=0.4)}
    ),
    "random_cycle schedule save guard": Combination(
        "random_cycle", {**ALTERNATE, **GUARD, "save": Saving(0.2, forward=0.3, max_share=0.4)}
    ),
    "rcap save guard": Combination("rcap", {**SAVE, **GUARD}),
    "rcap bls schedule": Combination("rcap", {**BLS, **ALTERNATE}, returns=True),
    "orderdp bls guard rcap": Combination("orderdp", {**BLS, **GUARD, "balance": "rcap"}, returns=True),
    "orderdp schedule guard": Combination("orderdp", {**ALTERNATE, **GUARD}),
    "ies bls guard": Combination("ies", {**BLS, **GUARD, "threshold": 0.1, "window": 1, "max_fraction": 0.6}),
    "ies guard class": Combination("ies", {**GUARD, "threshold": 1.0, "window": 1, "balance": "class", "max_fraction": 0.6}),
    "el2n pass guard": Combination("el2n", {**GUARD, "score_pass": True, "score_epochs": (0, 2)}),
    "el2n pass save guard": Combination(
        "el2n", {"save": Saving(0.1, forward=0.3), **GUARD, "score_pass": True, "score_epochs": (0, 2)}
    ),
    "el2n pass bls save": Combination(
        "el2n", {**BLS, "save": Saving(0.1, forward=0.3), "score_pass": True, "score_epochs": (0, 2)}, returns=True
    ),
    "forget rcap guard": Combination("forget", {**GUARD, "balance": "rcap", "static_epochs": 2}),
    "forget save guard": Combination("forget", {"save": Saving(0.1, forward=0.3), **GUARD, "static_epochs": 2}),
    "forget_online schedule save guard": Combination(
        "forget_online", {**ALTERNATE, **GUARD, "save": Saving(0.1, forward=0.3, max_share=0.4), "start_epoch": 1}
    ),
    "proxy": Combination("selective_backprop", PROXY, scorer=True),
    "proxy without pool": Combination("selective_backprop", {**PROXY, "pool": False}, scorer=True),
    "scorer": Combination("selective_backprop", scorer=True),
    "stale_sb scorer": Combination("stale_sb", {"staleness": 2}, scorer=True),
    "weighted epochs": Combination("weighted", {"weights": [1.0 + i % 5 for i in range(SAMPLES)], "unbiased": True}),
    "weighted mean": Combination("weighted", {"weights": [1.0 + i % 5 for i in range(SAMPLES)], "mean_over_samples": True}),
}


class Combined(RestlessNet):
    """Validates with given accuracies; its loss is that of a whole batch, or decomposes."""

    def __init__(self, use: Combination) -> None:
        super().__init__()
        self.use = use

    def training_step(self, batch, batch_idx):
        if not self.use.returns and self.use.settings.get("values") != "bls":
            loss = super().training_step(batch, batch_idx)
        else:
            if self.training and torch.is_grad_enabled():
                self.trained.setdefault(self.trainer.current_epoch, {})[batch_idx] = batch[2].clone()
            logits = self.network(batch[0] + 0.1 * torch.rand(1))
            p, target = logits.softmax(1), F.one_hot(batch[1], CLASSES)
            loss = 1 - 2 * (p * target).sum() / (p.sum() + target.sum())
            if self.use.returns:
                loss = {"loss": loss, "logits": logits, "target": batch[1]}
        if self.use.nan and self.trainer.current_epoch == 1 and batch_idx == 2 and torch.is_grad_enabled():
            if isinstance(loss, dict):
                loss["loss"] = loss["loss"] * torch.nan
            else:
                loss = loss * torch.nan
        return loss

    def on_before_optimizer_step(self, optimizer):
        if self.use.nan:
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad.nan_to_num_(0.0)

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log("val_acc", torch.tensor(ACCURACY[self.current_epoch]))


class OneCycleScorer(RestlessScorer):
    """By a schedule that no step may be taken after the end of."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        self.schedule = OneCycleLR(optimizer, 0.3, total_steps=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule, "interval": "step"}}


def train(folder, use, resume=None, seed=0, callbacks=(), batch_size=8, **settings):
    """Train and return what must be equal, see ``fault_run.describe``; ``use`` names one of :data:`COMBINATIONS`, or is one."""
    torch.set_num_threads(1)
    seed_streams(seed)
    use = COMBINATIONS[use] if isinstance(use, str) else use
    scorer = OneCycleScorer() if use.scorer else None
    selection = SampleSelection(use.method, seed=3, scorer=scorer, **use.settings)
    record, logger, module = Record(folder), MemoryLogger(), Combined(use)
    made = quiet_trainer(use.epochs, [selection, record, *callbacks], **{"logger": logger} | settings)
    resumed = position(resume) if resume else None
    made.fit(module, DataLoader(Points(), batch_size, shuffle=True), DataLoader(Points(24), 6), ckpt_path=resume)
    selection.statistics.merge()
    control = selection.session.control
    return {
        "resumed": resumed,
        "logged": logger.epochs,
        "scorer": dict(scorer.state_dict()) if scorer else {},
        "scorer_schedules": [(scorer.schedule.last_epoch, scorer.schedule.total_steps)] if scorer else [],
        "control": control.state_dict(),
        "summary": control.summary(selection.session.state.epoch + 1, SAMPLES),
        **describe(made, selection, record, module),
    }


def train_to_file(folder, name, *args, **options):
    """Run ``train(folder, ...)`` and save what it returned as ``<name>.<rank>.pt``."""
    torch.save(train(folder, *args, **options), folder / f"{name}.{os.environ.get('RANK', 0)}.pt")


def differing(whole, resumed):
    """Names of what a resumed run has otherwise than the whole one, see ``fault_run.differences``."""
    return differences(whole, resumed) + [name for name in OURS if not equal(whole[name], resumed[name])]


def on_ranks(folder, use, world_size, name="run", **options):
    """Results of :func:`train` on ``world_size`` new processes, by rank."""
    folder.mkdir(parents=True, exist_ok=True)
    codes = run_ranks(partial(train_to_file, **options), (folder, name, use), world_size, log=folder / name, seconds=150)
    assert not any(codes), f"exit codes {codes}\n{printed(folder / name, world_size)}"
    return [torch.load(folder / f"{name}.{rank}.pt", weights_only=True) for rank in range(world_size)]
