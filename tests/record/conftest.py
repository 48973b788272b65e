"""The fixture ``compose``, for every test of this folder."""

from recipe_runs import compose

__all__ = ["compose"]
