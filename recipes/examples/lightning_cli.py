"""LightningCLI with the selection in its YAML: `python -m recipes.examples.lightning_cli fit --config recipes/examples/lightning_cli.yaml`.

LightningCLI needs `pip install "jsonargparse[signatures]"`.
"""

from kakurenbo_recipes.generated import GeneratedImages
from lightning.pytorch.cli import LightningCLI

from recipes.examples.timm_torchvision import Classifier


def main(arguments: list[str] | None = None) -> LightningCLI:
    """Run the command line with any module and data module; by default a timm network on generated images."""
    return LightningCLI(Classifier, GeneratedImages, args=arguments)


if __name__ == "__main__":
    main()
