"""What a run says is kept in the log file of its folder, which Hydra makes, beside what the terminal shows."""

import contextlib
import itertools
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

LIGHTNING = "lightning"
# loggers that write to the terminal by themselves, so that nothing of theirs comes to Hydra's file
SPEAKERS = (LIGHTNING, "lightning.pytorch", "lightning.fabric")
PROGRAM, WARNINGS = "kakurenbo-train", "py.warnings"
# of Lightning's use of torch, about which nobody can do anything here
DEPRECATED = r"`isinstance\(treespec, LeafSpec\)` is deprecated"


def without_end(record: logging.LogRecord) -> bool:
    """Take the newline from a warning's end; of a filter that lets it through."""
    record.msg, record.args = record.getMessage().rstrip(), None
    return True


@contextlib.contextmanager
def logged() -> Iterator[None]:
    """Within it, what Lightning, the callback and warnings say, and an error that ends the run, come into the files of the root's log."""
    import lightning.pytorch  # noqa: F401, whose loggers are as it makes them; nothing imports it before a training begins

    parent = logging.getLogger(LIGHTNING)
    propagate, parent.propagate = parent.propagate, False  # it has shown its text; Hydra's terminal would show it a second time
    files = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
    silent = [
        name for name in SPEAKERS if not logging.getLogger(name).propagate
    ]  # what propagates comes to the root's files anyway
    added = [(name, file) for name in [*silent, WARNINGS, PROGRAM] for file in files]
    added += [(WARNINGS, logging.StreamHandler()), (PROGRAM, logging.NullHandler())]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=DEPRECATED)
        logging.captureWarnings(True)
        logging.getLogger(WARNINGS).addFilter(without_end)
        for name, handler in added:
            logging.getLogger(name).addHandler(handler)
        for name in (WARNINGS, PROGRAM):
            logging.getLogger(name).propagate = False  # else Hydra shows it a second time
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
    """Print a text, and keep it in the log."""
    print(text)
    logging.getLogger(PROGRAM).info(text)


def metrics_version(method: str) -> str:
    """Return the version of a CSVLogger: none for the folder of the method, a new one where an earlier part of the run left its metrics.

    Lightning deletes the metrics that it finds, so a resumed run writes beside them: METHOD/v2/metrics.csv.
    """
    run = HydraConfig.get().runtime
    if OmegaConf.is_missing(run, "output_dir"):  # `--cfg job --resolve` makes no folder
        return ""
    folder = Path(run.output_dir) / method
    if not (folder / "metrics.csv").is_file():
        return ""
    return next(name for name in map("v{}".format, itertools.count(2)) if not (folder / name).exists())


OmegaConf.register_new_resolver("metrics_version", metrics_version, replace=True, use_cache=False)
