"""Segmentation: torchvision's DeepLabv3 for images of any number of channels, and the LightningModule that trains it."""

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.functional.segmentation import mean_iou
from torchvision.models import get_model, list_models, segmentation

from kakurenbo_recipes.models import Task
from kakurenbo_recipes.schedules import schedule
from kakurenbo_recipes.settings import check_setting, is_count

NETWORKS = [name for name in list_models(segmentation) if name.startswith("deeplabv3")]


class DeepLab(nn.Module):
    """DeepLabv3 (Chen et al., 2017) of torchvision, without pre-trained weights.

    Args:
        name: name of torchvision's function: deeplabv3_resnet50, deeplabv3_resnet101 or deeplabv3_mobilenet_v3_large (the smallest).
        channels: number of channels of the images.
        num_classes: number of classes of a pixel.
    """

    def __init__(self, name: str = "deeplabv3_resnet50", channels: int = 16, num_classes: int = 3) -> None:
        super().__init__()
        near = difflib.get_close_matches(str(name), NETWORKS, n=1, cutoff=0.0)
        check_setting("model.name", name, name in NETWORKS, f"one of {', '.join(NETWORKS)}", f"Did you mean {near[0]}?")
        check_setting("model.channels", channels, is_count(channels, 1), "an int >= 1", "DeepCAM has 16.")
        self.channels = channels
        self.network = get_model(name, weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=False)
        where, first = next((w, layer) for w, layer in self.network.named_modules() if isinstance(layer, nn.Conv2d))
        # casts: PyTorch declares tuples of any length, but Conv2d takes two numbers
        kept = cast(Any, (first.out_channels, first.kernel_size, first.stride, first.padding))
        first_layer = nn.Conv2d(channels, *kept, bias=first.bias is not None)
        nn.init.kaiming_normal_(first_layer.weight, mode="fan_out", nonlinearity="relu")  # torchvision's initialisation
        parent, _, leaf = where.rpartition(".")
        setattr(self.network.get_submodule(parent), leaf, first_layer)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, num_classes, H, W] of images [B, channels, H, W].

        Raises:
            ValueError: the images have other channels, or one image is to be trained alone: DeepLabv3 normalises the mean over an
                image, one value for each channel, over the batch.
        """
        if images.shape[1] != self.channels:
            fix = "set it to the number of data.channels"
            raise ValueError(f"model.channels={self.channels}, but the images have {images.shape[1]} channels: {fix}")
        if self.training and len(images) == 1:
            raise ValueError(
                "DeepLab cannot train on a batch of one image, because its batch normalisation needs two values to normalise: use "
                "data.batch_size >= 2. The last batch of an epoch may be shorter: SampleSelection (also method=baseline) shares it with "
                "the batch before; without it, use data.drop_last=true."
            )
        return self.network(images)["out"]


class Segmenter(Task):
    """Trains a network to classify each pixel. Nothing in it depends on sample selection.

    The loss is the mean over all pixels of weight[class] * cross-entropy, as in the reference code of DeepCAM. It is not
    what `F.cross_entropy(..., weight=...)` returns, which divides by the sum of the weights: then the same mistake would count less
    in a batch of many cyclones. So the loss of a batch is the mean of the losses of its samples, which is what a method chooses by.

    Logs `val/iou` (intersection over union of each class over all pixels of the validation images, mean of the classes),
    `val/iou_CLASS`, and `val/iou_per_image`, the figure of MLPerf HPC: the mean over images, in which a class that an image does
    not have, and that is not predicted either, counts as 1 (target: 0.82).

    Attributes:
        metric: name of the validation metric `val/NAME` that runs are compared by; higher is better.

    Args:
        network: maps images, float32 [B, C, H, W], to logits [B, num_classes, H, W].
        optimizer: makes the optimizer from the parameters.
        num_classes: number of classes.
        schedule: makes Lightning's `lr_scheduler` dict from the optimizer and the Trainer.
        class_weights: weight of each class's pixels in the loss; None for 1.
        class_names: names of the classes for the log; None for 0, 1, 2, ...
    """

    metric = "iou"
    class_weights: Tensor

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        num_classes: int,
        schedule: Callable[[torch.optim.Optimizer, L.Trainer], dict[str, Any]] = schedule,
        class_weights: Sequence[float] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(network, optimizer, schedule)
        weights = [1.0] * num_classes if class_weights is None else list(class_weights)
        names = [str(number) for number in range(num_classes)] if class_names is None else list(class_names)
        fits = len(weights) == num_classes and all(weight >= 0 for weight in weights)
        hint = f"The data have {num_classes} classes."
        check_setting("task.class_weights", class_weights, fits, "null or a number >= 0 for each class", hint)
        check_setting("task.class_names", class_names, len(names) == num_classes, "null or a name for each class", hint)
        self.num_classes = num_classes
        self.class_names = names
        self.register_buffer("class_weights", torch.tensor(weights, dtype=torch.float32), persistent=False)
        each, mean = MulticlassJaccardIndex(num_classes, average=None), MulticlassJaccardIndex(num_classes)
        self.iou = MetricCollection({"each": each, "mean": mean})

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted mean of the cross-entropy over all pixels."""
        return F.cross_entropy(logits, labels, weight=self.class_weights, reduction="none").mean()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of images [B, C, H, W] and the classes of their pixels, int64 [B, H, W]."""
        images, labels = batch
        loss = self.loss(self(images), labels)
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss of a batch and count its pixels."""
        self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss of a batch and count its pixels."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: tuple[Tensor, Tensor], part: str) -> None:
        images, labels = batch
        logits = self(images)
        predicted = logits.argmax(1)
        self.iou.update(predicted, labels)
        # -1 if an image has no such class
        each = mean_iou(predicted, labels, self.num_classes, per_class=True, input_format="index")
        self.log(f"{part}/loss", self.loss(logits, labels), sync_dist=True)
        self.log(f"{part}/iou_per_image", torch.where(each < 0, 1.0, each).mean(), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Log the intersection over union over all pixels on all ranks."""
        self._log_iou("val")

    def on_test_epoch_end(self) -> None:
        """Log the intersection over union over all pixels on all ranks."""
        self._log_iou("test")

    def _log_iou(self, part: str) -> None:
        found = self.iou.compute()
        self.iou.reset()
        self.log(f"{part}/iou", found["mean"], prog_bar=True, sync_dist=True)
        for name, value in zip(self.class_names, found["each"], strict=True):
            self.log(f"{part}/iou_{name}", value, sync_dist=True)
