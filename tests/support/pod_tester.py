"""One row per PoD method, and the checks that every row gets. A new method needs a reference and a row here, nothing else.

Needs no pytest, ranks import it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import histories
import numpy as np
import pod_references as references
import torch
from pod_references import Seen
from shards import lone_adapter

from kakurenbo_lightning import Epoch, SampleStatistics, get_method
from kakurenbo_lightning.core.plan import EpochPlan, StreamPlan
from kakurenbo_lightning.core.shard import Layout
from kakurenbo_lightning.engines.stream import StreamEngine
from kakurenbo_lightning.signals.outputs import SampleOutputs

NAN, INF = float("nan"), float("inf")
MAX_EPOCHS = 10
# p is compared to this, relatively; below the second it is as good as never drawn, and not held
RELATIVE, LEAST = 1e-5, 1e-200


@dataclass(frozen=True)
class Row:
    """What the tester must know of a method.

    Attributes:
        name: as registered.
        reference: of a step, see ``pod_references.py``; ``None`` for a method whose epoch is planned.
        bytes_per_sample: of all columns on the device.
        variants: settings that are compared with the reference.
        settings: for short runs of a small network, such that probabilities become uneven.
        needs_weights: of each sample, in a run.
    """

    name: str
    reference: Callable[..., list] | None
    bytes_per_sample: int
    variants: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs_weights: bool = False


COMMON = ({}, {"mix": 0.3, "unbiased": True}, {"min_value": 0.2, "mix": 1.0}, {"min_value": 1e-9, "mix": 0.5})
POWERS = ({"temperature": 0.5, "mix": 0.5}, {"temperature": 2.0, "cap_quantile": 0.8, "unbiased": True}, {"temperature": 0.0})
ROWS = {
    row.name: row
    for row in (
        Row("owc", references.owc, 16, (*COMMON, {"alpha": 0.3}, {"alpha": 1e-3, "mix": 0.5}), {"exchange_every": 2}),
        Row("lb", references.lb, 16, (*COMMON, *POWERS), {"min_value": 1e-3}),
        Row("nlb", references.lb, 16, (*COMMON, *POWERS), {"pretrain_epochs": 1}),
        Row("plb", references.plb, 16, (*COMMON, *POWERS), {"unbiased": True, "mix": 0.2, "refresh_share": 0.2}),
        Row("peb", references.plb, 20, (*COMMON, *POWERS), {"temperature": 2.0, "cap_quantile": 0.9, "diagnose": 20}),
        Row("iswr", None, 16, (*COMMON, *POWERS, {"refresh": False, "unbiased": True}), {"unbiased": True, "mix": 0.2}),
        Row("weighted", None, 16, (*COMMON[:2], *POWERS, {"num_samples": 1}), {"unbiased": True, "mix": 0.2}, needs_weights=True),
    )
}
STREAMS = {name: row for name, row in ROWS.items() if row.reference is not None}
BY_VALUE = ("lb", "nlb", "plb", "peb")  # those with base values


def variants(row):
    """The method objects of a row."""
    return [get_method(row.name, **settings) for settings in row.variants]


def made(name, settings, samples):
    """The method ``name``; one that draws by given weights gets those of ``samples`` samples, some of them 0."""
    weights = {"weights": [float((3 * i + 1) % 7) for i in range(samples)]} if ROWS[name].needs_weights else {}
    return get_method(name, **{**weights, **settings})


# --- what is seen


def seen_of(loss, correct=True, entropy=0.5):
    """One sighting, in float32."""
    return Seen(float(np.float32(loss)), bool(correct), float(np.float32(entropy)))


def some_seen(rng, count, bad=0.0, scale=1.0):
    """Random sightings: losses and entropies of two orders of magnitude, of which a share ``bad`` is not finite."""

    def drawn(spread):
        return rng.choice([NAN, INF, -INF]) if rng.random() < bad else scale * spread

    return [seen_of(drawn(rng.gamma(0.7)), rng.random() < 0.6, drawn(min(1.1, 0.4 * rng.gamma(0.7)))) for _ in range(count)]


def repeated(*seen):
    """The same sighting values as loss and entropy."""
    return [None if value is None else seen_of(value, i % 2, value) for i, value in enumerate(seen)]


HISTORIES = {
    "random": some_seen(np.random.default_rng(1), 60),
    "random, some not finite": some_seen(np.random.default_rng(2), 60, bad=0.2),
    "some never seen": [one if i % 3 else None for i, one in enumerate(some_seen(np.random.default_rng(3), 40))],
    "nothing seen": [None] * 9,
    "one sample": repeated(0.5),
    "one bad sample": repeated(NAN),
    "all zero": repeated(*[0.0, -0.0] * 5),
    "all equal": repeated(*[0.5] * 8),
    "all nan": repeated(*[NAN] * 8),
    "all inf": repeated(*[INF] * 8),
    "all -inf": repeated(*[-INF] * 8),
    "one finite": repeated(NAN, NAN, 0.75, INF, -INF),
    "one positive": repeated(*[0.0] * 20, 2.0),
    "negative": repeated(*[(i - 5) / 4 for i in range(25)]),
    "all negative": repeated(*[-1 - i for i in range(9)]),
    "few values": repeated(*[float(i % 3) for i in range(31)]),
    "far apart": repeated(*[10.0 ** (i % 30 - 15) for i in range(60)]),
    "129 samples": some_seen(np.random.default_rng(4), 129, bad=0.05),
}


def tensors(seen):
    """The columns a training step hands over."""
    loss, correct, entropy = zip(*seen, strict=True)
    return {"loss": torch.tensor(loss), "correct": torch.tensor(correct), "entropy": torch.tensor(entropy)}


def record(statistics, seen, epoch=0):
    """Record what was seen of every sample that was."""
    rows = [i for i, one in enumerate(seen) if one is not None]
    if rows:
        statistics.record(torch.tensor(rows), tensors([seen[i] for i in rows]), epoch)


def recorded(method, seen, epoch=0):
    """Statistics in which this was recorded."""
    statistics = SampleStatistics(len(seen), columns=method.columns, repeats=True)
    record(statistics, seen, epoch)
    return statistics


def rows_to_score(method, seen_in, index, batch_size=None, seed=0):
    """Which samples are looked at before epoch ``index``; ``seen_in``: epoch in which each was seen last, -1 for never."""
    statistics = recorded(method, [None] * len(seen_in))
    for epoch in sorted({*seen_in} - {-1}):
        record(statistics, [seen_of(1.0) if last == epoch else None for last in seen_in], epoch)
    before = histories.bits(statistics)
    rows = method.rows_to_score(statistics, Epoch(index, 10, seed, batch_size=batch_size), None)
    assert histories.same(before, histories.bits(statistics)), "asking changed the statistics"
    assert rows.dtype == torch.int64 and rows.tolist() == sorted(set(rows.tolist()))
    return rows.tolist()


# --- streams


def seeing(seed, **how):
    """``see(count)`` for a :class:`Stream`: random sightings."""
    rng = np.random.default_rng(seed)
    return lambda count: some_seen(rng, count, **how)


def always(seen):
    """``see(count)``: the same for all."""
    return lambda count: [seen] * count


class Stream:
    """A stream that is driven by hand.

    Args:
        method: a stream method.
        seen: of every sample before it starts.
        batch: samples of a step.
        steps: of an epoch.
        seed: of the draws.
    """

    def __init__(self, method, seen, batch=8, steps=50, seed=0):
        self.statistics = recorded(method, seen)
        self.engine = StreamEngine(lone_adapter(), method, self.statistics)
        self.method, self.count, self.seed = method, len(seen), seed
        self.plan = StreamPlan(self.count, steps * batch)
        self.shard = self.plan.shard(Layout(batch), self.engine)
        self.begin(0)

    def begin(self, index, scored=()):
        """Epoch ``index`` begins."""
        epoch = Epoch(index, MAX_EPOCHS, self.seed)
        plan = self.plan if self.method.streams(epoch) else EpochPlan.everything(self.count)
        self.engine.prepare(epoch, plan, torch.tensor(scored, dtype=torch.int64))
        self.engine.begin_epoch(epoch, plan, self.shard, 0, SampleOutputs(()))

    def step(self, number, see):
        """Train step ``number``, which sees what ``see(count)`` says; returns the indices and that."""
        indices = self.engine.draw(number).indices.tolist()
        seen = see(len(indices))
        self.engine.begin_batch(None, number)
        self.engine.trained_batch(tensors(seen), None)
        self.engine.end_batch(number)
        return indices, seen

    @property
    def values(self):
        """Of every sample, as they are stored."""
        return self.engine.tree.values.tolist()

    @property
    def probabilities(self):
        """Of every sample, from the table."""
        return self.engine.tree.probability(torch.arange(self.count)).numpy()

    @property
    def not_written(self):
        """So many observations of this epoch were not finite; ends the epoch."""
        return self.engine.end_epoch(False)[0]["not_written"]


def check_values(stream, expected):
    """The table has the reference's probabilities, and where they are not normalised its values."""
    assert np.allclose(stream.probabilities, references.normalised(expected), rtol=RELATIVE, atol=LEAST)
    if not stream.method.normalised:
        assert np.allclose(stream.values, expected, rtol=RELATIVE, atol=0)


def check_stream(row, method, seen, steps, see, seed=0, batch=8):
    """Step after step the table is the reference's; returns the stream and the last values."""
    stream = Stream(method, seen, batch, steps, seed)
    expected, cap = references.start(method, seen), references.cap_of(method, seen)
    check_values(stream, expected)
    for number in range(steps):
        drawn, saw = stream.step(number, see)
        expected = row.reference(method, expected, drawn, saw, cap)
        if number < 30 or number % 100 == 99:
            check_values(stream, expected)
    check_values(stream, expected)
    return stream, expected


# --- runs


def assert_exercised(name, logged):
    """Where a run is cut samples are drawn with different probabilities, else nothing is shown.

    Args:
        name: of the method.
        logged: metrics of the epochs, as ``selection/<name>``.
    """
    key, uneven = ("drawn_share", 0.7) if ROWS[name].reference is None else ("effective_share", 0.95)
    assert any(metrics.get(f"selection/{key}", 1.0) < uneven for metrics in logged), (
        f"{name} draws all samples alike where it is cut; change the settings in its Row"
    )
