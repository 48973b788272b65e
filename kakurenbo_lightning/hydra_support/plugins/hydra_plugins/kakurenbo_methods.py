"""The Hydra plugin that makes every registered method an option of a config group, in any app of this environment.

The group `kakurenbo/method` is always there. The short name `method` is the app's, which may mean something else by it, unless the app asks
for ours: it has no such group but one of its configs names it in its defaults list (`- method: kakurenbo`); or it has one, and an option of
it takes in one of ours (`- /kakurenbo/method@_here_: kakurenbo`); or it says `hydra.searchpath: [kakurenbo://]`.

Hydra imports this file in every app that starts, so it imports nothing but Hydra; methods are imported when a group of them is asked
for, and torch not even then. The folder has no `__init__.py`: Hydra finds its plugins in all packages of the name hydra_plugins.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

GROUP, SHORT = "kakurenbo/method", "method"
SCHEME = "kakurenbo"
STORE = "structured://"  # the configs that an app has in Hydra's ConfigStore


class MethodSearchPath(SearchPathPlugin):
    """Searches the methods after the app's own configs, whose path goes along."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the source of methods."""
        main = next((element.path for element in search_path.get_path() if element.provider == "main"), None)
        search_path.append("kakurenbo-lightning", f"{SCHEME}://{main or STORE}")


class MethodSource(ConfigSource):
    """The configs of methods. Its path is that of the app's configs; none: the app asks for the short name."""

    @staticmethod
    def scheme() -> str:
        """As in ``kakurenbo://``."""
        return SCHEME

    def available(self) -> bool:
        """Always."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Whether it is a group of methods that the app may use."""
        group = config_path.strip("/")
        return group == GROUP or (group == SHORT and self.short_is_ours)

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

    @cached_property
    def short_is_ours(self) -> bool:
        """Whether the app asks for the group ``method`` of ours."""
        if not self.path:
            return True
        sources = [_source(path) for path in dict.fromkeys((self.path, STORE))]
        own = [source for source in sources if source.is_group(SHORT)]
        if own:
            return any(GROUP in _groups_of_defaults(source, f"{SHORT}/") for source in own)
        return any(SHORT in _groups_of_defaults(source, "") for source in sources if source.available())


def _source(path: str) -> ConfigSource:
    scheme = path.partition("://")[0] if "://" in path else "file"
    return SourcesRegistry.instance().resolve(scheme)("main", path)


def _groups_of_defaults(source: ConfigSource, folder: str) -> Iterator[str]:
    """The groups that the defaults lists of the configs of one folder ("", or with a slash at its end) name."""
    for name in source.list(folder.rstrip("/"), ObjectType.CONFIG):
        try:
            config = OmegaConf.to_container(source.load_config(f"{folder}{name}").config)
        except (OmegaConfBaseException, YAMLError, OSError, ValueError):
            continue  # Hydra says so where the app uses it
        for entry in (config.get("defaults") if isinstance(config, dict) else None) or []:
            named = next(iter(entry), "") if isinstance(entry, dict) else str(entry).partition("@")[0].rpartition("/")[0]
            yield named.split(" ")[-1].partition("@")[0].lstrip("/")
