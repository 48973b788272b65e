"""What a run leaves behind, and the table that compares runs."""

from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Result:
    """One training run.

    Attributes:
        method: name of the selection method.
        metric: name of the validation metric: "accuracy" or "iou".
        score: its value after the last epoch, in [0, 1]; None without validation.
        totals: the callback's counts (over all ranks) and seconds (of this one) by name: `SampleSelection.totals`.
        fit_seconds: wall time of `Trainer.fit`, validation included.
    """

    method: str
    metric: str
    score: float | None
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
        return hidden / max(1, hidden + trained + self.totals["samples_rejected"])

    @property
    def rejected_share(self) -> float:
        """Share of all presentations that were looked at and then not trained (backprop methods)."""
        rejected, hidden = self.totals["samples_rejected"], self.totals["samples_hidden"]
        return rejected / max(1, rejected + hidden + self.totals["samples_trained"])

    @property
    def ideal_share(self) -> float:
        """Seconds that this run would ideally take, relative to one that trains on everything: (1 - f) + g * forward.

        f is the share that was hidden or rejected, g the share that really went through a forward-only pass, to be refreshed
        or looked at; `forward` is what that pass costs relative to a training step, per sample, as measured in this run.
        """
        totals, left = self.totals, 1 - self.hidden_share - self.rejected_share
        looking = totals["refresh_seconds"] + totals["score_seconds"]
        training = totals["train_seconds"] - totals["score_seconds"]
        return left if training <= 0 else left * (1 + looking / training)

    def length(self, baseline: "Result") -> float:
        """Samples trained relative to the baseline's, where none are left out: epochs that are drawn may be longer or shorter."""
        left_out = self.totals["samples_hidden"] + self.totals["samples_rejected"]
        return 1.0 if left_out else self.totals["samples_trained"] / max(1, baseline.totals["samples_trained"])

    def saving(self, baseline: "Result") -> float:
        """Share of the baseline's seconds that this run saved."""
        return 1 - self.seconds / baseline.seconds

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and the derived figures, ready for JSON; the score also by the name of its metric."""
        derived = {name: getattr(self, name) for name in ("seconds", "hidden_share", "rejected_share")}
        return {**asdict(self), self.metric: self.score, **derived}


def comparison_table(results: list[Result]) -> Table:
    """Return the table of several runs; savings are against the run of the method `baseline`, when there is one."""
    baseline = next((result for result in results if result.method == "baseline"), None)
    table = Table(title="same seed, same number of epochs", box=box.SIMPLE_HEAD, padding=0)
    looks = any(result.totals["samples_scored"] for result in results)
    table.add_column("method", no_wrap=True)
    shares = ("looked at", "left out") if looks else ("hidden share",)
    for heading in (results[0].metric, "trained", *shares, "seconds", "saving", "ideal"):
        table.add_column(heading, justify="right")
    for result in results:
        compared = baseline is not None and result is not baseline
        table.add_row(
            result.method,
            "-" if result.score is None else f"{result.score:.2%}",
            f"{result.totals['samples_trained']:,}",
            *([f"{result.totals['samples_scored']:,}"] if looks else []),
            f"{result.hidden_share + result.rejected_share:.1%}",
            f"{result.seconds:.1f}",
            f"{result.saving(baseline):.1%}" if compared else "-",
            f"{1 - result.ideal_share * result.length(baseline):.1%}" if compared else "-",
        )
    return table


def print_comparison(results: list[Result]) -> None:
    """Print the table of several runs."""
    console = Console()
    console.print(comparison_table(results))
    console.print(
        "trained: samples. seconds: training, refresh passes and selection, without validation. ideal: the saving if an epoch "
        "took (1 - f) * full + g * forward, f the share left out (hidden or rejected), g the share refreshed or looked at; "
        "where epochs are drawn, all of it times their length. "
        "Wall times compare only on an otherwise idle machine."
    )
