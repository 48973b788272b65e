"""What goes wrong in a run ends in a clear error or in a correct continuation: values, samples, workers, ranks."""

import json
import multiprocessing
import os
import signal
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from fault_fits import BROKEN, absent_rank, broken_sample, told
from helpers import ONE_OF_A_KIND, Net, Points, Spy, fit
from lightning.pytorch.callbacks import Callback
from method_tester import short_run
from pod_tester import STREAMS
from torch import nn
from torch.utils.data import DataLoader, Sampler
from torch.utils.data._utils import signal_handling

from kakurenbo_lightning import SampleSelection, available_methods
from recipes.benchmarks.forked import printed, run_ranks

SAMPLES = 40
ODD = {3: float("nan"), 10: float("inf"), 20: -float("inf")}


class OddNet(Net):
    """Every sample is right and sure; some losses are not finite, the one that is trained on is.

    Args:
        odd: index -> its loss.
    """

    def __init__(self, odd):
        super().__init__()
        self.odd = odd

    def training_step(self, batch, batch_idx):
        x, y, index = batch
        loss = F.cross_entropy(self.network(x), y, reduction="none")
        seen = loss.detach().clone()
        for place, number in enumerate(index.tolist()):
            seen[place] = self.odd.get(number, seen[place])
        sure = torch.ones_like(seen)
        return {"loss": loss.mean(), "sample_loss": seen, "confidence": sure, "correct": sure.bool()}


class Logged(Spy):
    """Also what was logged as selection/nonfinite, by epoch."""

    def __init__(self, selection):
        super().__init__(selection)
        self.nonfinite = {}

    def on_train_epoch_end(self, trainer, pl_module):
        self.nonfinite[trainer.current_epoch] = float(trainer.callback_metrics["selection/nonfinite"])


def run(module, method="kakurenbo", data=None, **settings):
    """A fit of four epochs, the warnings of ours that it gave, and the spy."""
    selection = SampleSelection(method, **settings)
    spy = Logged(selection)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(module, DataLoader(data or Points(SAMPLES), 8, shuffle=True), selection, spy)
    return selection, spy, [str(one.message) for one in caught if "NaN" in str(one.message)]


KAKURENBO = {"max_fraction": 0.5, "tau": 0.0}


def test_samples_whose_loss_is_not_finite_are_never_hidden():
    selection, spy, warned = run(OddNet(ODD), **KAKURENBO)
    hidden = set().union(*spy.hidden.values())
    assert hidden and not hidden & ODD.keys()
    assert all(set(spy.trained(epoch)) >= ODD.keys() for epoch in range(4))
    assert not selection.statistics.loss[list(ODD)].isfinite().any()
    assert spy.nonfinite == {0: 0, 1: 3, 2: 3, 3: 3}
    assert len(warned) == 1 and f"3 of {SAMPLES} samples" in warned[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_run_in_which_no_loss_is_finite_hides_nothing_and_goes_on(value):
    _, spy, warned = run(OddNet(dict.fromkeys(range(SAMPLES), value)), **KAKURENBO)
    assert set(map(tuple, spy.hidden.values())) == {()}
    assert spy.nonfinite == {0: 0, 1: SAMPLES, 2: SAMPLES, 3: SAMPLES}
    assert len(warned) == 1


def test_losses_that_become_finite_again_count_no_more():
    class Healing(OddNet):
        def on_train_epoch_start(self):
            self.odd = ODD if self.current_epoch == 0 else {}

    _, spy, warned = run(Healing(ODD), **KAKURENBO)
    assert spy.nonfinite == {0: 0, 1: 3, 2: 0, 3: 0}
    assert len(warned) == 1


@pytest.mark.quick(*ONE_OF_A_KIND)
@pytest.mark.parametrize("method", available_methods())
def test_logits_that_are_not_finite_do_not_stop_a_run(method):
    """One sample spoils the weights; from then on every loss is NaN, whatever the method does with that."""

    class Plain(Net):
        def __init__(self):
            super().__init__()
            self.network = nn.Linear(6, 3)  # without BatchNorm only the one sample's logits are NaN at first

    data = Points(SAMPLES)
    data.x[5] = float("inf")
    method = short_run(method, SAMPLES)
    selection, spy, warned = run(Plain(), method, data)
    assert len(spy.steps) == 4 + method.scoring_epochs(4)
    assert len([text for text in warned if "have a NaN or infinite loss" in text]) == 1
    if method.name in STREAMS:  # the sample may be drawn late, and is looked at before
        table = selection.session.engine.tree.values
        assert spy.nonfinite[0] <= 1 <= spy.nonfinite[3] and spy.steps == [5] * 4
        assert table.isfinite().all() and table.min() > 0
        assert len(warned) == 1 + (method.observes != "wrong"), "and one of values that are not written"
        return
    assert len(warned) == 1
    assert spy.nonfinite[0] == 0 and all(spy.nonfinite[epoch] > 1 for epoch in (1, 2, 3))
    if method.name == "kakurenbo":
        assert spy.steps == [5, 5, 5, 5]


def ended(folder, function, *args, world_size=1, seconds=60):
    """How ``function(*args)`` ended, by rank, in new processes that are killed when they hang."""
    file = folder / "end"
    run_ranks(told, (file, function, *args), world_size, log=folder / "log", seconds=seconds)
    files = [file.with_suffix(f".{rank}.json") for rank in range(world_size)]
    assert files[0].exists(), printed(folder / "log", world_size)
    return [json.loads(path.read_text()) if path.exists() else None for path in files]


def assert_note(end, *words):
    if sys.version_info >= (3, 11):
        notes = [note for note in end["notes"] if note.startswith("SampleSelection: ")]
        assert len(notes) == 1, end
        (note,) = notes
        for word in words:
            assert word in note


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("epoch", [0, 1], ids=["in training", "in the refresh pass"])
def test_a_sample_that_cannot_be_read_raises_the_users_own_error(tmp_path, workers, epoch):
    (end,) = ended(tmp_path, broken_sample, "raise", epoch, workers)
    assert end["type"] == "BrokenSampleError" and f"sample {BROKEN} cannot be read" in end["text"]
    where = "in epoch 1 after step 4 of 4" if epoch else "in epoch 0 after step"
    assert_note(end, "rank 0", where)


@pytest.mark.parametrize("epoch", [0, 1], ids=["in training", "in the refresh pass"])
def test_a_worker_that_dies_is_an_error_and_no_hang(tmp_path, epoch):
    (end,) = ended(tmp_path, broken_sample, "die", epoch, 2)
    assert end["type"] == "RuntimeError" and "DataLoader worker" in end["text"]
    assert_note(end, "rank 0", f"in epoch {epoch}")


@pytest.mark.parametrize("method", ["kakurenbo", "plb"])
def test_an_error_while_workers_are_started_is_not_hidden_by_lightnings_teardown(method):
    """A worker may die as early as that; plain Lightning says "Please call `iter(combined_loader)` first" and no more."""
    train = DataLoader(
        Points(SAMPLES), 8, shuffle=True, num_workers=1, multiprocessing_context="spawn", worker_init_fn=lambda worker: None
    )
    with pytest.raises(Exception, match="pickle"):
        fit(Net(), train, SampleSelection(method))


@pytest.mark.parametrize("number", [1, 2], ids=["first validation", "second validation"])
def test_an_error_while_validation_workers_are_started_has_the_note(number):
    """Lightning's validation loop does not hide it as its fit loop does."""

    class Failing(Sampler):
        times = 0

        def __iter__(self):
            self.times += 1
            if self.times == number:
                raise RuntimeError("as planned")
            return iter(range(16))

    val = DataLoader(Points(16), 8, sampler=Failing(), num_workers=1)
    with pytest.raises(RuntimeError, match="as planned") as caught:
        fit(Net(), DataLoader(Points(SAMPLES), 8, shuffle=True), SampleSelection("baseline"), val=val)
    assert_note({"notes": getattr(caught.value, "__notes__", [])}, f"rank 0, in epoch {number - 1} after step 5 of 5")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have notes since Python 3.11")
def test_an_error_before_the_first_epoch_is_planned_says_where_it_was():
    """A worker may die as soon as it has been started, which is before."""

    class Dying(Callback):
        def on_train_start(self, trainer, pl_module):
            assert selection.plan is None
            raise RuntimeError("DataLoader worker is killed")

    selection = SampleSelection("kakurenbo")
    with pytest.raises(RuntimeError, match="is killed") as caught:
        fit(Net(), DataLoader(Points(SAMPLES), 8, shuffle=True, num_workers=2), selection, Dying())
    assert_note({"notes": caught.value.__notes__}, "rank 0, in epoch 0 after step 0")


def kill_worker(others):
    """Kill the one loader worker that is not among ``others``; torch's handler runs as soon as Python comes to it."""
    (worker,) = set(multiprocessing.active_children()) - others
    os.kill(worker.pid, signal.SIGKILL)
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have notes since Python 3.11")
@pytest.mark.parametrize("late", [False, True], ids=["before our hook", "after it"])
def test_a_worker_whose_death_is_noticed_while_another_error_is_handled(late, monkeypatch):
    """The error that comes last is the one that the user gets; it has the note, too."""
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)  # Lightning puts torch's away when a fit ends

    class Noticing(Callback):
        def on_exception(self, trainer, pl_module, exception):
            kill_worker(others)

    class Failing(Net):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3:
                raise ConnectionResetError("by a worker that is about to end")
            return super().training_step(batch, batch_idx)

    others = set(multiprocessing.active_children())  # of trainings whose errors are still held
    callbacks = [SampleSelection("kakurenbo"), Noticing()]
    train = DataLoader(Points(SAMPLES), 8, shuffle=True, num_workers=1, persistent_workers=True)
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* is killed") as caught:
        fit(Failing(), train, *callbacks[:: 1 if late else -1])
    assert_note({"notes": caught.value.__notes__}, "rank 0, in epoch 0 after step 3 of 5")
    assert isinstance(caught.value.__context__, ConnectionResetError)
    assert signal.getsignal(signal.SIGCHLD).__module__ == signal_handling.__name__, "nothing of ours is left"


@pytest.mark.parametrize("method", ["kakurenbo", "selective_backprop"])
def test_a_worker_that_dies_while_the_first_batch_is_verified_is_no_fault_of_the_step(method, monkeypatch):
    """It was taken for one, so the error was another one or none at all; first batches are where workers die."""
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)

    class Dying(Net):
        def training_step(self, batch, batch_idx):
            if not killed and not torch.is_grad_enabled():  # it runs once more, to verify what is recorded
                killed.append(kill_worker(others))
            assert batch_idx == 0, "training went on"
            return super().training_step(batch, batch_idx)

    others, killed = set(multiprocessing.active_children()), []
    train = DataLoader(Points(SAMPLES), 8, shuffle=True, num_workers=1, persistent_workers=True)
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* is killed") as caught:
        fit(Dying(), train, SampleSelection(method))
    assert killed
    assert_note({"notes": getattr(caught.value, "__notes__", [])}, "rank 0, in epoch 0 after step 0 of 5")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have notes since Python 3.11")
def test_an_error_is_explained_before_anything_is_undone(monkeypatch):
    """A device that has failed fails again when something is put back on it."""

    class Failing(Net):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3:
                monkeypatch.setattr(selection.session.factor, "release", release)
                raise ValueError("the user's")
            return super().training_step(batch, batch_idx)

    def release():
        raise RuntimeError("the device's")

    selection = SampleSelection("kakurenbo")
    with pytest.raises(RuntimeError, match="the device's") as caught:
        fit(Failing(), DataLoader(Points(SAMPLES), 8, shuffle=True), selection)
    assert_note({"notes": caught.value.__context__.__notes__}, "rank 0, in epoch 0 after step 3 of 5")


def test_a_rank_that_never_arrives_is_an_error_that_says_who_waited_where(tmp_path):
    waiting, absent = ended(tmp_path, absent_rank, None, 5, world_size=2)
    assert waiting["type"] == "RuntimeError" and absent is None
    assert "rank 0, in epoch 1 after step 4 of 4, waited for the other ranks to merge the statistics" in waiting["text"]


@pytest.mark.slow
def test_a_rank_missing_from_ddps_own_collective_is_an_error_with_our_note(tmp_path):
    waiting, absent = ended(tmp_path, absent_rank, 7, 5, world_size=2)
    assert waiting["type"] and absent is None
    assert_note(waiting, "rank 0, in epoch 1 after step 2 of 4")
