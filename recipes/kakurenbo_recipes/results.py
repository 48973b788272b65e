"""The result that a run leaves behind, and tables that compare runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from kakurenbo_lightning.cli.report import WIDTH, comparison_lines, problem_lines
from kakurenbo_lightning.cli.text_table import terminal_width

if TYPE_CHECKING:  # pandas is imported only when runs are compared
    from kakurenbo_lightning.report import Run


@dataclass(frozen=True)
class Result:
    """One training run.

    Attributes:
        method: name of the selection method.
        metric: name of the validation metric: "accuracy" or "iou".
        score: its value after the last epoch, in [0, 1]; None without validation.
        totals: the callback's counts (over all ranks), its seconds (of this rank) and derived figures: `SampleSelection.totals`.
        fit_seconds: wall time of `Trainer.fit`, validation included.
        test_score: the metric on the test images, of the best checkpoint where one was kept (`test=true`), in [0, 1]; None without a test.
    """

    method: str
    metric: str
    score: float | None
    totals: dict[str, Any]
    fit_seconds: float
    test_score: float | None = None

    @property
    def seconds(self) -> float:
        """Wall time of training, refresh passes and selection, without validation."""
        return sum(self.totals[part] for part in ("train_seconds", "refresh_seconds", "select_seconds"))

    @property
    def hidden_share(self) -> float:
        """Share of all presentations that were hidden instead of trained."""
        return self._share("samples_hidden")

    @property
    def rejected_share(self) -> float:
        """Share of all presentations that were scored and then not trained (backprop methods)."""
        return self._share("samples_rejected")

    def _share(self, name: str) -> float:
        presented = sum(self.totals[part] for part in ("samples_hidden", "samples_rejected", "samples_trained"))
        return self.totals[name] / max(1, presented)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields and derived figures as JSON values; the score also under the name of its metric."""
        derived = {name: getattr(self, name) for name in ("seconds", "hidden_share", "rejected_share")}
        return {**asdict(self), self.metric: self.score, **derived}

    def as_run(self) -> Run:
        """The result as the report reads it from a run's folder."""
        from kakurenbo_lightning.report import Run

        return Run.of(Path(), {**asdict(self), "seconds": self.seconds})


def comparison(results: list[Result]) -> list[str]:
    """The table of several runs with the same seed, as the report has it; savings are against the run of the method `baseline`."""
    from kakurenbo_lightning.report import make_groups

    return comparison_lines(make_groups([result.as_run() for result in results]), terminal_width(WIDTH))


class Summary(Callback):
    """Prints a comparison of the runs of a multirun when it ends, and the command that plots them. It never fails a sweep."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table of the runs in `config.hydra.sweep.dir`."""
        try:
            for line in summary(Path(config.hydra.sweep.dir)):
                print(line)
        except Exception as error:  # the runs are finished and saved: a failed table must not fail the sweep
            print(f"no summary of the runs: {type(error).__name__}: {error}")


def summary(folder: Path) -> list[str]:
    """Return the lines of the comparison of runs below a folder, what was left out, and how to plot them; empty without runs
    (`record=none`).
    """
    from kakurenbo_lightning.report import make_groups, read_runs
    from kakurenbo_lightning.report.notes import unfinished

    runs, problems = read_runs([folder])
    if not runs:
        return []
    lines = [*comparison_lines(make_groups(runs), terminal_width(WIDTH)), *problem_lines([*problems, *unfinished(runs)])]
    return [*lines, f"pictures of them: kakurenbo-report {folder}"]
