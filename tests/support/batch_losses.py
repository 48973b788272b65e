"""Modules whose loss is one number of the whole batch, for tests."""

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from helpers import FEATURES, Spy, fit, loader
from torch import nn

from kakurenbo_lightning import SampleSelection

COUNT, BATCH = 64, 8


def scores(batches, alpha, count=COUNT):
    """Of batches (rows, loss), slow and obvious, in float32 as everything is recorded."""
    score, alpha, rest = [np.float32(0)] * count, np.float32(alpha), np.float32(1 - alpha)
    for rows, loss in batches:
        for i in rows:
            if np.isfinite(score[i]):
                score[i] = alpha * score[i] + rest * np.float32(loss)
            else:
                score[i] = np.float32(loss)
    return np.array(score, dtype=np.float32)


class Watched(pl.LightningModule):
    """Writes down the rows and the loss of every batch, those of scoring passes too."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, 3))
        self.batches, self.scored = [], []

    def training_step(self, batch, batch_idx):
        outputs = self.outputs(*batch)
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        (self.batches if self.training else self.scored).append((batch[2].tolist(), loss.item()))
        return outputs

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Dice(Watched):
    """Overlap over the batch."""

    def outputs(self, x, y, index):
        p, target = self.network(x).softmax(1), F.one_hot(y, 3).float()
        return 1 - 2 * (p * target).sum() / (p.sum() + target.sum())


class DiceWithLogits(Dice):
    """And what a method may read beside it."""

    def outputs(self, x, y, index):
        return {"loss": super().outputs(x, y, index), "logits": self.network(x), "target": y}


class InfoNCE(Watched):
    """Each sample is to be found among the batch by its other view, [B, B]."""

    def outputs(self, x, y, index):
        one, other = (F.normalize(self.network(view), dim=1) for view in (x, x.roll(1, 1)))
        return F.cross_entropy(one @ other.T / 0.5, torch.arange(len(x)))


class Detector(nn.Module):
    """As torchvision's: lists of images and targets; a dict of losses in train mode, a list of detections in eval mode."""

    def __init__(self):
        super().__init__()
        self.head, self.boxes = nn.Linear(FEATURES, 3), nn.Linear(FEATURES, 4)

    def forward(self, images, targets=None):
        features = torch.cat(
            [image[None].expand(3, -1) + 0.1 * torch.arange(3)[:, None] for image in images]
        )  # three anchors each
        if not self.training:
            return [{"boxes": self.boxes(image[None]), "scores": self.head(image[None]).softmax(1)} for image in images]
        labels = torch.cat([target["labels"].expand(3) for target in targets])
        wanted = torch.cat([target["boxes"].expand(3, -1) for target in targets])
        chosen = torch.arange(0, len(labels), 2)  # of all images together, as torchvision's samplers choose
        return {
            "loss_classifier": F.cross_entropy(self.head(features[chosen]), labels[chosen]),
            "loss_box_reg": F.smooth_l1_loss(self.boxes(features[chosen]), wanted[chosen], reduction="sum") / len(labels),
        }


class Detection(Watched):
    def __init__(self):
        super().__init__()
        self.network = Detector()

    def outputs(self, x, y, index):
        targets = [{"labels": label, "boxes": image[:4]} for image, label in zip(x, y, strict=True)]
        return sum(self.network(list(x), targets).values())


MODULES = (Dice, InfoNCE, Detection)
METHODS = {"random": {}, "infobatch": {}, "seta": {"groups": 4}}


def trained(module, method="infobatch", *callbacks, values="bls", settings=None, train=None, **trainer):
    """A run of the Trainer; its selection and spy."""
    selection = SampleSelection(method, seed=1, values=values, **(settings or {}))
    spy = Spy(selection)
    fit(module, train or loader(COUNT), selection, *callbacks, spy, **{"max_epochs": 5, **trainer})
    return selection, spy
