"""A run on iterable data with keys that is cut and resumed equals the uncut one."""

import pytest
import torch
from cuts import SaveAt
from keyed import EPOCHS, keyed_run

from kakurenbo_lightning import SampleSelection, get_method
from kakurenbo_lightning.errors import MismatchError, StateError
from kakurenbo_lightning.methods import ForgetOnline, InfoBatch, Kakurenbo, RandomHiding

METHODS = {
    "kakurenbo": Kakurenbo(max_fraction=0.4, tau=0.4),
    "infobatch": InfoBatch(),
    "random": RandomHiding(),
    "forget_online": ForgetOnline(),
    "kept": Kakurenbo(max_fraction=0.4, tau=0.4, every_n_epochs=3),
}
CUTS = {
    "unknown": ("on_train_batch_end", 0, 3),
    "start": ("on_train_epoch_start", 2, 0),
    "first": ("on_train_batch_start", 2, 0),
    "middle": ("on_train_batch_end", 2, 3),
    "within": ("on_before_backward", 2, 4),
    "ended": ("on_train_epoch_end", 2, 0),
}


def assert_resumes_exactly(path, method, cut, **settings):
    hook, epoch, batch = CUTS[cut]
    plain = keyed_run(method, **settings)
    uncut = keyed_run(method, saving := SaveAt(path, hook, epoch, batch), **settings)
    assert saving.saved
    resumed = keyed_run(method, ckpt_path=path, seed=99, **settings)
    for other in (plain, resumed):  # saving a checkpoint changes nothing
        assert other[0].global_step == uncut[0].global_step
        for later in range(epoch + 1, EPOCHS):
            assert other[2].indices(later) == uncut[2].indices(later)
            assert other[2].plans[later].hidden.tolist() == uncut[2].plans[later].hidden.tolist()
        states = [made[3].state_dict().values() for made in (other, uncut)]
        assert all(torch.equal(one, two) for one, two in zip(*states, strict=True))
        columns = [made[1].statistics.state_dict() for made in (other, uncut)]
        assert all(torch.equal(column.nan_to_num(-1), columns[1][name].nan_to_num(-1)) for name, column in columns[0].items())
    assert resumed[1].totals.samples_hidden == uncut[1].totals.samples_hidden > 0


@pytest.mark.quick("middle", "unknown")
@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_run_resumes_exactly(cut, tmp_path):
    assert_resumes_exactly(tmp_path / "cut.ckpt", METHODS["kakurenbo"], cut)


@pytest.mark.quick("infobatch")
@pytest.mark.parametrize("name", [name for name in METHODS if name != "kakurenbo"])
def test_every_method_resumes_exactly(name, tmp_path):
    assert_resumes_exactly(tmp_path / "cut.ckpt", METHODS[name], "middle")


@pytest.mark.slow
def test_workers_of_a_resumed_run_leave_out_what_the_epoch_hides(tmp_path):
    assert_resumes_exactly(tmp_path / "cut.ckpt", METHODS["kakurenbo"], "middle", workers=2)


def test_a_checkpoint_has_plain_tensors_and_belongs_to_its_key(tmp_path):
    path = tmp_path / "cut.ckpt"
    _, selection, _, _ = keyed_run(METHODS["infobatch"], SaveAt(path, "on_train_batch_end", 2, 3), max_epochs=3)
    state = torch.load(path, weights_only=True)["callbacks"][selection.state_key]
    assert state["statistics"]["keys"].tolist() == list(range(61)) and state["num_samples"] == 61
    assert sorted(state["plan"]) == ["keys", "lr_factor", "metrics", "total", "weights"]
    other = SampleSelection(METHODS["infobatch"], seed=3, key=-1)
    with pytest.raises(MismatchError, match="key=-1, the checkpoint has 3"):
        keyed_run(None, selection=other, ckpt_path=path)


def test_a_damaged_state_is_named(tmp_path):
    path = tmp_path / "cut.ckpt"
    _, selection, _, _ = keyed_run(get_method("random"), SaveAt(path, "on_train_batch_end", 2, 3), max_epochs=3)
    saved = torch.load(path, weights_only=True)
    for part, name, value, said in (
        ("plan", "keys", torch.zeros(3), "plan.keys is a tensor"),
        ("statistics", "keys", torch.zeros(61, dtype=torch.int64), "statistics.keys must ascend"),
    ):
        state = saved["callbacks"][selection.state_key]
        torch.save(
            {**saved, "callbacks": {selection.state_key: {**state, part: {**state[part], name: value}}}}, tmp_path / "bad.ckpt"
        )
        with pytest.raises(StateError, match=said):
            keyed_run(get_method("random"), ckpt_path=tmp_path / "bad.ckpt")
