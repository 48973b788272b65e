"""CIFAR-style and wide residual networks, timm's networks by name, and the LightningModule that trains either of them."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from kakurenbo_lightning.core.checkpoint_file import check_whole
from kakurenbo_lightning.errors import DamagedCheckpointError
from kakurenbo_recipes.schedules import schedule
from kakurenbo_recipes.settings import check_setting, is_count, is_share


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    """Return a 3 x 3 convolution followed by batch normalisation."""
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(channels_out))


class Block(nn.Module):
    """Two 3 x 3 convolutions with a shortcut, which is a 1 x 1 convolution if the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.first = conv3x3(channels_in, channels_out, stride)
        self.second = conv3x3(channels_out, channels_out)
        self.shortcut = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, channels_in, H, W] to [B, channels_out, H / stride, W / stride]."""
        return F.relu(self.second(F.relu(self.first(features))) + self.shortcut(features))


class CifarResNet(nn.Sequential):
    """The residual network for 32 x 32 images (He et al., CVPR 2016, section 4.2).

    Args:
        depth: number of layers, 6n + 2 for n blocks in each of three stages: 8, 14, 20, 32, 44, 56, 110.
        width: channels of the first stage; the next two have 2 and 4 times as many.
        num_classes: number of logits.
    """

    def __init__(self, depth: int = 8, width: int = 16, num_classes: int = 10) -> None:
        is_depth = is_count(depth, 8) and depth % 6 == 2
        check_setting("model.depth", depth, is_depth, "6n + 2 with n >= 1 (8, 14, 20, ...)", "Try 8 or 20.")
        check_setting("model.width", width, is_count(width, 1), "an int >= 1", "Try 16.")
        layers = [conv3x3(3, width), nn.ReLU(inplace=True)]
        channels = width
        for stage in range(3):
            for block in range((depth - 2) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(Block(channels, width * 2**stage, stride))
                channels = width * 2**stage
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


class WideBlock(nn.Module):
    """Batch normalisation and ReLU before each of two 3 x 3 convolutions, dropout between them, and a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(channels_in), nn.ReLU(inplace=True))
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
        )
        self.shortcut = None
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, channels_in, H, W] to [B, channels_out, H / stride, W / stride]."""
        active = self.before(features)
        return self.convolutions(active) + (features if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Sequential):
    """The wide residual network for 32 x 32 images, WRN-depth-width (Zagoruyko & Komodakis, BMVC 2016).

    Args:
        depth: number of layers, 6n + 4 for n blocks in each of three stages: 16, 28, 40.
        width: factor on the 16, 32 and 64 channels of the stages.
        dropout: share of the features dropped in each block.
        num_classes: number of logits.
    """

    def __init__(self, depth: int = 28, width: int = 10, dropout: float = 0.0, num_classes: int = 10) -> None:
        is_depth = is_count(depth, 10) and depth % 6 == 4
        check_setting("model.depth", depth, is_depth, "6n + 4 with n >= 1 (16, 28, 40, ...)", "Try 28.")
        check_setting("model.width", width, is_count(width, 1), "an int >= 1", "Try 10.")
        check_setting("model.dropout", dropout, is_share(dropout), "a number in [0, 1)", "Try 0.3, or 0 for none.")
        layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False)]
        channels = 16
        for stage in range(3):
            for block in range((depth - 4) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(WideBlock(channels, 16 * width * 2**stage, stride, dropout))
                channels = 16 * width * 2**stage
        layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*layers, nn.Linear(channels, num_classes))


def timm_network(name: str, num_classes: int, pretrained: bool = False, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Return a network of timm by name, for images of 3 channels and `num_classes` classes.

    Args:
        name: name of the model in timm.
        num_classes: number of logits.
        pretrained: start with timm's pretrained weights, which are downloaded.
        options: further arguments of the model, for example `img_size`, `patch_size` and `drop_path_rate` of a transformer.

    Raises:
        ValueError: timm has no model with that name.
    """
    import timm

    near = difflib.get_close_matches(name, timm.list_models(), n=3)
    hint = f"Did you mean {', '.join(near)}?" if near else "timm.list_models() lists them."
    check_setting("model.name", name, timm.is_model(name), "the name of a timm model", hint)
    return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=3, **(options or {}))


def load_network(network: nn.Module, path: str) -> str:
    """Load the weights of a checkpoint's network. The last layer keeps its own weights if the number of classes differs.

    Args:
        network: has the architecture of the checkpoint's network, except for the last layer.
        path: path of a Lightning checkpoint of a module with an attribute `network`.

    Returns:
        One line that says what was loaded.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the checkpoint holds another network.
    """
    if not Path(path).expanduser().is_file():
        raise FileNotFoundError(
            f"weights={path!r} is not a file: it must be a checkpoint (.ckpt) of a run, or null to start from scratch"
        )
    try:
        check_whole(Path(path).expanduser())
        saved = torch.load(Path(path).expanduser(), map_location="cpu", weights_only=True)
    except DamagedCheckpointError as error:
        raise ValueError(f"weights={path!r} cannot be read: {error}") from None
    is_run = isinstance(saved, dict) and isinstance(saved.get("state_dict"), dict)
    hint = "Give the last.ckpt that a run of kakurenbo-train left."
    check_setting("weights", path, is_run, "a checkpoint of Lightning, with a state_dict", hint)
    saved = {name.removeprefix("network."): value for name, value in saved["state_dict"].items() if name.startswith("network.")}
    own = network.state_dict()
    last = next(reversed([name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]))
    kept = [name for name in own if name.startswith(f"{last}.") and name in saved and saved[name].shape != own[name].shape]
    odd = sorted(own.keys() ^ saved.keys()) + [n for n in own if n in saved and n not in kept and saved[n].shape != own[n].shape]
    hint = "Choose the model and its settings as they were in the run that saved it."
    check_setting("weights", path, not odd, f"a checkpoint of the same network, which differs in {', '.join(odd[:3])}", hint)
    network.load_state_dict({name: saved[name] for name in own if name not in kept}, strict=False)
    return f"{path}: {len(own) - len(kept)} of {len(own)} tensors taken over" + (f"; {last} begins from nothing" if kept else "")


class Task(L.LightningModule):
    """A network with its optimizer and schedule; the base class of all tasks.

    Attributes:
        metric: name of the validation metric `val/NAME` that runs are compared by; higher is better.

    Args:
        network: maps images to logits.
        optimizer: makes the optimizer from the parameters.
        schedule: makes Lightning's `lr_scheduler` dict from the optimizer and the Trainer.
    """

    metric: str

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        schedule: Callable[[torch.optim.Optimizer, L.Trainer], dict[str, Any]],
    ) -> None:
        super().__init__()
        self.network, self.optimizer, self.schedule = network, optimizer, schedule

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images, float32 [B, C, H, W], in the precision of the network (`trainer.precision=64-true`)."""
        return self.network(images.to(self.dtype))

    def configure_model(self) -> None:
        """Shard the network where the strategy is FSDP2 (`trainer=fsdp2`); under any other one there is no mesh."""
        if self.device_mesh is None:
            return
        from torch.distributed.fsdp import fully_shard

        mesh = self.device_mesh["data_parallel"]
        for part in self.network.children():
            if next(part.parameters(), None) is not None:
                fully_shard(part, mesh=mesh)
        fully_shard(self.network, mesh=mesh)

    def configure_optimizers(self) -> dict:
        """Return the optimizer and its schedule."""
        optimizer = self.optimizer(self.parameters())
        return {"optimizer": optimizer, "lr_scheduler": self.schedule(optimizer, self.trainer)}


class ImageClassifier(Task):
    """Trains a network with cross-entropy. Nothing in it depends on sample selection.

    Attributes:
        metric: name of the validation metric `val/NAME` that runs are compared by; higher is better.

    Args:
        network: maps images, float32 [B, 3, H, W], to logits [B, num_classes].
        optimizer: makes the optimizer from the parameters.
        num_classes: number of classes.
        schedule: makes Lightning's `lr_scheduler` dict from the optimizer and the Trainer.
        label_smoothing: label smoothing of the training loss.
    """

    metric = "accuracy"

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        num_classes: int,
        schedule: Callable[[torch.optim.Optimizer, L.Trainer], dict[str, Any]] = schedule,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(network, optimizer, schedule)
        check_setting("task.label_smoothing", label_smoothing, is_share(label_smoothing), "a number in [0, 1)", "Try 0.1.")
        self.label_smoothing = label_smoothing
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of a batch of images [B, 3, H, W] and labels [B]."""
        images, labels = batch
        loss = F.cross_entropy(self(images), labels, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy of a batch."""
        self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy of a batch."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: tuple[Tensor, Tensor], part: str) -> None:
        images, labels = batch
        logits = self(images)
        self.accuracy(logits, labels)
        self.log(f"{part}/loss", F.cross_entropy(logits, labels), sync_dist=True)
        self.log(f"{part}/accuracy", self.accuracy, prog_bar=True)
