"""Train on fewer samples and lose nothing: sample selection as a PyTorch Lightning callback."""

from kakurenbo_lightning.callback import SampleSelection
from kakurenbo_lightning.core.plan import EpochPlan
from kakurenbo_lightning.core.sampler import SelectionSampler
from kakurenbo_lightning.core.seeded_dataset import SeededDataset
from kakurenbo_lightning.core.statistics import Column, SampleStatistics
from kakurenbo_lightning.errors import DamagedCheckpointError, MismatchError
from kakurenbo_lightning.methods import Choice, Epoch, HideMethod, available_methods, get_method, register_method
from kakurenbo_lightning.trainer.checkpoint_io import AtomicCheckpointIO

__version__ = "0.1.0"

__all__ = [
    "AtomicCheckpointIO",
    "Choice",
    "Column",
    "DamagedCheckpointError",
    "Epoch",
    "EpochPlan",
    "HideMethod",
    "MismatchError",
    "SampleSelection",
    "SampleStatistics",
    "SeededDataset",
    "SelectionSampler",
    "available_methods",
    "get_method",
    "register_method",
]
