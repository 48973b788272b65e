"""`import lightning.pytorch` and `import pytorch_lightning` are the same to a user: what works, and what is refused."""

import functools
import importlib
import logging
import subprocess
import sys

import pytest
import torch
from flavoured import EPOCHS, FLAVOURS, SAMPLES, SETTINGS, fit, make_net, run_method, run_rank
from helpers import Points, loader
from torch import nn
from torch.utils.data import DataLoader

from kakurenbo_lightning import AtomicCheckpointIO, DamagedCheckpointError, SampleSelection
from kakurenbo_lightning.core import flavour as names
from kakurenbo_lightning.errors import ConflictError
from recipes.benchmarks.forked import printed, run_ranks

METHODS = list(SETTINGS)


@pytest.fixture(params=FLAVOURS)
def pl(request):
    """The package, as a user imports it."""
    return importlib.import_module(request.param)


@functools.cache
def undisturbed(method):
    """What a run under ``lightning.pytorch`` hides, and its weights."""
    _, hidden, module = run_method(importlib.import_module(FLAVOURS[0]), method)
    return hidden, module.state_dict()


def assert_equal_weights(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


# --- what works


@pytest.mark.slow_cases("lightning.pytorch")
@pytest.mark.parametrize("method", METHODS)
def test_a_method_of_each_family_trains_the_same(pl, method):
    trainer, hidden, module = run_method(pl, method, enable_progress_bar=method == "kakurenbo")
    expected, weights = undisturbed(method)
    assert hidden == expected
    assert_equal_weights(module.state_dict(), weights)
    assert any(hidden.values()) or trainer.callbacks[0].totals.samples_scored or method == "plb"


@pytest.mark.slow_cases("infobatch", "forget", "selective_backprop", "lightning.pytorch")
@pytest.mark.parametrize("method", METHODS)
def test_a_cut_run_resumes_exactly(pl, method, tmp_path):
    keep = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1, filename="{step}")
    run_method(pl, method, keep)
    saved = sorted(tmp_path.iterdir())
    assert len(saved) > 4
    for path in saved[1::2]:
        _, hidden, module = run_method(pl, method, ckpt_path=path, seed=9)
        expected, weights = undisturbed(method)
        assert hidden == {epoch: expected[epoch] for epoch in hidden}
        assert_equal_weights(module.state_dict(), weights)


def test_a_checkpoint_goes_from_one_name_to_the_other(pl, tmp_path):
    other = importlib.import_module(next(name for name in FLAVOURS if name != pl.__name__))
    run_method(other, "kakurenbo", other.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=11, save_top_k=1))
    _, _, module = run_method(pl, "kakurenbo", ckpt_path=next(tmp_path.iterdir()), seed=9)
    assert_equal_weights(module.state_dict(), undisturbed("kakurenbo")[1])


def test_a_combined_loader_of_one_is_followed(pl):
    _, hidden, module = run_method(pl, "kakurenbo", train=pl.utilities.CombinedLoader(loader(SAMPLES)))
    assert hidden == undisturbed("kakurenbo")[0]
    assert_equal_weights(module.state_dict(), undisturbed("kakurenbo")[1])


def test_a_scorer_is_a_module_of_the_same_name(pl):
    class Scorer(type(make_net(pl))):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    selection = SampleSelection("selective_backprop", scorer=Scorer())
    fit(pl, selection)
    assert selection.totals.samples_rejected > 0


def test_the_rate_finder_is_no_part_of_the_training(pl, tmp_path):
    finder = pl.callbacks.LearningRateFinder(min_lr=1e-4, max_lr=1e-2, num_training_steps=12, attr_name="rate", update_attr=False)
    selection = SampleSelection("kakurenbo", **SETTINGS["kakurenbo"])
    _, hidden, _ = fit(pl, selection, finder, default_root_dir=tmp_path)
    assert len(finder.optimal_lr.results["lr"]) == 12
    assert hidden == undisturbed("kakurenbo")[0]
    assert selection.totals.samples_trained == EPOCHS * SAMPLES - sum(map(len, hidden.values()))


def test_the_best_checkpoint_of_a_static_method_is_of_the_second_training(pl, tmp_path):
    best = pl.callbacks.ModelCheckpoint(tmp_path, monitor="metric", mode="max", save_last=True, filename="{epoch}")
    run_method(pl, "forget", best)
    assert best.best_model_score == 10 - 2, "the metric is highest in epoch 0, which is scored, and then in epoch 2"
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "epoch=2.ckpt"}


def test_an_exception_says_where_and_leaves_a_checkpoint_that_resumes(pl, tmp_path):
    class Failing(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if (trainer.current_epoch, batch_idx) == (2, 1):
                raise RuntimeError("the network is down")

    saving = pl.callbacks.OnExceptionCheckpoint(tmp_path)
    with pytest.raises(RuntimeError, match="the network is down") as caught:
        run_method(pl, "kakurenbo", saving, Failing())
    if sys.version_info >= (3, 11):
        assert any("epoch 2" in note for note in caught.value.__notes__)
    _, hidden, _ = run_method(pl, "kakurenbo", ckpt_path=tmp_path / "on_exception.ckpt")
    assert hidden == {epoch: undisturbed("kakurenbo")[0][epoch] for epoch in (2, 3)}


@pytest.mark.slow_cases("lightning.pytorch")
@pytest.mark.parametrize("method", ["kakurenbo", "selective_backprop"])
def test_two_ranks_train_the_same(pl, method, tmp_path):
    assert run_ranks(run_rank, (pl.__name__, method, tmp_path / "rank"), 2, log=tmp_path / "log") == [0, 0], printed(
        tmp_path / "log", 2
    )
    first, second = (torch.load(tmp_path / f"rank.{rank}.pt", weights_only=True) for rank in range(2))
    assert first["hidden"] == second["hidden"]
    parameters = [name for name in first["weights"] if "running" not in name and "num_batches" not in name]
    assert_equal_weights(*({name: rank["weights"][name] for name in parameters} for rank in (first, second)))
    if method == "kakurenbo":
        assert sum(map(len, first["hidden"].values())) > 0


# --- what Lightning asks of a callback and a plug-in


def test_the_selection_is_a_callback_and_the_files_are_a_plugin(pl):
    selection, files = SampleSelection("kakurenbo"), AtomicCheckpointIO()
    trainer = pl.Trainer(callbacks=selection, plugins=[files], logger=False, enable_progress_bar=False)
    assert isinstance(selection, pl.Callback) and trainer.callbacks[0] is selection
    assert trainer.strategy.checkpoint_io is files
    assert isinstance(files, pl.plugins.io.TorchCheckpointIO)


def test_a_command_line_finds_the_selection(pl, tmp_path, monkeypatch):
    pytest.importorskip("jsonargparse")
    monkeypatch.chdir(tmp_path)
    cli = importlib.import_module(f"{pl.__name__}.cli")
    data = pl.LightningDataModule.from_datasets(Points(SAMPLES), batch_size=8)
    arguments = [
        "--trainer.callbacks=kakurenbo_lightning.SampleSelection",
        "--trainer.callbacks.method=kakurenbo",
        "--trainer.callbacks.dict_kwargs.max_fraction=0.25",
        "--trainer.logger=false",
    ]
    made = cli.LightningCLI(type(make_net(pl)), type(data), run=False, args=arguments, save_config_callback=None)
    assert any(isinstance(callback, SampleSelection) for callback in made.trainer.callbacks)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("imports", "name"),
    [
        pytest.param("from kakurenbo_lightning import SampleSelection", "lightning.pytorch", marks=pytest.mark.slow),
        ("import pytorch_lightning; from kakurenbo_lightning import SampleSelection", "pytorch_lightning"),
        pytest.param(
            "import kakurenbo_lightning, pytorch_lightning; kakurenbo_lightning.SampleSelection",
            "pytorch_lightning",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "import pytorch_lightning, lightning; from kakurenbo_lightning import SampleSelection",
            "lightning.pytorch",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_is_said_goes_to_the_log_of_the_name_that_is_used(imports, name):
    """In a new process: both packages log through one variable, which the last import sets."""
    program = (
        "{}\nfrom lightning_utilities.core import rank_zero\n"
        "from kakurenbo_lightning.core.distributed import rank_zero_info\n"
        "import logging\nlogging.getLogger('lightning').setLevel(logging.ERROR)\n"
        "rank_zero_info('said')\nprint(rank_zero.log.name)"
    )
    done = subprocess.run([sys.executable, "-c", program.format(imports)], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == f"{name}.utilities.rank_zero"
    assert "said" in done.stderr


def test_a_training_says_what_it_came_to(pl, monkeypatch, caplog):
    log, said = logging.getLogger(f"{pl.__name__}.utilities.rank_zero"), []
    monkeypatch.setattr("lightning_utilities.core.rank_zero.log", log)  # as where only this one is imported
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", said.append)
    monkeypatch.setattr(log, "handlers", [handler])  # its own: loggers above it may propagate or not, as earlier tests left them
    with caplog.at_level(logging.INFO, log.name):
        run_method(pl, "kakurenbo")
    assert sum("SampleSelection: kakurenbo" in record.getMessage() for record in said) == 2


# --- what is refused


def assert_refused(pl, match, selection="kakurenbo", *callbacks, error=ConflictError, train=None, module=None, **settings):
    """It is refused before a step is made."""
    trained = []

    class Trained(pl.Callback):
        def on_train_batch_end(self, *args):
            trained.append(args)

    selection = SampleSelection(selection) if isinstance(selection, str) else selection
    with pytest.raises(error, match=match):
        fit(pl, selection, Trained(), *callbacks, train=train, module=module, enable_checkpointing=False, **settings)
    assert not trained


def test_a_changed_byte_in_a_checkpoint_is_refused(pl, tmp_path):
    keep = pl.callbacks.ModelCheckpoint(tmp_path, save_last=True)
    trainer, _, _ = run_method(pl, "kakurenbo", keep)
    assert type(trainer.strategy.checkpoint_io) is AtomicCheckpointIO
    path = tmp_path / "last.ckpt"
    content = bytearray(path.read_bytes())
    place = content.index(trainer.callbacks[0].statistics.loss.numpy().tobytes())
    content[place + 41] ^= 8
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=r"last\.ckpt is damaged: .* does not match its checksum"):
        run_method(pl, "kakurenbo", ckpt_path=path, max_epochs=EPOCHS + 1)


def test_a_plugin_of_the_user_stays(pl):
    class Own(pl.plugins.io.TorchCheckpointIO):
        """The user's."""

    trainer, _, _ = run_method(pl, "kakurenbo", plugins=[Own()])
    assert type(trainer.strategy.checkpoint_io) is Own


def test_a_trainer_that_cannot_work_is_refused(pl):
    schedule = pl.callbacks.GradientAccumulationScheduler({1: 2})
    assert_refused(pl, "GradientAccumulationScheduler: selective_backprop waits", "selective_backprop", schedule)
    assert_refused(pl, r"accumulate_grad_batches=2\)", "selective_backprop", accumulate_grad_batches=2)
    assert_refused(pl, r"overfit_batches=0.5\)", overfit_batches=0.5)
    split = type("XLAStrategy", (pl.strategies.SingleDeviceStrategy,), {})(device="cpu")
    assert_refused(pl, "strategy=XLAStrategy", strategy=split)


def test_callbacks_that_a_restart_cannot_put_back_are_refused(pl):
    for name, settings in (
        ("StochasticWeightAveraging", {"swa_lrs": 1e-2}),
        ("GradientAccumulationScheduler", {"scheduling": {1: 2}}),
    ):
        callback = getattr(pl.callbacks, name)(**settings)
        assert_refused(
            pl, f"callback {name}: .* effects cannot be put back", SampleSelection("forget", static_epochs=2), callback
        )


def test_loaders_that_cannot_be_followed_are_refused(pl):
    both = pl.utilities.CombinedLoader([loader(), loader()])
    assert_refused(pl, "train_dataloader=list: .* one torch.utils.data.DataLoader", train=both)
    assert_refused(pl, "train_dataloader=dict", train={"a": loader(), "b": loader()})
    assert_refused(pl, r"batch_size=None", train=DataLoader(Points(64), batch_size=None))


def test_modules_that_cannot_work_are_refused(pl):
    module = make_net(pl)
    module.automatic_optimization = False
    assert_refused(pl, "automatic_optimization=False: selective_backprop decides", "selective_backprop", module=module)
    with pytest.raises(
        ValueError, match="scorer=Linear is not allowed with method selective_backprop; it must be a LightningModule"
    ):
        SampleSelection("selective_backprop", scorer=nn.Linear(1, 1))


def test_a_trainer_without_the_attributes_names_its_own_package(pl, monkeypatch):
    selection = SampleSelection("kakurenbo")
    monkeypatch.setattr("kakurenbo_lightning.trainer.adapter._PRIVATE", ("fit_loop.gone",))
    package = pl.__name__.partition(".")[0]
    assert_refused(pl, rf"^Lightning {pl.__version__} \({package}\) has no trainer.fit_loop.gone", selection)


# --- names


def test_a_class_of_either_package_is_the_same(pl):
    from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

    class Own(pl.callbacks.ModelCheckpoint):
        """The user's."""

    assert names.is_instance(Own(), ModelCheckpoint) and names.is_instance(Own(), Checkpoint)
    assert names.is_class(pl.callbacks.ModelCheckpoint, ModelCheckpoint) and not names.is_class(Own, ModelCheckpoint)
    for other in (object(), nn.Linear(1, 1), pl.callbacks.EarlyStopping("x"), type("ModelCheckpoint", (), {})()):
        assert not names.is_instance(other, ModelCheckpoint)
