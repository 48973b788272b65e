"""One row per backprop method, and the checks that every row gets. A new method needs a reference and a row here, nothing else.

Needs no pytest, ranks import it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import backprop_references as references
import numpy as np
import torch

from kakurenbo_lightning import get_method
from recipes.benchmarks.fault_run import irreducible_table

NAN, INF = float("nan"), float("inf")
COUNT = 400  # of the data set that batches are from


@dataclass(frozen=True)
class Row:
    """What the tester must know of a method.

    Attributes:
        name: as registered.
        reference: see ``backprop_references.py``.
        bytes_per_sample: of all columns on the device.
        memory_bytes: of what is remembered from batch to batch, at most.
        variants: settings that are compared with the reference.
        settings: for short runs of a small network, such that a good part of the data is rejected.
        draws: whether the choice depends on the seed, by variant.
        pools: chosen samples wait for a full batch.
        needs_table: ``irreducible`` must name a file.
    """

    name: str
    reference: Callable[..., references.Picks]
    bytes_per_sample: int
    memory_bytes: int
    variants: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    draws: Callable[[Any], bool] = lambda method: True
    pools: bool = False
    needs_table: bool = False


SB = ({}, {"beta": 3.0, "history": 40}, {"beta": 0.5, "floor": 0.2}, {"beta": 0}, {"history": 4})
ROWS = {
    row.name: row
    for row in (
        Row(
            "selective_backprop",
            references.selective_backprop,
            12,
            4 * 1024,
            (*SB, {"score": "random", "beta": 2}, {"score": "topk"}, {"score": "topk", "beta": 3}, {"score": "l2", "beta": 2}),
            draws=lambda method: method.beta > 0 and method.score != "topk",
            pools=True,
        ),
        Row(
            "stale_sb",
            references.selective_backprop,
            12,
            4 * 1024,
            (*SB, {"staleness": 1}, {"staleness": 2, "warmup_epochs": 3}),
            {"staleness": 2},
            draws=lambda method: method.beta > 0,
            pools=True,
        ),
        Row(
            "sb_fixed",
            references.sb_fixed,
            12,
            0,
            (
                {},
                {"keep": 0.29, "start": 0.0, "end": 1.0, "interrupt": 0},
                {"keep": 0.9, "start": 0.3, "end": 0.55, "interrupt": 3},
                {"keep": 1.0},
                {"keep": 0.05, "warmup_epochs": 0, "start": 0.0},
            ),
            {"start": 0.2, "end": 0.8},
            draws=lambda method: method.keep < 1,
        ),
        Row(
            "katharopoulos",
            references.katharopoulos,
            12,
            4,
            ({}, {"presample": 2, "momentum": 0.5}, {"presample": 5, "threshold": 0.0}, {"momentum": 0.0, "threshold": 1.01}),
            {"threshold": 0.0},
        ),
        Row(
            "rho_loss",
            references.rho_loss,
            12,
            0,
            ({}, {"fraction": 0.29}, {"fraction": 0.5, "warmup_epochs": 0}, {"fraction": 1.0}),
            {"fraction": 0.5},
            draws=lambda method: False,
            needs_table=True,
        ),
    )
}


def made(name, settings, samples):
    """The method ``name``; one that needs a file about ``samples`` samples gets one."""
    table = {"irreducible": irreducible_table(samples)} if ROWS[name].needs_table else {}
    return get_method(name, **{**settings, **table})


def variants(row):
    """The method objects of a row."""
    return [made(row.name, settings, COUNT) for settings in row.variants]


# --- what is looked at


@dataclass(frozen=True)
class Batch:
    """Plain float32 columns of what is looked at; ``indices``: of the data set."""

    loss: tuple
    el2n: tuple
    indices: tuple

    def columns(self):
        return {"loss": list(self.loss), "el2n": list(self.el2n)}

    def tensors(self):
        return {name: torch.tensor(column, dtype=torch.float32) for name, column in self.columns().items()}


def float32(values):
    return tuple(float(np.float32(value)) for value in values)


def batch_of(losses, seed=0, norms=None):
    """A batch with these losses, of drawn samples, and norms that are known where the losses are."""
    rng = np.random.default_rng([seed, len(losses)])
    if norms is None:
        norms = [1.4 * rng.random() if math.isfinite(loss) else NAN for loss in losses]
    return Batch(float32(losses), float32(norms), tuple(rng.permutation(COUNT)[: len(losses)].tolist()))


def drawn(size, seed, bad=0.0):
    """Random losses."""
    rng = np.random.default_rng([seed, size, 1])
    losses = [rng.choice([NAN, INF, -INF]) if rng.random() < bad else rng.gamma(2.0) for _ in range(size)]
    return batch_of(losses, seed)


BATCHES = {
    "one sample": batch_of([0.5]),
    "two samples": batch_of([0.5, 0.25]),
    "two equal": batch_of([0.5, 0.5], norms=[0.0, 0.0]),
    "one not finite": batch_of([NAN]),
    "all equal": batch_of([0.5] * 8, norms=[0.3] * 8),
    "all zero": batch_of([0.0, -0.0] * 4, norms=[0.0] * 8),
    "few values": batch_of([i % 3 for i in range(16)], norms=[i % 2 for i in range(16)]),
    "all nan": batch_of([NAN] * 8),
    "all inf": batch_of([INF] * 8),
    "all -inf": batch_of([-INF] * 8),
    "some not finite": batch_of([(NAN, 0.1, INF, 0.2, -INF, 0.3)[i % 6] for i in range(24)]),
    "one finite": batch_of([NAN] * 5 + [0.5]),
    "one norm": batch_of([0.5] * 9, norms=[0.0] * 8 + [1.0]),
    "far apart": batch_of([10.0 ** (i % 60 - 30) for i in range(60)], norms=[10.0 ** -(i % 30) for i in range(60)]),
    "negative": batch_of([-i / 4 for i in range(25)]),
    "falling": batch_of([9 - i / 4 for i in range(32)]),
    "1 of ten": drawn(10, 0),
    "2 of ten": drawn(10, 1),
    "64 random": drawn(64, 2),
    "200 random, some not finite": drawn(200, 3, bad=0.1),
    "200 random": drawn(200, 4),
}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def alone(value):
    """The mean over one rank."""
    return value


def bits(values):
    """Tensors as integers with the same bits, so that equality sees NaN and -0.0."""
    return {
        name: value.clone().view({4: torch.int32, 8: torch.int64}[value.element_size()]) if torch.is_tensor(value) else value
        for name, value in values.items()
    }


def same(one, other):
    """Whether two results of :func:`bits` are equal."""
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name] for name, value in one.items()
    )


def check_memory(memory, expected):
    """The library's memory is the reference's."""
    for name, value in expected.items():
        ours = memory[name].double()
        assert torch.allclose(ours, torch.tensor(value, dtype=torch.float64), rtol=1e-5, atol=0, equal_nan=True), name


def check_picked(picked, expected):
    """A choice is the reference's."""
    rows, count = picked.rows.tolist(), int(picked.count)
    assert picked.rows.dtype == torch.int64 and count <= len(rows)
    chosen = rows[:count]
    assert (chosen if expected.ordered else sorted(chosen)) == (expected.rows if expected.ordered else sorted(expected.rows))
    assert bool(picked.whole) == expected.whole and int(picked.unknown or 0) == expected.unknown
    assert (picked.weights is None) == (expected.weights is None)
    if expected.weights is not None:
        assert np.allclose(picked.weights[:count].tolist(), expected.weights, rtol=1e-5)


def check_run(row, method, batches, seed=0):
    """Batch after batch, what is remembered and what is chosen is the reference's; returns the shares that were chosen."""
    memory, expected, shares = method.memory(), {}, []
    for number, batch in enumerate(batches):
        values, indices = batch.tensors(), torch.tensor(batch.indices)
        method.learn(memory, values, alone)
        expected = references.remembered(method, expected, batch.columns())
        check_memory(memory, expected)
        before = bits({**memory, **values})
        picked = method.select(values, indices, memory, generator(seed + number))
        assert same(before, bits({**memory, **values})), "choosing changed what was seen or remembered"
        check_picked(picked, row.reference(method, batch.columns(), batch.indices, expected, generator(seed + number)))
        shares.append(int(picked.count) / len(batch.loss))
    return shares


# --- runs


def waiting(state):
    """How many chosen samples wait on each rank, in the saved state of a selection."""
    return [sum(len(part["indices"]) for part in rank["pool"]) for rank in state["engines"]]


def assert_exercised(name, logged):
    """Where a run is cut enough is rejected, or not loaded, to show anything.

    Args:
        name: of the method.
        logged: metrics of the epochs, as ``selection/<name>``.
    """
    assert any(metrics["selection/rejected"] > 5 or metrics["selection/hidden_fraction"] > 0.1 for metrics in logged), (
        f"{name} rejects next to nothing where it is cut; change the settings in its Row"
    )
