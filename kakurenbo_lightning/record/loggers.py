"""Histograms of the samples, and images of the most and the least hidden, for loggers that can show them."""

from __future__ import annotations

from collections.abc import Mapping

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from kakurenbo_lightning.core.flavour import is_instance
from kakurenbo_lightning.record.schema import Thumbnails

HISTOGRAMS = ("loss", "confidence", "times_trained", "times_hidden")
BINS = 64


def log_samples(trainer: L.Trainer, columns: Mapping[str, np.ndarray], thumbnails: Thumbnails | None, epochs: int) -> None:
    """Give histograms and images to the TensorBoard and Weights & Biases loggers of the Trainer.

    Args:
        trainer: with the loggers.
        columns: values by name, each ``[N]``; values that are not finite are left out.
        thumbnails: images, where the data set has any.
        epochs: how many are over.
    """
    values = {f"selection/{name}": columns[name][np.isfinite(columns[name])] for name in HISTOGRAMS}
    values = {name: column for name, column in values.items() if len(column)}
    shown = thumbnails or Thumbnails({}, [], [])
    most, least = ("most_hidden", "least_hidden") if columns["times_hidden"].any() else ("least_trained", "most_trained")
    grids = {most: shown.most_hidden, least: shown.least_hidden}
    images = {name: [shown.images[index] for index in indices] for name, indices in grids.items() if indices}
    for logger in trainer.loggers:
        if is_instance(logger, TensorBoardLogger):
            for name, column in values.items():
                logger.experiment.add_histogram(name, column, epochs)
            for name, found in images.items():
                logger.experiment.add_images(f"selection/{name}", np.stack(found), epochs, dataformats="NHWC")
        elif is_instance(logger, WandbLogger):
            import wandb

            step = trainer.global_step
            for name, column in values.items():
                histogram = wandb.Histogram(np_histogram=np.histogram(column, BINS))
                logger.experiment.log({name: histogram, "trainer/global_step": step})
            for name, found in images.items():
                captions = [f"sample {index}" for index in grids[name]]
                logger.log_image(f"selection/{name}", found, step=step, caption=captions)
