"""What the Trainer's bar shows more, and the bar of a scoring pass below it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from lightning.pytorch.callbacks import RichProgressBar
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from kakurenbo_lightning.core.flavour import AnyTrainer, is_instance
from kakurenbo_lightning.core.progress import bar_settings

AFTER = 2.0  # seconds; a shorter pass shows no bar
BETWEEN = 0.1  # seconds between two looks of a bar of rich, as tqdm has it


def has_bar(trainer: AnyTrainer) -> bool:
    """Whether this process shows the progress of training."""
    bar = trainer.progress_bar_callback
    return trainer.is_global_zero and bar is not None and not bar.is_disabled


def shown_in(bar: Any, shown: Callable[[], Mapping[str, float]]) -> Callable[[], None]:
    """Let a progress bar, or ``None``, show more; what is returned undoes it."""
    if bar is None:
        return lambda: None
    usual = bar.get_metrics
    own = {name: each for name, each in vars(bar).items() if name == "get_metrics"}  # of the user's, perhaps
    bar.get_metrics = lambda *args: {**shown(), **usual(*args)}

    def undo() -> None:
        vars(bar).pop("get_metrics", None)
        vars(bar).update(own)

    return undo


def with_bar(loader: DataLoader, trainer: AnyTrainer, samples: int, batches: int) -> Iterable[Any]:
    """The batches of ``loader``, with a bar on rank 0 where the Trainer has one.

    Args:
        loader: the loader of the pass.
        trainer: beside whose bar it is shown.
        samples: how many samples the pass scores.
        batches: how many batches it has.
    """
    text, bar = f"Scoring {samples:,} samples", trainer.progress_bar_callback
    if has_bar(trainer) and is_instance(bar, RichProgressBar) and _is_live(bar.progress):
        return _in_rich(loader, bar, text, batches)
    return tqdm(loader, **bar_settings(desc=text, total=batches, delay=AFTER, leave=False, disable=not has_bar(trainer)))


def _is_live(progress: Any) -> bool:
    """Whether rich draws on a terminal now; it would put each line of another bar above its own."""
    return progress is not None and progress.live.is_started and progress.console.is_terminal


def _in_rich(loader: DataLoader, bar: Any, text: str, batches: int) -> Iterator[Any]:
    progress, started = bar.progress, time.monotonic()
    task, shown = progress.add_task(text, total=batches, visible=False), started + AFTER
    try:
        for done, batch in enumerate(loader):
            if (now := time.monotonic()) >= shown:
                shown = now + BETWEEN
                progress.update(task, completed=done, visible=True)
                bar.refresh()
            yield batch
    finally:
        progress.update(task, visible=False)  # not removed: Lightning finds its own tasks by their place in the list
        bar.refresh()
