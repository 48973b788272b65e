"""Whose checkpoint is it, is it whole, and how does another world size go on with it?"""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.utils.data
from helpers import Net, Points, SureNet, hide_then_grow, loader, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from kakurenbo_lightning import (
    EpochPlan,
    HideMethod,
    MismatchError,
    SampleSelection,
    SeededDataset,
    register_method,
)
from kakurenbo_lightning.methods import registry


def fit(selection, *callbacks, train=None, ckpt_path=None, module=None, **settings):
    made = trainer(selection, *callbacks, enable_checkpointing=bool(callbacks), **settings)
    made.fit(module or SureNet(), train or loader(), ckpt_path=ckpt_path)
    return made


@pytest.fixture
def checkpoint(tmp_path):
    """Of a KAKURENBO run with max_fraction=0.5, tau=0, after its second epoch."""
    made = fit(hide_then_grow(seed=3), max_epochs=2)
    made.save_checkpoint(tmp_path / "saved.ckpt")
    return tmp_path / "saved.ckpt"


@pytest.mark.parametrize(
    ("selection", "train", "words"),
    [
        (lambda: hide_then_grow(), lambda: loader(65), ["65 samples, the checkpoint's had 64"]),
        (
            lambda: hide_then_grow(),
            lambda: DataLoader(Points(64, seed=1), 8, shuffle=True),
            ["other samples than the checkpoint's"],
        ),
        (lambda: SampleSelection("random"), loader, ["method='random', the checkpoint has 'kakurenbo'"]),
        (
            lambda: SampleSelection("kakurenbo", max_fraction=0.4, tau=0.0, fractions=(1.0, 0.5, 0.0), milestones=(3, 4)),
            loader,
            ["max_fraction=0.4, the checkpoint has 0.5"],
        ),
        (lambda: hide_then_grow(seed=4), loader, ["seed=4, the checkpoint has 3"]),
    ],
    ids=["length", "samples", "method", "setting", "seed"],
)
def test_a_checkpoint_of_something_else_is_refused_by_name_and_can_be_forced(checkpoint, selection, train, words):
    with pytest.raises(MismatchError) as error:
        fit(selection(), train=train(), ckpt_path=checkpoint, max_epochs=4)
    for word in [*words, "on_mismatch='reset'"]:
        assert word in str(error.value)
    assert not any("when this happened" in note for note in getattr(error.value, "__notes__", ())), "nobody is anywhere yet"
    forced = selection()
    forced._settings = replace(forced._settings, on_mismatch="reset")
    with pytest.warns(UserWarning, match="the selection starts from the beginning"):
        fit(forced, train=train(), ckpt_path=checkpoint, max_epochs=4)
    assert forced.statistics.epoch_seen.max() == 3
    assert not (forced.statistics.epoch_seen < 2).logical_and(forced.statistics.measured).any(), "nothing is left of the old run"


def test_a_later_version_is_refused(checkpoint):
    saved = torch.load(checkpoint, weights_only=True)
    saved["callbacks"]["SampleSelection"]["version"] = 99
    torch.save(saved, checkpoint)
    with pytest.raises(MismatchError, match="version 99, this release reads 1"):
        fit(hide_then_grow(), ckpt_path=checkpoint, max_epochs=4)


def test_a_setting_that_is_newer_than_the_checkpoint_had_its_default_then(checkpoint):
    state = torch.load(checkpoint, weights_only=True)
    del state["callbacks"]["SampleSelection"]["settings"]["lr_fraction"]
    torch.save(state, checkpoint)
    fit(hide_then_grow(), ckpt_path=checkpoint, max_epochs=3)
    changed = SampleSelection(replace(hide_then_grow().method, lr_fraction="max"))
    with pytest.raises(MismatchError, match="lr_fraction='max', the checkpoint has 'hidden'"):
        fit(changed, ckpt_path=checkpoint, max_epochs=3)


def test_on_mismatch_is_checked():
    with pytest.raises(ValueError, match="on_mismatch='maybe' is not allowed; on_mismatch must be 'error' or 'reset'"):
        SampleSelection("baseline", on_mismatch="maybe")


def test_a_resumed_run_takes_over_the_seed(checkpoint):
    resumed = hide_then_grow()
    fit(resumed, ckpt_path=checkpoint, max_epochs=3)
    assert resumed.session.state_dict(together=False)["seed"] == 3


def test_seeded_samples_inside_a_subset_hear_the_epoch():
    seen = {}

    class Watched(Net):
        def training_step(self, batch, batch_idx):
            seen.setdefault(self.trainer.current_epoch, {}).update(zip(batch[2].tolist(), batch[0].tolist(), strict=True))
            return super().training_step(batch, batch_idx)

    inside = torch.utils.data.Subset(SeededDataset(Jittered(24)), range(24))
    fit(SampleSelection("baseline"), train=DataLoader(inside, 8, shuffle=True), module=Watched(), max_epochs=2)
    assert all(seen[0][index] != seen[1][index] for index in range(24))


@register_method("test_own_order")
@dataclass(frozen=True)
class OwnOrder(HideMethod):
    """48 samples in an order of its own."""

    def choose(self, statistics, epoch):
        """Not asked: this method plans by itself."""

    def plan(self, statistics, epoch, previous=None):
        order = torch.randperm(len(statistics), generator=epoch.generator())
        return EpochPlan(order[:48], order[48:].sort().values)


registry._METHODS.pop("test_own_order")  # other tests go through all methods there are


def test_a_plan_in_an_order_of_its_own_resumes_exactly(tmp_path):
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    whole, resumed = SureNet(dropout=0.0), SureNet(dropout=0.0)
    fit(SampleSelection(OwnOrder()), keep, module=whole, max_epochs=2)
    fit(SampleSelection(OwnOrder()), module=resumed, max_epochs=2, ckpt_path=tmp_path / "step=3.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_trainer_that_has_fitted_resumes_exactly(tmp_path):
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    whole, resumed = Net(), Net()
    made = fit(SampleSelection("kakurenbo", max_fraction=0.5, tau=0.0), keep, module=whole, max_epochs=2)
    made.fit(resumed, loader(), ckpt_path=tmp_path / "step=10.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("step", [3, 8, 10])
def test_another_batch_size_within_an_epoch_trains_the_rest_once(tmp_path, step):
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    fit(hide_then_grow(), keep, max_epochs=4)
    resumed, seen = hide_then_grow(), {}

    class Watched(SureNet):
        def training_step(self, batch, batch_idx):
            if not self.trainer.callbacks[0].session.adapter.passive and torch.is_grad_enabled():
                seen.setdefault(self.trainer.current_epoch, []).extend(batch[2].tolist())
            return super().training_step(batch, batch_idx)

    fit(resumed, train=loader(batch_size=5), ckpt_path=tmp_path / f"step={step}.ckpt", max_epochs=4, module=Watched())
    epoch, done = (0, step) if step < 8 else (1, step - 8)
    kept = 64 if epoch == 0 else 32
    assert len(seen[epoch]) == len(set(seen[epoch])) == kept - 8 * done
    assert [len(set(seen[later])) for later in range(epoch + 1, 4)] == [64, 32, 32, 48][epoch + 1 :]


class Jittered(Points):
    def __getitem__(self, index):
        x, y, index = super().__getitem__(index)
        return x + 0.3 * torch.randn_like(x), y, index


@pytest.mark.quick("10")
@pytest.mark.parametrize("step", [3, 10, 13])
def test_random_augmentation_in_workers_resumes_exactly_when_seeded(tmp_path, step):
    def run(*callbacks, **settings):
        module = Net()
        torch.manual_seed(0)
        train = DataLoader(SeededDataset(Jittered()), 8, shuffle=True, num_workers=2)
        selection = SampleSelection("kakurenbo", max_fraction=0.5, tau=0.3)
        fit(selection, *callbacks, train=train, module=module, max_epochs=3, **settings)
        return module, selection

    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    (whole, selection), (resumed, reselection) = run(keep), run(ckpt_path=tmp_path / f"step={step}.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert torch.equal(selection.statistics.loss, reselection.statistics.loss)
