"""Whoever saves the checkpoint - user code, ``ModelCheckpoint``, an exception - it carries the selection and resumes from there."""

import pytest
import torch
from cuts import SaveAt
from helpers import trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, OnExceptionCheckpoint
from torch.utils.data import DataLoader

from recipes.benchmarks.fault_run import SAMPLES, Points, RestlessNet, differences, position, train

METHOD = "kakurenbo"
pytestmark = pytest.mark.filterwarnings("ignore:.*ckpt_path")  # Lightning's, about a folder with another run's last.ckpt


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted and nobody saved."""
    return train(tmp_path_factory.mktemp("whole"), METHOD)


@pytest.mark.parametrize("batch", [2, -1], ids=["mid-epoch", "last-batch"])
@pytest.mark.parametrize("hook", ["on_train_batch_start", "training_step", "on_train_batch_end"])
def test_saved_by_user_code_between_steps_resumes_exactly(whole, tmp_path, hook, batch):
    assert_resumes_exactly(whole, SaveAt(tmp_path / "user.ckpt", hook, 1, batch))


@pytest.mark.slow_cases("0", "3")
@pytest.mark.parametrize(
    "hook",
    ["on_train_epoch_start", "on_validation_start", "on_validation_batch_start", "on_validation_end", "on_train_epoch_end"],
)
@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_saved_by_user_code_around_epochs_resumes_exactly(whole, tmp_path, hook, epoch):
    assert_resumes_exactly(whole, SaveAt(tmp_path / "user.ckpt", hook, epoch))


def assert_resumes_exactly(whole, save):
    folder = save.path.parent
    assert differences(whole, train(folder, METHOD, callbacks=(save,))) == [], "saving leaves no trace"
    resumed = train(folder, METHOD, seed=9, resume=save.path)
    assert differences(whole, resumed) == []


def test_saved_after_training_resumes_as_a_finished_run(whole, tmp_path):
    train(tmp_path, METHOD, callbacks=(save := SaveAt(tmp_path / "user.ckpt", "on_train_end", 4),))
    resumed = train(tmp_path, METHOD, seed=9, resume=save.path)
    assert differences(whole, resumed) == [] and resumed["batches"] == {}


@pytest.mark.parametrize("hook", ["on_before_backward", "on_before_optimizer_step"])
@pytest.mark.parametrize("one_cycle", [True, False])
def test_saved_inside_a_step_that_step_is_made_again(tmp_path, hook, one_cycle):
    """The method's factor is on the learning rate while the optimizer steps; it must not be saved with it."""
    save = SaveAt(tmp_path / "user.ckpt", hook, 1, 2)
    whole = train(tmp_path, METHOD, callbacks=(save,), one_cycle=one_cycle)
    assert whole["plans"][1]["lr_factor"] > 1
    resumed = train(tmp_path, METHOD, seed=9, resume=save.path, one_cycle=one_cycle)
    assert differences(whole, resumed) == []
    assert one_cycle or {rate for epoch in resumed["rates"].values() for rate in epoch.values()} == {0.1}


def test_saved_before_the_first_plan_begins_anew(tmp_path):
    train(tmp_path, METHOD, callbacks=(save := SaveAt(tmp_path / "user.ckpt", "on_train_start", 0),))
    assert "SampleSelection" not in torch.load(save.path, weights_only=True)["callbacks"]


@pytest.mark.parametrize("every", [1, 3, 4])
def test_last_ckpt_is_the_newest_step_and_resumes_exactly(whole, tmp_path, every):
    """``ModelCheckpoint(save_last=True, every_n_train_steps=...)`` of a run that stops early."""
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=every, save_last=True)
    with pytest.raises(Interrupted):
        train(tmp_path, METHOD, callbacks=(saving, RaiseAt("on_train_batch_start", 1, 3)))
    done = len(whole["batches"][0]) + 3
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == done // every * every
    resumed = train(tmp_path, METHOD, seed=9, resume=tmp_path / "last.ckpt")
    assert differences(whole, resumed) == []


class Interrupted(RuntimeError):
    pass


class RaiseAt(Callback):
    """Raises once, in ``hook`` of ``epoch``, where it has one at ``batch``."""

    def __init__(self, hook, epoch, batch=0):
        self.at, self.raised = (hook, epoch, batch), False

    def _reach(self, hook, trainer, batch=None):
        if not self.raised and (hook, trainer.current_epoch, self.at[2] if batch is None else batch) == self.at:
            self.raised = True
            raise Interrupted("of the test")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._reach("on_train_batch_start", trainer, batch_idx)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._reach("on_train_batch_end", trainer, batch_idx)

    def on_validation_start(self, trainer, pl_module):
        self._reach("on_validation_start", trainer)

    def on_train_epoch_end(self, trainer, pl_module):
        self._reach("on_train_epoch_end", trainer)


class KeptOnExceptionCheckpoint(OnExceptionCheckpoint):
    def teardown(self, trainer, *_, **__):
        """Lightning's own deletes the file."""


@pytest.mark.parametrize(
    ("hook", "batch"),
    [("on_train_batch_start", 2), ("on_train_batch_end", 2), ("on_validation_start", 0), ("on_train_epoch_end", 0)],
)
def test_saved_on_an_exception_between_steps_resumes_exactly(whole, tmp_path, hook, batch):
    keeping = KeptOnExceptionCheckpoint(tmp_path)
    with pytest.raises(Interrupted):
        train(tmp_path, METHOD, callbacks=(RaiseAt(hook, 1, batch), keeping))
    path = tmp_path / "on_exception.ckpt"
    assert position(path)["epoch"] == 1
    assert differences(whole, train(tmp_path, METHOD, seed=9, resume=path)) == []


def test_an_exception_inside_the_optimizer_step_leaves_no_scaled_rate_in_its_checkpoint(whole, tmp_path):
    """The batch is trained again, at the rate of the uninterrupted run."""

    class RaiseInBackward(Callback):
        def on_after_backward(self, trainer, pl_module):
            if (trainer.current_epoch, trainer.global_step) == (1, len(whole["batches"][0]) + 2):
                raise Interrupted("of the test")

    with pytest.raises(Interrupted):
        train(tmp_path, METHOD, callbacks=(RaiseInBackward(), KeptOnExceptionCheckpoint(tmp_path)))
    assert whole["plans"][1]["lr_factor"] > 1
    resumed = train(tmp_path, METHOD, seed=9, resume=tmp_path / "on_exception.ckpt")
    assert resumed["rates"][1] == {batch: rate for batch, rate in whole["rates"][1].items() if batch >= 2}


def test_every_checkpoint_loads_with_weights_only(tmp_path):
    train(tmp_path, METHOD, epochs=2, every=4)
    files = list(tmp_path.glob("*.ckpt"))
    assert len(files) == 4
    for file in files:
        state = torch.load(file, weights_only=True)["callbacks"]["SampleSelection"]
        assert (state["method"], len(state["statistics"]["loss"])) == (METHOD, SAMPLES)


def test_a_trainer_without_the_selection_reads_its_checkpoint(tmp_path):
    """The weights of a selected run are like any others."""
    save = SaveAt(tmp_path / "user.ckpt", "on_train_end", 1)
    train(tmp_path, METHOD, epochs=1, callbacks=(save,), one_cycle=False)
    plain, module = trainer(max_epochs=2), RestlessNet(one_cycle=False)
    plain.fit(module, DataLoader(Points(), 8), ckpt_path=save.path)
    assert plain.global_step == 2 * 12
