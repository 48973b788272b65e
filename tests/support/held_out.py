"""A model of irreducible losses, as one has it after a training on other data. Needs no pytest, ranks import it."""

from functools import cache

import torch
import torch.nn.functional as F
from helpers import Net, Points

from kakurenbo_lightning.methods.backprop.rho_loss import RhoLoss


@cache
def _weights():
    net, points = Net(dropout=0.0), Points(32, noise=3.0, seed=1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(net.network(points.x), points.y).backward()
        optimizer.step()
    return net.state_dict()


def held_out(kind=Net, **settings):
    """A model that was trained on 32 other points. It is in train mode, with dropout, and its parameters ask for gradients."""
    module = kind(**settings)
    module.load_state_dict(_weights())
    return module.train()


def rho(module=None, **settings):
    """The method with this model."""
    return RhoLoss(irreducible=held_out() if module is None else module, **{"fraction": 0.5, **settings})


def losses_of(module, points):
    """``float32[N]``, the loss of each point in eval mode."""
    before = module.training
    with torch.no_grad():
        losses = F.cross_entropy(module.eval().network(points.x), points.y, reduction="none")
    module.train(before)
    return losses
