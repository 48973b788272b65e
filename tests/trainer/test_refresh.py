"""The refresh pass measures the hidden as the network is now."""

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from helpers import Net, Points, Spy, fit, loader

from kakurenbo_lightning import SampleSelection

DATA = Points(64)


def hide_all_that_is_sure(**settings):
    """Hides up to half of the data from epoch 1 on."""
    settings = {"max_fraction": 0.5, "tau": 0.0, "fractions": (1.0,), "milestones": (), **settings}
    return SampleSelection("kakurenbo", **settings)


class Fooled(Net):
    """Calls every sample right and sure while it trains, so that just half are hidden; tells the truth when it only looks."""

    def training_step(self, batch, batch_idx):
        logits = self.network(batch[0])
        loss = F.cross_entropy(logits, batch[1], reduction="none")
        values = {"loss": loss.mean(), "sample_loss": loss, "logits": logits, "target": batch[1]}
        if torch.is_grad_enabled():
            values.update(confidence=torch.ones_like(loss), correct=torch.ones_like(batch[1], dtype=torch.bool))
        return values


class Trained(pl.Callback):
    """A copy of the network as each epoch left it."""

    def __init__(self):
        self.states = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.states.append({name: value.clone() for name, value in pl_module.state_dict().items()})


class Refreshed(pl.Callback):
    """What the statistics hold of the samples hidden in the epoch before, at the start of each epoch: after the refresh pass."""

    def __init__(self, selection):
        self.selection, self.hidden, self.seen = selection, torch.empty(0, dtype=torch.int64), []

    def on_train_epoch_start(self, trainer, pl_module):
        statistics = self.selection.statistics
        names = ("loss", "confidence", "correct", "epoch_seen")
        self.seen.append((self.hidden, {name: getattr(statistics, name)[self.hidden].clone() for name in names}))
        self.hidden = self.selection.plan.hidden


def independent_values(net, state, indices):
    """Loss, confidence and correctness by a plain forward pass in eval mode."""
    net.load_state_dict(state)
    net.eval()
    with torch.no_grad():
        logits = net.network(DATA.x[indices])
    confidence, predicted = logits.softmax(1).max(1)
    loss = F.cross_entropy(logits, DATA.y[indices], reduction="none")
    return {"loss": loss, "confidence": confidence, "correct": predicted == DATA.y[indices]}


# --- what is measured


def assert_refreshed(module, selection, train=None, other=None, **settings):
    trained, refreshed = Trained(), Refreshed(selection)
    fit(module, train or loader(), selection, trained, refreshed, **settings)
    assert len(refreshed.seen) == 4
    assert sum(len(hidden) > 0 for hidden, _ in refreshed.seen) >= 2, "nothing was hidden, so the test shows nothing"
    for epoch, (hidden, seen) in enumerate(refreshed.seen[1:]):
        expected = independent_values(other or type(module)(), trained.states[epoch], hidden)
        torch.testing.assert_close(seen["loss"], expected["loss"])
        torch.testing.assert_close(seen["confidence"], expected["confidence"])
        assert torch.equal(seen["correct"], expected["correct"])
        assert seen["epoch_seen"].tolist() == [epoch] * len(hidden)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.quick("Fooled"))])
@pytest.mark.parametrize("module", [Net, Fooled])
def test_the_hidden_are_measured_by_the_network_the_epoch_left(module, workers):
    assert_refreshed(module(), hide_all_that_is_sure(), loader(num_workers=workers))


@pytest.mark.parametrize("batch_size", [7, 33, 100])
def test_the_pass_takes_any_number_of_hidden_samples(batch_size):
    assert_refreshed(Fooled(), hide_all_that_is_sure(max_fraction=0.55), loader(batch_size=batch_size))


def test_the_pass_ignores_drop_last():
    assert_refreshed(Fooled(), hide_all_that_is_sure(max_fraction=0.3), loader(drop_last=True))


def test_a_single_hidden_sample_is_measured():
    assert_refreshed(Fooled(), hide_all_that_is_sure(max_fraction=0.02))


def test_there_is_no_pass_after_the_last_epoch():
    class Counting(Fooled):
        looked = 0

        def training_step(self, batch, batch_idx):
            self.looked += 0 if torch.is_grad_enabled() else len(batch[1])
            return super().training_step(batch, batch_idx)

    module, selection = Counting(), hide_all_that_is_sure(refresh_mode="eval")
    spy = Spy(selection)
    fit(module, loader(), selection, spy)
    assert module.looked == sum(len(spy.hidden[epoch]) for epoch in range(3)) > 0
    assert selection.totals.samples_refreshed == module.looked
    assert len(spy.hidden[3]) > 0


def test_the_pass_runs_in_the_precision_of_training():
    class Half(Net):
        """Forward passes of other code see bfloat16 too."""

        def __init__(self):
            super().__init__()
            self.network.register_forward_hook(lambda *args: self.seen.append(args[2].dtype))
            self.seen = []

    module, selection = Half(), hide_all_that_is_sure()
    refreshed = Refreshed(selection)
    fit(module, loader(), selection, refreshed, precision="bf16-mixed")
    assert any(len(hidden) for hidden, _ in refreshed.seen)
    assert set(module.seen) == {torch.bfloat16}


def test_a_batch_goes_through_the_transfer_hooks_of_the_module():
    class Scaling(Net):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return 2 * batch[0], *batch[1:]

    class Scaled(Net):
        def __init__(self):
            super().__init__()
            self.network.register_forward_pre_hook(lambda module, args: (2 * args[0],))

    assert_refreshed(Scaling(), hide_all_that_is_sure(), other=Scaled())


# --- batches are those that validation would see


def mixed(batch):
    """Each sample with the one after it."""
    x, *rest = batch
    return [0.5 * x + 0.5 * x.roll(1, 0), *rest]


class Mixing(Net):
    """Mixes training batches, as Lightning's documentation shows it."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return mixed(batch) if self.trainer.training else batch


class MixingOutputs(Mixing):
    """Brings ``sample_outputs``."""

    def sample_outputs(self, batch):
        logits = self.network(batch[0])
        return {"sample_loss": F.cross_entropy(logits, batch[1], reduction="none"), "logits": logits, "target": batch[1]}


@pytest.mark.filterwarnings("ignore:sample_outputs")
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.quick("Mixing"))])
@pytest.mark.parametrize("module", [Mixing, MixingOutputs])
def test_a_pass_sees_no_mixture_of_samples_that_are_mixed_for_training_only(module, workers):
    assert_refreshed(module(), hide_all_that_is_sure(), loader(num_workers=workers), other=Net())


def test_a_pass_sees_no_mixture_of_a_data_module_that_mixes_for_training_only():
    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return loader()

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return mixed(batch) if self.trainer.training else batch

    assert_refreshed(Net(), hide_all_that_is_sure(), Data())


def test_hooks_and_the_step_find_the_trainer_validating_in_a_pass_and_training_otherwise():
    class Watching(Fooled):
        seen = None

        def note(self, where):
            self.seen = self.seen or set()
            self.seen.add((where, torch.is_grad_enabled(), self.trainer.training, self.trainer.validating))

        def on_before_batch_transfer(self, batch, dataloader_idx):
            self.note("before")
            return batch

        def on_after_batch_transfer(self, batch, dataloader_idx):
            self.note("after")
            return batch

        def training_step(self, batch, batch_idx):
            self.note("step")
            return super().training_step(batch, batch_idx)

    module = Watching()
    made = fit(module, loader(), hide_all_that_is_sure())
    training = {(where, True, True, False) for where in ("before", "after", "step")}
    assert module.seen == training | {(where, False, False, True) for where in ("before", "after", "step")}
    assert made.state.stage is None


def test_an_error_in_a_pass_names_the_hook_that_made_its_batch():
    class Shaping(Net):
        """Trains on what only training batches have."""

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return [*batch, 0.3] if self.trainer.training else batch

        def training_step(self, batch, batch_idx):
            x, y, _, share = batch
            return super().training_step((x + share, y), batch_idx)

    with pytest.raises(ValueError, match="not enough values to unpack") as caught:
        fit(Shaping(), loader(), hide_all_that_is_sure())
    notes = "".join(getattr(caught.value, "__notes__", ["Shaping.on_after_batch_transfer sample_outputs(batch)"]))
    assert "Shaping.on_after_batch_transfer" in notes
    assert "sample_outputs(batch)" in notes


def test_sample_outputs_of_training_batches_that_a_hook_made_are_warned_of_once():
    with pytest.warns(UserWarning, match="sample_outputs") as warned:
        fit(MixingOutputs(), loader(), SampleSelection("kakurenbo"))
    [text] = [str(warning.message) for warning in warned if str(warning.message).startswith("sample_outputs")]
    assert "MixingOutputs.on_after_batch_transfer" in text
    assert "mix in training_step" in text


class Unmixed(Net):
    sample_outputs = MixingOutputs.sample_outputs


@pytest.mark.parametrize("module", [Mixing, Unmixed])
def test_there_is_no_such_warning_without(recwarn, module):
    fit(module(), loader(), SampleSelection("kakurenbo"))
    assert not [warning for warning in recwarn if str(warning.message).startswith("sample_outputs")]


# --- how the step is called


def test_a_step_that_takes_the_batch_alone_is_called_so():
    class Alone(Net):
        def training_step(self, batch):
            return super().training_step(batch, 0)

    assert_refreshed(Alone(), hide_all_that_is_sure())


# --- which function measures


class WithOutputs(Net):
    """Brings ``sample_outputs``, and counts who is called to look."""

    looked = stepped = 0

    def training_step(self, batch, batch_idx):
        self.stepped += not torch.is_grad_enabled()
        return super().training_step(batch, batch_idx)

    def sample_outputs(self, batch):
        self.looked += 1
        assert not torch.is_grad_enabled()
        assert not self.network.training
        logits = self.network(batch[0])
        return {"sample_loss": F.cross_entropy(logits, batch[1], reduction="none"), "logits": logits, "target": batch[1]}


def test_sample_outputs_of_the_module_is_used_instead_of_the_step():
    module, selection = WithOutputs(), hide_all_that_is_sure()
    spy = Spy(selection)
    fit(module, loader(), selection, spy)
    assert spy.hidden[2]
    refreshed = sum(-(-len(spy.hidden[epoch]) // 8) for epoch in range(3))
    assert module.looked == sum(spy.steps) + refreshed
    assert module.stepped == 0


def test_sample_outputs_measures_what_an_independent_pass_measures():
    assert_refreshed(WithOutputs(), hide_all_that_is_sure(), other=Net())


def test_sample_outputs_given_to_the_callback_wins():
    module, own = WithOutputs(), []

    def sample_outputs(batch):
        own.append(len(batch[1]))
        logits = module.network(batch[0])
        return {"sample_loss": F.cross_entropy(logits, batch[1], reduction="none"), "logits": logits, "target": batch[1]}

    fit(module, loader(), hide_all_that_is_sure(sample_outputs=sample_outputs))
    assert own
    assert module.looked == 0
