"""What each hide method must choose, slowly and obviously: loops over samples and Python's ``sorted``; nothing of the library's code.

``reference(method, samples, epoch)`` is given the settings, of each sample what was seen of it (:class:`histories.Sighting`), and
which epoch, counted from the restart for methods that restart; it returns :class:`Expected`. Where a method draws, the same torch
generator says which permutation was drawn; who is eligible, how many are drawn and from which set is worked out here.
"""

import math
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch


class Expected(NamedTuple):
    """What is hidden, and with which probability each sample was kept (``None``: the method knows none)."""

    hidden: set
    keep: list | None = None


def share(fraction, count):
    """floor(fraction * count), the fraction read as it is written."""
    return math.floor(Decimal(str(fraction)) * count)


def epochs_of(value, max_epochs):
    """An epoch, or a share of all."""
    return share(value, max_epochs) if isinstance(value, float) else value


def some(rows, count, generator):
    """The ``count`` of ``rows`` that the generator draws."""
    order = torch.randperm(len(rows), generator=generator, dtype=torch.int32).tolist()
    return [rows[place] for place in order[:count]]


def fraction_of(method, epoch):
    """Which share of the samples the settings let ``epoch`` hide, without a schedule."""
    if method.name == "kakurenbo":
        at = [Decimal(str(m)) * epoch.max_epochs if isinstance(m, float) else m for m in method.milestones]
        interval = sum(epoch.index >= milestone for milestone in at)
        return Fraction(str(method.max_fraction)) * Fraction(str(method.fractions[interval]))
    if method.name == "baseline":
        return Fraction(0)
    return Fraction(str(method.prune_ratio if method.name == "infobatch" else method.max_fraction))


def round_of(method, epoch):
    """The epochs of the choices of the round of a schedule that ``epoch`` is in, and which of them is its own."""
    starts = [method.start_epoch + k * method.every_n_epochs for k in range(epoch.index + 1)]
    number = max(k for k, start in enumerate(starts) if start <= epoch.index)
    first = method.start_epoch + (number - number % len(method.fraction_schedule)) * method.every_n_epochs
    epochs = [replace(epoch, index=first + k * method.every_n_epochs) for k in range(len(method.fraction_schedule))]
    return epochs, number % len(method.fraction_schedule)


def count_of(method, total, epoch, fixed=None):
    """How many of ``total`` samples ``epoch`` hides at most; ``fixed(epoch)`` says it where no schedule changes it."""
    fixed = fixed or (lambda each: math.floor(fraction_of(method, each) * total))
    if epoch.fraction is not None:
        return math.floor(epoch.fraction * total)
    if not method.fraction_schedule:
        return fixed(epoch)
    epochs, place = round_of(method, epoch)
    whole = sum(map(fixed, epochs))
    upto = [sum(Fraction(str(f)) for f in method.fraction_schedule[:k]) / len(epochs) * whole for k in (place, place + 1)]
    return math.floor(upto[1]) - math.floor(upto[0])


def share_of(method, epoch):
    """Which share of the samples ``epoch`` hides at most."""
    if epoch.fraction is not None:
        return epoch.fraction
    if not method.fraction_schedule:
        return fraction_of(method, epoch)
    epochs, place = round_of(method, epoch)
    return sum(fraction_of(method, each) for each in epochs) / len(epochs) * Fraction(str(method.fraction_schedule[place]))


def loss_of(seen):
    """The last one, NaN when there is none."""
    return seen[-1].loss if seen else math.nan


def lowest_drawn(score, count, generator):
    """The ``count`` samples of lowest score (a dict, finite); among equals it is drawn."""
    count = min(count, len(score))
    if count == 0:
        return set()
    worst = sorted(score.values())[count - 1]
    below = [i for i in score if score[i] < worst]
    equal = sorted(i for i in score if score[i] == worst)
    return {*below, *some(equal, count - len(below), generator)}


def baseline(method, samples, epoch):
    """Nothing."""
    return Expected(set(), [1.0] * len(samples))


def random(method, samples, epoch):
    """A uniform floor(F * N)."""
    count = count_of(method, len(samples), epoch)
    hidden = some(range(len(samples)), count, epoch.generator())
    return Expected(set(hidden), [(len(samples) - count) / len(samples)] * len(samples))


def random_cycle(method, samples, epoch):
    """Deal from a pack; a new pack is shuffled when it is empty, and what this epoch has of it goes to its bottom."""
    total = len(samples)
    pack, packs, mine, taken = [], 0, [], 0
    for e in range(method.start_epoch, epoch.index + 1):
        if (e - method.start_epoch) % method.every_n_epochs:
            continue
        mine, taken = [], total - count_of(method, total, replace(epoch, index=e))
        while len(mine) < taken:
            if not pack:
                fresh = torch.randperm(total, generator=epoch.generator(packs)).tolist()
                packs += 1
                pack = [i for i in fresh if i not in mine] + [i for i in fresh if i in mine]
            mine.append(pack.pop(0))
    return Expected(set(range(total)) - set(mine), [taken / total] * total)


def kakurenbo(method, samples, epoch):
    """The M of lowest loss, of them the right and sure; and DropTop."""
    finite = [i for i, seen in enumerate(samples) if math.isfinite(loss_of(seen))]
    candidates = sorted(finite, key=lambda i: (loss_of(samples[i]), i))[: count_of(method, len(samples), epoch)]
    hidden = {i for i in candidates if samples[i][-1].correct and samples[i][-1].confidence >= np.float32(method.tau)}
    hardest = sorted(finite, key=lambda i: (-loss_of(samples[i]), i))[: share(method.drop_top, len(samples))]
    return Expected(hidden | set(hardest))


def infobatch(method, samples, epoch):
    """Of those below the mean loss floor((1 - r) * n) stay."""
    score = {i: seen[-1].loss if seen else 1.0 for i, seen in enumerate(samples)}
    finite = [i for i in score if math.isfinite(score[i])]
    mean = math.fsum(score[i] for i in finite) / len(finite) if finite else 0.0
    well_learned = [i for i in finite if score[i] < mean]
    keep = 1 - share_of(method, epoch)
    hidden = some(well_learned, len(well_learned) - math.floor(keep * len(well_learned)), epoch.generator())
    return Expected(set(hidden), [float(keep) if i in well_learned else 1.0 for i in range(len(samples))])


def events_of(seen):
    """Forgetting events in a history of right and wrong, ``None`` when it was never right."""
    if not any(seen):
        return None
    return sum(before and not now for before, now in pairwise(seen))


def forgetting(method, samples, epoch, counted=math.inf, drawn_in=None):
    """The floor(F * N) of fewest events in the epochs before ``counted``."""
    never = math.inf if method.never_learned == "last" else 0
    score = {}
    for i, seen in enumerate(samples):
        events = events_of([s.correct for s in seen if s.epoch < counted])
        if math.isfinite(loss_of(seen)):
            score[i] = never if events is None else events
    return Expected(lowest_drawn(score, count_of(method, len(samples), epoch), epoch.generator(drawn_in)))


def forget(method, samples, epoch):
    """FORGET counts in the epochs before the restart."""
    return forgetting(method, samples, epoch, max(1, epochs_of(method.static_epochs, epoch.max_epochs)), method.start_epoch)


def el2n(method, samples, epoch):
    """The floor(F * N) of lowest mean, without ``keep_hardest`` those of highest too."""
    first, end = (epochs_of(at, epoch.max_epochs) for at in method.score_epochs)
    score = {}
    for i, seen in enumerate(samples):
        scored = [s.el2n for s in seen if first <= s.epoch < max(end, first + 1)][-1 if method.score_pass else 0 :]
        if scored and math.isfinite(loss_of(seen)) and math.isfinite(sum(scored)):
            score[i] = sum(scored) / len(scored)
    generator = epoch.generator(method.start_epoch)  # a static method's choice is the same whenever it is made
    hidden = lowest_drawn(score, share(method.max_fraction, len(samples)), generator)
    if not method.keep_hardest:
        rest = {i: -score[i] for i in score if i not in hidden}
        hidden |= lowest_drawn(rest, share(method.drop_hardest, len(samples)), epoch.generator(method.start_epoch))
    return Expected(hidden)


def seta(method, samples, epoch):
    """Draw, group by k-means, train the groups in the window."""
    total = len(samples)
    drawn = some(range(total), max(1, share(1 - Decimal(str(method.prune_ratio)), total)), epoch.generator())
    trained = set(drawn)
    if epoch.index > 0 and (method.delta == 1 or epoch.index < share(method.delta, epoch.max_epochs)):
        loss = {i: loss_of(samples[i]) if samples[i] else 3.0 for i in drawn}
        group = grouped({i: loss[i] for i in drawn if math.isfinite(loss[i])}, method.groups)
        count = 1 + max(group.values(), default=0)
        width = max(1, round(count * method.window))
        first = epoch.index % (count - width + 1)
        trained = {i for i in drawn if i not in group or first <= group[i] < first + width} or set(drawn)
    return Expected(set(range(total)) - trained)


def orderdp(method, samples, epoch):
    """Draw, and of the drawn hide those of lowest loss; what was not seen counts 3."""
    total, generator = len(samples), epoch.generator()
    drawn = max(1, share(method.random_fraction, total))
    top = max(1, share(method.top_fraction, drawn))
    hidden = count_of(method, total, epoch, fixed=lambda each: total - top)
    if hidden != total - top:  # both steps leave out more or less, in the same proportion
        drawn, top = total - hidden * (total - drawn) // max(1, total - top), total - hidden
    rows = some(range(total), drawn, generator)
    score = {i: loss_of(samples[i]) if samples[i] else 3.0 for i in rows}
    finite = {i: value for i, value in score.items() if math.isfinite(value)}
    easy = lowest_drawn(finite, drawn - top, generator)
    return Expected(set(range(total)) - set(rows) | easy)


def ies(method, samples, epoch):
    """The mean of the last |second differences| is small, and one more of them is known."""
    mean = {}
    for i, seen in enumerate(samples):
        losses = [s.loss for s in reversed(seen)][: method.window + 3]
        if len(losses) == method.window + 3 and all(map(math.isfinite, losses)):
            mean[i] = sum(abs(losses[j] - 2 * losses[j + 1] + losses[j + 2]) for j in range(method.window)) / method.window
    settled = sorted((i for i in mean if mean[i] < method.threshold), key=lambda i: (mean[i], i))
    return Expected(set(settled[: share(method.max_fraction, len(samples))]))


def rcap(method, samples, epoch):
    """Draw those that stay one after the other, by exp(clipped loss / beta): the first to arrive, where each arrives at its rate."""
    highest = math.log(epoch.classes)
    losses = [loss_of(seen) if seen else highest for seen in samples]
    losses = [min(max(loss, 0.0), highest) if math.isfinite(loss) else highest for loss in losses]
    uniform = torch.rand(len(samples), dtype=torch.float64, generator=epoch.generator()).tolist()
    late = {i: math.log(-math.log1p(-u)) - (losses[i] - max(losses)) / method.beta for i, u in enumerate(uniform)}
    order = sorted(late, key=lambda i: -late[i])
    return Expected(set(order[: count_of(method, len(samples), epoch)]))


def grouped(values, groups):
    """Group of each of ``values`` (a dict, in the order drawn): pieces of equal values, else Lloyd's k-means in exact arithmetic."""
    different = set(values.values())
    if len(different) < 2:
        length = math.ceil(len(values) / groups)
        return {i: place // length for place, i in enumerate(values)}
    values = {i: Fraction(v) for i, v in values.items()}
    groups = min(groups, len(different))
    centres, group = sorted(kmeans_start(list(values.values()), groups)), None
    mean = sum(values.values()) / len(values)
    tolerance = sum((v - mean) ** 2 for v in values.values()) / len(values) / 10_000
    for _ in range(300):
        before, group = group, {i: nearest(v, centres) for i, v in values.items()}
        if group == before:
            break
        left = list(centres)
        for g in range(groups):
            members = [values[i] for i in values if group[i] == g]
            if members:
                centres[g] = sum(members) / len(members)
        if sum((a - b) ** 2 for a, b in zip(centres, left, strict=True)) <= tolerance:
            break
    return {i: nearest(v, centres) for i, v in values.items()}


def kmeans_start(values, groups):
    """k-means++: of a few values, drawn in proportion to their squared distance from the nearest centre, the best one."""
    stream = np.random.RandomState(0)
    centres = [values[int(stream.random_sample() * len(values))]]
    while len(centres) < groups:
        distance = [min((v - c) ** 2 for c in centres) for v in values]
        sums = list(accumulate(distance))
        drawn = [Fraction(u) * sums[-1] for u in stream.random_sample(2 + int(math.log(groups)))]
        candidates = [values[next(place for place, s in enumerate(sums) if s >= d)] for d in drawn]
        centres.append(min(candidates, key=lambda c: sum(min(d, (v - c) ** 2) for v, d in zip(values, distance, strict=True))))
    return centres


def nearest(value, centres):
    """The nearest centre; half-way between two the lower one. Of equal centres the first has what is not above them."""
    rough = [abs(float(value) - float(c)) for c in centres]
    close = [
        g for g, distance in enumerate(rough) if distance <= min(rough) * (1 + 1e-9)
    ]  # spares exact arithmetic on the others
    distance = {g: abs(value - centres[g]) for g in close}
    best = [g for g in close if distance[g] == min(distance.values())]
    lowest = [g for g in best if centres[g] == centres[best[0]]]
    return lowest[-1] if value > centres[lowest[0]] else lowest[0]


# --- what every method does


def expected(reference, method, history, epoch):
    """What ``epoch`` (an :class:`~kakurenbo_lightning.Epoch`) must hide when it chooses anew, with the options of every method."""
    if not trains_on_part(method, epoch):
        return Expected(set())
    since = epoch.index - scoring_epochs(method, epoch.max_epochs)
    free = [i for i in range(len(history)) if i not in method.protected and history.targets[i] not in method.protected_classes]
    epoch = replace(epoch, index=since, classes=len(set(history.targets)))
    parts = {-1: free}
    if method.balance is not None:
        by_class = {label + 1: [i for i in free if history.targets[i] == label] for label in sorted(set(history.targets))}
        parts = {number: rows for number, rows in by_class.items() if rows}
    fractions = dict.fromkeys(parts)
    if method.balance == "rcap" and free:
        fractions = rcap_fractions(history, parts, len(free) - count_of(method, len(free), epoch, fixed_count(method, len(free))))
    hidden, keep = set(), [1.0] * len(history)
    for number, rows in parts.items():
        if not rows:
            continue
        part = replace(epoch, part=number, fraction=fractions[number])
        chosen = reference(method, [history.samples[i] for i in rows], part)
        hidden |= {rows[place] for place in chosen.hidden}
        for place, probability in enumerate(chosen.keep or ()):
            keep[rows[place]] = probability
    if method.unbiased == "step":  # weights times the share kept
        keep = [probability / (1 - len(hidden) / len(history)) for probability in keep]
    return Expected(hidden, keep if method.unbiased else None)


def fixed_count(method, total):
    """What :func:`count_of` asks of OrderDP, whose fraction is of two steps; the others' is one."""
    if method.name != "orderdp":
        return None
    return lambda each: total - max(1, share(method.top_fraction, max(1, share(method.random_fraction, total))))


def rcap_fractions(history, parts, kept):
    """The share that RCAP hides of each part, where all keep so many samples together."""
    highest = math.log(len(set(history.targets)))
    losses = [loss_of(seen) for seen in history.samples]
    losses = [min(max(loss, 0.0), highest) if math.isfinite(loss) else highest for loss in losses]
    sizes = {number: len(rows) for number, rows in parts.items()}
    weight = {
        number: math.sqrt(max(math.fsum(losses[i] for i in rows) / len(rows), 1e-12) * len(rows) / sum(sizes.values()))
        for number, rows in parts.items()
    }
    least = 1 if kept >= len(parts) else 0
    # the shares grow in proportion to the weights between the least and the whole of each class; at these scales one begins or ends to
    scales = sorted({bound / weight[c] for c in parts for bound in (least, sizes[c])})

    def shares(scale):
        return {c: min(max(scale * weight[c], least), sizes[c]) for c in parts}

    above = next(k for k, scale in enumerate(scales) if sum(shares(scale).values()) >= kept - 1e-9)
    share = shares(scales[above])
    if above:
        low, high = (sum(shares(scale).values()) for scale in scales[above - 1 : above + 1])
        share = shares(scales[above - 1] + (scales[above] - scales[above - 1]) * (kept - low) / (high - low))
    share = {c: round(share[c], 9) for c in parts}
    up = sorted(parts, key=lambda c: (math.floor(share[c]) - share[c], c))[: kept - sum(map(math.floor, share.values()))]
    return {c: 1 - Fraction(math.floor(share[c]) + (c in up), sizes[c]) for c in parts}


def trains_on_part(method, epoch):
    """Whether the options of every method let ``epoch`` hide something."""
    since = epoch.index - scoring_epochs(method, epoch.max_epochs)
    ends = share(1 - Decimal(str(method.end_fraction)), epoch.max_epochs)
    return since >= method.start_epoch and not (method.end_fraction and since >= ends)


def scoring_epochs(method, max_epochs):
    """So many epochs come before a static method chooses."""
    if method.name == "forget":
        return max(1, epochs_of(method.static_epochs, max_epochs))
    if method.name == "el2n":
        first, end = (epochs_of(at, max_epochs) for at in method.score_epochs)
        return max(first + 1, end)
    return 0


def choice_epoch(method, epoch, max_epochs):
    """The epoch whose choice ``epoch`` trains on: itself, or an earlier one whose choice is kept."""
    begin = scoring_epochs(method, max_epochs) + method.start_epoch
    if epoch < begin:
        return epoch
    if scoring_epochs(method, max_epochs):
        return begin
    return begin + (epoch - begin) // method.every_n_epochs * method.every_n_epochs
