"""The batch engine: every sample is looked at, chosen ones are trained, and Lightning counts real steps."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from driven import BATCH, EPOCHS, Trained, sb_fit
from helpers import Net, Points, Spy, SureNet, fit, loader
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.core.random import stream_generator
from kakurenbo_lightning.methods.backprop.katharopoulos import Katharopoulos
from kakurenbo_lightning.methods.backprop.sb_fixed import FixedRate
from kakurenbo_lightning.methods.backprop.selective_backprop import SelectiveBackprop, StaleSB

# ---- the loop, written out


def by_hand(batches, beta, net, leftover="train"):
    """Selective-Backprop in plain PyTorch over the loaded batches of each epoch; what was trained, and the network."""
    optimizer, history, pool, trained = net.configure_optimizers(), [], [], []

    def train(samples):
        optimizer.zero_grad()
        F.cross_entropy(net.network(torch.stack([x for x, _, _ in samples])), torch.stack([y for _, y, _ in samples])).backward()
        optimizer.step()
        trained.append([int(index) for _, _, index in samples])

    for epoch, loaded in enumerate(batches):
        for number, (x, y, index) in enumerate(loaded):
            samples = list(zip(x, y, index, strict=True))
            if epoch == 0:
                with torch.no_grad():
                    probe = nn.Sequential(*net.network)
                    losses = F.cross_entropy(no_trace(probe, x), y, reduction="none")
                history += losses.tolist()
                train(samples)
                continue
            net.eval()
            with torch.no_grad():
                losses = F.cross_entropy(net.network(x), y, reduction="none").tolist()
            net.train()
            history = (history + losses)[-1024:]
            draws = torch.rand(len(losses), generator=stream_generator(0, epoch, f"select:{number}:0")).tolist()
            for sample, loss, draw in zip(samples, losses, draws, strict=True):
                share = sum(other < loss for other in history) / len(history)
                if draw < share**beta:
                    pool.append(sample)
            if len(pool) >= BATCH:
                train(pool[:BATCH])
                del pool[:BATCH]
        if leftover == "train" and len(pool) >= 2:
            train(pool)
            pool = []
    return trained, net


def no_trace(network, x):
    """The logits of a training forward pass, without its effect on BatchNorm."""
    state = {name: value.clone() for name, value in network.state_dict().items()}
    logits = network(x)
    network.load_state_dict(state)
    return logits


@pytest.mark.parametrize("beta", [1.0, 0.3])
@pytest.mark.parametrize("leftover", ["train", "carry"])
def test_it_is_the_loop_written_out_to_the_bit(beta, leftover):
    method = SelectiveBackprop(beta=beta, leftover=leftover)
    _, _, trained, net = sb_fit(method)
    batches = [trained.batches[0]] + [trained.looked[epoch] for epoch in range(1, EPOCHS)]
    steps, twin = by_hand(batches, beta, Net(dropout=0.0), leftover)
    assert [batch[2].tolist() for epoch in sorted(trained.batches) for batch in trained.batches[epoch]] == steps
    for name, value in twin.state_dict().items():
        assert torch.equal(value, net.state_dict()[name]), name


def test_looking_leaves_no_trace():
    """With probability 1 for all, the run with looking is the run without it: weights, BatchNorm, dropout's random numbers."""
    _, _, _, looked = sb_fit(SelectiveBackprop(beta=0), Net(dropout=0.4))
    plain = Net(dropout=0.4)
    fit(plain, loader(61), SampleSelection("baseline"), max_epochs=EPOCHS)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, looked.state_dict()[name]), name


class Noisy(Dataset):
    """Points whose inputs are different each time they are read."""

    def __init__(self, count=61):
        self.points = Points(count)

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        x, y, index = self.points[index]
        return x + torch.randn(len(x)), y, index


def test_the_tensor_trained_is_the_tensor_looked_at():
    _, _, trained, _ = sb_fit(SelectiveBackprop(), train=DataLoader(Noisy(), BATCH, shuffle=True))
    for epoch in range(1, EPOCHS):
        looked = {int(i): x for batch in trained.looked[epoch] for x, _, i in zip(*batch, strict=True)}
        for batch in trained.batches.get(epoch, []):
            for x, _, index in zip(*batch, strict=True):
                assert torch.equal(x, looked[int(index)])


@pytest.mark.parametrize(
    "method",
    [
        SelectiveBackprop(),
        SelectiveBackprop(leftover="carry"),
        SelectiveBackprop(beta=6, leftover="carry"),
        SelectiveBackprop(score="topk"),
        SelectiveBackprop(score="random", beta=2),
        SelectiveBackprop(score="l2"),
        SelectiveBackprop(pool_on_cpu=True),
        StaleSB(),
        FixedRate(start=0.2),
        Katharopoulos(threshold=0.0),
        Katharopoulos(threshold=0.0, leftover="carry"),
    ],
    ids=repr,
)
def test_counters_add_up_and_are_what_happened(method):
    _, selection, trained, _ = sb_fit(method)
    for epoch, counts in trained.counts.items():
        assert counts["scored"] + counts["carried"] == counts["chosen_trained"] + counts["rejected"] + counts["pooled"]
        assert counts["trained"] == len(trained.indices(epoch))
        assert counts["steps"] == len(trained.batches.get(epoch, []))
        assert counts["scored"] == sum(len(batch[2]) for batch in trained.looked.get(epoch, []))
        if epoch:
            assert counts["carried"] == trained.counts[epoch - 1]["pooled"]
    assert trained.counts[EPOCHS - 1]["pooled"] == 0
    totals = selection.totals
    assert totals.samples_trained == sum(len(trained.indices(epoch)) for epoch in range(EPOCHS))
    assert totals.samples_scored == sum(counts["scored"] for counts in trained.counts.values()) > 0
    assert totals.samples_rejected == sum(counts["rejected"] for counts in trained.counts.values())
    assert min(totals.score_seconds, totals.forward_seconds, totals.backward_seconds, totals.data_seconds) > 0
    parts = totals.score_seconds + totals.forward_seconds + totals.backward_seconds + totals.data_seconds
    assert parts < totals.train_seconds


def test_all_full_steps_have_the_batch_size_and_the_last_may_be_short():
    _, _, trained, _ = sb_fit(SelectiveBackprop(beta=0.5))
    for epoch in range(1, EPOCHS):
        sizes = [len(batch[2]) for batch in trained.batches[epoch]]
        assert all(size == BATCH for size in sizes[:-1]) and 2 <= sizes[-1] <= BATCH


# ---- odd batches


class Odd(SureNet):
    """Losses as told, by sample: ``loss[index]``; the gradient is that of the real loss."""

    def __init__(self, loss):
        super().__init__(dropout=0.0)
        self.told = torch.as_tensor(loss)

    def training_step(self, batch, batch_idx):
        outputs = super().training_step(batch, batch_idx)
        return {**outputs, "sample_loss": outputs["sample_loss"] * 0 + self.told[batch[2]]}


def test_equal_losses_train_the_batch_whole_with_one_warning():
    with pytest.warns(UserWarning, match="every probability of a batch was 0") as warned:
        _, _, trained, _ = sb_fit(SelectiveBackprop(), Odd([1.0] * 61))
    assert sum("every probability" in str(w.message) for w in warned) == 1
    assert all(sorted(trained.indices(epoch)) == list(range(61)) for epoch in range(EPOCHS))


def test_a_loss_that_is_not_finite_is_always_trained():
    loss = torch.rand(61, generator=torch.Generator().manual_seed(0))
    loss[7], loss[30] = float("nan"), float("inf")
    _, _, trained, _ = sb_fit(SelectiveBackprop(beta=4), Odd(loss))
    for epoch in range(1, EPOCHS):
        assert {7, 30} <= set(trained.indices(epoch))


def test_a_batch_of_which_nothing_is_chosen_waits_and_one_sample_is_no_short_step():
    """Each batch has lower losses than those before it, so next to nothing of it is chosen."""
    method = SelectiveBackprop(warmup_epochs=0, beta=8.0, history=64)
    _, _, trained, _ = sb_fit(method, Odd(torch.linspace(10, 1, 64)), loader(64, shuffle=False))
    sizes = [len(batch[2]) for epoch in trained.batches for batch in trained.batches[epoch]]
    assert all(size >= 2 for size in sizes)
    assert any(counts["steps"] == 0 for counts in trained.counts.values())
    assert any(counts["carried"] == 1 for counts in trained.counts.values())


def test_tiny_batches_work():
    _, _, trained, _ = sb_fit(SelectiveBackprop(), Net(dropout=0.0), loader(10, batch_size=2))
    assert sum(counts["scored"] for counts in trained.counts.values()) == 10 * (EPOCHS - 1)


class Dictionary(Dataset):
    """Samples as a user may give them: nested, with names and numbers."""

    def __init__(self):
        self.points = Points(61)

    def __len__(self):
        return 61

    def __getitem__(self, index):
        x, y, _ = self.points[index]
        return {"input": {"x": x, "name": f"sample {index}"}, "target": (y, index)}


class Nested(Net):
    def __init__(self):
        super().__init__(dropout=0.0)
        self.names = []

    def training_step(self, batch, batch_idx):
        if self.training:
            self.names.append((batch["input"]["name"], batch["target"][1].tolist()))
        return F.cross_entropy(self.network(batch["input"]["x"]), batch["target"][0])


def test_nested_batches_are_pooled_with_all_their_parts():
    net = Nested()
    fit(net, DataLoader(Dictionary(), BATCH, shuffle=True), SampleSelection(SelectiveBackprop()), max_epochs=EPOCHS)
    assert len(net.names) > 10
    for names, indices in net.names:
        assert names == [f"sample {index}" for index in indices]


def test_a_batch_that_no_checkpoint_could_hold_is_refused():
    def collate(samples):
        return {"x": torch.stack([x for x, _, _ in samples]), "y": torch.stack([y for _, y, _ in samples]), "odd": {1, 2}}

    class Sets(Net):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.network(batch["x"]), batch["y"])

    with pytest.raises(TypeError, match="the batch holds a set: chosen samples wait"):
        fit(Sets(), DataLoader(Points(61), BATCH, collate_fn=collate), SampleSelection(SelectiveBackprop()), max_epochs=3)


# ---- stale epochs, fixed rate, importance sampling


def test_stale_epochs_look_at_nothing_and_load_only_what_they_train():
    selection = SampleSelection(StaleSB(staleness=3), check_attribution=False)
    spy, trained = Spy(selection), Trained()
    fit(Net(dropout=0.0), loader(61), selection, spy, trained, max_epochs=7)
    assert sorted(trained.looked) == [3, 6]
    for epoch in (1, 2, 4, 5):
        loaded = sorted(index for batch in spy.batches[epoch][:-1] for index in batch)  # without the extra sample
        assert loaded == sorted(trained.indices(epoch)) == sorted(set(range(61)) - set(spy.hidden[epoch]))
        assert 0 < len(loaded) < 61


def test_the_fixed_rate_shrinks_the_batches_of_its_window():
    _, _, trained, _ = sb_fit(FixedRate(keep=0.5, start=0.4, end=0.8, interrupt=2), train=loader(64))
    sizes = {epoch: [len(batch[2]) for batch in batches] for epoch, batches in trained.batches.items()}
    whole, mixed = [8] * 8, [4, 8] * 4
    assert sizes == {0: whole, 1: whole, 2: mixed, 3: mixed, 4: whole}


def test_importance_sampling_trains_one_batch_of_three_with_weights():
    _, _, trained, _ = sb_fit(Katharopoulos(threshold=0.0), train=loader(72))
    assert [len(batches) for batches in trained.batches.values()] == [9, 3, 3, 3, 3]
    assert all(len(batch[2]) == BATCH for batches in trained.batches.values() for batch in batches)
    repeats = Counter(index for batch in trained.batches[EPOCHS - 1] for index in batch[2].tolist())
    assert max(repeats.values()) > 1


def test_importance_sampling_that_does_not_pay_looks_at_nothing():
    _, _, trained, _ = sb_fit(Katharopoulos(), Net(dropout=0.0, rate=0.0))
    assert not trained.looked
    assert [len(batches) for batches in trained.batches.values()] == [8] * EPOCHS


# ---- resume


@pytest.mark.slow_cases("stale_sb", "sb_fixed", "katharopoulos")
@pytest.mark.parametrize(
    "method",
    [SelectiveBackprop(), SelectiveBackprop(leftover="carry"), StaleSB(), FixedRate(start=0.2), Katharopoulos(threshold=0.0)],
    ids=lambda method: f"{method.name}-{method.leftover}",
)
def test_cut_and_resumed_equals_uncut_with_whatever_waits(tmp_path, method):
    class Every(Callback):
        """Saves after each loaded batch, also those that make no step."""

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}-{batch_idx}.ckpt")

    _, selection, trained, whole = sb_fit(method, None, None, Every(), val=loader(16))
    waits = []
    for name in ("0-5", "1-0", "1-3", "2-4", "3-1", "3-6", "4-2"):
        path = tmp_path / f"{name}.ckpt"
        if not path.exists():
            continue
        state = torch.load(path, weights_only=True)["callbacks"]["SampleSelection"]["engines"][0]
        waits.append(sum(len(part["indices"]) for part in state["pool"]) + len(state["candidates"]))
        _, reselection, retrained, resumed = sb_fit(method, None, None, ckpt_path=path, seed=99, val=loader(16))
        for key, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[key]), (name, key)
        for key, value in selection.statistics.state_dict().items():
            assert torch.equal(value, reselection.statistics.state_dict()[key]), (name, key)
        for epoch, counts in retrained.counts.items():
            same = {key: value for key, value in counts.items() if not key.endswith("seconds")}
            assert same == {key: trained.counts[epoch][key] for key in same}
        assert reselection.totals.samples_trained == selection.totals.samples_trained
    assert any(waits) or isinstance(method, FixedRate)


def test_a_resumed_run_draws_with_the_seed_of_the_checkpoint(tmp_path):
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    whole, resumed = Net(dropout=0.0), Net(dropout=0.0)
    given, later = SampleSelection("selective_backprop", seed=5), SampleSelection("selective_backprop")
    fit(whole, loader(61), given, keep, max_epochs=EPOCHS, enable_checkpointing=True)
    fit(resumed, loader(61), later, max_epochs=EPOCHS, ckpt_path=tmp_path / "step=9.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_finished_run_that_was_resumed_can_be_saved(tmp_path):
    made, _, _, _ = sb_fit(SelectiveBackprop(), max_epochs=2)
    made.save_checkpoint(tmp_path / "one.ckpt")
    remade, _, _, _ = sb_fit(SelectiveBackprop(), max_epochs=2, ckpt_path=tmp_path / "one.ckpt")
    remade.save_checkpoint(tmp_path / "two.ckpt")
    one, two = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("one", "two"))
    assert all(torch.equal(value, two["state_dict"][name]) for name, value in one["state_dict"].items())


def test_a_second_fit_begins_with_an_empty_pool():
    made, selection, trained, module = sb_fit(SelectiveBackprop(leftover="carry"), max_epochs=3)
    made.fit_loop.max_epochs = 5
    made.fit(module, loader(61))
    assert trained.counts[3]["carried"] == 0
    totals = selection.totals
    assert totals.samples_scored == 4 * 61
    assert totals.samples_trained - 61 + totals.samples_rejected == totals.samples_scored
