"""What the selection adds to a checkpoint: bytes per sample, and the time to save and to load them.

In the second epoch of a real fit, KAKURENBO having hidden what it may, the callback's state is made (`state_dict`) and
written to memory (`torch.save`), read again as Lightning reads it (`torch.load(weights_only=True)`) and taken over
(`load_state_dict`). The file columns are the same through `AtomicCheckpointIO`, to a disk and with every checksum.
"""

import argparse
import io
import tempfile
from pathlib import Path
from statistics import median

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from kakurenbo_lightning import AtomicCheckpointIO, SampleSelection
from kakurenbo_lightning.core.progress import bar_settings
from recipes.benchmarks import report
from recipes.benchmarks.report import Row, in_units, seconds_of
from recipes.benchmarks.selection import TAU, made_up
from recipes.benchmarks.training import prepare, trainer

BATCH_SIZE = 256


class Line(L.LightningModule):
    """A linear model that costs next to nothing, because only the checkpoint is measured."""

    def __init__(self) -> None:
        super().__init__()
        self.network = torch.nn.Linear(1, 2)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        return torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain SGD, which has no state."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Measure(L.Callback):
    """Fills the statistics with random values after the first epoch; saves and loads in the second. Comes before the selection.

    Attributes:
        row: what was measured.
    """

    def __init__(self, selection: SampleSelection, settings: argparse.Namespace) -> None:
        self.selection = selection
        self.settings = settings
        self.row: Row = {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fill the statistics after epoch 0, measure after epoch 1."""
        statistics = self.selection.statistics
        if trainer.current_epoch == 0:
            statistics.load_state_dict(made_up(len(statistics), self.settings.seed).state_dict())
            statistics.loss.nan_to_num_()  # losses that are not finite would only cause warnings
        else:
            self.row = self._measure()

    def _measure(self) -> Row:
        clock = report.clock(self.settings.device, self.settings.clock)
        files, seconds = AtomicCheckpointIO(), {name: [] for name in ("save_s", "load_s", "write_file_s", "read_file_s")}
        with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=self.settings.folder) as folder:
            path = Path(folder) / "state.ckpt"
            for _ in range(self.settings.repeats + 1):
                memory = io.BytesIO()
                making, state = seconds_of(clock, self.selection.state_dict)
                writing, _none = seconds_of(clock, torch.save, state, memory)
                memory.seek(0)
                reading, read = seconds_of(clock, torch.load, memory, weights_only=True)
                taking, _none = seconds_of(clock, self.selection.load_state_dict, read)
                to_file, _none = seconds_of(clock, files.save_checkpoint, state, path)
                from_file, _none = seconds_of(clock, files.load_checkpoint, path)
                for name, value in zip(seconds, (making + writing, reading + taking, to_file, from_file), strict=True):
                    seconds[name].append(value)
        total = len(self.selection.statistics)
        # warm up: the first time fetches memory from the system and reads a few samples for the fingerprint
        return {
            "samples": total,
            "hidden": len(self.selection.plan.hidden),
            "bytes": len(memory.getvalue()),
            "bytes_per_sample": len(memory.getvalue()) / total,
            **{name: median(values[1:]) for name, values in seconds.items()},
        }


def measure(total: int, settings: argparse.Namespace) -> Row:
    """Run a fit of two epochs, one batch each, on a data set of `total` samples."""
    selection = SampleSelection("kakurenbo", max_fraction=settings.max_fraction, tau=TAU, seed=settings.seed)
    watch = Measure(selection, settings)
    fit = trainer(settings.device, [watch, selection], max_epochs=2, limit_train_batches=1)
    fit.fit(Line(), DataLoader(TensorDataset(torch.ones(total, 1), torch.arange(total) % 2), BATCH_SIZE, shuffle=True))
    return watch.row


def main(arguments: list[str] | None = None) -> Row:
    """Measure the chosen sizes of data sets, print a table and write the JSON file."""
    options = report.parser("checkpoint", __doc__)
    options.add_argument("--sizes", type=report.count, nargs="+", default=[50_000, 1_280_000], help="samples of the data set")
    options.add_argument("--max-fraction", type=report.share, default=0.3, help="share that may be hidden")
    options.add_argument("--repeats", type=report.count, default=9, help="times to measure each size")
    options.add_argument("--folder", type=Path, help="where to write files; by default where temporary files are")
    settings = report.parse(options, arguments)
    prepare()
    rows = [measure(total, settings) for total in tqdm(settings.sizes, **bar_settings(desc="checkpoint", unit="size"))]
    report.print_table(
        "The selection's part of a checkpoint",
        rows,
        {
            "samples": lambda row: f"{row['samples']:,}",
            "hidden": lambda row: f"{row['hidden']:,}",
            "size": lambda row: f"{row['bytes_per_sample']:.1f} B/sample",
            "save": lambda row: in_units(row["save_s"]),
            "load": lambda row: in_units(row["load_s"]),
            "to a file": lambda row: in_units(row["write_file_s"]),
            "from a file": lambda row: in_units(row["read_file_s"]),
        },
        "Medians. save = state_dict + torch.save, load = torch.load + load_state_dict, in memory; files: with fsync and checksums.",
    )
    return report.write(settings, sizes=rows)


if __name__ == "__main__":
    main()
