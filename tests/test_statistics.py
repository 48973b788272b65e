"""One row per sample, on one process (merging over ranks is tested with real ranks in tests/ddp)."""

import pytest
import torch

from kakurenbo_lightning import SampleStatistics


def rows(n, start=0.0):
    return {"loss": torch.arange(n) + start, "confidence": torch.linspace(0, 1, n), "correct": torch.arange(n) % 2 == 0}


def test_nothing_is_measured_at_first():
    statistics = SampleStatistics(4)
    assert not statistics.measured.any()
    assert statistics.loss.isnan().all()
    assert statistics.nonfinite() == 0


def test_record_writes_only_its_rows():
    statistics = SampleStatistics(5)
    statistics.record(torch.tensor([3, 1]), rows(2, start=7.0), epoch=2)
    assert statistics.loss.nan_to_num(-1).tolist() == [-1, 8, -1, 7, -1]
    assert statistics.epoch_seen.tolist() == [-1, 2, -1, 2, -1]
    assert statistics.measured.tolist() == [False, True, False, True, False]
    assert statistics.correct.tolist() == [False, False, False, True, False]


def test_a_value_that_is_not_given_keeps_its_column():
    statistics = SampleStatistics(2)
    statistics.record(torch.arange(2), rows(2), epoch=0)
    statistics.record(torch.arange(2), {"loss": torch.tensor([5.0, 6.0], dtype=torch.float64)}, epoch=1)
    assert statistics.confidence.tolist() == [0.0, 1.0]
    assert statistics.loss.tolist() == [5.0, 6.0]


def test_memory_is_as_documented():
    statistics = SampleStatistics(1000)
    assert statistics.bytes_per_sample == 12 <= 16
    assert sum(column.nbytes for column in statistics.state_dict().values()) == 11 * 1000


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
        SampleStatistics(1).record(torch.tensor([0]), rows(1), epoch=32768)


def test_bits_survive_packing():
    statistics = SampleStatistics(6)
    special = torch.tensor([float("nan"), float("inf"), -0.0, 1e-42, -3.5])
    statistics.record(torch.arange(5), {**rows(5), "loss": special}, epoch=32767)
    other = SampleStatistics(6)
    other._unpack(statistics._pack())
    for key, column in statistics.state_dict().items():
        mine = column.view(torch.int32) if column.is_floating_point() else column
        theirs = other.state_dict()[key]
        assert torch.equal(mine, theirs.view(torch.int32) if theirs.is_floating_point() else theirs), key
