"""torchgeo's own LightningModules for images."""

import pytest
from foreign import BATCH, BATCH_DEPENDENT, INDIVISIBLE, METHODS, Case, Training, check
from images import CLASSES, frozen_norms, loader
from torch.utils.data import DataLoader
from torchgeo.trainers import ClassificationTask, SemanticSegmentationTask


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


PACKAGE = "torchgeo"
CASES = [
    Case("ClassificationTask, ce", PACKAGE, classification),
    Case("ClassificationTask, ce, BatchNorm in training", PACKAGE, lambda: classification(frozen=False), comparable=False),
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
