"""A guard lets the next epochs train on everything when a validated value falls too far below its reference."""

import json
import logging

import pytest
import torch
from cuts import SaveAt
from helpers import Net, Spy, SureNet, fit, loader
from lightning.pytorch.callbacks import Callback

from kakurenbo_lightning import SampleSelection, Saving, SelectionGuard
from kakurenbo_lightning.record import RunRecorder

SAMPLES, BATCH = 48, 16
EASY = {"max_fraction": 0.5, "tau": 0.0, "fractions": (1.0,), "milestones": ()}  # with SureNet 24 are hidden, from epoch 1 on


class Values:
    """Validation gives these accuracies, epoch by epoch."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", torch.tensor(self.values[self.current_epoch]))


class Scored(Values, SureNet):
    """Every sample is right and sure."""


class BothLogged(Scored):
    """Training logs a value too, in each step and of the epoch."""

    def training_step(self, batch, batch_idx):
        outputs = super().training_step(batch, batch_idx)
        self.log("train_loss", outputs["loss"], on_step=True, on_epoch=True)
        return outputs


class ScoredNet(Values, Net):
    """Samples are as the network finds them."""


class Logged(Callback):
    """What is logged of the selection, by epoch."""

    def __init__(self):
        self.guard = {}

    def on_train_epoch_end(self, trainer, pl_module):
        self.guard[trainer.current_epoch] = float(trainer.callback_metrics.get("selection/guard", -1))


def run(guard, values, *callbacks, method="kakurenbo", module=None, settings=None, val=True, save=None, **more):
    """The spy, the selection and the Trainer."""
    selection = SampleSelection(method, seed=3, guard=guard, save=save, **(EASY if settings is None else settings))
    spy, module = Spy(selection), module or Scored(values)
    validation = loader(8, shuffle=False) if val else None
    more = {"max_epochs": len(values), **more}
    made = fit(module, loader(SAMPLES, BATCH), selection, spy, *callbacks, val=validation, **more)
    return spy, selection, made


def everything(spy):
    """Epochs after the first that hid nothing."""
    return [epoch for epoch, hidden in spy.hidden.items() if not hidden and epoch > 0]


# --- when it acts


@pytest.mark.parametrize(
    ("guard", "values", "expected"),
    [
        ({"reference": [0.5, 0.6, 0.7, 0.8, 0.8]}, [0.5, 0.6, 0.6, 0.8, 0.8], [3]),
        ({"reference": [0.5, 0.6, 0.7, 0.8, 0.8], "max_drop": 0.2}, [0.5, 0.6, 0.6, 0.8, 0.8], []),
        ({"reference": [0.5, 0.8]}, [0.5, 0.6, 0.6, 0.79, 0.8], [2, 3]),  # until it is back; the last value stays
        ({"reference": [0.5, 0.8], "epochs": 2}, [0.5, 0.6, 0.79, 0.79, 0.8], [2, 3]),
        ({"reference": [0.5, float("nan"), 0.7]}, [0.5, 0.0, 0.7, 0.7], []),  # nothing to compare with
        ({}, [0.5, 0.7, 0.6, 0.7, 0.68, 0.6, 0.9], [3, 6]),  # its own best
        ({}, [0.5, float("nan"), 0.6, 0.6], [2]),
        ({"mode": "min", "reference": [0.5, 0.4, 0.3, 0.3]}, [0.5, 0.4, 0.4, 0.3], [3]),
        ({"mode": "min"}, [0.5, 0.4, 0.5, 0.4], [3]),
    ],
    ids=["fires", "within", "until back", "two epochs", "gap", "own", "nan", "loss", "own loss"],
)
@pytest.mark.quick("fires", "until back", "own", "two epochs")
def test_epochs_after_a_fall_train_on_everything(guard, values, expected):
    logged = Logged()
    spy, _, _ = run(SelectionGuard("val_acc", **{"max_drop": 0.05, **guard}), values, logged)
    assert everything(spy) == expected
    assert logged.guard == {epoch: float(epoch in expected) for epoch in range(len(values))}
    for epoch in range(len(values)):
        assert len(spy.trained(epoch)) == (SAMPLES if epoch in {0, *expected} else SAMPLES // 2)


def test_it_says_so(caplog):
    caplog.set_level(logging.INFO, "lightning.pytorch")  # another test may have made it quiet
    run(SelectionGuard("val_acc", max_drop=0.05, reference=[0.5, 0.8]), [0.5, 0.6, 0.79, 0.8])
    said = [record.message for record in caplog.records if "guard" in record.message]
    assert said[:2] == [
        "SampleSelection: guard: val_acc=0.6 after epoch 1 is worse than 0.8 by more than max_drop=0.05: epoch 2 trains on everything",
        "SampleSelection: guard: val_acc=0.79 after epoch 2 is back; samples are hidden again",
    ]
    assert said[2].endswith("; the guard let 1 epoch train on everything")


def test_beside_save_no_more_is_hidden_to_make_up_for_it_and_the_last_line_says_why(caplog):
    caplog.set_level(logging.INFO, "lightning.pytorch")
    values = [0.5, 0.1, 0.1, 0.1, *[0.5] * 8]
    settings = {"tau": 0.0, "fractions": (1.0,), "milestones": ()}
    guard = SelectionGuard("val_acc", 0.05, reference=[0.5])
    spy, _, _ = run(guard, values, settings=settings, save=Saving(0.2, forward=0.3))
    shares = [len(hidden) for hidden in spy.hidden.values()]
    assert shares[:5] == [0, shares[1], 0, 0, 0] and set(shares[5:]) == {shares[1]} and shares[1] > 0
    assert ", less than asked: the guard held it back; the guard let 3 epochs" in caplog.records[-1].message


def test_the_epoch_after_chooses_again_also_where_a_choice_is_kept():
    spy, selection, _ = run(
        SelectionGuard("val_acc", 0.05, reference=[0.5]), [0.5, 0.1, 0.5, 0.5, 0.5], settings={**EASY, "every_n_epochs": 4}
    )
    assert [len(hidden) for hidden in spy.hidden.values()] == [0, 24, 0, 24, 24]
    assert spy.hidden[3] == spy.hidden[4] and selection.totals.samples_refreshed == 0


@pytest.mark.parametrize(
    ("method", "settings"),
    [("el2n", {"score_epochs": (0, 1)}), ("forget", {"static_epochs": 1, "never_learned": "first", "balance": "rcap"})],
    ids=["el2n", "by last losses"],
)
def test_a_static_method_hides_again_what_it_had_chosen(tmp_path, method, settings):
    values, path = [0.5, 0.5, 0.1, 0.1, 0.5, 0.5], tmp_path / "cut.ckpt"

    def trained(*callbacks, **more):
        guard, own = SelectionGuard("val_acc", 0.05, reference=[0.5]), {"max_fraction": 0.25, **settings}
        return run(guard, values, *callbacks, method=method, module=ScoredNet(values), settings=own, max_epochs=5, **more)[0]

    spy = trained(SaveAt(path, "on_train_batch_end", 3, 1))
    assert [len(hidden) for hidden in spy.hidden.values()] == [0, 12, 12, 0, 0, 12]
    assert spy.hidden[5] == spy.hidden[2] == trained(ckpt_path=path).hidden[5]


def test_a_choice_that_is_due_in_a_guarded_epoch_is_made_in_the_next():
    values = [0.5, 0.1, 0.5, 0.5]
    spy, _, _ = run(
        SelectionGuard("val_acc", 0.05, reference=[0.5]),
        values,
        module=ScoredNet(values),
        method="el2n",
        settings={"max_fraction": 0.25, "score_epochs": (0, 1), "start_epoch": 1},
        max_epochs=3,
    )
    assert [len(hidden) for hidden in spy.hidden.values()] == [0, 0, 0, 12]


@pytest.mark.parametrize(
    ("values", "guard", "held"),
    [
        ([0.5, 0.9, 0.3, 0.5, 0.4, 0.5], {}, [5]),  # 0.9 is of a training that was given up
        ([0.5, 0.9, 0.3, 0.5, 0.6, 0.6], {"reference": [0.3, 0.5, 0.6]}, []),
        ([0.5, 0.0, 0.3, 0.4, 0.6, 0.6], {"reference": [0.3, 0.5, 0.6]}, [4]),
    ],
    ids=["own", "curve", "fall"],
)
def test_a_static_method_is_compared_from_its_restart_on(values, guard, held):
    spy, selection, _ = run(
        SelectionGuard("val_acc", 0.05, **guard),
        values,
        module=ScoredNet(values),
        method="forget",
        settings={"max_fraction": 0.5, "static_epochs": 2, "never_learned": "first"},
        max_epochs=4,
    )
    assert [epoch for epoch in everything(spy) if epoch > 1] == held
    removed = {tuple(sorted(hidden)) for hidden in spy.hidden.values() if hidden}
    assert len(removed) == 1  # once, though most are forgotten equally often
    summary = f"; the guard let {len(held)} epoch{'s' * (len(held) != 1)} train on everything" if held else ""
    assert selection.session.control.summary(6, SAMPLES) == summary


def test_an_epoch_without_a_validation_is_not_judged():
    spy, _, _ = run(SelectionGuard("val_acc", 0.05, reference=[0.5]), [0.1] * 6, check_val_every_n_epoch=2)
    assert everything(spy) == [2, 4]


@pytest.mark.parametrize("guard", [None, SelectionGuard("val_acc", 0.05, reference=[0.5, 0.8])], ids=["none", "guard"])
def test_a_sanity_check_is_no_validation(guard):
    spy, _, _ = run(guard, [0.5, 0.6, 0.8, 0.8], num_sanity_val_steps=1)
    assert everything(spy) == ([] if guard is None else [2])


def test_the_last_validation_of_an_epoch_counts():
    class Rising(Scored):
        def validation_step(self, batch, batch_idx):
            self.log("val_acc", torch.tensor(0.1 if self.trainer.global_step % 3 == 1 else 0.5))

    spy, _, _ = run(
        SelectionGuard("val_acc", 0.05, reference=[0.5]),
        [0] * 3,
        module=Rising([]),
        val_check_interval=1,
        settings={"max_fraction": 0.0},
    )
    assert everything(spy) == [1, 2]
    assert spy.selection.session.control.state_dict()["guard"]["held"] == 0


# --- a baseline that was recorded


def recorded(folder, values, method="baseline"):
    selection = SampleSelection(method)
    recorder = RunRecorder(selection, folder, metric="val_acc")
    module, validation = Scored(values), loader(8, shuffle=False)
    fit(module, loader(SAMPLES, BATCH), selection, recorder, val=validation, max_epochs=len(values))


def test_the_curve_of_recorded_runs_is_the_reference(tmp_path):
    recorded(tmp_path / "seed=0" / "baseline", [0.5, 0.7, 0.9])
    recorded(tmp_path / "seed=1" / "baseline", [0.5, 0.9])
    guard = SelectionGuard("val_acc", 0.05, reference=tmp_path)
    assert guard.curve == pytest.approx((0.5, 0.8, 0.9))
    spy, _, _ = run(guard, [0.5, 0.7, 0.9, 0.9])
    assert everything(spy) == [2]
    recorded(tmp_path / "random", [0.5], "random")
    with pytest.raises(ValueError, match=r"has runs of baseline, random; give the folder of one of them"):
        SelectionGuard("val_acc", 0.05, reference=tmp_path)
    with (
        pytest.warns(UserWarning, match="is a run of random, which selected samples itself"),
        pytest.raises(ValueError, match=r"has no monitor='val_ac'; it has .*val_acc"),
    ):
        SelectionGuard("val_ac", 0.05, reference=str(tmp_path / "random"))
    (tmp_path / "random" / "run.json").write_text(json.dumps({"method": "baseline"}))
    assert len(SelectionGuard("val_acc", 0.05, reference=tmp_path).curve) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_drop": -0.1}, r"SelectionGuard: max_drop=-0.1 is not allowed; max_drop must be a number >= 0"),
        ({"mode": "up"}, r"mode='up' is not allowed; mode must be 'max' or 'min'"),
        ({"epochs": 0}, r"epochs=0 is not allowed; epochs must be an integer >= 1"),
        ({"monitor": ""}, r"monitor='' is not allowed"),
        ({"reference": 0.9}, r"reference=0.9 is not allowed; reference must be 'own', the folder of a recorded run, or a list"),
        ({"reference": []}, r"reference=\[\] is not allowed"),
        ({"reference": "nowhere"}, r"reference='nowhere' holds no selection.parquet of a run"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        SelectionGuard(**{"monitor": "val_acc", "max_drop": 0.1, **settings})


@pytest.mark.parametrize(
    ("monitor", "mode", "better"),
    [
        ("val_acc", "min", "max"),
        ("val/accuracy", "min", "max"),
        ("val_loss", "max", "min"),
        ("val_acc", "max", ""),
        ("score", "min", ""),
    ],
)
def test_a_mode_that_contradicts_the_name_is_warned_of(monitor, mode, better, recwarn):
    SelectionGuard(monitor, 0.005, mode=mode)
    said = [str(each.message) for each in recwarn if "SelectionGuard" in str(each.message)]
    assert [f"set mode={better!r}" in text for text in said] == [True] * bool(better)


def test_a_reference_of_another_length_is_warned_of(recwarn):
    run(SelectionGuard("val_acc", 0.05, reference=[0.5]), [0.5] * 2)  # one number for all epochs
    assert not [each for each in recwarn if "the reference has" in str(each.message)]
    with pytest.warns(UserWarning, match="the reference has 3 epochs and this training 2: "):
        run(SelectionGuard("val_acc", 0.05, reference=[0.5] * 3), [0.5] * 2)


@pytest.mark.parametrize(
    ("method", "guard", "message"),
    [
        ("kakurenbo", "val_acc", r"guard='val_acc' is not allowed; guard must be None or a SelectionGuard"),
        ("selective_backprop", SelectionGuard("val_acc", 0.1), r"guard is not possible with method selective_backprop"),
        ("plb", SelectionGuard("val_acc", 0.1), r"guard is not possible with method plb: .* the draw family makes no such plans"),
    ],
)
def test_what_is_no_guard_or_has_nothing_to_guard_is_refused(method, guard, message):
    with pytest.raises(ValueError, match=message):
        SampleSelection(method, guard=guard)


def test_a_value_that_is_not_logged_is_named_at_the_first_validation():
    with pytest.raises(ValueError, match=r"monitor='val_acc'\): the validation logged no such value; it logged .*val_loss"):
        run(SelectionGuard("val_acc", 0.1), [0] * 3, module=Net())
    with pytest.raises(
        ValueError, match=r"monitor='train_loss'\): the validation logged no such value; it logged val_acc\. Name"
    ):
        run(SelectionGuard("train_loss", 0.1, mode="min"), [0.1] * 3, module=BothLogged([0.1] * 3))
    with pytest.raises(ValueError, match=r"this training validates nothing"):
        run(SelectionGuard("val_acc", 0.1), [0.1] * 3, val=False)


# --- a run that is cut

VALUES, BASELINE = [0.5, 0.7, 0.6, 0.4, 0.7, 0.6, 0.8], [0.5, 0.7, 0.7, 0.7, 0.7, 0.7, 0.8]


@pytest.mark.parametrize("reference", ["own", BASELINE], ids=["own", "baseline"])
@pytest.mark.parametrize(
    ("hook", "epoch"), [("on_train_batch_end", 3), ("on_validation_end", 2), ("on_train_epoch_end", 2), ("on_train_batch_end", 2)]
)
@pytest.mark.quick("on_validation_end", "own")
def test_a_run_cut_anywhere_is_guarded_as_the_uncut_one(tmp_path, hook, epoch, reference):
    path, guard = tmp_path / "cut.ckpt", SelectionGuard("val_acc", 0.05, reference=reference, epochs=2)
    module, resumed = Scored(VALUES), Scored(VALUES)
    spy, selection, _ = run(guard, VALUES, SaveAt(path, hook, epoch, -1), module=module)
    again, selection_again, _ = run(guard, VALUES, module=resumed, ckpt_path=path)
    assert everything(spy) == [3, 4, 5, 6] and set(everything(again)) == {3, 4, 5, 6} & set(again.hidden)
    assert {epoch: spy.hidden[epoch] for epoch in again.hidden} == again.hidden
    for one, two in zip(module.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    states = [each.session.control.state_dict() for each in (selection, selection_again)]
    assert states[0] == states[1]


def test_a_resumed_run_has_the_same_guard(tmp_path):
    path = tmp_path / "cut.ckpt"
    run(SelectionGuard("val_acc", 0.05), VALUES[:3], SaveAt(path, "on_train_epoch_end", 1))
    with pytest.raises(ValueError, match=r"guard=.*'max_drop': 0.1.*, the checkpoint has .*'max_drop': 0.05"):
        run(SelectionGuard("val_acc", 0.1), VALUES[:3], ckpt_path=path)
