"""``statistics="sharded"`` on one process, on another number of ranks, and what it is refused with."""

import pytest
import torch
from cuts import SaveAt, on_ranks
from helpers import Net, fit, loader

from kakurenbo_lightning import SampleSelection, available_methods, get_method
from kakurenbo_lightning.core.sharded_statistics import ShardedStatistics
from kakurenbo_lightning.methods import Kakurenbo
from kakurenbo_lightning.methods.hide.base import Choice
from recipes.benchmarks.fault_run import SAMPLES


def test_one_process_has_all_rows():
    selection = SampleSelection("kakurenbo", statistics="sharded")
    fit(Net(), loader(), selection)
    assert not isinstance(selection.statistics, ShardedStatistics)
    assert selection.statistics.measured.all()


@pytest.mark.parametrize(
    ("method", "settings", "why"),
    [
        ("random_cycle", {}, "it goes on in one permutation of all samples from epoch to epoch"),
        ("seta", {}, "its groups are of the sorted losses of all samples"),
        ("rcap", {}, "it draws from the samples of each class"),
        ("kakurenbo", {"balance": "class"}, "balance and protected_classes need the class of every sample"),
        ("kakurenbo", {"protected_classes": (0,)}, "balance and protected_classes need the class of every sample"),
        ("infobatch", {"values": "bls"}, "values='bls' reads a sample's mean of losses wherever it is trained"),
        ("plb", {}, "the draw family compares samples, or draws them, while an epoch is trained"),
        ("selective_backprop", {}, "the backprop family compares samples"),
    ],
)
def test_what_needs_all_rows_is_refused_when_it_is_made(method, settings, why):
    with pytest.raises(ValueError, match=f"statistics='sharded' is not allowed with {method}: {why}") as raised:
        SampleSelection(method, statistics="sharded", **settings)
    assert "statistics='replicated'" in str(raised.value)


def test_a_method_of_ones_own_is_refused_until_it_says_that_shares_are_enough():
    class Own(Kakurenbo):
        def choose(self, statistics, epoch):
            return Choice(torch.zeros(len(statistics), dtype=torch.bool))

    with pytest.raises(ValueError, match="its choice was not written for rows that are spread over the ranks"):
        SampleSelection(Own(), statistics="sharded")
    Own.needs_all_rows = ""
    assert isinstance(SampleSelection(Own(), statistics="sharded").method, Own)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="statistics='split' is not allowed; statistics must be 'replicated' or 'sharded'"):
        SampleSelection("kakurenbo", statistics="split")


def test_every_method_takes_it_or_says_why_not():
    for name, info in available_methods().items():
        try:
            SampleSelection(get_method(name, **({"weights": [1.0]} if name == "weighted" else {})), statistics="sharded")
        except ValueError as error:
            assert "statistics='sharded' is not allowed with" in str(error) or name == "rho_loss", name
        else:
            assert info.family == "hide"


@pytest.mark.slow
def test_two_ranks_become_one_become_two(tmp_path):
    """Cut within epochs: each epoch trains every kept sample once, and the end is that of replicated statistics, to the bit."""
    ends = {}
    for kind in ("replicated", "sharded"):
        folder = tmp_path / kind
        first, second = (
            SaveAt(folder / "first.ckpt", "on_train_batch_end", 1, 1),
            SaveAt(folder / "second.ckpt", "on_train_batch_end", 2, 4),
        )
        on_ranks(folder, "kakurenbo", 2, statistics=kind, callbacks=(first,))
        on_ranks(folder, "kakurenbo", 1, statistics=kind, resume=first.path, callbacks=(second,))
        ends[kind] = on_ranks(folder / "again", "kakurenbo", 2, statistics=kind, resume=second.path)
    for one, other in zip(ends["replicated"], ends["sharded"], strict=True):
        assert all((one["weights"][name] == other["weights"][name]).all() for name in one["weights"])
        assert one["totals"] == other["totals"]
        assert one["totals"]["samples_trained"] + one["totals"]["samples_hidden"] == 4 * SAMPLES
        assert [batch.tolist() for batch in one["batches"][3].values()] == [
            batch.tolist() for batch in other["batches"][3].values()
        ]
