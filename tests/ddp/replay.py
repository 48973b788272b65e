"""The oracle: the batches of all ranks as one batch, in one plain process."""

import torch
import torch.nn.functional as F
from fits import Points, copy_of


def replay(ranks, net, count, accumulate=1, refresh=True, restart=None, score_all=None):
    """Train ``net`` on what the ranks trained, each step's batches joined, without Lightning and without our library.

    Args:
        ranks: what :func:`fits.fit` returned on each rank.
        net: the module as it was before training.
        count: length of the data set.
        accumulate: batches per optimizer step, whose gradient is the mean over all their samples.
        refresh: the method looks at hidden samples after the epoch.
        restart: the epoch that begins with the initial weights and a new optimizer, if any.
        score_all: the epoch after which all samples are scored, if any.

    Returns:
        For each epoch the statistics and the weights before it, and the weights at the end.
    """
    data, before = Points(count), {}
    initial = copy_of(net.state_dict())
    optimizer = net.configure_optimizers()
    rate = optimizer.param_groups[0]["lr"]
    rows = {
        "loss": torch.full((count,), float("nan"), dtype=torch.float64),
        "confidence": torch.full((count,), float("nan"), dtype=torch.float64),
        "correct": torch.zeros(count, dtype=torch.bool),
        "epoch_seen": torch.full((count,), -1, dtype=torch.int16),
    }

    def score(indices):
        logits = net.network(data.x[indices])
        loss, probability = F.cross_entropy(logits, data.y[indices], reduction="none"), logits.detach().softmax(1)
        rows["loss"][indices] = loss.detach()
        rows["confidence"][indices] = probability.amax(1)
        rows["correct"][indices] = probability.argmax(1) == data.y[indices]
        rows["epoch_seen"][indices] = epoch
        return loss

    for epoch in sorted(ranks[0]["epochs"]):
        record = ranks[0]["epochs"][epoch]
        if epoch == restart:
            net.load_state_dict(initial)
            optimizer = net.configure_optimizers()
        before[epoch] = (copy_of(rows), copy_of(net.state_dict()))
        optimizer.param_groups[0]["lr"] = rate * record["lr_factor"]
        for first in range(0, len(record["trained"]), accumulate):
            trained = [batch for rank in ranks for batch in rank["epochs"][epoch]["trained"][first : first + accumulate]]
            losses = torch.cat([score(batch).mul(record["loss_weights"][batch]) for batch in trained])
            losses.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        scored = torch.arange(count) if epoch == score_all else record["hidden"] if refresh else []
        if len(scored):
            with torch.no_grad():
                score(scored)
    return before, copy_of(net.state_dict())
