"""How long a training would take on a machine that is never busy: in real fits, by a clock that module and data turn."""

import math
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from cuts import SaveAt
from helpers import GROWING, Points, SureNet, hide_then_grow, trainer
from method_tester import short_run
from torch.utils.data import DataLoader

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.core import durations

STEP, LOAD, STALL = 0.1, 0.001, 600.0  # seconds of a step, of a sample that is loaded, and of a machine that stands still


@pytest.fixture
def spend(monkeypatch):
    """``spend(seconds)`` turns the clock."""
    spent = []
    monkeypatch.setattr(durations, "time", SimpleNamespace(perf_counter=lambda: math.fsum(spent)))
    return spent.append


class SlowPoints(Points):
    def __init__(self, spend):
        super().__init__(64)
        self.spend = spend

    def __getitem__(self, index):
        self.spend(LOAD)
        return super().__getitem__(index)


class SlowNet(SureNet):
    """Its steps take `STEP`, forward-only ones a fifth, and the one numbered `stalls` takes `STALL` more."""

    def __init__(self, spend, stalls=None):
        super().__init__()
        self.spend, self.stalls, self.steps = spend, stalls, 0

    def training_step(self, batch, batch_idx):
        training = self.trainer.training
        self.spend(STEP if training else STEP / 5)
        self.steps += training
        if training and self.steps == self.stalls:
            self.spend(STALL)
        return super().training_step(batch, batch_idx)

    def on_validation_start(self):
        self.spend(STALL)


def slow_fit(spend, selection, *callbacks, ckpt_path=None, stalls=None, **settings):
    made = trainer(selection, *callbacks, **settings)
    made.fit(
        SlowNet(spend, stalls), DataLoader(SlowPoints(spend), 8, shuffle=True), DataLoader(Points(8), 8), ckpt_path=ckpt_path
    )
    return selection.totals


def counted(totals):
    """How many steps, waits and samples of scoring passes were timed."""
    state = totals.times.state_dict()
    number = {name: sum(count for _, count in state[name]) for name in ("waits", "passes")}
    return {"steps": sum(count for _, bins in state["steps"] for _, count in bins), **number}


def test_the_seconds_of_a_training_are_those_of_its_steps_and_loading_without_stalls(spend):
    totals = slow_fit(spend, hide_then_grow(), max_epochs=len(GROWING), stalls=11)
    steps = sum(GROWING)
    assert counted(totals) == {"steps": steps, "waits": steps, "passes": totals.samples_refreshed}
    assert totals.step_seconds == pytest.approx(STEP, rel=0.006)
    assert totals.wait_seconds == pytest.approx(totals.samples_trained * LOAD, rel=0.02)
    assert totals.steady_train_seconds == pytest.approx(steps * STEP + totals.wait_seconds, rel=0.006)


def test_the_ideal_is_the_share_not_trained_less_what_forward_passes_cost(spend):
    totals = slow_fit(spend, hide_then_grow(), max_epochs=len(GROWING))
    left_out = totals.samples_hidden / (totals.samples_hidden + totals.samples_trained)
    forward = totals.steady_refresh_seconds / totals.steady_train_seconds
    assert totals.ideal == pytest.approx(1 - (1 - left_out) * (1 + forward))
    assert f"ideal {totals.ideal:.1%})" in totals.summary("hide")
    assert {"ideal", "saved_seconds", "steady_seconds", *asdict(totals)} == set(totals.as_dict())


@pytest.mark.parametrize("hook", ["training_step", "on_train_batch_end"])
def test_a_resumed_training_has_timed_as_many_steps(spend, tmp_path, hook):
    whole = slow_fit(spend, hide_then_grow(), SaveAt(tmp_path / "saved.ckpt", hook, 2, 1), max_epochs=len(GROWING))
    resumed = slow_fit(spend, hide_then_grow(), max_epochs=len(GROWING), ckpt_path=tmp_path / "saved.ckpt")
    assert counted(resumed) == counted(whole)
    assert resumed.steady_train_seconds == pytest.approx(whole.steady_train_seconds, rel=0.006)


def test_batches_that_are_only_scored_are_not_taken_for_steps_that_train(spend):
    selection = SampleSelection(short_run("selective_backprop", 64))
    totals = slow_fit(spend, selection, max_epochs=3)
    kinds = {kind: sum(count for _, count in bins) for kind, bins in totals.times.state_dict()["steps"]}
    assert set(kinds) >= {"scored", "scored trained, update"} and min(kinds.values()) > 0
    assert totals.score_seconds > 0 and totals.ideal < 1


def test_lightnings_rate_finder_is_not_timed(spend):
    from lightning.pytorch.callbacks import LearningRateFinder

    class Finder(LearningRateFinder):
        def on_fit_start(self, trainer, pl_module):
            super().on_fit_start(trainer, pl_module)
            pl_module.rate = 0.1

    finder = Finder(num_training_steps=5, update_attr=False)
    totals = slow_fit(spend, SampleSelection("baseline"), finder, max_epochs=2)
    assert counted(totals)["steps"] == 16
