"""What cannot work is said by name, at the latest on the first batch; what cannot act is said once; and nothing is said raw."""

import warnings
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import Net, Points, SureNet, fit, loader
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, default_collate

from kakurenbo_lightning import SampleSelection, get_method
from kakurenbo_lightning.errors import ConflictError

SAMPLES = 61


class Steps(Callback):
    """Counts the steps that were made."""

    def __init__(self):
        self.count = 0

    def on_train_batch_end(self, *args):
        self.count += 1


def refused_after(steps, match, selection, *, module=None, train=None, error=ConflictError, **settings):
    """The fit is refused when so many steps are made."""
    counter = Steps()
    with pytest.raises(error, match=match):
        fit(module or Net(), loader(SAMPLES) if train is None else train, selection, counter, **settings)
    assert counter.count == steps


# --- batches: said on the first one, long before samples are chosen


class Own(Net):
    """Reads batches with attributes or keys ``x`` and ``y``; keeps their class and the gradients of another loss out of the way."""

    def __init__(self, read):
        super().__init__(dropout=0.0)
        self.read, self.kinds = read, set()

    def training_step(self, batch, batch_idx):
        self.kinds.add(type(batch).__name__)
        x, y = self.read(batch)
        return F.cross_entropy(self.network(x), y)


Pair = namedtuple("Pair", "x y note")


@dataclass
class Record:
    x: torch.Tensor
    y: torch.Tensor
    note: str = "all"


def encoding(x, y, note):
    from transformers import BatchEncoding

    return BatchEncoding({"x": x, "y": y, "note": note})


KINDS = {
    "Pair": (Pair, lambda batch: (batch.x, batch.y)),
    "Record": (Record, lambda batch: (batch.x, batch.y)),
    "BatchEncoding": (encoding, lambda batch: (batch["x"], batch["y"])),
}


def own_fit(kind, *callbacks, method="selective_backprop", **settings):
    make, read = KINDS[kind] if kind else (lambda x, y, note: (x, y), lambda batch: batch)
    module = Own(read)

    def collate(samples):
        x, y, _ = default_collate(samples)
        return make(x, y, "all")

    selection = SampleSelection(method)
    fit(module, DataLoader(Points(SAMPLES), 8, shuffle=True, collate_fn=collate), selection, *callbacks, **settings)
    return selection, module


@pytest.mark.slow_cases("katharopoulos")
@pytest.mark.parametrize("method", ["selective_backprop", "katharopoulos"])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_own_classes_train_as_tuples_do(kind, method):
    if kind == "BatchEncoding":
        pytest.importorskip("transformers")
    usual, plain = own_fit(None, method=method)
    selection, module = own_fit(kind, method=method)
    assert module.kinds == {kind}, "the step never gets anything else"
    assert torch.equal(selection.statistics.loss, usual.statistics.loss)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["Pair", "Record"])
def test_a_run_on_batches_of_own_classes_resumes_exactly_with_samples_waiting(kind, tmp_path):
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    _, whole = own_fit(kind, keep, enable_checkpointing=True)
    waited = 0
    for path in sorted(tmp_path.iterdir(), key=lambda path: int(path.stem.partition("=")[2]))[8::3]:
        state = torch.load(path, weights_only=True)["callbacks"]["SampleSelection"]  # nothing of the user's is in it
        waited += any(engine["pool"] for engine in state["engines"])
        _, resumed = own_fit(kind, ckpt_path=path, seed=9)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), (path.name, name)
        assert resumed.kinds == {kind}
    assert waited


class Graphs:
    """As PyTorch Geometric's batches: an object of its own."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def to(self, device, **_):
        return Graphs(self.x.to(device), self.y.to(device))


def test_graphs_are_refused_on_the_first_batch_with_methods_that_take_them():
    def collate(samples):
        x, y, _ = default_collate(samples)
        return Graphs(x, y)

    train = DataLoader(Points(SAMPLES), 8, shuffle=True, collate_fn=collate)
    for method in ("selective_backprop", "sb_fixed"):
        match = r"the batch holds a Graphs: .* convert it in collate_fn, or use a method .* plb; random needs"
        refused_after(0, match, SampleSelection(method), module=Own(KINDS["Pair"][1]), train=train, error=TypeError)
    for method in ("kakurenbo", "infobatch", "plb"):
        fit(Own(KINDS["Pair"][1]), train, SampleSelection(method), max_epochs=3)


class Sentences(Points):
    """Samples of different lengths."""

    def __getitem__(self, index):
        return self.x[index].repeat(1 + index % 3), self.y[index], index


def padded(samples):
    longest = max(len(x) for x, _, _ in samples)
    x = torch.stack([F.pad(x, (0, longest - len(x))) for x, _, _ in samples])
    return x, torch.tensor([y for _, y, _ in samples]), torch.tensor([index for _, _, index in samples])


def test_batches_padded_to_their_own_longest_sample_are_refused_in_epoch_0():
    class Reading(Net):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.network(batch[0][:, :6]), batch[1])

    match = r"batch\[0\] has samples of shape \[(6|12|18)\] in this batch and of \[(6|12|18)\] in the first: .* collate_fn .* sb_fixed"
    train = DataLoader(Sentences(SAMPLES), 2, shuffle=False, collate_fn=padded)  # lengths 2, 3, 2: the second differs
    refused_after(1, match, SampleSelection("selective_backprop", warmup_epochs=3), module=Reading(), train=train)
    refused_after(1, match, SampleSelection("katharopoulos"), module=Reading(), train=train)
    for method in ("sb_fixed", "kakurenbo"):  # they join nothing
        fit(Reading(), DataLoader(Sentences(SAMPLES), 4, shuffle=True, collate_fn=padded), SampleSelection(method))


def test_a_tensor_without_one_row_per_sample_is_refused_on_the_first_batch():
    def collate(samples):
        return [*default_collate(samples), torch.ones(3)]

    train = DataLoader(Points(SAMPLES), 8, shuffle=True, collate_fn=collate)
    match = r"batch\[3\] is a tensor of shape \[3\] in a batch of 8 samples: .* one row per sample .* plb; random needs"
    refused_after(0, match, SampleSelection("selective_backprop", warmup_epochs=3), train=train)


def test_a_lower_resolution_of_what_is_no_image_is_refused_on_the_first_batch():
    selection = SampleSelection("selective_backprop", scale=0.5, warmup_epochs=3)
    refused_after(0, r"scale=0.5: .* no float images .* use scale=1", selection)


def test_a_lower_resolution_that_leaves_no_pixel_is_refused_on_the_first_batch():
    class Pictures(Points):
        def __getitem__(self, index):
            return torch.zeros(3, 4, 4), self.y[index], index

    selection = SampleSelection("selective_backprop", scale=0.2, warmup_epochs=3)
    refused_after(0, r"scale=0.2: images of \[4, 4\] pixels would have none left", selection, train=DataLoader(Pictures(16), 8))


def test_a_table_of_other_data_is_refused_by_the_second_fit_as_by_the_first(tmp_path):
    """A cell of a notebook is run again."""
    table = tmp_path / "irreducible.pt"
    torch.save({"irreducible": torch.zeros(64), "fingerprint": "of other data"}, table)
    selection = SampleSelection("rho_loss", irreducible=str(table), fraction=0.5, warmup_epochs=0)
    for _ in range(2):
        refused_after(0, "irreducible must be made from this training data", selection, train=loader(), error=ValueError)


# --- an epoch without a step


def test_drop_last_with_less_than_a_batch_left_is_refused_before_the_first_step():
    train = DataLoader(Points(20), 8, shuffle=True, drop_last=True)
    match = r"kakurenbo: max_fraction=0.7 may leave 6 of 20 samples to an epoch, and drop_last=True needs batch_size \* ranks = 8; hide"
    refused_after(0, match, SampleSelection("kakurenbo", max_fraction=0.7, start_epoch=3), train=train, module=SureNet())
    refused_after(0, "max_fraction=0.7 may leave 6", SampleSelection("random", max_fraction=0.7), train=train)
    refused_after(0, "may leave 6", SampleSelection("forget", max_fraction=0.7, static_epochs=2), train=train)
    part = DataLoader(Points(64), batch_size=8, sampler=SubsetRandomSampler(range(20)), drop_last=True)
    refused_after(0, "may leave 6 of 20", SampleSelection("random", max_fraction=0.7), train=part)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_fraction": 0.6},
        {"max_fraction": 0.7, "protected": range(5)},
        {"max_fraction": 0.7, "fractions": (0.8, 0.5), "milestones": (2,)},
    ],
)
def test_drop_last_with_a_batch_left_trains(settings):
    selection = SampleSelection("kakurenbo", **{"tau": 0.0, "fractions": (1.0,), "milestones": (), **settings})
    fit(SureNet(), DataLoader(Points(20), 8, shuffle=True, drop_last=True), selection)
    assert len(selection.plan.hidden) in (12, 10, 7)


def test_drop_last_is_named_when_the_epoch_is_planned_where_the_share_is_drawn():
    selection = SampleSelection("infobatch", prune_ratio=0.99, end_fraction=0.0)
    train = DataLoader(Points(20), 16, shuffle=True, drop_last=True)
    match = r"epoch 1 has \d+ samples to train, .* drop_last=True drops the rest; use drop_last=False"
    refused_after(1, match, selection, train=train, error=ValueError)


# --- arguments of the callback


@pytest.mark.parametrize(
    ("argument", "values", "allowed"),
    [
        ("seed", ["abc", 1.5, float("nan"), True, np.True_, -1, [0], np.zeros(2), torch.zeros(2), 1j], "None or an integer >= 0"),
        ("align_schedules", ["False", 1, 0.0, None, np.ones(3), np.ones(3, bool), "x" * 5000], "True or False"),
        ("check_attribution", ["False", 1, None, np.ones(3)], "True or False"),
        ("unweighted_rest", ["yes", 0, None, torch.ones(3)], "True or False"),
        ("mean_over_samples", ["yes", 0, 1.0, torch.ones(3)], "None or True or False"),
        ("on_mismatch", ["maybe", None, 1, np.array(["error", "reset"]), "x" * 5000], "'error' or 'reset'"),
        (
            "sample_outputs",
            ["f", 3, {}, np.ones(3), torch.ones(3), "x" * 5000],
            "None or a function of a batch that returns a dict",
        ),
    ],
)
def test_an_argument_that_is_none_is_refused_by_name_when_the_callback_is_made(argument, values, allowed):
    for value in values:
        with pytest.raises(ValueError) as caught:
            SampleSelection("kakurenbo", **{argument: value})
        message = str(caught.value)
        assert message.startswith(f"SampleSelection: {argument}=") and f"{argument} must be {allowed}" in message
        assert len(message) < 400 and "\n" not in message


def test_arguments_of_numpy_and_torch_become_plain_ones():
    for seed in (np.int64(7), np.uint8(7), np.array(7), torch.tensor(7)):
        selection = SampleSelection("kakurenbo", seed=seed, align_schedules=np.bool_(False), on_mismatch=np.str_("reset"))
        settings = selection._settings
        assert (settings.seed, settings.align_schedules, settings.on_mismatch) == (7, False, "reset")
        assert [type(value) for value in (settings.seed, settings.align_schedules, settings.on_mismatch)] == [int, bool, str]


def test_a_seed_of_numpy_is_in_a_checkpoint_that_loads(tmp_path):
    for seed in (np.int64(7), 10**30):
        selection, keep = SampleSelection("kakurenbo", seed=seed), ModelCheckpoint(tmp_path, filename=f"{seed}")
        fit(Net(), loader(SAMPLES), selection, keep, enable_checkpointing=True, max_epochs=2)
        state = torch.load(tmp_path / f"{seed}.ckpt", weights_only=True)["callbacks"]["SampleSelection"]
        assert state["seed"] == seed and type(state["seed"]) is int


@pytest.mark.parametrize(
    ("method", "settings", "error", "match"),
    [
        ("x" * 5000, {}, ValueError, "^method='xxx.* is not known; "),
        (np.array(["kakurenbo"]), {}, TypeError, "^method=array.* neither a registered name nor a method object"),
        (np.zeros(5000), {}, TypeError, "^method=array"),
        (None, {}, TypeError, "^method=None"),
        ("kakurenbo", {"x" * 5000: 1}, TypeError, "^kakurenbo has no setting 'xxx"),
        (get_method("kakurenbo"), {"x" * 5000: 1}, TypeError, "^settings .*xxx.* are given beside a method object"),
        ("kakurenbo", {"tau": np.zeros(5000)}, ValueError, "^kakurenbo: tau="),
        ("kakurenbo", {"scorer": nn.Linear(1, 1)}, ValueError, "^scorer=Linear is not allowed"),
        ("selective_backprop", {"scorer": np.zeros(3)}, ValueError, "^scorer=ndarray is not allowed"),
    ],
)
def test_long_values_and_arrays_are_refused_in_few_words(method, settings, error, match):
    with pytest.raises(error, match=match) as caught:
        SampleSelection(method, **settings)
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


def test_a_scorer_that_is_a_class_is_refused():
    with pytest.raises(ValueError, match=r"scorer=Net is a class; it must be an object, for example Net\(...\)"):
        SampleSelection("selective_backprop", scorer=Net)


def test_a_mask_does_not_protect_samples_0_and_1():
    for mask in ([True, False, True], np.ones(64, bool), torch.zeros(64, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"protected=.* must be a list of data set indices"):
            SampleSelection("kakurenbo", protected=mask)


# --- settings that can never act


def idle_warnings(selection, module=None, **settings):
    """What is said, in a fit, of settings that can never act."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(module or Net(), loader(SAMPLES), selection, **{"max_epochs": 3, **settings})
    return [str(warning.message) for warning in said if "never act" in str(warning.message)]


@pytest.mark.parametrize(
    ("method", "settings", "parts"),
    [
        ("kakurenbo", {"start_epoch": 3}, ["start_epoch=3 (the last epoch is 2; nothing is ever hidden)"]),
        (
            "infobatch",
            {"start_epoch": 2, "end_fraction": 0.4},
            ["start_epoch=2 (from epoch 1 on everything is trained; nothing"],
        ),
        ("kakurenbo", {"fractions": (1, 0.5, 0.2), "milestones": (1, 60)}, ["milestones=[60] (the last epoch is 2)"]),
        ("kakurenbo", {"warmup_epochs": 10**30}, ["warmup_epochs=1" + 30 * "0" + " (the last epoch is 2; the whole training is"]),
        ("selective_backprop", {"warmup_epochs": 3}, ["warmup_epochs=3 (the last epoch is 2; the whole training is warm-up)"]),
        ("sb_fixed", {"warmup_epochs": 2, "end": 0.6, "start": 0.1}, ["warmup_epochs=2"]),
        ("random", {"protected": range(SAMPLES)}, ["protected (all 61 samples; nothing is ever hidden)"]),
        ("random", {"protected_classes": (0, 1, 2)}, ["protected_classes=(0, 1, 2) (every class there is"]),
        ("random", {"max_fraction": 0.01}, ["max_fraction=0.01 (less than one of 61 samples)"]),
        ("forget", {"static_epochs": 1, "start_epoch": 3}, ["start_epoch=3"]),
        (
            "kakurenbo",
            {"start_epoch": 9, "warmup_epochs": 9, "max_fraction": 0.01},
            ["start_epoch=9", "warmup_epochs=9", "max_fraction"],
        ),
    ],
)
def test_settings_that_can_never_act_are_named_in_one_warning(method, settings, parts):
    (said,) = idle_warnings(SampleSelection(method, **settings))
    assert said.startswith(f"{method}: settings that can never act in this run: ")
    assert [part for part in parts if part not in said] == []


@pytest.mark.parametrize(
    ("method", "settings", "trainer"),
    [
        ("kakurenbo", {"start_epoch": 2}, {}),
        ("infobatch", {"start_epoch": 1, "end_fraction": 0.3}, {}),
        ("kakurenbo", {"fractions": (1, 0.5, 0.2), "milestones": (1, 2)}, {}),
        ("selective_backprop", {"warmup_epochs": 2}, {}),
        ("random", {"protected": range(SAMPLES - 4)}, {}),
        ("random", {"protected_classes": (0, 1)}, {}),
        ("random", {"max_fraction": 0.0}, {}),
        ("forget", {"static_epochs": 3, "start_epoch": 2}, {}),
        ("kakurenbo", {"start_epoch": 9}, {"fast_dev_run": True}),
        ("baseline", {}, {}),
        ("plb", {}, {}),
    ],
)
def test_settings_that_act_are_not_named(method, settings, trainer):
    assert idle_warnings(SampleSelection(method, **settings), **trainer) == []


def test_a_run_without_an_end_may_reach_any_epoch():
    class Stopping(Net):
        def on_train_epoch_end(self):
            self.trainer.should_stop = True

    selection = SampleSelection("kakurenbo", start_epoch=99, fractions=(1.0,), milestones=())
    assert idle_warnings(selection, Stopping(), max_epochs=-1) == []
