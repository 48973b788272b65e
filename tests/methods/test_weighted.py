"""``weighted``: draws by the user's own weights, against its reference, by chi-square, on ranks, and through checkpoints."""

import os
from functools import partial

import numpy as np
import pod_references as references
import pytest
import torch
import torch.distributed as dist
from cuts import SaveAt
from frequencies import assert_counts
from helpers import Net, Spy, fit, loader
from torch import nn
from torch.utils.data import SubsetRandomSampler, WeightedRandomSampler

from kakurenbo_lightning import Epoch, SampleSelection, SampleStatistics, get_method
from kakurenbo_lightning.core.shard import Layout
from kakurenbo_lightning.errors import ConflictError, MismatchError
from kakurenbo_lightning.session.checkpoint import describe_method
from recipes.benchmarks.forked import printed, run_ranks

COUNT = 60
WEIGHTS = [float((7 * i + 3) % 11) for i in range(COUNT)]  # some are 0
SETTINGS = (
    {},
    {"mix": 0.3, "unbiased": True},
    {"temperature": 0.5},
    {"temperature": 2.0, "cap_quantile": 0.8},
    {"temperature": 0.0},
    {"cap_quantile": 0.5, "mix": 0.1},
    {"num_samples": 25},
)
every_setting = pytest.mark.parametrize("settings", SETTINGS, ids=str)


def probabilities(weights, mix=0.0, temperature=1.0, cap_quantile=1.0, **_):
    """Slow and obvious: (1 - mix) v / sum(v) + mix / N, v = min(w, cap) ** T, and 0 where w is 0."""
    cap = references.quantile(weights, cap_quantile)
    values = [min(weight, cap) ** temperature if weight > 0 else 0.0 for weight in weights]
    return [(1 - mix) * part + mix / len(values) for part in references.normalised(values)]


def planned(method, index=0, seed=0, count=COUNT):
    return method.plan(SampleStatistics(count, repeats=True), Epoch(index, None, seed))


@every_setting
def test_plans_are_those_of_the_reference(settings):
    method = get_method("weighted", weights=WEIGHTS, **settings)
    expected, count = probabilities(WEIGHTS, **settings), settings.get("num_samples", COUNT)
    for index in range(3):
        plan, epoch = planned(method, index, seed=index), Epoch(index, None, index)
        assert sorted(plan.indices.tolist()) == references.drawn_by(expected, count, epoch.generator())
        assert plan.indices.tolist() != sorted(plan.indices.tolist()), "a loader that does not shuffle trains them in this order"
        assert len(plan.hidden) == 0 and plan.lr_factor == 1
        assert plan.metrics["drawn_share"] == len(set(plan.indices.tolist())) / COUNT
        assert (plan.weights is None) == ("unbiased" not in settings)
        if plan.weights is not None:
            np.testing.assert_allclose(plan.weights, [1 / (COUNT * p) for p in expected], rtol=1e-5)


@every_setting
def test_each_sample_is_drawn_in_proportion(settings):
    method, expected = get_method("weighted", weights=WEIGHTS, **settings), np.array(probabilities(WEIGHTS, **settings))
    counts = sum(torch.bincount(planned(method, 1, seed).indices, minlength=COUNT) for seed in range(800))
    assert_counts(counts, expected * 800 * settings.get("num_samples", COUNT))


def test_the_order_of_draws_is_random():
    """Of the first place of an epoch, and of the last, each sample has its probability."""
    method, expected = get_method("weighted", weights=[1.0, 2.0, 3.0, 4.0]), np.array([0.1, 0.2, 0.3, 0.4])
    drawn = torch.stack([planned(method, 0, seed, 4).indices for seed in range(4000)])
    for place in (0, 3):
        assert_counts(torch.bincount(drawn[:, place], minlength=4), expected * 4000)


def test_loss_weights_make_the_mean_that_of_all_samples():
    weights = [1.0 + i % 5 for i in range(COUNT)]
    method, losses = get_method("weighted", weights=weights, unbiased=True), torch.linspace(0, 3, COUNT).double()
    means = []
    for seed in range(3000):
        plan = planned(method, 0, seed)
        means.append(float((plan.weights[plan.indices].double() * losses[plan.indices]).mean()))
    error = np.std(means) / len(means) ** 0.5
    assert abs(np.mean(means) - float(losses.mean())) < 5 * error < 0.05


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_only_proportions_count(scale):
    for settings in SETTINGS:
        given = [scale * weight for weight in WEIGHTS]
        found = get_method("weighted", weights=given, **settings).probabilities(0, COUNT)
        np.testing.assert_allclose(found, probabilities(WEIGHTS, **settings), rtol=1e-9)


def halves(epoch):
    """The first half of the samples in even epochs, the second in odd ones."""
    return torch.arange(COUNT) // (COUNT // 2) == epoch % 2


def test_a_function_is_asked_for_each_epoch():
    method = get_method("weighted", weights=halves)
    for epoch in range(4):
        drawn = planned(method, epoch).indices
        assert set((drawn // (COUNT // 2)).tolist()) == {epoch % 2}


# --- however they are given


@pytest.mark.parametrize(
    "made",
    [
        list,
        tuple,
        np.array,
        torch.tensor,
        partial(torch.tensor, dtype=torch.bfloat16),
        partial(torch.tensor, dtype=torch.int64),
        partial(np.array, dtype=np.uint8),
        lambda weights: nn.Parameter(torch.tensor(weights)),
        lambda weights: lambda epoch: weights,
    ],
)
def test_weights_of_any_kind_are_the_same(made):
    method = get_method("weighted", weights=made(WEIGHTS))
    assert planned(method).checksum() == planned(get_method("weighted", weights=WEIGHTS)).checksum()


def saved_as(folder, ending):
    path = folder / f"weights{ending}"
    if ending == ".npy":
        np.save(path, WEIGHTS)
    elif ending == ".pt":
        torch.save(torch.tensor(WEIGHTS), path)
    else:
        path.write_text("\n".join(map(str, WEIGHTS)))
    return path


@pytest.mark.parametrize("ending", [".npy", ".pt", ".csv"])
def test_a_file_is_its_numbers(tmp_path, ending):
    path = saved_as(tmp_path, ending)
    method, same = get_method("weighted", weights=path), get_method("weighted", weights=WEIGHTS)
    assert planned(method).checksum() == planned(same).checksum()
    assert method == same and hash(method) == hash(same)
    assert describe_method(method) == describe_method(same), "a checkpoint does not know where the file was"
    assert str(path) in repr(method)


def test_weights_cannot_be_changed_behind_its_back():
    weights = np.array(WEIGHTS)
    method = get_method("weighted", weights=weights)
    before = planned(method).checksum()
    weights[:] = 1
    assert planned(method).checksum() == before


# --- what is refused

BAD_FILES = {
    "text.npy": ("text", "the file cannot be read"),
    "text.csv": ("a\nb", "the file cannot be read"),
    "two.csv": ("1,2\n3,4", r"the shape is \[2, 2\], it must be \[N\]"),
    "bad.csv": ("1\n-3", "item 1 is -3"),
    "weights.txt": ("1", "files are read by their ending, which is '.txt'"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_holds_no_weights_is_refused_by_name(tmp_path, name):
    text, said = BAD_FILES[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"weighted: weights=.* is not allowed; .*; {said}"):
        get_method("weighted", weights=tmp_path / name)


def test_a_file_with_something_else_is_refused_by_name(tmp_path):
    torch.save({"weights": torch.ones(3)}, tmp_path / "dict.pt")
    with pytest.raises(ValueError, match="the file holds a dict, it must be one tensor"):
        get_method("weighted", weights=tmp_path / "dict.pt")


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1.0, -0.5], r"item 1 is -0\.5"),
        ([1.0, float("nan")], "item 1 is nan"),
        ([float("inf"), 1.0], "item 0 is inf"),
        ([0.0, 0.0], "all of them are 0"),
        ([], r"the shape is \[0\]"),
        ([[1.0]], r"the shape is \[1, 1\]"),
        ([1, "a"], "item 1 is 'a'"),
        ([1, [2]], r"item 1 is \[2\]"),
        (np.array([1.0, None]), "item 1 is None"),
    ],
    ids=str,
)
def test_bad_weights_are_refused_by_name_from_a_list_and_from_a_function(weights, said):
    with pytest.raises(ValueError, match=rf"weighted: weights=.* is not allowed; weights must be one number >= 0.*; {said}"):
        get_method("weighted", weights=weights)
    later = get_method("weighted", weights=lambda epoch: weights if epoch == 2 else [1.0, 2.0])
    planned(later, 1, count=2)
    with pytest.raises(ValueError, match=rf"the function of the epoch fails in epoch 2: {said}"):
        planned(later, 2, count=2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, r"weights=None is not allowed; weights must be one number >= 0 for each sample"),
        ({"weights": WEIGHTS}, "weights must be of a data set of 64 samples, there are 60"),
        ({"weights": halves}, "weights must be of a data set of 64 samples, there are 60 in epoch 0"),
        ({"weights": lambda: 1}, "the function of the epoch fails in epoch 0"),
        ({"weights": [1.0] * 64, "num_samples": 65}, "num_samples must be at most the 64 samples of the data set"),
        ({"weights": [1.0] * 60 + [0.0] * 4, "unbiased": True}, r"unbiased must be False where a weight is 0 \(4 of them are\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(list(value)),
)
def test_weights_that_do_not_fit_the_data_are_refused_before_training(settings, said):
    module = Net()
    with pytest.raises(ValueError, match=said):
        fit(module, loader(64), SampleSelection("weighted", **settings))
    assert module.trainer.global_step == 0


def test_no_value_is_written_so_none_has_a_floor():
    with pytest.raises(ValueError, match=r"min_value=0\.1 is not allowed; min_value must be 1e-06, its default"):
        get_method("weighted", min_value=0.1)


def test_the_refusal_of_a_weighted_sampler_shows_what_takes_its_place():
    with pytest.raises(ConflictError, match=r'SampleSelection\("weighted", weights=\.\.\.\)'):
        fit(Net(), loader(64, shuffle=None, sampler=WeightedRandomSampler([1.0] * 64, 64)), SampleSelection("baseline"))


# --- trained


class NoValues(Net):
    """Its loss has no values by sample."""

    def training_step(self, batch, batch_idx):
        return self.network(batch[0]).var(0).sum()


@pytest.mark.parametrize("shuffle", [False, True])
def test_what_is_planned_is_trained_whatever_the_loss(shuffle):
    weights = [float(i % 3 != 1) for i in range(64)]
    selection = SampleSelection("weighted", weights=weights)
    spy = Spy(selection)
    fit(NoValues(), loader(64, shuffle=shuffle), selection, spy, max_epochs=3)
    for epoch in range(3):
        assert spy.steps[epoch] == 8 and len(spy.trained(epoch)) == 64
        assert {index % 3 for index in spy.trained(epoch)} == {0, 2}
    assert spy.trained(2) == sorted(selection.plan.indices.tolist())
    assert selection.totals.samples_trained == 3 * 64 and selection.totals.samples_refreshed == 0


def test_of_a_part_of_the_data_set_the_weights_are_those_of_its_samples():
    part = list(range(0, 64, 2))
    selection = SampleSelection("weighted", weights=[float(i >= 32) for i in range(64)])
    spy = Spy(selection)
    fit(Net(), loader(64, shuffle=None, sampler=SubsetRandomSampler(part)), selection, spy, max_epochs=2)
    assert set(spy.trained(0)) | set(spy.trained(1)) <= set(part[16:])
    assert len(spy.trained(0)) == len(part)


def resumed(path, weights, **settings):
    module, selection = Net(), SampleSelection("weighted", weights=weights, **settings)
    fit(module, loader(COUNT), selection, ckpt_path=path, max_epochs=4)
    return module.state_dict()


@pytest.mark.parametrize("batch", [3, -1])
def test_a_resumed_run_goes_on_exactly_from_a_checkpoint_without_the_weights(tmp_path, batch):
    weights = np.random.default_rng(0).random(COUNT)
    save, module = SaveAt(tmp_path / "cut.ckpt", "on_train_batch_end", 1, batch), Net()
    fit(module, loader(COUNT), SampleSelection("weighted", weights=weights), save, max_epochs=4)
    expected = module.state_dict()
    state = torch.load(save.path, weights_only=True)["callbacks"]["SampleSelection"]
    assert state["settings"]["weights"].startswith(f"{COUNT} numbers with the hash ")
    (tmp_path / "moved").mkdir()
    np.save(tmp_path / "moved" / "weights.npy", weights)
    found = resumed(save.path, tmp_path / "moved" / "weights.npy")
    assert all(torch.equal(expected[name], value) for name, value in found.items())


def test_other_weights_are_not_gone_on_with(tmp_path):
    for name, weights in (("table", [1.0] * COUNT), ("function", lambda epoch: [1.0] * COUNT)):
        save = SaveAt(tmp_path / f"{name}.ckpt", "on_train_epoch_end", 1)
        fit(Net(), loader(COUNT), SampleSelection("weighted", weights=weights), save, max_epochs=4)
        other = WEIGHTS if name == "table" else lambda epoch: WEIGHTS
        with pytest.raises(MismatchError, match=r"weights( in epoch 0)?='"):
            resumed(save.path, other)
        resumed(save.path, [1.0] * COUNT if name == "table" else lambda epoch: np.ones(COUNT))


# --- ranks


def plan_a_share(folder):
    """Be one rank: the checksum of each epoch's plan, and what this rank trains of it."""
    torch.set_num_threads(1)
    rank, ranks = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    dist.init_process_group("gloo") if ranks > 1 else None
    method, result = get_method("weighted", weights=halves, mix=0.1), []
    for epoch in range(4):
        plan = planned(method, epoch, seed=3)
        shard = plan.shard(Layout(4, ranks, rank, shuffle=True, seed=3, epoch=epoch))
        trained = torch.cat([shard.step(step) for step in range(shard.steps)]).tolist()
        result.append({"checksum": plan.checksum(), "trained": trained})
    torch.save(result, folder / f"{rank}.pt")


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_plan_the_same_draws_and_share_them(tmp_path, ranks):
    codes = run_ranks(plan_a_share, (tmp_path,), ranks, log=tmp_path / "rank")
    assert not any(codes), printed(tmp_path / "rank", ranks)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
    for epoch, records in enumerate(zip(*results, strict=True)):
        plan = planned(get_method("weighted", weights=halves, mix=0.1), epoch, seed=3)
        assert {record["checksum"] for record in records} == {plan.checksum()}
        assert sorted(i for record in records for i in record["trained"]) == sorted(plan.indices.tolist())
