"""Selection methods, one file each, and the registry in which they are looked up by name."""

from kakurenbo_lightning.methods.backprop.base import BackpropMethod, Picked
from kakurenbo_lightning.methods.backprop.katharopoulos import Katharopoulos
from kakurenbo_lightning.methods.backprop.rho_loss import RhoLoss
from kakurenbo_lightning.methods.backprop.sb_fixed import FixedRate
from kakurenbo_lightning.methods.backprop.selective_backprop import SelectiveBackprop, StaleSB
from kakurenbo_lightning.methods.base import Epoch, Method
from kakurenbo_lightning.methods.draw.base import DrawMethod, StreamMethod
from kakurenbo_lightning.methods.draw.iswr import ISWR
from kakurenbo_lightning.methods.draw.owc import LB, NLB, OWC
from kakurenbo_lightning.methods.draw.plb import PEB, PLB
from kakurenbo_lightning.methods.draw.weighted import Weighted
from kakurenbo_lightning.methods.hide.base import Choice, HideMethod
from kakurenbo_lightning.methods.hide.baseline import Baseline
from kakurenbo_lightning.methods.hide.el2n import El2n
from kakurenbo_lightning.methods.hide.forget import Forget, ForgetOnline
from kakurenbo_lightning.methods.hide.ies import IES
from kakurenbo_lightning.methods.hide.infobatch import InfoBatch
from kakurenbo_lightning.methods.hide.kakurenbo import Kakurenbo
from kakurenbo_lightning.methods.hide.orderdp import OrderDP
from kakurenbo_lightning.methods.hide.random import RandomCycle, RandomHiding
from kakurenbo_lightning.methods.hide.rcap import RCAP
from kakurenbo_lightning.methods.hide.seta import SeTa
from kakurenbo_lightning.methods.registry import MethodInfo, available_methods, get_method, register_method

__all__ = [
    "IES",
    "ISWR",
    "LB",
    "NLB",
    "OWC",
    "PEB",
    "PLB",
    "RCAP",
    "BackpropMethod",
    "Baseline",
    "Choice",
    "DrawMethod",
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
    "OrderDP",
    "Picked",
    "RandomCycle",
    "RandomHiding",
    "RhoLoss",
    "SeTa",
    "SelectiveBackprop",
    "StaleSB",
    "StreamMethod",
    "Weighted",
    "available_methods",
    "get_method",
    "register_method",
]
