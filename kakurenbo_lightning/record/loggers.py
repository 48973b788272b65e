"""What loggers that show more than numbers get: histograms of the samples, and images of the most and the least hidden."""

from collections.abc import Mapping

import lightning as L
import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

HISTOGRAMS = ("loss", "confidence", "times_trained", "times_hidden")
BINS = 64
Shown = tuple[dict[int, np.ndarray], list[int], list[int]]


def show(trainer: L.Trainer, columns: Mapping[str, np.ndarray], shown: Shown | None, epochs: int) -> None:
    """Give each logger that can show them histograms of the samples' values and, where there are any, images.

    Args:
        trainer: with the loggers.
        columns: values by name, [N] each.
        shown: images (uint8 [h, w, 3]) by data set index, and the indices of the most and of the least hidden samples.
        epochs: how many are over.
    """
    values = {name: columns[name][np.isfinite(columns[name])] for name in HISTOGRAMS}
    values = {name: column for name, column in values.items() if len(column)}
    grids = {} if shown is None else {"most_hidden": shown[1], "least_hidden": shown[2]}
    for logger in trainer.loggers:
        for name, column in values.items():
            _histogram(logger, f"selection/{name}", column, epochs, trainer.global_step)
        for name, indices in grids.items():
            _images(logger, f"selection/{name}", [shown[0][index] for index in indices], indices, epochs, trainer.global_step)


def _histogram(logger: Logger, name: str, values: np.ndarray, epochs: int, step: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_histogram(name, values, epochs)
    elif isinstance(logger, WandbLogger):
        import wandb

        counts = np.histogram(values, BINS)
        logger.experiment.log({name: wandb.Histogram(np_histogram=counts), "trainer/global_step": step})


def _images(logger: Logger, name: str, images: list[np.ndarray], indices: list[int], epochs: int, step: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_images(name, np.stack(images), epochs, dataformats="NHWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, images, step=step, caption=[f"sample {index}" for index in indices])
