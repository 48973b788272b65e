"""The console scripts of the recipes: they say which extra is missing before they load what needs it."""

from kakurenbo_lightning.core import extras


def train() -> None:
    """Start `kakurenbo-train`, or name the missing extra."""
    extras.require_or_exit("kakurenbo-train", "recipes", *extras.RECIPES)
    from kakurenbo_recipes.train import main

    main()


def fractal() -> None:
    """Start `kakurenbo-fractal`, or name the missing extra."""
    extras.require_or_exit("kakurenbo-fractal", "recipes", "PIL")
    from kakurenbo_recipes.formula_images import main

    main()


def search() -> None:
    """Start `kakurenbo-search`, or name the missing extra."""
    extras.require_or_exit("kakurenbo-search", "recipes", *extras.RECIPES)
    extras.require_or_exit("kakurenbo-search", "sweeps", "optuna")
    from kakurenbo_recipes.search import main

    main()
