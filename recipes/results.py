"""What a run leaves behind, and the table that compares runs."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Result:
    """One training run.

    Attributes:
        method: name of the selection method.
        accuracy: validation accuracy after the last epoch, in [0, 1]; None without validation.
        totals: the callback's counts (over all ranks) and seconds (of this one) by name: `SampleSelection.totals`.
        fit_seconds: wall time of `Trainer.fit`, validation included.
    """

    method: str
    accuracy: float | None
    totals: dict[str, Any]
    fit_seconds: float

    @property
    def seconds(self) -> float:
        """Seconds of training, refresh passes and selection, without validation."""
        return sum(self.totals[part] for part in ("train_seconds", "refresh_seconds", "select_seconds"))

    @property
    def hidden_share(self) -> float:
        """Share of all presentations that were hidden instead of trained."""
        hidden, trained = self.totals["samples_hidden"], self.totals["samples_trained"]
        return hidden / max(1, hidden + trained)

    @property
    def ideal_share(self) -> float:
        """Seconds that this run would ideally take, relative to one that hides nothing: (1 - f) + f * forward.

        `forward` is what a forward pass costs relative to a training step, per sample, as measured in this run; only
        the samples that were really refreshed count.
        """
        trained, refreshed = self.totals["samples_trained"], self.totals["samples_refreshed"]
        if not trained or not refreshed:
            return 1 - self.hidden_share
        forward = (self.totals["refresh_seconds"] / refreshed) / (self.totals["train_seconds"] / trained)
        return 1 - self.hidden_share + forward * refreshed / (trained + self.totals["samples_hidden"])

    def saving(self, baseline: "Result") -> float:
        """Share of the baseline's seconds that this run saved."""
        return 1 - self.seconds / baseline.seconds

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and the derived figures, ready for JSON."""
        return {**asdict(self), "seconds": self.seconds, "hidden_share": self.hidden_share}


def comparison_table(results: list[Result]) -> Table:
    """Return the table of several runs; savings are against the run of the method `baseline`, when there is one."""
    baseline = next((result for result in results if result.method == "baseline"), None)
    table = Table(title="same seed, same number of epochs")
    table.add_column("method")
    for heading in ("accuracy", "samples trained", "hidden share", "seconds", "saving", "ideal saving"):
        table.add_column(heading, justify="right")
    for result in results:
        compared = baseline is not None and result is not baseline
        table.add_row(
            result.method,
            "-" if result.accuracy is None else f"{result.accuracy:.2%}",
            f"{result.totals['samples_trained']:,}",
            f"{result.hidden_share:.1%}",
            f"{result.seconds:.1f}",
            f"{result.saving(baseline):.1%}" if compared else "-",
            f"{1 - result.ideal_share:.1%}" if compared else "-",
        )
    return table


def print_comparison(results: list[Result]) -> None:
    """Print the table of several runs."""
    console = Console()
    console.print(comparison_table(results))
    console.print(
        "seconds: training, refresh passes and selection, without validation. ideal saving: if an epoch that hides "
        "the share f took (1 - f) * full + f * forward. Wall times compare only on an otherwise idle machine."
    )
