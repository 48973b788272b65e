"""The cases that ``worker.py`` runs on every rank: ``CASES[name](scratch)`` returns plain tensors and numbers.

``scratch`` is one folder for all ranks of the case.
"""

import os

import numpy as np
import torch
import torch.distributed as dist
from fits import CodedNet, DiceNet, ManualNet, Net, Points, SaveAt, ScoredNet, fit
from forced_methods import Given, Impure
from lightning.pytorch.callbacks import ModelCheckpoint
from shards import shard_of
from torch.utils.data import DistributedSampler, Sampler, SubsetRandomSampler

from kakurenbo_lightning import EpochPlan, SampleStatistics, Saving, SelectionGuard
from kakurenbo_lightning.core.distributed import Ranks
from kakurenbo_lightning.methods import (
    IES,
    RCAP,
    Baseline,
    El2n,
    Forget,
    ForgetOnline,
    InfoBatch,
    Kakurenbo,
    OrderDP,
    RandomCycle,
    RandomHiding,
    SeTa,
)

CASES = {}
COUNT, BATCH, EPOCHS = 45, 4, 5
KAKURENBO = Kakurenbo(max_fraction=0.4, tau=0.5)

# 37 samples in steps of 8: the kept ones leave tails of 5, 4, 3, 2, 1, 0 and 7, and at the end there is less than a step
HIDDEN_COUNTS = (0, 1, 2, 3, 4, 5, 6, 0, 28, 32, 35, 5)


def case(name):
    """Register a case."""

    def register(function):
        CASES[name] = function
        return function

    return register


def plain(name, method, net=Net, **settings):
    """Register a case that is one fit."""
    CASES[name] = lambda scratch: fit(method, net(), **{"count": COUNT, "batch_size": BATCH, "max_epochs": EPOCHS, **settings})


def given(counts, total):
    """Hide ``counts[e]`` samples in epoch ``e``, other ones each time."""
    return Given(tuple(tuple((7 * epoch + i) % total for i in range(count)) for epoch, count in enumerate(counts)))


plain("kakurenbo", KAKURENBO)
plain("random", RandomHiding(max_fraction=0.3))
plain("baseline", Baseline())
plain("infobatch", InfoBatch(end_fraction=0.2), max_epochs=6)
plain("infobatch_returned", InfoBatch(end_fraction=0.2), net=CodedNet, max_epochs=6)
plain("random_unbiased", RandomHiding(max_fraction=0.2, unbiased=True))
plain("random_cycle", RandomCycle(max_fraction=0.3))
plain("forget", Forget(max_fraction=0.3, static_epochs=2), max_epochs=3)
plain("forget_online", ForgetOnline(max_fraction=0.3))
plain("el2n", El2n(max_fraction=0.3, score_epochs=(0, 2)), max_epochs=3)
plain("el2n_score_pass", El2n(max_fraction=0.3, score_epochs=(0, 2), score_pass=True), max_epochs=3)
plain("seta", SeTa(groups=4), max_epochs=6)
plain("orderdp", OrderDP(end_fraction=0.0))
plain("ies", IES(threshold=50.0, window=1, max_fraction=0.5), max_epochs=7)
plain("rcap", RCAP(max_fraction=0.4, fraction_schedule=(1.5, 0.5)))
plain("balanced", Kakurenbo(max_fraction=0.4, tau=0.3, balance="class", protected=(0, 4), every_n_epochs=2, start_epoch=1))
plain("uneven", given(HIDDEN_COUNTS, 37), count=37, max_epochs=len(HIDDEN_COUNTS))
plain("four_ranks", given((0, 1, 3, 4, 5, 8, 28, 33, 2), 37), count=37, batch_size=2, max_epochs=9)
plain("drop_last", KAKURENBO, loader={"drop_last": True})
plain("workers", given((5, 8, 0, 1, 9), COUNT), loader={"num_workers": 2, "persistent_workers": True})
plain("accumulate", given((3, 9, 8, 1, 4), COUNT), accumulate_grad_batches=3)
plain("accumulate_weighted", InfoBatch(end_fraction=0.0), accumulate_grad_batches=2)
plain("accumulate_manual", RandomHiding(max_fraction=0.3), net=ManualNet)
plain("returned", given((3, 8, 8, 1), COUNT), net=CodedNet, max_epochs=4)
plain("sure", Kakurenbo(max_fraction=0.25, tau=0.5), net=lambda: CodedNet(sure=True), count=48)
plain("norm", given((9, 8, 6), COUNT), net=lambda: Net(norm=True), max_epochs=3, limit_val_batches=0)
plain("bf16", KAKURENBO, net=lambda: Net(dtype=torch.float32), precision="bf16-mixed")


BATCH_LOSSES = {"count": COUNT, "batch_size": BATCH, "max_epochs": 6, "selection": {"values": "bls"}}


@case("batch_losses")
def batch_losses(scratch):
    """Losses over batches: an uninterrupted run, and one that goes on from a checkpoint in the middle of an epoch."""
    method, at = InfoBatch(end_fraction=0.0), scratch / "at.ckpt"
    whole = fit(method, DiceNet(), callbacks=[SaveAt(at, 3, 1)], **BATCH_LOSSES)
    return {"whole": whole, "resumed": fit(method, DiceNet(), ckpt_path=at, **BATCH_LOSSES)}


SUBSET = (*range(0, 20, 2), *range(20, 45))  # 35 samples
OF_SUBSET = {"shuffle": None, "sampler": SubsetRandomSampler(SUBSET)}
plain("subset", KAKURENBO, loader=OF_SUBSET)


@case("user_sampler")
def user_sampler(scratch):
    """The user shards the data himself."""
    sampler = DistributedSampler(Points(COUNT), int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["RANK"]))
    return fit(
        KAKURENBO,
        Net(),
        count=COUNT,
        batch_size=BATCH,
        max_epochs=EPOCHS,
        loader={"shuffle": None, "sampler": sampler},
        use_distributed_sampler=False,
    )


@case("impure")
def impure(scratch):
    """Ranks that do not hide the same."""
    return failing(lambda: fit(Impure(), Net(), count=COUNT, batch_size=BATCH, max_epochs=3))


@case("impure_rate")
def impure_rate(scratch):
    """Ranks that hide the same and scale the learning rate differently."""
    return failing(lambda: fit(Impure(hides=False), Net(), count=COUNT, batch_size=BATCH, max_epochs=3))


@case("own_order")
def own_order(scratch):
    """Every rank shuffles for itself."""

    class Shuffled(Sampler):
        def __iter__(self):
            return iter(np.random.default_rng(int(os.environ["RANK"])).permutation(COUNT).tolist())

    return failing(lambda: fit(KAKURENBO, Net(), count=COUNT, batch_size=BATCH, loader={"shuffle": None, "sampler": Shuffled()}))


@case("too_few")
def too_few(scratch):
    """One sample left for two ranks."""
    return failing(lambda: fit(given((0, 8), 9), Net(), count=9, batch_size=BATCH, max_epochs=2))


def failing(run):
    """The error that ``run`` raises, as text."""
    try:
        run()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": "none"}


@case("checkpoint")
def checkpoint(scratch):
    """A checkpoint in the middle of an epoch."""
    saving = ModelCheckpoint(scratch, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    result = fit(KAKURENBO, Net(), count=COUNT, batch_size=BATCH, max_epochs=EPOCHS, callbacks=[saving])
    return {**result, "states": {file.stem: selection_state(file) for file in scratch.glob("*.ckpt")}}


def selection_state(file):
    """What the selection saved."""
    states = torch.load(file, weights_only=True)["callbacks"]
    return next(state for state in states.values() if "statistics" in state)


def resumed(scratch, net, at, counts=(9, 7, 11, 8), among=COUNT, loader=None):
    """An uninterrupted run and one that goes on from its checkpoint, taken after ``at = (epoch, batch)``."""
    settings = {"count": COUNT, "batch_size": BATCH, "max_epochs": len(counts), "loader": loader}
    whole = fit(given(counts, among), net(), callbacks=[SaveAt(scratch / "at.ckpt", *at)], **settings)
    return {"whole": whole, "resumed": fit(given(counts, among), net(), ckpt_path=scratch / "at.ckpt", **settings)}


CASES["resume_epoch_end"] = lambda scratch: resumed(scratch, lambda: Net(norm=True), (1, None))
CASES["resume_mid_epoch"] = lambda scratch: resumed(scratch, lambda: Net(norm=True), (1, 2))
CASES["resume_last_batch"] = lambda scratch: resumed(scratch, lambda: Net(norm=True), (1, 4))
CASES["resume_subset"] = lambda scratch: resumed(scratch, Net, (1, 2), among=len(SUBSET), loader=OF_SUBSET)
CASES["resume_returned"] = lambda scratch: resumed(scratch, CodedNet, (1, None))


GUARD = SelectionGuard("val_acc", max_drop=0.05)
plain("saved", Kakurenbo(tau=0.0), net=lambda: CodedNet(sure=True), selection={"save": Saving(0.1, max_share=0.9)})
plain("guarded", KAKURENBO, net=ScoredNet, selection={"guard": GUARD})


@case("guard_misses")
def guard_misses(scratch):
    """No rank logs what is monitored."""
    return failing(lambda: fit(KAKURENBO, Net(), count=COUNT, batch_size=BATCH, max_epochs=2, selection={"guard": GUARD}))


@case("resume_control")
def resume_control(scratch):
    """Cut in the epoch after a fall."""
    method, save = Kakurenbo(tau=0.0), Saving(0.1, forward=0.3, max_share=0.9)
    settings = {"count": COUNT, "batch_size": BATCH, "max_epochs": 6, "selection": {"save": save, "guard": GUARD}}
    whole = fit(method, ScoredNet(), callbacks=[SaveAt(scratch / "at.ckpt", 2, 1)], **settings)
    return {"whole": whole, "resumed": fit(method, ScoredNet(), ckpt_path=scratch / "at.ckpt", **settings)}


def some_rows(rows, epoch):
    """Values for ``rows`` that differ for every row and epoch, among them all that floats can be."""
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1e-42, -1e-42])
    special = torch.cat([special, torch.tensor([0x7FC12345, -0x3FEDCC]).int().view(torch.float32)])  # NaNs with a payload
    loss = (rows + 1).float() * 10.0**epoch / 3
    loss = torch.where(rows % 3 == 0, special[(rows + epoch) % len(special)], loss)
    return {"loss": loss, "confidence": special.roll(epoch)[rows % len(special)], "correct": (rows + epoch) % 2 == 0}


MERGE_COUNT = 120
# what each merge follows: (epoch, the rows that were seen); row r is seen by rank r % 4
MERGES = (
    (0, torch.arange(0, 100)),
    (1, torch.arange(20, 60)),
    (1, torch.arange(0)),  # nothing new
    (1, torch.arange(60, 90)),  # the rest of the epoch, after a checkpoint in it
    (2, torch.arange(0, 117, 4)),  # only rank 0 saw something
    (3, torch.arange(5, 116)),
)


@case("merge")
def merge(scratch):
    """Columns after each merge and those of one process that saw everything, as integers: their bits.

    The last merge comes after a round trip through a saved state.
    """
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    statistics, alone = SampleStatistics(MERGE_COUNT), SampleStatistics(MERGE_COUNT)
    after = {"after": [], "alone": []}
    for number, (epoch, rows) in enumerate(MERGES):
        if number == len(MERGES) - 1:
            state = statistics.state_dict()
            statistics = SampleStatistics(MERGE_COUNT)
            statistics.load_state_dict(state)
        mine = rows[rows % world_size == rank]
        statistics.record(mine, some_rows(mine, epoch), epoch)
        statistics.merge()
        alone.record(rows, some_rows(rows, epoch), epoch)
        after["after"].append(bits(statistics.state_dict()))
        after["alone"].append(bits(alone.state_dict()))
    return after


def bits(columns):
    """Floats as the integers with the same bits, so that equality sees NaN and -0.0."""
    return {name: column.view(torch.int32) if column.is_floating_point() else column for name, column in columns.items()}


DEALS = [(count, batch, drop_last) for count in (8, 29, 64, 67, 101) for batch in (1, 2, 8) for drop_last in (False, True)]


@case("deal")
def dealt(scratch):
    """Each rank's share, dealt in its own process with its own global random state."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    torch.manual_seed(rank)
    shares = []
    for count, batch, drop_last in DEALS:
        if drop_last and count < batch * world_size:
            shares.append([])
            continue
        share = shard_of(EpochPlan.everything(count), batch, world_size, rank, drop_last=drop_last, seed=5, epoch=2)
        shares.append([share.step(step) for step in range(share.steps)])
    return {"deals": DEALS, "shares": shares}


@case("meet_four")
def meet(scratch):
    """Four processes that are two ranks, what the ranks exchange, and processes that do not fit together."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    process = dist.get_rank()
    ranks = Ranks.of({"rank": process // 2, "num_replicas": 2}).meet(9, "data", "here")
    works, own = [], torch.tensor([process])
    tensors = ranks.gather_tensors(own, works)
    for work in works:
        work.wait()
    alone = Ranks.of({"rank": process, "num_replicas": 4}).meet(9, "data", "here")
    return {
        "recorders": list(ranks.recorders),
        "is_recorder": ranks.is_recorder,
        "gathered": ranks.gather(process),
        "tensors": torch.cat(tensors).tolist(),
        "sum": int(ranks.sum(own + 1)),
        "agreed": ranks.agreed({"loss": own + 0.5, "correct": own == 1, "target": own})["loss"].tolist(),
        "agreed_bool": ranks.agreed({"correct": own == 2})["correct"].tolist(),
        "alone": [alone.is_recorder, alone.gather(process), int(alone.sum(own + 1)), alone.peers is None],
        "wrong": [
            _refused(Ranks.of({"rank": process // 2, "num_replicas": 4 if process == 3 else 2})),
            _refused(Ranks.of({"rank": int(process == 3), "num_replicas": 2})),
            _refused(Ranks.of({"rank": process // 2, "num_replicas": 2}), f"data of {process // 3}"),
        ],
    }


def _refused(ranks, fingerprint="data"):
    return failing(lambda: ranks.meet(9, fingerprint, "here"))["error"]
