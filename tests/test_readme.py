"""README.md: its code runs, and its list of methods is complete."""

import re
from dataclasses import fields
from pathlib import Path

import lightning as L
from helpers import Net, loader

from kakurenbo_lightning import HideMethod, SampleSelection, available_methods, get_method
from kakurenbo_lightning.methods import BackpropMethod, DrawMethod, StreamMethod, registry
from kakurenbo_lightning.record import RunRecorder

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text()
METHODS = [name for name in available_methods() if type(get_method(name)).__module__.startswith("kakurenbo_lightning.")]


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return loader(32)


class Scored(Net):
    def validation_step(self, batch, batch_idx):
        self.log("val_acc", 0.5)


def record_a_baseline(folder):
    """As a user does whose guard has it as its reference."""
    selection = SampleSelection("baseline")
    callbacks = [selection, RunRecorder(selection, folder)]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    L.Trainer(accelerator="cpu", max_epochs=2, callbacks=callbacks, **quiet).fit(Scored(), loader(32), loader(32))


def test_the_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record_a_baseline("outputs/baseline")
    names = {"L": L, "model": Net(), "datamodule": Data()}
    try:
        for block in re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL):
            exec(compile(block, "README.md", "exec"), names)
            if "class Half" in block:
                own = names["trainer"]
        own.fit_loop.max_epochs = 4
        own.fit(Net(), Data())
    finally:
        registry._METHODS.pop("half", None)  # other tests go through all methods there are
    assert 0 < own.callbacks[0].plan.hidden_fraction <= 0.5


def test_the_table_links_every_method_and_names_its_settings():
    rows = dict(
        re.findall(r"^\| \[`(\w+)`\]\(kakurenbo_lightning/methods/\w+/\1\.md\) \|[^|]*\| (.*) \|$", README, flags=re.MULTILINE)
    )
    assert sorted(rows) == METHODS
    for name, cell in rows.items():
        method = get_method(name)
        family = next(cls for cls in (HideMethod, BackpropMethod, StreamMethod, DrawMethod) if isinstance(method, cls))
        common = {field.name for field in fields(family)}
        own = [field.name for field in fields(method) if field.name not in common]
        assert re.findall(r"`(\w+)`", cell) == own, name


def test_links_lead_to_files():
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (REPOSITORY / link).exists()] == []
