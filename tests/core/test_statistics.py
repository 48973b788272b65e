"""One row per sample, on one process (merging over ranks is tested with real ranks in tests/ddp)."""

import pytest
import torch

from kakurenbo_lightning import SampleStatistics
from kakurenbo_lightning.core.statistics import Column

EXTRA = (Column("entropy", torch.float32, float("nan")), Column("seen", torch.int32, 0))


def sample_values(n, start=0.0):
    """What was seen of ``n`` samples."""
    return {"loss": torch.arange(n) + start, "confidence": torch.linspace(0, 1, n), "correct": torch.arange(n) % 2 == 0}


def columns(statistics):
    """Every column by name."""
    return {name: getattr(statistics, name) for name in ("loss", "confidence", "correct", "epoch_seen")} | statistics.extra


def held(statistics):
    """Every tensor that it keeps."""
    return [value for value in vars(statistics).values() if torch.is_tensor(value)] + list(statistics.extra.values())


def test_nothing_is_measured_at_first():
    statistics = SampleStatistics(4)
    assert not statistics.measured.any()
    assert statistics.loss.isnan().all()
    assert statistics.nonfinite() == 0


def test_record_writes_only_its_rows():
    statistics = SampleStatistics(5)
    statistics.record(torch.tensor([3, 1]), sample_values(2, start=7.0), epoch=2)
    assert statistics.loss.nan_to_num(-1).tolist() == [-1, 8, -1, 7, -1]
    assert statistics.epoch_seen.tolist() == [-1, 2, -1, 2, -1]
    assert statistics.measured.tolist() == [False, True, False, True, False]
    assert statistics.correct.tolist() == [False, False, False, True, False]


def test_a_value_that_is_not_given_keeps_its_column():
    statistics = SampleStatistics(2)
    statistics.record(torch.arange(2), sample_values(2), epoch=0)
    statistics.record(torch.arange(2), {"loss": torch.tensor([5.0, 6.0], dtype=torch.float64)}, epoch=1)
    assert statistics.confidence.tolist() == [0.0, 1.0]
    assert statistics.loss.tolist() == [5.0, 6.0]


@pytest.mark.parametrize(
    ("extra", "repeats", "live", "saved"), [((), False, 12, 11), (EXTRA, False, 20, 19), (EXTRA, True, 24, 19)]
)
def test_memory_is_as_documented(extra, repeats, live, saved):
    """Bytes per sample; who wrote a row last is not saved."""
    statistics = SampleStatistics(1000, columns=extra, repeats=repeats)
    assert (statistics.repeats, statistics.bytes_per_sample) == (repeats, live)
    assert sum(column.nbytes for column in held(statistics)) == 1000 * live
    assert sum(column.nbytes for column in statistics.state_dict().values()) == 1000 * saved


@pytest.mark.parametrize("rows", [torch.tensor([4, 1]), slice(1, 4)], ids=["tensor", "slice"])
def test_a_subset_has_the_rows_asked_for(rows):
    statistics = SampleStatistics(5, columns=EXTRA)
    statistics.record(torch.tensor([4, 1]), {**sample_values(2, start=7.0), "seen": torch.tensor([8, 9])}, epoch=2)
    part = statistics.subset(rows)
    for name, column in columns(statistics).items():
        assert torch.equal(columns(part)[name].nan_to_num(9), column[rows].nan_to_num(9)), name
    assert torch.equal(part.measured, statistics.measured[rows]) and len(part) == len(part.measured)


def test_every_column_moves_to_a_device():
    """``meta`` stands for any other device: what stayed behind would raise."""
    statistics = SampleStatistics(5, columns=EXTRA, repeats=True)
    statistics.record(torch.tensor([3]), sample_values(1), epoch=0)
    assert statistics.to("meta") is statistics
    assert {column.device.type for column in held(statistics)} == {statistics.device.type} == {"meta"}


def test_state_round_trip_is_exact_and_a_copy(tmp_path):
    statistics = SampleStatistics(3)
    statistics.record(torch.tensor([0, 2]), {"loss": torch.tensor([float("nan"), -0.0])}, epoch=4)
    torch.save(statistics.state_dict(), tmp_path / "s.pt")
    other = SampleStatistics(3)
    other.load_state_dict(torch.load(tmp_path / "s.pt", weights_only=True))
    for key, column in statistics.state_dict().items():
        assert torch.equal(column.nan_to_num(9), other.state_dict()[key].nan_to_num(9))
    statistics.state_dict()["loss"][1] = 3
    assert statistics.loss[1].isnan()


def test_another_length_is_refused():
    with pytest.raises(ValueError, match="of 3 samples, this data set has 4"):
        SampleStatistics(4).load_state_dict(SampleStatistics(3).state_dict())


def test_too_many_epochs_are_refused():
    with pytest.raises(ValueError, match="at most 32767"):
        SampleStatistics(1).record(torch.tensor([0]), sample_values(1), epoch=32768)


def test_bits_survive_packing():
    """What :meth:`merge` sums over ranks; with real ranks in tests/ddp."""
    statistics = SampleStatistics(6, columns=EXTRA)
    special = torch.tensor([float("nan"), float("inf"), -0.0, 1e-42, -3.5])
    own = {"loss": special, "entropy": special.flip(0), "seen": torch.tensor([0, -1, 2**31 - 1, -(2**31), 7])}
    statistics.record(torch.arange(5), {**sample_values(5), **own}, epoch=32767)
    other = SampleStatistics(6, columns=EXTRA)
    other._unpack(statistics._pack())
    for key, column in statistics.state_dict().items():
        mine = column.view(torch.int32) if column.is_floating_point() else column
        theirs = other.state_dict()[key]
        assert torch.equal(mine, theirs.view(torch.int32) if theirs.is_floating_point() else theirs), key


# --- rows that are recorded more than once in an epoch


def drawn_rows(generator, size, count):
    """Indices with many duplicates, and values that tell them apart."""
    values = {
        "loss": torch.rand(count, generator=generator),
        "confidence": torch.rand(count, generator=generator),
        "correct": torch.rand(count, generator=generator) < 0.5,
        "entropy": torch.rand(count, generator=generator, dtype=torch.float64),
        "seen": torch.randint(1000, (count,), generator=generator),
    }
    return torch.randint(size, (count,), generator=generator), values


@pytest.mark.parametrize("size", [1, 3, 50])
def test_of_an_index_recorded_more_than_once_the_last_values_count(size):
    generator = torch.Generator().manual_seed(size)
    statistics, expected = SampleStatistics(size, columns=EXTRA, repeats=True), {}
    for number in range(20):
        indices, values = drawn_rows(generator, size, 12)
        before = {name: value.clone() for name, value in values.items()}, indices.clone()
        statistics.record(indices, values, epoch=number // 5)
        for place, index in enumerate(indices.tolist()):
            expected[index] = {name: value[place] for name, value in values.items()} | {"epoch_seen": number // 5}
        assert all(torch.equal(values[name], value) for name, value in before[0].items()) and torch.equal(indices, before[1])
        for index, row in expected.items():
            for name, value in row.items():
                assert columns(statistics)[name][index] == (value.float() if name == "entropy" else value), (name, index)
    assert statistics.repeats and statistics.measured.tolist() == [index in expected for index in range(size)]


def test_repeated_rows_are_saved_and_loaded_like_others():
    statistics = SampleStatistics(50, columns=EXTRA, repeats=True)
    generator = torch.Generator().manual_seed(0)
    for epoch in (0, 1):
        statistics.record(*drawn_rows(generator, 40, 60), epoch)
    loaded = SampleStatistics(50, columns=EXTRA, repeats=True)
    loaded.load_state_dict(statistics.state_dict())
    more = drawn_rows(generator, 50, 30)
    for one in (statistics, loaded):
        one.merge()  # alone: forgets who wrote what, nothing else
        one.record(*more, 2)
    for name, column in statistics.state_dict().items():
        assert torch.equal(column.nan_to_num(9), loaded.state_dict()[name].nan_to_num(9)), name


def test_where_correctness_is_known():
    statistics, loss = SampleStatistics(6), {"loss": torch.zeros(2)}
    assert not statistics.judged.any()
    statistics.record(torch.tensor([0, 1]), loss, epoch=0)
    assert statistics.measured.sum() == 2 and not statistics.judged.any(), "a regression"
    statistics.record(torch.tensor([2, 3]), sample_values(2), epoch=1)
    assert statistics.judged.tolist() == [False, False, True, True, False, False]
    assert statistics.subset(torch.tensor([3, 4])).judged.tolist() == [True, False]
    statistics.record(torch.tensor([0, 4]), sample_values(2), epoch=2)
    assert statistics.judged.tolist() == [True, False, True, True, True, False]
    statistics.record(torch.tensor([5, 1]), loss, epoch=3)
    assert not statistics.judged.any()
