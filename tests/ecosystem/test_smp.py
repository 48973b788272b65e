"""Losses and networks of segmentation-models-pytorch."""

import lightning.pytorch as pl
import pytest
import segmentation_models_pytorch as smp
import torch
from foreign import BATCH, INDIVISIBLE, METHODS, Case, Training, check
from images import CLASSES, frozen_norms, loader


class Module(pl.LightningModule):
    """Trains a Unet with a loss of the library."""

    def __init__(self, criterion, classes):
        super().__init__()
        self.network = smp.Unet(
            "tu-test_resnet", encoder_weights=None, encoder_depth=3, decoder_channels=(16, 8, 8), classes=classes
        )
        self.criterion = criterion

    def training_step(self, batch, batch_idx):
        return self.criterion(self.network(batch["image"]), batch["mask"])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def training(criterion, binary=False, mean=True):
    images = loader(BATCH, "mask", pixels=True, binary=binary)
    module = frozen_norms(Module(criterion, 1 if binary else CLASSES))
    return Training(module, images) if mean else Training(module, images, terms=None)


class Sum(torch.nn.Module):
    """Losses that are added."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = torch.nn.ModuleList(parts)

    def forward(self, scores, target):
        return sum(part(scores, target) for part in self.parts)


FOCAL, DICE = smp.losses.FocalLoss("multiclass"), smp.losses.DiceLoss("multiclass")
SOFT = smp.losses.SoftCrossEntropyLoss(smooth_factor=0.1)
PACKAGE = "segmentation-models-pytorch"
CASES = [
    Case("Unet, FocalLoss, three classes", PACKAGE, lambda: training(FOCAL)),
    Case("Unet, FocalLoss, binary", PACKAGE, lambda: training(smp.losses.FocalLoss("binary"), binary=True)),
    Case("Unet, SoftCrossEntropyLoss", PACKAGE, lambda: training(SOFT)),
    Case("Unet, DiceLoss", PACKAGE, lambda: training(DICE, mean=False), INDIVISIBLE),
    Case("Unet, FocalLoss and SoftCrossEntropyLoss", PACKAGE, lambda: training(Sum(FOCAL, SOFT))),
    Case("Unet, FocalLoss and DiceLoss", PACKAGE, lambda: training(Sum(FOCAL, DICE), mean=False), INDIVISIBLE),
    Case(
        "Unet, LovaszLoss over the batch", PACKAGE, lambda: training(smp.losses.LovaszLoss("multiclass"), mean=False), INDIVISIBLE
    ),
    Case("Unet, JaccardLoss", PACKAGE, lambda: training(smp.losses.JaccardLoss("multiclass"), mean=False), INDIVISIBLE),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_smp(case, method):
    check(case, method)
