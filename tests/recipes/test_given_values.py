"""What `kakurenbo-train` is given about samples: weights from a file, and losses of batches in the place of samples' own."""

import numpy as np
import pytest
import torch
from kakurenbo_recipes.train import run
from recipe_runs import TINY


def of_last_epoch(folder):
    """The selection's state in the only checkpoint below the folder."""
    (path,) = folder.rglob("last.ckpt")
    return torch.load(path, weights_only=True)["callbacks"]["SampleSelection"]


@pytest.mark.parametrize("ending", [".npy", ".csv"])
def test_weights_come_from_a_file(compose, tmp_path, ending):
    path, weights = tmp_path / f"weights{ending}", np.arange(96) % 2
    np.save(path, weights) if ending == ".npy" else np.savetxt(path, weights)
    run(compose(*TINY, "method=weighted", f"method.weights={path}", "record=none", "logger=none"))
    state = of_last_epoch(tmp_path)
    assert set((state["plan"]["indices"] % 2).tolist()) == {1} and len(state["plan"]["indices"]) == 96
    assert state["settings"]["weights"].startswith("96 numbers with the hash ")


def test_losses_of_batches_are_an_argument_of_the_selection(compose, tmp_path):
    words = ("method=infobatch", "method.end_fraction=0", "method.values=bls", "method.bls_alpha=0.5")
    run(compose(*TINY, *words, "record=none", "logger=none"))
    state = of_last_epoch(tmp_path)
    assert (state["settings"]["values"], state["settings"]["bls_alpha"]) == ("bls", 0.5)
    assert len(state["plan"]["hidden"]) > 0 and len(state["statistics"]["loss"].unique()) < 96
