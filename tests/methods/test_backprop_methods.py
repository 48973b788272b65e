"""Every backprop method against its reference in ``backprop_references.py``; see ``backprop_tester.py``."""

import dataclasses
import math

import backprop_references as references
import backprop_tester as tester
import histories
import method_tester
import numpy as np
import pytest
import torch
from backprop_tester import BATCHES, COUNT, INF, NAN, ROWS, variants
from helpers import Net, fit, loader
from histories import HISTORIES, MAX_EPOCHS, bits, recorded
from hypothesis import given, settings
from hypothesis import strategies as st

from kakurenbo_lightning import Epoch, SampleSelection, available_methods
from kakurenbo_lightning.methods.backprop.katharopoulos import Katharopoulos
from kakurenbo_lightning.methods.backprop.selective_backprop import SelectiveBackprop, StaleSB, percentile

every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
LONG = histories.drawn(47, seed=5, epochs=8)


def test_every_backprop_method_has_a_row():
    method_tester.check_rows(method_tester.our_methods("backprop"), ROWS)


@every_row
@pytest.mark.parametrize("name", BATCHES)
def test_a_choice_is_that_of_the_reference_and_changes_nothing(row, name):
    for method in variants(row):
        for seed in range(3):
            tester.check_run(row, method, [BATCHES[name]], seed)


@every_row
def test_over_a_run_of_batches_too(row):
    for method in variants(row):
        shares = tester.check_run(row, method, BATCHES.values())
        assert sum(shares) > 0 and max(shares) <= 1


FLOAT = st.one_of(st.sampled_from([0.0, -0.0, 1.0, 2.0, NAN, INF, -INF]), st.floats(-5, 5, width=32))
SAMPLE = st.tuples(FLOAT, st.one_of(st.sampled_from([0.0, 0.5, NAN]), st.floats(0, 1.4140625, width=32, allow_subnormal=False)))


@every_row
@settings(max_examples=30)
@given(samples=st.lists(st.lists(SAMPLE, min_size=1, max_size=20), min_size=1, max_size=3), seed=st.integers(0, 3))
def test_any_choice_is_that_of_the_reference(row, samples, seed):
    def norm(loss, given):
        return given if math.isfinite(loss) == math.isfinite(given) else NAN if not math.isfinite(loss) else 0.25

    batches = [
        tester.batch_of([loss for loss, _ in batch], seed, [norm(loss, given) for loss, given in batch]) for batch in samples
    ]
    for method in variants(row):
        tester.check_run(row, method, batches, seed)


def chosen(method, batch, seed):
    """What is chosen of a batch that is the first."""
    memory, values = method.memory(), batch.tensors()
    method.learn(memory, values, tester.alone)
    picked = method.select(values, torch.tensor(batch.indices), memory, tester.generator(seed))
    return picked.rows[: int(picked.count)].tolist(), picked


@every_row
def test_seeds_draw_and_methods_that_do_not_draw_ask_for_none(row):
    batch = BATCHES["64 random"]
    for method in variants(row):
        choices = {tuple(sorted(chosen(method, batch, seed)[0])) for seed in range(5)}
        assert len(choices) == (5 if row.draws(method) else 1), method


def test_seeds_are_independent():
    """Over many seeds pairs of samples are chosen together as often as by two coins."""
    batch, method, times = BATCHES["2 of ten"], SelectiveBackprop(), 3000
    masks = torch.zeros(times, len(batch.loss))
    for seed in range(times):
        masks[seed, chosen(method, batch, seed)[0]] = 1
    share = torch.tensor([references.percentile(loss, batch.loss) for loss in batch.loss])
    together = masks.T @ masks / times
    expected = torch.outer(share, share).fill_diagonal_(0) + share.diag()
    assert (together - expected).abs().max() < 6 * 0.5 / times**0.5


@every_row
def test_the_batches_that_are_looked_at_are_those_of_the_reference(row):
    for method in variants(row):
        looked, memories = set(), [{}]
        if row.name == "katharopoulos":
            memories = [{"t": t} for t in (0.0, 0.5, 1.0, 1.2, 5 / 3, 2.0, 2.5)]
        for memory in memories:
            given = {name: torch.tensor(value) for name, value in memory.items()}
            for index in range(10):
                for step in range(7):
                    epoch = Epoch(index, 10)
                    expected = references.scores(method, epoch, step, 7, memory)
                    assert method.scores(epoch, step, 7, given) is expected, (method, index, step, memory)
                    looked.add(expected)
        assert looked == {True, False} or method.warmup_epochs == 0


@every_row
def test_memory_is_as_declared(row):
    declared = available_methods()[row.name].bytes_per_sample
    for method in variants(row):
        statistics = histories.empty(method, histories.drawn(1000, seed=0, epochs=0))
        assert method_tester.real_bytes(statistics) == row.bytes_per_sample * 1000
        assert declared == statistics.bytes_per_sample == row.bytes_per_sample
        memory = method.memory()
        for _ in range(10):
            method.learn(memory, BATCHES["200 random"].tensors(), tester.alone)
        assert sum(value.nbytes for value in memory.values()) <= row.memory_bytes


@every_row
@pytest.mark.parametrize("name", ["some not finite", "one finite", "all -inf"])
def test_a_loss_that_is_not_finite_never_looks_easy(row, name):
    """It is always trained, or among the hardest; irreducible losses and a draw decide the rest."""
    losses = BATCHES[name].loss
    bad = {number for number, loss in enumerate(losses) if not math.isfinite(loss)}
    for method in variants(row):
        if row.name in ("selective_backprop", "stale_sb"):
            rows, _ = chosen(method, BATCHES[name], 0)
            assert bad <= set(rows) if method.score != "topk" else set(rows) <= bad or bad <= set(rows)
        if row.name == "sb_fixed":
            weights = references.fixed_weights(losses, method.keep)
            times = torch.zeros(len(losses))
            for seed in range(400):
                times[chosen(method, BATCHES[name], seed)[0]] += 1
            lightest = min(weights, key=weights.get)
            assert lightest not in bad or len(bad) == len(losses)
            assert len(bad) == len(losses) or times[list(bad)].mean() >= times[[i for i in weights if i not in bad]].mean()


@every_row
def test_no_step_trains_a_single_sample(row):
    """BatchNorm refuses one: the last of four batches has five samples."""

    class Sizes(Net):
        sizes = ()

        def training_step(self, batch, batch_idx):
            self.sizes += (len(batch[2]),) * self.training
            return super().training_step(batch, batch_idx)

    net = Sizes()
    fit(net, loader(29), SampleSelection(method_tester.short_run(row.name, 29)))
    assert min(net.sizes) >= 2 and min(net.sizes) < 8


# --- StaleSB plans


@pytest.mark.parametrize("name", HISTORIES)
def test_stale_plans_are_those_of_the_reference(name):
    history = HISTORIES[name]
    losses = [histories_loss(seen) for seen in history.samples]
    for method in variants(ROWS["stale_sb"]):
        statistics = recorded(history, method)
        for index in range(MAX_EPOCHS):
            for seed in (0, 1):
                epoch = Epoch(index, MAX_EPOCHS, seed)
                looks = index < method.warmup_epochs or index % method.staleness == 0
                expected = list(range(len(losses))) if looks else references.stale_plan(method, losses, epoch)
                plan = method.plan(statistics, epoch)
                assert plan.indices.tolist() == expected and plan.weights is None and plan.lr_factor == 1.0
                assert plan.hidden.tolist() == sorted(set(range(len(losses))) - set(expected))


def histories_loss(sightings):
    return sightings[-1].loss if sightings else NAN


@every_row
def test_plans_are_pure_and_do_not_depend_on_the_order_of_recording(row):
    for method in variants(row):
        method_tester.check_pure(method, LONG)
        wanted, epochs = recorded(LONG, method), range(MAX_EPOCHS)
        for batch_size, order in ((1, 3), (5, None), (16, 4)):
            statistics = recorded(LONG, method, batch_size=batch_size, order=order)
            assert histories.same(bits(statistics), bits(wanted))
            assert method_tester.checksums(method, statistics, epochs) == method_tester.checksums(method, wanted, epochs)


def test_stale_epochs_hide_a_part_and_draw_anew():
    statistics = recorded(LONG, StaleSB())
    hidden = [
        tuple(StaleSB().plan(statistics, Epoch(index, None, seed)).hidden.tolist()) for index in (1, 2) for seed in range(4)
    ]
    assert len(set(hidden)) == 8 and all(5 < len(some) < 40 for some in hidden)


# --- the oracles of METHODS.md


def scored(losses, history):
    return percentile(torch.tensor(losses, dtype=torch.float32), torch.tensor(history, dtype=torch.float32)).tolist()


def inserted(losses, size=4):
    """Percentiles of the first batch, which is remembered before it is scored."""
    method = SelectiveBackprop(history=size)
    memory = method.memory()
    method.learn(memory, {"loss": torch.tensor(losses, dtype=torch.float32)}, tester.alone)
    return scored(losses, memory["history"].tolist())


def test_oracle_percentiles():
    assert scored([0.5, 1, 2, 2.5, 4, 5], [1, 2, 3, 4]) == [0, 0, 0.25, 0.5, 0.75, 1]
    assert inserted([1, 2, 3, 4]) == [0, 0.25, 0.5, 0.75]
    assert inserted([1, 1, 2, 2]) == [0, 0, 0.5, 0.5]
    assert inserted(range(1, 9)) == [0, 0, 0, 0, 0, 0.25, 0.5, 0.75]


def test_oracle_beta_zero_trains_all():
    for name, batch in BATCHES.items():
        rows, picked = chosen(SelectiveBackprop(beta=0), batch, 0)
        assert rows == list(range(len(batch.loss))) and not picked.whole, name


def test_oracle_importance_sampling_is_on_above_two():
    method = Katharopoulos(presample=3)
    on = {t: method.scores(Epoch(1, 10), 0, 10, {"t": torch.tensor(t)}) for t in (1.999, 2.0, 2.001)}
    assert on == {1.999: False, 2.0: False, 2.001: True}


def test_the_average_of_t_begins_at_0_and_is_that_of_the_formula():
    method, t = Katharopoulos(), 0.0
    memory = method.memory()
    for name in ("64 random", "one norm", "all equal", "2 of ten"):
        method.learn(memory, BATCHES[name].tensors(), tester.alone)
        g = np.array(BATCHES[name].el2n) / sum(BATCHES[name].el2n)
        u = 1 / len(g)
        t = 0.9 * t + 0.1 / math.sqrt(1 - ((g - u) ** 2).sum() / (g**2).sum())
        assert math.isclose(float(memory["t"]), t, rel_tol=1e-5)


@pytest.mark.parametrize("name", BATCHES)
def test_rho_loss_by_a_model_chooses_as_the_reference_does_by_a_table_of_its_losses(name):
    batch, row = BATCHES[name], ROWS["rho_loss"]
    for by_table in variants(row):
        table = torch.load(by_table.irreducible, weights_only=True)["irreducible"]
        by_model = dataclasses.replace(by_table, irreducible=Net())
        assert not by_model.needs_index and by_table.needs_index
        values = {**batch.tensors(), "reference": table[list(batch.indices)]}
        picked = by_model.select(values, torch.empty(0), {}, tester.generator(0))
        tester.check_picked(picked, row.reference(by_table, batch.columns(), batch.indices, {}, tester.generator(0)))


def test_samples_without_irreducible_loss_are_never_chosen_and_are_counted():
    for method in variants(ROWS["rho_loss"]):
        table = torch.load(method.irreducible, weights_only=True)["irreducible"]
        unknown = table.isnan().nonzero().squeeze(1).tolist()
        known = table.isfinite().nonzero().squeeze(1).tolist()
        for indices, count in ((unknown[:5] + known[:15], 5), (unknown[:20], 20), (known[:20], 0)):
            batch = tester.Batch((9.0,) * count + (0.0,) * (20 - count), (0.5,) * 20, tuple(indices))
            rows, picked = chosen(method, batch, 0)
            assert int(picked.unknown) == count
            assert min(rows, default=count) >= count
            assert len(rows) == min(max(2, references.share(method.fraction, 20)), 20 - count)
    assert len(table) == COUNT
