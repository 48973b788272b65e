"""Values within DistributedDataParallel, whose wrapper puts a node of its own around the loss, and within torch.compile."""

import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from losses import BATCH, LOSSES, Heads, NoScoring, cross_entropy, gradient

from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals.outputs import SampleOutputs

WRAPPED = """
import os, sys
from functools import partial
import torch
import torch.distributed as dist
from losses import BATCH, LOSSES, Heads, NoScoring, gradient
from kakurenbo_lightning.signals.outputs import SampleOutputs

dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)


class Step(Heads):
    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, batch):
        return {"loss": self.loss.step(self, batch), "other": batch["y"].sum()}


for settings in ({}, {"find_unused_parameters": True}, {"static_graph": True}):
    for name in ("cross entropy", "scaled", "times a weight", "focal", "masked mean", "distillation"):
        loss, heads = LOSSES[name], Step(LOSSES[name])
        loss.step(heads, heads.batch(0)).backward()
        for parameter in heads.parameters():
            parameter.requires_grad_(parameter.grad is not None)
        wrapped = torch.nn.parallel.DistributedDataParallel(heads, **settings)
        source = SampleOutputs(("loss",), weighs=True)
        for number in range(4):
            batch = heads.batch(number * BATCH)
            weights = torch.linspace(0.5, 2, BATCH) if number % 2 else None
            replay = None if number else heads
            heads.zero_grad()
            outputs, values = source.observe(partial(wrapped, batch), batch, BATCH, NoScoring, weights, replay)
            outputs["loss"].backward()
            assert (values["loss"] - loss.of_each(heads, batch)).abs().max() <= 1e-5, (settings, name)
            plain = loss.step(heads, batch) if weights is None else loss.with_weights(heads, batch, weights)
            expected = gradient(plain, heads)
            made = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten()
                              for p in heads.parameters() if p.requires_grad])
            assert (made - expected).norm() <= 1e-4 * expected.norm(), (settings, name)
        assert source.report.attribution == "verified", source.report
    source = SampleOutputs(("loss",))
    source.observe(partial(wrapped, batch), batch, BATCH, NoScoring)[0]["loss"].backward()
    assert "cannot be given another batch" in source.report.attribution, "the wrapper must not run on its own"
print("as without a wrapper")
dist.destroy_process_group()  # a thread of gloo that is left at the exit may abort it
"""


def test_values_and_weights_within_ddp_are_those_without(tmp_path):
    script = tmp_path / "wrapped.py"
    script.write_text(WRAPPED)
    done = subprocess.run(
        [sys.executable, script, tmp_path / "store"], capture_output=True, text=True, timeout=240, env=environment()
    )
    assert "as without a wrapper" in done.stdout, done.stderr[-3000:]


def environment():
    import os

    return {**os.environ, "PYTHONPATH": ":".join(path for path in sys.path if path)}


# --- torch.compile; aot_eager makes the graphs that inductor would, without a compiler


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def run(step, heads, weights=None, **options):
    source = SampleOutputs(("loss", "confidence"), **options)
    for number in range(3):
        batch = heads.batch(number * BATCH)
        outputs, values = source.observe(partial(step, batch), batch, BATCH, NoScoring, weights if number else None)
    return source, batch, outputs, values


@pytest.mark.parametrize("name", ["cross entropy", "focal", "times a weight"])
def test_a_compiled_network_is_verified_and_not_broken(name, heads):
    weights = torch.linspace(0.5, 2, BATCH)
    plain = Heads()
    heads.classes.compile(backend="aot_eager", fullgraph=True)
    source, batch, outputs, values = run(partial(LOSSES[name].step, heads), heads, weights, weighs=True)
    assert torch.allclose(values["loss"], LOSSES[name].of_each(plain, batch), atol=1e-5)
    expected = gradient(LOSSES[name].with_weights(plain, batch, weights), plain)
    assert (gradient(outputs, heads) - expected).norm() <= 1e-4 * expected.norm()
    assert source.report.attribution == "verified" and source.report.complete


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_criterion_within_a_compiled_step_is_the_loss_or_not_verified(backend, heads):
    weights = torch.linspace(0.5, 2, BATCH)
    step = torch.compile(partial(cross_entropy, heads), backend=backend)
    source, batch, outputs, values = run(step, heads, weights, weighs=True)
    each = F.cross_entropy(heads.classes(batch["x"]), batch["y"], reduction="none")
    assert torch.allclose(values["loss"], each, atol=1e-5)
    expected = gradient((weights * each).mean(), heads)
    assert (gradient(outputs, heads) - expected).norm() <= 1e-4 * expected.norm()
    assert source.report.complete and source.report.attribution == "verified"


def test_a_tail_within_a_compiled_step_cannot_be_seen_and_takes_no_weights(heads):
    step = torch.compile(partial(LOSSES["scaled"].step, heads), backend="aot_eager")
    with pytest.warns(
        UserWarning, match=r"verified that the loss is made of F.cross_entropy alone, because torch.compile made it"
    ):
        source, batch, _, values = run(step, heads)
    assert torch.allclose(values["loss"], F.cross_entropy(heads.classes(batch["x"]), batch["y"], reduction="none"), atol=1e-5)
    assert (source.report.share, source.report.complete, source.report.weights) == (None, None, "not verified")
    torch._dynamo.reset()
    step = torch.compile(partial(LOSSES["scaled"].step, heads), backend="aot_eager")
    with pytest.raises(OutputsError, match=r"loss weights: it cannot be verified that the loss is made of F.cross_entropy alone"):
        run(step, heads, weighs=True)
