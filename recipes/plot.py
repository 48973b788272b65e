"""Draw the share left out and validation accuracy per epoch: `python -m recipes.plot RUN_DIR... -o FILE.png`.

A run folder is one that `kakurenbo-train` left: it holds a metrics.csv for each method, at any depth.
"""

import argparse
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HIDDEN = "selection/hidden_fraction"
REJECTED = "selection/rejected"  # backprop methods only
TRAINED = "selection/trained"
ACCURACY = "val/accuracy"


def read_metrics(folders: list[Path]) -> dict[str, pd.DataFrame]:
    """Return the metrics below the folders, one row per epoch, by the name of the folder that holds them.

    Raises:
        FileNotFoundError: a folder is not there, or has no metrics.csv below it.
    """
    runs: dict[str, pd.DataFrame] = {}
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"RUN_DIR={str(folder)!r} is not a folder: it must be the folder of a run, which kakurenbo-train prints at the end, "
                "for example outputs/2026-01-31/12-00-00."
            )
        paths = sorted(folder.rglob("metrics.csv"))
        if not paths:
            raise FileNotFoundError(
                f"RUN_DIR={str(folder)!r} holds no metrics.csv: it must be the folder of a run with logger=csv. "
                f"Train with logger=csv and pass the folder that is printed at the end."
            )
        for path in paths:
            name = path.parent.name
            if name in runs:
                name = str(path.parent)
            # the last value of each column in an epoch: Lightning writes training and validation in rows of their own
            runs[name] = pd.read_csv(path).groupby("epoch").last()
    return runs


def left_out(metrics: pd.DataFrame) -> pd.Series:
    """Return the share of the samples that each epoch did not train: those it hid, and those it looked at and rejected."""
    hidden = metrics[HIDDEN]
    if REJECTED not in metrics:
        return hidden
    rejected = metrics[REJECTED].fillna(0)
    return hidden + (1 - hidden) * rejected / (rejected + metrics[TRAINED]).clip(lower=1)


def draw(runs: dict[str, pd.DataFrame], target: Path) -> None:
    """Write the picture: above the share of samples left out, below the validation accuracy, one line for each run."""
    figure, (shares, accuracy) = plt.subplots(2, 1, sharex=True, figsize=(7, 5), layout="constrained")
    for name, metrics in runs.items():
        if HIDDEN in metrics:
            shares.step(metrics.index, 100 * left_out(metrics), where="mid", label=name)
        if ACCURACY in metrics:
            values = 100 * metrics[ACCURACY].dropna()
            accuracy.plot(values.index, values, marker=".", label=f"{name} ({values.iloc[-1]:.1f} %)")
    shares.set_ylabel("hidden or rejected (%)")
    shares.set_ylim(bottom=-1)  # a run that leaves nothing out shows as a line, not as the axis
    accuracy.set_ylabel("validation accuracy (%)")
    accuracy.set_xlabel("epoch")
    for axes in (shares, accuracy):
        axes.grid(alpha=0.3)
        axes.legend()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and write the picture."""
    parser = argparse.ArgumentParser(prog="python -m recipes.plot", description=__doc__.splitlines()[0])
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="folder of a run")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.png", help="the picture to write")
    options = parser.parse_args(arguments)
    try:
        runs = read_metrics(options.run_dirs)
    except FileNotFoundError as error:
        parser.error(str(error))
    draw(runs, options.output)
    print(options.output)


if __name__ == "__main__":
    main()
