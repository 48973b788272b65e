"""Keys of samples: the hash table, what a key is made of, the filter in workers, and statistics that grow."""

import copy
import gc
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from kakurenbo_lightning import Epoch
from kakurenbo_lightning.core.key_field import KeyField
from kakurenbo_lightning.core.key_filter import KeyFilter
from kakurenbo_lightning.core.key_plan import KeyPlan
from kakurenbo_lightning.core.key_table import KeyTable, key_of, weight_at
from kakurenbo_lightning.core.keyed_statistics import KeyedStatistics
from kakurenbo_lightning.core.plan import EpochPlan
from kakurenbo_lightning.errors import ConflictError, StateError
from kakurenbo_lightning.methods import ForgetOnline

LOWEST, HIGHEST = -(1 << 63), (1 << 63) - 1


def hiding(keys):
    return KeyTable(np.array(keys, dtype=np.int64), np.zeros(len(keys), dtype=np.float32))


# --- the table


@pytest.mark.parametrize("count", [1, 7, 8, 9, 70_000])
def test_a_table_knows_each_weight_and_no_other_key(count):
    generator = np.random.default_rng(count)
    keys = np.unique(np.concatenate([generator.integers(LOWEST, HIGHEST, 2 * count), [0, -1, LOWEST, HIGHEST]]))
    generator.shuffle(keys)
    inside, outside = keys[:count], keys[count:]
    weights = generator.choice(np.array([0.0, 0.5, 2.0], dtype=np.float32), count)
    table = KeyTable(inside, weights)
    assert np.array_equal(table.look_up(inside), weights)
    assert (table.look_up(outside) == 1).all()
    assert np.array_equal(table.look_up(keys), np.concatenate([weights, np.ones(len(outside), dtype=np.float32)]))
    memory = memoryview(table.places), memoryview(table.weights), table.bits
    assert [weight_at(*memory, int(key)) for key in keys[:: max(1, count // 50)]] == table.look_up(
        keys[:: max(1, count // 50)]
    ).tolist()


def test_keys_that_share_a_place_are_all_found():
    home = np.arange(200_000)
    table = KeyTable(home[:1], np.zeros(1, dtype=np.float32))
    same = home[table._home(home.view(np.uint64)) == 15][:6]  # the last place, so that the search begins again at the first
    full = KeyTable(same, np.arange(6, dtype=np.float32) + 2)
    assert full.bits == table.bits
    assert full.look_up(same).tolist() == [2, 3, 4, 5, 6, 7]
    assert full.look_up(home[table._home(home.view(np.uint64)) == 15][6:9]).tolist() == [1, 1, 1]


def test_a_table_without_keys_is_not_made_and_neighbouring_keys_are_told_apart():
    assert KeyPlan.everything(5).table() is None
    assert (hiding(range(0, 3000, 3)).look_up(np.arange(3000)) == 0).tolist() == [key % 3 == 0 for key in range(3000)]


# --- keys


def test_an_integer_is_its_own_key_and_a_string_has_the_same_in_every_process():
    assert [key_of(each) for each in (5, np.int32(5), torch.tensor(5), np.array(5))] == [5] * 4
    assert key_of(HIGHEST) == HIGHEST and key_of(HIGHEST + 1) != HIGHEST + 1
    assert key_of("train/00017") == key_of(b"train/00017") == key_of(np.str_("train/00017")) == 7787520637581878797
    assert len({key_of("a", "b"), key_of("ab"), key_of("a", "bc"), key_of("ab", "c"), key_of("5"), 5}) == 6
    assert LOWEST <= key_of("x" * 1000) <= HIGHEST


@pytest.mark.parametrize("value", [1.5, None, True, [1], torch.tensor(0.5), torch.tensor([1, 2])])
def test_what_is_no_key_is_refused(value):
    with pytest.raises(TypeError, match="a key must be an integer or a string"):
        key_of(value)


@pytest.mark.parametrize(
    ("setting", "batch", "keys"),
    [
        (("id",), {"x": torch.zeros(2, 3), "id": torch.tensor([7, 8], dtype=torch.int32)}, [7, 8]),
        ((1,), (torch.zeros(2), [7, 8]), [7, 8]),
        ((-1,), [torch.zeros(2), np.array([7, 8])], [7, 8]),
        (("id",), {"id": ["a", "b"]}, [key_of("a"), key_of("b")]),
        (("url", "id"), {"url": ["s", "t"], "id": [0, 0]}, [key_of("s", 0), key_of("t", 0)]),
        ((0, 1), (["s", "t"], torch.tensor([0, 0])), [key_of("s", 0), key_of("t", 0)]),
    ],
)
def test_keys_of_a_batch_are_those_of_its_samples(setting, batch, keys):
    assert KeyField(setting).of_batch(batch, 2).tolist() == keys


@pytest.mark.parametrize(
    ("setting", "batch", "said"),
    [
        (("id",), {"x": torch.zeros(2), "y": 1}, r"key='id': the batch has no field 'id', it has the fields 'x', 'y'"),
        ((3,), (torch.zeros(2), 1), r"key=3: the batch has no field 3, it has a tuple of 2 values"),
        (("id",), torch.zeros(2, 3), "the batch has no field 'id', it has a Tensor"),
        (
            ("id",),
            {"id": torch.zeros(2)},
            r"a tensor \[2\] of torch.float32 there, it must have one integer or string per sample",
        ),
        (("id",), {"id": torch.tensor([[1], [2]])}, r"a tensor \[2, 1\]"),
        (("id",), {"id": ["a", "b", "c"]}, "a list there"),
        (("id",), {"id": ["a", None]}, "a key must be an integer or a string, not a NoneType, in the batch"),
        (("id",), {"id": torch.tensor([4, 4])}, r"key='id': a key comes twice in one batch.*\('__url__', '__key__'\)"),
        (("a", "b"), {"a": ["s", "s"], "b": [1, 1]}, r"key=\('a', 'b'\): a key comes twice"),
    ],
)
def test_a_batch_without_good_keys_is_refused(setting, batch, said):
    with pytest.raises(ConflictError, match=said):
        KeyField(setting).of_batch(batch, 2)


# --- the filter


def test_a_filter_takes_a_sample_or_its_key_and_lets_unknown_ones_through():
    keep = KeyFilter(KeyField(("id",)))
    assert keep({"id": 1})
    keep.publish(hiding([1, key_of("a")]))
    assert [keep({"id": 1}), keep(1), keep(torch.tensor(1)), keep({"id": "a"}), keep("a"), keep(b"a")] == [False] * 6
    assert keep({"id": 2}) and keep("b")
    keep.publish(None)
    assert keep(1)
    both = KeyFilter(KeyField((0, 1)))
    both.publish(hiding([key_of("s", 1)]))
    assert [both("s", 1), both(("s", 1)), both("s", 2), both(("t", 1))] == [False, False, True, True]


def test_a_filter_names_what_is_wrong_with_a_sample():
    keep = KeyFilter(KeyField(("id",)))
    with pytest.raises(
        ConflictError, match=r"the sample that selection.keep was given has no field 'id', it has the fields 'name'"
    ):
        keep({"name": 1})
    with pytest.raises(ConflictError, match=r"was given 2 values, key='id' has 1"):
        keep(1, 2)
    with pytest.raises(ConflictError, match="not a float, in the sample"):
        keep({"id": 0.5})


class Numbers(IterableDataset):
    def __init__(self, keep):
        self.keep = keep

    def __iter__(self):
        info = get_worker_info()
        return (number for number in range(info.id, 30, info.num_workers) if self.keep(number))


@pytest.mark.parametrize(
    ("context", "persistent"), [("fork", True), ("fork", False), pytest.param("spawn", True, marks=pytest.mark.slow)]
)
def test_workers_see_the_plan_of_each_epoch(context, persistent):
    keep = KeyFilter(KeyField((0,)))
    loader = DataLoader(Numbers(keep), None, num_workers=2, persistent_workers=persistent, multiprocessing_context=context)
    for hidden in ([], [3, 4], [], range(0, 30, 2), [29]):
        keep.publish(hiding(list(hidden)) if len(hidden) else None)
        assert sorted(loader) == [number for number in range(30) if number not in hidden]


def test_one_table_lies_in_the_folder_which_goes_with_the_filter():
    keep = KeyFilter(KeyField((0,)))
    for number in range(3):
        keep.publish(hiding([number]))
    folder = keep.folder
    assert len(list(folder.iterdir())) == 2
    copied, other = pickle.loads(pickle.dumps(keep)), copy.deepcopy(keep)
    assert not copied(2) and not other(2)
    other.publish(hiding([5]))  # the copy of a selection that trains in its place
    assert copied(2) and keep(2) and not copied(5) and not keep(5)
    del keep
    gc.collect()
    assert not folder.exists()


# --- statistics


def written(parts, merges=(), columns=ForgetOnline.columns):
    """Statistics of records (epoch, keys, losses, correct), merged after those numbers and at the end."""
    statistics, method = KeyedStatistics(columns), ForgetOnline()
    for number, (epoch, keys, losses, correct) in enumerate(parts):
        values = {"loss": torch.tensor(losses), "correct": torch.tensor(correct)}
        method.record(statistics, torch.tensor(keys), values, Epoch(epoch))
        if number in merges:
            statistics.merge()
    statistics.merge()
    return statistics


FIRST = [(0, [9, -4], [0.5, 1.5], [True, True]), (0, [2], [2.5], [False]), (0, [100, 0], [3.5, 4.5], [True, False])]
SECOND = [(1, [0, 9], [0.25, 0.75], [True, False]), (1, [50], [1.0], [True])]


def test_rows_are_in_the_order_of_the_keys_whenever_they_are_merged_and_come():
    whole = written(FIRST + SECOND, merges=[2]).state_dict()
    assert whole["keys"].tolist() == [-4, 0, 2, 9, 50, 100]
    assert whole["loss"].tolist() == [1.5, 0.25, 2.5, 0.75, 1.0, 3.5]
    assert whole["epoch_seen"].tolist() == [0, 1, 0, 1, 1, 0]
    assert whole["events"].tolist() == [0, 0, 0, 1, 0, 0]
    for others in (written(FIRST + SECOND, merges=[0, 1, 2, 3]), written(FIRST[::-1] + SECOND[::-1], merges=[2])):
        assert all(torch.equal(column.nan_to_num(-1), whole[name].nan_to_num(-1)) for name, column in others.state_dict().items())


def test_statistics_are_saved_and_loaded_with_their_keys():
    saved = written(FIRST)
    loaded = KeyedStatistics(ForgetOnline.columns)
    loaded.load_state_dict(saved.state_dict())
    assert torch.equal(loaded.keys, saved.keys) and torch.equal(loaded.loss, saved.loss) and len(loaded) == 5
    with pytest.raises(StateError, match="keys must ascend"):
        loaded.load_state_dict({**saved.state_dict(), "keys": torch.tensor([1, 2, 2, 3, 4])})


def test_a_key_that_repeats_is_refused():
    with pytest.raises(ConflictError, match=r"1 of 6 samples .* \(the first is 9; of strings that is a hash\)"):
        written([*FIRST, (0, [9], [1.0], [True])])


def test_samples_without_values_have_a_row_that_was_never_measured():
    statistics = KeyedStatistics()
    ForgetOnline().record(statistics, torch.tensor([5, 4]), {}, Epoch(0))
    statistics.merge()
    assert statistics.keys.tolist() == [4, 5] and not statistics.measured.any() and statistics.nonfinite() == 0


def test_what_is_too_old_counts_as_never_measured():
    seen = written(FIRST + SECOND, merges=[2]).since(1)
    assert seen.measured.tolist() == [False, True, False, True, True, False]
    assert seen.loss.isnan().tolist() == [True, False, True, False, False, True]


# --- plans


def test_a_plan_is_of_keys():
    keys, weights = torch.tensor([-4, 0, 2, 9]), torch.tensor([1.0, 2.0, 2.0, 1.0])
    plan = KeyPlan.of(EpochPlan.hide(torch.tensor([True, False, True, False]), 1.5, {"a": 1.0}, weights), keys)
    assert plan.keys.tolist() == [-4, 0, 2] and plan.weights.tolist() == [0.0, 2.0, 0.0]
    assert plan.hidden.tolist() == [-4, 2] and (plan.hidden_count, plan.hidden_fraction, plan.lr_factor) == (2, 0.5, 1.5)
    others = [
        plan.with_lr_factor(2.0),
        KeyPlan(plan.keys + 1, plan.weights, 4, 1.5),
        KeyPlan(plan.keys, plan.weights + 1, 4, 1.5),
    ]
    assert len({each.checksum() for each in (plan, *others)}) == 4
