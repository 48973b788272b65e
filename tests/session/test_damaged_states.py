"""Each key of a real state, at every depth, deleted or damaged: refused by one error that names it, or forgotten where the user says so."""

import copy
import functools

import pytest
import torch
from cuts import SaveAt
from helpers import Net, Points, fit
from method_tester import short_run
from torch import Tensor
from torch.utils.data import DataLoader

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import MismatchError, StateError
from kakurenbo_lightning.session.checkpoint import from_state
from kakurenbo_lightning.session.schema import check_columns

SAMPLES = 61
# a plan that hides; a restart to come; a pool and a history; a stream
METHODS = ("kakurenbo", "forget", "selective_backprop", "plb")
# the user's own: their classes know what they must be
USERS = {"settings", "module", "optimizers", "schedulers", "callbacks", "precision", "batch"}
OPTIONAL = {
    "pending",
    "judged_since",
    "samples_spared",
    "cuda",
    "accumulate",
    "full_accumulate",
    "times",
    *("step_seconds", "wait_seconds", "steady_train_seconds", "steady_error_seconds", "steady_refresh_seconds"),
}  # older releases, or machines, saved none
METRICS = {"metrics", "ended_metrics"}


def items():
    return DataLoader(Points(SAMPLES), 8, shuffle=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("states")


@pytest.fixture(scope="module")
def saved_by(folder):
    """``saved_by(method)``: the path of a checkpoint of mid-epoch 1, the selection's state in it, and the session that saved it."""

    @functools.cache
    def get(method):
        path = folder / f"{method}.ckpt"
        selection = SampleSelection(short_run(method, SAMPLES))
        fit(Net(), items(), selection, SaveAt(path, "on_train_batch_end", 1, 2), max_epochs=4)
        return path, torch.load(path, weights_only=True)["callbacks"]["SampleSelection"], selection.session

    return get


def places(value, at=()):
    """The path of every part of a state, at all depths; of a long list of numbers the first 40."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, part in list(parts)[:40]:
        yield (*at, key)
        if key not in USERS:
            yield from places(part, (*at, key))


def damages(value, place):
    """Values that one in this place cannot have."""
    if place[-1] == "batch":
        return  # the user's, of any type
    yield 7 if isinstance(value, str) else "wrong"
    if METRICS & {*place[:-1]}:
        return  # any number
    if isinstance(value, float):
        yield float("nan")
    if isinstance(value, bool):
        yield 1
    elif isinstance(value, int) and place[-1] != "samples_spared":  # a static method that scores trains more than plain training
        yield -5
    if isinstance(value, Tensor) and value.dim():
        yield value[:, None]
        yield value.tolist()
    if isinstance(value, (dict, list, tuple)):
        yield [] if isinstance(value, dict) else {}


def damaged(state, place, value, delete=False):
    """A copy of ``state`` with ``value`` at ``place``, or nothing there; its other parts are shared."""
    changed = list(state) if isinstance(state, tuple) else copy.copy(state)
    if len(place) > 1:
        changed[place[0]] = damaged(changed[place[0]], place[1:], value, delete)
    elif delete:
        del changed[place[0]]
    else:
        changed[place[0]] = value
    return changed


def check(session, state):
    """What a session does before it takes a state over."""
    saved = from_state(state)
    check_columns(saved.statistics, session.loader.data.statistics)
    session.engine.check_state(saved.engines, saved.shared, saved.num_samples)


@pytest.mark.parametrize("method", METHODS)
def test_a_key_that_is_missing_or_damaged_is_named(saved_by, method):
    _, state, session = saved_by(method)
    check(session, state)  # it is whole
    taken, tried = [], 0
    for place in places(state):
        owner = functools.reduce(lambda part, key: part[key], place[:-1], state)
        changes = [damaged(state, place, wrong) for wrong in damages(owner[place[-1]], place)]
        if isinstance(owner, dict) and type(place[-1]) is str and place[-1] not in OPTIONAL and not METRICS & {*place[:-1]}:
            changes.append(damaged(state, place, None, delete=True))
        taken += [(place, number) for number, changed in enumerate(changes) if not is_refused(session, changed, place)]
        tried += len(changes)
    assert taken == []
    assert tried > 120


def is_refused(session, state, place):
    try:
        check(session, state)
    except MismatchError as error:
        name = [key for key in place if isinstance(key, str)][-1]
        return (isinstance(error, StateError) or place == ("version",)) and (name in str(error) or place[0] in str(error))
    return False


WRONG = {
    "a missing key": (("batch_size",), None, "batch_size is missing"),
    "no learning rate": (("plan", "lr_factor"), float("nan"), "plan.lr_factor is nan, it must be a finite number > 0"),
    "a short column": (
        ("statistics", "loss"),
        torch.zeros(60),
        "statistics.loss is a tensor [60] of torch.float32, it must be",
    ),
    "no random streams": (("rng",), [], "rng has 0 values, it must be one for each of 1 ranks"),
    "an index too large": (
        ("plan", "hidden"),
        torch.tensor([61]),
        "plan.hidden is a tensor [1] of torch.int64, it must be a tensor",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_fit_refuses_it_or_starts_from_the_beginning(saved_by, tmp_path, kind):
    place, value, words = WRONG[kind]
    checkpoint = torch.load(saved_by("kakurenbo")[0], weights_only=True)
    state = checkpoint["callbacks"]["SampleSelection"]
    checkpoint["callbacks"]["SampleSelection"] = damaged(state, place, value, delete=value is None)
    torch.save(checkpoint, tmp_path / "damaged.ckpt")
    resume = {"ckpt_path": tmp_path / "damaged.ckpt", "max_epochs": 3}
    with pytest.raises(StateError) as error:
        fit(Net(), items(), SampleSelection(short_run("kakurenbo", SAMPLES)), **resume)
    assert words in str(error.value) and "Resume from an earlier checkpoint" in str(error.value)
    forgetting = SampleSelection(short_run("kakurenbo", SAMPLES), on_mismatch="reset")
    with pytest.warns(UserWarning, match="the selection starts from the beginning"):
        fit(Net(), items(), forgetting, **resume)
    assert forgetting.statistics is not None and forgetting.statistics.epoch_seen.min() >= 1


def test_a_column_of_the_method_that_is_missing_is_named(saved_by, tmp_path):
    checkpoint = torch.load(saved_by("forget")[0], weights_only=True)
    del checkpoint["callbacks"]["SampleSelection"]["statistics"]["events"]
    torch.save(checkpoint, tmp_path / "damaged.ckpt")
    with pytest.raises(StateError, match=r"statistics.events is missing"):
        fit(Net(), items(), SampleSelection(short_run("forget", SAMPLES)), ckpt_path=tmp_path / "damaged.ckpt", max_epochs=4)
