"""Cases of the PoD family; :mod:`worker` runs them with those of ``cases.py``."""

import os
from dataclasses import asdict

import lightning.pytorch as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from cases import CASES
from fits import Net, Points, SaveAt, copy_of
from torch.utils.data import DataLoader

from kakurenbo_lightning import EpochPlan, SampleSelection, SampleStatistics
from kakurenbo_lightning.methods import ISWR, LB, NLB, OWC, PEB, PLB, Weighted

COUNT, BATCH, EPOCHS = 45, 4, 3
FIXED = torch.linspace(0.2, 4, COUNT, dtype=torch.float64)


class LogitsNet(Net):
    """Writes down what the training steps saw: ``seen``, of each ``(indices, logits)``."""

    def __init__(self, told=None):
        super().__init__()
        self.seen, self.told = [], told

    def training_step(self, batch, batch_idx):
        logits = self.network(batch[0])
        if self.training:
            self.seen.append((batch[2].clone(), logits.detach().clone()))
        else:
            self.looked.append({"indices": batch[2].clone(), "logits": logits.detach().clone()})
        if self.told is None:
            return F.cross_entropy(logits, batch[1])
        return {"loss": F.cross_entropy(logits, batch[1]), "sample_loss": self.told[batch[2]]}


class RankedNet(LogitsNet):
    """Tells losses by step, rank and place in the batch, so that no two observations are equal."""

    def training_step(self, batch, batch_idx):
        outputs = super().training_step(batch, batch_idx)
        rank, size = self.trainer.global_rank, len(batch[2])
        place = 1.0 + batch_idx + rank / 4 + torch.arange(size) / (8 * size)
        return {"loss": outputs, "sample_loss": place.double() if self.training else torch.ones(size, dtype=torch.float64)}


class SilentNet(LogitsNet):
    """Optimizes by itself and returns nothing; on rank 1 every third step calls no criterion that is known, so nothing is observed."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        logits = self.network(batch[0])
        self.seen.append((batch[2].clone(), logits.detach().clone()))
        if self.trainer.global_rank == 1 and batch_idx % 3 == 1:
            loss = -logits.log_softmax(1).gather(1, batch[1][:, None]).mean()
        else:
            loss = F.cross_entropy(logits, batch[1])
        self.manual_backward(loss)
        optimizer.step()


class Streamed(pl.Callback):
    """Writes down, per epoch, what each step drew and trained and what the table holds; comes after the selection."""

    def __init__(self, selection):
        self.selection, self.epochs = selection, {}

    def on_train_epoch_start(self, trainer, pl_module):
        self._begin(trainer, pl_module)

    def _begin(self, trainer, pl_module):
        self.epochs[trainer.current_epoch] = {
            "trained": [],
            "drawn": [],
            "weights": [],
            "written": [],
            "scored": pl_module.looked,
            "hidden": torch.arange(0),
            "lr_factor": 1.0,
            "loss_weights": torch.ones(COUNT),
            "table_before": self._table(),
        }
        pl_module.looked, pl_module.seen = [], []
        plan = self.selection.plan
        if isinstance(plan, EpochPlan):
            if plan.weights is not None:
                self.epochs[trainer.current_epoch]["loss_weights"] = plan.weights
            self.epochs[trainer.current_epoch]["planned"] = plan.indices

    def _table(self):
        engine = self.selection.session.engine
        return engine.shared_state()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch not in self.epochs:  # resumed within it
            self._begin(trainer, pl_module)
        epoch = self.epochs[trainer.current_epoch]
        epoch["trained"].append(batch[2].clone())
        if epoch["table_before"] is not None:
            drawn = self.selection.session.engine.drawn(batch_idx)
            epoch["drawn"].append(drawn.indices.clone())
            epoch["weights"].append(torch.ones(len(drawn.indices)) if drawn.weights is None else drawn.weights)
            epoch["written"].append(drawn.written)

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch not in self.epochs:  # resumed after its last batch
            self._begin(trainer, pl_module)
        epoch = self.epochs[trainer.current_epoch]
        epoch["table"] = self._table()
        epoch["seen"] = pl_module.seen
        epoch["logged"] = {
            name.removeprefix("selection/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if not name.endswith("seconds")
        }


class SaveInside(SaveAt):
    """Saves within step ``batch`` of ``epoch``, which a resumed run makes again."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        SaveAt.on_train_batch_end(self, trainer, pl_module, None, None, trainer.fit_loop.batch_idx)

    def on_train_batch_end(self, *_):
        """Not here."""


def streamed(method, *callbacks, first=(), net=None, workers=0, ckpt_path=None, count=COUNT, batch_size=BATCH, **settings):
    """Train on all ranks and return what each step did."""
    world_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    selection, net = SampleSelection(method, seed=3), net or LogitsNet()
    steps = Streamed(selection)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy="ddp" if world_size > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*first, selection, steps, *callbacks],
        **{"max_epochs": EPOCHS, **settings},
    )
    train = DataLoader(Points(count), batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    trainer.fit(net, train, ckpt_path=ckpt_path)
    return {
        "epochs": steps.epochs,
        "weights": copy_of(net.state_dict()),
        "statistics": selection.statistics.state_dict(),
        "global_step": trainer.global_step,
        "totals": {name: value for name, value in asdict(selection.totals).items() if name.startswith("samples")},
    }


def case(name, method, **options):
    """Register a case that is one fit."""
    CASES[name] = lambda scratch: streamed(method, **options)


case("owc", OWC())
case("lb", LB())
case("nlb", NLB())
case("plb", PLB())
case("peb", PEB())
case("plb_four", PLB(epoch_length=20))
case("plb_unbiased", PLB(unbiased=True, mix=0.2))
case("plb_pretrained", PLB(pretrain_epochs=1))
case("plb_looking", PLB(refresh_share=0.2, diagnose=9, epoch_length=4))
case("plb_exchange", PLB(exchange_every=3, epoch_length=14))
case("lb_exchange", LB(exchange_every=3, epoch_length=14))
case("plb_exchange_limited", PLB(exchange_every=3, epoch_length=14), limit_train_batches=5)
case("plb_workers", PLB(epoch_length=24), workers=2)
case("plb_bounded", PLB(epoch_length=24, max_staleness=3, exchange_every=2), workers=2)
case("plb_fixed", PLB(epoch_length=400), net=LogitsNet(FIXED), max_epochs=2)
case("plb_ranked", PLB(epoch_length=12), net=RankedNet(), count=10, max_epochs=2)
case("plb_accumulate", PLB(), accumulate_grad_batches=2)
case("owc_silent", OWC(epoch_length=14), net=SilentNet())
case("iswr", ISWR())
case("iswr_unbiased", ISWR(unbiased=True, mix=0.3))
case("weighted", Weighted(weights=[1.0 + i % 4 for i in range(COUNT)], unbiased=True))


def cut(scratch, method, at, **options):
    """An uninterrupted run and one that goes on from its checkpoint, taken after ``at = (epoch, batch)``."""
    whole = streamed(method, SaveAt(scratch / "at.ckpt", *at), **options)
    return {"whole": whole, "resumed": streamed(method, ckpt_path=scratch / "at.ckpt", **options)}


CASES["plb_cut"] = lambda scratch: cut(scratch, PLB(unbiased=True, mix=0.2), (1, 2))
CASES["lb_cut"] = lambda scratch: cut(scratch, LB(), (1, 2))
CASES["owc_cut"] = lambda scratch: cut(scratch, OWC(), (0, None))
CASES["plb_cut_exchange"] = lambda scratch: cut(scratch, PLB(exchange_every=3, epoch_length=14), (1, 4))
CASES["plb_cut_last"] = lambda scratch: cut(scratch, PLB(exchange_every=3, epoch_length=14), (1, 6))
CASES["plb_cut_workers"] = lambda scratch: cut(scratch, PLB(epoch_length=24), (1, 5), workers=2)
CASES["iswr_cut"] = lambda scratch: cut(scratch, ISWR(), (1, 2))
CASES["weighted_cut"] = lambda scratch: cut(
    scratch, Weighted(weights=lambda epoch: [1.0 + (i + epoch) % 4 for i in range(COUNT)]), (1, 2)
)


def cut_otherwise(scratch, method, save, first=False):
    """As :func:`cut`, saved by a callback that comes before the selection, or at another moment."""
    saving = {"first": (save,)} if first else {}
    whole = streamed(method, *(() if first else (save,)), **saving)
    return {"whole": whole, "resumed": streamed(method, ckpt_path=save.path)}


CASES["lb_cut_first"] = lambda scratch: cut_otherwise(scratch, LB(), SaveAt(scratch / "at.ckpt", 1, 2), first=True)
for every in (1, 3):
    CASES[f"lb_cut_inside_{every}"] = lambda scratch, every=every: cut_otherwise(
        scratch, LB(exchange_every=every, epoch_length=14), SaveInside(scratch / "at.ckpt", 1, 4)
    )
    CASES[f"lb_cut_inside_due_{every}"] = lambda scratch, every=every: cut_otherwise(
        scratch, LB(exchange_every=every, epoch_length=14), SaveInside(scratch / "at.ckpt", 1, 5)
    )

# (epoch, step) of each record: ranks see some samples both, some twice, and some in several steps
RECORDS = [(epoch, step) for epoch in range(3) for step in range(5)]
MERGED_AFTER = {"once": {4, 9, 14}, "often": {0, 2, 4, 5, 9, 11, 12, 14}}


def rows_of(rank, epoch, step):
    """What ``rank`` sees in a step, and the loss: every record of a sample has another one."""
    generator = torch.Generator().manual_seed(1000 * epoch + 10 * step + rank)
    rows = torch.randint(20, (6,), generator=generator)
    return rows, epoch * 1000.0 + step * 100 + rank * 10 + torch.arange(6.0)


@(lambda function: CASES.update(merge_repeats=function))
def merge_repeats(scratch):
    """Columns after each epoch, merged at its end only and also within it, and those of one process that saw it all in order."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    found = {name: [] for name in (*MERGED_AFTER, "alone")}
    for name, merged_after in MERGED_AFTER.items():
        statistics = SampleStatistics(20, repeats=True)
        for number, (epoch, step) in enumerate(RECORDS):
            rows, loss = rows_of(rank, epoch, step)
            statistics.record(rows, {"loss": loss, "correct": loss % 2 == 0, "confidence": loss / 4096}, epoch)
            if number in merged_after:
                statistics.merge()
            if step == 4:
                found[name].append(statistics.state_dict())
    losses, seen = torch.full((20,), float("nan")), torch.full((20,), -1, dtype=torch.int16)
    for epoch, step in RECORDS:
        for other in range(world_size):
            for row, loss in zip(*rows_of(other, epoch, step), strict=True):
                losses[row], seen[row] = loss, epoch
        if step == 4:
            found["alone"].append({"loss": losses.clone(), "epoch_seen": seen.clone()})
    return found
