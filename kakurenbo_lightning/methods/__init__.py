"""Selection methods, one file each, and the registry that names them."""

from kakurenbo_lightning.methods.base import Epoch, HideMethod
from kakurenbo_lightning.methods.baseline import Baseline
from kakurenbo_lightning.methods.kakurenbo import Kakurenbo
from kakurenbo_lightning.methods.random_hiding import RandomHiding
from kakurenbo_lightning.methods.registry import available_methods, get_method, register_method

__all__ = [
    "Baseline",
    "Epoch",
    "HideMethod",
    "Kakurenbo",
    "RandomHiding",
    "available_methods",
    "get_method",
    "register_method",
]
