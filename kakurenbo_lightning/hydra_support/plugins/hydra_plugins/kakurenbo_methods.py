"""The Hydra plugin that makes every registered method an option of the config group `kakurenbo/method`, in any app of this environment.

An app's own groups stay its own: the plugin adds that one group, and no other config of this package is ever found. An app that wants the
short name `method` for it says `hydra.searchpath: [kakurenbo://]` in its primary config.

Hydra imports this file in every app that starts, so it imports nothing but Hydra; methods are imported when a group of them is asked
for, and torch not even then. The folder has no `__init__.py`: Hydra finds its plugins in all packages of the name hydra_plugins.
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
    """Searches the methods after the app's own configs."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the source of methods."""
        search_path.append("kakurenbo-lightning", f"{SCHEME}://{GROUP}")


class MethodSource(ConfigSource):
    """The configs of methods, in the group that is its path; without a path, by their short name too."""

    @staticmethod
    def scheme() -> str:
        """As in ``kakurenbo://``."""
        return SCHEME

    def available(self) -> bool:
        """Always."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Whether it is a group of methods."""
        group = config_path.strip("/")
        return group == GROUP or (group == SHORT and not self.path)

    def is_config(self, config_path: str) -> bool:
        """Whether it is a method."""
        group, _, name = config_path.rpartition("/")
        return self.is_group(group) and name.removesuffix(".yaml") in self.list(group, ObjectType.CONFIG)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """The names of all methods."""
        from kakurenbo_lightning.methods.registry import available_methods

        return [] if results_filter is ObjectType.GROUP else list(available_methods())

    def load_config(self, config_path: str) -> ConfigResult:
        """The structured config of a method."""
        from kakurenbo_lightning.hydra_support.configs import method_config

        config = OmegaConf.structured(method_config(config_path.rpartition("/")[2].removesuffix(".yaml")))
        return ConfigResult(self.provider, self.full_path(), config, header={"package": None})
