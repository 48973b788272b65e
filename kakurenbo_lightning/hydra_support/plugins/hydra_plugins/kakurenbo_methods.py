"""The Hydra plugin that makes every registered method an option of the config group `kakurenbo/method`, in any app of this environment.

The plugin adds only this group, so an app's own groups are never mixed with configs of this package. An app that wants the short
name `method` for the group writes `hydra.searchpath: [kakurenbo://]` into its primary config.

Hydra imports this file at the start of every app, so it imports nothing but Hydra. Methods are imported when their group is used, and
torch not even then. The folder has no `__init__.py`, because Hydra finds plugins through the namespace package hydra_plugins.
"""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

GROUP, SHORT = "kakurenbo/method", "method"
SCHEME = "kakurenbo"


class MethodSearchPath(SearchPathPlugin):
    """Adds the methods to Hydra's search path, after the app's own configs."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the source of methods to ``search_path``."""
        search_path.append("kakurenbo-lightning", f"{SCHEME}://{GROUP}")


class MethodSource(ConfigSource):
    """Provides the configs of methods, in the group that its path names; without a path also under their short names."""

    @staticmethod
    def scheme() -> str:
        """Return the scheme of this source's URLs, as in ``kakurenbo://``."""
        return SCHEME

    def available(self) -> bool:
        """Return ``True``: the configs are made from code, so they are always available."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Whether ``config_path`` is the group of methods."""
        group = config_path.strip("/")
        return group == GROUP or (group == SHORT and not self.path)

    def is_config(self, config_path: str) -> bool:
        """Whether ``config_path`` names a method."""
        group, _, name = config_path.rpartition("/")
        return self.is_group(group) and name.removesuffix(".yaml") in self.list(group, ObjectType.CONFIG)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Return the names of all methods and presets."""
        from kakurenbo_lightning.methods.registry import available_methods, named_presets

        return [] if results_filter is ObjectType.GROUP else sorted([*available_methods(), *named_presets()])

    def load_config(self, config_path: str) -> ConfigResult:
        """Return the structured config of the method that ``config_path`` names."""
        from kakurenbo_lightning.hydra_support.configs import method_config

        config = OmegaConf.structured(method_config(config_path.rpartition("/")[2].removesuffix(".yaml")))
        return ConfigResult(self.provider, self.full_path(), config, header={"package": None})
