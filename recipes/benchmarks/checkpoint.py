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
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from kakurenbo_lightning import AtomicCheckpointIO, SampleSelection
from recipes.benchmarks import report
from recipes.benchmarks.selection import TAU, made_up, seconds_of
from recipes.benchmarks.training import prepare, trainer

BATCH_SIZE = 256
PARTS = ("state_dict", "write", "read", "load_state_dict")


class Rows(Dataset):
    """As many samples as asked for, all alike.

    Args:
        samples: how many.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.ones(1), index % 2


class Line(L.LightningModule):
    """Next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.network = torch.nn.Linear(1, 2)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        return torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Measure(L.Callback):
    """Makes statistics up after the first epoch, and saves and loads in the second one. Comes before the selection.

    Attributes:
        row: what was measured.
    """

    def __init__(self, selection: SampleSelection, settings: argparse.Namespace) -> None:
        self.selection = selection
        self.settings = settings
        self.row: dict[str, Any] = {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After epoch 0 make up, after epoch 1 measure."""
        statistics = self.selection.statistics
        if trainer.current_epoch == 0:
            statistics.load_state_dict(made_up(len(statistics), self.settings.seed).state_dict())
            statistics.loss.nan_to_num_()  # they would only be warned of
        else:
            self.row = self._measure()

    def _measure(self) -> dict[str, Any]:
        clock = report.clock(self.settings.device, self.settings.clock)
        total, seconds = len(self.selection.statistics), {name: [] for name in (*PARTS, "write_file", "read_file")}
        files = AtomicCheckpointIO()
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
                for name, value in zip(seconds, (making, writing, reading, taking, to_file, from_file), strict=True):
                    seconds[name].append(value)
        # the first time is slower: memory is fetched from the system, a few samples are read for the fingerprint
        medians = {f"{name}_s": median(values[1:]) for name, values in seconds.items()}
        return {
            "samples": total,
            "hidden": len(self.selection.plan.hidden),
            "bytes": len(memory.getvalue()),
            "bytes_per_sample": len(memory.getvalue()) / total,
            **medians,
            "save_s": median(map(sum, zip(*(seconds[name][1:] for name in PARTS[:2]), strict=True))),
            "load_s": median(map(sum, zip(*(seconds[name][1:] for name in PARTS[2:]), strict=True))),
            "first_save_s": seconds["state_dict"][0] + seconds["write"][0],
        }


def measure(total: int, settings: argparse.Namespace) -> dict[str, Any]:
    """Run a fit of two epochs, one batch each, on a data set of `total` samples."""
    selection = SampleSelection("kakurenbo", max_fraction=settings.max_fraction, tau=TAU, seed=settings.seed)
    watch = Measure(selection, settings)
    fit = trainer(settings.device, [watch, selection], max_epochs=2, limit_train_batches=1)
    fit.fit(Line(), DataLoader(Rows(total), BATCH_SIZE, shuffle=True))
    return watch.row


def show(rows: list[dict[str, Any]]) -> None:
    """Print one row per size."""
    report.print_table(
        "The selection's part of a checkpoint",
        ["samples", "hidden", "size", "save", "load", "to a file", "from a file"],
        [
            [f"{row['samples']:,}", f"{row['hidden']:,}", f"{row['bytes_per_sample']:.1f} B/sample"]
            + [report.in_units(row[name]) for name in ("save_s", "load_s", "write_file_s", "read_file_s")]
            for row in rows
        ],
        "Medians. save = state_dict + torch.save, load = torch.load + load_state_dict, in memory; files: with fsync and checksums.",
    )


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure the chosen sizes."""
    options = report.parser("checkpoint", __doc__)
    options.add_argument("--sizes", type=report.count, nargs="+", default=[50_000, 1_280_000], help="samples of the data set")
    options.add_argument("--max-fraction", type=report.share, default=0.3, help="share that may be hidden")
    options.add_argument("--repeats", type=report.count, default=9, help="times to measure each size")
    options.add_argument("--folder", type=Path, help="where to write files; by default where temporary files are")
    settings = options.parse_args(arguments)
    prepare(settings)
    machine = report.machine(settings.device)
    rows = [measure(total, settings) for total in tqdm(settings.sizes, desc="checkpoint", unit="size")]
    show(rows)
    result = {"benchmark": "checkpoint", "machine": machine, "clock": settings.clock, "sizes": rows}
    report.write(settings.json, result)
    return result


if __name__ == "__main__":
    main()
