"""Checkpoints that release 0.1 wrote (version_1/*.ckpt, made by its own code) resume in this one."""

import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from kakurenbo_lightning.core.plan import EpochPlan, StreamPlan
from kakurenbo_lightning.session.checkpoint import from_state, to_state
from kakurenbo_lightning.session.epoch_state import Phase
from recipes.benchmarks.fault_run import train

# selective_backprop draws by the losses, and the last bits of them, which differ between releases of torch, decide on single samples
NUMBERS_OF_ITS_TORCH = torch.__version__ >= "2.13"
FOLDER = Path(__file__).with_name("version_1")
# what release 0.1 said at the end of the training that these were saved in: steps, and counts of samples
ENDS = {
    "kakurenbo": (35, {"samples_trained": 269, "samples_hidden": 103, "moved_back": 7, "samples_refreshed": 76}),
    "selective_backprop": (29, {"samples_trained": 220, "samples_scored": 279, "samples_rejected": 152}),
    "plb": (48, {"samples_trained": 384, "samples_refreshed": 93}),
}


def saved(method):
    """The selection's state in a checkpoint of release 0.1."""
    return torch.load(FOLDER / f"{method}.ckpt", weights_only=True)["callbacks"]["SampleSelection"]


@pytest.mark.parametrize("method", ENDS)
def test_the_state_is_read_in_the_words_of_this_release(method):
    old, new = saved(method), from_state(saved(method))
    assert (new.epoch.epoch, new.epoch.step, new.epoch.phase) == (old["epoch"], old["step"], Phase.TRAINING)
    assert (new.layout.world_size, new.layout.batch_size, new.seed) == (1, 8, 3)
    torch.testing.assert_close(new.statistics, dict(old["statistics"]), rtol=0, atol=0, equal_nan=True)
    assert new.totals.samples_trained == old["totals"]["samples_trained"]
    assert isinstance(new.epoch.plan, StreamPlan if method == "plb" else EpochPlan)
    assert torch.equal(new.epoch.plan.hidden, old["hidden"]) and (method != "kakurenbo" or len(old["hidden"]) > 0)
    again = from_state(to_state(new))
    assert asdict(again.totals) == asdict(new.totals) and again.epoch.phase is new.epoch.phase


@pytest.mark.parametrize("method", ENDS)
def test_the_training_goes_on_to_the_end_that_it_had(tmp_path, method):
    steps, counts = ENDS[method]
    resumed = train(tmp_path, method, resume=str(FOLDER / f"{method}.ckpt"), seed=9)
    if method == "selective_backprop" and not NUMBERS_OF_ITS_TORCH:
        trained, rejected = (resumed["totals"][name] for name in ("samples_trained", "samples_rejected"))
        assert trained + rejected == counts["samples_trained"] + counts["samples_rejected"]
        least = math.ceil(trained / 8)  # and each of the 4 epochs may end with a smaller one
        assert least <= resumed["steps"] <= least + 4
        counts, steps = {"samples_scored": counts["samples_scored"]}, resumed["steps"]
    assert resumed["steps"] == steps
    assert {name: resumed["totals"][name] for name in counts} == counts
