"""Hiding by key on iterable data: what a plan leaves out is not loaded, and plans are those of the methods' references."""

import logging

import pytest
import torch
from driven import Trained
from flows import flowing
from helpers import Net, fit, loader
from histories import History, Sighting
from keyed import COUNT, EPOCHS, KeptFlow, LineNet, Plans, keyed_run
from lightning.pytorch.callbacks import ModelCheckpoint
from method_tester import ROWS
from references import expected
from torch.utils.data import DataLoader, IterableDataset

from kakurenbo_lightning import Epoch, SampleSelection, SelectionGuard, available_methods, get_method
from kakurenbo_lightning.cli.inspection import main as inspect
from kakurenbo_lightning.core.key_table import key_of
from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.record import RunRecorder

SETTINGS = {
    "kakurenbo": {"tau": 0.4},
    "forget_online": {},
    "ies": {"threshold": 10.0, "window": 1},
    "infobatch": {},
    "random": {},
    "random_cycle": {},
    "orderdp": {},
    "seta": {"prune_ratio": 0.2},
}
KEPT_FRESH = {"kakurenbo", "forget_online", "ies"}  # hidden samples of others are never refreshed


def method_of(name, **settings):
    return get_method(name, **{**SETTINGS[name], **settings})


def of_plan(plan):
    """Hidden keys, as a set."""
    return set(plan.hidden.tolist())


def sightings(known, epochs):
    """What the statistics that each of ``epochs`` began with say of every sample, as a history."""
    seen = [() for _ in range(COUNT)]
    for epoch in epochs:
        columns = known[epoch]
        rows = zip(*(columns[name].tolist() for name in ("epoch_seen", "loss", "confidence", "correct")), strict=True)
        for key, (when, loss, confidence, correct) in zip(columns["keys"].tolist(), rows, strict=True):
            if when == epoch - 1:
                seen[key] += (Sighting(when, loss, confidence, correct, 0.0),)
    return seen


@pytest.mark.quick("kakurenbo", "infobatch")
@pytest.mark.parametrize("name", SETTINGS)
def test_each_epoch_loads_and_trains_what_the_reference_leaves(name):
    method = method_of(name)
    _, selection, seen, _ = keyed_run(method, given={"max_hidden_epochs": 2})
    hidden = {epoch: of_plan(plan) for epoch, plan in seen.plans.items()}
    for epoch in range(EPOCHS):
        assert sorted(seen.indices(epoch)) == sorted(set(range(COUNT)) - hidden[epoch])
        told = sightings(seen.known, range(1, epoch + 1))
        if name in KEPT_FRESH:  # what was measured more than two epochs ago counts as never measured
            told = [each if each and each[-1].epoch >= epoch - 2 else () for each in told]
        history = History(tuple(told), (0,) * COUNT)
        right = expected(ROWS[name].reference, method, history, Epoch(epoch, EPOCHS, 3)).hidden if epoch else set()
        assert hidden[epoch] == right
    assert not hidden[0] and any(hidden.values())
    assert selection.totals.samples_hidden == sum(map(len, hidden.values())) == selection.totals.samples_spared
    assert selection.totals.samples_refreshed == 0


@pytest.mark.quick("random")
@pytest.mark.parametrize("name", ["random", "random_cycle"])
def test_draws_are_those_of_a_map_style_data_set_with_the_keys_as_indices(name):
    class Hidden(Trained):
        plans = None

        def on_train_epoch_start(self, trainer, pl_module):
            self.plans = {**(self.plans or {}), trainer.current_epoch: selection.plan.hidden.tolist()}

    selection, indexed = SampleSelection(method_of(name), seed=3), Hidden()
    fit(LineNet(), loader(COUNT), selection, indexed, max_epochs=EPOCHS)
    for workers in (0, 2):
        _, _, seen, _ = keyed_run(method_of(name), workers=workers)
        assert [seen.plans[epoch].hidden.tolist() for epoch in range(1, EPOCHS)] == [indexed.plans[e] for e in range(1, EPOCHS)]


def test_weights_and_batches_are_those_of_a_map_style_data_set_in_order():
    """As long as no epoch has a tail, which the shards of a map-style data set share with the batch before."""
    method = get_method("random", max_fraction=0.25, start_epoch=1, unbiased=True)
    selection, net = SampleSelection(method, seed=3), LineNet()
    indexed = Trained()
    fit(net, loader(64, shuffle=False), selection, indexed, max_epochs=EPOCHS)
    _, keyed, seen, other = keyed_run(method, count=64, flow={"shuffled": False})
    assert keyed.plan.weights[keyed.plan.weights > 0].unique().tolist() == [pytest.approx(4 / 3)]
    assert [seen.indices(epoch) for epoch in range(EPOCHS)] == [indexed.indices(epoch) for epoch in range(EPOCHS)]
    assert all(torch.equal(one, two) for one, two in zip(net.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("most", [1, 3])
def test_a_sample_of_a_method_that_refreshes_comes_back(most):
    _, _, seen, _ = keyed_run(
        get_method("kakurenbo", max_fraction=0.4, tau=0.0), max_epochs=10, given={"max_hidden_epochs": most}
    )
    hidden = [of_plan(seen.plans[epoch]) for epoch in range(10)]
    rows = [max(map(len, "".join("x" if key in each else " " for each in hidden).split() or [""])) for key in range(COUNT)]
    assert max(rows) == most
    assert [len(each) for each in hidden[1:]] != [0] * 9


def test_a_choice_is_kept_for_as_many_epochs_as_asked():
    _, _, seen, _ = keyed_run(method_of("infobatch", every_n_epochs=2, end_fraction=0.0))
    kept = [of_plan(seen.plans[epoch]) for epoch in range(EPOCHS)]
    assert kept[1] == kept[2] != kept[3] == kept[4] and kept[1]


def test_keys_may_be_strings():
    name = "part/{:03d}".format
    _, _, numbers, _ = keyed_run(method_of("kakurenbo"), max_epochs=2, flow={"shuffled": False})
    _, _, strings, _ = keyed_run(method_of("kakurenbo"), max_epochs=2, flow={"shuffled": False, "name": name})
    assert of_plan(strings.plans[1]) == {key_of(name(key)) for key in of_plan(numbers.plans[1])} != set()
    assert strings.indices(1) == numbers.indices(1)


class Growing(IterableDataset):
    """Ten samples more in each epoch."""

    def __init__(self, keep):
        self.flow, self.epoch = KeptFlow(keep), 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return (sample for sample in self.flow if sample[2] < 20 + 10 * self.epoch)


def test_samples_that_come_later_are_trained_and_known_from_then_on():
    selection = SampleSelection(get_method("random", max_fraction=0.5), seed=3, key=3)
    seen = Plans(selection)
    fit(LineNet(), DataLoader(Growing(selection.keep), 8), selection, seen, max_epochs=4)
    for epoch in range(4):
        assert set(range(10 + 10 * epoch, 20 + 10 * epoch)) <= set(seen.indices(epoch))
        assert seen.plans[epoch].total == (10 + 10 * epoch if epoch else 0)
        assert len(seen.indices(epoch)) == 20 + 10 * epoch - seen.plans[epoch].total // 2
    assert len(selection.statistics) == 50


def test_baseline_records_by_key_and_leaves_nothing_out():
    _, selection, seen, _ = keyed_run("baseline", max_epochs=2)
    assert sorted(seen.indices(1)) == list(range(COUNT)) == selection.statistics.keys.tolist()
    assert selection.statistics.measured.all() and selection.statistics.loss.isfinite().all()


def test_a_guard_trains_on_everything():
    class Falling(LineNet):
        def validation_step(self, batch, batch_idx):
            self.log("val_acc", torch.tensor(0.9 if self.current_epoch < 2 else 0.1))

    guard = SelectionGuard("val_acc", 0.05, reference=[0.5])
    _, _, seen, _ = keyed_run(get_method("random"), val=loader(16, shuffle=False), net=Falling(), given={"guard": guard})
    assert [seen.plans[epoch].hidden_count > 0 for epoch in range(EPOCHS)] == [False, True, True, False, False, False]


def test_batches_are_accumulated_as_lightning_does():
    made, _, _, _ = keyed_run("random", max_epochs=3, accumulate_grad_batches=4)
    assert made.global_step == 2 + 2 * 2  # of eight batches, then six


def test_a_run_is_recorded_and_inspected(tmp_path, capsys, caplog):
    selection = SampleSelection(method_of("kakurenbo"), seed=3, key=3)
    recorder = RunRecorder(selection, tmp_path / "run")
    with pytest.warns(UserWarning, match="samples of iterable data have no index"), caplog.at_level(logging.INFO):
        keyed_run(None, recorder, ModelCheckpoint(tmp_path, save_last=True), selection=selection, enable_checkpointing=True)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["run.json", "selection.parquet"]
    inspect([str(tmp_path / "last.ckpt")])
    shown = capsys.readouterr().out
    assert f"{COUNT} samples of iterable data, by key" in shown and "key=3" in shown
    assert f" {selection.plan.hidden_count} ({selection.plan.hidden_fraction:.1%})" in shown
    assert all(str(key) in shown for key in selection.plan.hidden[:3].tolist())


# ---- what is refused


class Unfiltered(KeptFlow):
    def __init__(self, keep):
        super().__init__(lambda key: True)


@pytest.mark.parametrize("name", ["random", "infobatch"])
def test_hidden_samples_that_come_all_the_same_are_an_error(name):
    selection = SampleSelection(method_of(name), seed=3, key=3)
    with pytest.raises(
        ConflictError, match=r"samples of batch \d are to be left out of epoch 1, and have come all the same: put selection"
    ):
        fit(LineNet(), DataLoader(Unfiltered(selection.keep), 8), selection)


def test_a_batch_without_the_key_is_refused_at_once():
    selection = SampleSelection("random", key="id")
    with pytest.raises(ConflictError, match=r"key='id': the batch has no field 'id', it has a list of 3 values"):
        fit(LineNet(), flowing(), selection)


def test_a_key_that_comes_again_in_an_epoch_is_refused_at_its_end():
    class Twice(KeptFlow):
        def __iter__(self):
            yield from super().__iter__()
            yield from super().__iter__()

    selection = SampleSelection("random", key=3)
    with pytest.raises(ConflictError, match=r"61 of 122 samples that were trained .* have the key of another one"):
        fit(LineNet(), DataLoader(Twice(selection.keep), 8), selection)


def test_a_map_style_data_set_needs_no_key():
    with pytest.raises(ConflictError, match=r"key=...\) is for iterable data, and the train loader's Points is map-style"):
        fit(Net(), loader(), SampleSelection("random", key=2))


UNABLE = ["el2n", "forget", "rcap", "selective_backprop", "stale_sb", "katharopoulos", "sb_fixed", "plb", "iswr", "owc"]


@pytest.mark.parametrize("name", UNABLE)
def test_a_method_that_needs_more_than_keys_is_refused_by_name(name):
    with pytest.raises(
        ValueError, match=rf"key=... is not allowed with {name}: .*\. Methods that take keys: baseline, forget_online, ies"
    ) as e:
        SampleSelection(name, key="id")
    assert str(e.value).endswith("infobatch, kakurenbo, orderdp, random, random_cycle, seta")
    assert set(UNABLE) | set(SETTINGS) | {"baseline"} <= set(available_methods())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"key": 1.5}, "key=1.5 is not allowed; key must be the name of a field"),
        ({"key": ()}, r"key=\(\) is not allowed"),
        ({"key": "id", "save": 0.2}, "not allowed with save"),
        ({"key": "id", "values": "bls"}, "not allowed with values"),
        ({"key": "id", "statistics": "sharded"}, "not allowed with statistics"),
        ({"key": "id", "protected": [1]}, "protected=... names samples by their index"),
        ({"key": "id", "balance": "class"}, "the class of each sample is not known before it arrives"),
        ({"key": "id", "max_hidden_epochs": 0}, "max_hidden_epochs=0 is not allowed"),
    ],
)
def test_settings_that_do_not_go_with_keys_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        SampleSelection("kakurenbo", **settings)


def test_keep_asks_for_the_key():
    with pytest.raises(ConflictError, match=r"name the field that it is in: SampleSelection\(..., key='id'\)"):
        SampleSelection("kakurenbo").keep({"id": 1})


def test_batch_norm_that_stops_at_one_sample_is_explained():
    selection = SampleSelection(get_method("random", max_fraction=0.2), seed=3, key=3)  # 49 of 61 are left
    with pytest.raises(ValueError, match="Expected more than 1 value per channel") as caught:
        fit(Net(), DataLoader(KeptFlow(selection.keep), 8), selection, max_epochs=2)
    told = "".join(getattr(caught.value, "__notes__", ["at a batch of one sample, drop_last=True"]))
    assert "at a batch of one sample" in told and "drop_last=True" in told
