"""docs/strategies.md says which strategy works with which family, and what is refused says the same."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import Net, loader, trainer
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
from kakurenbo_lightning.methods import PLB, Baseline, El2n, Kakurenbo, SelectiveBackprop
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


# --- a strategy of the same surface as FSDP1's, which cannot run on a CPU


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


def wrapped_setup(self, trainer):
    SingleDeviceStrategy.setup(self, trainer)
    self.model = Wrapper(self.lightning_module)


def stand_in():
    """Takes FSDP1's name, by which it is known."""
    content = {"__module__": FSDPStrategy.__module__, "setup": wrapped_setup}
    return type("FSDPStrategy", (SingleDeviceStrategy,), content)("cpu")


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
    made = course(wrapped, method, strategy=stand_in())
    assert wrapped.trained == plain.trained and made.strategy.model.calls > len(plain.trained)
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
