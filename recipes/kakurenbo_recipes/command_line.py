"""Reports a wrong command line in one sentence with exit status 1; a traceback is shown only with HYDRA_FULL_ERROR=1."""

import linecache
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from typing import Any, cast
from unittest import mock

import hydra
import hydra._internal.utils as hydra_utils
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kakurenbo_lightning.errors import DamagedCheckpointError
from kakurenbo_recipes.config_check import GIVEN, KEYED, nearest, parameters
from kakurenbo_recipes.settings import did_you_mean

# errors caused by the command line or by what it names; all others are faults of the code and keep their traceback
OF_SETTINGS = (ValueError, OSError, ImportError, HydraException, OmegaConfBaseException, DamagedCheckpointError)
KINDS = {
    "Float": "a number",
    "Integer": "an int",
    "bool": "true or false",
    "ListConfig, list": "a list, such as [1,2]",
}  # names of types in OmegaConf's messages
NOT_LOGGED = r"conditioned on metric `([^`]+)` which is not available.*following: ([^\n]*)"  # the RuntimeError of EarlyStopping
# how to train with several options of a group that takes one
SEVERAL = {"method": "Write compare=[baseline,kakurenbo], or -m method=baseline,kakurenbo,"}


@contextmanager
def short_errors(configs: str, config_name: str, program: str) -> Iterator[None]:
    """Print one sentence instead of Hydra's traceback, or instead of its lines that recommend `+` for every typo.

    Args:
        configs: folder of the configs, for suggestions.
        config_name: name of the program's config.
        program: command that starts the program.
    """
    if {"--help", "-h"} & set(sys.argv):
        store = ConfigStore.instance()
        vars(store)["__deepcopy__"] = lambda memo: store  # only --help reads it, and copying all of it for each group is slow
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        yield
        return
    failed: list[JobReturn] = []

    def result(job: JobReturn) -> Any:
        """Return what a run returned, or raise its error. Hydra's own version prints all overrides first."""
        if job.status != JobStatus.COMPLETED:
            failed.append(job)
            raise job._return_value
        return job._return_value

    quiet = property(result, JobReturn.return_value.fset)  # pyright: ignore[reportAttributeAccessIssue]  of a property
    try:
        # Hydra's function that prints errors
        with (
            mock.patch.object(hydra_utils, "run_and_report", lambda function: function()),
            mock.patch.object(JobReturn, "return_value", quiet),
        ):
            yield
    except BrokenPipeError:  # `kakurenbo-train --help | head` closes the pipe, and Python would report that when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        print(of_sweep(failed), end="", file=sys.stderr)
        ours = is_of_settings(error) or re.search(NOT_LOGGED, str(error)) is not None
        if ours:
            said = Sentence(configs, config_name, program, sys.argv[1:]).of(error).strip()
            print(said if said.endswith((".", "?", "!")) else f"{said}.", file=sys.stderr)
        else:
            traceback.print_exc()
        print("HYDRA_FULL_ERROR=1 shows where it comes from." if ours else "", file=sys.stderr)
        raise SystemExit(1) from None


def of_sweep(failed: list[JobReturn]) -> str:
    """Name the run of a sweep that has failed; empty if there was only one run."""
    hydra_config = failed[0].hydra_cfg if failed else None
    if hydra_config is None or hydra_config.hydra.mode != RunMode.MULTIRUN:
        return ""
    return f"run {hydra_config.hydra.job.num} ({' '.join(failed[0].overrides or ())}): "


def is_of_settings(error: Exception) -> bool:
    """Whether the command line has caused an error, including errors that Lightning or W&B raise for a setting."""
    if isinstance(error, OF_SETTINGS) or {cls.__name__ for cls in type(error).__mro__} & {
        "MisconfigurationException",
        "UsageError",
    }:
        return True
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    is_raised = linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("raise ")
    package = frame.f_globals.get("__name__", "").partition(".")[0]
    return isinstance(error, TypeError | RuntimeError) and is_raised and package in ("lightning", "pytorch_lightning")


class Sentence:
    """Explains what was wrong with a command line."""

    def __init__(self, configs: str, config_name: str, program: str, words: list[str]) -> None:
        self.configs, self.config_name, self.program = configs, config_name, program
        typed = hydra_utils.get_args_parser().parse_args(words)
        self.words, self.own_configs = typed.overrides, typed.config_dir

    def of(self, error: Exception) -> str:
        """Return the sentence that explains an error."""
        text, cause = str(error), error.__cause__
        if isinstance(error, InstantiationException):
            return (
                one_line(str(cause))
                if " is not possible" in str(cause) or " is not allowed" in str(cause)
                else instantiation(error)
            )
        if isinstance(error, OverrideParseException):
            return (
                f"{error.override} is not possible: it cannot be read as KEY=VALUE. Put a value with blanks or signs into quotes that the "
                "shell leaves: \"KEY='VALUE'\"."
            )
        if known := self.unsuited(f"{text} {cause or ''}"):
            return known
        if deleted := [word for word in self.words if re.fullmatch(r"~\w+", word) and "interpolation" in text]:
            return f"{deleted[0]} is not possible: the program reads {deleted[0][1:]}. Leave it out, or choose {deleted[0][1:]}=OPTION."
        if found := re.search(r"Ambiguous value for argument '([^']+)'", text):
            return f"{found[1]} is not possible: it must be one value. Add -m for a run with each, or write [a,b] for a list."
        for pattern, say in (
            (r"Could not (?:find|load) '([\w/]+)/([^'/]*)'", self.option),
            (r"Could not override '([^'@]+)", self.key),
        ):
            if found := re.search(pattern, text):
                return say(*found.groups())
        if "Config group override must be a string or a list" in text:
            return next(said for said in map(self.no_option, self.words) if said)
        if found := re.search(r"Error merging override (\S+?)=(.*)", text, re.DOTALL):
            return self.value(found[1].lstrip("+"), found[2], str(cause or ""))
        if found := re.search(r"Interpolation key '([^']+)' not found", text):
            typed = [word for word in self.words if re.search(rf"\$\{{\s*{re.escape(found[1])}\b", word)]
            where = ", ".join(typed) or f"${{{found[1]}}} in a config file"
            return f"{where} is not possible: {found[1]} is no setting. {self.program} --cfg job lists the settings."
        if isinstance(error, (HydraException, OmegaConfBaseException)):
            return one_line(f"{text} {cause or ''}")
        return one_line(text) if " " in text else f"{type(error).__name__}: {text}"

    def several(self, text: str) -> str:
        """What to write instead of several options for a group that takes one; empty for other errors."""
        named = re.search(r"Multiple values for (?:\S+@)?(\w+)\.", text)
        groups = [named[1]] if named else ["method", "experiment"] if "Error resolving interpolation" in text else []
        for group in groups:
            word = next((word for word in self.words if word.startswith(f"{group}=[")), f"{group}=..." if named else None)
            if word is not None:
                return f"{word} is not possible: it must be one value. {SEVERAL.get(group, 'Add -m')} for a run with each."
        return ""

    def unsuited(self, text: str) -> str:
        """Errors of Hydra or Lightning that come without a useful fix, in better words; empty for other errors."""
        if found := re.search(r"Error merging override ~(\S+).*does not support deletion", text, re.DOTALL):
            return f"~{found[1]} is not possible: {found[1]} has its default where it is left out. Leave ~{found[1]} out."
        if several := self.several(text):
            return several
        if found := re.search(NOT_LOGGED, text):
            word = next((word for word in self.words if word.endswith(f"monitor={found[1]}")), f"monitor={found[1]}")
            return f"{word} is not possible: it must be a metric that is logged, one of {found[2].replace('`', '')}."
        if found := re.search(r"(?:Interpolation key|Environment variable) '([^']+)' not found", text):
            word = next((word for word in self.words if "${" in word and found[1] in word), found[1])
            return f"{word} is not possible: there is no {found[1]}. Write a value, or a name that is there."
        if "No supported gpu backend" in text:
            return "trainer.accelerator=gpu is not possible: torch finds no GPU here. Write trainer.accelerator=auto, or cpu."
        return ""

    def option(self, group: str, name: str) -> str:
        """The sentence for an option that a group does not have."""
        with self.composing():
            known = GlobalHydra.instance().config_loader().get_group_options(group)
        return f"{group}={name!r} is not possible: it must be one of {', '.join(known)}. {did_you_mean(name, known)}"

    def no_option(self, word: str) -> str:
        """What is wrong with `GROUP=null`, or with a number as option; empty for other words."""
        group, _, value = word.partition("=")
        with self.composing():
            is_group = group in GlobalHydra.instance().config_loader().list_groups("")
        return self.option(group, value) if is_group and not re.match(r"\[|[A-Za-z_]+(?<!null)$", value) else ""

    def key(self, path: str) -> str:
        """The sentence for a key that is not a setting."""
        value = next((word.partition("=")[2] for word in self.words if word.partition("=")[0] == path), "")
        values = self.defaults()
        top = path.partition(".")[0]
        if top == "hydra":
            return f"{path}={value} is not possible: it is no setting of Hydra's. {self.program} --cfg hydra lists those."
        if f"~{top}" in self.words:
            return f"~{top} is not possible: the program reads {top}. Leave it out, or choose {top}=OPTION."
        with self.composing():
            loader = GlobalHydra.instance().config_loader()
            groups, options = loader.list_groups(""), loader.get_group_options(top)
        group, _, key = path.rpartition(".")
        if advice := GIVEN.get(group, {}).get(key):
            return f"{path}={value} is not possible: the program gives it. {advice}"
        inside = OmegaConf.select(OmegaConf.create(values), group, default=None) if group else None
        names = list(inside) if isinstance(inside, DictConfig) else [] if group else [*values, *groups]
        option = path.split(".")[1] if path.count(".") > 1 and top in KEYED else None
        if option in options and option not in (values.get(top) or {}):
            return f"{path}={value} is not possible: {top} has no {option} yet. Add {top}=[{option}]."
        near = nearest(path, value, names, values) or self.other_group(path, values)
        if adds := self.added(path, value, inside, surely=near is not None):
            return adds
        hint = f"Did you mean {near}? " if near else ""
        return f"{path}={value} is not possible: it is no setting. {hint}{self.program} --cfg job lists the settings, --help the groups."

    def added(self, path: str, value: str, node: Any, surely: bool) -> str:
        """What to write for a key that the config lacks but the node's target accepts. `surely` excludes targets that accept any
        name.
        """
        target = node.get("_target_") if isinstance(node, DictConfig) else None
        if target is None:
            return ""
        with suppress(ValueError):  # the target may not exist
            takes = parameters(path, target, node)
            if path.rpartition(".")[2] in takes.types or (takes.open and not surely):
                return f"{path}={value} is not possible: it is no setting yet. {takes.target} takes it: write +{path}={value}."
        return ""

    def other_group(self, path: str, values: dict[str, Any]) -> str | None:
        """The path with the group that was probably meant."""
        group, _, rest = path.partition(".")
        close = get_close_matches(group, list(values), n=1)
        return f"{close[0]}.{rest}" if rest and close and group not in values else None

    def value(self, path: str, value: str, reason: str) -> str:
        """The sentence for a value of the wrong type."""
        kind = next((words for name, words in KINDS.items() if re.search(rf"to {name}|valid {name}|not a {name}", reason)), None)
        default = OmegaConf.select(OmegaConf.create(self.defaults()), path, default=None)
        allowed = f"it must be {kind}" if kind else one_line(reason.splitlines()[0] if reason else "of another type")
        hint = f"Its default is {default}." if default is not None else f"{self.program} --cfg job lists the settings."
        return f"{path}={value} is not possible: {allowed.rstrip('.')}. {hint}"

    def defaults(self) -> dict[str, Any]:
        """The config with the options that were typed, or without them if they are the error. Interpolations are not resolved."""
        chosen = [word for word in self.words if re.fullmatch(r"[a-z_]+=[\w\[\],]+", word)]
        for words in (chosen, []):
            try:
                with self.composing():
                    cfg = hydra.compose(self.config_name, overrides=words)
                return cast(dict[str, Any], OmegaConf.to_container(cfg))
            except (HydraException, OmegaConfBaseException, ValueError):
                continue
        return {}

    @contextmanager
    def composing(self) -> Iterator[None]:
        """Context in which Hydra can compose again after its error, with the options of `--config-dir` too."""
        path = hydra_utils.create_config_search_path(self.configs)
        if self.own_configs:
            path.append("command-line", f"file://{os.path.abspath(self.own_configs)}")
        with hydra.initialize_config_dir(self.configs, version_base="1.3"):
            GlobalHydra.instance().clear()
            Hydra.create_main_hydra2("app", path)
            yield


def instantiation(error: InstantiationException) -> str:
    """The sentence for a node that could not be instantiated, with its path."""
    found = re.search(r"full_key: (\S+)", str(error))
    target = re.search(r"target '([^']+)'", str(error))
    made = target[1] if target else "it"
    return f"{found[1] if found else 'the config'} is not possible: {made} says: {one_line(str(error.__cause__ or error))}"


def one_line(text: str) -> str:
    """Join the lines of a text."""
    return " ".join(text.split())
