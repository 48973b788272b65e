"""Draw hidden share and validation accuracy per epoch: `python -m recipes.plot RUN_DIR... -o FILE.png`.

A run folder is one that `kakurenbo-train` left: it holds a metrics.csv for each method, at any depth.
"""

import argparse
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HIDDEN = "selection/hidden_fraction"
ACCURACY = "val/accuracy"


def read_metrics(folders: list[Path]) -> dict[str, pd.DataFrame]:
    """Return the metrics below the folders, one row per epoch, by the name of the folder that holds them.

    Raises:
        FileNotFoundError: a folder has no metrics.csv below it.
    """
    runs: dict[str, pd.DataFrame] = {}
    for folder in folders:
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


def draw(runs: dict[str, pd.DataFrame], target: Path) -> None:
    """Write the picture: above the share of hidden samples, below the validation accuracy, one line for each run."""
    figure, (hidden, accuracy) = plt.subplots(2, 1, sharex=True, figsize=(7, 5), layout="constrained")
    for name, metrics in runs.items():
        if HIDDEN in metrics:
            hidden.step(metrics.index, 100 * metrics[HIDDEN], where="mid", label=name)
        if ACCURACY in metrics:
            values = 100 * metrics[ACCURACY].dropna()
            accuracy.plot(values.index, values, marker=".", label=f"{name} ({values.iloc[-1]:.1f} %)")
    hidden.set_ylabel("hidden samples (%)")
    hidden.set_ylim(bottom=-1)  # a run that hides nothing shows as a line, not as the axis
    accuracy.set_ylabel("validation accuracy (%)")
    accuracy.set_xlabel("epoch")
    for axes in (hidden, accuracy):
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
    draw(read_metrics(options.run_dirs), options.output)
    print(options.output)


if __name__ == "__main__":
    main()
