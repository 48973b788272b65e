"""Hydra configs of every registered method, and the plugin that offers them to any Hydra app."""
