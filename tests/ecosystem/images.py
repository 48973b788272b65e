"""Small made images, and what fine-tuning often does to a network's BatchNorm."""

import torch
from torch import nn
from torch.utils.data import DataLoader

IMAGES, SIDE, CLASSES = 24, 32, 3


def frozen_norms(module):
    """The module with its BatchNorm layers in eval mode, so that a sample's loss does not depend on its batch."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    return module


def loader(batch, name, pixels=False, binary=False, ignored=None):
    """Dicts of an image and its class under ``name``, or a class for each pixel; a part of the pixels is ``ignored``."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, 3, SIDE, SIDE, generator=generator)
    shape = (IMAGES, SIDE, SIDE) if pixels else (IMAGES,)
    labels = torch.randint(2 if binary else CLASSES, shape, generator=generator)
    if ignored is not None:
        labels[torch.rand(shape, generator=generator) < torch.rand(IMAGES, 1, 1, generator=generator) / 2] = ignored
    rows = [{"image": image, name: label} for image, label in zip(images, labels, strict=True)]
    return DataLoader(rows, batch_size=batch, shuffle=True)
