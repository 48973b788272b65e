"""Train on fewer samples: the console script `kakurenbo-train`.

The settings are Hydra's (`kakurenbo-train --help`). One run trains one method; with `compare=[a,b]` it trains several,
one after the other with the same seed, and prints a table.
"""

import difflib
import json
import os
import time
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import hydra
import lightning as L
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class, instantiate
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from omegaconf import DictConfig, ListConfig, OmegaConf

from kakurenbo_lightning import SampleSelection
from recipes.models import load_network
from recipes.recorder import RunRecorder
from recipes.results import Result, print_comparison
from recipes.settings import check_setting, is_count


def config_dir() -> str:
    """Return the folder of the Hydra configs: the repository's own, else the one that the wheel carries."""
    repository = Path(__file__).resolve().parents[1]
    if (repository / "pyproject.toml").is_file():
        return str(repository / "configs")
    return str(files("kakurenbo_lightning") / "configs")


def fit(cfg: DictConfig, datamodule: L.LightningDataModule) -> Result:
    """Train one model with the method of `cfg.method`."""
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    selection = instantiate(cfg.method)
    network = instantiate(cfg.model, num_classes=datamodule.num_classes)
    if cfg.weights is not None:
        rank_zero_info(load_network(network, cfg.weights))
    callbacks = [selection, *recorder_for(cfg, selection)]
    if cfg.trainer.enable_checkpointing:
        callbacks.append(instantiate(cfg.checkpoint))
    trainer = instantiate(cfg.trainer)(callbacks=callbacks, logger=instantiate(cfg.logger) or False)
    optimizer = instantiate(cfg.optimizer, lr=scaled_rate(cfg, trainer.world_size))
    model = instantiate(cfg.task)(network, optimizer, datamodule.num_classes, instantiate(cfg.schedule))

    started = time.perf_counter()
    trainer.fit(model, datamodule=datamodule, ckpt_path=cfg.ckpt_path)
    fit_seconds = time.perf_counter() - started

    score = trainer.callback_metrics.get(f"val/{model.metric}")
    return Result(
        method=cfg.method.method,
        metric=model.metric,
        score=None if score is None else score.item(),
        totals={**asdict(selection.totals), "saved_seconds": selection.totals.saved_seconds},
        fit_seconds=fit_seconds,
    )


def recorder_for(cfg: DictConfig, selection: SampleSelection) -> list[RunRecorder]:
    """Return what writes the run's folder; nothing with `record=none`."""
    made = instantiate(cfg.record)
    if not made:
        return []
    folder = Path(HydraConfig.get().runtime.output_dir) / cfg.method.method
    settings = OmegaConf.to_container(cfg, resolve=True)
    return [made(selection, folder, metric=f"val/{get_class(cfg.task._target_).metric}", config=settings)]


def scaled_rate(cfg: DictConfig, world_size: int) -> float:
    """Return the learning rate for the samples of a step: in proportion to what `optimizer.lr` is for."""
    if cfg.lr_batch_size is None:
        return cfg.optimizer.lr
    is_size = is_count(cfg.lr_batch_size, 1)
    check_setting(
        "lr_batch_size", cfg.lr_batch_size, is_size, "null or an int >= 1", "Write the batch size that optimizer.lr is for."
    )
    samples = cfg.data.batch_size * world_size * cfg.trainer.accumulate_grad_batches
    return cfg.optimizer.lr * samples / cfg.lr_batch_size


def small(cfg: DictConfig) -> DictConfig:
    """Return the settings of `debug=true`: other data, and the rest changed as `cfg.small` says."""
    is_there = cfg.small is not None
    hint = "Every experiment of a paper has it: experiment=cifar100_wrn28_10, for example."
    check_setting("debug", True, is_there, "false without an experiment that has `small`", hint)
    print("debug: small generated data and a short run in place of the experiment; its figures mean nothing")
    changed = cfg.copy()
    changed.data = cfg.small.data
    for group in cfg.small:
        if group != "data":
            changed[group] = OmegaConf.merge(changed[group], cfg.small[group])
    return changed


def with_method(cfg: DictConfig, name: str) -> DictConfig:
    """Return `cfg` with the method group's option `name`; overrides given to the chosen option stay with it."""
    if name == cfg.method.method:
        return cfg
    changed = cfg.copy()
    changed.method = hydra.compose(f"method/{name}").method
    return changed


def run(cfg: DictConfig) -> list[Result]:
    """Train the method, or each method of `cfg.compare`, and return one result for each."""
    if cfg.debug:
        cfg = small(cfg)
    if cfg.compare is None:
        return [fit(cfg, instantiate(cfg.data))]
    is_list = isinstance(cfg.compare, ListConfig) and len(cfg.compare) > 0
    check_setting("compare", cfg.compare, is_list, "null or a list of methods", "Write compare=[baseline,kakurenbo].")
    known = GlobalHydra.instance().config_loader().get_group_options("method")
    for name in cfg.compare:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"Did you mean {near[0]}?" if near else "Write compare=[baseline,kakurenbo]."
        check_setting("compare", list(cfg.compare), name in known, f"a list of methods out of {', '.join(known)}", hint)
    alone = cfg.ckpt_path is None
    check_setting("ckpt_path", cfg.ckpt_path, alone, "null with compare", "Resume one method with compare=null.")
    datamodule = instantiate(cfg.data)
    return [fit(with_method(cfg, name), datamodule) for name in cfg.compare]


@hydra.main(config_path=config_dir(), config_name="train", version_base="1.3")
def train(cfg: DictConfig) -> float | None:
    """Run, leave results.json in the run's folder, and return the last score for Hydra's sweepers."""
    results = run(cfg)
    if rank_zero_only.rank == 0:
        if len(results) > 1:
            print_comparison(results)
        path = Path(HydraConfig.get().runtime.output_dir) / "results.json"
        path.write_text(json.dumps([result.as_dict() for result in results], indent=2) + "\n")
        print(f"results: {path}")
    return results[-1].score


def main() -> None:
    """Start the program; the ranks that Lightning starts inherit the time, and with it the folder of the run."""
    if "LOCAL_RANK" not in os.environ:
        os.environ.setdefault("KAKURENBO_STARTED", time.strftime("%Y-%m-%d/%H-%M-%S"))
    train()


if __name__ == "__main__":
    main()
