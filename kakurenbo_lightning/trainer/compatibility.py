"""Every refusal of a Trainer or module setting that sample selection cannot work with, and the warnings beside them."""

from __future__ import annotations

import inspect
from dataclasses import fields, is_dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from torch import Tensor

from kakurenbo_lightning.core.distributed import rank_zero_warn
from kakurenbo_lightning.core.flavour import AnyTrainer, is_instance
from kakurenbo_lightning.core.sampler import SelectionSampler
from kakurenbo_lightning.core.statistics import MAX_EPOCHS
from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.methods.registry import available_methods, method_class
from kakurenbo_lightning.methods.settings import Kind, Setting, choice, flag, integer, optional, proportion, shown
from kakurenbo_lightning.methods.topk import as_decimal
from kakurenbo_lightning.trainer.arrivals import Arrivals
from kakurenbo_lightning.trainer.strategy_compatibility import check_mesh, check_strategy

# callbacks that keep weights, change optimizers or count epochs in ways that a restart cannot put back
KEEPS_STATE = ("WeightAveraging", "StochasticWeightAveraging", "BaseFinetuning", "GradientAccumulationScheduler")

# --- arguments of the callback


def _function(value: object) -> object:
    if value is not None and not callable(value):
        raise TypeError
    return value


_ARGUMENTS = {
    "seed": Setting(optional(integer()), "", "", "For example: 0."),
    "align_schedules": Setting(flag(), "", "", "False leaves step schedules to run at their own pace."),
    "check_attribution": Setting(flag(), "", "", "False trains a loss whose values may be other samples' too."),
    "unweighted_rest": Setting(
        flag(), "", "", "True says that what else is in the loss is no sample's, such as a penalty on weights."
    ),
    "mean_over_samples": Setting(optional(flag()), "", "", "None is True for methods that change batches, and else False."),
    "values": Setting(
        choice("sample_loss", "bls"),
        "",
        "",
        "'bls' takes the losses of the batches that a sample was in, where it has none of its own.",
    ),
    "statistics": Setting(
        choice("replicated", "sharded"), "", "", "'sharded' gives each rank the statistics of a share of the samples."
    ),
    "max_hidden_epochs": Setting(integer(1), "", "", "Of iterable data with key=...; 3 is the default."),
    "bls_alpha": Setting(proportion(), "", "", "0.7 is the published one; 0 takes the last batch's loss alone."),
    "accumulate": Setting(integer(1), "", "", "It is the number of batches whose gradients make an optimizer step."),
    "on_mismatch": Setting(choice("error", "reset"), "", "", "'reset' forgets a checkpoint's selection that does not fit."),
    "sample_outputs": Setting(
        Kind("None or a function of a batch that returns a dict", Any, _function),
        "",
        "",
        "It returns sample_loss, logits and target.",
    ),
}


def checked_arguments(**values: object) -> dict[str, Any]:
    """The arguments of SampleSelection, checked and as plain Python values.

    Raises:
        ValueError: naming one, its value, what is allowed and the fix.
    """
    return {name: _ARGUMENTS[name].checked("SampleSelection", name, value) for name, value in values.items()}


def check_fit(
    trainer: AnyTrainer,
    module: pl.LightningModule,
    method: Method,
    sample_outputs: object,
    mean_over_samples: bool | None,
    given: object = None,
) -> None:
    """Refuse what cannot be fitted with ``method``, and warn of what works otherwise than one may expect; ``given``: ``sample_outputs`` of
    the callback, not of the module."""
    check_trainer(trainer)
    check_strategy(trainer, method, given)
    check_mesh(trainer)
    check_module(trainer, module, method, sample_outputs)
    check_mean(mean_over_samples, module)
    warn_of_trainer(trainer, method)


def check_mean(mean_over_samples: bool | None, module: pl.LightningModule) -> None:
    """Raise ``ConflictError`` for ``mean_over_samples=True`` where the module divides its loss, and steps, by itself."""
    if mean_over_samples and not module.automatic_optimization:
        raise ConflictError(
            "SampleSelection(mean_over_samples=True): automatic_optimization=False, so only training_step knows which batches make a step; "
            "leave it out, and multiply the loss by selection.loss_scale(accumulate=...) before manual_backward"
        )


def check_values(values: str, method: Method) -> None:
    """Raise ``ValueError`` for the losses of batches and a method that does not plan whole epochs by them."""
    if values == "bls" and method.family != "hide":
        works = {name: method_class(name) for name, info in available_methods().items() if info.family == "hide"}
        by_loss = [name for name, cls in works.items() if cls.reads == ("loss",) and cls.needs_classes is not True]
        by_classes = [name for name, cls in works.items() if cls.reads == ("loss",) and cls.needs_classes is True]
        raise ValueError(
            f"SampleSelection: values='bls' is not allowed with {method.name}, which compares samples within a batch, or draws them by "
            f"values of their own; use a method of the hide family that reads only the loss ({', '.join(by_loss)}), where the data set "
            f"gives classes also {', '.join(by_classes)}, or, where training_step returns logits and target beside the loss, any of the "
            "hide family"
        )


# --- the Trainer


def check_trainer(trainer: AnyTrainer) -> None:
    """Refuse Trainer settings that cannot work, before anything has started.

    Raises:
        ConflictError: naming the setting, its value and the fix.
    """
    if trainer.overfit_batches:
        raise ConflictError(
            f"Trainer(overfit_batches={trainer.overfit_batches}) is not allowed with sample selection: both decide what an epoch "
            "trains; remove one, or use limit_train_batches"
        )


def check_free(trainer: AnyTrainer) -> None:
    """Raise ``ConflictError`` when ``trainer`` is fitting: its SampleSelection cannot be used by another one meanwhile."""
    if trainer.state.fn == TrainerFn.FITTING and trainer.state.status == TrainerStatus.RUNNING:
        raise ConflictError(
            "this SampleSelection is in use by a Trainer that is fitting, and another Trainer has begun to fit with it; give each "
            "Trainer a SampleSelection of its own"
        )


def check_not_left(trainer: AnyTrainer) -> None:
    """Raise ``ConflictError`` when ``trainer``, whose selection was given up for another Trainer's, would go on without it."""
    if trainer.current_epoch > 0:
        raise ConflictError(
            f"this SampleSelection has been used by another Trainer since this one trained its {trainer.current_epoch} epochs, and knows "
            "nothing of them any more; give each Trainer a SampleSelection of its own, or resume from a checkpoint with ckpt_path"
        )


def warn_of_trainer(trainer: AnyTrainer, method: Method) -> None:
    """Warn of Trainer settings that work, but not as one may expect."""
    fixed = isinstance(trainer.limit_train_batches, int) and trainer.limit_train_batches > 1 and not trainer.fast_dev_run
    if fixed and method.family != "draw":
        rank_zero_warn(
            f"Trainer(limit_train_batches={trainer.limit_train_batches}) fixes the number of batches per epoch, so hiding "
            "samples saves no time; use a float to limit a share of each epoch"
        )
    if trainer.reload_dataloaders_every_n_epochs:
        rank_zero_warn(
            "Trainer(reload_dataloaders_every_n_epochs) starts new workers at each reload; the data set must keep its length "
            "and order, because samples are known by their index"
        )
    if method.ends_short and trainer.limit_train_batches != 1.0 and not trainer.fast_dev_run:
        rank_zero_warn(
            f"Trainer(limit_train_batches={trainer.limit_train_batches}) cuts off the step that trains what is left at an "
            "epoch's end: it is carried over into the next epoch"
        )


def warn_of_processes(apart: bool) -> None:
    """Warn that what a training that ran ``apart``, in processes of its own, has left is not in the one that called ``fit``."""
    if apart:
        rank_zero_warn(
            "SampleSelection: this training ran in processes of its own (ddp_spawn, ddp_fork, ddp_notebook), so totals, statistics and "
            "plan are not there in the process that called fit; read them from a checkpoint (kakurenbo-inspect), keep them with "
            "RunRecorder, or train with strategy='ddp'"
        )


def check_epochs(max_epochs: int | None) -> None:
    """Raise ``ConflictError`` for a run that is longer than statistics can count."""
    if (max_epochs or 0) > MAX_EPOCHS:
        raise ConflictError(f"Trainer(max_epochs={max_epochs}): statistics count at most {MAX_EPOCHS} epochs; train fewer")


def check_restart(trainer: AnyTrainer, callbacks: list[pl.Callback]) -> None:
    """Refuse what a static method's restart cannot work with: a length that is not counted in epochs, callbacks it cannot put back.

    Raises:
        ConflictError: naming the setting or the callback, and the fix.
    """
    if trainer.max_steps >= 0 or trainer.max_epochs is None or trainer.max_epochs < 0:
        raise ConflictError(
            f"Trainer(max_steps={trainer.max_steps}, max_epochs={trainer.max_epochs}): the method scores some epochs, chooses, "
            "and starts again for max_epochs, so the run must be counted in epochs; set max_epochs and leave max_steps at -1"
        )
    for callback in callbacks:
        if any(base.__name__ in KEEPS_STATE for base in type(callback).__mro__):
            raise ConflictError(
                f"callback {type(callback).__name__}: the method scores some epochs and starts the training again, and this callback's "
                "effects cannot be put back; remove it, or use a method that does not start again, for example forget_online"
            )


# --- the module


def check_module(trainer: AnyTrainer, module: pl.LightningModule, method: Method, sample_outputs: object) -> None:
    """Refuse a module that the method cannot work with.

    Args:
        trainer: the Trainer.
        module: the user's.
        method: the selection method.
        sample_outputs: the function given to the callback, or the module's attribute of that name; ``None`` for none.

    Raises:
        ConflictError: naming the setting, its value and the fix.
    """
    if sample_outputs is not None and not callable(sample_outputs):
        raise ConflictError(
            f"sample_outputs={shown(sample_outputs)} is not callable; it must be a function of a batch that returns a dict, or absent"
        )
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise ConflictError(
            "training_step(dataloader_iter) is not supported: the index of a sample comes from the batch number; use "
            "training_step(batch, batch_idx)"
        )
    if method.family == "backprop":
        _check_for_backprop(trainer, module, method)
    if method.weighs and not module.automatic_optimization:
        raise ConflictError(
            f"automatic_optimization=False: the loss weights of {method.name} enter the loss that training_step returns; use "
            "automatic optimization, or unbiased=False"
        )
    if method.refresh_mode and not module.automatic_optimization and sample_outputs is None:
        raise ConflictError(
            f"automatic_optimization=False: {method.name} scores samples by running training_step, which would "
            "step your optimizers; give the module (or the callback) sample_outputs(batch), which returns "
            "{'sample_loss': ..., 'logits': ..., 'target': ...}"
        )


def _check_for_backprop(trainer: AnyTrainer, module: pl.LightningModule, method: Method) -> None:
    if not module.automatic_optimization:
        raise ConflictError(
            f"automatic_optimization=False: {method.name} decides which batches make a step, so Lightning must make it; use "
            "automatic optimization"
        )
    if trainer.accumulate_grad_batches != 1:
        raise ConflictError(
            f"Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}): {method.name} waits until chosen samples "
            "fill a batch; use accumulate_grad_batches=1 and the batch size you want"
        )
    if any(is_instance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):
        raise ConflictError(
            f"GradientAccumulationScheduler: {method.name} waits until chosen samples fill a batch; remove it, and use the "
            "batch size you want"
        )


def batch_hooks(trainer: AnyTrainer) -> list[str]:
    """Hooks of the module and the data module that change batches on their way to ``training_step``."""
    owners = [owner for owner in (trainer.lightning_module, trainer.datamodule) if owner is not None]
    names = ("on_before_batch_transfer", "on_after_batch_transfer")
    # by name, because Lightning is there under two names
    return [
        f"{type(owner).__name__}.{name}"
        for owner in owners
        for name in names
        if getattr(type(owner), name).__qualname__ != f"DataHooks.{name}"
    ]


def warn_of_batch_hooks(trainer: AnyTrainer, source: str) -> None:
    """Warn that ``sample_outputs``, when it is the ``source`` of values, is given training batches as these hooks made them."""
    hooks = batch_hooks(trainer)
    if hooks and source.startswith("sample_outputs"):
        rank_zero_warn(
            f"sample_outputs(batch) is given each training batch as {', '.join(hooks)} made it. If that mixes samples (mixup, CutMix), the "
            "values are of mixtures: mix in training_step instead, or return sample_loss from training_step. Scoring passes see batches as "
            "validation does"
        )


def has_no_step(module: pl.LightningModule) -> bool:
    """Whether ``training_step`` is Lightning's own, which trains nothing and only warns."""
    # by name, because Lightning is there under two names
    return getattr(module.training_step, "__qualname__", "") == "LightningModule.training_step"


def check_scorer(scorer: object, method: Method) -> None:
    """Raise ``ValueError`` for a ``scorer`` that is no LightningModule, cannot score, optimizes by itself, or whose method scores no
    batches, and for ``train_scorer_every`` without one."""
    every = _settings(method).get("train_scorer_every")
    if scorer is None and every is not None:
        raise ValueError(
            f"train_scorer_every={every} is not allowed without a scorer, a LightningModule that scores batches in the module's place: "
            "add scorer=..., or leave train_scorer_every out"
        )
    if isinstance(scorer, type):
        raise ValueError(f"scorer={scorer.__name__} is a class; it must be an object, for example {scorer.__name__}(...)")
    if scorer is not None and (method.family != "backprop" or not is_instance(scorer, pl.LightningModule)):
        raise ValueError(
            f"scorer={type(scorer).__name__} is not allowed with method {method.name}; it must be a LightningModule, and the "
            "method one of the backprop family, for example 'selective_backprop'"
        )
    if scorer is not None and has_no_step(scorer) and not callable(getattr(scorer, "sample_outputs", None)):
        raise ValueError(
            f"scorer={type(scorer).__name__} has no training_step, which must give the losses that it scores and is trained by; write one, "
            "training_step(self, batch, batch_idx), that returns the loss of the scorer's own outputs, as the module's returns its own"
        )
    if scorer is not None and not scorer.automatic_optimization:
        raise ValueError(
            f"scorer={type(scorer).__name__} has automatic_optimization=False, which is not allowed: its optimizer is stepped here, by the "
            "loss that its training_step returns; use automatic optimization"
        )


def check_wrap(method: Method, max_epochs: int | None) -> None:
    """Raise ``ConflictError`` for a method that needs more than Lightning's public API has."""
    if method.family == "backprop" or method.stream_samples(1, 1) is not None or method.scoring_epochs(max_epochs):
        raise ConflictError(
            f"selection.wrap(...) cannot skip steps, draw while training or start again, which {method.name} needs; leave out "
            "wrap, or use another method, for example kakurenbo"
        )


# --- the method's settings, in a run of this length and on so many samples


def _settings(method: Method) -> dict[str, Any]:
    """Settings that this package declares; what others call ``milestones`` may be anything."""
    ours = (base for base in type(method).__mro__ if is_dataclass(base) and base.__module__.startswith("kakurenbo_lightning."))
    return {field.name: getattr(method, field.name) for base in ours for field in fields(base)}


def most_hidden(method: Method, num_samples: int) -> int:
    """How many samples an epoch may hide at most, as far as ``max_fraction`` says; 0 where there is none."""
    setting = _settings(method)
    largest = as_decimal(setting.get("max_fraction", 0.0)) * max(map(as_decimal, setting.get("fractions", (1,))))
    return int(largest * (num_samples - len(set(setting.get("protected", ())))))


def check_left(method: Method, num_samples: int, sampler: SelectionSampler | Arrivals) -> None:
    """Refuse a ``max_fraction`` that may leave an epoch without a step, before the first one.

    Raises:
        ConflictError: naming it and the fix.
    """
    hidden, step = most_hidden(method, num_samples), sampler.batch_size * sampler.num_replicas
    left, least = num_samples - hidden, step if sampler.drop_last else sampler.num_replicas
    if hidden and left < least <= num_samples:
        why = f"drop_last=True needs batch_size * ranks = {step}" if sampler.drop_last else f"{least} ranks need one each"
        raise ConflictError(
            f"{method.name}: max_fraction={_settings(method)['max_fraction']} may leave {left} of {num_samples} samples to an epoch, and "
            f"{why}; hide less, use drop_last=False or a smaller batch_size"
        )


def idle_settings(method: Method, max_epochs: int | None, num_samples: int, targets: Tensor | None = None) -> list[str]:
    """Settings that can never act, each as ``setting=value (why)``.

    Args:
        method: the selection method.
        max_epochs: length of the training; ``None`` when it has no end.
        num_samples: length of the data set.
        targets: ``int64[N]``, the class of each sample, -1 where it is not known; ``None`` where none is needed.
    """
    setting = _settings(method)
    found = _late_settings(setting, max_epochs) if max_epochs else []
    protected, classes = len(set(setting.get("protected", ()))), setting.get("protected_classes")
    if setting.get("max_fraction") and protected < num_samples and not most_hidden(method, num_samples):
        found.append(f"max_fraction={setting['max_fraction']} (less than one of {num_samples} samples)")
    if 0 < num_samples <= protected:
        found.append(f"protected (all {num_samples} samples; nothing is ever hidden)")
    if classes and targets is not None and bool(torch.isin(targets, torch.tensor(classes, device=targets.device)).all()):
        found.append(f"protected_classes={shown(classes)} (every class there is; nothing is ever hidden)")
    return found


def _late_settings(setting: dict[str, Any], max_epochs: int) -> list[str]:
    """Settings that would act after the last epoch, each as ``setting=value (why)``."""
    last = f"the last epoch is {max_epochs - 1}"
    found = []
    full = int((1 - as_decimal(setting.get("end_fraction", 0.0))) * max_epochs)
    if setting.get("start_epoch", -1) >= full:
        why = last if full == max_epochs else f"from epoch {full} on everything is trained"
        found.append(f"start_epoch={setting['start_epoch']} ({why}; nothing is ever hidden)")
    if late := [epoch for epoch in setting.get("milestones", ()) if isinstance(epoch, int) and epoch >= max_epochs]:
        found.append(f"milestones={shown(late)} ({last})")
    if setting.get("warmup_epochs", -1) >= as_decimal(setting.get("end", 1.0)) * max_epochs:  # end: of sb_fixed's window
        found.append(f"warmup_epochs={setting['warmup_epochs']} ({last}; the whole training is warm-up)")
    return found


def warn_of_idle_settings(method: Method, max_epochs: int | None, num_samples: int, targets: Tensor | None) -> None:
    """One warning that names the settings that can never act in this run."""
    if idle := idle_settings(method, max_epochs, num_samples, targets):
        rank_zero_warn(
            f"{method.name}: settings that can never act in this run: {', '.join(idle)}. Lower them, train for more epochs, or leave "
            "them out"
        )
