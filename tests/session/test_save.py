"""``save=0.3``: what is chosen from the measured forward pass, what comes of it, and that a resumed run goes on with it."""

import logging
import re
import time

import pytest
import torch
from cuts import SaveAt
from helpers import Net, Spy, SureNet, fit, loader

from kakurenbo_lightning import SampleSelection, Saving
from kakurenbo_lightning.core.durations import STATED_FORWARD
from kakurenbo_lightning.methods import Kakurenbo

SAMPLES, BATCH = 200, 40
EASY = {"tau": 0.0, "fractions": (1.0,), "milestones": ()}  # with SureNet exactly F is hidden, in each epoch but the first


class HardNet(SureNet):
    """Calls the first ``sure`` samples right, and the others wrong until ``learned``, an epoch."""

    def __init__(self, sure, learned=1000):
        super().__init__()
        self.sure, self.learned = sure, learned

    def training_step(self, batch, batch_idx):
        outputs = super().training_step(batch, batch_idx)
        return outputs | {"correct": (batch[2] < self.sure) | (self.current_epoch >= self.learned)}


def run(save, module=None, *callbacks, method="kakurenbo", max_epochs=10, settings=None, **more):
    """The spy, the selection and the Trainer of a training that is to save."""
    selection = SampleSelection(method, seed=3, save=save, **(EASY if settings is None else settings))
    spy, module = Spy(selection), module or SureNet()
    made = fit(module, loader(SAMPLES, BATCH), selection, spy, *callbacks, max_epochs=max_epochs, **more)
    return spy, selection, made


def shares(spy):
    return [len(hidden) / SAMPLES for _, hidden in sorted(spy.hidden.items())]


def chosen(selection):
    return selection.session.control.state_dict()["saving"]


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "lightning.pytorch")  # another test may have made it quiet
    return lambda: [record.message for record in caplog.records if "save=" in record.message]


# --- what is chosen


def test_it_hides_and_refreshes_so_that_the_saving_is_what_was_asked_for(said):
    spy, selection, _ = run(Saving(0.2, forward=0.4))
    # (9 F - 0.4 * 8 F) / 10 = 0.2
    expected = {"forward": 0.4, "share": 0.345, "every": 1, "rate": 1.0, "before": 1.0, "might": 0.345, "allowed": 9 * 0.345}
    assert chosen(selection) == pytest.approx(expected, abs=0.01)
    assert shares(spy) == [0.0] + [0.345] * 9
    assert selection.totals.samples_refreshed == 8 * 69
    first, last = said()
    assert "the forward pass is 40% of a step; kakurenbo goes on with max_fraction=0.345, every_n_epochs=1" in first
    assert last.endswith("; save=0.2: 20.0% of the training time by its count of samples and forward passes")


def test_a_choice_is_kept_longer_where_refreshes_cost_too_much():
    spy, selection, _ = run(Saving(0.3, forward=0.6))
    assert (chosen(selection)["every"], len(set(map(tuple, spy.hidden.values())))) == (2, 6)
    hidden, refreshed = selection.totals.samples_hidden / SAMPLES, selection.totals.samples_refreshed / SAMPLES
    assert (hidden - 0.6 * refreshed) / 10 == pytest.approx(0.3, abs=0.01)


def test_where_it_cannot_be_reached_it_says_how_much_can_and_goes_on_with_that():
    with pytest.warns(
        UserWarning, match=r"save=0.3 cannot be reached: at most 27.0% here, because the forward pass is 45% of a step"
    ):
        spy, selection, _ = run(Saving(0.3, forward=0.45, max_share=0.5, max_interval=1))
    assert shares(spy) == [0.0] + [0.5] * 9 and chosen(selection)["share"] == 0.5


def test_the_epochs_that_a_user_keeps_a_choice_for_stay_his():
    _, selection, _ = run(Saving(0.2, forward=0.4), settings={**EASY, "every_n_epochs": 3})
    assert chosen(selection)["every"] == 3
    with pytest.warns(UserWarning, match="cannot be reached"):
        _, selection, _ = run(Saving(0.3, forward=0.6), settings={**EASY, "every_n_epochs": 1})  # the default, but given
    assert chosen(selection)["every"] == 1


def test_an_interval_that_a_config_names_is_the_default():
    config = {"save": Saving(0.3, forward=0.6), "max_fraction": None, "every_n_epochs": 1}
    assert SampleSelection("kakurenbo", **config)._settings.save.max_interval == 5


def test_methods_that_hide_from_the_first_epoch_on_train_everything_in_it():
    spy, selection, _ = run(Saving(0.2, forward=0.4), method="random", settings={})
    assert shares(spy) == [0.0] + [0.22] * 9 and chosen(selection)["share"] == 0.223


def test_through_wrap_it_trains_everything_first_too():
    selection = SampleSelection("random", save=Saving(0.2, forward=0.4))

    class Wrapping(SureNet):
        def train_dataloader(self):
            return selection.wrap(loader(SAMPLES, BATCH))

    spy = Spy(selection)
    made = fit(Wrapping(), None, selection, spy, max_epochs=10)
    assert len(spy.trained(0)) == SAMPLES and shares(spy)[1:] == [0.22] * 9
    assert made.current_epoch == 10


def test_a_static_method_pays_for_its_scoring_epochs_too():
    spy, selection, _ = run(Saving(0.2, forward=0.4), method="forget", settings={"static_epochs": 2, "never_learned": "first"})
    assert shares(spy) == [0.0, 0.0] + [0.4] * 10 and chosen(selection)["share"] == 0.4


def test_what_a_static_method_removed_is_not_corrected(said):
    settings = {"static_epochs": 1, "never_learned": "first", "protected": range(SAMPLES // 2)}
    spy, selection, _ = run(Saving(0.1, forward=0.4), method="forget", settings=settings)
    share = chosen(selection)["share"]
    assert shares(spy)[1:] == [pytest.approx(share / 2, abs=0.01)] * 10
    assert not any("from now on" in line for line in said()) and any("less than asked" in line for line in said())


def test_a_scoring_pass_after_the_first_epoch_alone_is_made_too():
    settings = {"score_epochs": (0, 1), "score_pass": True}
    _, selection, _ = run(Saving(0.1, forward=0.4), Net(), method="el2n", settings=settings)
    assert selection.totals.samples_refreshed == SAMPLES


def test_an_object_as_method_and_a_share_that_only_a_config_names():
    assert SampleSelection(Kakurenbo(tau=0.5), save=0.2).method == Kakurenbo(tau=0.5)
    assert SampleSelection("kakurenbo", save=0.2, max_fraction=None, tau=0.5).method == Kakurenbo(tau=0.5)


# --- samples that do not allow it


def test_it_is_corrected_by_what_the_samples_allowed(said):
    spy, selection, _ = run(Saving(0.2, forward=0.4), HardNet(sure=SAMPLES, learned=0), settings=EASY)
    assert len(said()) == 2  # nothing to correct
    spy, selection, _ = run(Saving(0.12, forward=0.3, max_share=0.9), HardNet(sure=SAMPLES // 2), max_epochs=30)
    corrections = [line for line in said() if "from now on" in line]
    assert corrections and len(corrections) <= 2 and "in 10 of 30 epochs, and the last choice hid" in corrections[0]
    hidden, refreshed = selection.totals.samples_hidden / SAMPLES, selection.totals.samples_refreshed / SAMPLES
    assert (hidden - 0.3 * refreshed) / 30 == pytest.approx(0.12, abs=0.012)
    assert 0 < max(shares(spy)) <= 0.5


def test_a_target_that_is_missed_is_said(said):
    run(Saving(0.2, forward=0.4), HardNet(sure=20))
    assert [line for line in said() if line.endswith("; max_share=0.5 allows no more")]
    assert re.search(
        r"save=0.2: \d.\d% of the .*, less than asked: the samples allowed no more: \d+% of what max_fraction might hide was hidden, "
        r"and the rest was moved back \(wrong, or less sure than tau\)$",
        said()[-1],
    )
    run(Saving(0.2, forward=0.4), HardNet(sure=0))
    assert re.search(
        r"save=0.2: 0.0% of the .*, less than asked: the samples allowed no more: 0% of what max_fraction", said()[-1]
    )


def test_a_choice_that_hides_little_is_not_kept_and_the_forecast_goes_by_what_is_hidden(said):
    """Samples that are right from epoch 2 on: the choices of epochs 1 and 2 hide nothing, and the interval is longer than one epoch."""
    spy, _, _ = run(Saving(0.3, forward=0.6, max_share=0.7), HardNet(sure=0, learned=2), max_epochs=12)
    assert [share > 0 for share in shares(spy)] == [False] * 3 + [True] * 9
    first, *corrections, last = said()
    assert "every_n_epochs=1" not in first and "a choice that hides little is made again in the next epoch" in first
    found = re.search(r"saves about (\d+\.\d)%", corrections[-1]), re.search(r"save=0.3: (\d+\.\d)%", last)
    forecast, ended = (float(each[1]) for each in found)
    assert forecast == pytest.approx(ended, abs=1.0) and ended == pytest.approx(30, abs=1.5)


def test_the_interval_is_corrected_too():
    """Half of the samples are right: what was to be reached with choices of one epoch needs fewer refreshes."""
    _, selection, _ = run(Saving(0.2, forward=0.4), HardNet(sure=SAMPLES // 2))
    assert chosen(selection)["every"] > 1


def test_a_limit_that_is_too_low_is_named_as_the_cause(said):
    with pytest.warns(UserWarning, match="cannot be reached"):
        run(Saving(0.3, forward=0.45, max_interval=1))
    assert said()[-1].endswith("less than asked: max_share=0.5 allows no more")


# --- what is measured


def test_the_forward_pass_is_measured_in_the_first_epoch_alone(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class Timed(SureNet):
        """Its forward pass takes 1 s, the rest of a step 3 s."""

        def training_step(self, batch, batch_idx):
            now[0] += 1.0 if self.current_epoch == 0 else 100.0
            return super().training_step(batch, batch_idx)

        def on_before_backward(self, loss):
            now[0] += 3.0

    _, selection, _ = run(0.2, Timed())
    assert chosen(selection)["forward"] == pytest.approx(0.25, abs=0.005)
    assert sum(count for _, count in selection.totals.times.state_dict()["forwards"]) == SAMPLES // BATCH


def test_measuring_changes_nothing_else():
    """A training that saves is the one with the settings it chose, to the bit: order, random numbers, weights."""
    _, selection, made = run(0.1, method="random", settings={})
    share = chosen(selection)["share"]
    assert 0 < share < 0.5 and selection.totals.times.forward_share is not None
    again = SampleSelection("random", seed=3, max_fraction=share, start_epoch=1)
    other = fit(SureNet(), loader(SAMPLES, BATCH), again, Spy(again), max_epochs=10)
    for one, two in zip(made.model.state_dict().values(), other.model.state_dict().values(), strict=True):
        assert torch.equal(one, two)


# --- a run that is cut


@pytest.mark.parametrize(
    ("hook", "epoch"),
    [
        ("on_train_batch_end", 0),
        pytest.param("on_train_epoch_end", 0, marks=pytest.mark.slow),
        ("on_train_batch_end", 4),
        pytest.param("on_train_epoch_end", 5, marks=pytest.mark.slow),
        ("on_train_batch_end", 9),  # of the last epoch; nothing is planned after it
        pytest.param("on_train_epoch_end", 9, marks=pytest.mark.slow),
    ],
)
def test_a_run_cut_anywhere_goes_on_with_what_was_chosen(tmp_path, caplog, hook, epoch):
    caplog.set_level(logging.INFO, "lightning.pytorch")
    path = tmp_path / "cut.ckpt"
    save = Saving(0.15, forward=0.3)
    module = HardNet(sure=60, learned=7)
    spy, selection, made = run(save, module, SaveAt(path, hook, epoch, 1))
    resumed = HardNet(sure=60, learned=7)
    came_to = caplog.records[-1].message.partition("; save=")[2]
    spy_again, again, made_again = run(save, resumed, ckpt_path=path)
    assert caplog.records[-1].message.partition("; save=")[2] == came_to and "by its count of samples" in came_to
    for one, two in zip(module.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    assert chosen(again) == chosen(selection) and chosen(selection)["share"] != 0.258  # corrected
    assert {epoch: spy.hidden[epoch] for epoch in spy_again.hidden} == spy_again.hidden
    assert made.global_step == made_again.global_step


def test_a_run_cut_while_choices_rise_makes_the_next_one_too(tmp_path):
    path, save = tmp_path / "cut.ckpt", Saving(0.3, forward=0.6, max_share=0.7)
    spy, selection, _ = run(save, HardNet(sure=0, learned=2), SaveAt(path, "on_train_batch_end", 2, 3))
    spy_again, again, _ = run(save, HardNet(sure=0, learned=2), ckpt_path=path)
    assert chosen(again) == chosen(selection)
    assert {epoch: spy.hidden[epoch] for epoch in spy_again.hidden} == spy_again.hidden


def test_a_resumed_run_does_not_measure_again(tmp_path):
    path = tmp_path / "cut.ckpt"
    _, selection, _ = run(0.1, None, SaveAt(path, "on_train_epoch_end", 3))
    _, again, _ = run(0.1, ckpt_path=path)
    assert chosen(again) == chosen(selection)
    assert again.totals.times.state_dict()["forwards"] == selection.totals.times.state_dict()["forwards"]


@pytest.mark.parametrize("hook", ["on_validation_end", "on_train_epoch_end", "on_train_batch_end"])
def test_after_epochs_without_a_selection_one_is_measured_and_the_others_make_up_for_them(tmp_path, said, hook):
    save = SaveAt(tmp_path / "cut.ckpt", hook, 2, 1)
    fit(SureNet(), loader(SAMPLES, BATCH), save, val=loader(), max_epochs=10, enable_checkpointing=False)
    selection = SampleSelection("kakurenbo", seed=3, save=Saving(0.2, max_share=0.9), on_mismatch="reset", **EASY)
    spy = Spy(selection)
    fit(SureNet(), loader(SAMPLES, BATCH), selection, spy, val=loader(), max_epochs=10, ckpt_path=save.path)
    first = next(epoch for epoch, hidden in sorted(spy.hidden.items()) if hidden)
    assert first == (3 if hook == "on_train_batch_end" else 4)
    found = chosen(selection)
    left = 10 - first  # epochs that hide, all but the first of which score what the one before hid
    assert found["forward"] != STATED_FORWARD
    if found["every"] == 1 and found["share"] < 0.5:
        assert left * found["share"] - (left - 1) * found["forward"] * found["share"] == pytest.approx(2, abs=0.02)
    saved = (selection.totals.samples_hidden - found["forward"] * selection.totals.samples_refreshed) / SAMPLES / 10
    assert saved == pytest.approx(0.2, abs=0.02) or "cannot be reached" in said()[0]


def test_a_resumed_run_must_save_as_much(tmp_path):
    path = tmp_path / "cut.ckpt"
    run(Saving(0.1, forward=0.3), None, SaveAt(path, "on_train_epoch_end", 1), max_epochs=4)
    with pytest.raises(ValueError, match=r"save=.*'share': 0.2.*, the checkpoint has .*'share': 0.1"):
        run(Saving(0.2, forward=0.3), max_epochs=4, ckpt_path=path)
    with pytest.raises(ValueError, match=r"save=not set|save='not set', the checkpoint has"):
        run(None, max_epochs=4, ckpt_path=path)


# --- what is refused


@pytest.mark.parametrize(
    ("save", "settings", "message"),
    [
        (
            0.9,
            {},
            r"save=0.9 is not allowed; save must be a number in \(0, 0.5\), because no method is set to hide more than max_share=0.5",
        ),
        (30, {}, r"save=30 is not allowed; .*\. It is a share of the training time: 0.3 saves 30 %\.$"),
        (0.7, {}, r"Ask for less, or allow more: save=Saving\(0.7, max_share=...\), with a max_share above 0.7 and below 1\.$"),
        (-1, {}, r"save=-1 is not allowed; save must be a number in \(0, 0.5\)"),
        (0, {}, "save=0 is not allowed"),
        (True, {}, "save=True is not allowed; save must be a number"),
        ("0.3", {}, "save='0.3' is not allowed; save must be a number"),
        (float("nan"), {}, "save=nan is not allowed"),
        (0.3, {"max_fraction": 0.3}, "kakurenbo: max_fraction=0.3 and save=0.3 both say how much is hidden"),
        (
            0.1,
            {"fraction_schedule": (2, 0)},
            r"save=0.1 sets max_fraction to as much as max_share=0.5, and then .*fraction_schedule",
        ),
        (0.1, {"drop_top": 0.6}, r"and then kakurenbo: max_fraction \+ drop_top=1.1 .* save=Saving\(0.1, max_share="),
        (0.3, {"max_fraction": 1.3}, r"max_fraction=1.3 is not allowed; max_fraction must be a number in \[0, 1\)"),
    ],
)
def test_a_wrong_save_is_named(save, settings, message):
    with pytest.raises(ValueError, match=message):
        SampleSelection("kakurenbo", save=save, **settings)


def test_a_share_in_a_method_object_is_one_too():
    with pytest.raises(ValueError, match=r"max_fraction=0.2 and save=0.3 both say"):
        SampleSelection(Kakurenbo(max_fraction=0.2), save=0.3)


@pytest.mark.parametrize("name", ["seta", "baseline", "plb", "selective_backprop"])
def test_methods_without_a_share_are_refused_by_name(name):
    can = "el2n, forget, forget_online, infobatch, kakurenbo, random, random_cycle, rcap"
    with pytest.raises(ValueError, match=f"save=0.2 is not possible with method {name}, .* methods that have one: {can}"):
        SampleSelection(name, save=0.2)


@pytest.mark.parametrize(
    ("settings", "limits", "message"),
    [
        ({}, {"max_epochs": 2}, "save=0.3 cannot be reached: kakurenbo saves at most 25.0% of 2 epochs when its max_fraction is"),
        ({}, {"max_epochs": -1}, "this one has no end"),
        ({}, {"max_steps": 50}, "this one has a fixed number of steps"),
        ({}, {"limit_train_batches": 3}, "this one has a fixed number of steps"),
    ],
)  # fmt: skip
def test_a_training_that_cannot_be_shortened_so_much_is_refused(settings, limits, message):
    with pytest.raises(ValueError, match=message):
        run(0.3, Net(), **{"max_epochs": 10, **limits})


def test_a_run_of_one_batch_is_not_measured_by_it():
    run(0.3, Net(), fast_dev_run=True)
