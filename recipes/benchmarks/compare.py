"""Baseline against KAKURENBO on CIFAR-10 with a ResNet-18, in a given time: accuracy, hidden share and seconds.

Both train the same number of epochs from the same weights, as many as fit into `--seconds` by the time of one epoch
measured first.
"""

import argparse
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from kakurenbo_recipes.data import ImageData
from kakurenbo_recipes.models import CifarResNet, ImageClassifier
from kakurenbo_recipes.parquet_data import CIFAR10
from kakurenbo_recipes.results import Result, comparison
from torch import nn
from torchvision.models import resnet18
from tqdm import tqdm

from kakurenbo_lightning import SampleSelection
from recipes.benchmarks import report
from recipes.benchmarks.training import prepare, trainer

METHODS = {"baseline": {}, "kakurenbo": {"max_fraction": 0.3, "tau": 0.7}}


def small_image_resnet18() -> nn.Module:
    """Return torchvision's ResNet-18 with the first layers usual for 32 x 32 images: no stride, no pooling."""
    network = resnet18(num_classes=10)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


NETWORKS = {"resnet18": small_image_resnet18, "resnet8": CifarResNet}


def fit(method: str, epochs: int, data: ImageData, settings: argparse.Namespace) -> Result:
    """Train one method and validate it after the last epoch."""
    L.seed_everything(settings.seed, verbose=False)
    optimizer = partial(torch.optim.SGD, lr=settings.learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    network = NETWORKS[settings.network]().to(memory_format=torch.channels_last)
    model = ImageClassifier(network, optimizer, num_classes=10)
    selection = SampleSelection(method, **METHODS[method])
    training = trainer(
        settings.device,
        [selection],
        epochs,
        precision="bf16-mixed" if settings.device == "cuda" else "32-true",
        check_val_every_n_epoch=epochs,
        num_sanity_val_steps=0,
    )
    clock = report.clock(settings.device)
    started = clock()
    training.fit(model, datamodule=data)
    seconds = clock() - started
    accuracy = training.callback_metrics["val/accuracy"].item()
    return Result(method=method, metric="accuracy", score=accuracy, totals=asdict(selection.totals), fit_seconds=seconds)


def epochs_in(settings: argparse.Namespace, data: ImageData) -> int:
    """Return how many epochs of both methods fit into the time."""
    if settings.epochs:
        return settings.epochs
    fit("baseline", 1, data, settings)  # the first one sets cuDNN up
    one = fit("baseline", 1, data, settings)
    return max(2, int(settings.seconds / len(METHODS) / one.seconds))


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Train both methods."""
    options = report.parser("compare", __doc__)
    options.add_argument("--data-root", type=Path, required=True, help="folder of CIFAR-10")
    options.add_argument("--network", choices=list(NETWORKS), default="resnet18", help="what to train")
    options.add_argument("--samples", type=report.count, help="training images; all by default")
    options.add_argument("--batch-size", type=report.count, default=256, help="samples of a step")
    options.add_argument("--learning-rate", type=float, default=0.1, help="at the start of the cosine schedule")
    options.add_argument("--seconds", type=float, default=120.0, help="time for both methods together")
    options.add_argument("--epochs", type=int, default=0, help="train so many epochs instead")
    settings = options.parse_args(arguments)
    prepare(settings)
    machine = report.machine(settings.device)
    torch.set_float32_matmul_precision("high")
    data = CIFAR10(str(settings.data_root), subset=settings.samples, batch_size=settings.batch_size)
    data.prepare_data()
    data.setup("fit")
    started = time.perf_counter()
    epochs = epochs_in(settings, data)
    results = [fit(method, epochs, data, settings) for method in tqdm(METHODS, desc=f"{epochs} epochs", unit="method")]
    print("\n".join(comparison(results)))
    result = {
        "benchmark": "compare",
        "machine": machine,
        "network": settings.network,
        "epochs": epochs,
        "methods": METHODS,
        "results": [one.as_dict() | {"saving": one.saving(results[0])} for one in results],
        "wall_s": time.perf_counter() - started,
    }
    report.write(settings.json, result)
    return result


if __name__ == "__main__":
    main()
