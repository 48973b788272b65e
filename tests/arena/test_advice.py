"""`advise`: what a method costs, played without a network, and what it says of a real training."""

import math
import random

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import Net, SureNet, fit, loader
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.nn.parameter import is_lazy
from torch.optim.lr_scheduler import ReduceLROnPlateau

from kakurenbo_lightning import SampleSelection, advise, available_methods, get_method
from kakurenbo_lightning.arena.advice import Advice
from kakurenbo_lightning.methods.course import StepCost, Work, learned, play
from kakurenbo_lightning.methods.registry import method_class
from kakurenbo_lightning.session.profiling import Profile, spread

EPOCHS, SAMPLES, BATCH = 12, 400, 40
COST = StepCost(data=0.1, forward=0.3, scored=0.35)


def work(name, **settings):
    return play(get_method(name, **settings), EPOCHS, learned(SAMPLES), BATCH)


# --- what a method does, by hand


def test_random_leaves_out_its_share_of_every_epoch():
    assert work("random", max_fraction=0.3).saving(COST) == pytest.approx(0.3)


def test_hidden_samples_cost_their_scoring_pass():
    found = work("kakurenbo", max_fraction=0.5, tau=0.0, fractions=(1.0,), milestones=())
    assert found.trained == (1.0, *[0.5] * (EPOCHS - 1)) and found.refreshed == (0.0, 0.0, *[0.5] * (EPOCHS - 2))
    assert found.saving(COST) == pytest.approx((0.5 * (EPOCHS - 1) - 0.35 * 0.5 * (EPOCHS - 2)) / EPOCHS)


def test_scored_batches_cost_a_forward_pass_and_what_is_rejected_its_wait():
    found = work("selective_backprop", beta=2)
    share = np.mean(found.trained[1:])
    assert share == pytest.approx(1 / 3, abs=0.03) and found.rated == (0.0, *[1.0] * (EPOCHS - 1))
    spent = 1 + (EPOCHS - 1) * (share + 0.3 + 0.1 * (1 - share))
    assert found.saving(COST) == pytest.approx(1 - spent / EPOCHS)


def test_stale_epochs_say_nothing_of_what_scored_ones_train():
    """They train samples of high losses, among which those of all would be low; a real training does not learn from them either."""
    found = work("stale_sb", beta=2, staleness=4)
    scored = [share for share, rated in zip(found.trained, found.rated, strict=True) if rated]
    assert len(scored) == 2 and np.mean(scored) == pytest.approx(1 / 3, abs=0.03)


def test_scoring_epochs_come_on_top():
    found = work("forget", max_fraction=0.5, static_epochs=3, never_learned="first")
    assert (found.extra, len(found.trained)) == (3, EPOCHS + 3)
    assert found.saving(COST) == pytest.approx(0.5 - 3 / EPOCHS)


def test_a_stream_trains_as_many_as_it_draws():
    assert work("lb").saving(COST) <= 0.0
    assert work("plb", epoch_length=5).saving(COST) == pytest.approx(0.5, abs=0.04)  # less a pass that scores everything first


def test_a_work_of_nothing_left_out_costs_what_it_scores():
    assert Work((1.0, 1.0), (1.0, 0.0), (0.0, 0.5)).saving(COST) == pytest.approx(-(0.3 + 0.35 * 0.5) / 2)


PLAYED = {
    "kakurenbo": {"max_fraction": 0.5, "tau": 0.0, "fractions": (1.0,), "milestones": ()},
    "infobatch": {"end_fraction": 0.9},
    "selective_backprop": {"beta": 2},
    "stale_sb": {"beta": 2},
    "plb": {"epoch_length": 5},
    "iswr": {},
}


class Still(SureNet):
    """Never learns, so that samples stay as they are; their losses grow evenly with the index."""

    def training_step(self, batch, batch_idx):
        outputs = super().training_step(batch, batch_idx)
        loss = (batch[2] + 1) / SAMPLES + 0 * outputs["sample_loss"]
        return outputs | {"sample_loss": loss, "loss": loss.mean()}


@pytest.mark.parametrize("name", PLAYED)
def test_a_real_training_does_what_was_played(name):
    selection = SampleSelection(name, seed=1, **PLAYED[name])
    fit(Still(), loader(SAMPLES, BATCH), selection, max_epochs=6)
    values = {**learned(SAMPLES), "loss": (torch.arange(SAMPLES) + 1) / SAMPLES}
    found, totals = play(get_method(name, **PLAYED[name]), 6, values, BATCH), selection.totals
    assert totals.samples_trained / SAMPLES == pytest.approx(sum(found.trained), abs=0.15)
    assert totals.samples_scored / SAMPLES == pytest.approx(sum(found.rated), abs=0.01)
    assert totals.samples_refreshed / SAMPLES == pytest.approx(sum(found.refreshed), abs=0.1)


# --- of a module and its data


def quiet(max_epochs=10, **settings):
    return pl.Trainer(max_epochs=max_epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, **settings)


def test_every_method_has_an_offer_and_nothing_is_left_of_the_profile():
    module, data = Net(), loader(128, 8)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    streams = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    found = advise(quiet(), module, data, steps=12, sample=50, world_size=4)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(streams[0], torch.get_rng_state()) and streams[1] == random.getstate()
    assert np.array_equal(streams[2], np.random.get_state()[1])
    assert isinstance(found, Advice) and sum(found.profile.seconds.values()) > 0 and found.profile.num_samples == 128
    offers = {offer.method: offer for offer in found.offers}
    assert offers["random max_fraction=0.3"].now == pytest.approx(0.3, abs=0.02)
    assert offers["random max_fraction=0.3"].most == pytest.approx(0.3, abs=0.02)
    assert offers["kakurenbo max_fraction=0.5"].most > 0 and offers["kakurenbo max_fraction=0.5"].traffic > 0
    for name in available_methods():
        for preset in method_class(name).presets:
            assert offers[f"{name} preset={preset}"].most > 0
    assert offers["kakurenbo preset=fast"].most > offers["kakurenbo max_fraction=0.5"].most
    assert "as long as before" in offers["plb"].why and math.isnan(offers["weighted"].most)
    text = str(found)
    assert "128 samples, 10 epochs on 4 ranks" in text and "random_cycle" in text
    assert "10 steps of 8 samples (the first 2 are not measured), " in text
    assert "a scoring pass (eval mode, without gradients, with its wait for data) takes" in text
    ies = offers["ies"]  # frozen losses are settled ones, which no training has
    assert math.isnan(ies.now) and ies.most > 0 and "not known beforehand" in ies.why
    usable = [offer.method for offer in found.offers if not math.isnan(offer.most)]
    assert usable[-1] == "ies"


def test_steps_that_are_fewer_than_asked_for_are_explained():
    said = Profile({"data": 1.0}, 16, 50, 0.0, {}, 1000, asked=50, left_out=4).steps_said
    assert said == "16 steps of 50 samples (an epoch has 20 of the 50 steps asked for, and the first 4 are not measured)"
    assert Profile({"data": 1.0}, 16, 50, 0.0, {}, 1000).steps_said == "16 steps of 50 samples"


class Regression(Net):
    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.network(batch[0])[:, 0], batch[1].float())


def test_a_method_that_needs_more_than_there_is_is_said_so():
    found = advise(quiet(), Regression(), loader(64, 8), steps=6, sample=1)
    offers = {offer.method: offer for offer in found.offers}
    assert len(found.profile.values["loss"]) == 1
    assert math.isnan(offers["kakurenbo max_fraction=0.3"].most) and "confidence" in offers["kakurenbo max_fraction=0.3"].why
    assert offers["infobatch prune_ratio=0.5"].most > 0


class Demanding(Net):
    """Needs at the end of an epoch what a validation logs, writes to its logger, has callbacks, hooks and a lazy layer."""

    def __init__(self, folder):
        super().__init__(schedule=lambda optimizer, _: {"scheduler": ReduceLROnPlateau(optimizer), "monitor": "val_loss"})
        self.network = torch.nn.Sequential(torch.nn.LazyLinear(8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        self._folder = folder

    def setup(self, stage):
        self.register_forward_hook(lambda *_: None)

    def configure_callbacks(self):
        return [EarlyStopping("val_loss"), ModelCheckpoint(self._folder, every_n_train_steps=1), SampleSelection("kakurenbo")]

    def training_step(self, batch, batch_idx):
        self.logger.experiment.add_scalar("step", batch_idx)
        return super().training_step(batch, batch_idx)

    def on_train_epoch_end(self):
        self.log("again", self.trainer.callback_metrics["val_loss"])


class Data(pl.LightningDataModule):
    def setup(self, stage):
        self.stages = [*getattr(self, "stages", []), stage]

    def train_dataloader(self):
        return loader(61, 8)


def test_a_demanding_module_is_profiled_without_a_trace(tmp_path):
    module, data = Demanding(tmp_path), Data()
    before, known = {name: set(vars(part)) for name, part in module.named_modules()}, set(vars(data))
    found = advise(quiet(), module, data, steps=9, sample=20)
    assert found.profile.values and found.profile.num_samples == 61 and found.profile.steps == 7, "no more than an epoch has"
    assert isinstance(module.network[0], torch.nn.LazyLinear) and is_lazy(module.network[0].weight)
    assert {name: set(vars(part)) for name, part in module.named_modules()} == before and set(vars(data)) == known
    assert not module._forward_hooks and module.network[0]._forward_pre_hooks and not list(tmp_path.iterdir())
    assert module.network(torch.ones(2, 6)).shape == (2, 3) and data.trainer is None


class Diverged(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) / 0


class Manual(Net):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.optimizers().zero_grad()
        self.manual_backward(loss)
        self.optimizers().step()
        return loss


@pytest.mark.parametrize("made", [Diverged, Manual])
def test_what_no_pass_can_measure_is_not_made_up(made):
    found = advise(quiet(), made(), loader(64, 8), steps=6, sample=20)
    offers = {offer.method: offer for offer in found.offers}
    assert not found.profile.values and "no finite loss" in str(found)
    assert math.isnan(offers["seta"].now) and offers["seta"].most > 0 and not offers["seta"].why
    assert offers["random max_fraction=0.3"].now == pytest.approx(0.3, abs=0.02)


def test_samples_are_spread_evenly_over_large_data_sets():
    large = spread(2**25, 4)
    assert large.tolist() == [0, 2**23, 2**24, 3 * 2**23] and spread(5, 9).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("settings", "words", "said"),
    [
        ({}, {"steps": 0}, "advise: steps=0 is not allowed; it must be an int >= 1"),
        ({}, {"sample": 2.5}, "advise: sample=2.5 is not allowed; it must be an int >= 1"),
        ({}, {"world_size": 0}, "advise: world_size=0 is not allowed; it must be an int >= 1"),
        ({"max_steps": 30}, {}, r"advise: Trainer\(max_steps=30\): hidden samples shorten whole epochs"),
        ({"limit_train_batches": 4}, {}, r"advise: Trainer\(limit_train_batches=4\): hidden samples shorten whole epochs"),
    ],
)
def test_what_cannot_be_forecast_is_refused_first(settings, words, said):
    with pytest.raises(ValueError, match=said):
        advise(quiet(**settings), None, None, **words)


def test_a_training_without_an_end_is_refused():
    with pytest.raises(ValueError, match=r"advise: Trainer\(max_epochs=-1\) has no end in epochs; set max_epochs"):
        advise(quiet(-1, max_steps=10), Net(), loader())


def test_a_cost_is_a_share_of_the_step():
    profile = Profile({"data": 1.0, "forward": 2.0, "backward": 4.0, "update": 1.0}, 10, 8, 0.25, {}, 100)
    assert profile.cost == StepCost(1 / 8, 2 / 8, 0.25 * 8 / 8)
