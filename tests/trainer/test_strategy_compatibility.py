"""docs/strategies.md says which strategy works with which family, and what is refused says the same; stand-ins for FSDP1 and ZeRO."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import Net, loader, trainer
from lightning.pytorch.plugins import DeepSpeedPrecision
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from torch import nn

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.methods import PLB, Baseline, El2n, InfoBatch, Kakurenbo, SelectiveBackprop
from kakurenbo_lightning.trainer.lr_schedule import LearningRateFactor
from kakurenbo_lightning.trainer.strategy_compatibility import check_strategy

PAGE = Path(__file__).parents[2] / "docs" / "strategies.md"
FAMILIES = {"hide": Kakurenbo(), "hide, scored first (`forget`, `el2n`)": El2n(), "backprop": SelectiveBackprop(), "draw": PLB()}


def deepspeed(stage):
    """Without the library, which it asks for when it is made."""
    strategy = DeepSpeedStrategy.__new__(DeepSpeedStrategy)
    strategy.config = {"zero_optimization": {"stage": stage}}
    return strategy


def named(name):
    return type(name, (SingleDeviceStrategy,), {})("cpu")


STRATEGIES = {
    "one device": lambda: SingleDeviceStrategy("cpu"),
    "`DDPStrategy`": DDPStrategy,
    "`ModelParallelStrategy`": lambda: ModelParallelStrategy(1, 1),
    "`FSDPStrategy`": FSDPStrategy,
    "`DeepSpeedStrategy`, ZeRO 1 and 2": lambda: deepspeed(2),
    "`DeepSpeedStrategy`, ZeRO 3": lambda: deepspeed(3),
    "`XLAStrategy`": lambda: named("XLAStrategy"),
    "pipelines": lambda: named("PipelineStrategy"),
}


def table():
    """Rows of the page's first table by strategy, each a dict by head."""
    text = PAGE.read_text()
    lines = text[text.index("|") :].split("\n\n")[0].splitlines()
    heads, _, *rows = [[part.strip() for part in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(heads, row, strict=True)) for row in rows}


def test_the_page_lists_every_strategy_that_is_tried_here():
    assert list(table()) == list(STRATEGIES)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_the_page_says_is_what_is_refused(strategy):
    asked = SimpleNamespace(strategy=STRATEGIES[strategy](), max_epochs=10)
    for family, method in FAMILIES.items():
        said = table()[strategy][family]
        assert said in ("yes", "refused")
        if said == "yes":
            check_strategy(asked, method)
            continue
        with pytest.raises(ConflictError, match=rf"strategy={type(asked.strategy).__name__}\) is not supported with .*; use "):
            check_strategy(asked, method)


@pytest.mark.parametrize("strategy", ["`ModelParallelStrategy`", "`FSDPStrategy`"])
def test_scoring_under_inference_mode_is_refused_where_parameters_are_sharded(strategy):
    asked = SimpleNamespace(strategy=STRATEGIES[strategy](), max_epochs=10)
    with pytest.raises(ConflictError, match=r"inference_mode=True of selective_backprop.*; leave it out"):
        check_strategy(asked, SelectiveBackprop(inference_mode=True))


def test_a_function_outside_of_a_wrapped_module_is_refused():
    asked = SimpleNamespace(strategy=FSDPStrategy(), max_epochs=10)
    with pytest.raises(ConflictError, match=r"sample_outputs=.*make it a method of the module"):
        check_strategy(asked, Kakurenbo(), dict)


# --- strategies of the same surface as FSDP1's and DeepSpeed's, which Lightning does not start on a CPU


class Wrapper(nn.Module):
    """Gives the module its parameters while it is called, as FSDP1 does."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        self.inside = self.calls = 0

    def forward(self, *args, **kwargs):
        self.inside += 1
        self.calls += 1
        try:
            return self.module(*args, **kwargs)
        finally:
            self.inside -= 1


class Engine(Wrapper):
    """Has DeepSpeed's backward pass and step: one of each for every batch, and no other backward pass may touch what it returns."""

    def __init__(self, module, optimizer):
        super().__init__(module)
        self.optimizer, self.steps, self.runs_backward, self.waits = optimizer, 0, False, False

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        for tensor in outputs.values() if isinstance(outputs, dict) else [outputs]:
            if tensor.requires_grad:
                tensor.register_hook(self.reduce)
        return outputs

    def reduce(self, gradient):
        assert self.runs_backward, "DeepSpeed would reduce gradients here"

    def backward(self, loss):
        assert not self.waits
        self.runs_backward, self.waits = True, True
        loss.backward()
        self.runs_backward = False

    def step(self):
        assert self.waits
        self.waits = False
        self.steps += 1
        self.optimizer.step()


class ZeroOptimizer:
    """Is no optimizer of torch, holds one, and lets it step one group of parameters at a time, as ZeRO 1 and 2 do."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)

    def step(self):
        groups = self.optimizer.param_groups
        for group in groups:
            self.optimizer.param_groups = [group]
            self.optimizer.step()
        self.optimizer.param_groups = groups

    def zero_grad(self):
        self.optimizer.zero_grad()


def set_up_fsdp1(self, trainer):
    SingleDeviceStrategy.setup(self, trainer)
    self.model = Wrapper(self.lightning_module)


def set_up_deepspeed(self, trainer):
    """The optimizer is made as by Lightning, and goes into DeepSpeed's."""
    SingleDeviceStrategy.setup(self, trainer)
    (optimizer,) = self.optimizers
    self.optimizers = [ZeroOptimizer(optimizer)]
    self.model = Engine(self.lightning_module, self.optimizers[0])


def stand_in(kind, precision=None, **content):
    """Takes the name of the strategy ``kind``, by which it is known, but for ``content`` a strategy of one device."""
    content |= {"__module__": kind.__module__}
    return type(kind.__name__, (SingleDeviceStrategy,), content)("cpu", precision_plugin=precision)


def fsdp1():
    return stand_in(FSDPStrategy, setup=set_up_fsdp1)


def zero(stage):
    """With Lightning's own precision for DeepSpeed, which runs the engine's backward pass and step."""
    config = {"zero_optimization": {"stage": stage}}
    content = {"setup": set_up_deepspeed, "config": config, "handles_gradient_accumulation": True}
    return stand_in(DeepSpeedStrategy, DeepSpeedPrecision("32-true"), **content)


class Inside(Net):
    """Fails where it is run outside of the strategy's wrapper."""

    def __init__(self):
        super().__init__()
        self.network.register_forward_pre_hook(lambda *_: self.check())
        self.trained = []

    def check(self):
        if isinstance(self.trainer.strategy.model, Wrapper):
            assert self.trainer.strategy.model.inside == 1

    def training_step(self, batch, batch_idx):
        if self.training:
            self.trained.append(batch[2].tolist())
        return super().training_step(batch, batch_idx)


class Told(Inside):
    """Has its values from a method of its own."""

    def sample_outputs(self, batch):
        logits = self.network(batch[0])
        return {
            "sample_loss": nn.functional.cross_entropy(logits, batch[1], reduction="none"),
            "logits": logits,
            "target": batch[1],
        }


def course(module, method, **settings):
    made = trainer(SampleSelection(method, seed=0), max_epochs=3, **settings)
    torch.manual_seed(0)
    made.fit(module, loader())
    return made


@pytest.mark.parametrize("module", [Inside, Told])
@pytest.mark.parametrize("method", [Kakurenbo(tau=0.0, max_fraction=0.5), SelectiveBackprop(), PLB()])
def test_scoring_passes_and_the_first_batch_go_through_the_wrapper(method, module):
    plain, wrapped = module(), module()
    course(plain, method, accelerator="cpu")
    made = course(wrapped, method, strategy=fsdp1())
    assert wrapped.trained == plain.trained and made.strategy.model.calls > len(plain.trained)
    assert all(map(torch.equal, plain.state_dict().values(), wrapped.state_dict().values()))


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(
    ("method", "module"),
    [
        (Kakurenbo(tau=0.0, max_fraction=0.5), Inside),
        (InfoBatch(end_fraction=0.0), Inside),
        (PLB(), Inside),
        (Kakurenbo(tau=0.0, max_fraction=0.5), Told),
        (PLB(), Told),
    ],
)
def test_zero_1_and_2_hide_and_draw_what_one_device_does(method, module, stage):
    """Every batch has one backward pass and one step of the engine; the first batch is verified, and the rate scaled, beside these."""
    plain, wrapped = module(), module()
    course(plain, method, accelerator="cpu")
    made = course(wrapped, method, strategy=zero(stage))
    engine = made.strategy.model
    assert wrapped.trained == plain.trained
    assert engine.steps == made.global_step == len(plain.trained) < engine.calls
    assert all(map(torch.equal, plain.state_dict().values(), wrapped.state_dict().values()))


def test_the_rate_is_scaled_in_an_optimizer_that_a_wrapper_holds():
    """DeepSpeed's, which is no optimizer of torch, steps one that is."""
    parameter = nn.Parameter(torch.zeros(1))
    held = torch.optim.SGD([parameter], lr=0.5)
    outer = SimpleNamespace(optimizer=held, param_groups=held.param_groups)
    factor = LearningRateFactor()
    factor.attach([outer])
    factor.value = 2.0
    parameter.grad = torch.ones(1)
    held.step()
    assert float(parameter.detach()) == -1.0 and held.param_groups[0]["lr"] == 0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", [Baseline(), Kakurenbo(tau=0.0, max_fraction=0.5), SelectiveBackprop(), PLB()])
def test_fsdp1_trains_what_one_device_does_on_a_gpu(method):
    plain, wrapped = Inside(), Inside()
    course(plain, method, accelerator="gpu", devices=1)
    course(wrapped, method, accelerator="gpu", devices=1, strategy=FSDPStrategy())
    assert wrapped.trained == plain.trained
