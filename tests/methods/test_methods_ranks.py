"""Every method on 1, 2 and 4 real processes, each of which records its share: they plan and know the same as one process that saw all."""

import os

import pytest
import torch
import torch.distributed as dist
from histories import bits, drawn, same
from method_tester import ROWS, planned_run, run_length, takes, variants

from kakurenbo_lightning import SampleStatistics
from recipes.benchmarks.forked import printed, run_ranks

COUNT = 53
HISTORY = drawn(COUNT, seed=8, epochs=14)
OPTIONS = (
    {},
    {"balance": "class", "protected": (3, 4)},
    {"balance": "rcap", "protected": (3, 4)},
    {"fraction_schedule": (1.1, 0.8, 1.1), "every_n_epochs": 2},
)


def run_all(share=None):
    """Checksums of the plans of runs, and what is known before each as bits; options with the first variant of a row."""
    results = {}
    for name, row in ROWS.items():
        for options in (each for each in OPTIONS if takes(row, each)):
            for number, method in enumerate(variants(row, **options)[: 1 if options else None]):
                run = planned_run(method, HISTORY, run_length(method), seed=3, share=share, after_epoch=SampleStatistics.merge)
                epochs = [
                    {"checksum": plan.checksum(), "hidden": len(plan.hidden), "known": bits(known)} for _, plan, known in run
                ]
                results[f"{name} {number} {options}"] = epochs
    return results


def run_share(folder):
    """Be one rank."""
    torch.set_num_threads(1)
    rank, ranks = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    dist.init_process_group("gloo") if ranks > 1 else None
    torch.save(run_all((rank, ranks)), folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def alone():
    """What one process that saw everything planned."""
    return run_all()


@pytest.mark.slow_cases("1", "4")
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_that_share_the_samples_plan_and_know_the_same_as_one_process(alone, tmp_path, ranks):
    codes = run_ranks(run_share, (tmp_path,), ranks, log=tmp_path / "rank")
    assert not any(codes), printed(tmp_path / "rank", ranks)
    for rank in range(ranks):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert results.keys() == alone.keys()
        for name, epochs in results.items():
            for epoch, (mine, whole) in enumerate(zip(epochs, alone[name], strict=True)):
                assert same(mine["known"], whole["known"]), f"{name}: rank {rank} knows otherwise before epoch {epoch}"
                assert mine["checksum"] == whole["checksum"], f"{name}: rank {rank} plans epoch {epoch} otherwise"


def test_the_runs_that_ranks_are_compared_in_hide_something(alone):
    for name, epochs in alone.items():
        assert name.startswith("baseline") or sum(epoch["hidden"] > 2 for epoch in epochs) >= 3, name
