"""LightningCLI: what docs/hydra.md shows, in a process of its own, and the other ways to give a method and its settings."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import lightning as L
import pytest
from helpers import Net, loader
from lightning.pytorch.cli import LightningCLI
from processes import program

from kakurenbo_lightning import SampleSelection, available_methods, get_method
from kakurenbo_lightning.methods import InfoBatch, Kakurenbo

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "hydra.md"
MAIN = """\
import lightning as L
import torch
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader, TensorDataset


class Net(L.LightningModule):
    def __init__(self, lr: float = 1.0):
        super().__init__()
        self.layer, self.lr = torch.nn.Linear(4, 2), lr

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


class Data(L.LightningDataModule):
    def train_dataloader(self):
        x = torch.randn(40, 4)
        return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=10)


if __name__ == "__main__":
    trainer = LightningCLI(Net, Data).trainer
    (selection,) = [callback for callback in trainer.callbacks if type(callback).__name__ == "SampleSelection"]
    print(selection.method, selection.totals.samples_trained, selection.totals.samples_hidden)
"""
QUIET = ("--trainer.max_epochs=2", "--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_checkpointing=false")


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return loader(32)


def shown(language):
    """What the page shows of LightningCLI in one language."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (block,) = [
        block for block in found if "trainer" in block and "callbacks" in block and "kakurenbo_lightning.methods" in block
    ]
    return block


def started(folder, *arguments):
    """What the program prints at the end."""
    (folder / "main.py").write_text(MAIN)
    return program(folder / "main.py", "fit", "--seed_everything=0", *QUIET, *arguments, cwd=folder).splitlines()[-1]


def test_the_command_of_the_page_trains(tmp_path):
    words = shlex.split(shown("sh").replace("\\\n", ""))
    assert words[:3] == ["python", "main.py", "fit"]
    printed = started(tmp_path, *words[3:])
    method, trained, hidden = re.fullmatch(r"Kakurenbo\((.*)\) (\d+) (\d+)", printed).groups()
    assert "max_fraction=0.3, tau=0.7" in method and int(trained) + int(hidden) == 80 and int(hidden) > 0


@pytest.mark.slow
def test_the_file_of_the_page_trains(tmp_path):
    (tmp_path / "fit.yaml").write_text(shown("yaml"))
    printed = started(tmp_path, "--config=fit.yaml", "--trainer.callbacks.init_args.method.init_args.max_fraction=0.2")
    assert re.search(r"max_fraction=0.2, tau=0.7.* \d+ [1-8]$", printed)


# --- in this process


def method_of(*arguments):
    """The method that a command line makes."""
    words = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.callbacks+=SampleSelection", *arguments]
    made = LightningCLI(Net, Data, run=False, save_config_callback=None, args=words)
    (method,) = [callback.method for callback in made.trainer.callbacks if isinstance(callback, SampleSelection)]
    return method


@pytest.mark.parametrize(
    ("words", "method"),
    [
        (["method=Kakurenbo", "method.max_fraction=0.2", "method.milestones=[1,2,3]"], Kakurenbo(0.2, milestones=(1, 2, 3))),
        (["method=kakurenbo", "max_fraction=0.2", "milestones=[1,2,3]"], Kakurenbo(0.2, milestones=(1, 2, 3))),
        (["method=kakurenbo", "dict_kwargs.max_fraction=0.2"], Kakurenbo(0.2)),
        (["method=InfoBatch", "method.unbiased=step"], InfoBatch(unbiased="step")),
        (["method=infobatch", "unbiased=step", "protected=[3,5]"], InfoBatch(unbiased="step", protected=(3, 5))),
        (["method=infobatch", "unbiased=true"], InfoBatch(unbiased=True)),
    ],
    ids=["class", "name", "dict_kwargs", "class and choice", "name and choice", "name and flag"],
)
def test_settings_stand_below_the_class_or_beside_the_name(words, method):
    assert method_of(*(f"--trainer.callbacks.{word}" for word in words)) == method


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=kakurenbo", "max_fraction=1.3"], "kakurenbo: max_fraction=1.3 is not allowed; max_fraction must be a number in [0, 1)"),
        (["method=kakurenbo", "prune_ratio=0.3"], "kakurenbo has no setting 'prune_ratio'; its share is called 'max_fraction'"),
        (["method=kakurenbo", "dict_kwargs.tua=0.3"], "kakurenbo has no setting 'tua'; did you mean 'tau'?"),
        (["method=kakurenb"], "did you mean 'kakurenbo'?"),
        (["method=kakurenbo", "max_fraction=many"], 'Parser key "max_fraction":'),
    ],
    ids=["range", "setting of another method", "typo", "name", "type"],
)  # fmt: skip
def test_a_wrong_setting_is_named(words, message, capsys):
    with pytest.raises((ValueError, SystemExit)) as error:
        method_of(*(f"--trainer.callbacks.{word}" for word in words))
    assert message in str(error.value) + capsys.readouterr().err


def test_the_help_tells_whose_settings_they_are(capsys):
    with pytest.raises(SystemExit):
        LightningCLI(Net, Data, run=False, args=["--trainer.callbacks.help=SampleSelection"])
    said = " ".join(capsys.readouterr().out.split())
    assert "a registered name" in said
    for name in available_methods():
        for setting in fields(get_method(name)):
            assert f"--trainer.callbacks.{setting.name} " in said, (name, setting.name)
    assert "of selective_backprop, stale_sb" in said


def selection_of(*arguments):
    """The callback that a command line makes."""
    words = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.callbacks+=SampleSelection", *arguments]
    made = LightningCLI(Net, Data, run=False, save_config_callback=None, args=words)
    (selection,) = [callback for callback in made.trainer.callbacks if isinstance(callback, SampleSelection)]
    selection.setup(made.trainer, made.model, "fit")
    return selection


def test_save_and_guard_are_typed(capsys):
    words = ["method=kakurenbo", "tau=0.5", "save=0.2", "guard.monitor=val_loss", "guard.max_drop=0.1", "guard.mode=min"]
    selection = selection_of(*(f"--trainer.callbacks.{word}" for word in words))
    assert selection.method == Kakurenbo(tau=0.5)
    settings = selection.session.control.settings()
    assert (settings["save"]["share"], settings["save"]["forward"]) == (0.2, None)
    assert settings["guard"] == {"monitor": "val_loss", "max_drop": 0.1, "reference": "own", "mode": "min", "epochs": 1}
    words = ["method=kakurenbo", "save.share=0.2", "save.forward=0.3", "save.max_interval=2"]
    saving = selection_of(*(f"--trainer.callbacks.{word}" for word in words)).session.control.settings()["save"]
    assert saving == {"share": 0.2, "forward": 0.3, "max_share": 0.5, "max_interval": 2}
    for wrong in ("save=much", "guard.monitr=val_loss"):
        with pytest.raises(SystemExit):
            selection_of("--trainer.callbacks.method=kakurenbo", f"--trainer.callbacks.{wrong}")
        assert wrong.partition("=")[0] in capsys.readouterr().err
