"""A run on iterable data that is cut and resumed equals the uncut one where the loader keeps its place, and says so where it does not."""

import pytest
import torch
from cuts import SaveAt
from driven import Trained
from flows import CountingFlow, Flow, SizedCountingFlow, flowing
from held_out import rho
from helpers import Net, Points, fit, loader
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import MismatchError
from kakurenbo_lightning.methods.backprop.katharopoulos import Katharopoulos
from kakurenbo_lightning.methods.backprop.sb_fixed import FixedRate
from kakurenbo_lightning.methods.backprop.selective_backprop import SelectiveBackprop
from kakurenbo_lightning.methods.hide.baseline import Baseline

EPOCHS = 4
METHODS = {
    "baseline": Baseline(),
    "sb": SelectiveBackprop(history=40),
    "carry": SelectiveBackprop(history=40, leftover="carry"),
    "fixed": FixedRate(start=0.2, end=0.9),
    "katharopoulos": Katharopoulos(threshold=0),
    "rho_loss": rho(),
}
CUTS = {  # an epoch of 61 samples has eight batches, and, where a short step trains what is left, one more
    "start": ("on_train_epoch_start", 2, 0),
    "first": ("on_train_batch_start", 1, 0),
    "middle": ("on_train_batch_end", 1, 3),
    "within": ("on_before_backward", 1, 5),
    "last": ("on_train_batch_end", 1, 7),
    "short": ("on_train_batch_end", 1, 8),
    "validated": ("on_validation_end", 1, 0),
    "ended": ("on_train_epoch_end", 1, 0),
    "over": ("on_train_end", 0, 0),
}


def run(method, train, *callbacks, ckpt_path=None, seed=0, **settings):
    selection, seen, net = SampleSelection(method, seed=3), Trained(), Net()
    made = fit(
        net,
        train,
        selection,
        seen,
        *callbacks,
        val=loader(16, shuffle=False),
        ckpt_path=ckpt_path,
        seed=seed,
        **{"max_epochs": EPOCHS, **settings},
    )
    return made, selection, seen, net


def stateful(kind=CountingFlow, workers=0, count=61):
    return StatefulDataLoader(kind(count), batch_size=8, num_workers=workers)


def counts(selection):
    return {name: value for name, value in vars(selection.totals).items() if name.startswith("samples_")}


def assert_resumes_exactly(path, method, make, cut):
    hook, epoch, batch = CUTS[cut]
    uncut = run(method, make(), saving := SaveAt(path, hook, epoch, batch))
    if not saving.saved:
        pytest.skip(f"{method.name} has no batch {batch}")
    resumed = run(method, make(), ckpt_path=path, seed=99)
    assert resumed[0].global_step == uncut[0].global_step
    assert counts(resumed[1]) == counts(uncut[1])
    for later in range(epoch + 1, EPOCHS):
        assert resumed[2].indices(later) == uncut[2].indices(later)
    states = [made[3].state_dict().values() for made in (resumed, uncut)]
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


@pytest.mark.quick("first", "middle", "last", "ended")
@pytest.mark.parametrize("cut", [cut for cut in CUTS if cut != "over"])
def test_a_cut_run_resumes_exactly_where_the_loader_keeps_its_place(cut, tmp_path):
    assert_resumes_exactly(tmp_path / "cut.ckpt", METHODS["sb"], stateful, cut)


@pytest.mark.quick("fixed", "katharopoulos", "rho_loss")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [CountingFlow, SizedCountingFlow])
def test_every_method_resumes_exactly(method, kind, tmp_path):
    assert_resumes_exactly(tmp_path / "cut.ckpt", METHODS[method], lambda: stateful(kind), "middle")


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["middle", "last", "ended"])
@pytest.mark.parametrize("kind", [CountingFlow, SizedCountingFlow])
def test_with_workers_too(kind, cut, tmp_path):
    assert_resumes_exactly(tmp_path / "cut.ckpt", METHODS["sb"], lambda: stateful(kind, workers=2), cut)


@pytest.mark.parametrize("kind", [CountingFlow, SizedCountingFlow])
def test_an_epoch_that_is_over_is_not_read_again(kind, tmp_path):
    """A training that goes on for longer than it was to."""
    path = tmp_path / "cut.ckpt"
    run(METHODS["sb"], stateful(kind), SaveAt(path, "on_train_end", 2), max_epochs=2)
    longer = run(METHODS["sb"], stateful(kind), ckpt_path=path)
    uncut = run(METHODS["sb"], stateful(kind))
    for epoch in (2, 3):
        assert longer[2].indices(epoch) == uncut[2].indices(epoch)


def test_a_loader_without_a_place_begins_again_and_says_so(tmp_path):
    path = tmp_path / "cut.ckpt"
    run(METHODS["baseline"], flowing(61), SaveAt(path, "on_train_batch_end", 1, 3))
    with pytest.warns(
        UserWarning, match=r"DataLoader: nobody knows where it stood after 4 batches of epoch 1 \(it has no state_dict\)"
    ):
        _, selection, seen, _ = run(METHODS["baseline"], flowing(61), ckpt_path=path)
    assert sorted(seen.indices(1)) == list(range(61))  # from its start
    assert selection.totals.samples_trained == 4 * 61 + 32


def test_a_loader_of_known_length_without_a_place_trains_as_many_batches_as_are_left(tmp_path):
    class Sized(Flow):
        def __len__(self):
            return self.count

    path = tmp_path / "cut.ckpt"
    run(METHODS["baseline"], flowing(64, kind=Sized), SaveAt(path, "on_train_batch_end", 1, 2))
    with pytest.warns(UserWarning, match="nobody knows where it stood after 3 batches"):
        _, selection, seen, _ = run(METHODS["baseline"], flowing(64, kind=Sized), ckpt_path=path)
    assert sorted(seen.indices(1)) == list(range(40))
    assert selection.totals.samples_trained == 4 * 64


def test_at_an_epochs_end_no_place_is_missed(tmp_path, recwarn):
    path = tmp_path / "cut.ckpt"
    uncut = run(METHODS["sb"], flowing(61), SaveAt(path, "on_train_epoch_end", 1))
    resumed = run(METHODS["sb"], flowing(61), ckpt_path=path)
    assert not [warning for warning in recwarn if "nobody knows" in str(warning.message)]
    states = [made[3].state_dict().values() for made in (resumed, uncut)]
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


def test_a_checkpoint_of_a_map_style_data_set_does_not_fit(tmp_path):
    path = tmp_path / "cut.ckpt"
    run(METHODS["sb"], DataLoader(Points(61), 8), SaveAt(path, "on_train_epoch_end", 1))
    with pytest.raises(MismatchError, match="the data set has 0 samples, the checkpoint's had 61"):
        run(METHODS["sb"], flowing(61), ckpt_path=path)


def test_a_stream_that_claims_more_than_it_has_resumes_at_its_end(tmp_path):
    path = tmp_path / "cut.ckpt"

    def claiming():
        made = stateful(SizedCountingFlow, count=40)
        made.dataset.claimed = 64
        return made

    uncut = run(METHODS["baseline"], claiming(), SaveAt(path, "on_train_batch_end", 0, 4))
    resumed = run(METHODS["baseline"], claiming(), ckpt_path=path)
    assert counts(resumed[1]) == counts(uncut[1])
    assert resumed[2].indices(1) == uncut[2].indices(1)
