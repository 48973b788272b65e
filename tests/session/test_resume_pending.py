"""What was still to come when a run was cut comes when it is resumed: validations, and all that looks at their values."""

import pytest
import torch
from cuts import SaveAt, on_ranks
from helpers import Net, Points, trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from method_tester import short_run
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.session.checkpoint import from_state
from kakurenbo_lightning.session.epoch_state import Phase
from recipes.benchmarks.fault_run import differences, equal

EPOCHS, SAMPLES = 6, 61
LAST = -1


class NoisyNet(Net):
    """Validates with random numbers, as the data of that many rows is not hard enough to tell runs apart."""

    def validation_step(self, batch, batch_idx):
        noise = 0.1 * torch.randn(())
        self.log("val_loss", noise + torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1]))


def plateau(interval):
    """A schedule that follows every validation's value closely."""

    def make(optimizer, module):
        schedule = ReduceLROnPlateau(optimizer, factor=0.9, patience=0, threshold=0.05)
        # before the first validation there is no value
        return {"scheduler": schedule, "interval": interval, "monitor": "val_loss", "strict": False}

    return make


def to_the_length(optimizer, module):
    """A schedule whose length is that of the training: Lightning loads the data when it is made, before it restores its counters."""
    schedule = OneCycleLR(optimizer, 0.1, total_steps=int(module.trainer.estimated_stepping_batches))
    return {"scheduler": schedule, "interval": "step"}


class Watch(Callback):
    """The value, rate and step of each validation, the rate and samples of each batch, and the length of the training when it begins."""

    def __init__(self):
        self.validations, self.batches, self.epochs, self.length = {}, {}, {}, None

    def on_train_start(self, trainer, pl_module):
        self.length = trainer.max_epochs, trainer.max_steps

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.batches[trainer.current_epoch, batch_idx] = [rate, *batch[2].tolist()]

    def on_validation_end(self, trainer, pl_module):
        self.validations[trainer.current_epoch, trainer.global_step] = float(trainer.callback_metrics["val_loss"])

    def on_train_epoch_end(self, trainer, pl_module):
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if not key.endswith("seconds")}
        self.epochs[trainer.current_epoch] = metrics, trainer.global_step


class SaveAtEnd(Callback):
    """Saves when the training ends, whichever epoch that is in."""

    def __init__(self, path):
        self.path = path

    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.path)


def monitors(folder, patience):
    """Early stopping and checkpoints that go by the validation, after it and at steps."""
    stopping = EarlyStopping("val_loss", patience=patience, min_delta=0.05)
    best = ModelCheckpoint(folder / "best", "{step}", monitor="val_loss", save_top_k=3)
    at_steps = ModelCheckpoint(folder / "steps", "{step}", monitor="val_loss", every_n_train_steps=2, save_top_k=4)
    return stopping, best, at_steps


def fit(folder, method, *saves, interval="epoch", schedule=None, resume=None, seed=0, patience=2, **settings):
    """A run, and everything that must be equal."""
    torch.manual_seed(seed)
    selection, watch = SampleSelection(short_run(method, SAMPLES), seed=3), Watch()
    stopping, best, at_steps = monitors(folder, patience)
    callbacks = (selection, watch, stopping, best, at_steps, *saves)
    made = trainer(*callbacks, **{"enable_checkpointing": True, "max_epochs": EPOCHS} | settings)
    module = NoisyNet(schedule=schedule or plateau(interval))
    made.fit(module, DataLoader(Points(SAMPLES), 8, shuffle=True), DataLoader(Points(30), 10), ckpt_path=resume)
    schedule = made.lr_scheduler_configs[0].scheduler.state_dict()
    return watch, {
        "weights": dict(module.state_dict()),
        "optimizer": made.optimizers[0].state_dict(),
        "schedule": {key: value for key, value in schedule.items() if key[0] != "_"},
        "statistics": selection.statistics.state_dict(),
        "stopping": {key: value for key, value in stopping.state_dict().items() if "message" not in key},
        "ended": [made.current_epoch, made.global_step, made.fit_loop.epoch_loop._batches_that_stepped],
        "best": scores(best),
        "at steps": scores(at_steps),
    }


def scores(checkpoint):
    """Which steps it keeps, with their scores; a file that was there before has a version in its name."""
    steps = [path.rpartition("step=")[2].partition("-v")[0].removesuffix(".ckpt") for path in checkpoint.best_k_models]
    kept = sorted(zip(map(int, steps), map(float, checkpoint.best_k_models.values()), strict=True))
    return kept, float(checkpoint.best_model_score)


def suffix(found, start):
    return {key: value for key, value in found.items() if key >= start}


def assert_goes_on(whole, expected, resumed, end):
    """What the resumed run did is the end of what the whole one did, and it ended alike."""
    for name in ("batches", "validations", "epochs"):
        did, was = getattr(resumed, name), getattr(whole, name)
        assert did == suffix(was, min(did)) if did else True, name
    for name, value in expected.items():
        assert equal(value, end[name]), f"{name}: {value} became {end[name]}"


HOOKS = {
    "last batch": ("on_train_batch_end", LAST),
    "batch": ("on_train_batch_end", 1),
    "validated batch": ("on_train_batch_end", 3),
    "validation start": ("on_validation_start", 0),
    "validation": ("on_validation_batch_start", 1),
    "validation end": ("on_validation_end", 0),
    "epoch end": ("on_train_epoch_end", 0),
    "epoch start": ("on_train_epoch_start", 0),
    "next batch": ("on_train_batch_start", 4),
}
CASES = {
    "each epoch": {},
    "within the epoch": {"val_check_interval": 4, "interval": "step"},
    "every other epoch": {"check_val_every_n_epoch": 2},
    "by steps": {"max_steps": 30, "max_epochs": -1},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """``whole(method, case)``: a run that nothing interrupted, its folder and what was the end of it; made once."""
    made = {}

    def get(method, case):
        if (method, case) not in made:
            folder = tmp_path_factory.mktemp(method)
            saves = [SaveAt(folder / f"{name}-{e}.ckpt", hook, e, batch) for name, (hook, batch) in HOOKS.items() for e in (1, 2)]
            made[method, case] = folder, *fit(folder, method, *saves, **CASES[case])
        return made[method, case]

    return get


METHODS = ("kakurenbo", "selective_backprop", "plb")
# a batch that has begun is scored already by a backprop method
CUTS = [(method, hook) for method in METHODS for hook in HOOKS if (method, hook) != ("selective_backprop", "next batch")]


@pytest.mark.slow_cases("plb", "selective_backprop", "every other epoch", "by steps", "epoch2")
@pytest.mark.parametrize("epoch", [1, 2], ids="epoch{}".format)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("method", "hook"), CUTS)
def test_what_was_pending_is_done(whole, method, case, hook, epoch):
    folder, watch, expected = whole(method, case)
    path = folder / f"{hook}-{epoch}.ckpt"
    assert path.exists() or case != "each epoch" or hook == "next batch"
    if path.exists():
        resumed, end = fit(folder, method, resume=path, seed=9, **CASES[case])
        assert_goes_on(watch, expected, resumed, end)


class SaveAtLastStep(Callback):
    """Saves when the last step of ``max_steps`` is done, before what follows it."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == trainer.max_steps:
            trainer.save_checkpoint(self.path)


LAST_EPOCH = {
    "of max_epochs": {"max_epochs": 3},
    "cut by max_steps": {"max_steps": 19, "max_epochs": -1},
    "validated within, cut by max_steps": {"max_steps": 19, "max_epochs": -1, "val_check_interval": 3, "interval": "step"},
    "whole in max_steps": {"max_steps": 24, "max_epochs": -1},
    "of max_epochs, schedule to the end": {"max_epochs": 3, "schedule": to_the_length},
    "cut by max_steps, schedule to the end": {"max_steps": 19, "max_epochs": 3, "schedule": to_the_length},
}
LAST_HOOKS = {"last step": None, **{name: HOOKS[name] for name in ("last batch", "validation", "validation end", "epoch end")}}


@pytest.fixture(scope="module")
def to_the_end(tmp_path_factory):
    """``to_the_end(method, case)``: a run that nothing stops early, its folder and what was the end of it; made once."""
    made = {}

    def get(method, case):
        if (method, case) not in made:
            folder = tmp_path_factory.mktemp(method)
            saves = [SaveAt(folder / f"{name}.ckpt", at[0], 2, at[1]) for name, at in LAST_HOOKS.items() if at]
            saves.append(SaveAtLastStep(folder / "last step.ckpt"))
            made[method, case] = folder, *fit(folder, method, *saves, patience=99, **LAST_EPOCH[case])
        return made[method, case]

    return get


@pytest.mark.slow_cases(
    *("plb", "selective_backprop", "baseline"), *("whole in max_steps", "validation", "cut by max_steps, schedule to the end")
)
@pytest.mark.parametrize("case", LAST_EPOCH)
@pytest.mark.parametrize(("method", "hook"), [(method, hook) for method in (*METHODS, "baseline") for hook in LAST_HOOKS])
def test_what_was_pending_in_the_last_epoch_is_done(to_the_end, method, case, hook):
    """Lightning finds such a run over and does nothing."""
    folder, watch, expected = to_the_end(method, case)
    path = folder / f"{hook}.ckpt"
    if path.exists():
        resumed, end = fit(folder, method, resume=path, seed=9, patience=99, **LAST_EPOCH[case])
        assert_goes_on(watch, expected, resumed, end)
        assert hook == "epoch end" or resumed.epochs
        assert resumed.length == watch.length


def test_runs_are_told_apart(whole):
    """Else the tests above show less: one stops early, rates fall, and values of validations differ."""
    _, watch, expected = whole("kakurenbo", "each epoch")
    assert 3 < expected["ended"][0] < EPOCHS
    assert len({rates[0] for rates in watch.batches.values()}) > 1
    assert len(set(watch.validations.values())) == len(watch.validations)


RANKS = {
    "last batch": ("on_train_batch_end", LAST),
    "validation": ("on_validation_batch_start", 1),
    "validation end": ("on_validation_end", 0),
    "epoch end": ("on_train_epoch_end", 0),
}


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    """The results of a run on two ranks that nothing interrupted, and the folder of its checkpoints."""
    folder = tmp_path_factory.mktemp("ranks")
    saves = tuple(SaveAt(folder / f"{name}.ckpt", hook, 1, batch) for name, (hook, batch) in RANKS.items())
    return folder, on_ranks(folder, "random", 2, epochs=5, stopping=True, callbacks=saves)


@pytest.mark.parametrize("cut", RANKS)
def test_two_ranks_do_what_was_pending(on_two_ranks, tmp_path, cut):
    folder, whole = on_two_ranks
    resumed = on_ranks(tmp_path, "random", 2, epochs=5, stopping=True, seed=9, resume=folder / f"{cut}.ckpt")
    for rank in (0, 1):
        assert differences(whole[rank], resumed[rank]) == []
    assert 2 < len(whole[0]["validations"]) < 5, "it stops early"


def test_a_state_without_what_was_pending_does_not_validate_twice(whole):
    folder, _, _ = whole("kakurenbo", "each epoch")
    state = torch.load(folder / "validation-1.ckpt", weights_only=True)["callbacks"]["SampleSelection"]
    assert from_state(state).epoch.phase is Phase.VALIDATING
    older = from_state({key: value for key, value in state.items() if key != "pending"})
    assert (older.epoch.phase, older.pending) == (Phase.VALIDATED, [])


def test_a_training_that_had_stopped_early_and_was_saved_at_its_end_stays_stopped(tmp_path):
    _, expected = fit(tmp_path, "kakurenbo", SaveAtEnd(tmp_path / "end.ckpt"))
    assert expected["ended"][0] < EPOCHS
    streams = torch.rand(1)
    resumed, end = fit(tmp_path, "kakurenbo", resume=tmp_path / "end.ckpt", seed=9)
    assert not resumed.batches and not resumed.validations
    assert_goes_on(resumed, expected, resumed, end)
    assert torch.equal(streams, torch.rand(1))
