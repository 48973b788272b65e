"""ExFractalDB: views of iterated function systems in space.

Hirokatsu Kataoka et al.: "Replacing Labeled Real-Image Datasets with Auto-Generated Contours", CVPR 2022, with the settings of
the authors' scripts (ExFractalDB_render.sh of masora1030/CVPR2022-Pretrained-ViT-PyTorch). A category is a system of 2 to 7
affine maps of space whose twelve parameters are uniform in [-1, 1], each applied with a probability in proportion to the
|determinant| of its matrix. It is kept when its points, scaled to [-1, 1], have a variance above 0.05 along each axis. Its images
differ in one parameter (145 variations: times 0.4 to 1.6) and in the viewpoint: a camera at a distance of 4 with an angle of view
of 45 degrees, white points on black.

The published script turns the camera in 12 steps around an axis (MV-FractalDB) and says of ExFractalDB that its viewpoints are
random: here every image has a rotation of its own, uniform over all. A variation whose points are not bounded, of which the
script makes no images, is brought half-way back to the system until they are. The images of other sizes have points in proportion
to their area.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kakurenbo_recipes.fractal import CANDIDATES, System, bounded, chaos, random_system, varied

PARAMETERS = 12
POINTS, SIZE, VARIANCE = 10_000, 224, 0.05
ROUGH = 500  # points for a quick check of a system
WEIGHTS = [tenths / 10 for tenths in range(4, 17) if tenths != 10]  # of one parameter in a variation
VARIATIONS = np.array(
    [[1.0] * PARAMETERS] + [[w if i == p else 1.0 for i in range(PARAMETERS)] for p in range(PARAMETERS) for w in WEIGHTS]
)  # [145, 12]
VIEWS = 12  # of a variation, at most
INSTANCES = len(VARIATIONS) * VIEWS
DISTANCE, NEAREST, ANGLE = 4.0, 1.0, math.radians(45)  # of the camera
WHITE = 255


def scaled(points: np.ndarray) -> np.ndarray:
    """Scale the points of systems (float64 [S, n, 3], finite) to [-1, 1], all axes of a system alike, around their mean."""
    low, high = (edge(points, axis=(1, 2), keepdims=True) for edge in (np.min, np.max))
    placed = (points - low) / np.where(high > low, high - low, 1.0) * 2 - 1
    return placed - placed.mean(1, keepdims=True)


def wide(points: np.ndarray) -> np.ndarray:
    """Tell of each system whether its points (float64 [S, n, 3]) are bounded, and spread along every axis; bool [S]."""
    near = bounded(points)
    spread = scaled(np.where(near[:, None, None], points, 0.0)).var(1)
    return near & (spread > VARIANCE).all(1)


def passing(systems: list[System], count: int, random: np.random.Generator) -> list[System]:
    """Return those of some systems with as many maps whose `count` points are spread enough."""
    if not systems:
        return []
    points = chaos(np.stack([s.maps for s in systems]), np.stack([s.cumulative() for s in systems]), count, random)
    return [system for system, kept in zip(systems, wide(points), strict=True) if kept]


def category(seed: int, number: int) -> System:
    """Return the system of category `number`: the first drawn one whose points are spread enough."""
    random = np.random.default_rng([seed, number])
    while True:
        systems = [random_system(random, PARAMETERS) for _ in range(CANDIDATES)]
        for count in sorted({len(system.maps) for system in systems}):  # those of as many maps run together
            alike = [system for system in systems if len(system.maps) == count]
            found = passing(passing(alike, ROUGH, random), POINTS, random)
            if found:
                return found[0]


@dataclass(frozen=True)
class View:
    """Where a system is seen from.

    Attributes:
        rotation: float64 [3, 3], of space, before the camera looks along its third axis.
    """

    rotation: np.ndarray

    @classmethod
    def random(cls, random: np.random.Generator) -> "View":
        """Draw a rotation, uniform over all (a unit quaternion)."""
        w, x, y, z = (quaternion := random.normal(size=4)) / np.linalg.norm(quaternion)
        rows = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
        return cls(np.array(rows))

    def image(self, points: np.ndarray, size: int) -> np.ndarray:
        """Return what the camera sees of points (float64 [n, 3], around the origin), a pixel for each; uint8 [size, size]."""
        right, up, away = self.rotation @ points.T
        depth = DISTANCE + away
        scale = size / 2 / math.tan(ANGLE / 2) / depth
        column, row = (np.floor(size / 2 + place * scale) for place in (right, -up))
        seen = (depth >= NEAREST) & (column >= 0) & (column < size) & (row >= 0) & (row < size)
        image = np.zeros(size * size, dtype=np.uint8)
        image[row[seen].astype(np.int64) * size + column[seen].astype(np.int64)] = WHITE
        return image.reshape(size, size)


def images(seed: int, number: int, instances: int, size: int) -> Iterator[np.ndarray]:
    """Yield the images of a category, uint8 [size, size]: the first ones are of different variations, each is from a viewpoint of its own.

    Args:
        seed: of the set.
        number: of the category.
        instances: how many, at most `INSTANCES`.
        size: pixels of a side; the number of points is in proportion to the area, `POINTS` at 224.
    """
    random, views = (np.random.default_rng([seed, number, stream]) for stream in (1, 2))
    count = max(1, round(POINTS * (size / SIZE) ** 2))
    points = scaled(varied(category(seed, number), count, random, VARIATIONS))
    order = random.permutation(len(VARIATIONS))
    for instance in range(instances):
        yield View.random(views).image(points[order[instance % len(order)]], size)
