"""RCDB: closed contours around a point, in many layers.

Hirokatsu Kataoka et al.: "Replacing Labeled Real-Image Datasets with Auto-Generated Contours", CVPR 2022, with the ranges of the
authors' script (make_rcdb.py of masora1030/CVPR2022-Pretrained-ViT-PyTorch, RCDB_render.sh). A category is a number of vertices
(3 to 200, exponential with a mean of 100), of contours (1 to 200), a factor on the Perlin noise (0 to 4) and a line width (0 to
0.1), which is how far a contour lies outside of the one before. Its images differ in the radius of the first contour (0 to 100 of
512 pixels), how far it is stretched along either axis (the resizing factor, 1 to 2), where its middle is, the noise, and the grey
of every contour, on white.

Here the Perlin noise is drawn at random places as there, but with gradients of their own instead of those of a table: 1 to 8, or
in half of the cases -1, as in the package that the script uses. Contours are drawn on a canvas of 512 pixels, as published, and
smaller images are made of that by averaging; greys are from 0 to 255 whatever the size (there they are from 0 to half the size).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 512
VERTICES, MEAN_VERTICES = (3, 200), 100.0
LINES, NOISE, WIDTH = 200, 4.0, 0.1  # largest number of contours, factor on the noise, and line width
RADIUS, STRETCH, SHIFT = 100, 2.0, 200.0  # largest radius in pixels, resizing factor, and shift in pixels
WHITE = 255
INSTANCES = 100_000  # images are independent, so this only limits the command line


@dataclass(frozen=True)
class Contours:
    """The properties that all images of a category share.

    Attributes:
        vertices: number of vertices of a contour.
        lines: number of contours in an image.
        noise: factor on the Perlin noise that moves a vertex, in pixels of 512.
        width: distance between a contour and the one inside it, without noise.
    """

    vertices: int
    lines: int
    noise: float
    width: float


def category(seed: int, number: int) -> Contours:
    """Return the parameters of category `number`."""
    random = np.random.default_rng([seed, number])
    least, most = VERTICES
    while not least <= (vertices := int(random.exponential(MEAN_VERTICES))) <= most:
        pass
    lines = int(random.integers(1, LINES + 1))
    return Contours(vertices, lines, float(random.uniform(0, NOISE)), float(random.uniform(0, WIDTH)))


def perlin(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Return one-dimensional Perlin noise at independent random places, float64 of this shape."""
    place = random.random(shape)
    hashes = random.integers(0, 16, (2, *shape))
    left, right = np.where(hashes < 8, hashes + 1.0, -1.0)
    fade = place**3 * (place * (place * 6 - 15) + 10)
    return 0.4 * ((1 - fade) * left * place + fade * right * (place - 1))


def paths(made_of: Contours, radius: float, stretch: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return the closed contours around the origin, the innermost first: float64 [lines, vertices + 1, 2].

    Args:
        made_of: properties of the category.
        radius: radius of the first contour before stretching.
        stretch: float64 [2], factor along each axis.
        random: random generator of the noise.
    """
    angle = 2 * np.pi / made_of.vertices * np.arange(made_of.vertices)
    direction = np.stack([np.cos(angle), np.sin(angle)], 1)
    noise = perlin((made_of.lines, made_of.vertices, 2), random) * made_of.noise * 2 - made_of.noise
    reach = radius * stretch + np.cumsum(made_of.width - noise, axis=0)
    vertices = direction * reach
    return np.concatenate([vertices, vertices[:, :1]], 1)


def images(seed: int, number: int, instances: int, size: int) -> Iterator[np.ndarray]:
    """Yield the images of a category, uint8 [size, size].

    Args:
        seed: seed of the set.
        number: number of the category.
        instances: number of images.
        size: side in pixels.
    """
    made_of, random = category(seed, number), np.random.default_rng([seed, number, 1])
    side = max(size, SIZE)
    for _ in range(instances):
        radius, stretch = random.integers(0, RADIUS + 1), random.uniform(1, STRETCH, 2)
        middle = SIZE / 2 + random.uniform(-SHIFT, SHIFT, 2)
        greys = random.integers(0, WHITE + 1, made_of.lines).tolist()
        contours = (paths(made_of, float(radius), stretch, random) + middle) * (side / SIZE)
        image = Image.new("L", (side, side), WHITE)
        draw = ImageDraw.Draw(image)
        for grey, contour in zip(greys, contours.reshape(made_of.lines, -1).tolist(), strict=True):
            draw.line(contour, fill=grey, width=1)
        yield np.asarray(image.resize((size, size), Image.Resampling.BOX) if size < side else image)
