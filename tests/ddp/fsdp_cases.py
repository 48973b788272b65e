"""Cases of strategies that shard the parameters; each returns the same training under DDP and under ``ModelParallelStrategy``."""

import faulthandler
import os
import resource
import shutil
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from cases import CASES, case, failing
from fits import CLASSES, FEATURES, Points, SaveAt, copy_of
from flow_cases import flow
from flows import SizedFlow
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, loss_parallel, parallelize_module
from torch.utils.data import DataLoader

from kakurenbo_lightning import SampleSelection, available_methods
from kakurenbo_lightning.methods import RhoLoss
from recipes.benchmarks.fault_run import irreducible_table
from recipes.benchmarks.forked import free_port

COUNT, BATCH, EPOCHS = 45, 4, 4
# of methods that would hide next to nothing here by default
SETTINGS = {
    "kakurenbo": {"max_fraction": 0.5, "tau": 0.5},
    "forget": {"static_epochs": 2},
    "el2n": {"score_epochs": (0, 2)},
    "forget_online": {"start_epoch": 1},
    "ies": {"threshold": 50.0, "window": 1, "max_fraction": 0.5},
    "stale_sb": {"staleness": 2},
    "sb_fixed": {"start": 0.2, "end": 0.8},
    "katharopoulos": {"threshold": 0.0},
    "weighted": {"weights": [1.0 + i % 5 for i in range(COUNT)], "unbiased": True},
}


def settings_of(method):
    return {"fraction": 0.5, "irreducible": irreducible_table(COUNT)} if method == "rho_loss" else SETTINGS.get(method, {})


class ShardedNet(pl.LightningModule):
    """With dropout, momentum and a schedule by step; ``configure_model`` shards it as the mesh says, where there is one.

    Args:
        dropout: 0 to compare with tensor parallelism, where the processes of a rank leave out features of their own.

    Attributes:
        trained: the indices of each training step.
    """

    def __init__(self, dropout=0.1):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, CLASSES)).double()
        self.trained = []

    def configure_model(self):
        if self.device_mesh is None:
            return
        data, tensor = self.device_mesh["data_parallel"], self.device_mesh["tensor_parallel"]
        if tensor.size() > 1:
            parallelize_module(self.network, tensor, {"0": ColwiseParallel(), "3": RowwiseParallel()})
        if data.size() > 1 or tensor.size() == 1:
            fully_shard(self.network[0], mesh=data)
            fully_shard(self.network, mesh=data)

    def training_step(self, batch, batch_idx):
        if self.training:
            self.trained.append(batch[2].clone())
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.network(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class SplitNet(ShardedNet):
    """Its classes are split over a tensor-parallel group, and so is the loss."""

    def configure_model(self):
        last = RowwiseParallel(output_layouts=Shard(-1), use_local_output=False)
        parallelize_module(self.network, self.device_mesh["tensor_parallel"], {"0": ColwiseParallel(), "3": last})

    def training_step(self, batch, batch_idx):
        with loss_parallel():
            return super().training_step(batch, batch_idx)


class Course(pl.Callback):
    """Writes down what each epoch hid and trained. Comes after the selection."""

    def __init__(self, selection):
        self.selection, self.epochs = selection, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch in self.epochs:
            return
        pl_module.trained = []
        plan = self.selection.plan
        self.epochs[trainer.current_epoch] = {
            "hidden": plan.hidden,
            "checksum": plan.checksum(),
            "trained": pl_module.trained,
            "statistics": self.selection.statistics.state_dict(),
        }


def whole(tensors):
    """Distributed tensors as they are on one process."""
    return {name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone() for name, value in tensors}


def course(
    method, strategy, callbacks=(), ckpt_path=None, dropout=0.1, made=ShardedNet, train=None, statistics="replicated", **settings
):
    """Train on all processes, on ``train`` where it is given, and return what happened."""
    torch.manual_seed(0)
    world_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    selection, net = SampleSelection(method, seed=3, statistics=statistics, **settings_of(method)), made(dropout)
    record = Course(selection)
    usual = {"max_epochs": EPOCHS, "logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy=strategy,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[selection, record, *callbacks],
        **{**usual, **settings},
    )
    data = Points(COUNT)
    with warnings.catch_warnings(record=True) as warned:
        trainer.fit(
            net, DataLoader(data, BATCH, shuffle=True) if train is None else train, DataLoader(data, 8), ckpt_path=ckpt_path
        )
    return {
        "epochs": record.epochs,
        "weights": whole(net.named_parameters()),
        "statistics": copy_of(selection.statistics.state_dict()),
        "global_step": trainer.global_step,
        "totals": {name: value for name, value in asdict(selection.totals).items() if name.startswith("samples")},
        "warnings": [str(warning.message) for warning in warned],
    }


def fsdp2(**settings):
    """Data-parallel on all processes."""
    return ModelParallelStrategy(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1, **settings)


def beside(method):
    """The same training under DDP and under FSDP2."""
    return {"ddp": course(method, "ddp"), "sharded": course(method, fsdp2())}


def cut(scratch, method, at, whole_file=False):
    """A training that is not interrupted, and one that goes on from its checkpoint, a folder (a file for ``whole_file``)."""
    path, kind = scratch / "at.ckpt", {"save_distributed_checkpoint": not whole_file}
    whole = course(method, fsdp2(**kind), callbacks=[SaveAt(path, *at)])
    return {"path": str(path), "whole": whole, "resumed": course(method, fsdp2(**kind), ckpt_path=path)}


METHODS = available_methods()
for name in METHODS:
    CASES[f"fsdp2_{name}"] = lambda scratch, name=name: beside(name)
    CASES[f"tensor_parallel_{name}"] = lambda scratch, name=name: two_by_two(name)
    CASES[f"data_parallel_{name}"] = lambda scratch, name=name: course(name, "ddp", dropout=0)
for name in ("kakurenbo", "selective_backprop", "plb", "forget"):
    CASES[f"fsdp2_cut_{name}"] = lambda scratch, name=name: cut(scratch, name, (1, 2))
CASES["fsdp2_cut_last"] = lambda scratch: cut(scratch, "kakurenbo", (1, 5))
CASES["fsdp2_cut_end"] = lambda scratch: cut(scratch, "kakurenbo", (1, None))
CASES["fsdp2_cut_file"] = lambda scratch: cut(scratch, "kakurenbo", (1, 2), whole_file=True)
CASES["fsdp2_cut_scoring"] = lambda scratch: cut(scratch, "forget", (0, 2))


def two_by_two(method, callbacks=(), ckpt_path=None):
    """The training of two data-parallel ranks of two processes each."""
    return course(method, ModelParallelStrategy(2, 2), callbacks, ckpt_path, dropout=0)


KINDS, SHARED = ("replicated", "sharded"), ("kakurenbo", "infobatch", "forget")  # the last one starts the training again
for name in SHARED:
    CASES[f"fsdp2_share_{name}"] = lambda scratch, name=name: {kind: course(name, fsdp2(), statistics=kind) for kind in KINDS}


@case("fsdp2_share_cut")
def share_cut(scratch):
    """Shares of the statistics go on from a checkpoint of all rows, within an epoch, and all rows from one of shares."""
    whole = {kind: course("kakurenbo", fsdp2(), [SaveAt(scratch / f"{kind}.ckpt", 1, 2)], statistics=kind) for kind in KINDS}
    ways = dict(zip(KINDS, reversed(KINDS), strict=True))
    resumed = {
        other: course("kakurenbo", fsdp2(), ckpt_path=scratch / f"{kind}.ckpt", statistics=other) for kind, other in ways.items()
    }
    return {"whole": whole, "resumed": resumed}


@case("tensor_parallel_share")
def tensor_parallel_share(scratch):
    """Each of the four processes has a share of the rows; two of them record."""
    return {kind: course("kakurenbo", ModelParallelStrategy(2, 2), dropout=0, statistics=kind) for kind in KINDS}


@case("tensor_parallel_cut")
def tensor_parallel_cut(scratch):
    """Cut within an epoch."""
    whole = two_by_two("kakurenbo", [SaveAt(scratch / "at.ckpt", 1, 2)])
    return {"whole": whole, "resumed": two_by_two("kakurenbo", ckpt_path=scratch / "at.ckpt")}


def held_out():
    """A model of irreducible losses, which nobody shards."""
    model = ShardedNet()
    with torch.no_grad():
        weight = model.network[0].weight
        weight.add_(torch.linspace(-1, 1, weight.numel()).view_as(weight))
    return model


def rho(irreducible, strategy, **settings):
    return course(RhoLoss(fraction=0.5, irreducible=irreducible), strategy, **settings)


@case("fsdp2_rho_model")
def rho_by_a_model(scratch):
    """Under DDP and FSDP2, cut and resumed, and by a table of the same losses."""
    model, points, path = held_out().eval(), Points(COUNT), scratch / "at.ckpt"
    with torch.no_grad():
        losses = F.cross_entropy(model.network(points.x), points.y, reduction="none")
    table = scratch / f"table{os.environ['RANK']}.pt"
    torch.save({"irreducible": losses.float()}, table)
    return {
        "ddp": rho(held_out(), "ddp"),
        "sharded": rho(held_out(), fsdp2(), callbacks=[SaveAt(path, 1, 2)]),
        "resumed": rho(held_out(), fsdp2(), ckpt_path=path),
        "by_table": rho(table, fsdp2()),
    }


@case("fsdp2_rho_flow")
def rho_of_iterable_data(scratch):
    """Under DDP and FSDP2."""
    return {
        name: rho(held_out(), kind(), train=flow(SizedFlow)) for name, kind in {"ddp": lambda: "ddp", "sharded": fsdp2}.items()
    }


@case("fsdp2_elastic")
def elastic(scratch):
    """What two processes leave in the middle of epoch 1 one goes on with, and what that leaves in the middle of epoch 2 two."""
    faulthandler.dump_traceback_later(240, exit=True)  # another process has to start
    two = course("kakurenbo", fsdp2(), [SaveAt(scratch / "two.ckpt", 1, 2)])
    if os.environ["RANK"] == "0":
        world = {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_PORT": str(free_port())}
        world["PYTHONPATH"] = os.pathsep.join(sys.path)  # where this process found the tests' own modules
        subprocess.run([sys.executable, __file__, str(scratch)], env=os.environ | world, check=True, timeout=200)
    dist.barrier()
    again = course("kakurenbo", fsdp2(), ckpt_path=scratch / "one.ckpt")
    return {"two": two, "one": torch.load(scratch / "one.pt", weights_only=True), "again": again}


def first_byte_of_a_checksum(content):
    content[content.index(b"PK\x01\x02") + 16] ^= 1
    return content


def half(content):
    return content[: len(content) // 2]


def first_tensor(content):
    return content[: content.index(b"PK\x03\x04", content.index(b"PK\x05\x06"))]


# what of a folder is damaged, and how: ``None`` for a file that is not there
DAMAGES = {
    "changed": ("__1_0.distcp", first_byte_of_a_checksum),
    "shard": ("__1_0.distcp", None),
    "half shard": ("__1_0.distcp", half),
    "first tensor": ("__1_0.distcp", first_tensor),
    "list": (".metadata", None),
    "half list": (".metadata", half),
    "meta": ("meta.pt", None),
    "half meta": ("meta.pt", half),
}


def resuming(path, damage=None):
    """The error of a training that goes on from ``path``, to which the first process does ``damage`` before."""
    if os.environ["RANK"] == "0" and damage is not None:
        damage()
    dist.barrier()
    return failing(lambda: course("kakurenbo", fsdp2(), ckpt_path=path))["error"]


@case("fsdp2_damaged")
def damaged(scratch):
    """The error of each damage."""
    course("kakurenbo", fsdp2(), [SaveAt(scratch / "at.ckpt", 1, 2)])

    def error(name):
        file, change = DAMAGES[name]
        path = shutil.copytree(scratch / "at.ckpt", scratch / name / "at.ckpt") / file if os.environ["RANK"] == "0" else None

        def damage():
            content = bytearray(path.read_bytes())
            path.unlink()
            if change is not None:
                path.write_bytes(change(content))

        return resuming(scratch / name / "at.ckpt", damage)

    return {name: error(name) for name in DAMAGES}


@case("fsdp2_unfinished")
def unfinished(scratch):
    """``last.ckpt`` is saved over, and the disk of the second process takes no more before its shard is begun."""
    path = scratch / "last.ckpt"
    course("kakurenbo", fsdp2(), [SaveAt(path, 1, 2)])
    old = (path / "__1_0.distcp").read_bytes()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Full(SaveAt):
        def on_train_batch_end(self, trainer, *args):
            if os.environ["RANK"] == "1" and trainer.current_epoch == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, unlimited[1]))
            super().on_train_batch_end(trainer, *args)

    try:
        course("kakurenbo", fsdp2(), [Full(path, 2, 2)])
        saving = "none"
    except CheckpointException as error:
        saving = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    dist.barrier()
    cut = (path / "__1_0.distcp").stat().st_size < len(old)
    dist.barrier()
    return {"saving": saving, "cut": cut, "error": resuming(path, lambda: (path / "__1_0.distcp").write_bytes(old))}


class CheckpointedNet(ShardedNet):
    """Its first layer keeps no activations."""

    def configure_model(self):
        super().configure_model()
        self.network[0] = checkpoint_wrapper(self.network[0])


class CompiledNet(ShardedNet):
    def configure_model(self):
        super().configure_model()
        self.network = torch.compile(self.network, backend="eager")


for name, made in {"fsdp2_checkpointed": CheckpointedNet, "fsdp2_compiled": CompiledNet}.items():
    CASES[name] = lambda scratch, made=made: [course("forget", fsdp2(), made=each) for each in (ShardedNet, made)]


@case("fsdp2_mesh")
def other_mesh(scratch):
    """The second process shards parameters where the first one splits layers."""
    mesh = ModelParallelStrategy(2, 1) if os.environ["RANK"] == "1" else ModelParallelStrategy(1, 2)
    return failing(lambda: course("kakurenbo", mesh))


@case("fsdp2_distributed_loss")
def distributed_loss(scratch):
    """The last layer's logits are split over the processes, and the loss is made of the parts."""
    return failing(lambda: course("kakurenbo", ModelParallelStrategy(1, 2), made=SplitNet))


@case("tensor_parallel_alone")
def tensor_parallel_alone(scratch):
    """One data-parallel rank of two processes."""
    return course("plb", ModelParallelStrategy(1, 2))


if __name__ == "__main__":  # one process, of the case above
    folder = Path(sys.argv[1])
    torch.save(course("kakurenbo", fsdp2(), [SaveAt(folder / "one.ckpt", 2, 3)], folder / "two.ckpt"), folder / "one.pt")
