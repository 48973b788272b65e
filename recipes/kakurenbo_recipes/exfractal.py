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
WEIGHTS = [tenths / 10 for tenths in range(4, 17) if tenths != 10]  # factors on one parameter in a variation
VARIATIONS = np.array(
    [[1.0] * PARAMETERS] + [[w if i == p else 1.0 for i in range(PARAMETERS)] for p in range(PARAMETERS) for w in WEIGHTS]
)  # [145, 12]
VIEWS = 12  # most images of one variation
INSTANCES = len(VARIATIONS) * VIEWS
DISTANCE, NEAREST, ANGLE = 4.0, 1.0, math.radians(45)  # position and angle of view of the camera
WHITE = 255


def scaled(points: np.ndarray) -> np.ndarray:
    """Scale the points of systems (float64 [S, n, 3], finite) to [-1, 1], all axes of a system alike, around their mean."""
    low, high = (edge(points, axis=(1, 2), keepdims=True) for edge in (np.min, np.max))
    placed = (points - low) / np.where(high > low, high - low, 1.0) * 2 - 1
    return placed - placed.mean(1, keepdims=True)


def wide(points: np.ndarray) -> np.ndarray:
    """For each system, whether its points (float64 [S, n, 3]) are bounded and spread along every axis; bool [S]."""
    near = bounded(points)
    spread = scaled(np.where(near[:, None, None], points, 0.0)).var(1)
    return near & (spread > VARIANCE).all(1)


def passing(systems: list[System], count: int, random: np.random.Generator) -> list[System]:
    """Return those systems (all with the same number of maps) whose `count` points are spread widely enough."""
    if not systems:
        return []
    points = chaos(np.stack([s.maps for s in systems]), np.stack([s.cumulative() for s in systems]), count, random)
    return [system for system, kept in zip(systems, wide(points), strict=True) if kept]


def category(seed: int, number: int) -> System:
    """Return the system of category `number`: the first one drawn whose points are spread widely enough."""
    random = np.random.default_rng([seed, number])
    while True:
        systems = [random_system(random, PARAMETERS) for _ in range(CANDIDATES)]
        # systems with the same number of maps are computed together
        for count in sorted({len(system.maps) for system in systems}):
            alike = [system for system in systems if len(system.maps) == count]
            found = passing(passing(alike, ROUGH, random), POINTS, random)
            if found:
                return found[0]


@dataclass(frozen=True)
class View:
    """The orientation from which a system is seen.

    Attributes:
        rotation: float64 [3, 3], rotation of space before the camera looks along the third axis.
    """

    rotation: np.ndarray

    @classmethod
    def random(cls, random: np.random.Generator) -> "View":
        """Draw a rotation uniformly, as a unit quaternion."""
        w, x, y, z = (quaternion := random.normal(size=4)) / np.linalg.norm(quaternion)
        rows = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
        return cls(np.array(rows))

    def image(self, points: np.ndarray, size: int) -> np.ndarray:
        """Project points (float64 [n, 3], around the origin) and mark a pixel for each; uint8 [size, size]."""
        right, up, away = self.rotation @ points.T
        depth = DISTANCE + away
        scale = size / 2 / math.tan(ANGLE / 2) / depth
        column, row = (np.floor(size / 2 + place * scale) for place in (right, -up))
        seen = (depth >= NEAREST) & (column >= 0) & (column < size) & (row >= 0) & (row < size)
        image = np.zeros(size * size, dtype=np.uint8)
        image[row[seen].astype(np.int64) * size + column[seen].astype(np.int64)] = WHITE
        return image.reshape(size, size)


def images(seed: int, number: int, instances: int, size: int) -> Iterator[np.ndarray]:
    """Yield the images of a category, uint8 [size, size]. The first ones show different variations; each has its own viewpoint.

    Args:
        seed: seed of the set.
        number: number of the category.
        instances: number of images, at most `INSTANCES`.
        size: side in pixels; the number of points is proportional to the area, `POINTS` at 224.
    """
    random, views = (np.random.default_rng([seed, number, stream]) for stream in (1, 2))
    count = max(1, round(POINTS * (size / SIZE) ** 2))
    points = scaled(varied(category(seed, number), count, random, VARIATIONS))
    order = random.permutation(len(VARIATIONS))
    for instance in range(instances):
        yield View.random(views).image(points[order[instance % len(order)]], size)
