"""timm's losses on a network of timm, in the few lines that a user writes around them."""

import lightning.pytorch as pl
import pytest
import timm
import torch
import torch.nn.functional as F
from foreign import BATCH, METHODS, READ, Case, Training, check
from images import CLASSES, frozen_norms, loader
from timm import loss as losses


class Module(pl.LightningModule):
    """Trains a network of timm with a loss of timm.

    Args:
        criterion: called with logits and the target.
        target: makes it of the classes, ``[B]``, of a batch.
    """

    def __init__(self, criterion, target):
        super().__init__()
        self.network = timm.create_model("test_resnet", num_classes=CLASSES)
        self.criterion, self.target = criterion, target

    def training_step(self, batch, batch_idx):
        return self.criterion(self.network(batch["image"]), self.target(batch["label"]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def classes(labels):
    """As they are."""
    return labels


def soft(labels):
    """As mixup makes them."""
    return 0.9 * F.one_hot(labels, CLASSES) + 0.1 / CLASSES


def several(labels):
    """More than one class for each sample."""
    return (F.one_hot(labels, CLASSES) + F.one_hot((labels + 1) % CLASSES, CLASSES)).float()


def case(name, criterion, target=classes, refused=None):
    """A case of ``criterion``; where methods are ``refused``, it is no mean over samples."""
    terms = {"terms": None} if refused else {}
    return Case(
        name, "timm", lambda: Training(frozen_norms(Module(criterion, target)), loader(BATCH, "label"), **terms), refused or {}
    )


HALF = r"a sum of \[\d+\] is only .*of the loss.*unweighted_rest=True"
OF_THE_BATCH = {
    **dict.fromkeys(READ, f"{HALF}.*random, random_cycle, weighted and baseline need no values"),
    "infobatch": f"loss weights: {HALF}",
}
CASES = [
    case("LabelSmoothingCrossEntropy", losses.LabelSmoothingCrossEntropy(0.1)),
    case("SoftTargetCrossEntropy", losses.SoftTargetCrossEntropy(), soft),
    case("BinaryCrossEntropy", losses.BinaryCrossEntropy()),
    case("AsymmetricLossSingleLabel", losses.AsymmetricLossSingleLabel()),
    case("AsymmetricLossMultiLabel", losses.AsymmetricLossMultiLabel(), several),
    case("PolyCrossEntropy", losses.PolyCrossEntropy()),
    case("ZlprLoss", losses.ZlprLoss(), several),
    case("TwoWayLoss, half of it over samples of each class", losses.TwoWayLoss(), several, OF_THE_BATCH),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_timm(case, method):
    check(case, method)
