"""The settings that every hide method has, in real trainings."""

import re

import pytest
import torch
import torch.nn.functional as F
from batch_losses import Dice
from helpers import Net, Points, Spy, SureNet, fit, loader
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import OutputsError

EPOCHS = 6


class Plain(Dataset):
    """Points that do not say which classes they have."""

    def __init__(self, count=64):
        self.points = Points(count)

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        return self.points[index]


def hidden_by_epoch(*, module=None, train=None, callbacks=(), **settings):
    """Train with KAKURENBO, which hides all it may of :class:`SureNet`; what each epoch hid, and the selection."""
    selection = SampleSelection(
        "kakurenbo", **{"max_fraction": 0.5, "tau": 0.0, "fractions": (1.0,), "milestones": (), **settings}
    )
    spy = Spy(selection)
    fit(module or SureNet(), train or loader(), selection, spy, *callbacks, max_epochs=EPOCHS)
    return [spy.hidden[epoch] for epoch in range(EPOCHS)], selection


def test_nothing_hides_before_start_epoch_and_in_the_last_epochs():
    hidden, selection = hidden_by_epoch(start_epoch=2, end_fraction=0.34)
    assert [len(part) for part in hidden] == [0, 0, 32, 0, 0, 0]  # floor(0.66 * 6) = 3
    assert selection.totals.samples_refreshed == 0  # nothing is chosen any more


def test_a_choice_is_kept_and_looked_at_again_before_the_next():
    hidden, selection = hidden_by_epoch(start_epoch=1, every_n_epochs=2)
    assert [len(part) for part in hidden] == [0, 32, 32, 32, 32, 32]
    assert hidden[1] == hidden[2] != hidden[3] == hidden[4] != hidden[5]
    assert selection.totals.samples_refreshed == 2 * 32


def test_a_kept_choice_has_the_learning_rate_of_its_epoch():
    selection = SampleSelection(
        "kakurenbo", max_fraction=0.5, tau=0.0, fractions=(1.0,), milestones=(), warmup_epochs=3, every_n_epochs=4
    )
    spy = Spy(selection)
    fit(SureNet(), loader(), selection, spy, max_epochs=EPOCHS)
    assert [len(spy.hidden[epoch]) for epoch in range(EPOCHS)] == [0, 32, 32, 32, 32, 32]
    assert [spy.rates[epoch][0] for epoch in range(EPOCHS)] == pytest.approx([0.1, 0.1, 0.1, 0.2, 0.2, 0.2])


@pytest.mark.parametrize("step", [12, 14, 18])
def test_a_kept_choice_survives_a_resume(tmp_path, step):
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    settings = {"max_fraction": 0.5, "tau": 0.0, "start_epoch": 1, "every_n_epochs": 3}
    whole, resumed = Net(), Net()
    fit(whole, loader(), SampleSelection("kakurenbo", **settings), keep, max_epochs=EPOCHS, enable_checkpointing=True)
    fit(resumed, loader(), SampleSelection("kakurenbo", **settings), max_epochs=EPOCHS, ckpt_path=tmp_path / f"step={step}.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_protected_samples_are_always_trained_and_the_fraction_is_of_the_others():
    hidden, _ = hidden_by_epoch(protected=range(20))
    assert [len(part) for part in hidden] == [0] + [22] * 5
    assert all(min(part) >= 20 for part in hidden[1:])


@pytest.mark.parametrize("data", [Points, Plain], ids=["from the data set", "from the outputs"])
@pytest.mark.parametrize("module", [SureNet, Net], ids=["returned", "captured"])
def test_classes_are_balanced_or_protected(data, module):
    train = DataLoader(data(64), 8, shuffle=True)
    if module is SureNet and data is Plain:
        module = ReturnsLogits
    hidden, _ = hidden_by_epoch(module=module(), train=train, balance="class")
    for part in hidden[1:]:
        counts = torch.bincount(torch.tensor(part) % 3, minlength=3).tolist()
        assert counts == [11, 10, 10] if module is not Net else max(counts) <= 11  # of 22, 21 and 21
    hidden, _ = hidden_by_epoch(module=module(), train=train, protected_classes=[0, 2])
    assert all(index % 3 == 1 for part in hidden for index in part)
    assert sum(map(len, hidden)) > 0


class ReturnsLogits(SureNet):
    def training_step(self, batch, batch_idx):
        logits = self.network(batch[0])
        return {**super().training_step(batch, batch_idx), "logits": logits, "target": batch[1]}


BALANCED = "classes: {}: balance='class' needs the class of each sample, which neither .* leave balance out"
PROTECTED = r"protected_classes=\(0,\)"


class Regression(Net):
    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.network(batch[0])[:, 0], batch[1].float())


@pytest.mark.parametrize(
    ("method", "module", "settings", "said", "not_said"),
    [
        ("random", Dice, {"balance": "class"}, f"^{BALANCED.format('random')}", "cannot be split|use random"),
        ("infobatch", Dice, {"values": "bls", "balance": "class"}, f"^{BALANCED.format('infobatch')}", "bls"),
        (
            "infobatch",
            Dice,
            {"balance": "class"},
            rf"(?s)^per-sample values: .*cannot be split.*\n{BALANCED.format('infobatch')}",
            "",
        ),
        ("kakurenbo", SureNet, {"balance": "class"}, f"^{BALANCED.format('kakurenbo')}", "the method reads"),
        (
            "kakurenbo",
            Regression,
            {"balance": "class"},
            rf"(?s)the method reads confidence, correct, but.*\n{BALANCED.format('kakurenbo')}",
            "reads confidence, correct, target",
        ),
        (
            "seta",
            Dice,
            {"values": "bls", "protected_classes": [0]},
            f"^classes: seta: {PROTECTED} needs .* leave protected_c",
            "",
        ),
        (
            "random",
            Dice,
            {"balance": "class", "protected_classes": [0]},
            f"^classes: random: balance='class' and {PROTECTED} need the .* leave balance and protected_classes out",
            "",
        ),
        ("rcap", Dice, {"values": "bls"}, "^classes: rcap needs the class .* use a method that needs no classes", "reads target"),
    ],
)
def test_classes_that_nothing_tells_are_asked_for_by_what_needs_them(method, module, settings, said, not_said):
    with pytest.raises(OutputsError, match=said) as error:
        fit(module(), DataLoader(Plain(), 8, shuffle=True), SampleSelection(method, **settings), max_epochs=2)
    assert not not_said or not re.search(not_said, str(error.value))
    assert "Give the data set an attribute targets" in str(error.value)


def test_a_protected_index_beyond_the_data_set_is_refused():
    with pytest.raises(ValueError, match=r"protected=\(3, 64\) is not allowed; protected must be data set indices below 64"):
        hidden_by_epoch(protected=[3, 64])


@pytest.mark.parametrize(
    "setting, value, words",
    [
        ("start_epoch", -1, "an integer >= 0"),
        ("end_fraction", 1.0, r"a number in \[0, 1\)"),
        ("every_n_epochs", 0, "an integer >= 1"),
        ("protected", 3, "a list of data set indices"),
        ("protected", [-1], "a list of data set indices"),
        ("protected", ["a"], "a list of data set indices"),
        ("protected_classes", [1.5], "a list of classes"),
        ("balance", "label", "None or 'class'"),
        ("unbiased", 1, "True or False, 'epoch' or 'step'"),
        ("unbiased", "batch", "True or False, 'epoch' or 'step'"),
        ("unbiased", "step", "known probability of being kept"),
        ("unbiased", True, "known probability of being kept.*infobatch, random, random_cycle"),
    ],
)
def test_a_bad_option_is_named(setting, value, words):
    with pytest.raises(ValueError, match=f"kakurenbo: {setting}=.*{words}"):
        SampleSelection("kakurenbo", **{setting: value})


def test_a_protected_class_that_there_is_not_is_told():
    with pytest.warns(UserWarning, match=r"protected_classes=\[7\] are not among the 3 classes of the data set \(0 to 2\)"):
        hidden_by_epoch(protected_classes=[1, 7])
