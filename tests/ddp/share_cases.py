"""Cases with ``statistics="sharded"``; :mod:`worker` runs them with those of ``cases.py``."""

import os

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from cases import BATCH, CASES, COUNT, failing
from cuts import SaveAt
from fits import Net, Points
from method_tester import short_run
from torch.utils.data import DataLoader, SubsetRandomSampler

from kakurenbo_lightning import Epoch, SampleSelection
from kakurenbo_lightning.core.collectives import Collectives
from kakurenbo_lightning.core.sharded_statistics import ShardedStatistics
from kakurenbo_lightning.methods import InfoBatch, Kakurenbo, RandomHiding
from kakurenbo_lightning.record import RunRecorder
from recipes.benchmarks.fault_run import SAMPLES, train

METHODS = {
    "kakurenbo": Kakurenbo(max_fraction=0.5, tau=0.5, protected=(1, 2, 3)),
    "random": RandomHiding(max_fraction=0.3, unbiased=True),
    "infobatch": InfoBatch(end_fraction=0.0),
    **{name: short_run(name, SAMPLES) for name in ("orderdp", "ies", "forget", "forget_online", "el2n", "baseline")},
}
CUTS = {"mid": (1, 1), "last": (2, -1)}


def both_ways(method):
    """A case: a run with each kind of statistics."""
    return lambda scratch: {kind: train(scratch, method, statistics=kind) for kind in ("replicated", "sharded")}


CASES.update({f"share_{name}": both_ways(method) for name, method in METHODS.items()})


def resumed(cut):
    """A case: runs of both kinds that go on from checkpoints of both kinds, and what these hold."""

    def run(scratch):
        method, whole, states = METHODS["kakurenbo"], {}, {}
        for kind in ("replicated", "sharded"):
            save = SaveAt(scratch / f"{kind}.ckpt", "on_train_batch_end", *CUTS[cut])
            whole[kind] = train(scratch, method, statistics=kind, callbacks=(save,))
            states[kind] = torch.load(save.path, weights_only=True)["callbacks"]["SampleSelection"]
        ways = [("sharded", "sharded"), ("replicated", "sharded"), ("sharded", "replicated")]
        later = {
            f"{one} to {other}": train(scratch, method, statistics=other, seed=99, resume=scratch / f"{one}.ckpt")
            for one, other in ways
        }
        return {"whole": whole, "states": states, "resumed": later}

    return run


CASES.update({f"share_resume_{cut}": resumed(cut) for cut in CUTS})


def recorded(ranks):
    """Two epochs of records in pieces of seven, merged; what rank 0 has of all rows, and a k-th value and draws."""
    statistics = ShardedStatistics(101, ranks)
    for epoch in range(2):
        order = torch.randperm(101, generator=torch.Generator().manual_seed(epoch))[ranks.rank :: ranks.size]
        for rows in order.split(7):
            values = {"loss": (rows % 10) / 3 + epoch, "confidence": 1 / (rows + 1.0), "correct": rows % 3 == 0}
            Kakurenbo().record(statistics, rows, values, Epoch(epoch))
        statistics.merge()
    return statistics


def in_a_group(scratch):
    """Without a Trainer: what the ranks put together through their process group."""
    if not dist.is_initialized():
        dist.init_process_group(
            "gloo", f"file://{scratch}/group", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"])
        )
    ranks = Collectives(dist.get_rank(), dist.get_world_size())
    statistics = recorded(ranks)
    everyone = torch.ones(len(statistics), dtype=torch.bool)
    found = {
        "kth": [float(statistics.spread.kth_smallest(statistics.loss, everyone, k)) for k in (1, 50, 101)],
        "drawn": statistics.spread.gathered(statistics.spread.some(everyone, 40, torch.Generator().manual_seed(1))).tensor(),
        "rows": statistics.collected(),
        "exchanged": [
            part.tolist() for part in ranks.exchange([np.full(ranks.rank, rank, np.uint8) for rank in range(ranks.size)])
        ],
    }
    return {**found, "sent": ranks.sent}


CASES["share_group"] = CASES["share_group_four"] = in_a_group


def refused(scratch):
    """What a Trainer of two ranks refuses when it is set up, or asks for its loader."""

    def fit(*callbacks, **settings):
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=2,
            strategy="ddp",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            callbacks=[SampleSelection("kakurenbo", statistics="sharded"), *callbacks],
        )
        trainer.fit(Net(), DataLoader(Points(COUNT), BATCH, **settings))

    return {
        "recorder": failing(lambda: fit(RunRecorder(folder=scratch / "record"))),
        "sampler": failing(lambda: fit(sampler=SubsetRandomSampler(range(20)))),
    }


CASES["share_refused"] = refused
