"""Structured configs of methods: what they hold, and what OmegaConf refuses by them."""

import dataclasses
import pickle
from collections.abc import Callable
from dataclasses import KW_ONLY, MISSING, dataclass, field
from typing import Literal

import pytest
import torch
from hydra.core.object_type import ObjectType
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from hydra_plugins import kakurenbo_methods
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, MissingMandatoryValue, ValidationError

from kakurenbo_lightning import Choice, HideMethod, SampleSelection, Saving, available_methods, get_method, register_method
from kakurenbo_lightning.hydra_support import configs
from kakurenbo_lightning.hydra_support.configs import method_config
from kakurenbo_lightning.methods import registry
from kakurenbo_lightning.methods.registry import named_presets
from kakurenbo_lightning.methods.settings import number, setting
from kakurenbo_lightning.session.checkpoint import describe_method


@dataclass(frozen=True)
class Nothing(HideMethod):
    """Hides nothing."""

    def choose(self, statistics, epoch):
        return Choice(torch.zeros(len(statistics), dtype=torch.bool))


@pytest.fixture
def own():
    """Register a class as the method "own" and return its config; other tests go through all methods there are."""

    def register(cls):
        return OmegaConf.structured(method_config(register_method("own")(cls).name))

    yield register
    registry._METHODS.pop("own", None)


@pytest.mark.parametrize("name", available_methods())
def test_a_config_holds_every_setting_with_its_default(name):
    config = OmegaConf.to_container(OmegaConf.structured(method_config(name)))
    assert config.pop("_target_") == "kakurenbo_lightning.SampleSelection"
    assert (config.pop("_convert_"), config.pop("method")) == ("all", name)
    assert (config.pop("guard", None), config.pop("save", None)) == (None, None)
    assert (config.pop("values", "sample_loss"), config.pop("bls_alpha", 0.7)) == ("sample_loss", 0.7)
    defaults = dataclasses.asdict(get_method(name))
    assert repr(config) == repr({key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()})


@pytest.mark.parametrize("name", available_methods())
def test_a_config_makes_the_method_with_its_defaults(name):
    selection = instantiate(OmegaConf.structured(method_config(name)))
    assert isinstance(selection, SampleSelection)
    assert selection.method == get_method(name)


@pytest.mark.parametrize("name", named_presets())
def test_a_preset_has_a_config_of_its_own(name):
    method, preset = named_presets()[name]
    config = OmegaConf.structured(method_config(name))
    assert instantiate(config).method == get_method(method, preset=preset)
    assert OmegaConf.to_container(config).keys() == OmegaConf.to_container(OmegaConf.structured(method_config(method))).keys()
    assert pickle.loads(pickle.dumps(method_config(name))) is method_config(name) is getattr(configs, name)


def test_the_preset_of_kakurenbo_is_in_the_group():
    group = kakurenbo_methods.MethodSource("kakurenbo-lightning", "kakurenbo://kakurenbo/method")
    assert "kakurenbo_fast" in group.list("kakurenbo/method", ObjectType.CONFIG)
    config = group.load_config("kakurenbo/method/kakurenbo_fast").config
    assert (config.method, config.max_fraction, config.every_n_epochs) == ("kakurenbo", 0.5, 3)


def test_settings_are_typed():
    config = OmegaConf.structured(method_config("kakurenbo"))
    config.milestones, config.fractions, config.tau, config.balance = [60, 120, 160], [1, 0.8, 0.5, 0.2], 1, "class"
    method = instantiate(config, warmup_epochs=5).method
    assert (method.milestones, method.fractions, method.tau) == ((60, 120, 160), (1.0, 0.8, 0.5, 0.2), 1.0)
    assert (method.balance, method.warmup_epochs) == ("class", 5)
    for name, wrong in {"tau": "high", "warmup_epochs": 0.5, "unbiased": 0.5, "fractions": 0.5, "protected": ["a"]}.items():
        with pytest.raises(ValidationError, match=name):
            config[name] = wrong
    with pytest.raises(ConfigAttributeError, match="'tua' not in 'kakurenbo'"):
        config.tua = 0.5
    static = OmegaConf.structured(method_config("forget"))
    for value in (20, 0.25):
        static.static_epochs = value
        assert instantiate(static).method.static_epochs == value


def test_save_and_guard_stand_beside_the_settings_where_a_method_can_have_them():
    config = OmegaConf.structured(method_config("kakurenbo"))
    config.save, config.max_fraction = 0.2, None
    config.guard = {"_target_": "kakurenbo_lightning.SelectionGuard", "monitor": "val_acc", "max_drop": 0.1}
    assert instantiate(config).method == get_method("kakurenbo")
    config.max_fraction = 0.3
    with pytest.raises(InstantiationException, match=r"max_fraction=0.3 and save=0.2 both say how much is hidden"):
        instantiate(config)
    names = {name: OmegaConf.structured(method_config(name)).keys() & {"save", "guard"} for name in ("infobatch", "seta", "plb")}
    assert names == {"infobatch": {"save", "guard"}, "seta": {"guard"}, "plb": set()}


def test_save_may_be_a_node_with_its_limits_and_values_those_of_batches():
    config = OmegaConf.structured(method_config("infobatch"))
    config.save = {"_target_": "kakurenbo_lightning.Saving", "share": 0.2, "max_share": 0.6}
    config.prune_ratio, config.values, config.bls_alpha = None, "bls", 0.5
    made = instantiate(config)
    assert vars(made)["_settings"].save == Saving(0.2, max_share=0.6)
    assert vars(made)["_settings"].source == {"values": "bls", "bls_alpha": 0.5}


def test_a_config_is_pickled_by_reference():
    config = OmegaConf.create({"method": method_config("plb")})
    again = pickle.loads(pickle.dumps(config))
    assert again == config
    with pytest.raises(ValidationError):
        again.method.mix = "a"
    assert configs.plb is method_config("plb")
    with pytest.raises(AttributeError, match="has no attribute 'plbb'"):
        configs.plbb  # noqa: B018


def test_plain_fields_have_the_types_that_omegaconf_knows(own):
    @dataclass(frozen=True)
    class Plain(Nothing):
        count: int = 3
        words: tuple[str, ...] = ("a", "b")
        either: list[int | float] = field(default_factory=lambda: [1, 0.5])
        mode: Literal["a", "b"] = "a"
        table: dict[str, int] = field(default_factory=lambda: {"a": 1})
        function: Callable = len

    config = own(Plain)
    assert "function" not in config, "OmegaConf cannot hold it, so the method has its own default"
    with pytest.raises(ValidationError):
        config.count = "many"
    config.mode = 7  # OmegaConf does not know Literal: left to the method
    method = instantiate(config).method
    assert (method.count, method.words, method.either, method.mode) == (3, ["a", "b"], [1, 0.5], 7)
    assert (method.table, method.function) == ({"a": 1}, len)
    assert describe_method(method)["settings"]["function"] == "builtins.len"


def test_annotations_that_cannot_be_resolved_leave_plain_fields_untyped(own):
    @dataclass(frozen=True)
    class Unknown(Nothing):
        count: int = 3
        other: "NotImported" = None  # noqa: F821

    config = own(Unknown)
    config.count = "many"
    assert instantiate(config, other=4).method.other == 4


def test_what_must_be_given_is_asked_for(own):
    @dataclass(frozen=True)
    class Required(Nothing):
        _: KW_ONLY
        share: float = setting(MISSING, number(0, 1), "that must be given", fix="For example: 0.5.")
        where: str

    config = own(Required)
    for name, value in {"share": 0.5, "where": "here"}.items():
        with pytest.raises(MissingMandatoryValue, match=name):
            config[name]
        config[name] = value
    assert instantiate(config).method == Required(share=0.5, where="here")


def test_another_class_of_the_name_has_another_config(own):
    @dataclass(frozen=True)
    class First(Nothing):
        count: int = 1

    @dataclass(frozen=True)
    class Second(Nothing):
        share: float = 0.5

    assert "count" in own(First)
    registry._METHODS.pop("own")
    assert "share" in own(Second)
