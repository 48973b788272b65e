"""Values of NumPy, torch and the user's own types: what a checkpoint can hold is resumed, and what it cannot is refused at once."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers import SureNet, fit, loader, trainer

from kakurenbo_lightning import Choice, EpochPlan, HideMethod, SampleSelection, register_method
from kakurenbo_lightning.errors import StateError
from kakurenbo_lightning.methods import registry
from kakurenbo_lightning.session.plain_values import as_plain

EPOCHS = 3


def named(value):
    """Of a case: the address in `repr(object())` differs in each process of a test run."""
    return type(value).__name__


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """A method of a user, registered for a test: ``hides_eight`` hides eight samples, and reports and keeps what it is given."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    @register_method("hides_eight")
    @dataclass(frozen=True)
    class HidesEight(HideMethod):
        """Hides the same eight samples in each epoch."""

        reports: dict[Any, Any] = field(default_factory=dict)
        factor: Any = 1.0
        own: Any = None

        def choose(self, statistics, epoch):
            return Choice(torch.arange(len(statistics)) < 8, metrics=self.reports)

        def lr_factor(self, statistics, epoch, hidden_share):
            return self.factor

    return HidesEight


def resumed_and_whole(folder, make):
    """The weights of a run that was resumed with ``weights_only=True`` after two epochs, those of an uncut one, and what was saved."""
    whole = fit(SureNet(dropout=0.0), loader(), make(), max_epochs=EPOCHS).model.state_dict()
    fit(SureNet(dropout=0.0), loader(), make(), max_epochs=2).save_checkpoint(folder / "some.ckpt")
    saved = torch.load(folder / "some.ckpt", weights_only=True)
    module, again = SureNet(dropout=0.0), trainer(make(), max_epochs=EPOCHS)
    again.strategy.load_checkpoint = lambda path, **settings: torch.load(
        path, weights_only=True
    )  # whatever this Lightning's default is
    again.fit(module, loader(), ckpt_path=folder / "some.ckpt")
    return module.state_dict(), whole, saved["callbacks"]["SampleSelection"]


def assert_resumes(folder, make):
    """A run goes on from its checkpoint as if nothing had been; what was saved of the selection."""
    resumed, whole, saved = resumed_and_whole(folder, make)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    return saved


def test_numpy_settings_and_seed_train_and_resume(tmp_path):
    settings = {"tau": np.float64(0.7), "max_fraction": np.linspace(0.1, 0.5, 5)[2], "seed": np.int64(3)}
    saved = assert_resumes(tmp_path, lambda: SampleSelection("kakurenbo", **settings))
    assert (saved["settings"]["tau"], saved["seed"]) == (0.7, 3)
    assert [type(saved["settings"]["max_fraction"]), type(saved["seed"])] == [float, int]


def test_a_path_as_a_setting_trains_and_resumes(tmp_path):
    torch.save({"irreducible": torch.linspace(0, 1, 64)}, tmp_path / "table.pt")
    saved = assert_resumes(tmp_path, lambda: SampleSelection("rho_loss", irreducible=tmp_path / "table.pt", fraction=0.5))
    assert saved["settings"]["irreducible"] == str(tmp_path / "table.pt")


METRICS = {
    "float64": np.float64(0.5),
    "float32": np.float32(0.5),
    "longdouble": np.longdouble(0.5),
    "int64": np.int64(3),
    "bool": True,
    "numpy bool": np.bool_(True),
    "array": np.array(0.5),
    "tensor": torch.tensor(0.5),
    "int tensor": torch.tensor(3),
    "nan": math.nan,
    np.str_("numpy name"): 1.0,
}


def test_metrics_and_a_learning_rate_factor_of_numpy_and_torch_train_and_resume(tmp_path):
    saved = assert_resumes(tmp_path, lambda: SampleSelection("hides_eight", reports=METRICS, factor=torch.tensor(1.25)))
    assert (saved["plan"]["lr_factor"], type(saved["plan"]["lr_factor"])) == (1.25, float)
    for place in (saved["metrics"], saved["plan"]["metrics"]):
        assert {type(name) for name in place} == {str}
        assert [float(place[str(name)]) for name in METRICS] == pytest.approx(
            [float(value) for value in METRICS.values()], nan_ok=True
        )
        assert {type(place[str(name)]) for name in METRICS} == {float, int}


OWN = {
    "path": (Path("a") / "b", "a/b"),
    "paths": ((Path("a"), Path("b")), ["a", "b"]),
    "range": (range(3), [0, 1, 2]),
    "set": (frozenset({1, 2}), [1, 2]),
    "array": (np.array([0.5, 1.5]), [0.5, 1.5]),
    "tensor": (torch.tensor([1, 2]), [1, 2]),
    "dict": ({np.str_("a"): np.float64(1.0)}, {"a": 1.0}),
    "longdouble": (np.longdouble(0.5), 0.5),
    "nan": (math.nan, math.nan),  # which is itself
}


def test_a_field_of_a_users_method_that_is_no_declared_setting_resumes(tmp_path):
    own = {name: given for name, (given, _) in OWN.items()}
    selection = SampleSelection("hides_eight", own=own)
    assert selection.method.own is own, "the method keeps what its user gave it"
    saved = assert_resumes(tmp_path, lambda: SampleSelection("hides_eight", own=own))["settings"]["own"]
    assert math.isnan(saved.pop("nan")) and saved == {name: plain for name, (_, plain) in OWN.items() if name != "nan"}


@pytest.mark.parametrize("value", [object(), math.nan, Path("a"), np.float64(3), 1 + 0j], ids=named)
def test_a_seed_that_is_none_is_refused_at_construction(value):
    with pytest.raises(ValueError, match=r"^SampleSelection: seed=.* is not allowed; seed must be None or an integer >= 0"):
        SampleSelection("kakurenbo", seed=value)


@pytest.mark.parametrize("value", [object(), math.nan, Path("a")], ids=named)
def test_a_declared_setting_of_another_kind_is_refused_at_construction(value):
    with pytest.raises(ValueError, match=r"^kakurenbo: tau=.* is not allowed; tau must be a number in \[0, 1\]"):
        SampleSelection("kakurenbo", tau=value)


@pytest.mark.parametrize(
    "value", [object(), torch.float32, np.datetime64("2024-01-01"), np.clongdouble(1), [object()]], ids=named
)
def test_a_field_that_no_checkpoint_can_hold_is_refused_at_construction(registered, value):
    for make in (lambda: SampleSelection("hides_eight", own=value), lambda: SampleSelection(registered(own=value))):
        with pytest.raises(
            TypeError, match=r"hides_eight\.own.* is a \w+, which a checkpoint cannot hold.*; use tensors, numbers"
        ):
            make()


@pytest.mark.parametrize("value", ["7", None, [1], torch.ones(2)], ids=named)
def test_a_metric_that_is_no_number_is_named_before_the_epoch(value):
    with pytest.raises(TypeError, match=r"^hides_eight: metric 'odd' is .*, it must be one number"):
        fit(SureNet(), loader(), SampleSelection(registry.get_method("hides_eight", reports={"odd": value})), max_epochs=1)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, "1", None], ids=str)
def test_a_learning_rate_factor_that_no_optimizer_can_take_is_named_before_the_epoch(value):
    with pytest.raises(ValueError, match=r"^hides_eight: lr_factor=.* is not allowed; lr_factor must be a finite number > 0"):
        fit(SureNet(), loader(), SampleSelection("hides_eight", factor=value), max_epochs=1)


def test_what_no_run_could_resume_from_is_refused_at_the_first_save(tmp_path, registered):
    class DoubleWeights(registered):
        def plan(self, statistics, epoch, previous=None):
            return EpochPlan.hide(torch.arange(len(statistics)) < 8, weights=torch.ones(len(statistics), dtype=torch.float64))

    class Save(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "first.ckpt")

    with pytest.raises(
        StateError, match=r"no run could resume .*: plan\.weights is a tensor \[64\] of torch\.float64, it must be .*float32"
    ):
        fit(SureNet(), loader(), SampleSelection(DoubleWeights()), Save(), max_epochs=1)
    assert not (tmp_path / "first.ckpt").exists()


def test_plain_values_are_pythons_own():
    given = {np.int64(1): (np.float32(0.5), [np.bool_(True), np.bytes_(b"x")]), "none": None}
    found = as_plain(given, "here")
    assert found == {1: (0.5, [True, b"x"]), "none": None} and type(next(iter(found))) is int
    with pytest.raises(TypeError, match=r"^here\.a\[1\] is a complex"):
        as_plain({"a": [1, 1j]}, "here")
