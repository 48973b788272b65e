"""FractalDB: images of iterated function systems in the plane, made by formulas.

Hirokatsu Kataoka et al.: "Pre-training without Natural Images", ACCV 2020. A category is an iterated function
system: 2 to 7 affine maps whose six parameters are uniform in [-1, 1], each applied with a probability in proportion to
its |ad - bc|. It is kept when its points fill at least a fifth of the pixels of a canvas. Its images differ in the
parameters (25 variations), in the patch that is drawn at every point (random 3 x 3 dots) and in how they are flipped
(4 ways): 25 x 10 x 4 = 1,000.

Every image depends on the seed and its category only, so that a larger set holds the smaller one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np

MAPS = (2, 7)  # fewest and most maps of a system
# canvas, padding, points and least filled share in the test that a category must pass
CANVAS, PAD, POINTS, FILLING = 512, 6, 100_000, 0.2
SIZE = 362  # pixels of the published images, which have POINTS points
WEIGHTS = (0.2, 0.6, 1.4, 1.8)  # factors on one parameter in a variation
VARIATIONS = np.array([[1.0] * 6] + [[w if i == p else 1.0 for i in range(6)] for p in range(6) for w in WEIGHTS])  # [25, 6]
PATTERNS, FLIPS, GREY = 10, 4, 127
ROUGH = 5_000, 48  # points and pixels of a quick check: a system that fills a fifth of the canvas fills more of a coarse one
INSTANCES = len(VARIATIONS) * PATTERNS * FLIPS
BURN_IN, STEPS = 20, 50  # steps of a chain before its points count, and after
FAR = 1e6  # a system whose points go further counts as unbounded
CANDIDATES = 32  # number of systems that are tried at a time


@dataclass(frozen=True)
class System:
    """An iterated function system of m affine maps of the plane or of space.

    Attributes:
        maps: float64 [m, 6] or [m, 12], of each map first its matrix row by row, then what it adds: in the plane the a to f of
            (x, y) -> (a x + b y + e, c x + d y + f).
    """

    maps: np.ndarray

    def cumulative(self) -> np.ndarray:
        """Cumulative sums of the maps' probabilities, float64 [m]."""
        if self.maps.shape[1] == 6:
            a, b, c, d = self.maps[:, :4].T
            weight = np.abs(a * d - b * c)
        else:
            first, second, third = self.maps[:, :9].reshape(-1, 3, 3).transpose(1, 0, 2)
            weight = np.abs((first * np.cross(second, third)).sum(1))
        return np.cumsum(weight) / weight.sum()


def random_system(random: np.random.Generator, parameters: int = 6) -> System:
    """Draw a system with 6 parameters per map in the plane, or 12 in space."""
    return System(random.uniform(-1.0, 1.0, (random.integers(MAPS[0], MAPS[1] + 1), parameters)))


def chaos(systems: np.ndarray, cumulative: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Return points of the attractors of several systems (chaos game), with many chains side by side.

    Args:
        systems: float64 [S, m, 6] or [S, m, 12].
        cumulative: float64 [S, m], cumulative sums of the maps' probabilities.
        count: least number of points for each system.
        random: random generator for the choice of maps.

    Returns:
        float64 [S, points, 2] or [S, points, 3]; not finite, or far away, where a system is not bounded.
    """
    number, maps = cumulative.shape
    chains = -(-count // STEPS)
    axes = {6: range(2), 12: range(3)}[systems.shape[2]]
    place = list(np.zeros((len(axes), number, chains)))
    flat, first = systems.reshape(-1, systems.shape[2]).T.copy(), (np.arange(number) * maps)[:, None]
    points = np.empty((STEPS, len(axes), number, chains))
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(BURN_IN + STEPS):
            drawn = random.random((number, chains))
            chosen = first + sum((drawn >= bound[:, None]).astype(np.int64) for bound in cumulative.T[:-1])
            drawn_maps = [parameter[chosen] for parameter in flat]
            rows = [drawn_maps[len(axes) * row :] for row in axes]
            added = drawn_maps[len(axes) ** 2 :]
            place = [reduce(add, (rows[row][axis] * place[axis] for axis in axes)) + added[row] for row in axes]
            if step >= BURN_IN:
                points[step - BURN_IN] = place
    return points.transpose(2, 0, 3, 1).reshape(number, -1, len(axes))


def bounded(points: np.ndarray) -> np.ndarray:
    """For each system, whether its points (float64 [S, n, d]) all stay near the origin; bool [S]."""
    with np.errstate(invalid="ignore"):
        return np.all(np.abs(points) < FAR, axis=(1, 2))


def pixels(points: np.ndarray, size: int, pad: int = PAD) -> np.ndarray:
    """Scale points (float64 [n, 2], finite) to the canvas and mark their pixels; bool [size, size]."""
    low, span = points.min(0), np.ptp(points, axis=0)
    place = ((points - low) / np.where(span > 0, span, 1.0) * (size - 2 * pad - 1) + pad).astype(np.int64)
    marked = np.zeros(size * size, dtype=bool)
    marked[place[:, 1] * size + place[:, 0]] = True
    return marked.reshape(size, size)


def filling(systems: list[System], count: int, size: int, random: np.random.Generator) -> Iterator[tuple[System, float]]:
    """Yield each system (all with the same number of maps) with the share of the canvas that `count` points fill; 0 if it is
    unbounded.
    """
    if not systems:
        return
    points = chaos(np.stack([s.maps for s in systems]), np.stack([s.cumulative() for s in systems]), count, random)
    for system, near, found in zip(systems, bounded(points), points, strict=True):
        yield system, float(pixels(found, size).mean()) if near else 0.0


def category(seed: int, number: int) -> System:
    """Return the system of category `number`: the first one drawn that fills enough of the canvas."""
    random = np.random.default_rng([seed, number])
    while True:
        systems = [random_system(random) for _ in range(CANDIDATES)]
        # systems with the same number of maps are computed together
        for count in sorted({len(system.maps) for system in systems}):
            alike = [system for system in systems if len(system.maps) == count]
            likely = [system for system, filled in filling(alike, *ROUGH, random) if filled >= FILLING]
            for system, filled in filling(likely, POINTS, CANVAS, random):
                if filled >= FILLING:
                    return system


def varied(system: System, count: int, random: np.random.Generator, variations: np.ndarray = VARIATIONS) -> np.ndarray:
    """Return points of the variations of a system (float64 [V, 6] or [V, 12], factors on its parameters), float64 [V, n, 2] or [V, n, 3].

    An unbounded variation is moved half-way back to the original system until it is bounded.
    """
    weights = variations.copy()
    cumulative = np.repeat(system.cumulative()[None], len(weights), 0)
    points = chaos(system.maps * weights[:, None], cumulative, count, random)
    while not (near := bounded(points)).all():
        weights[~near] = (1 + weights[~near]) / 2
        points[~near] = chaos(system.maps * weights[~near, None], cumulative[~near], count, random)
    return points


def patterns(random: np.random.Generator) -> np.ndarray:
    """Return `PATTERNS` different random patches of 3 x 3 dots, bool [P, 3, 3], none of them empty."""
    codes = random.choice(np.arange(1, 1 << 9), PATTERNS, replace=False)
    return (codes[:, None] >> np.arange(9) & 1).astype(bool).reshape(PATTERNS, 3, 3)


def stamped(marked: np.ndarray, patch: np.ndarray) -> np.ndarray:
    """Draw a patch (bool [3, 3]) at every marked pixel (bool [H, W]) but those at the border; uint8 [H, W]."""
    image = np.zeros(marked.shape, dtype=bool)
    inner = marked[1:-1, 1:-1]
    height, width = inner.shape
    for down, right in np.argwhere(patch):
        image[down : down + height, right : right + width] |= inner
    return image.view(np.uint8) * np.uint8(GREY)


def images(seed: int, number: int, instances: int, size: int) -> Iterator[np.ndarray]:
    """Yield the images of a category, uint8 [size, size], in an order that makes the first ones differ in every way.

    Args:
        seed: seed of the set.
        number: number of the category.
        instances: number of images, at most `INSTANCES`.
        size: side in pixels; the number of points is proportional to the area, `POINTS` at 362.
    """
    random = np.random.default_rng([seed, number, 1])
    count = max(1, round(POINTS * (size / SIZE) ** 2))
    points, patches = varied(category(seed, number), count, random), patterns(random)
    pad = max(1, round(PAD * size / SIZE))
    canvases = [pixels(found, size, pad) for found in points]
    for place in random.permutation(INSTANCES)[:instances]:
        variation, rest = divmod(int(place), PATTERNS * FLIPS)
        pattern, flip = divmod(rest, FLIPS)
        image = stamped(canvases[variation], patches[pattern])
        yield image[:: -1 if flip & 1 else 1, :: -1 if flip & 2 else 1]
