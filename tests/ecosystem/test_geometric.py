"""PyTorch Geometric: its DataLoader and its batches of graphs."""

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from foreign import BATCH, INDIVISIBLE, METHODS, PARTIAL, Case, Training, check
from torch import nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv, global_mean_pool

GRAPHS, FEATURES, CLASSES = 48, 5, 3


def graphs(nodewise=False):
    """Rings of 3 to 9 nodes, with a class each, or a class for each node."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(GRAPHS):
        nodes = int(torch.randint(3, 10, (), generator=generator))
        ring = torch.arange(nodes)
        labels = torch.randint(CLASSES, (nodes,), generator=generator) if nodewise else torch.tensor([number % CLASSES])
        features = torch.randn(nodes, FEATURES, generator=generator) + labels.float().mean()
        made.append(Data(x=features, edge_index=torch.stack([ring, ring.roll(1)]), y=labels))
    return DataLoader(made, batch_size=BATCH, shuffle=True)


def nodes_of(graph):
    return graph.num_nodes


class GraphNet(pl.LightningModule):
    """Classifies graphs."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = GCNConv(FEATURES, 16), GCNConv(16, 16), nn.Linear(16, CLASSES)

    def nodes(self, batch):
        return self.second(self.first(batch.x, batch.edge_index).relu(), batch.edge_index)

    def training_step(self, batch, batch_idx):
        pooled = global_mean_pool(self.nodes(batch), batch.batch)
        return F.cross_entropy(self.head(pooled), batch.y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class NodeNet(GraphNet):
    """Classifies every node of the graphs."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.head(self.nodes(batch)), batch.y)


class MaskedNet(GraphNet):
    """Three tasks for each graph, some of which have no label: the loss is over those that have one, as in OGB's examples."""

    def training_step(self, batch, batch_idx):
        scores = self.head(global_mean_pool(self.nodes(batch), batch.batch))
        labels = batch.y.view(scores.shape)
        labelled = labels == labels
        return F.binary_cross_entropy_with_logits(scores[labelled], labels[labelled])


def with_gaps():
    loader, generator = graphs(), torch.Generator().manual_seed(1)
    for graph in loader.dataset:
        graph.y = torch.randint(2, (1, CLASSES), generator=generator).float()
        graph.y[:, 1:][torch.rand(1, CLASSES - 1, generator=generator) < 0.4] = torch.nan
    return Training(MaskedNet(), loader, terms=lambda graph: graph.y.isfinite().sum())


ONE_BATCH = {"plb": INDIVISIBLE["plb"]}  # whose first batch has 16 labels of 8 graphs
OWN_CLASS = {"selective_backprop": r"the batch holds a DataBatch.*kakurenbo, infobatch or plb"}
CASES = [
    Case("graph-level classification", "torch-geometric", lambda: Training(GraphNet(), graphs()), OWN_CLASS),
    Case("three tasks with missing labels", "torch-geometric", with_gaps, {**PARTIAL, **OWN_CLASS, **ONE_BATCH}),
    Case(
        "classification of nodes",
        "torch-geometric",
        lambda: Training(NodeNet(), graphs(nodewise=True), terms=nodes_of),
        {**PARTIAL, **OWN_CLASS},
    ),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_geometric(case, method):
    check(case, method)
