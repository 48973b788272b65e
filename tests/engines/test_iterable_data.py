"""Samples without an index: what a method does with a map-style data set in order, it does with the same samples as they come."""

import json

import pytest
import torch
from driven import EPOCHS, Trained
from flows import Flow, SizedFlow, flowing
from held_out import rho
from helpers import Net, Spy, fit, loader, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from kakurenbo_lightning import SampleSelection, advise
from kakurenbo_lightning.cli.inspection import main as inspect
from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.methods.backprop.katharopoulos import Katharopoulos
from kakurenbo_lightning.methods.backprop.sb_fixed import FixedRate
from kakurenbo_lightning.methods.backprop.selective_backprop import SelectiveBackprop
from kakurenbo_lightning.methods.hide.baseline import Baseline
from kakurenbo_lightning.record import RunRecorder
from kakurenbo_lightning.report.reading import read_runs

METHODS = {
    "baseline": Baseline(),
    "sb": SelectiveBackprop(history=40),
    "sb_carry": SelectiveBackprop(history=40, leftover="carry"),
    "sb_topk": SelectiveBackprop(score="topk", pool=False),
    "sb_random": SelectiveBackprop(score="random"),
    "sb_l2": SelectiveBackprop(score="l2"),
    "sb_fixed": FixedRate(start=0.2, end=0.9),
    "katharopoulos": Katharopoulos(threshold=0),
    "rho_loss": rho(),
}


def trained(method, train, *callbacks, net=None, **settings):
    """The Trainer, the selection, what each step trained, and the module."""
    selection, seen = SampleSelection(method, seed=3), Trained()
    net = Net(dropout=0.0) if net is None else net
    made = fit(net, train, selection, seen, *callbacks, **{"max_epochs": EPOCHS, **settings})
    return made, selection, seen, net


def counts(totals):
    """Of samples."""
    return {name: value for name, value in vars(totals).items() if name.startswith(("samples_", "moved", "scoring_epochs"))}


def assert_same(one, other):
    (a, sa, ta, na), (b, sb, tb, nb) = one, other
    assert a.global_step == b.global_step
    assert counts(sa.totals) == counts(sb.totals)
    for epoch in range(EPOCHS):
        assert ta.indices(epoch) == tb.indices(epoch)
        names = {"candidates", "moved_back", "hidden_fraction", "lr_factor", "trained", "scored", "chosen_trained", "rejected"}
        assert all(ta.counts[epoch].get(name) == tb.counts[epoch].get(name) for name in names)
    assert all(torch.equal(x, y) for x, y in zip(na.state_dict().values(), nb.state_dict().values(), strict=True))


@pytest.mark.quick("sb", "sb_fixed", "rho_loss")
@pytest.mark.parametrize("kind", [Flow, SizedFlow])
@pytest.mark.parametrize("name", METHODS)
def test_iterable_data_trains_what_the_same_samples_with_an_index_do(name, kind):
    method = METHODS[name]
    if name == "sb_fixed" and kind is Flow:
        method = FixedRate(start=0, end=1)  # else its window begins and ends with epochs
    indexed = trained(method, loader(61, shuffle=False))
    assert_same(trained(method, flowing(61, kind=kind)), indexed)
    if name != "baseline":
        assert 0 < indexed[1].totals.samples_trained < EPOCHS * 61


def test_without_a_length_the_window_of_sb_fixed_is_of_whole_epochs_until_one_has_ended():
    """The first epoch has no length yet; from the second on it is as long as the one before."""
    _, _, seen, _ = trained(FixedRate(start=0.3, end=0.5, interrupt=0, warmup_epochs=0), flowing(64), max_epochs=4)
    assert [int(seen.counts[epoch]["scored"]) for epoch in range(4)] == [0, 48, 0, 0]  # 0.3 of 32 batches is after two of epoch 1


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_an_endless_stream_ends_by_max_steps_which_shares_of_the_training_are_of(start):
    method = FixedRate(start=start, end=1.0, interrupt=0, warmup_epochs=0)
    made, selection, _, _ = trained(method, flowing(None), max_epochs=-1, max_steps=20)
    assert made.global_step == 20
    assert selection.session.engine.counts.scored == 8 * (20 - 20 * start)


def test_an_endless_stream_trains_chosen_batches_until_max_steps():
    made, selection, _, _ = trained(SelectiveBackprop(warmup_epochs=0), flowing(None), max_epochs=-1, max_steps=20)
    counted = selection.session.engine.counts
    assert made.global_step == counted.steps == 20
    assert counted.chosen_trained == 160 < counted.scored


def test_batches_of_several_workers_are_counted_as_they_come():
    """Each of three workers ends with a part of a batch, in the midst of those of others."""
    _, selection, seen, _ = trained(SelectiveBackprop(), flowing(61, num_workers=3), max_epochs=3)
    assert sorted(seen.indices(0)) == list(range(61))
    assert [int(seen.counts[epoch]["scored"]) for epoch in range(3)] == [0, 61, 61]
    assert selection.totals.samples_trained + selection.totals.samples_rejected == 3 * 61


def test_the_data_set_is_told_the_epoch():
    train = flowing()
    trained(Baseline(), train, max_epochs=3)
    assert train.dataset.epochs == [0, 0, 1, 2]  # before workers can start, too


def test_a_stream_is_begun_once_for_each_epoch():
    class Once(Flow):
        begun = 0

        def __iter__(self):
            self.begun += 1
            return super().__iter__()

    train = flowing(kind=Once)
    trained(SelectiveBackprop(), train, max_epochs=3)
    assert train.dataset.begun == 3


def test_validation_comes_at_the_end_of_each_epoch():
    selection = SampleSelection(SelectiveBackprop())
    spy = Spy()
    fit(Net(), flowing(), selection, spy, val=loader(16), max_epochs=3)
    assert [len(spy.validations[epoch]) for epoch in range(3)] == [1] * 3
    assert list(spy.lengths.values()) == [float("inf")] * 3


# ---- lengths


def test_a_stream_shorter_than_it_says_ends_where_it_ends_and_is_told_once():
    train = DataLoader(SizedFlow(40, claimed=64), batch_size=8)
    with pytest.warns(UserWarning, match=r"ended after 5 batches and had said that it has 8 \(len\(\)\)") as warned:
        _, _, seen, _ = trained(SelectiveBackprop(), train, max_epochs=3)
    assert sum("ended after 5 batches" in str(each.message) for each in warned) == 1
    assert sorted(seen.indices(0)) == list(range(40))
    assert [int(seen.counts[epoch]["scored"]) for epoch in range(3)] == [0, 40, 40]


def test_a_stream_longer_than_it_says_is_cut_there_as_lightning_cuts_it():
    _, _, seen, _ = trained(SelectiveBackprop(), DataLoader(SizedFlow(64, claimed=40), batch_size=8), max_epochs=2)
    assert sorted(seen.indices(0)) == list(range(40))
    assert int(seen.counts[1]["scored"]) == 40


@pytest.mark.parametrize("kind", [Flow, SizedFlow])
def test_a_stream_without_a_batch_is_refused(kind):
    with pytest.raises(ConflictError, match="nothing to train"):
        trained(Baseline(), flowing(0, kind=kind))


# ---- schedules


def schedule(rates):
    def make(optimizer, module):
        def rate(step):
            rates.append(step)
            return 1.0

        return {"scheduler": LambdaLR(optimizer, rate), "interval": "step"}

    return make


@pytest.mark.parametrize(
    ("method", "settings", "steps"),
    [
        (Baseline(), {"max_epochs": 3}, 24),
        (Baseline(), {"max_epochs": 3, "accumulate_grad_batches": 2}, 12),
        (SelectiveBackprop(), {"max_epochs": 3}, 27),  # batches, and the one for what is left
        (SelectiveBackprop(), {"max_epochs": -1, "max_steps": 17}, 17),
    ],
)
def test_without_a_length_a_step_schedule_takes_a_step_for_each_batch_or_of_max_steps(method, settings, steps):
    made, _, _, _ = trained(method, flowing(), net=Net(dropout=0.0, schedule=schedule([])), **settings)
    assert made.lr_scheduler_configs[0].scheduler.last_epoch == steps


def test_with_a_length_a_schedule_keeps_pace():
    made, _, _, _ = trained(
        SelectiveBackprop(), flowing(kind=SizedFlow), net=Net(dropout=0.0, schedule=schedule([])), max_epochs=3
    )
    assert made.lr_scheduler_configs[0].scheduler.last_epoch == 3 * 9 == int(made.estimated_stepping_batches)


# ---- what is written


def test_a_run_is_recorded_without_its_samples(tmp_path, capsys):
    selection = SampleSelection(SelectiveBackprop())
    recorder = RunRecorder(selection, tmp_path / "run")
    keep = ModelCheckpoint(tmp_path, save_last=True)
    with pytest.warns(UserWarning, match="samples of iterable data have no index") as warned:
        fit(Net(), flowing(), selection, recorder, keep, val=loader(16), max_epochs=3, enable_checkpointing=True)
    assert sum("no index" in str(each.message) for each in warned) == 1
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["run.json", "selection.parquet"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["num_samples"] is None
    (run,), problems = read_runs([tmp_path / "run"])
    assert not problems
    assert len(run.history) == 3 and run.samples is None
    inspect([str(tmp_path / "last.ckpt")])
    assert "iterable data" in capsys.readouterr().out


# ---- what is refused


@pytest.mark.parametrize("name", ["kakurenbo", "stale_sb", "rho_loss", "plb", "infobatch"])
def test_a_method_that_needs_an_index_names_those_that_do_not(name, tmp_path):
    torch.save({"irreducible": torch.zeros(64)}, tmp_path / "irreducible.pt")
    settings = {"irreducible": tmp_path / "irreducible.pt"} if name == "rho_loss" else {}
    with pytest.raises(ConflictError, match=f"Flow is iterable data.* {name} knows samples by their index") as caught:
        fit(Net(), flowing(), SampleSelection(name, **settings))
    assert str(caught.value).endswith(
        "baseline, katharopoulos, rho_loss with irreducible=a trained LightningModule, sb_fixed, selective_backprop"
    )


def test_batches_without_rows_are_refused():
    class Numbers(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([{"value": 1.0}] * 8)

    with pytest.raises(ConflictError, match="no tensor or list with one row per sample"):
        fit(Net(), DataLoader(Numbers(), batch_size=None, collate_fn=dict), SampleSelection("baseline"))


def test_the_mean_over_samples_of_batches_to_come_is_refused():
    selection = SampleSelection("baseline", mean_over_samples=True)
    with pytest.raises(ConflictError, match=r"mean_over_samples=True.* iterable data"):
        fit(Net(), flowing(), selection, accumulate_grad_batches=4)


def test_losses_of_batches_are_refused():
    with pytest.raises(ConflictError, match=r"values='bls'.* iterable data"):
        fit(Net(), flowing(), SampleSelection("baseline", values="bls"))


def test_wrap_is_refused():
    class Wrapped(Net):
        def train_dataloader(self):
            return next(each for each in self.trainer.callbacks if isinstance(each, SampleSelection)).wrap(flowing())

    with pytest.raises(ConflictError, match=r"selection.wrap\(...\) takes a DataLoader of a map-style"):
        fit(Wrapped(), None, SampleSelection("baseline"))


# ---- before training


def test_a_check_says_which_methods_take_the_stream():
    report = SampleSelection.check(Net(), flowing())
    assert not any(report.methods[name] for name in ("baseline", "sb_fixed", "selective_backprop"))
    assert "samples have no index" in report.methods["kakurenbo"]


def test_advice_needs_an_index():
    with pytest.raises(ConflictError, match="advise estimates what methods hide"):
        advise(trainer(max_epochs=3), Net(), flowing())
