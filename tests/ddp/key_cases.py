"""Cases of iterable data with keys, of which each rank reads a part of its own; :mod:`worker` runs them with those of ``cases.py``."""

import warnings

import torch
from cases import CASES
from cuts import SaveAt
from flow_cases import ranks
from helpers import fit
from keyed import EPOCHS, KeptFlow, LineNet, keyed_run
from torch.utils.data import DataLoader

from kakurenbo_lightning import SampleSelection, get_method
from kakurenbo_lightning.errors import ConflictError

ON_RANKS = {"accelerator": "cpu", "strategy": "ddp"}
METHODS = {
    "kakurenbo": get_method("kakurenbo", max_fraction=0.4, tau=0.4),
    "infobatch": get_method("infobatch"),
    "random": get_method("random"),
    "forget_online": get_method("forget_online"),
}


def run(method, *callbacks, count=61, flow=None, **settings):
    """What a run did, and what it has warned of."""
    world_size, rank = ranks()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        made, selection, seen, net = keyed_run(
            method,
            *callbacks,
            count=count,
            flow={"ranks": world_size, "rank": rank, **(flow or {})},
            devices=world_size,
            **ON_RANKS,
            **settings,
        )
    return {
        "trained": {epoch: seen.indices(epoch) for epoch in range(EPOCHS)},
        "plans": {epoch: vars(plan) for epoch, plan in seen.plans.items()},
        "known": seen.known,
        "weights": {name: value.detach().clone() for name, value in net.state_dict().items()},
        "global_step": made.global_step,
        "hidden": selection.totals.samples_hidden,
        "warnings": [str(each.message) for each in warned],
    }


def cut(scratch, batch):
    """An uncut run, one that saves a checkpoint in epoch 2, and one that goes on from there."""
    path = scratch / "cut.ckpt"
    save = SaveAt(path, "on_train_epoch_end", 2) if batch is None else SaveAt(path, "on_train_batch_end", 2, batch)
    method = METHODS["kakurenbo"]
    return {"plain": run(method), "uncut": run(method, save), "resumed": run(method, ckpt_path=path, seed=9), "path": str(path)}


def refused(flow, key=3):
    """The error of a run that cannot be."""
    world_size, rank = ranks()
    selection = SampleSelection("random", seed=3, key=key)
    try:
        fit(LineNet(), DataLoader(flow(selection.keep, rank), 8), selection, devices=world_size, **ON_RANKS)
    except ConflictError as error:
        return {"error": str(error)}
    return {"error": "none"}


class Bare(KeptFlow):
    """Its batches have no key on rank 1."""

    def __iter__(self):
        return (sample[: 3 if self.rank else 4] for sample in super().__iter__())


for name, method in METHODS.items():
    CASES[f"keys_{name}"] = lambda scratch, method=method: run(method)
for name, batch in {"middle": 1, "ended": None}.items():
    CASES[f"keys_resume_{name}"] = lambda scratch, batch=batch: cut(scratch, batch)
CASES["keys_uneven"] = lambda scratch: run(
    METHODS["random"], count=(41, 22)[ranks()[1]], flow={"ranks": 1, "rank": 0, "name": own}
)
CASES["keys_bare"] = lambda scratch: refused(lambda keep, rank: Bare(keep, ranks=2, rank=rank))
CASES["keys_same"] = lambda scratch: refused(lambda keep, rank: KeptFlow(keep))
CASES["keys_unfiltered"] = lambda scratch: refused(
    lambda keep, rank: KeptFlow((lambda key: True) if rank else keep, ranks=2, rank=rank)
)


def own(number):
    """The key of a number on this rank."""
    return 1000 * ranks()[1] + number


def as_tensors(columns):
    """For a comparison: NaN is a number."""
    return {name: torch.nan_to_num(torch.as_tensor(column).double(), -1.0) for name, column in columns.items()}
