"""Losses of training samples by models that have not seen them, for the table of `python -m kakurenbo_recipes.irreducible`."""

import copy
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from kakurenbo_lightning.core.atomic import replacing
from kakurenbo_lightning.core.fingerprint import fingerprint
from kakurenbo_recipes.data import ImageData
from kakurenbo_recipes.data_tools import existing
from kakurenbo_recipes.models import ImageClassifier
from kakurenbo_recipes.settings import check_setting, is_count, made_of


class HeldOutClassifier(ImageClassifier):
    """An `ImageClassifier` that remembers the losses of its validation samples from the epoch in which their mean was lowest.

    Attributes:
        losses: float32 [M] on the CPU, in the order of the loader; None before the first validation.
        best_epoch: the epoch of these losses.
        best_accuracy: validation accuracy in that epoch, in [0, 1].
    """

    def __init__(self, *arguments, **settings) -> None:
        super().__init__(*arguments, **settings)
        self.losses: Tensor | None = None
        self.best_epoch, self.best_accuracy = -1, 0.0
        self._seen: list[tuple[Tensor, Tensor]] = []

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Collect the loss of each sample of a batch, and whether it is predicted correctly."""
        images, labels = batch
        logits = self(images).float()
        self._seen.append((F.cross_entropy(logits, labels, reduction="none"), logits.argmax(1) == labels))

    def on_validation_epoch_end(self) -> None:
        """Keep the losses if their mean is the lowest so far."""
        losses, correct = (torch.cat(parts).cpu() for parts in zip(*self._seen, strict=True))
        self._seen = []
        self.log_dict({"val/loss": losses.mean(), "val/accuracy": correct.float().mean()}, prog_bar=True)
        if self.losses is None or losses.mean() < self.losses.mean():
            self.losses, self.best_epoch, self.best_accuracy = losses, self.current_epoch, correct.float().mean().item()


def split(total: int, folds: int, seed: int) -> list[Tensor]:
    """Split `total` rows into folds: int64, ascending; sizes differ by at most one."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return [order[fold::folds].sort().values for fold in range(folds)]


def held_out_losses(cfg: DictConfig, data: ImageData, rows: Tensor) -> HeldOutClassifier:
    """Train a model on all but `rows` of the training samples, and return it with its losses of `rows`.

    Args:
        cfg: settings of the program.
        data: a data module that has been set up; it is not changed.
        rows: int64 [M], ascending.
    """
    everything = existing(data.train_images, "data.train_images", "data.setup()")
    rest = torch.ones(len(everything), dtype=torch.bool)
    rest[rows] = False
    part = copy.copy(data)
    part.train_images = everything.part(rest.nonzero()[:, 0])
    # validate on the fold instead of the test set
    part.val_images = part.test_images = everything.part(rows)

    network = made_of(cfg.model, num_classes=data.num_classes)
    model = HeldOutClassifier(network, made_of(cfg.optimizer), data.num_classes)
    trainer = made_of(cfg.trainer)(logger=False)
    one = trainer.world_size == 1
    check_setting("trainer.devices", trainer.world_size, one, "1: one process takes the losses", "Use trainer.devices=1.")
    limit = trainer.limit_val_batches  # 1.0 for all, 1 for one
    whole = isinstance(limit, float) and limit == 1.0
    check_setting("trainer.limit_val_batches", limit, whole, "null: every sample needs its loss", "Leave it out.")
    trainer.fit(model, datamodule=part)
    if trainer.interrupted:
        raise KeyboardInterrupt
    return model


def irreducible_losses(cfg: DictConfig, data: ImageData) -> Tensor:
    """Return the loss of each training sample under a model that was not trained on it, float32 [N]."""
    total = len(existing(data.train_images, "data.train_images", "data.setup()"))
    is_split = is_count(cfg.folds, 2) and cfg.folds <= total
    check_setting("folds", cfg.folds, is_split, f"an int from 2 to {total}, the number of samples", "Use 2, as in the paper.")
    losses = torch.full((total,), float("nan"))
    for fold, rows in enumerate(split(total, cfg.folds, cfg.seed)):
        trained = total - len(rows)
        print(
            f"model {fold + 1} of {cfg.folds}: trains on {trained:,} samples for the losses of {len(rows):,} others", flush=True
        )
        L.seed_everything(cfg.seed + fold, workers=True, verbose=False)
        model = held_out_losses(cfg, data, rows)
        losses[rows] = lowest = existing(model.losses, "losses", "a validation")
        print(
            f"  their mean loss was lowest in epoch {model.best_epoch}: {lowest.mean():.3f}, {model.best_accuracy:.1%} right; "
            "the losses of that epoch are taken",
            flush=True,
        )
    return losses


def save(content: dict[str, object], path: Path) -> None:
    """Write a file atomically: it gets its name when it is complete."""
    with replacing(path) as partial:
        torch.save(content, partial)


def write_table(cfg: DictConfig, path: Path) -> Tensor:
    """Train the models, write the table, and return the losses, float32 [N]."""
    data = made_of(cfg.data)
    data.prepare_data()
    data.setup("fit")
    losses = irreducible_losses(cfg, data)
    save({"irreducible": losses, "fingerprint": fingerprint(data.train_images)}, path)
    return losses
