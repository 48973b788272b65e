"""Keeps what a run prints in the log file of its folder, which Hydra creates."""

import contextlib
import itertools
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

LIGHTNING = "lightning"
# loggers with their own handler on the terminal, whose lines would not reach Hydra's file
SPEAKERS = (LIGHTNING, "lightning.pytorch", "lightning.fabric")
PROGRAM, WARNINGS = "kakurenbo-train", "py.warnings"
# warnings about Lightning's own use of torch, on which a user cannot act
DEPRECATED = r"`isinstance\(treespec, LeafSpec\)` is deprecated"


def without_end(record: logging.LogRecord) -> bool:
    """Remove the newline at the end of a warning. It is used as a logging filter that lets every record through."""
    record.msg, record.args = record.getMessage().rstrip(), None
    return True


@contextlib.contextmanager
def logged() -> Iterator[None]:
    """Context in which messages of Lightning and the callback, warnings, and an error that ends the run go to the root logger's
    files.
    """
    import lightning.pytorch  # noqa: F401, whose loggers are as it makes them; nothing imports it before a training begins

    parent = logging.getLogger(LIGHTNING)
    # the text is on the terminal already, and Hydra's handler would print it again
    propagate, parent.propagate = parent.propagate, False
    files = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
    # loggers that propagate reach the root's files anyway
    silent = [name for name in SPEAKERS if not logging.getLogger(name).propagate]
    added = [(name, file) for name in [*silent, WARNINGS, PROGRAM] for file in files]
    added += [(WARNINGS, logging.StreamHandler()), (PROGRAM, logging.NullHandler())]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=DEPRECATED)
        logging.captureWarnings(True)
        logging.getLogger(WARNINGS).addFilter(without_end)
        for name, handler in added:
            logging.getLogger(name).addHandler(handler)
        for name in (WARNINGS, PROGRAM):
            logging.getLogger(name).propagate = False  # else Hydra prints it a second time
        logging.getLogger(PROGRAM).setLevel(logging.INFO)
        try:
            yield
        except BaseException as error:
            logging.getLogger(PROGRAM).error("%s: %s", type(error).__name__, error, exc_info=True)
            raise
        finally:
            logging.captureWarnings(False)
            parent.propagate = propagate
            logging.getLogger(WARNINGS).removeFilter(without_end)
            for name, handler in added:
                logging.getLogger(name).removeHandler(handler)


def say(text: str) -> None:
    """Print a text and write it to the log."""
    print(text)
    logging.getLogger(PROGRAM).info(text)


def metrics_version(method: str) -> str:
    """Return the version of a CSVLogger: empty for the method's folder, or a new one if an earlier part of the run left its metrics
    there.

    Lightning deletes metrics that it finds, so a resumed run writes to another folder beside them: METHOD/v2/metrics.csv.
    """
    run = HydraConfig.get().runtime
    if OmegaConf.is_missing(run, "output_dir"):  # `--cfg job --resolve` makes no folder
        return ""
    folder = Path(run.output_dir) / method
    if not (folder / "metrics.csv").is_file():
        return ""
    return next(name for name in map("v{}".format, itertools.count(2)) if not (folder / name).exists())


OmegaConf.register_new_resolver("metrics_version", metrics_version, replace=True, use_cache=False)
