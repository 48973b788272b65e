"""A run cut anywhere and resumed from its checkpoint equals the uncut one, to the bit."""

import random
from dataclasses import asdict

import backprop_tester
import numpy as np
import pytest
import torch
from helpers import ONE_OF_A_KIND, Net, Points, trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from method_tester import LATE, assert_exercised, short_run
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from kakurenbo_lightning import SampleSelection, available_methods

EPOCHS, SAMPLES = 5, 61
STEPS = 8  # of an epoch on everything, in batches of 8


def epochs_of(method):
    """Length of a run that hides something before its end."""
    return EPOCHS + 3 * (method in LATE)


def one_cycle(optimizer, module):
    schedule = OneCycleLR(optimizer, 0.3, total_steps=int(module.trainer.estimated_stepping_batches))
    return {"scheduler": schedule, "interval": "step"}


class RestlessNet(Net):
    """Draws from every random stream in training, and validates with a loader that does so too."""

    def training_step(self, batch, batch_idx):
        jitter = random.random() + np.random.rand()
        return super().training_step((batch[0] + 0.1 * jitter + 0.1 * torch.randn_like(batch[0]), *batch[1:]), batch_idx)

    def validation_step(self, batch, batch_idx):
        torch.rand(3)
        super().validation_step(batch, batch_idx)


class Record(Callback):
    """Batches, learning rates, plans and logged selection metrics, by epoch; comes after the selection."""

    def __init__(self):
        self.batches, self.rates, self.plans, self.logged = {}, {}, {}, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.plans[trainer.current_epoch] = trainer.callbacks[0].plan
        self.batches.setdefault(trainer.current_epoch, {})[batch_idx] = batch[2].tolist()
        self.rates.setdefault(trainer.current_epoch, {})[batch_idx] = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_epoch_end(self, trainer, pl_module):
        self.logged[trainer.current_epoch] = {
            key: float(value)
            for key, value in trainer.callback_metrics.items()
            if key.startswith("selection/") and not key.endswith("seconds")
        }


def run(method, *callbacks, ckpt_path=None, seed=0, workers=0, **settings):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    selection, record, module = SampleSelection(short_run(method, SAMPLES)), Record(), RestlessNet(schedule=one_cycle)
    checkpoints = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    made = trainer(selection, record, *callbacks, max_epochs=epochs_of(method), enable_checkpointing=checkpoints, **settings)
    train = DataLoader(Points(SAMPLES), 8, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    made.fit(module, train, DataLoader(Points(20), 10), ckpt_path=ckpt_path)
    return made, selection, record, module


def final_state(made, selection, module):
    """Everything that must be equal, as flat tensors."""
    state = {f"module.{name}": value for name, value in module.state_dict().items()}
    for number, slots in made.optimizers[0].state_dict()["state"].items():
        state |= {f"optimizer.{number}.{name}": value for name, value in slots.items() if torch.is_tensor(value)}
    state["rate"] = torch.tensor(made.optimizers[0].param_groups[0]["lr"])
    state |= {f"statistics.{name}": value for name, value in selection.statistics.state_dict().items()}
    if (table := getattr(selection.session.engine, "table", None)) is not None:
        state |= {"table.values": table.values, "table.total": table.total}
    state["totals"] = torch.tensor([value for name, value in asdict(selection.totals).items() if not name.endswith("seconds")])
    return state


def assert_same(expected, actual):
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        same = torch.equal(value.nan_to_num(7.5), actual[name].nan_to_num(7.5))
        assert same, f"{name} differs"


def every(folder, moment):
    """A checkpoint at each ``moment``."""
    if moment == "every step":
        return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    return ModelCheckpoint(
        folder, filename="{epoch}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=moment == "train epoch end"
    )


def position(path):
    """Epoch and step of a checkpoint."""
    state = torch.load(path, weights_only=True)
    return state["callbacks"]["SampleSelection"]["epoch"], state["global_step"]


def saved(path):
    """What the selection saved."""
    return torch.load(path, weights_only=True)["callbacks"]["SampleSelection"]


def some_of(paths, restart):
    """Checkpoints in the beginning, middle and end of epochs, and of a static method before, at and after its restart."""
    chosen = {*paths[3::5], paths[7], paths[-1]}
    return sorted(chosen | {paths[step - 1] for step in (restart - 1, restart, restart + 1) if restart}, key=paths.index)


@pytest.mark.quick(*ONE_OF_A_KIND)
@pytest.mark.slow_cases("train epoch end", "validation end", "forget")
@pytest.mark.parametrize("method", available_methods())
@pytest.mark.parametrize("moment", ["every step", "validation end", "train epoch end"])
def test_cut_and_resumed_equals_uncut(tmp_path, method, moment):
    made, selection, record, module = run(method, every(tmp_path, moment))
    expected = final_state(made, selection, module)
    paths = sorted(tmp_path.glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))[:-1]
    restart = short_run(method).scoring_epochs(EPOCHS)
    chosen = some_of(paths, restart * STEPS) if moment == "every step" else paths
    assert len(chosen) > 2
    cuts = [position(path) for path in chosen]
    assert_exercised(method, *zip(*((record.plans[epoch], record.logged[epoch]) for epoch, _ in cuts), strict=True))
    if moment == "every step" and method in backprop_tester.ROWS:
        half_full = [path for path in paths if 0 < backprop_tester.waiting(saved(path))[0] < 8]
        assert bool(half_full) == backprop_tester.ROWS[method].pools, "some are cut with a half-full pool"
        chosen = chosen + half_full[:2]
    if restart:
        assert min(cuts)[0] < restart - 1, "a run is cut in scoring epochs"
        assert restart * STEPS in [step for _, step in cuts], "and at the restart"
        assert max(cuts)[0] > restart, "and after it"
    for path in chosen:
        remade, reselection, rerecord, remodule = run(method, ckpt_path=path, seed=99)
        assert_same(expected, final_state(remade, reselection, remodule))
        for epoch, batches in rerecord.batches.items():
            assert batches == {k: v for k, v in record.batches[epoch].items() if k in batches}
            assert rerecord.rates[epoch] == {k: v for k, v in record.rates[epoch].items() if k in batches}
            assert rerecord.plans[epoch].checksum() == record.plans[epoch].checksum()
        for epoch, logged in rerecord.logged.items():
            assert logged == record.logged[epoch]


@pytest.mark.slow_cases("16", "kakurenbo")
@pytest.mark.parametrize("method", ["kakurenbo", "plb"])
@pytest.mark.parametrize("step", [10, 16])
def test_cut_and_resumed_equals_uncut_with_workers(tmp_path, method, step):
    made, selection, _, module = run(method, every(tmp_path, "every step"), workers=2)
    remade, reselection, _, remodule = run(method, ckpt_path=tmp_path / f"step={step}.ckpt", seed=99, workers=2)
    assert_same(final_state(made, selection, module), final_state(remade, reselection, remodule))


def nbytes(value):
    return value.nbytes if isinstance(value, torch.Tensor) else 0


@pytest.mark.quick(*ONE_OF_A_KIND)
@pytest.mark.parametrize("method", available_methods())
def test_the_state_loads_with_weights_only_and_is_small(tmp_path, method):
    _, selection, record, _ = run(method, every(tmp_path, "train epoch end"))
    paths = list(tmp_path.glob("*.ckpt"))
    assert len(paths) == epochs_of(method) + short_run(method).scoring_epochs(EPOCHS)
    assert_exercised(method, record.plans.values(), record.logged.values())
    for path in paths:
        state = saved(path)
        assert state["method"] == method
        weights, planned = state["plan"].get("weights"), record.plans[state["epoch"]]
        assert (weights is None) == (getattr(planned, "weights", None) is None)
        size = sum(column.nbytes for column in state["statistics"].values()) + sum(map(nbytes, state["plan"].values()))
        assert size <= (selection.statistics.bytes_per_sample + 8) * SAMPLES
