"""Wrong labels: whether the data doctor finds them, by each figure that a recorded run has of every sample.

Each run trains on CIFAR-10 with a share of the training labels replaced by wrong ones, and is recorded. A figure ranks the samples:
AUROC is the chance that it takes a replaced label for more suspicious than a right one (0.5 for chance), precision is the share of
replaced labels among as many of the most suspicious as were replaced. Self-confidence is cleanlab's score, the probability of the label.
cleanlab takes it from predictions of held-out samples; here it is that of the same run's last epoch, so neither cleanlab nor a further
training is needed.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from kakurenbo_lightning.record import RunRecorder
from kakurenbo_lightning.record.schema import SAMPLES
from kakurenbo_lightning.report.doctor import COLUMNS, is_issue
from kakurenbo_lightning.report.reading import by_index, read_table
from recipes.benchmarks import report
from recipes.benchmarks.arena import NETWORKS
from recipes.benchmarks.fits import Fits, Row, cell, measured, parser

SCORES = {  # name of a score, the column it is of, and whether a low value is suspicious
    "area under the margin": ("average_margin", True),
    "average loss": ("average_loss", False),
    "average probability of the label": ("average_label_confidence", True),
    "times forgotten": ("times_forgotten", False),
    "self-confidence of the last epoch": ("loss", False),  # which is -log of it
}
ISSUES = "label issues of the report"
FIGURES = ("auroc", "flagged", "precision", "recall")


def suspicion(samples: pd.DataFrame) -> dict[str, pd.Series]:
    """Return each score of the samples, higher for suspicious ones; one that was never measured is the least suspicious."""
    signed = {name: -samples[column] if low else samples[column] for name, (column, low) in SCORES.items()}
    return {name: values.astype("float64").fillna(float("-inf")) for name, values in signed.items()}


def auroc(score: pd.Series, flipped: pd.Series) -> float | None:
    """Return the share of pairs of a replaced and a right label in which the replaced one has the higher score; ties count half."""
    wrong = int(flipped.sum())
    pairs = wrong * (len(flipped) - wrong)
    return (score.rank()[flipped].sum() - wrong * (wrong + 1) / 2) / pairs if pairs else None


def found(flagged: pd.Series, flipped: pd.Series) -> Row:
    """Return how many labels are flagged, which share of these was replaced, and which share of the replaced labels is flagged."""
    both, wrong, count = int((flagged & flipped).sum()), int(flipped.sum()), int(flagged.sum())
    return {"flagged": count, "precision": both / count if count else None, "recall": both / wrong if wrong else None}


def judged(samples: pd.DataFrame, flipped: pd.Series) -> dict[str, Row]:
    """Return the figures of each score, and of the report's rule.

    Args:
        samples: rows of samples.parquet by index, as numbers.
        flipped: whether each label was replaced.
    """
    rows: dict[str, Row] = {}
    for name, score in suspicion(samples).items():
        first = score.rank(method="first", ascending=False) <= flipped.sum()
        rows[name] = {"auroc": auroc(score, flipped), **found(first, flipped)}
    return rows | {ISSUES: {"auroc": None, **found(is_issue(samples), flipped)}}


def of_a_seed(settings: argparse.Namespace, seed: int) -> list[Row]:
    """Return one row for each method and score."""
    fits = Fits(settings, network=NETWORKS[settings.network], label_noise=settings.noise, label_noise_seed=seed)
    rows: list[Row] = []
    for method in settings.methods:
        with tempfile.TemporaryDirectory() as folder:
            run = fits.run(method, seed, method, callbacks=[RunRecorder(folder=folder)])
            table, _ = read_table(Path(folder) / SAMPLES, ["index", "loss", *COLUMNS])
        samples = by_index(table)
        flipped = pd.Series(fits.flipped.numpy(), index=samples.index)
        common = {name: run[name] for name in ("seed", "epochs", "accuracy", "hidden_share")}
        rows += [{"run": f"{method}: {name}", **common, **figures} for name, figures in judged(samples, flipped).items()]
    return rows


def main(arguments: list[str] | None = None) -> list[Row]:
    """Train every run of every seed."""
    options = parser("doctor", __doc__)
    options.set_defaults(samples=50_000, epochs=15)
    options.add_argument("--noise", type=report.share, default=0.1, help="share of wrong training labels")
    options.add_argument("--methods", nargs="+", default=["baseline", "kakurenbo"], help="whose runs are recorded")
    options.add_argument("--network", choices=list(NETWORKS), default="quick", help="what is trained")
    settings = report.parse(options, arguments)
    more: dict[str, Any] = {"network": settings.network, "noise": settings.noise}
    rows, summary = measured(settings, of_a_seed, (*FIGURES, "accuracy"), **more)
    report.print_table(
        f"{settings.network}, {settings.samples:,} images of CIFAR-10 with {settings.noise:.1%} wrong labels, {settings.epochs} epochs",
        summary,
        {
            "run and score": lambda row: row["run"],
            "AUROC": cell("auroc", ".4f"),
            "flagged": cell("flagged", ",.0f"),
            "precision (%)": cell("precision", ".1f", 100),
            "recall (%)": cell("recall", ".1f", 100),
        },
        f"Mean +- standard deviation over {settings.seeds} seeds. A score flags as many labels as were replaced, so that its precision "
        "is its recall; the last row is the rule by which the report and --export flag them.",
    )
    return rows


if __name__ == "__main__":
    main()
