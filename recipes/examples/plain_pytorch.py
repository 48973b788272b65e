"""A plain PyTorch loop, without Lightning's Trainer: `python -m recipes.examples.plain_pytorch`."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kakurenbo_lightning import Epoch, SampleStatistics, SelectionSampler, get_method

EPOCHS = 6


def values_of(logits, labels):
    """Return the values of each sample from which a method chooses."""
    confidence, predicted = logits.softmax(1).max(1)
    return {"loss": F.cross_entropy(logits, labels, reduction="none"), "confidence": confidence, "correct": predicted == labels}


def main() -> list[int]:
    """Train, and return how many samples each epoch hid."""
    torch.manual_seed(0)
    labels = torch.arange(300) % 3
    data = TensorDataset(torch.randn(300, 2) + 2 * F.one_hot(labels)[:, :2], labels)
    network = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)

    method = get_method("kakurenbo", max_fraction=0.3, tau=0.6)
    statistics = SampleStatistics(len(data))
    sampler = SelectionSampler(len(data), batch_size=32)
    loader = DataLoader(data, batch_sampler=sampler)
    hidden = []
    for epoch in range(EPOCHS):
        plan = method.plan(statistics, Epoch(epoch, EPOCHS, seed=0))
        sampler.follow(plan, epoch)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * plan.lr_factor
        for step, (points, targets) in enumerate(loader):
            logits = network(points)
            F.cross_entropy(logits, targets).backward()
            optimizer.step()
            optimizer.zero_grad()
            statistics.record(sampler.step(step), values_of(logits.detach(), targets), epoch)
        with torch.no_grad():  # score the hidden samples, so that they can come back
            points, targets = data[plan.hidden]
            statistics.record(plan.hidden, values_of(network(points), targets), epoch)
        statistics.merge()
        hidden.append(len(plan.hidden))
        print(f"epoch {epoch}: hid {hidden[-1]} of {len(data)}")
    return hidden


if __name__ == "__main__":
    main()
