"""Selection methods, one file each, and the registry that names them."""

from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.methods.baseline import Baseline
from kakurenbo_lightning.methods.el2n import El2n
from kakurenbo_lightning.methods.forget import Forget
from kakurenbo_lightning.methods.forget_online import ForgetOnline
from kakurenbo_lightning.methods.hiding import Choice, HideMethod
from kakurenbo_lightning.methods.infobatch import InfoBatch
from kakurenbo_lightning.methods.kakurenbo import Kakurenbo
from kakurenbo_lightning.methods.random import RandomHiding
from kakurenbo_lightning.methods.random_cycle import RandomCycle
from kakurenbo_lightning.methods.registry import MethodInfo, available_methods, get_method, register_method
from kakurenbo_lightning.methods.seta import SeTa

__all__ = [
    "Baseline",
    "Choice",
    "El2n",
    "Epoch",
    "Forget",
    "ForgetOnline",
    "HideMethod",
    "InfoBatch",
    "Kakurenbo",
    "MethodInfo",
    "RandomCycle",
    "RandomHiding",
    "SeTa",
    "available_methods",
    "get_method",
    "register_method",
]
