"""Train on fewer samples: the console script `kakurenbo-train`.

The settings are Hydra's (`kakurenbo-train --help`). One run trains one method; with `compare=[a,b]` it trains several,
one after the other with the same seed, and prints a table.
"""

import difflib
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import hydra
import lightning as L
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from hydra.utils import get_class, instantiate
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from omegaconf import DictConfig, ListConfig, OmegaConf

from kakurenbo_lightning import SampleSelection, available_methods
from kakurenbo_lightning.record import RunRecorder
from kakurenbo_recipes.config_check import check_config
from kakurenbo_recipes.models import load_network
from kakurenbo_recipes.results import Result, comparison
from kakurenbo_recipes.run_loggers import log_hyperparameters, own_wandb_run
from kakurenbo_recipes.schema import TrainSchema, names_of
from kakurenbo_recipes.settings import check_setting, is_count

# settings of generated data that an experiment's own data have too
GENERATED = tuple(
    f"data.{name}" for name in ("batch_size", "label_noise", "label_noise_seed", "held_out", "held_out_seed", "drop_last")
)


def methods_of(family: str) -> str:
    """Return the methods of a family, for the help; those of other packages too."""
    return ", ".join(name for name, info in available_methods().items() if info.family == family)


def metric_of(task: str) -> str:
    """Return the name of the metric that runs of a task are compared by, for the callbacks that monitor it."""
    return get_class(task).metric


OmegaConf.register_new_resolver("methods_of", methods_of, replace=True)
OmegaConf.register_new_resolver("metric_of", metric_of, replace=True)


def config_dir() -> str:
    """Return the folder of the Hydra configs: the one that the wheel carries, else the repository's."""
    here = Path(__file__).resolve()
    installed = here.with_name("configs")
    return str(installed if installed.is_dir() else here.parents[2] / "configs")


def fit(cfg: DictConfig, datamodule: L.LightningDataModule) -> Result:
    """Train one model with the method of `cfg.method`."""
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    selection = instantiate(cfg.method)
    num_classes = cast(Any, datamodule).num_classes  # all data modules here have it, Lightning's class does not
    network = instantiate(cfg.model, num_classes=num_classes)
    if cfg.weights is not None:
        rank_zero_info(load_network(network, cfg.weights))
    callbacks = [selection, *recorder_for(cfg, selection), *made(cfg.callbacks)]
    if cfg.trainer.enable_checkpointing:
        callbacks.append(instantiate(cfg.checkpoint))
    trainer = instantiate(cfg.trainer)(callbacks=callbacks, logger=made(cfg.logger) or False)
    optimizer = instantiate(cfg.optimizer, lr=scaled_rate(cfg, trainer.world_size))
    model = instantiate(cfg.task)(network, optimizer, num_classes, instantiate(cfg.schedule))

    check_last(cfg)
    started = time.perf_counter()
    with own_wandb_run(trainer):
        log_hyperparameters(trainer, cfg)
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


def made(group: DictConfig) -> list[Any]:
    """Make what lies side by side in a group; a null is left out."""
    return [each for each in instantiate(group).values() if each is not None]


def check_last(cfg: DictConfig) -> None:
    """Say so when `ckpt_path=last` finds nothing to go on with; keep the metrics of the run that goes on, which Lightning would delete."""
    folder = Path(HydraConfig.get().runtime.output_dir) / cfg.method.method
    if cfg.ckpt_path == "last" and not list((folder / "checkpoints").glob("last*.ckpt")):
        rank_zero_warn(
            f"ckpt_path=last: there is no checkpoint in {folder / 'checkpoints'}, so the training begins from nothing. To go on with a "
            "run, add its folder: hydra.run.dir=outputs/DATE/TIME"
        )
    metrics = folder / "metrics.csv"
    if cfg.ckpt_path is not None and rank_zero_only.rank == 0 and metrics.is_file():
        metrics.rename(folder / f"metrics-until-{time.strftime('%Y-%m-%d-%H-%M-%S')}.csv")


def recorder_for(cfg: DictConfig, selection: SampleSelection) -> list[RunRecorder]:
    """Return what writes the run's folder; nothing with `record=none`."""
    recorder = instantiate(cfg.record)
    if not recorder:
        return []
    folder = Path(HydraConfig.get().runtime.output_dir) / cfg.method.method
    settings = OmegaConf.to_container(cfg, resolve=True)
    return [recorder(selection, folder, metric=f"val/{metric_of(cfg.task._target_)}", config=settings)]


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
    """Return the settings of `debug=true`: other data, and the rest changed as `cfg.small` says; the command line has the last word."""
    is_there = cfg.small is not None
    hint = "Every experiment of a paper has it: experiment=cifar100_wrn28_10, for example."
    check_setting("debug", True, is_there, "false without an experiment that has `small`", hint)
    print("debug: small generated data and a short run in place of the experiment; its figures mean nothing")
    changed = cfg.copy()
    OmegaConf.set_struct(changed, False)  # options of a network can be new
    changed.data = cfg.small.data
    for name in cfg.small:
        if name != "data":
            changed[name] = OmegaConf.merge(changed[name], cfg.small[name]) if is_group(cfg, name) else cfg.small[name]
    unused = []
    for key, value in typed():
        if is_group(cfg, key) or key in ("small", "debug"):
            continue
        if key.startswith("data.") and key not in GENERATED and OmegaConf.select(changed, key) is None:
            unused.append(key)
        else:
            OmegaConf.update(changed, key, value, force_add=True)
    if unused:
        print(f"debug: {', '.join(unused)} are of the experiment's own data and not used")
    return changed


def is_group(cfg: DictConfig, name: str) -> bool:
    """Tell whether `name` is a config group, not a single setting."""
    return "." not in name and isinstance(cfg.get(name), DictConfig)


def typed() -> list[tuple[str, Any]]:
    """Return what the command line sets, by name; without what it deletes."""
    return [(override.key_or_group, override.value()) for override in overrides_of_run() if not override.is_delete()]


def overrides_of_run() -> list[Override]:
    """Return the overrides of the command line."""
    return OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))


def with_method(cfg: DictConfig, name: str) -> DictConfig:
    """Return `cfg` with the method group's option `name`; settings given to the chosen option stay with it."""
    if name == cfg.method.method:
        return cfg
    kept = [word for word in HydraConfig.get().overrides.task if not word.lstrip("+~").startswith(("method=", "method."))]
    composed = hydra.compose(HydraConfig.get().job.config_name, [*kept, f"method={name}"])
    changed = cfg.copy()
    changed.method = composed.method
    if cfg.debug and "method" in (composed.small or {}):
        changed.method = OmegaConf.merge(changed.method, composed.small.method)
    return changed


def warn_of_unused(cfg: DictConfig) -> None:
    """Say so when F or tau is set and no method has it; refuse it unless it is a sweep over methods."""
    method = cast(dict[str, Any], OmegaConf.to_container(cfg.method, resolve=False))  # of a DictConfig
    used = " ".join(map(str, method.values()))
    for name in ("F", "tau"):
        if name not in dict(typed()) or f"${{{name}}}" in used or cfg.compare is not None:
            continue
        alone = HydraConfig.get().mode != RunMode.MULTIRUN
        check_setting(name, cfg[name], not alone, f"left out: method={cfg.method.method} has none", "Try method=kakurenbo.")
        rank_zero_warn(
            f"{name}={cfg[name]} changes nothing: method={cfg.method.method} has no {name}, so runs of the sweep are equal"
        )


def refuse_unused(cfg: DictConfig) -> None:
    """Raise a ValueError for a setting of what is switched off."""
    for key, value in typed():
        small_alone = key.startswith("small.") and not cfg.debug
        check_setting(key, value, not small_alone, "left out without debug=true", "Or add debug=true.")
        off = key.startswith("checkpoint.") and not cfg.trainer.enable_checkpointing
        check_setting(key, value, not off, "left out with trainer.enable_checkpointing=false", "It saves no checkpoint.")


def run(cfg: DictConfig) -> list[Result]:
    """Train the method, or each method of `cfg.compare`, and return one result for each."""
    check_config(cfg, names_of(TrainSchema))
    refuse_unused(cfg)
    warn_of_unused(cfg)
    if cfg.debug:
        cfg = small(cfg)
        check_config(cfg, names_of(TrainSchema))
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
            print("\n".join(comparison(results)))
        path = Path(HydraConfig.get().runtime.output_dir) / "results.json"
        path.write_text(json.dumps([result.as_dict() for result in results], indent=2) + "\n")
        if len(results) == 1 and results[0].score is not None:
            print(f"{results[0].metric} {results[0].score:.2%} after the last epoch")
        print(f"results: {path}\ntables and pictures: kakurenbo-report {path.parent}")
    return results[-1].score


def main() -> None:
    """Start the program; the ranks that Lightning starts inherit the time, and with it the folder of the run."""
    if "LOCAL_RANK" not in os.environ:
        os.environ.setdefault("KAKURENBO_STARTED", time.strftime("%Y-%m-%d/%H-%M-%S"))
    train()


if __name__ == "__main__":
    main()
