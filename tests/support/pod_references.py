"""What each PoD method must make of what it observes, slowly and obviously: float64, loops over all samples, and those methods that
keep probabilities divide by their sum after every step; nothing of the library's code.

``reference(method, values, drawn, seen, cap)`` is given the settings, the value of every sample, which samples a step drew (some of them
more than once), what it saw of each of them, and what base values are held at; it returns the values after the step.
"""

import math
from decimal import Decimal
from typing import NamedTuple

import torch


class Seen(NamedTuple):
    """What one step, or one look, saw of one sample; float32 values."""

    loss: float
    correct: bool
    entropy: float


def base_of(method, seen):
    """The base value, NaN where what it is made of is not finite."""
    observed = seen.entropy if method.name == "peb" else seen.loss
    if not math.isfinite(observed):
        return math.nan
    return math.tanh(observed) if method.name == "nlb" else observed


def quantile(values, share):
    """The lowest of the values that a ``share`` of them, or more, does not exceed."""
    return min(value for value in values if sum(other <= value for other in values) >= Decimal(str(share)) * len(values))


def cap_of(method, seen):
    """What base values are held at, 0 or more; ``seen``: of every sample, ``None`` where it never was."""
    known = [base_of(method, one) for one in seen if one is not None]
    known = [base for base in known if math.isfinite(base)]
    return max(0.0, quantile(known, method.cap_quantile)) if known and method.cap_quantile < 1 else math.inf


def value_of(method, seen, cap=math.inf):
    """min(b, cap) ** T; a negative one counts as 0."""
    base = base_of(method, seen)
    return max(0.0, min(base, cap)) ** method.temperature if math.isfinite(base) else math.nan


NORMALISED = ("owc", "lb", "nlb")


def start(method, seen):
    """The first values, of those that keep probabilities with a sum of 1: a sample without a finite one has the mean of the others, and
    none is below its share of the mean."""
    return normalised(raw_start(method, seen)) if method.name in NORMALISED else raw_start(method, seen)


def raw_start(method, seen):
    """The same before it is normalised."""
    if method.name == "owc":
        return [1.0] * len(seen)
    cap = cap_of(method, seen)
    values = [math.nan if one is None else value_of(method, one, cap) for one in seen]
    finite = [value for value in values if math.isfinite(value)]
    mean = math.fsum(finite) / len(finite) if finite else 0.0
    if mean <= 0:
        return [1.0] * len(seen)
    return [max(value, method.min_value * mean) if math.isfinite(value) else mean for value in values]


def normalised(values):
    """Sum 1."""
    total = math.fsum(values)
    return [value / total for value in values]


def probabilities(method, values):
    """With which each sample is drawn."""
    return [(1 - method.mix) * part + method.mix / len(values) for part in normalised(values)]


def write(method, values, new):
    """``values`` with those of ``new`` (by sample) in them: one that is not finite is not written, none is below its share of the mean."""
    least = method.min_value * math.fsum(values) / len(values)
    return [max(new[i], least) if math.isfinite(new.get(i, math.nan)) else value for i, value in enumerate(values)]


def owc(method, values, drawn, seen, cap):
    """p_i += alpha where misclassified."""
    alpha = 1 / len(values) if method.alpha is None else method.alpha
    new = {i: values[i] + (0.0 if one.correct else alpha) for i, one in zip(drawn, seen, strict=True)}
    return normalised(write(method, values, new))


def plb(method, values, drawn, seen, cap):
    """b_i = what the step saw; the last of a sample that was drawn twice counts."""
    return write(method, values, {i: value_of(method, one, cap) for i, one in zip(drawn, seen, strict=True)})


def lb(method, values, drawn, seen, cap):
    """p_i = what the step saw, raw; then a sum of 1."""
    return normalised(plb(method, values, drawn, seen, cap))


def drawn_by(probability, count, generator):
    """Of ``count`` ordered uniform numbers the first sample whose cumulated probability exceeds each."""
    gaps = torch.empty(count + 1, dtype=torch.float64).exponential_(generator=generator).tolist()
    total, drawn = math.fsum(probability), []
    for place in range(count):
        uniform = math.fsum(gaps[: place + 1]) / math.fsum(gaps)
        drawn.append(next(i for i in range(len(probability)) if math.fsum(probability[: i + 1]) > uniform * total))
    return drawn


def ordered_share(stored, real):
    """Of the pairs whose real values differ, the share that the stored values order alike, an equal pair counting a half."""
    right = pairs = 0.0
    for i in range(len(real)):
        for j in range(i):
            if real[i] != real[j]:
                pairs += 1
                right += 0.5 if stored[i] == stored[j] else (stored[i] < stored[j]) == (real[i] < real[j])
    return right / pairs if pairs else 1.0


def distribution_distance(stored, real):
    """Half of what the probabilities differ by, all together."""
    return sum(abs(one - other) for one, other in zip(normalised(stored), normalised(real), strict=True)) / 2
