"""Synthetic climate images with the channels of DeepCAM: weather-like noise with cyclones and atmospheric rivers."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

# channels in the order of the files, each with mean and standard deviation of the synthetic values, in its own unit
CHANNELS = {
    "TMQ": (20.0, 15.0),  # water in the column of air, kg / m2
    "U850": (1.5, 8.0),  # wind to the east at 850 hPa, m / s
    "V850": (0.3, 6.0),  # wind to the north
    "UBOT": (0.1, 6.5),  # the same in the lowest layer
    "VBOT": (0.3, 5.5),
    "QREFHT": (0.008, 0.006),  # humidity near the ground
    "PS": (96_500.0, 9_500.0),  # pressure at the ground, Pa
    "PSL": (101_000.0, 1_400.0),  # the same at sea level
    "T200": (213.0, 8.0),  # temperature at 200 hPa, K
    "T500": (253.0, 13.0),
    "PRECT": (3e-8, 1e-7),  # rain, m / s
    "TS": (279.0, 23.0),  # temperature of the ground
    "TREFHT": (278.0, 22.0),  # temperature near the ground
    "Z1000": (470.0, 800.0),  # height of 1000 hPa, m
    "Z200": (11_750.0, 630.0),
    "ZBOT": (61.0, 5.0),  # height of the lowest layer
}
EAST, NORTH = ("U850", "UBOT"), ("V850", "VBOT")
# added to each channel in the middle of an event, in standard deviations; winds are added by their direction
WIND = 2.5
CYCLONE = {"TMQ": 2.0, "QREFHT": 1.0, "PS": -1.5, "PSL": -2.5, "T200": 1.0, "T500": 1.0, "PRECT": 3.0, "Z1000": -2.5}
RIVER = {"TMQ": 2.5, "QREFHT": 1.5, "T500": 0.5, "PRECT": 1.5}
# grid points of the smooth weather from top to bottom; standard deviations of the weather and of the pixel noise
KNOTS, SMOOTH, ROUGH = 12, 0.7, 0.3


@dataclass(frozen=True)
class Event:
    """A cyclone or an atmospheric river in an image.

    Attributes:
        inside: bool [H, W], the pixels of the event.
        strength: float [H, W], 1 in the middle of the event.
        east: float [H, W], eastward wind, at most about 1.
        north: float [H, W], northward wind.
    """

    inside: np.ndarray
    strength: np.ndarray
    east: np.ndarray
    north: np.ndarray


def turned(y: np.ndarray, x: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Move and rotate the coordinates at random. Returns coordinates along and across an axis, and the angle of the axis to the
    east.
    """
    angle = random.uniform(0, np.pi)
    up, right = y - random.uniform(0.1, 0.9) * y.max(), x - random.uniform(0.1, 0.9) * x.max()
    return right * np.cos(angle) + up * np.sin(angle), up * np.cos(angle) - right * np.sin(angle), angle


def cyclone(y: np.ndarray, x: np.ndarray, random: np.random.Generator) -> Event:
    """Draw an ellipse around which the wind turns; y and x are the pixels' coordinates, [H, 1] and [1, W], in units of the height."""
    along, across, angle = turned(y, x, random)
    radius = max(random.uniform(0.010, 0.018), random.uniform(4, 7) / len(y))
    along, across = along / radius, across / (radius * random.uniform(0.7, 1.0))
    distance = np.hypot(along, across)
    strength = np.exp(-np.square(distance) / 2)
    east, north = -across * np.cos(angle) - along * np.sin(angle), along * np.cos(angle) - across * np.sin(angle)
    return Event(distance < 1, strength, strength * east, strength * north)


def river(y: np.ndarray, x: np.ndarray, random: np.random.Generator) -> Event:
    """Draw a long bent band along which the wind blows; y and x as for `cyclone`."""
    along, across, angle = turned(y, x, random)
    length, half = random.uniform(0.4, 0.8), max(random.uniform(0.008, 0.014), 3 / len(y))
    across = (across - random.uniform(-0.5, 0.5) * np.square(along)) / half
    strength = np.exp(-np.square(across) / 2) * (np.abs(along) < length / 2)
    return Event((np.abs(across) < 1) & (strength > 0), strength, strength * np.cos(angle), strength * np.sin(angle))


def climate(height: int, width: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Make an image, float32 [H, W, 16], with one or two rivers and cyclones, and the classes of its pixels, uint8 [H, W]."""
    knots = torch.from_numpy(random.standard_normal((1, len(CHANNELS), KNOTS, max(2, KNOTS * width // height)), dtype=np.float32))
    field = SMOOTH * F.interpolate(knots, size=(height, width), mode="bilinear")[0].numpy()
    field += ROUGH * random.standard_normal(field.shape, dtype=np.float32)
    labels = np.zeros((height, width), dtype=np.uint8)
    y, x = np.arange(height)[:, None] / height, np.arange(width)[None] / height
    row = {name: number for number, name in enumerate(CHANNELS)}
    for kind, make, effects in ((2, river, RIVER), (1, cyclone, CYCLONE)):
        for _ in range(random.integers(1, 3)):
            event, force = make(y, x, random), random.uniform(0.7, 1.3)
            for name, effect in effects.items():
                field[row[name]] += force * effect * event.strength
            for names, wind in ((EAST, event.east), (NORTH, event.north)):
                for name in names:
                    field[row[name]] += force * WIND * wind
            labels[event.inside] = kind
    mean, std = np.array(list(CHANNELS.values()), dtype=np.float32).T
    return field.transpose(1, 2, 0) * std + mean, labels
