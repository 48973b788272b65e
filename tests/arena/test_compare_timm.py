"""`compare` on a module that was not written for it: a network, a loss and an optimizer of timm, batches that are dicts, torchmetrics."""

import lightning.pytorch as pl
import pytest
import timm
import torch
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from kakurenbo_lightning import compare

CLASSES, SIDE, BATCH = 3, 32, 8


class Classifier(pl.LightningModule):
    """As a user of timm writes it."""

    def __init__(self):
        super().__init__()
        self.network = timm.create_model("test_resnet", num_classes=CLASSES)
        self.criterion, self.accuracy = LabelSmoothingCrossEntropy(0.1), MulticlassAccuracy(CLASSES)

    def training_step(self, batch, batch_idx):
        return self.criterion(self.network(batch["image"]), batch["label"])

    def validation_step(self, batch, batch_idx):
        self.accuracy(self.network(batch["image"]), batch["label"])
        self.log("val_acc", self.accuracy, on_epoch=True)

    def configure_optimizers(self):
        optimizer = create_optimizer_v2(self, opt="adamw", lr=3e-3)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)]


class Images(pl.LightningDataModule):
    """Noise in which one channel, by the class, is brighter."""

    def rows(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(count) % CLASSES
        images = torch.randn(count, 3, SIDE, SIDE, generator=generator) + torch.eye(3)[labels][:, :, None, None]
        return [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]

    def train_dataloader(self):
        return DataLoader(self.rows(48, seed=0), BATCH, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.rows(24, seed=1), BATCH)


def test_a_method_is_compared_on_a_network_of_timm():
    methods = [("kakurenbo", {"max_fraction": 0.5, "tau": 0.0})]
    settings = {"monitor": "val_acc", "seeds": 1, "max_epochs": 4, "accelerator": "cpu", "devices": 1}
    outcome = compare(Classifier, Images, methods, **settings)
    baseline, kakurenbo = outcome.standings
    assert 0.8 < baseline.score.mean <= 1, "it learns"
    assert 0.5 < kakurenbo.trained.mean < 1 and kakurenbo.refreshed.mean > 0
    assert len(kakurenbo.over_random.values) == len(kakurenbo.over_time.values) == 1
    (random,) = (row for name, row in outcome.rows.items() if name.startswith("random"))
    (whole,) = (row for name, row in outcome.rows.items() if row["samples_trained"] == 4 * 48)
    assert random["samples_trained"] / whole["samples_trained"] == pytest.approx(kakurenbo.trained.mean, abs=0.02)
