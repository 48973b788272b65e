"""`kakurenbo-train` leaves a run's files in a folder named for the method; a step pays next to nothing for them."""

import json

import numpy as np
import pytest
import torch
from helpers import Net, loader, trainer
from kakurenbo_recipes.train import run
from lightning.pytorch.callbacks import Callback
from recipe_runs import TINY, kakurenbo_train
from recorded import Files
from torch.utils._python_dispatch import TorchDispatchMode

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.record import RunRecorder

FOUR = {"run.json", "selection.parquet", "samples.parquet", "thumbnails.npz"}


def test_a_run_leaves_its_files_beside_the_loggers(compose, tmp_path):
    (result,) = run(compose(*TINY, "F=0.25", "tau=0", "seed=5"))
    assert {path.name for path in (tmp_path / "kakurenbo").iterdir()} >= FOUR | {"metrics.csv"}
    files = Files(tmp_path / "kakurenbo")
    found = files.run
    assert (found["metric"], found["score"], found["seed"]) == ("val/accuracy", result.score, 5)
    assert {name: found["totals"][name] for name in result.totals} == result.totals
    assert (found["config"]["F"], found["config"]["data"]["subset"], found["settings"]["max_fraction"]) == (0.25, 96, 0.25)
    assert found["class_names"] is None or len(found["class_names"]) == 10
    assert files.epochs["samples_hidden"].sum() == files.frame["times_hidden"].sum() > 0 and len(files.frame) == 96
    assert sorted(set(files.frame["target"])) == list(range(10))
    shown = np.load(tmp_path / "kakurenbo" / "thumbnails.npz", allow_pickle=False)
    assert shown["images"].shape[1:] == (8, 8, 3) and 0 < len(shown["most_hidden"]) <= len(shown["least_hidden"]) == 24


def test_without_a_record_there_is_none(compose, tmp_path):
    run(compose(*TINY, "record=none", "logger=none", "trainer.max_epochs=1"))
    assert not FOUR & {path.name for path in tmp_path.rglob("*")}


def test_compared_methods_have_a_folder_each(compose, tmp_path):
    run(compose(*TINY, "compare=[baseline,random]", "F=0.5", "record.every_n_epochs=1"))
    for method in ("baseline", "random"):
        folder = tmp_path / method
        assert {path.name for path in folder.iterdir()} >= FOUR
        assert json.loads((folder / "run.json").read_text())["method"] == method
        assert Files(folder).epochs["samples_hidden"].sum() == {"baseline": 0, "random": 96}[method]


@pytest.mark.slow
def test_a_sweep_leaves_a_folder_for_each_run(tmp_path):
    kakurenbo_train("-m", *TINY, "method=kakurenbo,baseline", "seed=0,1", "hydra.sweep.dir=out", cwd=tmp_path)
    found = {path.parent.relative_to(tmp_path / "out").as_posix() for path in tmp_path.rglob("run.json")}
    assert found == {"0/kakurenbo", "1/kakurenbo", "2/baseline", "3/baseline"}
    for path in tmp_path.rglob("run.json"):
        assert {file.name for file in path.parent.iterdir()} >= FOUR
        assert json.loads(path.read_text())["seed"] == json.loads(path.read_text())["config"]["seed"]


class Operations(TorchDispatchMode):
    """Notes every operation of torch: its name and the size of the tensor that it makes."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        fresh = isinstance(made, torch.Tensor) and not any(made is argument for argument in args)
        self.seen.append((function.overloadpacket.__name__, made.numel() if fresh else 0))
        return made


def test_a_step_costs_one_addition_of_its_batch_and_waits_for_nothing(tmp_path):
    seen = []

    class Watch(Callback):
        """Wraps what the recorder does in a step."""

        def __init__(self, recorder):
            self.recorder = recorder

        def on_train_start(self, trainer, pl_module):
            counting = selection.session.on_trained

            def watched(indices):
                with Operations() as operations:
                    counting(indices)
                    self.recorder.on_train_batch_start(trainer, pl_module, None, 1)
                    self.recorder.on_train_batch_end(trainer, pl_module, None, None, 1)
                seen.append(operations.seen)

            selection.session.on_trained = watched

    selection = SampleSelection("kakurenbo")
    recorder = RunRecorder(selection, tmp_path)
    trainer(selection, recorder, Watch(recorder), max_epochs=1).fit(Net(), loader(640))
    assert len(seen) == 80 and all(operations == [("ones_like", 8), ("index_add_", 0)] for operations in seen)
