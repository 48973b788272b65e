"""Prints the comparison of a multirun when it ends: a Hydra callback of `kakurenbo-train`."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console


class Summary(Callback):
    """Compares the runs of a sweep's folder on the terminal and names the command that draws them; it never fails a sweep."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table of `config.hydra.sweep.dir`."""
        try:
            summarize(Path(config.hydra.sweep.dir))
        except Exception as error:  # the runs are done and on disk: a table is no reason to end their sweep with an error
            print(f"no summary of the runs: {type(error).__name__}: {error}")


def summarize(folder: Path) -> None:
    """Print the comparison of the runs below a folder, what was left out, and how to draw them."""
    from kakurenbo_lightning.report.groups import make_groups
    from kakurenbo_lightning.report.main import print_comparison, print_problems
    from kakurenbo_lightning.report.reading import read_runs
    from kakurenbo_lightning.report.tables import unfinished

    console = Console()
    runs, problems = read_runs([folder])
    if not runs:  # record=none
        return
    print_comparison(make_groups(runs), console)
    print_problems([*problems, *unfinished(runs)], console)
    console.print(f"pictures of them: kakurenbo-report {folder}", markup=False, highlight=False, soft_wrap=True)
