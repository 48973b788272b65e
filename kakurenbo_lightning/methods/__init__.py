"""Selection methods, one file each, and the registry that names them."""

from kakurenbo_lightning.methods.backprop import BackpropMethod, Picked
from kakurenbo_lightning.methods.base import Epoch, Method
from kakurenbo_lightning.methods.baseline import Baseline
from kakurenbo_lightning.methods.el2n import El2n
from kakurenbo_lightning.methods.forget import Forget
from kakurenbo_lightning.methods.forget_online import ForgetOnline
from kakurenbo_lightning.methods.hiding import Choice, HideMethod
from kakurenbo_lightning.methods.infobatch import InfoBatch
from kakurenbo_lightning.methods.iswr import ISWR
from kakurenbo_lightning.methods.kakurenbo import Kakurenbo
from kakurenbo_lightning.methods.katharopoulos import Katharopoulos
from kakurenbo_lightning.methods.lb import LB
from kakurenbo_lightning.methods.nlb import NLB
from kakurenbo_lightning.methods.owc import OWC
from kakurenbo_lightning.methods.peb import PEB
from kakurenbo_lightning.methods.plb import PLB
from kakurenbo_lightning.methods.pod import PoDMethod, StreamMethod
from kakurenbo_lightning.methods.random import RandomHiding
from kakurenbo_lightning.methods.random_cycle import RandomCycle
from kakurenbo_lightning.methods.registry import MethodInfo, available_methods, get_method, register_method
from kakurenbo_lightning.methods.rho_loss import RhoLoss
from kakurenbo_lightning.methods.sb_fixed import FixedRate
from kakurenbo_lightning.methods.selective_backprop import SelectiveBackprop
from kakurenbo_lightning.methods.seta import SeTa
from kakurenbo_lightning.methods.stale_sb import StaleSB

__all__ = [
    "ISWR",
    "LB",
    "NLB",
    "OWC",
    "PEB",
    "PLB",
    "BackpropMethod",
    "Baseline",
    "Choice",
    "El2n",
    "Epoch",
    "FixedRate",
    "Forget",
    "ForgetOnline",
    "HideMethod",
    "InfoBatch",
    "Kakurenbo",
    "Katharopoulos",
    "Method",
    "MethodInfo",
    "Picked",
    "PoDMethod",
    "RandomCycle",
    "RandomHiding",
    "RhoLoss",
    "SeTa",
    "SelectiveBackprop",
    "StaleSB",
    "StreamMethod",
    "available_methods",
    "get_method",
    "register_method",
]
