"""The small training that `recipes.benchmarks.faults` kills and resumes, and what of it must come out the same."""

import inspect
import os
import random
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset

from kakurenbo_lightning import SampleSelection
from recipes.benchmarks.fault_record import Kill, MemoryLogger, Record

SAMPLES, FEATURES, CLASSES = 93, 6, 3
SAVES_ON_EXCEPTION = "save_on_exception" in inspect.signature(ModelCheckpoint).parameters  # not in Lightning 2.5.0
# of methods that would hide next to nothing here by default; the others run with their defaults
SETTINGS: dict[str, dict[str, Any]] = {
    "kakurenbo": {"max_fraction": 0.5, "tau": 0.5},
    "forget": {"static_epochs": 2},
    "el2n": {"score_epochs": (0, 2)},
    "forget_online": {"start_epoch": 1},
    "stale_sb": {"staleness": 2},
    "sb_fixed": {"start": 0.2, "end": 0.8},
    "katharopoulos": {"threshold": 0.0},
}
PROXY: dict[str, Any] = {"score": "topk", "keep": 0.5, "train_scorer_every": 3}


def irreducible_table(samples: int) -> str:
    """Return the file with the irreducible losses of so many samples, some of them unknown; every process writes the same."""
    path = Path(tempfile.gettempdir()) / f"kakurenbo-irreducible-{os.getuid()}-{samples}.pt"
    losses = torch.rand(samples, generator=torch.Generator().manual_seed(0))
    losses[7::17] = float("nan")
    part = path.with_suffix(f".{os.getpid()}")
    torch.save({"irreducible": losses, "fingerprint": None}, part)
    part.replace(path)
    return str(path)


class Points(Dataset):
    """Points of three classes that overlap; an item is `(x, y, index)`.

    Args:
        samples: number of points.
    """

    def __init__(self, samples: int = SAMPLES) -> None:
        generator = torch.Generator().manual_seed(0)
        self.y = torch.arange(samples) % CLASSES
        self.x = 2 * torch.eye(FEATURES)[self.y] + 0.8 * torch.randn(samples, FEATURES, generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        return self.x[index], self.y[index], index


class RestlessNet(L.LightningModule):
    """BatchNorm, dropout, momentum, OneCycle by step, and random numbers of every stream in training and validation.

    Args:
        one_cycle: use OneCycleLR; otherwise the learning rate is constant.
        plateau: use ReduceLROnPlateau on the validated loss instead.
    """

    def __init__(self, one_cycle: bool = True, plateau: bool = False) -> None:
        super().__init__()
        self.one_cycle, self.plateau = one_cycle, plateau
        self.trained: dict[int, dict[int, Tensor]] = {}  # by epoch and batch; not always what was loaded
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = nn.Sequential(
                nn.Linear(FEATURES, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, CLASSES)
            )

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        """Jitter the points and return the mean cross-entropy."""
        if self.training and torch.is_grad_enabled():
            self.trained.setdefault(self.trainer.current_epoch, {})[batch_idx] = batch[2].clone()
        jitter = random.random() + np.random.rand() + torch.rand(1)
        return F.cross_entropy(self.network(batch[0] + 0.1 * jitter), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        """Draw random numbers that training must not miss."""
        noise = random.random() + np.random.rand() + torch.rand(1)
        self.log("val_loss", F.cross_entropy(self.network(batch[0]), batch[1]) + 0 * noise, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Return SGD with momentum and a schedule as long as Lightning expects the run to be."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        if self.plateau:
            schedule = ReduceLROnPlateau(optimizer, factor=0.9, patience=0, threshold=0.05)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"}}
        if not self.one_cycle:
            return optimizer
        schedule = OneCycleLR(optimizer, 0.3, total_steps=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class RestlessScorer(L.LightningModule):
    """The same for a scorer: BatchNorm, dropout, momentum, a cosine by step, and random numbers of every stream."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.network = nn.Sequential(nn.Linear(FEATURES, 5), nn.BatchNorm1d(5), nn.Dropout(0.2), nn.Linear(5, CLASSES))

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        """Jitter the points and return the mean cross-entropy."""
        jitter = random.random() + np.random.rand() + torch.rand(1)
        return F.cross_entropy(self.network(batch[0] + 0.1 * jitter), batch[1])

    def configure_optimizers(self) -> Any:
        """Return SGD with momentum and a schedule as long as Lightning expects the run to be."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        schedule = CosineAnnealingLR(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def monitors(folder: Path) -> list[L.Callback]:
    """Return an early stopping and a `ModelCheckpoint` that go by the validation."""
    return [
        EarlyStopping("val_loss", min_delta=0.1, patience=1),
        ModelCheckpoint(folder / "best", filename="{step}", monitor="val_loss", save_top_k=2),
    ]


def monitored(callbacks: list[L.Callback]) -> list[Any]:
    """Return what those callbacks have seen that go by the validation."""
    stopping = [each.state_dict() for each in callbacks if isinstance(each, EarlyStopping)]
    best = [each.best_k_models for each in callbacks if isinstance(each, ModelCheckpoint) and each.monitor is not None]
    return [stopping, [sorted(map(float, scores.values())) for scores in best]]


def requeued(folder: Path) -> dict[str, Any]:
    """Make this process one of a SLURM job that is requeued, and return the settings of its Trainer.

    What `scontrol` does in the end comes at once: it kills the process that calls it, which is rank 0, and its checkpoint is saved.
    """
    rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    names = {"NTASKS": world_size, "NTASKS_PER_NODE": world_size, "PROCID": rank, "LOCALID": rank, "NODEID": "0"}
    os.environ.update({f"SLURM_{name}": value for name, value in {**names, "JOB_ID": "1", "JOB_NAME": "faults"}.items()})
    (folder / "bin").mkdir(exist_ok=True)
    scontrol = folder / "bin" / "scontrol"
    if rank == "0":
        scontrol.write_text("#!/bin/sh\nkill -KILL $PPID\n")
        scontrol.chmod(0o755)
    os.environ["PATH"] = f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}"
    return {"plugins": [SLURMEnvironment(auto_requeue=True)], "default_root_dir": folder}


def checkpoints(folder: Path, every: int) -> list[ModelCheckpoint]:
    """Return callbacks that save every `every` steps, after each validation and after each epoch; none for 0.

    On one rank the first of them saves when an exception ends the training too: states of other ranks are not known then.
    """
    if not every:
        return []
    plain = {"auto_insert_metric_name": False}
    steps = {"every_n_train_steps": every, "save_last": True}
    if SAVES_ON_EXCEPTION:
        steps["save_on_exception"] = "RANK" not in os.environ
    return [
        ModelCheckpoint(folder, filename="after-{step}", **steps, **plain),
        ModelCheckpoint(folder, filename="validated-{step}", save_on_train_epoch_end=False, mode="max", **plain),
        ModelCheckpoint(folder, filename="epoch-{step}", save_on_train_epoch_end=True, **plain),
    ]


def train(
    folder: Path,
    method: str,
    *,
    epochs: int = 4,
    batch_size: int = 8,
    seed: int = 0,
    every: int = 0,
    resume: Path | str | None = None,
    kill: Kill | None = None,
    callbacks: tuple[L.Callback, ...] = (),
    one_cycle: bool = True,
    workers: int = 0,
    stopping: bool = False,
    proxy: bool = False,
    statistics: Literal["replicated", "sharded"] = "replicated",
    **settings: Any,
) -> dict[str, Any]:
    """Train on every rank of this process group and return what must be equal, see `describe`.

    Args:
        folder: folder of the checkpoints.
        method: a registered name or a method object.
        epochs: length of the run.
        batch_size: per rank.
        seed: seed of the global random streams.
        every: steps between checkpoints, see `checkpoints`; 0 for none at all.
        resume: a checkpoint; a string goes to Lightning unread, for example `"last"`.
        kill: when to end a process; `None` for never.
        callbacks: further callbacks.
        one_cycle: see `RestlessNet`.
        workers: number of workers of the train loader.
        stopping: with `monitors`, and a learning rate that falls with the validation instead of a OneCycle.
        statistics: of the selection.
        proxy: with a `RestlessScorer` that is trained on every third batch; `method` is `"selective_backprop"`.
        **settings: of the Trainer.
    """
    torch.set_num_threads(1)
    seed_streams(seed)
    scorer = RestlessScorer() if proxy else None
    selection = SampleSelection(
        method, seed=3, scorer=scorer, statistics=statistics, **settings_of(method), **(PROXY if proxy else {})
    )
    record, logger = Record(folder, kill), MemoryLogger()
    module, resumed = RestlessNet(one_cycle, plateau=stopping), position(resume) if isinstance(resume, Path) else None
    if kill is not None and kill.how == "requeue":
        settings |= requeued(folder)
    callbacks = (*callbacks, *(monitors(folder) if stopping else ()), *checkpoints(folder, every))
    trainer = quiet_trainer(epochs, [selection, record, *callbacks], **{"logger": logger} | settings)
    points = DataLoader(Points(), batch_size, shuffle=True, num_workers=workers)
    trainer.fit(module, points, DataLoader(Points(24), 6), ckpt_path=resume)
    selection.statistics.merge()  # of the last epoch
    found = describe(trainer, selection, record, module)
    return {"resumed": resumed, "logged": logger.epochs, "scorer": dict(scorer.state_dict()) if scorer else {}, **found}


def seed_streams(seed: int) -> None:
    """Seed the random streams, but not Lightning's environment variable."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def settings_of(method: Any) -> dict[str, Any]:
    """Return the settings that a method, by name or as an object, has in these trainings."""
    if method == "rho_loss":
        return {"fraction": 0.5, "irreducible": irreducible_table(SAMPLES)}
    if method == "weighted":
        return {"weights": [1.0 + i % 5 for i in range(SAMPLES)], "unbiased": True}
    return SETTINGS.get(method, {}) if isinstance(method, str) else {}


def quiet_trainer(epochs: int, callbacks: list[L.Callback], **settings: Any) -> L.Trainer:
    """Return the Trainer of one rank, which saves checkpoints when a callback does."""
    world_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    usual = {
        "strategy": strategy_of(world_size),
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(max_epochs=epochs, accelerator="cpu", devices=world_size, callbacks=callbacks, **(usual | settings))


def strategy_of(world_size: int) -> str:
    """Return the strategy of so many ranks.

    DDP orders its buckets of gradients by their first step and sums three ranks or more in the order of the bucket, so the first step of
    each process, resumed or not, is rounded otherwise than the following ones. With `find_unused_parameters` it leaves the order alone.
    """
    return {1: "auto", 2: "ddp"}.get(world_size, "ddp_find_unused_parameters_true")


def position(checkpoint: Path) -> dict[str, int]:
    """Return how far the run was when it was saved: `epoch`, `step` in it, and whether that was `validated`, and the epoch `ended`."""
    state = torch.load(checkpoint, weights_only=True)["callbacks"]["SampleSelection"]
    return {"epoch": state["epoch"], "step": state["step"], **past(state["phase"])}


def past(phase: str) -> dict[str, int]:
    """Return what is over in a phase."""
    return {"validated": int(phase in ("validated", "ended")), "ended": int(phase == "ended")}


def describe(trainer: L.Trainer, selection: SampleSelection, record: Record, module: L.LightningModule) -> dict[str, Any]:
    """Return everything that must be equal, as plain tensors and numbers."""
    optimizer = trainer.optimizers[0].state_dict()
    totals = {name: value for name, value in asdict(selection.totals).items() if not name.endswith("seconds")}
    return {
        "weights": dict(module.state_dict()),
        "optimizer": optimizer,
        "schedules": [
            {key: value for key, value in config.scheduler.state_dict().items() if key[0] != "_"}
            for config in trainer.lr_scheduler_configs
        ],
        "statistics": selection.statistics.state_dict(),
        "totals": totals,
        "steps": trainer.global_step,
        "streams": [random.random(), float(np.random.rand()), float(torch.rand(1))],
        "batches": record.batches,
        "trained": module.trained,
        "rates": record.rates,
        "validations": record.validations,
        "monitored": monitored(trainer.callbacks),
        "plans": record.plans,
        "events": record.events,
    }


def train_to_file(folder: Path, name: str, *args: Any, **kwargs: Any) -> None:
    """Run `train(folder, ...)` and save what it returned as `<name>.<rank>.pt`."""
    result = train(folder, *args, **kwargs)
    torch.save(result, folder / f"{name}.{os.environ.get('RANK', 0)}.pt")


def differences(whole: dict[str, Any], resumed: dict[str, Any]) -> list[str]:
    """Return the names of what a resumed run has otherwise than the whole one, from where it was resumed on."""
    at_end = ("weights", "scorer", "optimizer", "schedules", "statistics", "totals", "steps", "streams", "monitored")
    names = [name for name in at_end if not equal(whole[name], resumed[name])]
    start = resumed["resumed"] or {"epoch": 0, "step": 0, "validated": 0, "ended": 0}
    left = {
        epoch: {batch for batch in batches if (epoch, batch) >= (start["epoch"], start["step"])}
        for epoch, batches in whole["batches"].items()
    }
    for name in ("batches", "rates", "trained"):
        expected = {e: {b: value for b, value in batches.items() if b in left[e]} for e, batches in whole[name].items()}
        names += [name] * (not equal({epoch: batches for epoch, batches in expected.items() if batches}, resumed[name]))
    first = (start["epoch"], start["step"] - 1 + start["validated"])  # the batch whose validation is the first to come
    expected = {e: {b: value for b, value in found.items() if (e, b) >= first} for e, found in whole["validations"].items()}
    names += ["validations"] * (not equal({epoch: found for epoch, found in expected.items() if found}, resumed["validations"]))
    expected = {epoch: whole["plans"][epoch] for epoch in left if left[epoch]}
    names += ["plans"] * (not equal(expected, resumed["plans"]))
    expected = {epoch: metrics for epoch, metrics in whole["logged"].items() if epoch >= start["epoch"] + start["ended"]}
    return names + ["logged"] * (not equal(expected, resumed["logged"]))


def equal(one: Any, other: Any) -> bool:
    """Whether two nested structures of tensors and numbers are the same to the bit."""
    if isinstance(one, Tensor):
        same = isinstance(other, Tensor) and one.dtype == other.dtype and one.shape == other.shape
        return same and one.numpy().tobytes() == other.numpy().tobytes()
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(equal(mine, its) for mine, its in zip(one, other, strict=True))
    return one == other or (one != one and other != other)
