"""One row per method, and the checks that every row gets. A new method needs a reference and a row here, nothing else.

Needs no pytest, ranks import it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import backprop_tester
import histories
import pod_tester
import references
import torch
from histories import MAX_EPOCHS, bits, record, recorded

from kakurenbo_lightning import Epoch, available_methods, get_method


@dataclass(frozen=True)
class Row:
    """What the tester must know of a method.

    Attributes:
        name: as registered.
        reference: see ``references.py``.
        bytes_per_sample: of all columns on the device.
        variants: settings that are compared with the reference.
        settings: for short runs of a small network, such that a good part of the data is hidden.
        draws: whether what is hidden depends on the seed: always, among equal samples, or never.
        loss_decides: settings with which no sample without a finite loss is hidden; ``None`` for methods that do not look at losses.
        exact: hides just floor(max_fraction * N) of samples that are all measured, right and sure.
        weighs: kept samples have loss weights other than 1, by default.
        rate: may change the learning rate.
        sightings: how often a sample must have been recorded before it can be hidden.
        fraction: which options may change how much it hides: ``balance="rcap"``, ``fraction_schedule``.
    """

    name: str
    reference: Callable[..., references.Expected]
    bytes_per_sample: int
    variants: tuple[Mapping[str, Any], ...] = ({},)
    settings: Mapping[str, Any] = field(default_factory=dict)
    draws: Literal["always", "ties", "never"] = "never"
    loss_decides: Mapping[str, Any] | None = None
    exact: bool = False
    weighs: bool = False
    rate: bool = False
    sightings: int = 1
    fraction: tuple[Literal["rcap", "schedule"], ...] = ()


BOTH: Any = ("rcap", "schedule")


def _rows(*rows):
    return {row.name: row for row in rows}


ROWS = _rows(
    Row("baseline", references.baseline, 12),
    Row(
        "kakurenbo",
        references.kakurenbo,
        12,
        (
            {},
            {"max_fraction": 0.5, "tau": 0.5, "fractions": (1, 0.5), "milestones": (4,)},
            {"max_fraction": 0.29, "tau": 0.0, "drop_top": 0.1, "fractions": (1.0,), "milestones": ()},
        ),
        {"max_fraction": 0.5, "tau": 0.5},
        loss_decides={},
        exact=True,
        rate=True,
        fraction=BOTH,
    ),
    Row(
        "forget",
        references.forget,
        15,
        ({"static_epochs": 3}, {}, {"static_epochs": 0.4, "max_fraction": 0.55, "never_learned": "first"}),
        {"static_epochs": 2, "max_fraction": 0.4},
        draws="ties",
        loss_decides={},
        exact=True,
        fraction=("rcap",),
    ),
    Row(
        "forget_online",
        references.forgetting,
        15,
        ({}, {"max_fraction": 0.55, "never_learned": "first", "start_epoch": 0}),
        {"start_epoch": 1, "max_fraction": 0.4},
        draws="ties",
        loss_decides={},
        exact=True,
        fraction=BOTH,
    ),
    Row(
        "infobatch",
        references.infobatch,
        12,
        ({}, {"prune_ratio": 0.3}, {"prune_ratio": 0.29, "unbiased": False, "end_fraction": 0.0}),
        draws="always",
        loss_decides={},
        weighs=True,
        fraction=BOTH,
    ),
    Row(
        "el2n",
        references.el2n,
        18,
        (
            {"score_epochs": (1, 3)},
            {"score_epochs": (0.1, 0.4), "max_fraction": 0.5},
            {"score_epochs": (0, 2), "keep_hardest": False, "drop_hardest": 0.2},
            {"score_epochs": (0, 2), "score_pass": True},
        ),
        {"score_epochs": (0, 2), "max_fraction": 0.4},
        draws="ties",
        loss_decides={},
        exact=True,
    ),
    Row(
        "seta",
        references.seta,
        12,
        ({}, {"groups": 4, "window": 0.3, "prune_ratio": 0.2}, {"groups": 3, "window": 1.0}, {"groups": 7, "delta": 0.5}),
        draws="always",
        loss_decides={"prune_ratio": 0.0},
    ),
    Row(
        "rcap",
        references.rcap,
        16,
        ({}, {"max_fraction": 0.5, "beta": 0.25}, {"max_fraction": 0.29, "beta": 2.0, "balance": None}),
        {"max_fraction": 0.4, "start_epoch": 1},
        draws="always",
        fraction=BOTH,
    ),
    Row(
        "orderdp",
        references.orderdp,
        12,
        (
            {},
            {"random_fraction": 0.8, "top_fraction": 0.375},
            {"random_fraction": 0.29, "top_fraction": 0.57, "end_fraction": 0.0},
        ),
        draws="always",
        loss_decides={"random_fraction": 1.0},
        fraction=BOTH,
    ),
    Row(
        "ies",
        references.ies,
        32,
        ({"threshold": 3.0}, {"threshold": 2.0, "max_fraction": 0.4}),
        {"threshold": 50.0, "window": 1, "max_fraction": 0.5},
        loss_decides={},
        sightings=6,
    ),
    Row(
        "random",
        references.random,
        12,
        ({}, {"max_fraction": 0.29}),
        {"max_fraction": 0.4},
        draws="always",
        exact=True,
        fraction=BOTH,
    ),
    Row(
        "random_cycle",
        references.random_cycle,
        12,
        ({}, {"max_fraction": 0.29}, {"max_fraction": 0.65}),
        {"max_fraction": 0.4},
        draws="always",
        exact=True,
        fraction=("schedule",),
    ),
)


LATE = [name for name, row in ROWS.items() if row.sightings > 1]  # in a short run they hide nothing in the first epochs


def short_run(name, samples=1):
    """The method ``name`` with the settings of its row for a short run on so many samples."""
    if name in backprop_tester.ROWS:
        return backprop_tester.made(name, backprop_tester.ROWS[name].settings, samples)
    if name in pod_tester.ROWS:
        return pod_tester.made(name, pod_tester.ROWS[name].settings, samples)
    return get_method(name, **ROWS[name].settings)


def our_methods(family="hide"):
    """The registered methods of this package that are of a family, by name."""
    names = [name for name, info in available_methods().items() if info.family == family]
    return [name for name in names if type(get_method(name)).__module__.startswith("kakurenbo_lightning.")]


def check_rows(names, rows):
    """Every method has a row, and every row a method."""
    missing, stale = sorted(set(names) - set(rows)), sorted(set(rows) - set(names))
    assert not missing, (
        f"no row for {', '.join(missing)}: write the reference in tests/references.py and add a Row to ROWS in tests/method_tester.py"
    )
    assert not stale, f"ROWS in tests/method_tester.py has {', '.join(stale)}, which is not registered"


def variants(row, **options):
    """The method objects of a row, each with ``options`` on top."""
    return [get_method(row.name, **{**settings, **options}) for settings in row.variants]


def takes(row, options):
    """Whether the method of a row has a fraction that these options could change."""
    needed = {"rcap"} & {options.get("balance")} | ({"schedule"} if options.get("fraction_schedule") else set())
    return needed <= set(row.fraction)


def some_epochs(method):
    """Indices of epochs of a run of ``MAX_EPOCHS`` in which a method may behave in different ways."""
    begin = references.scoring_epochs(method, MAX_EPOCHS)
    return sorted({0, begin, begin + 1, begin + 2, begin + 5, begin + MAX_EPOCHS - 1})


def check_plan(plan, expected, count):
    """A plan hides what it must, trains the rest once, and weighs those by 1 / (probability of being kept)."""
    hidden = set(plan.hidden.tolist())
    wrong = f"hides {sorted(hidden - expected.hidden)} too, and not {sorted(expected.hidden - hidden)}"
    assert plan.hidden.tolist() == sorted(expected.hidden), wrong
    assert plan.indices.tolist() == [i for i in range(count) if i not in expected.hidden]
    weights = [1.0] * count if plan.weights is None else plan.weights.tolist()
    assert len(weights) == count
    keep = expected.keep or [1.0] * count
    for i in plan.indices.tolist():
        assert abs(weights[i] * keep[i] - 1) < 1e-6, f"sample {i}, kept with probability {keep[i]}, has weight {weights[i]}"


def check_equals_reference(row, method, history, statistics=None, epochs=None, seed=0):
    """In each epoch the plan is the reference's."""
    statistics = recorded(history, method) if statistics is None else statistics
    for index in some_epochs(method) if epochs is None else epochs:
        epoch = Epoch(index, MAX_EPOCHS, seed)
        plan = method.plan(statistics, epoch)
        check_plan(plan, references.expected(row.reference, method, history, epoch), len(history))
        assert row.rate or plan.lr_factor == 1.0


def planned_run(method, history, epochs, seed=0, share=None, after_epoch=lambda statistics: None):
    """Plan one epoch after another, recording what each saw; yields (epoch, plan, statistics).

    Args:
        method: whose plans.
        history: what is seen.
        epochs: how many.
        seed: of the run.
        share: ``(rank, ranks)`` records this rank's share only.
        after_epoch: is given the statistics after each epoch, as ``SampleStatistics.merge``.
    """
    mine = history if share is None else history.share(*share)
    statistics, plan = histories.empty(method, history), None
    for index in range(epochs):
        plan = method.plan(statistics, Epoch(index, MAX_EPOCHS, seed), plan)
        yield index, plan, statistics
        record(method, statistics, mine, Epoch(index, MAX_EPOCHS, seed), batch_size=16, order=1)
        after_epoch(statistics)


def run_length(method):
    """Epochs of a run of ``MAX_EPOCHS``, those of scoring included."""
    return MAX_EPOCHS + references.scoring_epochs(method, MAX_EPOCHS)


def check_run(row, method, history, seed=0):
    """Over a run, each epoch's plan is the reference's choice, made when it was due from what was known then."""
    epochs = run_length(method)
    hidden = []
    for index, plan, _ in planned_run(method, history, epochs, seed):
        due = references.choice_epoch(method, index, MAX_EPOCHS)
        expected = references.expected(row.reference, method, history.before(due), Epoch(due, MAX_EPOCHS, seed))
        if not references.trains_on_part(method, Epoch(index, MAX_EPOCHS, seed)):
            expected = references.Expected(set())
        check_plan(plan, expected, len(history))
        hidden.append(plan.hidden.tolist())
    return hidden


def checksums(method, statistics, order, seed=0):
    """Checksum of each epoch's plan, asked for in this order."""
    return {index: method.plan(statistics, Epoch(index, MAX_EPOCHS, seed)).checksum() for index in order}


def check_pure(method, history):
    """Plans are the same whenever and how often they are asked for, and change no statistics."""
    statistics = recorded(history, method)
    before = bits(statistics)
    epochs = range(run_length(method))
    wanted = checksums(replace(method), statistics, epochs)
    for order in (epochs, epochs, reversed(epochs), [7, 2, 9, 2, 0, 5, 5, 1]):
        for index, checksum in checksums(method, statistics, order).items():
            assert checksum == wanted[index], f"epoch {index} is planned otherwise when asked for again"
    assert histories.same(before, bits(statistics)), "planning changed the statistics"


def real_bytes(statistics):
    """Memory of every tensor that statistics hold, counted in their attributes."""
    held = [value for value in vars(statistics).values() if torch.is_tensor(value)] + list(statistics.extra.values())
    return sum(tensor.untyped_storage().nbytes() for tensor in held)


def assert_exercised(name, plans, logged):
    """The plans of epochs in which a run is cut hide and weigh, or a method of another family rejects or draws, enough to show anything.

    Args:
        name: of the method.
        plans: :class:`~kakurenbo_lightning.EpochPlan` s.
        logged: metrics of the same epochs.
    """
    if name in backprop_tester.ROWS:
        backprop_tester.assert_exercised(name, logged)
        return
    if name in pod_tester.ROWS:
        pod_tester.assert_exercised(name, logged)
        return
    row = ROWS[name]
    if row.name == "baseline":
        return
    hiding = [plan for plan in plans if len(plan.hidden) > 5]
    assert hiding, f"{name} hides next to nothing where it is cut; change the settings in its Row"
    for plan in hiding if row.weighs else ():
        assert (plan.weights[plan.indices] != 1).sum() > 5, (
            f"{name} weighs nothing where it is cut; change the settings in its Row"
        )
