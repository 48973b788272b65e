"""Global random streams: kept, put back and seeded."""

import random

import numpy as np
import pytest
import torch

from kakurenbo_lightning.core.random import (
    isolated_rng,
    rng_state,
    same_rng_state,
    seed_everything,
    set_rng_state,
    stream_generator,
    stream_seed,
)


def draws():
    """The next numbers of each global stream."""
    return [(random.random(), np.random.randn(), float(torch.rand(1))) for _ in range(3)]


def test_streams_come_back_and_load_with_weights_only(tmp_path):
    np.random.seed(0)
    np.random.randn()  # leaves a cached gaussian
    torch.save(rng_state(), tmp_path / "rng.pt")
    drawn = draws()
    set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert draws() == drawn


def test_cuda_is_in_the_state_once_it_has_started(monkeypatch):
    cuda = [torch.tensor([1], dtype=torch.uint8)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: cuda[-1])
    monkeypatch.setattr(torch.cuda, "set_rng_state", cuda.append)
    for started in (False, True):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda started=started: started)
        state = rng_state()
        set_rng_state(state)
        assert ("cuda" in state) is started
    assert [int(value) for value in cuda] == [1, 1]


def test_isolated_streams_are_afterwards_what_they_were_before():
    state = rng_state()
    expected = draws()
    set_rng_state(state)
    try:
        with isolated_rng():
            seed_everything(3)
            inside = draws()
            raise KeyError
    except KeyError:
        assert draws() == expected != inside


def test_seeding_repeats_each_stream_and_starts_no_cuda(monkeypatch):
    """``torch.manual_seed`` would leave a seed for CUDA to take when it starts, which no state holds."""
    started = []
    monkeypatch.setattr(torch.cuda, "manual_seed", started.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for initialized in (False, True):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda initialized=initialized: initialized)
        seed_everything(2**63 - 1)
        drawn = draws()
        seed_everything(2**63 - 1)
        assert draws() == drawn
        assert started == [2**63 - 1] * 2 * initialized


def test_a_stream_differs_by_seed_epoch_and_name():
    seeds = {stream_seed(seed, epoch, stream) for seed in (0, 1) for epoch in (0, 1) for stream in ("deal", "method")}
    assert len(seeds) == 8 and all(0 <= seed < 2**63 for seed in seeds)
    first, again = (torch.rand(4, generator=stream_generator(1, 2, "deal")) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("draw", [random.random, np.random.rand, np.random.randn, lambda: torch.rand(1)])
def test_states_are_the_same_until_one_stream_draws(draw):
    before = rng_state()
    assert same_rng_state(before, rng_state())
    with isolated_rng():
        draw()
        assert not same_rng_state(before, rng_state())
    assert same_rng_state(before, rng_state())
