"""SumTree against dense NumPy: what it draws, adds up and keeps, whatever is written into it."""

import math

import numpy as np
import pytest
import torch
from frequencies import assert_counts
from hypothesis import given, settings
from hypothesis import strategies as st

from kakurenbo_lightning.core.sum_tree import FAN_OUT, SumTree, last_rows

SQUARE = FAN_OUT**2
SIZES = [1, 2, 127, 128, 129, 1000, SQUARE - 1, SQUARE, SQUARE + 1]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def groupings(size):
    """Cells into which indices are counted: each its own, or (of many) neighbours together, and every 97th together."""
    places = np.arange(size)
    return [places] if size <= 1000 else [places // -(-size // 100), places % 97]


def assert_drawn_in_proportion(drawn, values):
    """Indices appear as often as float64 ``values`` say."""
    drawn, values = drawn.numpy(), np.asarray(values, np.float64)
    assert drawn.min() >= 0 and drawn.max() < len(values)
    assert (values[drawn] > 0).all(), "a value of 0 was drawn"
    for cells in groupings(len(values)):
        counts = np.bincount(cells[drawn], minlength=cells.max() + 1)
        expected = np.bincount(cells, values, minlength=cells.max() + 1) / values.sum() * len(drawn)
        assert_counts(counts, expected)


def spread_values(size, seed=0):
    """Values of which a third are 0 and the others spread over two orders of magnitude."""
    rng = np.random.default_rng([seed, size])
    values = rng.gamma(0.5, size=size).astype(np.float32)
    values[rng.random(size) < 1 / 3] = 0
    values[rng.integers(size)] = 0.25
    return values


def written(dense, indices, values):
    """Dense values after one update: one after another, so that the last one counts."""
    for index, value in zip(indices, values, strict=True):
        dense[index] = value


def assert_equals_dense(tree, dense):
    """Values are the same to the bit; the total and the probabilities are those of float64."""
    assert len(tree) == len(dense) and np.array_equal(tree.values.numpy(), dense)
    total = math.fsum(dense.tolist())
    assert math.isclose(float(tree.total), total, rel_tol=1e-12)
    probability = tree.probability(torch.arange(len(dense))).numpy()
    assert np.allclose(probability, dense.astype(np.float64) / total, rtol=1e-12, atol=0)


# --- draws


@pytest.mark.parametrize("size", SIZES)
def test_draws_are_in_proportion_to_the_values(size):
    values = spread_values(size)
    drawn = SumTree(torch.from_numpy(values)).draw(200_000, generator())
    assert drawn.dtype == torch.int64 and drawn.shape == (200_000,)
    assert_drawn_in_proportion(drawn, values)


@pytest.mark.parametrize("size", SIZES)
def test_draws_are_in_proportion_to_what_was_written_last(size):
    tree, dense, rng = SumTree(torch.ones(size)), np.ones(size, np.float32), np.random.default_rng(size)
    for number in range(30):
        rows, values = rng.integers(size, size=max(2, size // 10)), spread_values(max(2, size // 10), number)
        tree.update(torch.from_numpy(rows), torch.from_numpy(values))
        written(dense, rows, values)
    assert_drawn_in_proportion(tree.draw(200_000, generator(1)), dense)


def test_the_comparison_of_frequencies_sees_what_is_wrong():
    """Draws of values that differ by 10 %, or of one neighbour too far, are told apart."""
    values = spread_values(1000)
    drawn = SumTree(torch.from_numpy(values)).draw(200_000, generator())
    with pytest.raises(AssertionError):
        assert_drawn_in_proportion(drawn, values * np.where(np.arange(1000) < 500, 1.1, 1))
    with pytest.raises(AssertionError):
        assert_drawn_in_proportion((drawn + 1) % 1000, values)
    with pytest.raises(AssertionError):
        assert_drawn_in_proportion(SumTree(torch.ones(129)).draw(200_000, generator()), np.arange(1.0, 130))


def test_draws_of_one_call_are_independent():
    """Pairs of neighbouring draws fall into all pairs of cells as often as two draws on their own."""
    values = spread_values(3 * FAN_OUT)
    drawn = SumTree(torch.from_numpy(values)).draw(400_000, generator()).numpy()
    for cells in (np.arange(len(values)) // FAN_OUT, np.arange(len(values)) % 5):
        odds = np.bincount(cells, values) / values.sum(dtype=np.float64)
        for one, other in ((drawn[::2], drawn[1::2]), (drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :])):
            counts = np.bincount(cells[one] * len(odds) + cells[other], minlength=len(odds) ** 2)
            assert_counts(counts, np.outer(odds, odds).ravel() * len(one))


def test_draws_repeat_with_the_generator_and_touch_no_other_stream():
    tree = SumTree(torch.from_numpy(spread_values(5000)))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = (tree.draw(64, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    stream = generator(1)
    assert not torch.equal(tree.draw(64, stream), tree.draw(64, stream))
    assert len(tree.draw(0, stream)) == 0


@pytest.mark.parametrize("size", SIZES)
def test_the_only_positive_value_is_always_drawn(size):
    for place in {0, size // 2, size - 1}:
        values = torch.zeros(size)
        values[place] = 1e-30
        assert set(SumTree(values).draw(1000, generator(place)).tolist()) == {place}


@pytest.mark.parametrize("size", SIZES[1:])
def test_a_value_that_becomes_0_is_drawn_no_more(size):
    tree = SumTree(torch.ones(size))
    kept = torch.tensor([size // 3, size - 1])
    rest = torch.ones(size, dtype=torch.bool).index_fill_(0, kept, False).nonzero().squeeze(1)
    tree.update(rest, torch.zeros(len(rest)))
    assert set(tree.draw(2000, generator()).tolist()) == set(kept.tolist())
    tree.update(kept[:1], torch.zeros(1))
    assert set(tree.draw(200, generator()).tolist()) == {size - 1} or size == 2


@pytest.mark.parametrize("size", [3, 128, 129, 1000, SQUARE + 1])
@pytest.mark.parametrize("number", [0.0, 2.0**-53, 1 - 2.0**-53])
def test_the_smallest_and_the_largest_random_number_draw_no_0(monkeypatch, size, number):
    """They would once in 2**53 draws: at the boundary of two values, and at the end of all."""
    monkeypatch.setattr(torch, "rand", lambda *shape, dtype, generator: torch.full(shape, number, dtype=dtype))
    for first, last in ((1, size - 2), (size // 2, size // 2), (0, size - 1)):
        values = torch.zeros(size)
        values[first : last + 1] = 0.1
        assert SumTree(values).draw(2).tolist() == [first if number < 0.5 else last] * 2


# --- far apart


@pytest.mark.parametrize("size", [3, 129, SQUARE + 1])
def test_values_may_be_far_apart(size):
    values = np.full(size, 1e-30, np.float32)
    values[size // 2] = 1e30
    tree = SumTree(torch.from_numpy(values))
    assert_equals_dense(tree, values)
    assert set(tree.draw(10_000, generator()).tolist()) == {size // 2}
    values[size // 2] = 0  # nothing of the large one is left in any sum
    tree.update(torch.tensor([size // 2]), torch.zeros(1))
    assert_equals_dense(tree, values)
    assert_drawn_in_proportion(tree.draw(100_000, generator()), values)


def test_sums_of_the_largest_values_do_not_overflow():
    largest = torch.finfo(torch.float32).max
    tree = SumTree(torch.full((3000,), largest))
    assert float(tree.total) == 3000 * float(largest)
    assert_drawn_in_proportion(tree.draw(50_000, generator()), np.ones(3000))


# --- updates


@pytest.mark.parametrize("size", SIZES)
def test_of_an_index_written_twice_the_last_value_counts(size):
    tree, dense, rng = SumTree(torch.ones(size)), np.ones(size, np.float32), np.random.default_rng(size)
    for _ in range(20):
        rows, values = rng.integers(min(size, 7), size=50), rng.random(50, dtype=np.float32)
        tree.update(torch.from_numpy(rows), torch.from_numpy(values))
        written(dense, rows, values)
        assert_equals_dense(tree, dense)


def test_the_last_row_of_each_index_is_found():
    assert last_rows(torch.tensor([5, 3, 5, 5, 1, 3])).tolist() == [3, 5, 3, 3, 4, 5]
    assert last_rows(torch.empty(0, dtype=torch.int64)).tolist() == []


INDEX = st.one_of(st.integers(0, 299), st.sampled_from([0, 127, 128, 255, 256, 299]))
VALUE = st.one_of(st.sampled_from([0.0, 1.0, 1e-30, 1e30]), st.floats(0, 100, width=32, allow_subnormal=False))


@settings(max_examples=60)
@given(
    size=st.sampled_from([1, 2, 127, 128, 129, 300]),
    updates=st.lists(st.lists(st.tuples(INDEX, VALUE), max_size=12), max_size=8),
    seed=st.integers(0, 9),
)
def test_any_updates_leave_what_dense_ones_leave(size, updates, seed):
    tree, dense = SumTree(torch.full((size,), 0.5)), np.full(size, 0.5, np.float32)
    for pairs in updates:
        rows, values = [index % size for index, _ in pairs], [np.float32(value) for _, value in pairs]
        tree.update(torch.tensor(rows, dtype=torch.int64), torch.tensor(values, dtype=torch.float32))
        written(dense, rows, values)
        if dense.any():
            assert_equals_dense(tree, dense)
            assert (dense[tree.draw(64, generator(seed)).numpy()] > 0).all()


@pytest.mark.quick("1000")
@pytest.mark.parametrize("size", [1000, SQUARE + 1])
def test_nothing_drifts_in_20_000_updates(size):
    """Large values, and at last small ones: a sum that is corrected rather than made anew would have lost those."""
    tree, dense, rng = SumTree(torch.ones(size)), np.ones(size, np.float32), np.random.default_rng(0)
    for number in range(20_000):
        rows = rng.integers(size, size=256)
        values = rng.random(256, dtype=np.float32) * np.float32(10.0 ** (3 * (number % 3)))
        tree.update(torch.from_numpy(rows), torch.from_numpy(values))
        dense[rows] = values  # NumPy, too, keeps the last
    assert_equals_dense(tree, dense)
    for rows in np.array_split(rng.permutation(size), 20):
        dense[rows] = 1e-6 * rng.random(len(rows), dtype=np.float32)
        tree.update(torch.from_numpy(rows), torch.from_numpy(dense[rows]))
    assert_equals_dense(tree, dense)
    assert_drawn_in_proportion(tree.draw(100_000, generator()), dense)


def test_indices_beyond_2_to_the_24_are_drawn_and_written():
    """There float32 cannot tell neighbours apart, and torch.multinomial refuses."""
    size = 2**24 + 3
    values = torch.zeros(size)
    values[-3:] = torch.tensor([1.0, 2.0, 5.0])
    tree = SumTree(values)
    drawn = tree.draw(80_000, generator()) - (size - 3)
    assert_drawn_in_proportion(drawn, [1.0, 2.0, 5.0])
    tree.update(torch.tensor([size - 2, 0]), torch.tensor([0.0, 6.0]))
    assert float(tree.total) == 12
    counts = np.unique(tree.draw(80_000, generator()).numpy(), return_counts=True)
    assert counts[0].tolist() == [0, size - 3, size - 1]
    assert_counts(counts[1], [40_000, 80_000 / 12, 80_000 * 5 / 12])


def test_a_small_share_of_many_values_is_drawn_as_often_as_it_should_be():
    """2**24 equal values and one that is as large as all of them: a float32 sum would have lost the small ones."""
    size = 2**24
    values = torch.ones(size)
    values[7] = 2.0**24
    tree = SumTree(values)
    assert float(tree.total) == 2.0**25 - 1
    drawn = tree.draw(100_000, generator())
    assert_counts([(drawn == 7).sum(), (drawn != 7).sum()], [50_000, 50_000])
    assert_drawn_in_proportion(drawn[drawn != 7] // SQUARE, np.ones(size // SQUARE))


def test_memory_is_at_most_2_bytes_per_sample_beyond_the_values():
    state = SumTree(torch.ones(1_280_000)).state_dict()
    assert state["values"].nbytes == 4 * 1_280_000
    assert sum(level.nbytes for level in state["sums"]) <= 2 * 1_280_000


@pytest.mark.slow
def test_100_million_values():
    """What is drawn, by region, and after updates all over the tree; about 1 GB."""
    size, cells = 100_000_000, 200
    values = torch.rand(size, generator=generator())
    values[:30_000_000] = 0
    tree = SumTree(values)
    assert math.isclose(float(tree.total), float(values.double().sum()), rel_tol=1e-9)
    del values
    rng = np.random.default_rng(0)
    for _ in range(2000):
        rows = torch.from_numpy(rng.integers(size, size=256))
        tree.update(rows, torch.from_numpy(rng.random(256, dtype=np.float32) * 100))
    last = torch.tensor([size - 1, size - 1])
    tree.update(last, torch.tensor([3.0, 1e6]))
    assert float(tree.values[-1]) == 1e6
    by_region = tree.values.view(cells, -1).sum(1, dtype=torch.float64).numpy()
    assert math.isclose(float(tree.total), math.fsum(by_region), rel_tol=1e-12)
    drawn = tree.draw(400_000, generator(1))
    assert (tree.values[drawn] > 0).all()
    counts = np.bincount((drawn // (size // cells)).numpy(), minlength=cells)
    assert_counts(counts, by_region / by_region.sum() * len(drawn))


# --- scale, clamp


@pytest.mark.parametrize("size", SIZES)
def test_scaling_changes_no_probability(size):
    values = spread_values(size)
    tree, scaled = SumTree(torch.from_numpy(values)), SumTree(torch.from_numpy(values))
    scaled.scale(2.0**-20)
    assert np.array_equal(scaled.values.numpy(), values * np.float32(2.0**-20))
    assert_equals_dense(scaled, scaled.values.numpy())
    every = torch.arange(size)
    assert torch.allclose(scaled.probability(every), tree.probability(every), rtol=1e-12, atol=0)
    assert torch.equal(scaled.draw(500, generator()), tree.draw(500, generator()))


def test_scaling_makes_no_positive_value_0_and_no_0_positive():
    tree = SumTree(torch.tensor([0.0, 1e-30, 1.0]))
    tree.scale(torch.tensor(1e-20, dtype=torch.float64))
    values = tree.values.tolist()
    assert values[0] == 0 and 0 < values[1] < 1e-36 and values[2] == pytest.approx(1e-20)
    assert float(tree.total) == pytest.approx(1e-20)


@pytest.mark.parametrize("factor", [1e-50, torch.tensor(1e-50, dtype=torch.float64)], ids=["float", "tensor"])
def test_a_factor_may_be_beyond_float32(factor):
    tree = SumTree(torch.tensor([1e37, 4e36, 1.0, 0.0]))
    tree.scale(factor)
    assert tree.values[:2].tolist() == pytest.approx([1e-13, 4e-14], rel=1e-6)
    assert 0 < tree.values[2] < 1e-36 and tree.values[3] == 0


def test_float64_holds_what_float32_cannot():
    """Values, sums, updates and draws of values that are 580 powers of ten apart."""
    values = torch.tensor([0.0, 1e-290, 3e-290, 1e290], dtype=torch.float64)
    tree = SumTree(values, torch.float64)
    assert tree.values.dtype == torch.float64 and torch.equal(tree.values, values)
    assert set(tree.draw(500, generator()).tolist()) == {3}
    tree.update(torch.tensor([3]), torch.tensor([0.0]))
    assert_drawn_in_proportion(tree.draw(50_000, generator()), [0, 1, 3, 0])
    tree.scale(1e280)
    assert tree.values.tolist() == pytest.approx([0, 1e-10, 3e-10, 0], rel=1e-14)
    loaded = SumTree(torch.ones(4), torch.float64)
    loaded.load_state_dict(tree.state_dict())
    assert torch.equal(loaded.values, tree.values) and torch.equal(loaded.draw(99, generator()), tree.draw(99, generator()))
    tree.scale(1e-300)
    assert tree.values.tolist() == [0, tree.smallest, tree.smallest, 0] and tree.smallest > 0


# --- state


@pytest.mark.parametrize("size", SIZES)
def test_a_saved_table_goes_on_as_the_one_that_was_saved(tmp_path, size):
    tree, rng = SumTree(torch.from_numpy(spread_values(size))), np.random.default_rng(size)

    def change(*trees):
        rows, values = torch.from_numpy(rng.integers(size, size=40)), torch.from_numpy(0.1 + rng.random(40, dtype=np.float32))
        for one in trees:
            one.update(rows, values)

    for _ in range(10):
        change(tree)
    tree.scale(1 / 3)
    change(tree)
    torch.save(tree.state_dict(), tmp_path / "tree.pt")
    loaded = SumTree(torch.ones(size))
    loaded.load_state_dict(torch.load(tmp_path / "tree.pt", weights_only=True))
    for _ in range(3):
        mine, theirs = loaded.state_dict(), tree.state_dict()
        for one, other in zip([mine["values"], *mine["sums"]], [theirs["values"], *theirs["sums"]], strict=True):
            assert torch.equal(one, other)
        assert torch.equal(loaded.draw(300, generator(5)), tree.draw(300, generator(5)))
        change(loaded, tree)


def test_neither_a_state_nor_the_values_given_change_with_the_tree():
    values = torch.ones(300)
    tree = SumTree(values)
    state = tree.state_dict()
    other = SumTree(torch.ones(300))
    other.load_state_dict(state)
    for one in (tree, other):
        one.update(torch.tensor([3]), torch.tensor([9.0]))
    assert float(values.sum()) == float(state["values"].sum()) == float(state["sums"][-1].sum()) == 300


def test_a_state_of_another_length_is_refused():
    with pytest.raises(ValueError, match="the saved sum tree has 3 values, this one 4"):
        SumTree(torch.ones(4)).load_state_dict(SumTree(torch.ones(3)).state_dict())


# --- bad values


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (torch.empty(0), r"values: \[0\] is not allowed; they must be float32\[N\] with N >= 1"),
        (torch.ones(2, 3), r"values: \[2, 3\] is not allowed; they must be float32\[N\]"),
        (torch.tensor(1.0), r"values: \[\] is not allowed"),
        (torch.tensor([1.0, math.nan, 2.0]), "values: from nan to nan is not allowed; they must be finite and >= 0"),
        (torch.tensor([1.0, math.inf]), "values: from 1.0 to inf is not allowed; they must be finite"),
        (torch.tensor([-math.inf, 1.0]), "values: from -inf to 1.0 is not allowed"),
        (torch.tensor([-0.5, 1.0]), "values: from -0.5 to 1.0 is not allowed; they must be finite and >= 0"),
        (torch.zeros(5), "values: from 0.0 to 0.0 is not allowed; .* one must be positive"),
        (torch.tensor([-0.0]), "one must be positive"),
        (torch.tensor([1.0, 1e300], dtype=torch.float64), "is not allowed"),
        (torch.tensor([1e-300], dtype=torch.float64), "is not allowed"),
    ],
    ids=["empty", "2-d", "0-d", "nan", "inf", "-inf", "negative", "all zero", "-0", "too large", "too small"],
)
def test_bad_values_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        SumTree(values)
