"""A timm network on a torchvision data set: `python -m recipes.examples.timm_torchvision`. Only the callback is new."""

import lightning as L
import timm
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision.datasets import FakeData
from torchvision.transforms import v2

from kakurenbo_lightning import SampleSelection


class Classifier(L.LightningModule):
    """A timm network trained on cross-entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.network = timm.create_model("resnet10t", num_classes=10)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return F.cross_entropy(self.network(images), labels)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> SampleSelection:
    """Train for three epochs. Replace FakeData by your torchvision data set."""
    L.seed_everything(0)
    transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    images = FakeData(96, (3, 32, 32), num_classes=10, transform=transform)
    selection = SampleSelection("kakurenbo", max_fraction=0.3, tau=0.1)
    trainer = L.Trainer(
        max_epochs=3, accelerator="auto", devices=1, logger=False, enable_checkpointing=False, callbacks=[selection]
    )
    trainer.fit(Classifier(), DataLoader(images, batch_size=32, shuffle=True))
    print(f"hid {selection.totals.samples_hidden} of {3 * len(images)} samples")
    return selection


if __name__ == "__main__":
    main()
