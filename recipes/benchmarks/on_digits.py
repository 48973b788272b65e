"""Trainings of a few seconds on scikit-learn's 1,797 digits, a perceptron of 128 units: what a card can show without a data set.

`--of bls`: hiding by the losses of whole batches (`values="bls"`) beside hiding by the samples' own, for a loss that has both (cross
entropy) and one that has none by sample (Dice over the batch). `--of weighted`: draws by weights against plain training and against
torch's sampler, on digits of which each class has fewer samples than the one before. The runs of a seed have the same data and begin
with the same weights.
"""

import argparse
from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from kakurenbo_lightning import SampleSelection
from recipes.benchmarks import report
from recipes.benchmarks.fits import Row, cell, summarise
from recipes.benchmarks.training import prepare, trainer

RAREST = 0.05  # share of its samples that the last class keeps
Criterion = Callable[[Tensor, Tensor], Tensor]


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """Return 1 - the overlap of predictions and targets, over the whole batch."""
    p, one = logits.softmax(1), F.one_hot(target, 10)
    return 1 - 2 * (p * one).sum() / (p.sum() + one.sum())


CRITERIA: dict[str, Criterion] = {"cross entropy": F.cross_entropy, "Dice": dice}


class Perceptron(L.LightningModule):
    """A network with one hidden layer, trained by SGD at a rate that decays to 0.

    Args:
        criterion: a function of logits and targets.
    """

    def __init__(self, criterion: Criterion = F.cross_entropy) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        self.criterion = criterion

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        return self.criterion(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        """Return SGD and a schedule that decays to 0."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(self.trainer.max_epochs or 1))]


def digits(seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Return four fifths of the digits for training and the rest for testing, stratified by class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data: Any = load_digits()
    parts = train_test_split(data.data / 16, data.target, test_size=0.2, random_state=seed, stratify=data.target)
    x, other_x, y, other_y = (torch.from_numpy(np.asarray(part)) for part in parts)
    return TensorDataset(x.float(), y), TensorDataset(other_x.float(), other_y)


def fewer_of_each(data: TensorDataset) -> TensorDataset:
    """Return the data with more and more samples removed per class, down to the share :data:`RAREST` of the last class."""
    x, y = data.tensors
    kept = [(y == c).nonzero().squeeze(1) for c in range(10)]
    rows = torch.cat([rows[: round(len(rows) * RAREST ** (c / 9))] for c, rows in enumerate(kept)])
    return TensorDataset(x[rows], y[rows])


def run(settings: argparse.Namespace, seed: int, name: str, data: Any, criterion: Criterion, method: str, **options: Any) -> Row:
    """Train one run and return its row of the table."""
    train, test = data
    L.seed_everything(seed, verbose=False)
    module, weights = Perceptron(criterion), options.pop("sampler", None)
    sampler = None if weights is None else WeightedRandomSampler(weights.tolist(), len(train))
    loader = DataLoader(train, settings.batch_size, shuffle=sampler is None, sampler=sampler)
    selection = SampleSelection(method, **options)
    trainer("cpu", [] if sampler else [selection], settings.epochs).fit(module, loader)
    with torch.no_grad():
        logits, (x, y) = module.network(test.tensors[0]), train.tensors
        losses = F.cross_entropy(module.network(x), y, reduction="none")
    right = (logits.argmax(1) == test.tensors[1]).float()
    recorded = None if sampler or selection.statistics is None else selection.statistics.loss
    planned = settings.epochs * len(train)
    trained = planned if sampler else selection.totals.samples_trained
    return {
        **{"run": name, "seed": seed, "epochs": settings.epochs, "accuracy": float(right.mean())},
        "rare_accuracy": float(right[test.tensors[1] >= 5].mean()),
        **{"samples_trained": trained, "left_out": 1 - trained / planned},
        "rank_correlation": None if recorded is None or recorded.isnan().any() else rank_correlation(recorded, losses),
    }


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Return Spearman's rank correlation of two figures."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (one, other)])
    return float(torch.corrcoef(ranks)[0, 1])


def of_bls(settings: argparse.Namespace, seed: int) -> list[Row]:
    """Return the rows of a seed for the comparison of losses of batches."""
    rows, data = [], digits(seed)
    for loss, criterion in CRITERIA.items():
        rows.append(run(settings, seed, f"{loss}, baseline", data, criterion, "baseline"))
        if loss == "cross entropy":
            rows.append(run(settings, seed, f"{loss}, infobatch", data, criterion, "infobatch"))
        for method in ("infobatch", "seta"):
            found = run(settings, seed, f"{loss}, {method}, bls", data, criterion, method, values="bls")
            share = round(found["left_out"], 3)
            alike = run(settings, seed, f"{loss}, random, as {method}, bls", data, criterion, "random", max_fraction=share)
            rows += [found, alike]
    return rows


def of_weighted(settings: argparse.Namespace, seed: int) -> list[Row]:
    """Return the rows of a seed for the comparison of weighted draws."""
    train, test = digits(seed)
    data = fewer_of_each(train), test
    y = data[0].tensors[1]
    weights = (1 / torch.bincount(y))[y]
    return [
        run(settings, seed, "baseline", data, F.cross_entropy, "baseline"),
        run(settings, seed, "weighted", data, F.cross_entropy, "weighted", weights=weights),
        run(settings, seed, "weighted, temperature 0.5", data, F.cross_entropy, "weighted", weights=weights, temperature=0.5),
        run(settings, seed, "WeightedRandomSampler", data, F.cross_entropy, "baseline", sampler=weights),
    ]


OF = {"bls": (of_bls, "left_out", "rank_correlation"), "weighted": (of_weighted, "rare_accuracy")}


FIGURES = {
    "accuracy": ("test accuracy, %", ".2f", 100),
    "rare_accuracy": ("of the five rarest classes, %", ".2f", 100),
    "samples_trained": ("samples trained", ",.0f", 1),
    "left_out": ("left out, %", ".1f", 100),
    "rank_correlation": ("order", ".2f", 1),
}


def main(arguments: list[str] | None = None) -> Row:
    """Train every run of every seed."""
    options = report.parser("on_digits", str(__doc__), devices=["cpu"], clocks=["cpu"], threads=1)
    options.add_argument("--of", choices=list(OF), required=True, help="what is compared")
    options.add_argument("--epochs", type=report.count, default=20, help="of each run")
    options.add_argument("--batch-size", type=report.count, default=32, help="samples of a step")
    options.add_argument("--seeds", type=report.count, default=5, help="how many, from --seed on")
    settings = report.parse(options, arguments)
    of_a_seed, *more = OF[settings.of]
    prepare()
    rows = [row for seed in range(settings.seed, settings.seed + settings.seeds) for row in of_a_seed(settings, seed)]
    summary = summarise(rows, "accuracy", "samples_trained", *more)
    known = {name: getattr(settings, name) for name in ("of", "epochs", "batch_size", "seeds")}
    columns = {"run": lambda row: row["run"]}
    columns |= {head: cell(key, form, scale) for key, (head, form, scale) in FIGURES.items() if key in summary[0]}
    report.print_table(f"digits, {settings.epochs} epochs, {settings.seeds} seeds", summary, columns)
    return report.write(settings, **known, summary=summary)


if __name__ == "__main__":
    main()
