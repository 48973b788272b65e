"""The data and the model of the app."""

import lightning as L
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset


class Points(L.LightningDataModule):
    """Points of the plane in two classes that are easy to tell apart."""

    def __init__(self, samples: int, batch_size: int) -> None:
        super().__init__()
        points = torch.randn(samples, 2, generator=torch.Generator().manual_seed(0))
        self.dataset, self.batch_size = TensorDataset(points, (points[:, 0] > 0).long()), batch_size

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.dataset, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.dataset, self.batch_size)

    test_dataloader = val_dataloader


class Classifier(L.LightningModule):
    """A linear classifier."""

    def __init__(self, optimizer) -> None:
        super().__init__()
        self.net, self.optimizer = torch.nn.Linear(2, 2), optimizer

    def training_step(self, batch, batch_idx):
        return cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def test_step(self, batch, batch_idx):
        self.log("test/acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return self.optimizer(self.parameters())
