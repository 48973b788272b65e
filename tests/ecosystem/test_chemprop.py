"""chemprop's own LightningModule on molecules: its batches are of a class of its own, its losses are torchmetrics."""

import numpy as np
import pytest
from chemprop import data, models, nn
from foreign import BATCH, INDIVISIBLE, METHODS, NO_PREDICTIONS, Case, Training, check

PACKAGE = "chemprop"
ALKANES = [f"C{'C' * length}{tail}" for length in range(12) for tail in ("", "O", "N", "C(=O)O")]


def molecules(targets, weights=None):
    """A loader of 48 molecules with rows of ``targets``."""
    weights = np.ones(len(targets)) if weights is None else weights
    points = [
        data.MoleculeDatapoint.from_smi(smiles, target, weight=weight)
        for smiles, target, weight in zip(ALKANES, targets, weights, strict=True)
    ]
    return data.build_dataloader(data.MoleculeDataset(points), batch_size=BATCH, shuffle=True)


def network(predictor):
    """chemprop's message passing network with ``predictor`` at its end."""
    return models.MPNN(nn.BondMessagePassing(d_h=16, depth=2), nn.MeanAggregation(), predictor)


def targets(tasks=1):
    return np.random.default_rng(0).normal(size=(len(ALKANES), tasks))


def regression():
    return Training(network(nn.RegressionFFN(input_dim=16)), molecules(targets()))


def weighted():
    weights = np.random.default_rng(1).uniform(0.2, 3, len(ALKANES))
    return Training(network(nn.RegressionFFN(input_dim=16)), molecules(targets(), weights))


def variance():
    return Training(network(nn.MveFFN(input_dim=16)), molecules(targets()))


def tasks_with_gaps():
    values = targets(3)
    values[np.random.default_rng(2).random(values.shape) < 0.3] = np.nan
    values[:, 0] = 1.0
    return Training(
        network(nn.RegressionFFN(input_dim=16, n_tasks=3)),
        molecules(values),
        terms=lambda molecule: np.isfinite(molecule.y).sum(),
    )


def rmse():
    return Training(network(nn.RegressionFFN(input_dim=16, criterion=nn.metrics.RMSE())), molecules(targets()), terms=None)


def binary():
    return Training(network(nn.BinaryClassificationFFN(input_dim=16)), molecules((targets() > 0).astype(float)))


def multiclass():
    classes = np.random.default_rng(0).integers(0, 3, (len(ALKANES), 1)).astype(float)
    return Training(network(nn.MulticlassClassificationFFN(n_classes=3, input_dim=16)), molecules(classes))


GRAPHS = {"selective_backprop": r"batch\['bmg'\].*the first axis of every tensor must be the samples.*infobatch or plb"}
REGRESSION = {**NO_PREDICTIONS, **GRAPHS}
CASES = [
    Case("MPNN, regression (MSE)", PACKAGE, regression, REGRESSION),
    Case("MPNN, regression, molecules weighted", PACKAGE, weighted, REGRESSION),
    Case("MPNN, mean and variance (MVE)", PACKAGE, variance, REGRESSION),
    Case("MPNN, three tasks with missing targets", PACKAGE, tasks_with_gaps, REGRESSION),
    Case("MPNN, RMSE", PACKAGE, rmse, {**INDIVISIBLE, **GRAPHS}),
    Case("MPNN, binary classification", PACKAGE, binary, GRAPHS),
    Case("MPNN, three classes", PACKAGE, multiclass, GRAPHS),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_chemprop(case, method):
    check(case, method)
