"""Train on fewer samples: the console script `kakurenbo-train`.

The settings are Hydra's (`kakurenbo-train --help`). One run trains one method; with `compare=[a,b]` it trains several,
one after the other with the same seed, and prints a table.

Lightning, torch and what trains are imported when a training begins (:func:`fit`): the help and the settings (`--cfg job`) need neither.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from kakurenbo_lightning import __version__, available_methods
from kakurenbo_lightning.core.distributed import is_rank_zero, rank_zero_info, rank_zero_warn
from kakurenbo_recipes import arena_sweep
from kakurenbo_recipes.command_line import short_errors
from kakurenbo_recipes.config_check import check_config
from kakurenbo_recipes.log import logged, say
from kakurenbo_recipes.results import Result, comparison
from kakurenbo_recipes.run_checks import (
    check_above,
    check_checkpoint,
    check_compare,
    refuse_unused,
    scores,
    search_path,
    typed,
    warn_of_unused,
)
from kakurenbo_recipes.run_folder import STARTED
from kakurenbo_recipes.run_loggers import log_hyperparameters, own_wandb_run
from kakurenbo_recipes.schema import TrainSchema, names_of
from kakurenbo_recipes.settings import check_setting, is_count, made_method, made_of

if TYPE_CHECKING:
    import lightning as L

    from kakurenbo_lightning import SampleSelection
    from kakurenbo_lightning.record import RunRecorder

# settings that generated data share with an experiment's own data
GENERATED = tuple(
    f"data.{name}" for name in ("batch_size", "label_noise", "label_noise_seed", "held_out", "held_out_seed", "drop_last")
)


def methods_of(family: str) -> str:
    """Return the methods of a family, including those of other packages, wrapped for the help."""
    names = ", ".join(name for name, info in available_methods().items() if info.family == family)
    return textwrap.fill(names, 90, subsequent_indent=" " * 24)


def metric_of(task: str) -> str:
    """Return the name of the metric by which runs of a task are compared, for callbacks that monitor it."""
    return get_class(task).metric


def options_of(group: str) -> str:
    """Return the options of a group, including those of `--config-dir`, wrapped for the help."""
    options = GlobalHydra.instance().config_loader().get_group_options(group)
    return textwrap.fill(", ".join(options), 100, subsequent_indent=" " * 14)


class MethodOptions(SearchPathPlugin):
    """Makes every method an option of the group `method`, including those without a file in configs/."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the source of methods after the program's own configs."""
        search_path.append("kakurenbo-train", "kakurenbo://")


OmegaConf.register_new_resolver("options_of", options_of, replace=True)
OmegaConf.register_new_resolver("methods_of", methods_of, replace=True)
OmegaConf.register_new_resolver("metric_of", metric_of, replace=True)
Plugins.instance().register(MethodOptions)
arena_sweep.register()


def config_dir() -> str:
    """Return the folder of the Hydra configs: the wheel's, or the repository's if there is no wheel."""
    here = Path(__file__).resolve()
    installed = here.with_name("configs")
    return str(installed if installed.is_dir() else here.parents[2] / "configs")


def fit(cfg: DictConfig, datamodule: L.LightningDataModule) -> Result:
    """Train one model with the method of `cfg.method`."""
    import lightning as L

    from kakurenbo_recipes.models import load_network

    L.seed_everything(cfg.seed, workers=True, verbose=False)
    # cast: all data modules here have it, but Lightning's class does not declare it
    num_classes = cast(Any, datamodule).num_classes
    scorer = scorer_for(cfg, num_classes)
    selection = made_method(cfg.method, cfg.save, cfg.guard, **({} if scorer is None else {"scorer": scorer}))
    network = made_of(cfg.model, num_classes=num_classes)
    if cfg.weights is not None:
        rank_zero_info(load_network(network, cfg.weights))
    callbacks = [selection, *recorder_for(cfg, selection), *made(cfg.callbacks)]
    # not under fast_dev_run, where Lightning would save a checkpoint of its single batch
    if cfg.trainer.enable_checkpointing and not cfg.trainer.get("fast_dev_run"):
        callbacks.append(made_of(cfg.checkpoint))
    trainer = made_of(cfg.trainer)(callbacks=callbacks, logger=made(cfg.logger) or False)
    optimizer = made_of(cfg.optimizer, lr=scaled_rate(cfg, trainer.world_size))
    check_optimizer(optimizer)
    if scorer is not None:
        scorer.optimizer = optimizer  # set afterwards, because its schedule needs the Trainer, which needs the callback
    model = made_of(cfg.task)(network, optimizer, num_classes, made_of(cfg.schedule))

    check_last(cfg)
    started = time.perf_counter()
    with own_wandb_run(trainer):
        log_hyperparameters(trainer, cfg)
        trainer.fit(model, datamodule=datamodule, ckpt_path=cfg.ckpt_path)
        fit_seconds = time.perf_counter() - started
        score = trainer.callback_metrics.get(f"val/{model.metric}")
        tested = tested_score(trainer, model, datamodule) if cfg.test else None
    return Result(
        method=cfg.method.method,
        metric=model.metric,
        score=None if score is None else score.item(),
        totals=selection.totals.as_dict(),
        fit_seconds=fit_seconds,
        test_score=tested,
    )


def scorer_for(cfg: DictConfig, num_classes: int) -> Any:
    """Return the scorer of a method that scores every batch: a task with the network of the group scorer; None if there is none."""
    from kakurenbo_lightning.core.random import isolated_rng

    if not cfg.scorer or not scores(cfg):
        return None
    with isolated_rng():  # so that the model starts with the same weights as without a scorer
        return made_of(cfg.task)(made_of(cfg.scorer, num_classes=num_classes), None, num_classes, made_of(cfg.schedule))


def tested_score(trainer: L.Trainer, model: Any, datamodule: L.LightningDataModule) -> float:
    """Return the metric on the test images, using the best checkpoint if a callback kept one, else the last weights."""
    callbacks = cast(Any, trainer).callbacks  # Lightning's class does not declare them
    best = [each.best_model_path for each in callbacks if getattr(each, "monitor", None) and getattr(each, "best_model_path", "")]
    val, test = (cast(Any, each).dataset for each in (datamodule.val_dataloader(), datamodule.test_dataloader()))
    if best and val is test:
        rank_zero_warn("test=true: the test images themselves chose the best epoch. Add data.held_out=0.1 to choose by others.")
    trainer.test(model, datamodule=datamodule, ckpt_path=best[0] if best else None, verbose=False)
    score = trainer.callback_metrics[f"test/{model.metric}"].item()
    rank_zero_info(f"test {model.metric} {score:.2%} of {Path(best[0]).name if best else 'the last epoch'}")
    return score


def check_optimizer(optimizer: Callable[..., Any]) -> None:
    """Raise a ValueError for settings of the group optimizer that torch refuses, by creating one for a dummy parameter."""
    import torch

    try:
        optimizer([torch.nn.Parameter(torch.zeros(1))])
    except (ValueError, TypeError) as error:
        raise ValueError(f"optimizer: {error}. kakurenbo-train --cfg job --package optimizer lists its settings.") from error


def made(group: DictConfig) -> list[Any]:
    """Instantiate all nodes of a group; null entries are left out."""
    return [each for each in made_of(group).values() if each is not None]


def check_last(cfg: DictConfig) -> None:
    """Print a note if `ckpt_path=last` finds no checkpoint to continue from."""
    folder = Path(HydraConfig.get().runtime.output_dir) / cfg.method.method
    if cfg.ckpt_path == "last" and not list((folder / "checkpoints").glob("last*.ckpt")):
        rank_zero_warn(
            f"ckpt_path=last: there is no checkpoint in {folder / 'checkpoints'}, so training starts from scratch. To continue a "
            "run, add its folder: hydra.run.dir=outputs/DATE/TIME"
        )


def recorder_for(cfg: DictConfig, selection: SampleSelection) -> list[RunRecorder]:
    """Return the recorder that writes the run's folder, in a list; an empty list with `record=none`."""
    recorder = made_of(cfg.record)
    if not recorder:
        return []
    folder = Path(HydraConfig.get().runtime.output_dir) / cfg.method.method
    settings = OmegaConf.to_container(cfg, resolve=True)
    return [recorder(selection, folder, metric=f"val/{metric_of(cfg.task._target_)}", config=settings)]


def scaled_rate(cfg: DictConfig, world_size: int) -> float:
    """Return the learning rate, scaled in proportion to the samples of a step relative to those that `optimizer.lr` is given for."""
    if cfg.lr_batch_size is None:
        return cfg.optimizer.lr
    is_size = is_count(cfg.lr_batch_size, 1)
    check_setting(
        "lr_batch_size", cfg.lr_batch_size, is_size, "null or an int >= 1", "Write the batch size that optimizer.lr is for."
    )
    samples = cfg.data.batch_size * world_size * cfg.trainer.accumulate_grad_batches
    return cfg.optimizer.lr * samples / cfg.lr_batch_size


def any_small(cfg: DictConfig) -> DictConfig:
    """Return `small` for a config without one: generated data of the task's kind and size, and three epochs."""
    data: dict[str, Any] = {"_target_": "kakurenbo_recipes.generated.GeneratedImages", "num_classes": 10, "batch_size": 32}
    data["size"] = cfg.data.get("size") or 32
    data["samples"] = 256 if data["size"] <= 64 else 64
    if cfg.data.get("resize"):
        data["resize"] = cfg.data.resize
    if metric_of(cfg.task._target_) == "iou":
        folder = "${hydra:runtime.output_dir}/deepcam"
        data = {"_target_": "kakurenbo_recipes.climate_data.GeneratedDeepCam", "root": folder, "files": 64, "validation": 16}
        data |= {"height": 64, "width": 96, "batch_size": 8, "eval_batch_size": 8}
    return OmegaConf.create({"data": data, "tau": 0.0, "trainer": {"max_epochs": min(cfg.trainer.max_epochs, 3)}})


def small(cfg: DictConfig) -> DictConfig:
    """Return the settings of `debug=true`: generated data, and other changes as `cfg.small` says. Settings of the command line win."""
    say("debug: small generated data and a short run instead of the real ones; its figures mean nothing")
    smaller = any_small(cfg) if cfg.small is None else cfg.small
    changed = cfg.copy()
    OmegaConf.set_struct(changed, False)  # so that options of a network can be added
    changed.data = smaller.data
    for name in map(str, smaller):
        if name != "data":
            changed[name] = OmegaConf.merge(changed[name], smaller[name]) if is_group(cfg, name) else smaller[name]
    unused = []
    # the options of groups are chosen already, also those that an experiment chose
    groups = GlobalHydra.instance().config_loader().list_groups("")
    for key, value in typed():
        if key in groups or key in ("small", "debug"):
            continue
        if key.startswith("data.") and key not in GENERATED and OmegaConf.select(changed, key) is None:
            unused.append(key)
        else:
            OmegaConf.update(changed, key, value, force_add=True)
    if unused:
        say(f"debug: {', '.join(unused)} are of the experiment's own data and not used")
    if changed.save is not None:
        say(f"debug: save={changed.save} is left out, as so short a run saves nothing worth choosing F for")
        changed.save = None
    return changed


def is_group(cfg: DictConfig, name: str) -> bool:
    """Whether `name` is a config group, not a single setting."""
    return "." not in name and isinstance(cfg.get(name), DictConfig)


def with_method(cfg: DictConfig, name: str) -> DictConfig:
    """Return `cfg` with option `name` of the group method. Settings given to the option chosen before stay with that."""
    # compare options, because a user's option may be named differently from its method
    if name == HydraConfig.get().runtime.choices["method"]:
        return cfg
    kept = [word for word in HydraConfig.get().overrides.task if not word.lstrip("+~").startswith(("method=", "method."))]
    composed = hydra.compose(HydraConfig.get().job.config_name, [*search_path(), *kept, f"method={name}"])
    changed = cfg.copy()
    changed.method = composed.method
    if cfg.debug and "method" in (composed.small or {}):
        changed.method = OmegaConf.merge(changed.method, composed.small.method)
    return changed


def run(cfg: DictConfig) -> list[Result]:
    """Train the method, or each method of `cfg.compare`, and return one result each."""
    check_config(cfg, names_of(TrainSchema))
    refuse_unused(cfg)
    check_checkpoint(cfg)
    warn_of_unused(cfg)
    check_above(cfg)
    if cfg.debug:
        cfg = small(cfg)
        check_config(cfg, names_of(TrainSchema))
    if cfg.compare is None:
        return [fit(cfg, made_of(cfg.data))]
    check_compare(cfg)
    compared = {name: with_method(cfg, name) for name in cfg.compare}
    methods = [changed.method.method for changed in compared.values()]
    hint = f"They are options of {', '.join(dict.fromkeys(methods))}, which names the folder. Try -m method={','.join(compared)}."
    check_setting("compare", list(compared), len(set(methods)) == len(methods), "a list of different methods", hint)
    datamodule = made_of(cfg.data)
    return [fit(changed, datamodule) for changed in compared.values()]


@hydra.main(config_path=config_dir(), config_name="train", version_base="1.3")
def train(cfg: DictConfig) -> float | None:
    """Run, write results.json into the run's folder, and return the last score for Hydra's sweepers."""
    with logged():  # not a decorator, because a launcher pickles this function
        return score_of(cfg)


def score_of(cfg: DictConfig) -> float | None:
    """Run, write results.json, print where it is, and return the last score."""
    results = run(cfg)
    if is_rank_zero():
        if len(results) > 1:
            say("\n".join(comparison(results)))
        path = Path(HydraConfig.get().runtime.output_dir) / "results.json"
        path.write_text(json.dumps([result.as_dict() for result in results], indent=2) + "\n")
        if len(results) == 1 and results[0].score is not None:
            say(f"{results[0].metric} {results[0].score:.2%} after the last epoch")
        say(f"results: {path}\ntables and pictures: kakurenbo-report {path.parent}")
    return results[-1].score


def main() -> None:
    """Start the program. Ranks that Lightning starts inherit the start time, and with it the run's folder."""
    if "--version" in sys.argv[1:]:
        print(f"kakurenbo-train {__version__} (Hydra {hydra.__version__})")
        return
    if "LOCAL_RANK" not in os.environ:
        os.environ.setdefault(STARTED, time.strftime("%Y-%m-%d/%H-%M-%S"))
    with short_errors(config_dir(), "train", "kakurenbo-train"):
        train()


if __name__ == "__main__":
    main()
