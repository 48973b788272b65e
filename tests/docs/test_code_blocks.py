"""The Python and YAML of every page runs."""

import re

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from doc_pages import blocks, text_of, with_blocks
from helpers import Net, Points, loader
from hydra.utils import instantiate
from omegaconf import OmegaConf
from processes import program
from torch.testing import assert_close
from torch.utils.data import IterableDataset

import kakurenbo_lightning
from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.cli.inspection import selection_in
from kakurenbo_lightning.methods import registry
from kakurenbo_lightning.record import RunRecorder
from recipes.benchmarks.forked import free_port

# its blocks need each other's files, or train for longer; run where it says
ELSEWHERE = {"kakurenbo_lightning/methods/ADDING.md": "tests/methods/test_plugin.py and test_cards.py"}
PROGRAM = "# train.py\n"  # run in processes of its own
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return loader(32)

    def val_dataloader(self):
        return loader(32, shuffle=False)


class Scored(Net):
    def validation_step(self, batch, batch_idx):
        self.log("val_acc", (self.network(batch[0]).argmax(1) == batch[1]).float().mean())


class Brief(Net):
    """Ends a training after three epochs, of the 30 that a page has."""

    def on_train_epoch_end(self):
        self.trainer.should_stop = self.trainer.current_epoch >= 2


class Labelled(Points):
    targets = Points(32).y.tolist()


def record_a_baseline(folder):
    """As a user does whose guard has it as its reference."""
    selection = SampleSelection("baseline")
    trainer = L.Trainer(accelerator="cpu", max_epochs=2, callbacks=[selection, RunRecorder(selection, folder)], **QUIET)
    trainer.fit(Scored(), loader(32), loader(32, shuffle=False))


def what_readers_have():
    """The names that blocks use and do not make."""
    return {
        **{"L": L, "torch": torch, "SampleSelection": SampleSelection, "model": Brief(), "datamodule": Data(), "small": Net()},
        **{"make_model": Scored, "make_data": Data, "dataset": Labelled(32), "hardness": np.linspace(1, 2, 32)},
    }


@pytest.fixture
def quick_comparison(monkeypatch):
    """A comparison of three epochs and one seed, of more of which a page has."""
    compare = kakurenbo_lightning.compare
    monkeypatch.setitem(
        vars(kakurenbo_lightning), "compare", lambda *made, **how: compare(*made, **{**how, "max_epochs": 3, "seeds": 1})
    )


@pytest.mark.usefixtures("quick_comparison")
@pytest.mark.parametrize("page", [page for page in with_blocks("python") if page not in ELSEWHERE])
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if "outputs/baseline" in text_of(page):
        record_a_baseline("outputs/baseline")
    names = what_readers_have()
    try:
        for block in blocks(page, "python"):
            code = compile(block, page, "exec", dont_inherit=True)
            if block.startswith(PROGRAM):
                continue
            exec(code, names)
            if "class Half" in block:
                own = names["trainer"]
                own.fit_loop.max_epochs = 4
                own.fit(Net(), Data())
                assert 0 < own.callbacks[0].plan.hidden_fraction <= 0.5
    finally:
        registry._METHODS.pop("half", None)  # other tests go through all methods there are


def test_the_stateful_loader_of_streams_md_goes_on_at_the_next_line(tmp_path, monkeypatch):
    (block,) = (block for block in blocks("docs/streams.md", "python") if "StatefulDataLoader" in block)
    made, cut, resumed = re.split(r"^(?=train\()", block, flags=re.MULTILINE)

    def run(folder, *parts):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        L.seed_everything(0)
        names = {**what_readers_have(), "IterableDataset": IterableDataset}
        for part in (made, *parts):
            exec(compile(part, "streams.md", "exec", dont_inherit=True), names)
        return names["model"].state_dict()

    run("cut", cut)
    progress = torch.load("checkpoints/last.ckpt", weights_only=True)["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    assert 0 < progress["current"]["completed"] < 64 // 8
    assert_close(run("resumed", cut, resumed), run("whole", resumed.replace('"last"', "None")), rtol=0, atol=0)


ONE = {"WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1"}  # as torchrun says it


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_program_of_strategies_md_trains_and_goes_on_from_its_folder(processes, tmp_path):
    (block,) = (block for block in blocks("docs/strategies.md", "python") if block.startswith(PROGRAM))
    last = tmp_path / "checkpoints" / "last.ckpt"

    def run():
        if processes > 1:
            return program("torch.distributed.run", "--nproc-per-node=2", "train.py", cwd=tmp_path)
        world = {**ONE, "TORCHELASTIC_RUN_ID": "docs", "MASTER_PORT": free_port()}
        return program("train.py", cwd=tmp_path, **{name: str(value) for name, value in world.items()})

    reached = []
    for epochs in (4, 8):
        (tmp_path / "train.py").write_text(block.replace("max_epochs=10", f"max_epochs={epochs}"))
        assert (f"Restoring states from the checkpoint path at {last}" in run()) is (epochs == 8)
        state, _, steps = selection_in(last)
        reached.append((state.epoch.epoch, steps))
    assert reached[0][0] < 4 < reached[1][0] < 8 and steps < 8 * 256 // 16 // processes, "some were hidden"
    assert len(list(last.glob("*.distcp"))) == processes


def test_the_loops_without_a_trainer_hide_samples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = what_readers_have()
    for block in blocks("docs/plain_pytorch.md", "python"):
        torch.manual_seed(0)
        exec(compile(block, "plain_pytorch.md", "exec", dont_inherit=True), names)
        assert names["plan"].hidden_fraction > 0.1 and names["statistics"].measured.all()


def test_the_step_with_mixup_trains_and_is_chosen_from():
    (block,) = (block for block in blocks("docs/faq.md", "python") if "lam" in block)
    names = {"torch": torch, "F": torch.nn.functional}
    exec(compile(block, "faq.md", "exec", dont_inherit=True), names)
    step = {
        "training_step": lambda self, batch, batch_idx: names["training_step"](self, batch[:2], batch_idx),
        "forward": lambda self, x: self.network(x),
    }
    selection = SampleSelection("kakurenbo", max_fraction=0.5, tau=0.2)
    trainer = L.Trainer(accelerator="cpu", max_epochs=4, callbacks=[selection], **QUIET)
    trainer.fit(type("Mixed", (Net,), step)(), Data())
    assert selection.totals.samples_hidden > 0


def test_a_recorder_in_a_config_is_made_as_reports_md_shows(tmp_path):
    (block,) = blocks("docs/reports.md", "yaml")
    config = OmegaConf.create({**yaml.safe_load(block), "paths": {"output_dir": str(tmp_path)}})
    assert isinstance(instantiate(config.recorder), RunRecorder)


def test_the_configs_of_hydra_md_are_those_that_tests_train_with():
    """tests/hydra_support/test_app.py and tests/test_lightning_cli.py; the recorder is made as on the page of reports."""
    lines, recorder, cli = map(yaml.safe_load, blocks("docs/hydra.md", "yaml"))
    assert lines["selection"] == {"max_fraction": 0.3, "tau": 0.7} and "callbacks" in cli["trainer"]
    config = OmegaConf.create({**recorder, "paths": {"output_dir": "outputs"}})
    assert isinstance(instantiate(config.recorder), RunRecorder)


def test_yaml_stands_where_it_is_tested():
    assert with_blocks("yaml") == ["docs/hydra.md", "docs/reports.md"]


def test_every_example_of_a_selection_has_settings_that_exist():
    """Those within a line of text too."""
    for page in with_blocks("python"):
        for call in re.findall(r"`(SampleSelection\(\"\w+\"[^`]*\))`", text_of(page)):
            if "..." not in call:
                eval(call, what_readers_have())
