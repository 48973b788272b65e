"""What `advise` forecasts against what trainings then save: twelve methods with settings, on digits or CIFAR-10 with the CIFAR ResNet-8.

The forecast is made before anything is trained, from 50 steps and a scoring pass: what is saved if samples stay as they are (now) and when
all are right and sure (most). `off` is how far a training's saving was from the latter, because these networks end right and sure of nearly
every sample. What a training saved is its CPU time against its baseline's, in units of a reference step (see
`recipes.benchmarks.fits`); the forecast is of those steps and passes, so both leave validation out.
"""

import argparse
from typing import Any

from kakurenbo_lightning import advise
from recipes.benchmarks import report
from recipes.benchmarks.fits import Fits, Row, cell, compared, measured, parser, title
from recipes.benchmarks.training import trainer

SETTINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("random", {"max_fraction": share}) for share in (0.3, 0.5)),
    *(("kakurenbo", {"max_fraction": share}) for share in (0.3, 0.5)),
    *(("infobatch", {"prune_ratio": share}) for share in (0.3, 0.5)),
    *((name, {"beta": beta}) for name in ("selective_backprop", "stale_sb") for beta in (1, 2)),
    ("forget_online", {"max_fraction": 0.5}),
    ("plb", {}),
)
KEYS = ("now", "most", "saved", "off", "accuracy", "difference", "cpu_s")


def of_a_seed(settings: argparse.Namespace, seed: int) -> list[Row]:
    """Return the rows of the baseline and of each method, with what was forecast."""
    fits = Fits(settings)
    advice = advise(trainer(settings.device, [], settings.epochs), fits.model(seed), fits.data)
    offers = {offer.method: offer for offer in advice.offers}
    baseline = fits.run("baseline", seed, "baseline")
    rows = [baseline]
    for method, chosen in SETTINGS:
        name = " ".join([method, *(f"{key}={value}" for key, value in chosen.items())])
        row, offer = fits.run(name, seed, method, **chosen), offers[name]
        saved = 1 - row["cost"] / baseline["cost"]
        rows.append(row | {"now": offer.now, "most": offer.most, "saved": saved, "off": abs(saved - offer.most)})
    return [{**dict.fromkeys(KEYS), **compared(row, baseline)} for row in rows]


def main(arguments: list[str] | None = None) -> list[Row]:
    """Forecast and train every run of every seed."""
    options = parser("advice", __doc__, digits=True)
    options.set_defaults(samples=1400, batch_size=50, learning_rate=0.05, epochs=20, seeds=1)
    settings = report.parse(options, arguments)
    _, summary = measured(settings, of_a_seed, KEYS)
    columns = {
        "run": lambda row: row["run"],
        "now, %": cell("now", ".1f", 100),
        "all sure, %": cell("most", ".1f", 100),
        "saved, %": cell("saved", ".1f", 100),
        "off, points": cell("off", ".1f", 100),
        "test accuracy, %": cell("accuracy", ".2f", 100),
        "to baseline": cell("difference", "+.2f", 100),
        "CPU seconds": cell("cpu_s", ".1f"),
    }
    report.print_table(title(settings), summary, columns)
    return summary


if __name__ == "__main__":
    main()
