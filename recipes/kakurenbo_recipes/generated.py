"""Small generated images in the shapes of real data, for `debug=true`."""

import torch
import torch.nn.functional as F

from kakurenbo_recipes.data import ImageData, InMemoryImages
from kakurenbo_recipes.settings import check_setting, is_count

COARSE = 4  # side in pixels of a class's pattern before it is scaled up


class GeneratedImages(ImageData):
    """Each class has its own coarse pattern, and its images differ by noise, so that it is easy and quick to learn.

    Args:
        num_classes: number of classes.
        samples: number of training images; a quarter as many are used for testing.
        size: side in pixels.
        noise: standard deviation of the noise, relative to that of the pattern.
        generator_seed: seed of patterns and noise.
        settings: those of `ImageData`.
    """

    mean = (0.5,) * 3
    std = (0.25,) * 3

    def __init__(
        self, num_classes: int = 10, samples: int = 512, size: int = 32, noise: float = 1.0, generator_seed: int = 0, **settings
    ) -> None:
        for name, value, least in (("num_classes", num_classes, 2), ("samples", samples, 8), ("size", size, COARSE)):
            check_setting(f"data.{name}", value, is_count(value, least), f"an int >= {least}", "Leave it out for the default.")
        self.num_classes, self.samples, self.size, self.noise, self.generator_seed = (
            num_classes,
            samples,
            size,
            noise,
            generator_seed,
        )
        super().__init__(**settings)

    def load(self) -> tuple[InMemoryImages, InMemoryImages]:
        """Return the training and the test images, uint8 [N, 3, size, size]."""
        generator = torch.Generator().manual_seed(self.generator_seed)
        coarse = torch.randn(self.num_classes, 3, COARSE, COARSE, generator=generator)
        patterns = F.interpolate(coarse, size=(self.size, self.size), mode="nearest")

        def images(count: int) -> InMemoryImages:
            labels = torch.arange(count) % self.num_classes
            noise = torch.randn(count, 3, self.size, self.size, generator=generator) * self.noise
            pixels = ((patterns[labels] + noise) * 32 + 128).clamp(0, 255).round().to(torch.uint8)
            return InMemoryImages(pixels, labels)

        return images(self.samples), images(self.samples // 4)
