"""Shards of plans, and an adapter for engines that are driven by hand."""

from types import SimpleNamespace

from kakurenbo_lightning.core.distributed import Ranks
from kakurenbo_lightning.core.shard import Layout


def shard_of(plan, batch_size, world_size=1, rank=0, **options):
    """One rank's part of ``plan``."""
    return plan.shard(Layout(batch_size, world_size, rank, **options))


def lone_adapter():
    """What an engine asks of a Trainer when no Trainer drives it."""
    return SimpleNamespace(trainer=None, ranks=Ranks())
