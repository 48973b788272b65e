"""Whether watching makes the host wait for the GPU: epochs under `torch.cuda.set_sync_debug_mode("error")`.

From the first step of an epoch to its last, any operation that waits for the device raises an error. The same epochs
without a callback come first: what raises there is Lightning's or the network's. Methods that choose or draw within the epoch must
wait for the losses they go by; for these the waits are counted. On a CPU there is nothing to wait for and the epochs only run.
"""

import argparse
import warnings
from traceback import extract_tb
from typing import Any

import lightning as L
import torch
from kakurenbo_recipes.models import CifarResNet

from kakurenbo_lightning import SampleSelection
from recipes.benchmarks import report
from recipes.benchmarks.report import Row
from recipes.benchmarks.saving import ForcedHiding
from recipes.benchmarks.training import Classifier, RandomImages, prepare, trainer

EPOCHS = 3


class NoWaiting(L.Callback):
    """Forbids or counts waiting for the device within the batch loop, from the second epoch on.

    In the first one, cuDNN and the caching allocator set themselves up, which may wait. Stands last among the
    callbacks, so the hooks of all others in between are under the ban.

    Args:
        device: "cuda" or "cpu".
        mode: "error" forbids, "warn" warns of each wait.
    """

    def __init__(self, device: str, mode: str) -> None:
        self._forbids, self._mode = device == "cuda", mode
        self.steps = 0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to forbid or count waits, from the second epoch on."""
        if self._forbids and trainer.current_epoch > 0:
            torch.cuda.set_sync_debug_mode(self._mode)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop after the last step, because what follows happens once per epoch and may wait."""
        if self._forbids:
            self.steps += torch.cuda.get_sync_debug_mode() > 0
            if args[0].is_last_batch:
                torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop, so that Lightning can clean up."""
        if self._forbids:
            torch.cuda.set_sync_debug_mode("default")


def check(selection: SampleSelection | None, by_name: bool, settings: argparse.Namespace, mode: str) -> Row:
    """Train under the ban; return what raised, if anything, and how often a step waited."""
    device, steps, seed = settings.device, settings.steps, settings.seed
    torch.manual_seed(seed)
    data = RandomImages(64 * steps, seed, batch_size=64)
    ban = NoWaiting(device, mode)
    callbacks = [ban] if selection is None else [selection, ban]
    error, where = None, []
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            trainer(device, callbacks, EPOCHS).fit(Classifier(CifarResNet(), by_name), datamodule=data)
    except RuntimeError as raised:
        if "synchroniz" not in str(raised):
            raise
        error = str(raised).splitlines()[0]
        where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in extract_tb(raised.__traceback__)[-6:]]
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    waits = sum("synchronizing" in str(warning.message) for warning in warned)
    return {"error": error, "where": where, "steps_checked": ban.steps, "waits_per_step": waits / max(1, ban.steps)}


def main(arguments: list[str] | None = None) -> Row:
    """Check training without a callback, with `baseline`, and with a method that hides and refreshes."""
    options = report.parser("sync", __doc__)
    options.add_argument("--steps", type=report.count, default=20, help="steps of an epoch")
    settings = report.parse(options, arguments)
    prepare()
    arms = {
        "without a callback": (None, True),
        "baseline": (SampleSelection("baseline", seed=0), True),
        "baseline, function mode": (SampleSelection("baseline", seed=0), False),
        "hiding 30 %": (SampleSelection(ForcedHiding((0.3,) * EPOCHS), seed=0), True),
    }
    choosing = {name: (SampleSelection(name, seed=0), True) for name in ("selective_backprop", "plb")}
    rows, counted = (
        {name: check(*arm, settings, mode) for name, arm in chosen.items()}
        for chosen, mode in ((arms, "error"), ({"nothing, counted": (None, True), **choosing}, "warn"))
    )
    clean = "no wait" if settings.device == "cuda" else "not checked on a CPU"
    columns = {"training": lambda item: item[0], "steps checked": lambda item: str(item[1]["steps_checked"])}
    found = {"found": lambda item: item[1]["error"] or clean}
    waits = {"waits per step": lambda item: f"{item[1]['waits_per_step']:.2f}"}
    report.print_table("Waiting for the device within the batch loop", list(rows.items()), columns | found)
    report.print_table("Waits of a step, counted", list(counted.items()), columns | waits)
    result = report.write(settings, arms=rows, counted=counted)
    if rows["without a callback"]["error"] is None and any(row["error"] for row in rows.values()):
        raise SystemExit("sample selection makes the host wait for the device, see the table")
    return result


if __name__ == "__main__":
    main()
