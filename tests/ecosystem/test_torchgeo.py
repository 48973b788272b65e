"""torchgeo's own LightningModules for images."""

import kornia.augmentation as K
import lightning.pytorch as pl
import pytest
import torch
from foreign import BATCH, BATCH_DEPENDENT, EPOCHS, INDIVISIBLE, METHODS, Case, Training, check
from images import CLASSES, frozen_norms, loader
from torch.utils.data import DataLoader, Dataset
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.trainers import ClassificationTask, SemanticSegmentationTask

from kakurenbo_lightning import compare

CLASS_WEIGHTS = (1.0, 2.0, 0.5)


def one(sample):
    return 1.0


def counted_pixels(sample):
    """Pixels of an image that are not of the ignored class 0."""
    return (sample["mask"] != 0).sum()


def training(task, images, terms, frozen=True):
    """The task's schedule reads val_loss."""
    return Training(frozen_norms(task) if frozen else task, images, DataLoader(images.dataset, BATCH), terms)


def classification(loss="ce", terms=one, frozen=True):
    return training(ClassificationTask("test_resnet", num_classes=CLASSES, loss=loss), loader(BATCH, "label"), terms, frozen)


def segmentation(loss="ce", terms=one, ignored=None):
    task = SemanticSegmentationTask("fcn", num_classes=CLASSES, num_filters=4, loss=loss, ignore_index=ignored)
    return training(task, loader(BATCH, "mask", pixels=True, ignored=ignored), terms)


def weight(sample):
    """Of the class of an image."""
    return CLASS_WEIGHTS[int(sample["label"])]


class Weighted(Training):
    """Its classes have weights, which the mean over one sample alone cancels: a sample's value has its class's weight."""

    def value(self, loss, sample):
        return loss * weight(sample)


def class_weights():
    task = ClassificationTask("test_resnet", num_classes=CLASSES, class_weights=CLASS_WEIGHTS)
    images = loader(BATCH, "label")
    return Weighted(frozen_norms(task), images, DataLoader(images.dataset, BATCH), weight)


class Images(NonGeoDataModule):
    """torchgeo's way to bring data: it drops a last batch that is not full, and flips batches at random while it trains."""

    mean, std = torch.tensor(0.0), torch.tensor(1.0)

    def __init__(self):
        super().__init__(Dataset, BATCH, 0)
        self.collate_fn = None
        self.train_aug = K.AugmentationSequential(K.RandomHorizontalFlip(), data_keys=None, keepdim=True)
        self.aug = K.AugmentationSequential(K.Normalize(self.mean, self.std), data_keys=None, keepdim=True)

    def setup(self, stage):
        self.train_dataset = self.val_dataset = loader(BATCH, "label").dataset


class FromDataModule(Training):
    """Trains from the data module."""

    def fit(self, callbacks):
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=EPOCHS,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(self.module, datamodule=Images())


def datamodule():
    return FromDataModule(ClassificationTask("test_resnet", num_classes=CLASSES), loader(BATCH, "label"))


PACKAGE = "torchgeo"
CASES = [
    Case("ClassificationTask, ce", PACKAGE, classification),
    Case("ClassificationTask, ce, BatchNorm in training", PACKAGE, lambda: classification(frozen=False), comparable=False),
    Case("ClassificationTask, ce, weights of classes", PACKAGE, class_weights),
    Case("ClassificationTask, data module with random flips", PACKAGE, datamodule, comparable=False),
    Case("ClassificationTask, focal", PACKAGE, lambda: classification("focal", terms=None), BATCH_DEPENDENT),
    Case("ClassificationTask, jaccard", PACKAGE, lambda: classification("jaccard", terms=None), INDIVISIBLE),
    Case("SemanticSegmentationTask, ce", PACKAGE, segmentation),
    Case("SemanticSegmentationTask, ce, pixels ignored", PACKAGE, lambda: segmentation(terms=counted_pixels, ignored=0)),
    Case("SemanticSegmentationTask, focal", PACKAGE, lambda: segmentation("focal", terms=None), BATCH_DEPENDENT),
    Case("SemanticSegmentationTask, jaccard", PACKAGE, lambda: segmentation("jaccard", terms=None), INDIVISIBLE),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_torchgeo(case, method):
    check(case, method)


def test_methods_are_compared_on_a_task_of_torchgeo():
    """The schedule of the task reads val_loss, and so does the comparison."""

    def task():
        return ClassificationTask("test_resnet", num_classes=CLASSES, lr=0.01)

    methods = [("kakurenbo", {"max_fraction": 0.5, "tau": 0.0}), ("random", {"max_fraction": 0.5})]
    settings = {"monitor": "val_loss", "mode": "min", "seeds": 2, "max_epochs": 4, "accelerator": "cpu", "devices": 1}
    baseline, *others = compare(task, Images, methods, **settings).standings
    assert [len(one.score.values) for one in (baseline, *others)] == [2, 2, 2]
    for one in others:
        assert len(one.over_random.values) == len(one.over_time.values) == 2 and one.trained.mean < 1
