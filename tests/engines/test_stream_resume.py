"""A stream cut anywhere and resumed equals the uncut one to the bit: what was drawn ahead is trained first, what was observed is kept."""

import functools

import pytest
import torch
from cuts import SaveAt, on_ranks
from helpers import FEATURES, Net, fit, loader
from lightning.pytorch.callbacks import Callback, OnExceptionCheckpoint
from streamed import Draws, assert_same_weights
from torch import nn

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.core.sum_tree import SumTree
from kakurenbo_lightning.engines.exchange import NOBODY
from kakurenbo_lightning.errors import MismatchError
from kakurenbo_lightning.methods import ISWR, LB, NLB, OWC, PEB, PLB
from recipes.benchmarks.fault_run import SAMPLES, differences, equal, train

STEPS, EPOCHS = 12, 4  # of an epoch of 93 samples in batches of 8
pytestmark = pytest.mark.filterwarnings("ignore:.*ckpt_path", "ignore:.*limit_train_batches")

PRETRAINED = {
    "owc": OWC(pretrain_epochs=1),
    "lb": LB(pretrain_epochs=1),
    "nlb": NLB(pretrain_epochs=1, unbiased=True, mix=0.2),
    "plb": PLB(pretrain_epochs=1, unbiased=True, mix=0.1, cap_quantile=0.9),
    "peb": PEB(pretrain_epochs=1, temperature=0.5),
    "looking": PLB(refresh_share=0.2, diagnose=10),
    "longer": PLB(pretrain_epochs=1, epoch_length=15, max_staleness=3),
    "iswr": ISWR(unbiased=True, mix=0.2),
}
CUTS = {
    "pretraining": ("on_train_batch_end", 0, 4),
    "its last batch": ("on_train_batch_end", 0, -1),
    "its end": ("on_train_epoch_end", 0),
    "first drawn": ("on_train_batch_end", 1, 0),
    "drawn": ("on_train_batch_end", 1, 5),
    "before a batch": ("on_train_batch_start", 2, 3),
    "in a step": ("training_step", 2, 6),
    "last batch": ("on_train_batch_end", 1, -1),
    "validation": ("on_validation_batch_start", 1),
    "validation's end": ("on_validation_end", 1),
    "end": ("on_train_epoch_end", 1),
    "begin": ("on_train_epoch_start", 2),
}
EVERYWHERE = ("plb", "lb")  # the others are cut at some of them
SOME = ("pretraining", "its end", "first drawn", "in a step", "last batch", "validation's end")


class Table(Callback):
    """The table when training ends, and what the engine had drawn for each batch."""

    def __init__(self):
        self.state, self.drawn = None, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        engine = trainer.callbacks[0].session.engine
        if engine.shared_state() is not None:
            drawn = engine.drawn(batch_idx)
            self.drawn[trainer.current_epoch, batch_idx] = [drawn.indices, drawn.weights, drawn.written]
            assert torch.equal(drawn.indices, batch[2])

    def on_train_end(self, trainer, pl_module):
        engine = trainer.callbacks[0].session.engine
        self.state = engine.shared_state()


def run(folder, method, *callbacks, **options):
    """What ``fault_run.train`` returns, and the :class:`Table`."""
    table = Table()
    return train(folder, method, callbacks=(table, *callbacks), **{"epochs": EPOCHS, **options}), table


def assert_same(whole, resumed, name=""):
    (expected, before), (actual, after) = whole, resumed
    assert differences(expected, actual) == [], name
    assert equal(before.state, after.state), f"{name}: the tables differ"
    assert after.drawn == {} or equal({key: before.drawn[key] for key in after.drawn}, after.drawn), name


def state(path):
    """What the selection saved."""
    return torch.load(path, weights_only=True)["callbacks"]["SampleSelection"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """``saved(name, workers)``: a run that saved at each of :data:`CUTS`, equal to one that saved nothing; made once."""

    @functools.cache
    def get(name, workers=0, **options):
        folder = tmp_path_factory.mktemp(name)
        saves = [SaveAt(folder / f"{cut}.ckpt", *at) for cut, at in CUTS.items()]
        whole = run(folder, PRETRAINED[name], workers=workers, **options)
        assert_same(whole, run(folder, PRETRAINED[name], *saves, workers=workers, **options), "saving leaves no trace")
        assert all(save.saved for save in saves)
        return folder, whole

    return get


@pytest.mark.quick("plb", "looking")
@pytest.mark.parametrize("name", PRETRAINED)
def test_cut_anywhere_and_resumed_equals_uncut(saved, tmp_path, name):
    folder, whole = saved(name)
    for cut in CUTS if name in EVERYWHERE else SOME:
        assert_same(whole, run(tmp_path, PRETRAINED[name], resume=folder / f"{cut}.ckpt", seed=9), cut)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plb", "lb", "looking", "longer"])
def test_cut_anywhere_with_workers_and_resumed_equals_uncut(saved, tmp_path, name):
    """Batches that workers had drawn are in the checkpoint, with the weights and the staleness they were drawn with."""
    folder, whole = saved(name, 2)
    ahead = PRETRAINED[name].max_staleness or 4
    ahead -= ahead % 2  # two workers of the same depth
    (driven,) = state(folder / "drawn.ckpt")["engines"]
    assert sorted(number for number in driven["drawn"] if number > 5) == list(range(6, 6 + ahead))
    more = ("its last batch", "first drawn", "before a batch", "validation's end", "end") if name == "plb" else ()
    for cut in ("drawn", "last batch", *more):
        assert_same(whole, run(tmp_path, PRETRAINED[name], resume=folder / f"{cut}.ckpt", seed=9, workers=2), cut)


SETTINGS = {
    "accumulate": {"accumulate_grad_batches": 2},
    "validation twice an epoch": {"val_check_interval": 0.5},
    "so many batches": {"limit_train_batches": 7},
    "max_steps": {"max_steps": 40},
    "no validation": {"limit_val_batches": 0},
}


@pytest.mark.slow_cases("2", "no validation", "max_steps")
@pytest.mark.parametrize(("setting", "workers"), [*((setting, 0) for setting in SETTINGS), ("so many batches", 2)])
def test_cut_and_resumed_equals_uncut_whatever_the_trainer_does(tmp_path, setting, workers):
    cuts = {"mid": ("on_train_batch_end", 1, 3), "last": ("on_train_batch_end", 1, -1), "end": ("on_train_epoch_end", 1)}
    saves = [SaveAt(tmp_path / f"{cut}.ckpt", *at) for cut, at in cuts.items()]
    options = {"workers": workers, **SETTINGS[setting]}
    whole = run(tmp_path, PRETRAINED["plb"], *saves, **options)
    for cut in cuts:
        assert_same(whole, run(tmp_path, PRETRAINED["plb"], resume=tmp_path / f"{cut}.ckpt", seed=9, **options), cut)


class First(SaveAt):
    """Comes before the selection in the list of callbacks."""

    def setup(self, trainer, pl_module, stage):
        trainer.callbacks.sort(key=lambda callback: callback is not self)


class TablesLast(Table):
    """Finds the selection wherever it is."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        """Nothing."""

    def on_train_end(self, trainer, pl_module):
        (selection,) = (callback for callback in trainer.callbacks if isinstance(callback, SampleSelection))
        self.state = selection.session.engine.tree.state_dict()


class Plain(Net):
    """Nothing but weights changes in a step, so that one that is trained again is the same."""

    def __init__(self):
        super().__init__(dropout=0.0, rate=0.003)  # slow, so that some samples stay misclassified
        self.network = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, 3))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -0.5, 0.5)


def plain_run(method, *first, workers=0, ckpt_path=None, after=()):
    """Callbacks ``first`` come before the selection."""
    net, selection, table = Plain(), SampleSelection(method), TablesLast()
    train_loader = loader(61, num_workers=workers, persistent_workers=workers > 0)
    made = fit(net, train_loader, *first, selection, table, *after, max_epochs=3, ckpt_path=ckpt_path)
    return made, selection, table, net


@pytest.mark.quick("plb")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("method", [OWC(), LB(), PLB()], ids=lambda method: method.name)
@pytest.mark.parametrize("batch", [pytest.param(3, marks=pytest.mark.slow), -1])
def test_saved_before_the_selection_has_ended_the_batch_resumes_exactly(tmp_path, method, workers, batch):
    """The batch is trained, its observations are on their way: they are in the checkpoint, once."""
    save = SaveAt(tmp_path / "first.ckpt", "on_train_batch_end", 1, batch)
    _, selection, table, net = plain_run(method, save, workers=workers)
    _, reselection, retable, renet = plain_run(method, workers=workers, ckpt_path=save.path)
    assert_same_weights(net, renet)
    assert equal(table.state, retable.state)
    assert equal(selection.statistics.state_dict(), reselection.statistics.state_dict())
    _, _, untouched, _ = plain_run(method, workers=workers)
    assert equal(table.state, untouched.state), "saving leaves no trace"


@pytest.mark.slow_cases("lb", "nlb")
@pytest.mark.parametrize("hook", ["on_before_backward", "on_before_optimizer_step"])
@pytest.mark.parametrize("method", [OWC(), LB(), NLB(), PLB()], ids=lambda method: method.name)
def test_saved_inside_a_step_that_batch_is_trained_again_and_counts_once(tmp_path, method, hook):
    save = SaveAt(tmp_path / "inside.ckpt", hook, 1, 2)
    _, _, table, net = plain_run(method, after=(save,))
    _, _, retable, renet = plain_run(method, ckpt_path=save.path)
    assert save.saved
    assert_same_weights(net, renet)
    assert equal(table.state, retable.state)


class Interrupted(RuntimeError):
    pass


class RaiseAt(Callback):
    def __init__(self, hook):
        self.hook = hook

    def _reach(self, hook, trainer, batch):
        if (hook, trainer.current_epoch, batch) == (self.hook, 1, 4):
            raise Interrupted("of the test")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._reach("on_train_batch_start", trainer, batch_idx)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._reach("on_train_batch_end", trainer, batch_idx)


class Kept(OnExceptionCheckpoint):
    def teardown(self, trainer, *_, **__):
        """Lightning's own deletes the file."""


@pytest.mark.slow_cases("on_train_batch_start")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_train_batch_end"])
def test_saved_on_an_exception_resumes_exactly(saved, tmp_path, hook, workers):
    _, whole = saved("plb", workers)
    with pytest.raises(Interrupted):
        run(tmp_path, PRETRAINED["plb"], RaiseAt(hook), Kept(tmp_path), workers=workers)
    path = tmp_path / "on_exception.ckpt"
    assert_same(whole, run(tmp_path, PRETRAINED["plb"], resume=path, seed=9, workers=workers))


# ---- resumed otherwise


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (PLB(mix=0.1), "unbiased=False, the checkpoint has True"),
        (PLB(pretrain_epochs=1, unbiased=True, mix=0.1, cap_quantile=0.9, epoch_length=5), "epoch_length=5"),
        (PLB(pretrain_epochs=1, unbiased=True, mix=0.1, cap_quantile=0.9, max_staleness=0), "max_staleness=0"),
        (LB(pretrain_epochs=1), "method='lb', the checkpoint has 'plb'"),
    ],
    ids=["unbiased", "epoch_length", "max_staleness", "method"],
)
def test_other_settings_are_refused(saved, tmp_path, other, what):
    folder, _ = saved("plb")
    with pytest.raises(MismatchError, match=what):
        run(tmp_path, other, resume=folder / "drawn.ckpt")


def test_a_smaller_batch_goes_on_with_the_table_and_draws_anew(saved, tmp_path):
    folder, (before, _) = saved("plb", 2)
    save = SaveAt(tmp_path / "at once.ckpt", "on_train_batch_start", 1, 6)
    after, table = run(tmp_path, PRETRAINED["plb"], save, resume=folder / "drawn.ckpt", seed=9, batch_size=4)
    assert equal(state(folder / "drawn.ckpt")["shared"], state(save.path)["shared"]), "nothing is lost of what was observed"
    # 6 batches of 8 are behind, of 24 of 4; what is left of the 96 is drawn
    assert sorted(after["batches"][1]) == list(range(6, 18))
    assert {len(batch) for epoch in after["batches"].values() for batch in epoch.values()} == {4}
    assert [len(after["batches"][epoch]) for epoch in (2, 3)] == [24, 24]
    assert after["totals"]["samples_trained"] == SAMPLES + 3 * 96 == before["totals"]["samples_trained"]
    assert max(drawn[2] for drawn in table.drawn.values()) > 0


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0)])
def test_other_workers_go_on_with_the_table_and_what_was_drawn(saved, tmp_path, before, after):
    folder, (whole, _) = saved("plb", before)
    result, table = run(tmp_path, PRETRAINED["plb"], resume=folder / "drawn.ckpt", seed=9, workers=after)
    (driven,) = state(folder / "drawn.ckpt")["engines"]
    replayed = [number for number in driven["drawn"] if number > 5]
    assert len(replayed) == (4 if before else 0)
    for number in replayed:
        assert torch.equal(result["batches"][1][number], whole["batches"][1][number])
    assert [len(result["batches"][epoch]) for epoch in (1, 2, 3)] == [6, STEPS, STEPS]
    assert table.state["values"].isfinite().all()


def test_a_selection_that_begins_anew_looks_at_everything(saved, tmp_path):
    """``on_mismatch="reset"`` forgets the statistics, so nobody has seen any sample."""
    net, first = Plain(), SampleSelection(PLB())
    made = fit(net, loader(61), first, max_epochs=2)
    made.save_checkpoint(tmp_path / "other.ckpt")
    selection = SampleSelection(PLB(mix=0.1), on_mismatch="reset")
    draws = Draws(selection)
    with pytest.warns(UserWarning, match="the selection starts from the beginning"):
        fit(Plain(), loader(61), selection, draws, max_epochs=3, ckpt_path=tmp_path / "other.ckpt")
    assert selection.totals.samples_refreshed == 61
    assert selection.statistics.measured.all()


# ---- on other ranks


def written(table, steps):
    """The values of a saved table after further steps, each ``(indices, observed)``."""
    whole = SumTree(table["values"])
    whole.load_state_dict(table)
    for indices, observed in steps:
        floor = 1e-6 * float(whole.total) / len(whole)
        whole.update(indices, observed.clamp(min=floor))
    return whole.state_dict()


@pytest.mark.quick("one step observed nothing")
@pytest.mark.parametrize("skipped", [False, True], ids=["all observed", "one step observed nothing"])
def test_two_ranks_become_one_and_lose_nothing_that_was_observed(tmp_path, skipped):
    """The ranks had not exchanged their last two steps."""
    method = PLB(epoch_length=24, exchange_every=3)
    save = SaveAt(tmp_path / "two.ckpt", "on_train_batch_end", 1, 4)
    on_two = on_ranks(tmp_path, method, 2, epochs=3, callbacks=(save,))
    driven = state(save.path)["engines"]
    assert [len(rank["observed"]) for rank in driven] == [2, 2]
    steps = [
        tuple(torch.cat(parts) for parts in zip(*pairs, strict=True))
        for pairs in zip(*(rank["observed"] for rank in driven), strict=True)
    ]
    lost = []
    if skipped:  # as when a training_step returns None: the indices of what is sent are NOBODY
        checkpoint = torch.load(save.path, weights_only=True)
        own = next(kept for kept in checkpoint["callbacks"].values() if "engines" in kept)["engines"][1]["observed"][0]
        own[0].fill_(NOBODY)
        torch.save(checkpoint, save.path)
        steps[0] = tuple(driven[0]["observed"][0])
        lost = driven[1]["observed"][0][0].tolist()
    at_once, end = (SaveAt(tmp_path / f"{hook}.ckpt", hook, 1, 5) for hook in ("on_train_batch_start", "on_train_epoch_end"))
    (on_one,) = on_ranks(tmp_path, method, 1, epochs=3, resume=save.path, callbacks=(at_once, end))
    assert equal(state(at_once.path)["shared"], written(state(save.path)["shared"], steps))
    # 5 steps of 2 batches are behind
    assert list(on_one["batches"][1]) == list(range(5, 5 + 14))
    assert len(on_one["batches"][2]) == 24
    assert on_one["totals"]["samples_trained"] == on_two[0]["totals"]["samples_trained"] == 3 * 24 * 8
    (schedule,), (whole,) = on_one["schedules"], on_two[0]["schedules"]
    assert schedule["last_epoch"] == schedule["total_steps"] == whole["last_epoch"]
    assert_values_are_losses(end.path, besides=lost)


def assert_values_are_losses(path, besides=()):
    """The table holds what was last observed, but for losses that are next to 0 and those of the samples ``besides``."""
    losses, values = state(path)["statistics"]["loss"], state(path)["shared"]["values"]
    kept = [index for index in range(len(losses)) if index not in besides]
    losses, values = losses[kept], values[kept]
    assert torch.equal(values[losses > 1e-5], losses[losses > 1e-5]) and values.max() > 0.1
    assert (values[losses <= 1e-5] < 2e-5).all()


def test_one_rank_becomes_two(tmp_path):
    method = PLB(epoch_length=24)
    save = SaveAt(tmp_path / "one.ckpt", "on_train_batch_end", 1, 3)
    on_ranks(tmp_path, method, 1, epochs=3, callbacks=(save,))
    at_once, end = (SaveAt(tmp_path / f"{hook}.ckpt", hook, 1, 4) for hook in ("on_train_batch_start", "on_train_epoch_end"))
    on_two = on_ranks(tmp_path, method, 2, epochs=3, resume=save.path, callbacks=(at_once, end))
    assert equal(state(at_once.path)["shared"], state(save.path)["shared"])
    for rank in on_two:
        assert list(rank["batches"][1]) == list(range(4, 14))  # 20 batches were left
        assert len(rank["batches"][2]) == 12
    for number in range(4, 14):
        assert not torch.equal(on_two[0]["batches"][1][number], on_two[1]["batches"][1][number])
    assert_values_are_losses(end.path)
    assert on_two[0]["totals"]["samples_trained"] == 3 * 24 * 8


@pytest.mark.slow_cases("8")
@pytest.mark.parametrize("batch_size", [8, 4])
def test_two_ranks_that_had_not_exchanged_go_on_with_any_batch_size(tmp_path, batch_size):
    method = PLB(epoch_length=24, exchange_every=3)
    save = SaveAt(tmp_path / "two.ckpt", "on_train_batch_end", 1, 3)
    whole = on_ranks(tmp_path, method, 2, epochs=3, callbacks=(save,))
    end = SaveAt(tmp_path / "end.ckpt", "on_train_epoch_end", 1)
    resumed = on_ranks(tmp_path, method, 2, epochs=3, seed=9, resume=save.path, batch_size=batch_size, callbacks=(end,))
    if batch_size == 8:
        assert [differences(*ranks) for ranks in zip(whole, resumed, strict=True)] == [[], []]
    assert_values_are_losses(end.path)


@pytest.mark.parametrize("batch_size", [4, 2, 16])
def test_an_epoch_of_a_given_length_keeps_its_number_of_samples_with_another_batch_size(tmp_path, batch_size):
    method = PLB(epoch_length=10)
    save = SaveAt(tmp_path / "some.ckpt", "on_train_batch_end", 0, 4)
    run(tmp_path, method, save, epochs=1)
    after, _ = run(tmp_path, method, resume=save.path, epochs=1, batch_size=batch_size)
    left = sum(len(batch) for batch in after["batches"][0].values())
    assert left == -(-40 // batch_size) * batch_size
