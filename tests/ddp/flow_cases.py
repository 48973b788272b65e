"""Cases of iterable data, of which each rank reads a part of its own; :mod:`worker` runs them with those of ``cases.py``."""

import os
import warnings

import torch
import torch.nn.functional as F
from backprop_cases import BATCH, COUNT, Small, driven
from cases import CASES
from fits import Points, SaveAt
from flows import CountingFlow, Flow, SizedFlow
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.methods import Baseline, FixedRate, Katharopoulos, RhoLoss, SelectiveBackprop


def ranks():
    """How many there are, and which this is."""
    return int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])


def flow(kind=Flow, counts=None, **settings):
    """A loader of every second point, or of as many as ``counts`` has for this rank."""
    (world_size, rank), points = ranks(), Points(COUNT)
    if counts is None:
        return DataLoader(kind(COUNT, points, world_size, rank, **settings), BATCH)
    return DataLoader(kind(counts[rank], points, **settings), BATCH)


def told(method, train):
    """What each step did, with the warnings; or the error."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            made = driven(method, train=train)
        except ConflictError as error:
            return {"error": str(error)}
    return {**made, "warnings": [text for each in warned if "ended" in (text := str(each.message))]}


def both(name, method, kind):
    """Register a case of the same samples with an index and without."""
    CASES[name] = lambda scratch: {"indexed": driven(method, shuffle=False), "flowing": driven(method, train=flow(kind))}


def rho(scratch):
    """The same samples with an index, without, and by a table of the model's losses; and a model that each rank has for itself."""
    model, points, table = Small(seed=7), Points(COUNT), scratch / f"table{ranks()[1]}.pt"
    with torch.no_grad():
        losses = F.cross_entropy(model.network(points.x), points.y, reduction="none")
    torch.save({"irreducible": losses.float()}, table)

    def run(irreducible, **settings):
        return driven(RhoLoss(fraction=0.5, irreducible=irreducible), **settings)

    made = {
        "indexed": run(model, shuffle=False),
        "flowing": run(model, train=flow()),
        "by_table": run(str(table), shuffle=False),
    }
    try:
        run(Small(seed=ranks()[1]), shuffle=False)
    except ConflictError as error:
        return {**made, "error": str(error)}


def cut(scratch, method, batch):
    """A run that saves a checkpoint in epoch 1, and one that goes on from there."""
    (world_size, rank), path = ranks(), scratch / "cut.ckpt"

    def run(*callbacks, ckpt_path=None):
        train = StatefulDataLoader(CountingFlow(COUNT, Points(COUNT), world_size, rank), BATCH)
        return driven(method, train=train, callbacks=callbacks, ckpt_path=ckpt_path)

    return {"uncut": run(SaveAt(path, 1, batch)), "resumed": run(ckpt_path=path)}


both("flow_baseline", Baseline(), Flow)
both("flow_sb", SelectiveBackprop(), Flow)
both("flow_sb_fixed", FixedRate(start=0.2), SizedFlow)
both("flow_katharopoulos", Katharopoulos(threshold=0.0), SizedFlow)
CASES["flow_rho_loss"] = rho
for name, method in {"baseline": Baseline(), "sb": SelectiveBackprop()}.items():
    CASES[f"flow_uneven_{name}"] = lambda scratch, method=method: told(method, flow(counts=(41, 22)))
CASES["flow_uneven_sized"] = lambda scratch: told(SelectiveBackprop(), flow(SizedFlow, counts=(22, 41)))
for name, batch in {"middle": 3, "last": 7, "ended": None}.items():  # of eight batches, and one of what is left
    CASES[f"flow_resume_{name}"] = lambda scratch, batch=batch: cut(scratch, SelectiveBackprop(), batch)
CASES["flow_empty"] = lambda scratch: told(SelectiveBackprop(), flow(counts=(41, 0)))
CASES["flow_half_sized"] = lambda scratch: told(Baseline(), flow((Flow, SizedFlow)[ranks()[1]], counts=(24, 24)))
CASES["flow_lying"] = lambda scratch: told(Baseline(), flow(SizedFlow, counts=(24, 12), claimed=24))
