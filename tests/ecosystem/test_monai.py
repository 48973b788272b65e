"""MONAI's losses on a network of MONAI: predictions are ``[B, C, H, W]``, masks ``[B, 1, H, W]``."""

import lightning.pytorch as pl
import pytest
import torch
from foreign import BATCH, INDIVISIBLE, METHODS, Case, Training, check
from images import CLASSES, loader
from monai import losses
from monai.networks.nets import UNet


class Module(pl.LightningModule):
    """Trains MONAI's UNet, whose norms are of each instance, with a loss of MONAI."""

    def __init__(self, criterion, classes):
        super().__init__()
        self.network = UNet(spatial_dims=2, in_channels=3, out_channels=classes, channels=(4, 8), strides=(2,))
        self.criterion = criterion

    def training_step(self, batch, batch_idx):
        return self.criterion(self.network(batch["image"]), batch["mask"][:, None])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def case(name, criterion, binary=False, refused=None, **options):
    """A case of ``criterion``; where methods are ``refused``, it is no mean over samples."""
    terms = {"terms": None} if refused else {}
    return Case(
        name,
        "monai",
        lambda: Training(Module(criterion, 1 if binary else CLASSES), loader(BATCH, "mask", pixels=True, binary=binary), **terms),
        refused or {},
        **options,
    )


CASES = [
    case("FocalLoss, three classes", losses.FocalLoss(to_onehot_y=True)),
    case("FocalLoss, three classes, softmax", losses.FocalLoss(to_onehot_y=True, use_softmax=True)),
    case(
        "FocalLoss, weights of classes, no background",
        losses.FocalLoss(include_background=False, to_onehot_y=True, weight=[1.0, 2.0]),
    ),
    case("FocalLoss, binary", losses.FocalLoss(), binary=True),
    case("DiceLoss, of each image", losses.DiceLoss(to_onehot_y=True, softmax=True)),
    case("DiceFocalLoss, of each image", losses.DiceFocalLoss(to_onehot_y=True, softmax=True)),
    case("DiceCELoss, of each image", losses.DiceCELoss(to_onehot_y=True, softmax=True)),
    case("DiceLoss, of the batch", losses.DiceLoss(to_onehot_y=True, softmax=True, batch=True), refused=INDIVISIBLE),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_monai(case, method):
    check(case, method)
