"""Checks of `kakurenbo-train`'s command line before anything heavy is imported: settings that nothing would read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast
from zipfile import is_zipfile

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from kakurenbo_lightning import available_methods
from kakurenbo_lightning.core.checkpoint_file import is_old_format
from kakurenbo_lightning.core.distributed import rank_zero_warn
from kakurenbo_lightning.methods.registry import method_class
from kakurenbo_lightning.methods.saving import share_setting
from kakurenbo_lightning.session.saving import methods_with_share
from kakurenbo_recipes.settings import check_setting, did_you_mean, is_count


def refuse_unused(cfg: DictConfig) -> None:
    """Raise a ValueError for settings of something that is switched off."""
    for key, value in typed():
        small_alone = key.startswith("small.") and not cfg.debug
        check_setting(key, value, not small_alone, "left out without debug=true", "Or add debug=true.")
        off = key.startswith("checkpoint.") and not cfg.trainer.enable_checkpointing
        check_setting(key, value, not off, "left out with trainer.enable_checkpointing=false", "It saves no checkpoint.")
    devices, most = cfg.trainer.get("devices"), max(8, os.cpu_count() or 1)
    # on a CPU each device is a process, and too many stall the machine
    few = cfg.trainer.get("accelerator") != "cpu" or not is_count(devices, most + 1)
    check_setting("trainer.devices", devices, few, f"at most {most} processes on this machine's CPU", "Try trainer.devices=2.")
    tests = not cfg.test or cfg.trainer.get("limit_test_batches") != 0
    check_setting("test", cfg.test, tests, "false with trainer.limit_test_batches=0", "Or leave the limit out.")
    alone = HydraConfig.get().mode != RunMode.MULTIRUN and cfg.compare is None
    read = not cfg.scorer or scores(cfg) or not alone
    chosen = HydraConfig.get().runtime.choices.get("scorer")
    check_setting("scorer", chosen, read, f"none: method={cfg.method.method} scores no batches", "Try method=selective_backprop.")


def check_checkpoint(cfg: DictConfig) -> None:
    """Raise a ValueError for a `ckpt_path` that is not a file. URLs and Lightning's keywords are left to Lightning."""
    path = cfg.ckpt_path
    if path is None or path in ("last", "hpc") or "://" in path or path.startswith("registry"):
        return
    found = sorted(Path(path).rglob("*.ckpt"), key=lambda file: file.stat().st_mtime) if Path(path).is_dir() else []
    hint = (
        f"Its newest: ckpt_path={str(found[-1])!r}."
        if found
        else "A run goes on by its own command with ckpt_path=last hydra.run.dir=outputs/DATE/TIME."
    )
    is_sharded = (Path(path) / "meta.pt").is_file()  # a sharded checkpoint is a folder with this file
    is_file = Path(path).is_file() and (is_zipfile(path) or is_old_format(Path(path)))
    check_setting("ckpt_path", path, is_file or is_sharded, "null, last or the file of a checkpoint", hint)


def warn_of_unused(cfg: DictConfig) -> None:
    """Print a note if F or tau is set but the method does not use it; refuse it unless several methods are swept."""
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


def check_above(cfg: DictConfig) -> None:
    """Raise a ValueError if `save` or the group `guard` contradicts another setting; print a note if it has no effect."""
    names = [cfg.method.method] if cfg.compare is None else list(cfg.compare)
    given = dict(typed())
    if cfg.save is not None:
        check_setting("save", cfg.save, "F" not in given, "left out beside F", "save chooses F.")
        unable = [name for name in names if share_setting(method_class(name)) is None]
        alone = unable and cfg.compare is None and HydraConfig.get().mode != RunMode.MULTIRUN
        values = cfg.method.get("values", "sample_loss")
        able = f"Methods that have one{' and read only the loss' * (values == 'bls')}: {', '.join(methods_with_share(values))}."
        check_setting("save", cfg.save, not alone, f"left out: method={cfg.method.method} has no share to set", able)
        if unable:
            rank_zero_warn(f"save={cfg.save} changes nothing for {', '.join(unable)}: it has no share that could be set")
    if cfg.guard:
        others = [name for name in names if method_class(name).family != "hide"]
        check_setting("guard", others, not others, "left out for methods that hide nothing", "Write guard=none.")


def check_compare(cfg: DictConfig) -> None:
    """Raise a ValueError unless `compare` is a list of different methods that are all trained from scratch."""
    is_list = isinstance(cfg.compare, ListConfig) and len(cfg.compare) > 0
    check_setting("compare", cfg.compare, is_list, "null or a list of methods", "Write compare=[baseline,kakurenbo].")
    known = GlobalHydra.instance().config_loader().get_group_options("method")
    names = list(cfg.compare)
    for name in names:
        hint = did_you_mean(name, known, "Write compare=[baseline,kakurenbo].")
        is_option = name in known or bool(search_path())  # with another search path only Hydra knows the options
        check_setting("compare", names, is_option, f"a list of methods out of {', '.join(known)}", hint)
    hint = "Other seeds of a method: -m seed=0,1."
    check_setting("compare", names, len(set(names)) == len(names), "a list that names each method once", hint)
    chosen = str(cfg.method.method)
    is_used = chosen in names or "method" not in dict(typed())
    check_setting("method", chosen, is_used, f"left out, or one of compare={names}", "compare says which methods are trained.")
    alone = cfg.ckpt_path is None
    check_setting("ckpt_path", cfg.ckpt_path, alone, "null with compare", "Resume one method with compare=null.")


def scores(cfg: DictConfig) -> bool:
    """Whether the method scores every batch (backprop family)."""
    return available_methods()[cfg.method.method].family == "backprop"


def typed() -> list[tuple[str, Any]]:
    """Return the settings of the command line by name, without deletions."""
    return [(override.key_or_group, override.value()) for override in overrides_of_run() if not override.is_delete()]


def overrides_of_run() -> list[Override]:
    """Return the overrides of the command line."""
    return OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))


def search_path() -> list[str]:
    """Return the config folders named on the command line, which Hydra does not keep for configs that are composed later."""
    return [word for word in HydraConfig.get().overrides.hydra if word.lstrip("+").startswith("hydra.searchpath=")]
