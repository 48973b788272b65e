"""What each backprop method must choose, slowly and obviously: loops over samples and Python's ``sorted``; nothing of the library's code.

``reference(method, values, indices, memory, generator)`` is given the settings, columns of plain numbers, the rows' indices in the data
set, and the memory that :func:`remembered` keeps; it returns :class:`Picks`. Where a method draws, the same torch generator says what.
"""

import math
import sys
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from references import share


class Picks(NamedTuple):
    """What is trained.

    Attributes:
        rows: in the order in which they are trained, where ``ordered``.
        weights: of them in the loss.
        whole: there was no choice.
        unknown: could not be scored.
        ordered: whether the order is told.
    """

    rows: list
    weights: list | None = None
    whole: bool = False
    unknown: int = 0
    ordered: bool = False


def uniform(count, generator):
    return torch.rand(count, generator=generator).tolist()


def hardness(loss):
    """A loss that is not finite never looks easy."""
    return loss if math.isfinite(loss) else math.inf


def percentile(loss, history):
    """Share of the history that is strictly below."""
    return sum(other < loss for other in history) / len(history)


def hardest(scores, count):
    """The ``count`` of highest score; ties: those that come first."""
    return sorted(scores, key=lambda row: (-scores[row], row))[:count]


def selective_backprop(method, values, indices, memory, generator):
    """Each with probability max(floor, percentile ** beta), by itself."""
    losses = values["loss"]
    if method.score == "topk":
        count = max(1, math.floor(len(losses) / (1 + method.beta)))
        return Picks(hardest(dict(enumerate(map(hardness, losses))), count))
    if method.score == "random":
        shares = uniform(len(losses), generator)
    elif method.score == "l2":
        shares = [min(1.0, norm * norm) if norm == norm else norm for norm in values["el2n"]]
    else:
        shares = [percentile(loss, memory["history"]) for loss in losses]
    odds = [
        max(method.floor, part**method.beta) if math.isfinite(loss) else 1.0 for part, loss in zip(shares, losses, strict=True)
    ]
    draws = uniform(len(losses), generator)
    if max(odds) == 0:
        return Picks(list(range(len(losses))), whole=True, ordered=True)
    return Picks([row for row, (draw, p) in enumerate(zip(draws, odds, strict=True)) if draw < p], ordered=True)


def fixed_weights(losses, keep):
    """((rank + .5) / B) ** (1 / keep - 1) of each row, the rank counted from the lowest loss."""
    order = sorted(range(len(losses)), key=lambda row: (hardness(losses[row]), row))
    return {row: ((rank + 0.5) / len(losses)) ** (1 / keep - 1) for rank, row in enumerate(order)}


def sb_fixed(method, values, indices, memory, generator):
    """The floor(keep * B) of highest key U ** (1 / weight): a draw without replacement, one after another, in proportion to the weight."""
    weights = fixed_weights(values["loss"], method.keep)
    draws = uniform(len(weights), generator)
    keys = {row: math.log(max(draws[row], 1e-38)) / weight for row, weight in weights.items()}
    return Picks(hardest(keys, max(min(2, len(weights)), share(method.keep, len(weights)))))


def drawn_one_after_another(weights, count, rng):
    """Rows drawn without replacement: each time in proportion to the weights of those that are left."""
    left, rows = dict(weights), []
    for _ in range(count):
        total = sum(left.values())
        row = rng.choice(list(left), p=[weight / total for weight in left.values()])
        rows.append(int(row))
        del left[row]
    return rows


def normalised(norms):
    """Sum 1; one that is not finite counts as the largest, which is more than 0; when all are 0 they are alike."""
    largest = max([sys.float_info.min, *filter(math.isfinite, norms)])
    filled = [norm if math.isfinite(norm) else largest for norm in norms]
    total = math.fsum(filled)
    return [norm / total if total > 0 else 1 / len(norms) for norm in filled]


def katharopoulos(method, values, indices, memory, generator):
    """A batch drawn with replacement in proportion to g, each weighing 1 / (presample * b * g)."""
    g = normalised(values["el2n"])
    draws = torch.rand(max(min(2, len(g)), len(g) // method.presample), generator=generator, dtype=torch.float64).tolist()
    rows = [next(row for row in range(len(g)) if math.fsum(g[: row + 1]) > draw) for draw in draws]
    return Picks(rows, [1 / (len(g) * g[row]) for row in rows], ordered=True)


def gain(norms):
    """t: how much variance importance sampling takes away."""
    g = np.array(normalised(norms))
    away = 1 - ((g - 1 / len(g)) ** 2).sum() / (g**2).sum()
    return 1 / math.sqrt(away)


def rho_loss(method, values, indices, memory, generator):
    """The floor(fraction * B) of highest loss - irreducible loss."""
    table = torch.load(method.irreducible, weights_only=True)["irreducible"].tolist()
    known = {
        row: hardness(loss) - np.float32(table[i])
        for row, (loss, i) in enumerate(zip(values["loss"], indices, strict=True))
        if math.isfinite(table[i])
    }
    return Picks(
        hardest(known, max(min(2, len(indices)), share(method.fraction, len(indices)))), unknown=len(indices) - len(known)
    )


def stale_plan(method, losses, epoch):
    """What an epoch that does not look trains: percentiles among the stored finite losses, one draw for each sample."""
    draws = torch.rand(len(losses), generator=epoch.generator(), dtype=torch.float64).tolist()
    known = [loss for loss in losses if math.isfinite(loss)]
    odds = [max(method.floor, percentile(loss, known) ** method.beta) if math.isfinite(loss) else 1.0 for loss in losses]
    return [i for i in range(len(losses)) if draws[i] < odds[i]] or list(range(len(losses)))


# --- what is remembered


def remembered(method, memory, values):
    """The memory after a batch was seen; empty at first."""
    if method.name in ("selective_backprop", "stale_sb"):
        return {"history": [*memory.get("history", []), *map(hardness, values["loss"])][-method.history :]}
    if method.name == "katharopoulos":
        return {"t": method.momentum * memory.get("t", 0.0) + (1 - method.momentum) * gain(values["el2n"])}
    return {}


# --- which batches are looked at


def scores(method, epoch, step, steps, memory):
    """Whether batch ``step`` of ``steps`` of ``epoch`` is looked at."""
    if epoch.index < method.warmup_epochs:
        return False
    if method.name == "stale_sb":
        return epoch.index % method.staleness == 0
    if method.name == "sb_fixed":
        done = Fraction(epoch.index * steps + step, epoch.max_epochs * steps)
        regular = method.interrupt == 0 or (step + 1) % method.interrupt != 0
        return Decimal(str(method.start)) <= done < Decimal(str(method.end)) and regular
    if method.name == "katharopoulos":
        three_b, all_b = 3, method.presample
        return memory.get("t", 0.0) > ((all_b + three_b) / three_b if method.threshold is None else method.threshold)
    return True
