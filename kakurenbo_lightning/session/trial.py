"""Finds out, without training, what a module's first batch proves and which methods can be used with it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader
from torchmetrics import Metric

from kakurenbo_lightning.core.batch_rows import BatchCheck
from kakurenbo_lightning.core.flavour import is_instance, join, package_of
from kakurenbo_lightning.errors import ConflictError, OutputsError
from kakurenbo_lightning.methods import available_methods, get_method
from kakurenbo_lightning.methods.settings import shown
from kakurenbo_lightning.session.session import Session
from kakurenbo_lightning.signals import refusals
from kakurenbo_lightning.signals.outputs import SampleOutputs
from kakurenbo_lightning.signals.report import Report
from kakurenbo_lightning.trainer.compatibility import check_module
from kakurenbo_lightning.trainer.forward_pass import metrics_kept, replaying, scoring
from kakurenbo_lightning.trainer.module_state import attributes_kept


@dataclass(frozen=True)
class TrialReport:
    """The result of a trial; ``print`` it for a table.

    Attributes:
        values: what was verified of the loss of each sample, and the other values that are available; ``None`` if that loss is not.
        problem: why the loss is not available, and what works instead; empty if it is.
        methods: why each registered method cannot be used with its default settings, by name; empty if it can.
        families: the family of each method, by name.
    """

    values: Report | None
    problem: str
    methods: dict[str, str] = field(default_factory=dict)
    families: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        reasons = list(dict.fromkeys(reason for reason in self.methods.values() if reason))
        where = f", see [{reasons.index(self.problem) + 1}]" if self.problem in reasons else f": {self.problem}"
        lines = self.values.lines() if self.values is not None else [f"the loss of each sample is not available{where}"]
        brief = [refusals.without_lines(reason, "see the end") for reason in reasons]
        widths = [max(map(len, names)) for names in (["method", *self.methods], ["family", *self.families.values()])]
        rows = [("method", "family", "works")]
        for name, reason in self.methods.items():
            rows.append((name, self.families[name], f"no, see [{reasons.index(reason) + 1}]" if reason else "yes"))
        table = [f"{name.ljust(widths[0])}  {family.ljust(widths[1])}  {works}" for name, family, works in rows]
        notes = [f"\n[{number}] {reason}" for number, reason in enumerate(brief, 1)]
        if brief != reasons:
            notes.append(f"\nwhat training_step can return:{refusals.EXAMPLE}{refusals.OTHERS}")
        return "\n".join([*lines, "", *table, *notes])


class _Tried(Exception):
    """Ends the fit: the first batch has been tried and nothing was trained."""


class _Trial(pl.Callback):
    """Runs the first batch in every way that a method may need, and stops the training before its first step.

    Args:
        session: session of the ``SampleSelection`` that comes before in the Trainer's callbacks.
        function: the user's ``sample_outputs``; ``None`` if there is none.
    """

    def __init__(self, session: Callable[[], Session], function: Callable[[Any], Any] | None) -> None:
        join(_Trial)
        self._session, self._function = session, function
        self.report: TrialReport | None = None
        self._known: dict[tuple[tuple[str, ...], bool, bool], tuple[Report | None, str]] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace the training step by the trial."""
        self._session().adapter.wrap_training_step(self._try)

    def _try(self, step: Callable[..., Any], *args: Any) -> Any:
        self._step, self._batch, self._rest = step, args[0], args[1:]
        values, problem = self._outcome(("loss",), False, False)
        infos = available_methods()
        problems = {name: self._problem(name) for name in infos}
        if values is not None:  # reports of methods that read more may name further values
            found = (report.gives for report, _ in self._known.values() if report is not None)
            values = replace(values, gives=tuple(dict.fromkeys(name for gives in (values.gives, *found) for name in gives)))
        self.report = TrialReport(values, problem, problems, {name: info.family for name, info in infos.items()})
        raise _Tried

    @property
    def _size(self) -> int:
        return self._session().data.sampler.shard.batch_length(0)

    def _problem(self, name: str) -> str:
        """Why a method cannot be used; empty if it can."""
        try:
            method = get_method(name)
        except (TypeError, ValueError) as error:
            return f"it needs settings of yours: {error}"
        adapter = self._session().adapter
        try:
            self._session().data.check_method(method)
            check_module(adapter.trainer, adapter.trainer.lightning_module, method, self._function)
            if method.family == "backprop":
                chosen: Any = method  # untyped, because the families have different settings
                BatchCheck(name, chosen.pooled or chosen.batches_per_choice > 1)(self._batch, self._size)
        except (ConflictError, TypeError) as error:
            return str(error)
        return self._outcome(method.reads, method.weighs, method.scoring_mode == "eval")[1]

    def _outcome(self, reads: tuple[str, ...], weighs: bool, scores: bool) -> tuple[Report | None, str]:
        """What is verified for a method that reads these values and may score samples, or why the values are not available."""
        if (reads, weighs, scores) not in self._known:
            self._known[reads, weighs, scores] = self._observed(reads, weighs, scores)
        return self._known[reads, weighs, scores]

    def _observed(self, reads: tuple[str, ...], weighs: bool, scores: bool) -> tuple[Report | None, str]:
        adapter = self._session().adapter
        module: pl.LightningModule = adapter.trainer.lightning_module
        manual = not module.automatic_optimization
        outputs = SampleOutputs(reads, self._function, weighs=weighs, manual=manual, scores=scores)
        outputs.device = adapter.trainer.strategy.root_device
        step = partial(self._step, self._batch, *self._rest)
        try:
            outputs.observe(
                step,
                self._batch,
                self._size,
                partial(scoring, adapter),
                **replaying(adapter.trainer, module, 0),
            )
        except OutputsError as error:
            return None, str(error)
        return outputs.report, "" if outputs.report is not None else "training_step returns no loss on the first batch"


def fit_aside(
    module: pl.LightningModule, data: Any, callbacks: list[Any], stop: type[Exception], settings: dict[str, Any]
) -> None:
    """Fit on one device, without output or files, until a callback raises ``stop``.

    Afterwards the module, the attributes of the data module and all global random streams are as before. State inside a data set or a
    loader, such as a generator of its own, is not restored. The module's own callbacks are not run, because they may save files or wait
    for a validation.

    Args:
        module: the user's module.
        data: a LightningDataModule, or a train loader.
        callbacks: callbacks of the Trainer.
        stop: the exception that ends the fit.
        settings: arguments of the Trainer.
    """
    package = package_of(module, "LightningModule")
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    silent = import_module(f"{package}.loggers.logger").DummyLogger()  # a logger that accepts any call of the user's step
    nothing = dict.fromkeys(("num_sanity_val_steps", "limit_val_batches", "log_every_n_steps"), 0)
    made = {"devices": 1, "logger": silent, **nothing, **quiet, **settings}
    trainer = import_module(package).Trainer(**made, callbacks=callbacks)
    is_module = is_instance(data, pl.LightningDataModule)
    with isolate_rng(), _all_kept(module), _attributes_kept([data] if is_module else []), contextlib.suppress(stop):
        # an instance attribute that hides the method; _all_kept removes it again
        module.configure_callbacks = list
        trainer.fit(module, **{"datamodule" if is_module else "train_dataloaders": data})


def run_trial(selection: Any, module: pl.LightningModule, data: Any, function: Any, settings: dict[str, Any]) -> TrialReport:
    """Try the first batch. Afterwards the module, with all that is attached to it, and the global random streams are as before.

    Args:
        selection: a ``SampleSelection`` that requires nothing from the step.
        module: the user's module.
        data: a LightningDataModule, or a train loader.
        function: the user's ``sample_outputs``; ``None`` if there is none.
        settings: arguments of the Trainer, for example ``precision``.

    Raises:
        ValueError: the Trainer, module, loader or data set cannot be used with sample selection at all.
    """
    _check_given(module, data)
    trial = _Trial(lambda: selection.session, function or getattr(module, "sample_outputs", None))
    fit_aside(module, data, [selection, trial], _Tried, {"max_epochs": 1, **settings})
    if trial.report is None:
        raise ConflictError("the Trainer made no training step: the train loader gives no batch")
    return trial.report


def _check_given(module: object, data: object) -> None:
    """Raise ``ConflictError`` unless ``module`` is a LightningModule and ``data`` a LightningDataModule or a train loader."""
    if not is_instance(module, pl.LightningModule):
        raise ConflictError(
            f"model={shown(module)} is an object of class {type(module).__name__}; it must be a LightningModule with a training_step"
        )
    if is_instance(data, pl.LightningDataModule):
        # the hook that Lightning defines itself raises an error only when it is called
        if getattr(data.train_dataloader, "__module__", "").endswith("pytorch.core.hooks"):
            raise ConflictError(
                f"data={shown(data)} has no train_dataloader; a LightningDataModule must return one DataLoader from it: define "
                "train_dataloader, or give a train DataLoader"
            )
    elif not any(isinstance(part, DataLoader) for part in tree_leaves(getattr(data, "iterables", data))):
        raise ConflictError(
            f"data={shown(data)} is an object of class {type(data).__name__}; it must be a LightningDataModule or a train DataLoader: put "
            "a data set into torch.utils.data.DataLoader(dataset, batch_size=...)"
        )


@contextlib.contextmanager
def _all_kept(module: pl.LightningModule) -> Iterator[None]:
    """Restore all of a module: a Trainer attaches itself and converts the module to its precision, and the step may change
    anything.
    """
    parts = list(module.modules())
    plain = [part for part in parts if not isinstance(part, Metric | torch.jit.ScriptModule)]
    flags = [(part, part.training) for part in parts]
    own = [value for part in plain for value in vars(part).values() if isinstance(value, Tensor)]
    known = [*module.parameters(), *module.buffers(), *own]
    lazy = [(tensor, type(tensor), tensor.device, tensor.dtype) for tensor in known if is_lazy(tensor)]
    known = [tensor for tensor in known if not is_lazy(tensor)]
    tensors = [(tensor, tensor.detach(), tensor.detach().clone()) for tensor in known]
    asking = [(parameter, parameter.requires_grad) for parameter in known if isinstance(parameter, nn.Parameter)]
    gradients = [(parameter, parameter.grad, _copied(parameter.grad)) for parameter, _ in asking]
    trainers = [(part, part._trainer) for part in parts if is_instance(part, pl.LightningModule)]
    try:
        with _attributes_kept(plain), attributes_kept(module), metrics_kept(parts):
            yield
    finally:
        for part, training in flags:
            part.training = training
        for part, trainer in trainers:
            part._trainer = trainer
        with torch.no_grad():
            for tensor, memory, copy in tensors:
                # into the original memory, because the Trainer may have moved the module, and others may share its tensors
                memory.copy_(copy)
                tensor.data = memory
            for parameter, gradient, copy in gradients:
                parameter.grad = gradient
                if gradient is not None and copy is not None:
                    gradient.copy_(copy)
            for tensor, kind, device, dtype in lazy:
                tensor.grad = None
                tensor.data = torch.empty(0, device=device, dtype=dtype)
                object.__setattr__(tensor, "__class__", kind)
        for parameter, asks in asking:
            parameter.requires_grad_(asks)


@contextlib.contextmanager
def _attributes_kept(parts: list[Any]) -> Iterator[None]:
    """Restore the attributes of ``parts``, with parameters, submodules and hooks. A lazy module becomes lazy again."""
    before = [(part, type(part), dict(vars(part))) for part in parts]
    mappings = [(value, value.copy()) for _, _, attributes in before for value in attributes.values() if isinstance(value, dict)]
    try:
        yield
    finally:
        for part, kind, attributes in before:
            if type(part) is not kind:
                part.__class__ = kind
            vars(part).clear()
            vars(part).update(attributes)
        for mapping, copy in mappings:
            mapping.clear()
            mapping.update(copy)


def _copied(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()
